"""When lines are written: an interval that holds without an event loop."""

import asyncio
import gc
import subprocess
import sys
import threading
import time

from rollcast.observers import JSONStreamObserver
from rollcast.records import StreamEvent, decode
from rollcast.stream import StreamingManager


def read(path):
    return [decode(line) for line in path.read_bytes().splitlines()]


def states(condition):
    """Wait until it holds, with no event loop running; fails after a minute."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def by_hand(step):
    return StreamEvent.now("train_step", train_step=step, policy_version=step, metrics={})


def test_an_event_made_by_hand_is_written_after_the_interval_without_a_run_or_a_loop(path):
    """A `train_step` of a training loop that has no event loop at all."""
    manager = StreamingManager()
    manager.add_observer(JSONStreamObserver(path, flush_interval=0.01))
    for count in (1, 2):
        manager.emit(by_hand(count))
        states(lambda count=count: lines_in(path) == count)
    manager.close()
    assert lines_in(path) == 2


def test_lines_are_written_between_two_event_loops(events, path):
    """The loop in which they came has ended; the interval has not."""
    observer = JSONStreamObserver(path, flush_interval=0.05)
    asyncio.run(observer.on_batch([events.start("chain_0")]))
    states(lambda: lines_in(path) == 1)
    asyncio.run(observer.on_batch([events.end("chain_0")]))
    states(lambda: lines_in(path) == 2)
    asyncio.run(observer.aclose())
    assert lines_in(path) == 2


def test_events_emitted_on_many_threads_are_all_written_without_a_close(path):
    """Each once, and every line is whole."""
    manager = StreamingManager()
    manager.add_observer(JSONStreamObserver(path, flush_interval=0.01))

    def emit(first):
        for step in range(first, first + 50):
            manager.emit(by_hand(step))

    threads = [threading.Thread(target=emit, args=(50 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states(lambda: lines_in(path) == 200)
    assert sorted(e.data["train_step"] for e in read(path)) == list(range(200))
    manager.close()


def test_an_observer_that_nobody_holds_any_more_is_not_kept_by_its_interval(events, path):
    """It is written when it goes, on a thread: the collector waits for no disk."""
    observer = JSONStreamObserver(path, flush_interval=3600)
    asyncio.run(observer.on_batch([events.start("chain_0")]))
    assert lines_in(path) == 0
    del observer
    gc.collect()
    states(lambda: lines_in(path) == 1)
    states(lambda: all(thread.name != "rollcast-flush" for thread in threading.enumerate()))


async def test_where_the_system_gives_no_thread_lines_are_written_at_once(events, path, monkeypatch):
    """Nothing waits for a timer that cannot be."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    observer = JSONStreamObserver(path, flush_interval=3600)
    monkeypatch.setattr(threading.Timer, "start", refuse)
    await observer.on_batch([events.start("chain_0")])
    assert lines_in(path) == 1
    await observer.aclose()


def test_by_hand_and_never_closed_is_written_at_exit(path):
    """The interval is an hour; the program just ends."""
    code = f"""
from rollcast.records import StreamEvent
from rollcast.stream import StreamingManager
from rollcast.observers import JSONStreamObserver
manager = StreamingManager()
manager.add_observer(JSONStreamObserver({str(path)!r}, flush_interval=3600))
for step in range(3):
    manager.emit(StreamEvent.now("train_step", train_step=step, policy_version=0, metrics={{}}))
"""
    subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True, timeout=300
    )
    assert [e.data["train_step"] for e in read(path)] == [0, 1, 2]
