"""Event loops end, stop, die and cancel what runs in them: what waits for an observer is handed over all the same, once."""

import asyncio
import gc
import threading
import time

import pytest

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream import StreamingManager, StreamObserver, homes
from rollcast.stream.delivery import Delivery
from rollcast.stream.observer import EncodingObserver
from rollcast.stream.queue import COMPACT_AT
from rollcast.testing import EventCapture


def step(n):
    return StreamEvent.now(StreamEventType.TRAIN_STEP, train_step=n, policy_version=0, metrics={})


def chunk(text, offset):
    data = {"content": text, "offset": offset}
    return StreamEvent(
        StreamEventType.LLM_GENERATION_CHUNK, "chain_0", 1.0, data, step=1, seq=offset, run_id="run_0"
    )


def steps(observer):
    return [e.data["train_step"] for e in observer.events if e.event_type == "train_step"]


def in_a_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def wait_for(holds):
    """No event loop runs meanwhile. A time limit is pytest's."""
    while not holds():
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """What nobody goes on with is gone on with at once."""
    monkeypatch.setattr(homes, "LOOK_AGAIN_S", 0.0)


class Waits(EventCapture):
    """Waits for ever in the events named; knows whether calls overlap."""

    def __init__(self, *waits_in):
        super().__init__()
        self.waits_in = waits_in
        self.waits = threading.Event()
        self.calls = []  # the loops of those that go on
        self.overlaps = 0
        self.closed = 0

    async def on_event(self, event):
        loop = asyncio.get_running_loop()
        self.overlaps += any(not other.is_closed() for other in self.calls)
        self.calls.append(loop)
        try:
            self.events.append(event)
            if event.data.get("train_step") in self.waits_in:
                self.waits.set()
                await asyncio.Event().wait()
        finally:
            self.calls.remove(loop)

    async def aclose(self):
        self.closed += 1


# -- the loop ends while somebody emits from a thread ----------------------------------------------------------------------


def while_tasks_are_cancelled(emit):
    async def main():
        async def cleans_up():
            try:
                await asyncio.Event().wait()
            finally:
                in_a_thread(emit)

        task = asyncio.create_task(cleans_up())
        await asyncio.sleep(0)
        return task

    asyncio.run(main())


def while_generators_are_closed(emit):
    async def generator():
        try:
            yield
        finally:
            in_a_thread(emit)

    kept = generator()

    async def main():
        await anext(kept)

    asyncio.run(main())


def while_the_executor_ends(emit):
    go_on = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, go_on.wait)
        end = loop.shutdown_default_executor

        async def watched_end(*arguments):
            emit_soon = threading.Thread(target=lambda: (emit(), go_on.set()))
            emit_soon.start()
            await end(*arguments)
            emit_soon.join()

        loop.shutdown_default_executor = watched_end

    asyncio.run(main())


def in_the_last_step(emit):
    loop = asyncio.new_event_loop()

    async def main():
        in_a_thread(emit)

    loop.run_until_complete(main())
    loop.close()


def between_last_step_and_close(emit):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    in_a_thread(emit)
    loop.close()


def in_the_step_before_a_stop(emit):
    loop = asyncio.new_event_loop()
    loop.call_soon(lambda: (loop.stop(), emit()))
    loop.run_forever()
    loop.close()


ENDS = [
    while_tasks_are_cancelled,
    while_generators_are_closed,
    while_the_executor_ends,
    in_the_last_step,
    between_last_step_and_close,
    in_the_step_before_a_stop,
]


@pytest.mark.parametrize("end", ENDS)
def test_what_is_emitted_while_the_loop_ends_is_handed_over(end):
    """Nobody touches the manager any more, and no other loop begins."""
    manager, capture = StreamingManager(), EventCapture()

    async def lives_here():
        manager.add_observer(capture)

    asyncio.run(lives_here())
    end(lambda: manager.emit(step(1)))
    wait_for(lambda: steps(capture) == [1])
    manager.close()
    assert steps(capture) == [1], "once, and not again when the manager closes"


def closed_without_a_word(main):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main)
    loop.close()


@pytest.mark.parametrize("run", [asyncio.run, closed_without_a_word])
def test_an_observer_that_is_at_work_while_the_loop_ends_gets_the_rest(run):
    """The event in which it was interrupted was begun; what waits behind it comes once, and in order."""
    manager, observer = StreamingManager(), Waits(1)
    manager.add_observer(observer)

    async def main():
        for n in range(5):
            manager.emit(step(n))
        while not observer.waits.is_set():
            await asyncio.sleep(0)

    run(main())
    wait_for(lambda: steps(observer) == [0, 1, 2, 3, 4])
    gc.collect()  # the call that was interrupted is destroyed, which disturbs nobody
    manager.emit(step(5))
    manager.close()
    assert steps(observer) == [0, 1, 2, 3, 4, 5]
    assert (observer.overlaps, observer.closed) == (0, 1)


def test_a_call_that_is_destroyed_during_the_next_is_not_a_failure_of_the_next():
    """Its loop was closed while it went on; what is left of it is thrown away in the midst of a later call."""
    manager, observer, left = StreamingManager(), Waits(1), []
    manager.add_observer(observer)

    async def waits():
        manager.emit(step(1))
        while not observer.waits.is_set():
            await asyncio.sleep(0)
        left.append(manager._roster._leaves[observer].shift._worker)

    closed_without_a_word(waits())
    wait_for(lambda: manager._roster._leaves[observer].shift is None)

    class Destroys(EventCapture):
        async def on_event(self, event):
            left.clear()
            gc.collect()
            await super().on_event(event)

    destroys = Destroys()
    manager.add_observer(destroys)
    for n in (2, 3):
        manager.emit(step(n))
    wait_for(lambda: steps(destroys) == [2, 3] and steps(observer) == [1, 2, 3])
    assert observer.calls == []
    assert [each.failed for each in manager.statistics()] == [0, 0]
    manager.close()


def test_a_loop_that_stands_still_does_not_keep_what_comes():
    """It was stopped and never closed. The next loop goes on, and the first one does not when it runs again."""
    manager, observer = StreamingManager(), Waits()
    manager.add_observer(observer)
    first = asyncio.new_event_loop()
    run = manager.run()

    async def begins():
        await run.__aenter__()
        await manager.drain()

    async def ends():
        await run.__aexit__(None, None, None)

    first.run_until_complete(begins())
    asyncio.run(ends())
    assert [e.event_type.value for e in observer.events] == ["run_start", "run_end"]
    first.run_until_complete(asyncio.sleep(0))
    first.close()
    manager.close()
    assert (observer.overlaps, observer.closed) == (0, 1)


def test_the_thread_of_one_observer_is_not_the_home_of_another():
    """Its failure is reported from there, and its event loop ends at any moment."""

    class Fails(StreamObserver):
        threaded = True

        async def on_event(self, event):
            raise ValueError("no")

    class Named(EventCapture):
        threads = ()

        async def on_event(self, event):
            self.threads = {*self.threads, threading.current_thread().name}
            await super().on_event(event)

    manager, named = StreamingManager(), Named()
    manager.add_observer(Fails())
    manager.add_observer(named)
    for n in range(20):
        manager.emit(step(n))
    wait_for(lambda: named.of("error"))
    manager.close()
    assert named.threads == {"rollcast-observers"}


class Rests(EncodingObserver):
    """Has a thread, which would rest for an hour after each call."""

    threaded = True
    rest_s = 3600.0

    def __init__(self):
        self.seen = []

    async def on_encodable(self, events):
        self.seen += events


async def test_whoever_waits_for_an_observer_ends_its_rest():
    """`drain`, and the manager when it closes."""
    manager, observer = StreamingManager(drain_timeout=60), Rests()
    manager.add_observer(observer)
    async with manager.run():
        for n in range(3):
            manager.emit(step(n))
            await manager.drain()
            assert len(observer.seen) == n + 2
    manager.emit(step(3))
    await manager.aclose()
    assert len(observer.seen) == 6


@pytest.mark.parametrize(("count", "size"), [(COMPACT_AT, 600), (300, 8000)])
async def test_an_observer_whose_queue_fills_ends_its_rest(count, size):
    """When half of what may wait does: it takes that before any of it is merged or dropped, though the limit is raised meanwhile."""
    delivery = Delivery("it", EventFilter(), lock=threading.RLock(), limit=1 << 20, snapshots=lambda _: ())
    taken = []
    with delivery.lock:
        for _ in range(3):
            delivery.take_locked()
            resting = delivery.rest_locked()
            delivery.limit = 2 << 20
            for n in range(count):
                delivery.put_nowait(chunk("x", n), size)
                if resting.done():
                    break
            assert resting.done()
            delivery.put_nowait(chunk("y", 0), size)  # before it comes to take them
            taken += delivery.take_locked()
    assert (delivery.merged, delivery.dropped) == (0, 0)
    assert len(taken) >= 3 * 100


def test_a_lossless_observer_whose_loop_was_closed_does_not_keep_the_rollout():
    """It is called elsewhere, and the rollout goes on."""
    manager, capture = StreamingManager(queue_limit=2_000), EventCapture()
    manager.add_observer(capture)
    there, here = asyncio.new_event_loop(), asyncio.new_event_loop()
    there.run_until_complete(asyncio.sleep(0))
    capture.loop = there
    manager.refresh()
    serving = threading.Thread(target=there.run_forever)
    serving.start()
    wait_for(there.is_running)

    async def run_of_ours():
        async with manager.run() as run:
            with run.chain([{"role": "user", "content": "Hi"}]) as chain, chain.generation() as generation:
                generation.chunk("one")
                await manager.drain()
                there.call_soon_threadsafe(there.stop)
                while serving.is_alive():
                    await asyncio.sleep(0)
                there.close()
                for _ in range(100):
                    generation.chunk("more")
                    await manager.ready()

    here.run_until_complete(run_of_ours())
    here.close()
    capture.check()
    assert len(capture.of("llm_generation_chunk")) == 101
    manager.close()


def test_whoever_makes_tasks_in_the_loop_does_not_make_the_first_step():
    """An eager factory would call the observer in the midst of `emit`, with the manager's lock held."""
    manager, observer = StreamingManager(), Waits()
    manager.add_observer(observer)

    def eager(loop, coroutine, **about):
        raise AssertionError("the observer's task is nobody else's")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(eager)
        manager.emit(step(1))
        assert steps(observer) == []
        loop.set_task_factory(None)
        await manager.drain()

    asyncio.run(main())
    assert steps(observer) == [1]
    manager.close()


def test_the_background_thread_ends_with_the_last_observer():
    """Also if that left after the manager had been closed, since it was slow: nobody is called there any more."""
    before = set(threading.enumerate())
    manager, observer = StreamingManager(), Waits()
    manager.add_observer(observer)
    manager.emit(step(1))
    wait_for(lambda: steps(observer) == [1])
    (background,) = set(threading.enumerate()) - before
    manager.remove_observer(observer)
    wait_for(lambda: not background.is_alive())
    assert observer.closed == 1


def test_the_background_thread_ends_when_nobody_has_the_manager():
    """Also if it was never closed."""
    before = set(threading.enumerate())

    def forget_a_manager():
        manager, observer = StreamingManager(), Waits()
        manager.add_observer(observer)
        manager.emit(step(1))
        wait_for(lambda: steps(observer) == [1])
        return [each for each in set(threading.enumerate()) - before if each.name == "rollcast-observers"]

    (background,) = forget_a_manager()

    def has_ended():
        gc.collect()
        return not background.is_alive()

    wait_for(has_ended)
