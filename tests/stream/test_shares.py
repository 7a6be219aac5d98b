"""How long an observer may hand over events before the loop's other tasks get a turn."""

import threading
from types import SimpleNamespace

import pytest

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream import StreamObserver, calls
from rollcast.stream.calls import TURN, Calls
from rollcast.stream.delivery import Delivery

OTHERS_S, EVENT_S = 0.02, 0.00001
A_BATCH_S = TURN * EVENT_S


@pytest.mark.parametrize(
    ("threaded", "clock", "batches"),
    [
        (False, 1, [1, 8, 8, 8]),  # 20 ms of work are eight batches
        (False, 3, [1, 8, 8, 8]),  # also if others have the machine, and they take three times as long
        (False, 10, [1, 4, 4, 4]),  # but not for ever
        (True, 1, [2, 8, 8, 8]),  # on a thread of its own at least 5 ms
    ],
)
async def test_an_observer_gets_as_much_cpu_time_as_the_others_took(monkeypatch, threaded, clock, batches):
    """The clock only bounds it: on a busy machine it shows the time of others, too."""
    worked, handed, turns = 0.0, 0, []

    class Works(StreamObserver):
        async def on_event(self, event):
            nonlocal worked
            worked += EVENT_S

        async def on_batch(self, events):
            nonlocal worked, handed
            worked += A_BATCH_S
            handed += 1

    async def others_run():
        nonlocal worked, handed
        turns.append(handed)
        handed, worked = 0, worked + OTHERS_S

    times = SimpleNamespace(thread_time=lambda: worked, perf_counter=lambda: worked * clock)
    monkeypatch.setattr(calls, "time", times)
    monkeypatch.setattr(calls, "others_run", others_run)
    delivery = Delivery(
        "works",
        EventFilter(),
        lock=threading.RLock(),
        limit=1 << 30,
        snapshots=lambda _: (),
        threaded=threaded,
    )
    event = StreamEvent(StreamEventType.TRAIN_STEP, "", 0.0, {})
    await Calls(Works(), delivery, lambda *_: None).deliver([event] * TURN * sum(batches))
    assert turns == batches
