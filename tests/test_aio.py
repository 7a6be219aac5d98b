"""Waking other threads and event loops."""

import asyncio
import threading
from concurrent.futures import Future

from rollcast.aio import call_in, fulfil, resolve, running_loop, wake


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
