"""An observer that takes no notice of being stopped is left behind: it keeps nobody, and it is named once."""

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rollcast.records import StreamEvent, StreamEventType
from rollcast.rollout import BaseAgent
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.testing import EventCapture, ScriptedBackend

HOOKS = ["on_event", "on_batch", "on_run_opened", "on_chain_closed", "on_run_closed", "aclose"]
QUESTION = [{"role": "user", "content": "Hi"}]


def step(n):
    return StreamEvent.now(StreamEventType.TRAIN_STEP, train_step=n, policy_version=0, metrics={})


class Watcher(StreamObserver):
    async def on_event(self, event):
        pass


@pytest.fixture
def released():
    """What hangs in a test goes on when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def swallowing(hook, released, *, threaded=False):
    """An observer that ignores every cancellation in this hook; and its calls of it."""
    calls = []

    async def swallows(self, *arguments):
        calls.append(asyncio.get_running_loop())
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)

    return type("Deaf", (Watcher,), {hook: swallows, "threaded": threaded})(), calls


def blocking(hook, released):
    """A threaded observer that blocks its thread in this hook."""

    async def blocks(self, *arguments):
        released.wait()

    return type("Blocked", (Watcher,), {hook: blocks, "threaded": True})()


def warnings_about(name, caplog):
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return [text for text in said if text.startswith(name) and ("hangs" in text or "left behind" in text)]


async def one_run(manager):
    async with manager.run(chains=1) as run:
        with run.chain(QUESTION) as chain, chain.generation() as generation:
            generation.chunk("Hello")


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
async def test_the_manager_is_closed_in_spite_of_it(hook, threaded, released, caplog):
    """Its run ends, `drain` and `aclose` return, and the others have everything."""
    manager, capture = StreamingManager(drain_timeout=0.02), EventCapture()
    deaf, _ = swallowing(hook, released, threaded=threaded)
    manager.add_observer(deaf)
    manager.add_observer(capture)
    await one_run(manager)
    await manager.drain()
    await manager.aclose()
    capture.check()
    assert len(capture.of("run_end")) == 1
    assert manager.observers == []
    assert len(warnings_about("Deaf", caplog)) == 1
    released.set()


@pytest.mark.parametrize("hook", HOOKS)
async def test_one_that_blocks_its_own_thread_keeps_nobody(hook, released, caplog):
    """Closing a second time, as the exit does, does not wait for it again."""
    manager, capture = StreamingManager(drain_timeout=0.02), EventCapture()
    manager.add_observer(blocking(hook, released))
    manager.add_observer(capture)
    await one_run(manager)
    await manager.aclose()
    capture.check()
    assert len(warnings_about("Blocked", caplog)) == 1
    assert not manager._roster._departures
    released.set()


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "aclose"])
def test_the_event_loop_ends_in_spite_of_it(hook, released, caplog):
    """`asyncio.run` cancels and awaits every task that is left. The observer is removed, and what it left is dropped."""
    manager, capture = StreamingManager(drain_timeout=0.02), EventCapture()
    deaf, calls = swallowing(hook, released)
    manager.add_observer(deaf)
    manager.add_observer(capture)
    asyncio.run(one_run(manager))
    assert manager.observers == [capture]
    asyncio.run(one_run(manager))
    assert len(capture.of("run_end")) == 2
    assert len(calls) == 1
    assert len(warnings_about("Deaf", caplog)) == 1
    manager.close()


def test_an_agent_returns_in_spite_of_it(released):
    """Its trajectories are there."""
    manager = StreamingManager(drain_timeout=0.02)
    deaf, _ = swallowing("on_event", released)
    manager.add_observer(deaf)
    agent = BaseAgent(backend=ScriptedBackend("The answer is 4."), streaming_manager=manager)
    result = agent.run(1, QUESTION, enable_streaming=True)
    assert [t.finish_reason for t in result] == ["answered"]
    manager.close()


def test_one_that_swallows_one_cancellation_gets_the_rest_later():
    """It goes on for a moment, and then its loop is over: as if it had let the cancellation pass."""
    manager = StreamingManager()

    class Once(EventCapture):
        swallowed = 0

        async def on_event(self, event):
            self.events.append(event)
            if len(self.events) == 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.swallowed += 1

    once = Once()
    manager.add_observer(once)

    async def main():
        for n in range(3):
            manager.emit(step(n))
        while not once.events:
            await asyncio.sleep(0)

    asyncio.run(main())
    asyncio.run(manager.drain())
    assert [e.data["train_step"] for e in once.events] == [0, 1, 2]
    assert once.swallowed == 1
    manager.close()


@pytest.mark.parametrize("threaded", [False, True])
async def test_one_that_comes_back_is_not_called_while_its_old_call_goes_on(threaded, released, until):
    """Its events wait for that."""
    manager = StreamingManager(drain_timeout=0.02)
    deaf, calls = swallowing("on_event", released, threaded=threaded)
    manager.add_observer(deaf)
    manager.emit(step(1))
    await until(lambda: calls)
    await manager.aclose()
    manager.add_observer(deaf)
    manager.emit(step(2))
    await manager.drain()
    assert len(calls) == 1
    released.set()
    await until(lambda: len(calls) == 2)
    await manager.aclose()


async def test_one_that_was_detached_and_hangs_while_it_closes_is_stopped(until):
    """It failed five times before."""
    closing, stopped = asyncio.Event(), asyncio.Event()

    class Failing(Watcher):
        async def on_event(self, event):
            raise ValueError("no")

        async def aclose(self):
            closing.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

    manager = StreamingManager(drain_timeout=0.02)
    manager.add_observer(Failing())
    for n in range(5):
        manager.emit(step(n))
    await closing.wait()
    assert not stopped.is_set()
    await manager.aclose()
    await until(stopped.is_set)
    assert (manager.observers, manager.statistics()) == ([], [])


# -- the program ends ----------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, threading
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.testing import EventCapture

manager = StreamingManager(drain_timeout=0.05)

class Bad(StreamObserver):
    threaded = {threaded}
    async def on_event(self, event):
        pass
    async def {hook}(self, *arguments):
        {body}

async def main():
    async with manager.run(chains=1) as run:
        with run.chain([{{"role": "user", "content": "Hi"}}]) as chain:
            pass

capture = EventCapture()
manager.add_observer(Bad())
manager.add_observer(capture)
{run}
print(len(capture.of("run_end")), flush=True)
"""
SWALLOW = """while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass"""
BLOCK = "threading.Event().wait()"


@pytest.mark.parametrize("hook", ["on_event", "on_run_opened", "aclose"])
@pytest.mark.parametrize(
    ("body", "threaded", "run"),
    [
        (SWALLOW, False, "asyncio.run(main())"),
        (SWALLOW, True, "asyncio.run(main())"),
        (BLOCK, True, "asyncio.run(main())"),
        (SWALLOW, False, "with manager.run(): pass"),
    ],
    ids=["swallows", "swallows on a thread", "blocks its thread", "swallows in the background"],
)
def test_the_program_ends_in_spite_of_it(hook, body, threaded, run):
    """By itself, without an error."""
    program = PROGRAM.format(hook=hook, body=body, threaded=threaded, run=run)
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300
    )
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


# -- Ctrl-C --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """Python's own handler is in place, also if the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def outside_of_asyncio_run(main):
    """`asyncio.run` has a handler of its own, which cancels the main task."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("run", [asyncio.run, outside_of_asyncio_run])
@pytest.mark.parametrize("hook", HOOKS)
def test_one_that_raises_what_ends_programs_fails_like_any_other(hook, run, error, ctrl_c):
    """In the main thread, in the loop of the run."""
    manager, capture = StreamingManager(), EventCapture()

    async def raises(self, *arguments):
        raise error

    manager.add_observer(type("Odd", (Watcher,), {hook: raises})())
    manager.add_observer(capture)

    async def main():
        await one_run(manager)
        await manager.aclose()

    run(main())
    assert len(capture.of("run_end")) == 1


@pytest.mark.parametrize("body", ["call", "loop"])
def test_a_real_ctrl_c_in_the_midst_of_an_observer_reaches_the_program(body, ctrl_c):
    """Python raises it at whatever is being executed."""
    manager = StreamingManager()

    class Busy(Watcher):
        async def on_event(self, event):
            if body == "call":
                signal.raise_signal(signal.SIGINT)
            else:
                threading.Timer(0.01, signal.raise_signal, (signal.SIGINT,)).start()
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    pass

    manager.add_observer(Busy())
    with pytest.raises(KeyboardInterrupt):
        outside_of_asyncio_run(one_run(manager))
    assert manager.statistics()[0].failed == 0
    asyncio.run(discarding(manager))


def test_what_a_signal_handler_raises_in_the_midst_of_an_observer_reaches_the_program():
    """As by `signal.signal(SIGTERM, lambda *_: sys.exit(3))`."""
    manager = StreamingManager()

    class Busy(Watcher):
        async def on_event(self, event):
            signal.raise_signal(signal.SIGTERM)

    manager.add_observer(Busy())
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    try:
        with pytest.raises(SystemExit) as ended:
            asyncio.run(one_run(manager))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 3
    asyncio.run(discarding(manager))


async def discarding(manager):
    """End with it without calling its observers again, which would raise again."""
    for delivery in manager.fanout.deliveries:
        delivery.discarding = True
    await manager.aclose()
