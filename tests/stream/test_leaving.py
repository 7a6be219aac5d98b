"""Observers whose loop ends, who hang, and who leave: what is theirs is given to them, and they are closed."""

import asyncio
import logging
import threading

from rollcast.observers import ChainSpecificStreamObserver, MultiChainStreamObserver
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.testing import EventCapture, RaisingObserver

T = StreamEventType


def step(n):
    return StreamEvent.now(T.TRAIN_STEP, train_step=n, policy_version=0, metrics={})


def steps(observer):
    return [e.data["train_step"] for e in observer.events]


class Closing(EventCapture):
    """Counts how often it is closed, and hangs on the events named."""

    def __init__(self, *hangs_on):
        super().__init__(mode="coalesce")
        self.hangs_on = hangs_on
        self.hangs = threading.Event()
        self.closed = 0
        self.threads = set()

    async def on_event(self, event):
        self.threads.add(threading.current_thread().name)
        self.events.append(event)
        if event.data.get("train_step") in self.hangs_on:
            self.hangs.set()
            await asyncio.Event().wait()

    async def aclose(self):
        self.closed += 1


class Threaded(Closing):
    threaded = True


def test_a_pump_that_is_cancelled_before_its_first_step_loses_nothing():
    """As by somebody who cancels every task of his loop. The next loop delivers."""
    manager, capture = StreamingManager(), EventCapture()
    manager.add_observer(capture)

    async def emits_and_returns():
        manager.emit(step(1))
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def emits_and_drains():
        manager.emit(step(2))
        await manager.drain()

    asyncio.run(emits_and_returns())
    asyncio.run(emits_and_drains())
    assert steps(capture) == [1, 2]


def test_what_waited_behind_an_interrupted_event_comes_in_the_next_loop():
    """Only the event that was being handed over was begun."""
    manager, observer = StreamingManager(), Closing(1)
    manager.add_observer(observer)

    async def hangs():
        for n in range(4):
            manager.emit(step(n))
        while not observer.hangs.is_set():
            await asyncio.sleep(0)

    asyncio.run(hangs())
    assert steps(observer) == [0, 1]
    asyncio.run(manager.drain())
    assert steps(observer) == [0, 1, 2, 3]


def test_who_was_removed_while_its_loop_ended_is_closed_and_may_come_back():
    """It gets the rest, then `aclose`, then what comes after its return."""
    manager, observer = StreamingManager(), Closing(0)
    manager.add_observer(observer)

    async def removed_while_it_hangs():
        manager.emit(step(0))
        manager.emit(step(1))
        while not observer.hangs.is_set():
            await asyncio.sleep(0)
        manager.remove_observer(observer)

    async def comes_back():
        manager.add_observer(observer)
        manager.emit(step(2))
        await manager.drain()

    asyncio.run(removed_while_it_hangs())
    assert observer.closed == 0
    asyncio.run(comes_back())
    assert steps(observer) == [0, 1, 2]
    assert observer.closed == 1


async def test_who_hangs_is_stopped_when_the_manager_is_closed(caplog):
    """In the loop and on a thread: its call is cancelled, it is closed, and a warning names it."""
    manager = StreamingManager(drain_timeout=1.0)  # what its thread needs to be closed, on any machine
    here, there = Closing(0), Threaded(0)
    for observer in (here, there):
        manager.add_observer(observer)
    manager.emit(step(0))
    manager.emit(step(1))
    while not (here.hangs.is_set() and there.hangs.is_set()):
        await asyncio.sleep(0.001)
    with caplog.at_level(logging.WARNING, "rollcast"):
        await manager.aclose()
    assert here.closed == there.closed == 1
    assert steps(here) == steps(there) == [0]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    hanging = [r.getMessage() for r in caplog.records if "it hangs" in r.getMessage()]
    assert len(hanging) == 2
    assert "2 of its events are dropped" in hanging[0]


async def test_who_is_slow_is_not_stopped_when_the_manager_is_closed(caplog):
    """It takes one event after the other, and goes on by itself."""
    go_on = asyncio.Semaphore(0)

    class Slow(Closing):
        async def on_event(self, event):
            await go_on.acquire()
            self.events.append(event)

    manager, slow = StreamingManager(drain_timeout=1.0), Slow()
    manager.add_observer(slow)
    for n in range(150):
        manager.emit(step(n))
    with caplog.at_level(logging.WARNING, "rollcast"):
        closing = asyncio.create_task(manager.aclose())
        while not closing.done():
            if len(slow.events) < 148:
                go_on.release()
            await asyncio.sleep(0.02)
    assert "goes on with" in caplog.text
    for _ in range(150):
        go_on.release()
    while not slow.closed:
        await asyncio.sleep(0.001)
    assert steps(slow) == list(range(150))


async def test_a_threaded_observer_that_leaves_at_once_has_one_pump(until):
    """Its thread may not have begun yet."""
    before = set(threading.enumerate())
    for _ in range(20):
        manager, observer = StreamingManager(), Threaded()
        manager.add_observer(observer)
        manager.emit(step(1))
        manager.remove_observer(observer)
        await manager.aclose()
        await until(lambda: set(threading.enumerate()) <= before)
        assert (steps(observer), observer.closed) == ([1], 1)


async def test_an_observer_added_from_another_thread_is_called_in_the_loop_of_the_run():
    """It need not be safe against threads unless it says so."""
    manager, observer = StreamingManager(), Closing()
    async with manager.run() as run:
        thread = threading.Thread(target=manager.add_observer, args=(observer,))
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0)
        with run.chain([{"role": "user", "content": "hello"}]):
            pass
    assert observer.events
    assert observer.threads == {threading.current_thread().name}


async def test_a_child_that_was_detached_may_come_back():
    """It was taken off, and is added anew."""
    manager, multi, child = StreamingManager(), MultiChainStreamObserver(), RaisingObserver(times=5)
    manager.add_observer(multi)
    multi.add_global_observer(child)
    for n in range(6):
        manager.emit(step(n))
    await manager.drain()
    assert child.manager is None
    multi.remove_global_observer(child)
    multi.add_global_observer(child)
    manager.emit(step(6))
    await manager.drain()
    assert steps(child) == [6]


async def test_who_was_added_twice_and_removed_once_still_has_its_manager():
    """By itself and inside of another: its own reports go on."""

    class Reporting(StreamObserver):
        async def on_event(self, event):
            self.report(OSError("disk full"))

    manager, observer, capture = StreamingManager(), Reporting(), EventCapture(EventFilter(types="error"))
    manager.add_observer(observer)
    manager.add_observer(ChainSpecificStreamObserver("chain_0", observer))
    manager.add_observer(capture)
    manager.remove_observer(observer)
    async with manager.run() as run:
        with run.chain([{"role": "user", "content": "hello"}]):
            pass
    await manager.drain()
    assert capture.events[0].data["error"] == "disk full"
