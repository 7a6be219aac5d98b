"""The observer that calls a function when hints appear and go, and the gauge of hints."""

import asyncio
import threading

import pytest

from rollcast import PrometheusStreamObserver, StreamingManager
from rollcast.observers import HintObserver
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.hints import HINT_KINDS


def failing(numbers, at=1_000_000.0, run_id="run-0001", *, ends=False):
    """Events of a run whose tool fails in each call, which lasts half a second; the last call never ends."""

    def event(kind, chain_id="", **data):
        step = 1 if chain_id else None
        return StreamEvent(StreamEventType(kind), chain_id, at, data, step, step, run_id=run_id)

    yield event("run_start", chains=len(numbers), groups=1, agent="", model="", backend="", policy_version=0)
    for number in numbers:
        name, call = f"chain_{number}", {"call_id": "c", "tool_name": "search"}
        yield event("chain_start", name, messages=[], tools=[], index=0, policy_version=0)
        yield event("tool_call_start", name, **call, arguments={})
        if number == numbers[-1] and not ends:
            return
        at += 0.5
        yield event("tool_observation", name, **call, observation="x", partial=False, status="error")
        yield event("tool_call_end", name, **call, status="error", duration_s=0.5)
        end = {
            "finish_reason": "answered",
            "final_response": name,
            "reward": float(number % 2),
            "metrics": {},
        }
        yield event("chain_end", name, **end, steps=1, completion_tokens=1, duration_s=0.5)
    yield event(
        "run_end",
        status="completed",
        chains=len(numbers),
        failed=0,
        mean_reward=0.5,
        completion_tokens=1,
        duration_s=1.0,
    )


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def told(changes):
    return [("+" if change.appeared else "-") + change.hint.kind for change in changes]


async def test_a_function_is_told_of_hints_and_no_token_is_made_for_it():
    """On the observer's own thread."""
    changes, threads = [], set()

    def take(change):
        changes.append(change)
        threads.add(threading.current_thread().name)

    manager = StreamingManager()
    manager.add_observer(HintObserver(take))
    with manager.run(chains=9) as run:
        for n in range(9):
            with run.chain() as chain:
                with chain.generation(prompt_ids=[1]) as generation:
                    generation.chunk("a", [1], [-1.0])
                with chain.tool_call("look", {}) as call:
                    call.observation("no", status="error")
                chain.reward(float(n % 2))
                chain.end("answered")
    await manager.drain()
    assert told(changes) == ["+tool_fails"]
    assert threading.current_thread().name not in threads
    assert "llm_generation_chunk" not in manager.totals().emitted
    await manager.aclose()


async def test_what_no_event_tells_the_clock_does():
    """If nothing comes at all; not for an observer that goes by the times of events alone."""
    for by_clock in (True, False):
        changes = []
        observer = HintObserver(changes.append, by_clock=by_clock)
        observer._clock = clock = Clock()
        await observer.on_batch([e for e in failing(range(14)) if e.event_type != "run_end"])
        assert (observer._timer is not None) is by_clock
        for _ in range(40):
            clock.now += 1
            if observer._timer is not None:
                observer._tick()
        assert ("+quiet" in told(changes)) is by_clock
        await observer.aclose()
        assert observer._timer is None


async def test_a_function_that_raises_is_reported_and_loses_nothing():
    """The next changes are told, and the timer goes on."""
    changes = []

    def take(change):
        changes.append(change)
        raise ValueError("no")

    observer = HintObserver(take)
    with pytest.raises(ValueError, match="no"):
        await observer.on_batch(list(failing(range(12), ends=True)))
    observer._clock = clock = Clock()
    with pytest.raises(ValueError, match="no"):
        await observer.on_batch(list(failing(range(20), 2_000_000.0, "run-0002")))
    for _ in range(40):
        clock.now += 1
        observer._tick()
    assert told(changes) == ["+tool_fails", "+tool_fails", "+quiet"]
    await observer.aclose()


# -- the gauge ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry():
    return pytest.importorskip("prometheus_client").CollectorRegistry()


def gauge(registry):
    return {kind: registry.get_sample_value("rollcast_hints", {"kind": kind}) for kind in HINT_KINDS}


async def test_the_gauge_counts_the_hints_of_open_runs(registry, monkeypatch):
    """By kind, each there from the beginning; when the run ends they are gone."""
    observer = PrometheusStreamObserver(registry)
    assert gauge(registry) == dict.fromkeys(HINT_KINDS, 0)
    events = list(failing(range(20), ends=True))
    for event in events[:-1]:
        await observer.on_event(event)
    assert gauge(registry) == dict.fromkeys(HINT_KINDS, 0) | {"tool_fails": 1}
    await observer.on_event(events[-1])
    assert gauge(registry) == dict.fromkeys(HINT_KINDS, 0)
    await observer.aclose()


async def test_without_a_scrape_little_waits(registry):
    """Events are taken meanwhile, without a look, and the next scrape tells the same."""
    observer = PrometheusStreamObserver(registry)
    events = list(failing(range(1500), ends=True))[:-1]
    most = 0
    for event in events:
        await observer.on_event(event)
        most = max(most, len(observer._hints._waiting))
    assert len(events) > 5000
    assert most < 2_001
    assert gauge(registry)["tool_fails"] == 1
    await observer.aclose()


async def test_a_scrape_does_not_hold_up_the_run(registry):
    """While a scrape looks for hints, which may take long, events are put aside."""
    observer = PrometheusStreamObserver(registry)
    hints = observer._hints
    events = list(failing(range(1500), ends=True))[:-1]
    assert hints._lock.acquire(timeout=1)
    try:
        async with asyncio.timeout(60):
            for event in events:
                await observer.on_event(event)
    finally:
        hints._lock.release()
    assert len(hints._waiting) == len(events)
    assert gauge(registry)["tool_fails"] == 1
    await observer.aclose()
