"""Waking other threads and event loops."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest

from rollcast.aio import call_in, fulfil, resolve, run, running_loop, wake


async def test_a_waiter_in_another_loop_goes_on():
    """Waking is asked for in a thread that has no loop."""
    waiter = asyncio.get_running_loop().create_future()
    thread = threading.Thread(target=wake, args=(waiter,))
    thread.start()
    await waiter
    thread.join()
    assert waiter.result() is None


def test_a_closed_loop_is_told():
    """Nothing is raised, and nothing is called."""
    loop = asyncio.new_event_loop()
    waiter = loop.create_future()
    loop.close()
    assert not wake(waiter)
    assert not call_in(loop, waiter.cancel)
    assert not waiter.done()
    assert running_loop() is None


async def test_what_is_done_stays_as_it_is():
    """A future or promise that somebody else has resolved or cancelled is left alone."""
    waiter, left = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()
    resolve(waiter, 1)
    resolve(waiter, 2)
    left.cancel()
    resolve(left, 1)
    assert waiter.result() == 1
    assert left.cancelled()
    promise = Future()
    promise.cancel()
    fulfil(promise)
    assert promise.cancelled()


ENDS_AT_EXIT = """
import asyncio, atexit, threading
from rollcast import aio

async def main():
    global loop, leave
    loop, leave = asyncio.get_running_loop(), asyncio.Event()
    await asyncio.to_thread(int)
    began.set()
    await leave.wait()

def end():
    loop.call_soon_threadsafe(leave.set)
    thread.join()
    print("ended", loop.is_closed())

began = threading.Event()
thread = threading.Thread(target=lambda: aio.run(main()), daemon=True)
thread.start()
began.wait()
atexit.register(end)
"""


def test_a_loop_ends_quietly_while_the_interpreter_exits():
    """It has had work done on a thread, and no thread can be started any more to end that one."""
    done = subprocess.run([sys.executable, "-c", ENDS_AT_EXIT], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("ended True\n", "", 0)


def test_a_loop_gives_what_its_coroutine_gives_and_raises_what_it_raises():
    """As `asyncio.run` does."""

    async def main(error):
        if error:
            raise RuntimeError("mine")
        return 1

    assert run(main(error=False)) == 1
    with pytest.raises(RuntimeError, match="mine"):
        run(main(error=True))
