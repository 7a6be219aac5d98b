"""The manager: who gets what, when, and what happens when an observer misbehaves."""

import asyncio
import contextlib
import logging
import os
import threading
import time

import pytest

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType, check_events
from rollcast.stream import RunWriter, StreamingManager, StreamObserver
from rollcast.testing import EventCapture, RaisingObserver, StallingObserver, capture_events

T = StreamEventType
HELLO = [{"role": "user", "content": "hello"}]


async def one_chain(manager, tokens=5, **about):
    """A run of one chain with one generation."""
    async with manager.run(**about) as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            for i in range(tokens):
                generation.chunk(f"t{i} ", [i], [-0.5])
                await asyncio.sleep(0)
    return run


class Threaded(EventCapture):
    threaded = True


async def test_every_observer_has_everything_when_the_run_returns():
    """In the loop and on a thread alike, with no wait by the caller."""
    manager = StreamingManager()
    here, there = EventCapture(), Threaded()
    manager.add_observer(here)
    manager.add_observer(there)
    run = await one_chain(manager)
    assert here.events == there.events
    here.check()
    assert here.types()[0] == "run_start"
    assert here.types()[-1] == "run_end"
    assert here.closed_chains == ["chain_0"]
    assert here.closed_runs == there.closed_runs == [run.run_id]


async def test_seq_has_no_holes():
    """Within a run it increases by one from 0."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        await one_chain(manager)
    assert [e.seq for e in capture.events] == list(range(len(capture.events)))


async def test_totals_count_what_was_emitted_and_sampled():
    """Events by type where somebody wants them; tokens always, open generations included."""
    manager = StreamingManager()
    manager.add_observer(EventCapture(EventFilter(types=[T.CHAIN_END])))
    async with manager.run() as run:
        with run.chain(HELLO) as chain:
            with chain.generation() as generation:
                generation.chunk("one two", [1, 2])
                assert manager.totals().completion_tokens == 2
                generation.chunk(" three", [3])
            assert manager.totals().completion_tokens == 3
            assert manager.totals().open_chains == 1
    manager.emit(StreamEvent.now(T.CHAIN_END, "c", finish_reason="answered"))
    totals = manager.totals()
    assert totals.emitted == {"chain_end": 2}
    assert (totals.open_runs, totals.open_chains, totals.completion_tokens) == (0, 0, 3)


async def test_totals_leave_out_runs_without_streaming():
    """Nobody is told of them."""
    manager = StreamingManager()
    async with manager.run(live=False) as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            generation.chunk("one", [1])
            assert manager.totals().open_chains == 0
    assert manager.totals().completion_tokens == 0


async def test_a_filter_narrows_what_is_built(monkeypatch):
    """What no observer wants is never made into an event."""
    manager = StreamingManager()
    capture = EventCapture(EventFilter(types=[T.CHAIN_END]))
    manager.add_observer(capture)
    built = []
    publish = RunWriter.publish
    monkeypatch.setattr(
        RunWriter,
        "publish",
        lambda run, targets, kind, *rest: (built.append(kind), publish(run, targets, kind, *rest)),
    )
    await one_chain(manager)
    assert built == [T.CHAIN_END]
    assert capture.types() == ["chain_end"]
    assert manager.wants(T.CHAIN_END)
    assert not manager.wants(T.LLM_GENERATION_CHUNK)


async def test_a_late_observer_gets_a_snapshot_and_no_hole():
    """It finds the open chain as it stands, then every event after it, and the offsets fit."""
    manager = StreamingManager()
    late = EventCapture()
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            generation.chunk("one ")
            manager.add_observer(late)
            generation.chunk("two ")
    assert late.types() == [
        "chain_snapshot",
        "llm_generation_chunk",
        "llm_generation_end",
        "chain_end",
        "run_end",
    ]
    assert late.events[0].data["content"] == "one "
    assert late.events[0].data["messages"] == HELLO
    assert late.events[1].data["offset"] == 4
    late.check(late=True)


async def test_chains_that_nobody_watched_have_snapshots_too():
    """The trajectory is the source, not the events."""
    manager = StreamingManager()
    manager.add_observer(EventCapture(EventFilter(types=[T.RUN_END])))
    late = EventCapture()
    async with manager.run() as run:
        with run.chain(HELLO) as chain:
            with chain.generation() as generation:
                generation.chunk("Let me see")
            with chain.tool_call("search", {"q": 1}, "c1") as call:
                call.observation("half", partial=True)
                manager.add_observer(late)
                call.observation("half and half")
    snapshot = late.events[0].data
    assert snapshot["content"] is None
    assert snapshot["tool_calls"] == [
        {"call_id": "c1", "tool_name": "search", "arguments": {"q": 1}, "observation": "half"}
    ]


async def test_observers_come_and_go_from_other_threads():
    """Adding and removing from a thread while chains run breaks nothing, and nothing comes after removal."""
    manager = StreamingManager()
    steady = EventCapture()
    manager.add_observer(steady)
    stop = threading.Event()
    comers = []

    def come_and_go():
        while not stop.is_set():
            observer = Threaded(mode="coalesce")
            comers.append(observer)
            manager.add_observer(observer)
            manager.remove_observer(observer)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        await one_chain(manager, tokens=500)
    finally:
        stop.set()
        thread.join()
    await manager.aclose()
    steady.check()
    assert comers
    for observer in comers:
        check_events(_closed(observer.events), late=True)


def _closed(events):
    """Without what was still open when the observer left."""
    return [] if not events or events[-1].event_type is not T.RUN_END else events


async def test_a_raising_observer_is_isolated_reported_once_and_detached(caplog):
    """Others get everything, one error event among it; after five failures in a row it is out."""
    manager = StreamingManager()
    raising, capture = RaisingObserver(), EventCapture()
    manager.add_observer(raising)
    manager.add_observer(capture)
    with caplog.at_level(logging.ERROR, "rollcast.stream"):
        await one_chain(manager, tokens=20)
    assert raising.calls == 5
    assert manager.observers == [capture]
    capture.check()
    (error,) = capture.of("error")
    assert error.data["where"] == "observer:RaisingObserver"
    assert error.data["error_type"] == "ValueError"
    assert "this observer raises" in caplog.text
    assert "detached" in caplog.text


async def test_an_observer_that_recovers_stays():
    """Failures in a row count, not failures."""
    manager = StreamingManager()
    flaky = RaisingObserver(times=4)
    manager.add_observer(flaky)
    await one_chain(manager, tokens=20)
    assert manager.observers == [flaky]
    assert flaky.events
    assert manager.statistics()[0].failed == 4


async def test_a_stalled_observer_is_named_and_holds_nobody(caplog):
    """The run returns after the drain timeout; the others have everything; the warning has its name."""
    manager = StreamingManager(drain_timeout=0.05)
    stalled, capture = StallingObserver(), EventCapture()
    manager.add_observer(stalled)
    manager.add_observer(capture)
    await one_chain(manager)
    capture.check()
    assert "StallingObserver did not take its events" in caplog.text
    stalled.release()
    await manager.aclose()
    assert [e.seq for e in stalled.events] == [e.seq for e in capture.events]


async def test_a_slow_observer_gets_merged_chunks(until):
    """When it falls behind, neighbouring chunks merge, and together they say the same."""
    manager = StreamingManager(drain_timeout=30)
    slow, capture = StallingObserver(after=3), EventCapture()
    manager.add_observer(slow)
    manager.add_observer(capture)
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            for i in range(3000):
                generation.chunk(f"{i} ", [i], [-0.5])
                await asyncio.sleep(0)
            slow.release()
    check_events(slow.events)
    chunks = [e for e in slow.events if e.event_type is T.LLM_GENERATION_CHUNK]
    assert len(chunks) < 3000
    assert "".join(e.data["content"] for e in chunks) == capture.text("chain_0")
    assert [i for e in chunks for i in e.data["token_ids"]] == list(range(3000))
    assert manager.statistics()[0].merged == 3000 - len(chunks)
    assert manager.statistics()[0].dropped == 0


async def test_a_queue_limit_that_is_set_later_does_not_grow():
    """As one that is given at the beginning; one that nobody set grows with the chains."""
    manager, growing = StreamingManager(), StreamingManager()
    manager.queue_limit = 1 << 16
    for each in (manager, growing):
        async with each.run(chains=2000) as run:
            with contextlib.ExitStack() as stack:
                for _ in range(2000):
                    stack.enter_context(run.chain([{"role": "user", "content": "?"}]))
    assert manager.queue_limit == 1 << 16
    assert growing.queue_limit > 8 << 20


async def test_beyond_the_limit_one_gap_stands_for_what_was_dropped():
    """The queue stays within its limit; then a gap with counts, a snapshot, and the live tail."""
    manager = StreamingManager(queue_limit=200_000, drain_timeout=30)
    slow, capture = StallingObserver(after=1), EventCapture()
    manager.add_observer(slow)
    manager.add_observer(capture)
    async with manager.run() as run:
        with run.chain(HELLO) as chain:
            for _ in range(400):
                with chain.generation() as generation:
                    generation.chunk("x" * 1000)
                await asyncio.sleep(0)
                assert manager.statistics()[0].queued_bytes < 300_000
            with chain.generation() as generation:
                generation.chunk("one ")
                slow.release()
                await manager.drain()
                generation.chunk("two")
    check_events(slow.events)
    gaps = [e for e in slow.events if e.event_type is T.GAP]
    assert len(gaps) == 1
    seen = {e.seq for e in slow.events if e.event_type not in (T.GAP, T.CHAIN_SNAPSHOT)}
    missing = [e for e in capture.events if e.seq not in seen]
    assert sum(gaps[0].data["dropped"].values()) == manager.statistics()[0].dropped
    chunks_with_an_end = manager.statistics()[0].merged  # left out because their generation's end was there
    assert sum(gaps[0].data["dropped"].values()) + chunks_with_an_end == len(missing)
    outside = [e.seq for e in missing if not gaps[0].data["from_seq"] <= e.seq <= gaps[0].data["to_seq"]]
    assert len(outside) <= chunks_with_an_end
    after = slow.events[slow.events.index(gaps[0]) + 1]
    assert after.event_type is T.CHAIN_SNAPSHOT
    assert after.data["content"] == "one "


async def test_a_lossless_observer_makes_the_rollout_wait(caplog):
    """`ready` holds the producer while its queue is full, says so once, and nothing is merged or dropped."""
    manager = StreamingManager(queue_limit=20_000, drain_timeout=30)
    slow = StallingObserver(after=1, mode="lossless")
    manager.add_observer(slow)
    produced = []

    async def produce():
        async with manager.run() as run:
            with run.chain(HELLO) as chain, chain.generation() as generation:
                for i in range(500):
                    await manager.ready()
                    generation.chunk(f"{i} ")
                    produced.append(i)

    task = asyncio.create_task(produce())
    await slow.stalled.wait()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert len(produced) < 500
    slow.release()
    await task
    check_events(slow.events)
    assert sum(e.event_type is T.LLM_GENERATION_CHUNK for e in slow.events) == 500
    assert caplog.text.count("the rollout waits for StallingObserver") == 1


class BlockedObserver(StreamObserver):
    """Lossless, on a thread of its own, and blocked until `go_on` is set."""

    mode = "lossless"
    threaded = True

    def __init__(self):
        self.go_on = threading.Event()
        self.events = []

    async def on_event(self, event):
        assert self.go_on.wait(30)
        self.events.append(event)


async def test_a_loop_on_a_thread_waits_for_a_lossless_observer(until, caplog):
    """`ready_sync` is `ready` without an event loop."""
    manager = StreamingManager(queue_limit=20_000, drain_timeout=30)
    slow = BlockedObserver()
    manager.add_observer(slow)
    produced = []

    def produce():
        with manager.run() as run, run.chain(HELLO) as chain, chain.generation() as generation:
            for i in range(500):
                manager.ready_sync()
                generation.chunk(f"{i} ")
                produced.append(i)

    task = asyncio.create_task(asyncio.to_thread(produce))
    await until(lambda: "the rollout waits for BlockedObserver" in caplog.text)
    assert len(produced) < 500
    slow.go_on.set()
    await task
    await manager.aclose()
    check_events(slow.events)
    assert sum(e.event_type is T.LLM_GENERATION_CHUNK for e in slow.events) == 500


async def test_in_an_event_loop_nobody_waits_on_its_own_thread(caplog):
    """An observer that lives in this loop would never get its turn, so `ready_sync` returns."""
    manager = StreamingManager(queue_limit=5_000, drain_timeout=30)
    slow = StallingObserver(mode="lossless")
    manager.add_observer(slow)
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            while not manager.fanout.congested:
                generation.chunk("token ")
            manager.ready_sync()
        slow.release()
    check_events(slow.events)
    assert "the rollout waits" not in caplog.text


async def test_waiting_for_a_lossless_observer_can_be_cancelled(until):
    """A run that waits can be cancelled, and closes what it opened."""
    manager = StreamingManager(queue_limit=5_000, drain_timeout=0.05)
    slow, capture = StallingObserver(mode="lossless"), EventCapture()
    manager.add_observer(slow)
    manager.add_observer(capture)

    async def produce():
        async with manager.run() as run:
            with run.chain(HELLO) as chain, chain.generation() as generation:
                while True:
                    await manager.ready()
                    generation.chunk("token ")

    task = asyncio.create_task(produce())
    await until(lambda: manager.fanout.congested)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    capture.check()
    assert capture.of("run_end")[0].data["status"] == "cancelled"
    slow.release()
    await manager.aclose()


def test_it_works_across_successive_event_loops():
    """The same manager and observers serve one asyncio.run after another."""
    manager = StreamingManager()
    here, there = EventCapture(), Threaded()
    manager.add_observer(here)  # before any loop exists
    manager.add_observer(there)
    for _ in range(3):
        asyncio.run(one_chain(manager))
    assert here.types().count("run_end") == there.types().count("run_end") == 3
    here.check()
    manager.close()


def test_a_synchronous_producer_needs_no_loop():
    """Observers of either kind have everything when the block is left."""
    manager = StreamingManager()
    here, there = EventCapture(), Threaded()
    manager.add_observer(here)
    manager.add_observer(there)
    with manager.run() as run, run.chain(HELLO) as chain, chain.generation() as generation:
        generation.chunk("hi")
    assert here.text("chain_0") == there.text("chain_0") == "hi"
    here.check()
    manager.close()


async def test_two_runs_overlap():
    """Each has its own ids, seq and end."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        await asyncio.gather(one_chain(manager, 50), one_chain(manager, 50))
    capture.check()
    runs = {e.run_id for e in capture.events}
    assert len(runs) == 2
    for run_id in runs:
        assert [e.seq for e in capture.events if e.run_id == run_id] == list(range(len(capture.events) // 2))


async def test_nothing_is_left_running():
    """No task of ours outlives the run."""
    manager = StreamingManager()
    manager.add_observer(EventCapture())
    manager.add_observer(Threaded())
    await one_chain(manager)
    async with asyncio.timeout(60):  # what has ended needs a turn of the loop or two to be gone
        while asyncio.all_tasks() != {asyncio.current_task()}:
            await asyncio.sleep(0)


async def test_removal_closes_after_the_last_event():
    """What was emitted before the removal arrives, then aclose is called; then it may be added again."""

    class Closing(EventCapture):
        async def aclose(self):
            self.events.append("closed")

    manager = StreamingManager()
    observer = Closing()
    manager.add_observer(observer)
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            generation.chunk("before")
            manager.remove_observer(observer)
            generation.chunk("after")
            manager.remove_observer(observer)  # twice is no error
            await manager.aclose()
            manager.add_observer(observer)
    await manager.aclose()
    kinds = [e if e == "closed" else e.event_type.value for e in observer.events]
    assert kinds[:5] == ["run_start", "chain_start", "llm_generation_start", "llm_generation_chunk", "closed"]
    assert kinds[5] == "chain_snapshot"
    assert kinds[-1] == "closed"
    assert observer.events[5].data["content"] == "beforeafter"


@pytest.mark.parametrize("wrong", [print, None, EventCapture])
def test_what_is_no_observer_is_refused(wrong):
    """A function is told what to wrap it in."""
    with pytest.raises(InputError, match="expected a StreamObserver"):
        StreamingManager().add_observer(wrong)


def test_an_observer_belongs_to_one_manager():
    """Adding it twice is refused, with what to do."""
    observer = EventCapture()
    first = StreamingManager()
    first.add_observer(observer)
    with pytest.raises(InputError, match="already added to this manager"):
        first.add_observer(observer)
    with pytest.raises(InputError, match="already added to another manager"):
        StreamingManager().add_observer(observer)
    first.close()


async def test_emit_by_hand_stamps_and_never_raises():
    """Events made by hand get seq and source; where nobody listens nothing happens."""
    manager = StreamingManager(source="w1")
    manager.emit(StreamEvent.now(T.TRAIN_STEP, train_step=1, policy_version=1, metrics={}))
    with capture_events(manager) as capture:
        for step in (1, 2):
            manager.emit(StreamEvent.now(T.TRAIN_STEP, train_step=step, policy_version=step, metrics={}))
        await manager.drain()
    assert [(e.seq, e.source) for e in capture.events] == [(1, "w1"), (2, "w1")]


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        "text",
        StreamEvent(T.ERROR, "c", 0.0, None),
        StreamEvent(T.ERROR, ["c"], 0.0, {}),
        StreamEvent(T.LLM_GENERATION_CHUNK, "c", 0.0, {"content": None, "offset": 0}),
        StreamEvent(T.LLM_GENERATION_CHUNK, "c", 0.0, {"content": "x", "offset": "0"}),
    ],
)
async def test_garbage_emitted_by_hand_is_dropped_and_named(garbage, caplog):
    """It neither raises nor gets as far as a queue, whose chunks may be merged."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        manager.emit(garbage)
        await manager.drain()
    assert capture.events == []
    assert "not a valid StreamEvent" in caplog.text


async def test_a_filter_that_matched_no_chain_is_named(caplog):
    """A misspelt chain id is not silence."""
    manager = StreamingManager()
    manager.add_observer(EventCapture(EventFilter(chains="chain_00")))
    manager.add_observer(EventCapture(EventFilter(chains="chain_0")))
    await one_chain(manager)
    assert caplog.text.count("which this run did not have") == 1
    assert "names chain_00," in caplog.text


async def test_an_unwatched_run_says_so(caplog):
    """With streaming off, observers get nothing and one warning says so."""
    manager = StreamingManager()
    capture = EventCapture()
    manager.add_observer(capture)
    await one_chain(manager, live=False)
    assert capture.events == []
    assert "will see nothing of this run" in caplog.text


async def test_an_observer_that_blocks_the_loop_is_named(caplog):
    """One that computes in the loop holds every chain: the warning says what to do."""

    class Blocking(StreamObserver):
        async def on_event(self, event):
            end = time.thread_time() + 0.06
            while time.thread_time() < end:
                pass

    manager = StreamingManager(drain_timeout=30)
    manager.add_observer(Blocking())
    await one_chain(manager, tokens=8)
    assert "Blocking keeps the event loop" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "every", "named"),
    [(0.2, 1, True), (0.4, 4, False), (2.0, 4, True)],
    ids=["always", "now and then", "for long"],
)
async def test_an_observer_that_waits_in_the_loop_is_named_and_a_busy_machine_is_not(
    caplog, monkeypatch, seconds, every, named
):
    """A call that took long and no CPU time may have waited for a processor that other programs had."""
    passed, calls = 0.0, 0

    class Waiting(StreamObserver):
        async def on_event(self, event):
            nonlocal passed, calls
            calls += 1
            passed += 0 if calls % every else seconds

    monkeypatch.setattr(time, "perf_counter", lambda: passed)
    manager = StreamingManager(drain_timeout=30)
    manager.add_observer(Waiting())
    for _ in range(3):
        await one_chain(manager, tokens=8)
    assert ("Waiting keeps the event loop" in caplog.text) is named


async def test_an_observer_of_its_own_cancellation_is_isolated():
    """CancelledError out of an observer is its failure, not the pump's end."""

    class Cancelled(EventCapture):
        async def on_event(self, event):
            if event.event_type is T.CHAIN_START:
                raise asyncio.CancelledError
            self.events.append(event)

    manager = StreamingManager()
    observer = Cancelled()
    manager.add_observer(observer)
    await one_chain(manager)
    assert observer.types()[-1] == "run_end"
    assert manager.statistics()[0].failed == 1


class Panic(BaseException):
    """As Rust's panics reach Python."""


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(1), Panic("lost")], ids=repr)
@pytest.mark.parametrize(
    "method", ["on_event", "on_batch", "on_run_opened", "on_chain_closed", "on_run_closed", "aclose"]
)
async def test_whatever_an_observer_raises_is_its_own(method, error, threaded, caplog):
    """Not only an Exception, and not only from a coroutine: nobody waits for it, nobody else misses anything."""
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise error

    manager = StreamingManager()
    good = EventCapture()
    manager.add_observer(type("Bad", (EventCapture,), {method: fail, "threaded": threaded})())
    manager.add_observer(good)
    await one_chain(manager)
    await manager.aclose()
    assert calls
    good.check()
    assert "did not take its events" not in caplog.text
    assert "Bad failed on" in caplog.text


async def test_an_observer_that_emits_for_ever_does_not_hold_the_loop():
    """It gets its own events in turns with everybody else's work."""

    class Echo(StreamObserver):
        async def on_event(self, event):
            if self.manager is not None:
                self.manager.emit(StreamEvent.now(T.TRAIN_STEP, train_step=1, policy_version=0, metrics={}))

    manager = StreamingManager()
    manager.add_observer(Echo())
    async with asyncio.timeout(60):
        run = await one_chain(manager)
        await manager.aclose()
    assert run.status == "completed"
    assert manager.observers == []


async def test_batches_come_whole():
    """An observer that overrides on_batch gets lists, oldest first, and on_event is not called."""

    class Batched(StreamObserver):
        def __init__(self):
            self.batches = []

        async def on_event(self, event):
            raise AssertionError

        async def on_batch(self, events):
            self.batches.append(events)

    manager = StreamingManager()
    observer = Batched()
    manager.add_observer(observer)
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            for i in range(600):
                generation.chunk(str(i))
    assert max(map(len, observer.batches)) > 8
    assert [e.seq for batch in observer.batches for e in batch] == list(range(606))


async def test_a_type_given_as_a_string_is_that_type(caplog):
    """An unknown one is logged and dropped: emit never raises."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        manager.emit(StreamEvent("train_step", "", 0.0, {}))
        manager.emit(StreamEvent("nonsense", "", 0.0, {}))
        await manager.drain()
    assert [e.event_type for e in capture.events] == [T.TRAIN_STEP]
    assert "unknown type 'nonsense'" in caplog.text


async def test_lag_counts_what_is_being_handed_over():
    """An observer that hangs on its first batch lags."""
    manager = StreamingManager(drain_timeout=0.01)
    stalled = StallingObserver()
    manager.add_observer(stalled)
    await one_chain(manager)
    assert manager.statistics()[0].lag_s > 0
    stalled.release()
    await manager.aclose()


def test_what_was_handed_over_is_not_handed_over_again():
    """A loop that ends while an observer hangs takes nothing back that the observer has got."""
    manager = StreamingManager(drain_timeout=0.01)
    stalled = StallingObserver(after=4)
    manager.add_observer(stalled)
    asyncio.run(one_chain(manager))
    stalled.release()
    asyncio.run(one_chain(manager))
    seqs = [(e.run_id, e.seq) for e in stalled.events]
    assert len(seqs) == len(set(seqs))
    manager.close()


async def test_a_hung_observer_of_nothing_costs_bounded_memory():
    """The ends of chains are counted too, whatever its filter."""
    manager = StreamingManager(queue_limit=50_000, drain_timeout=0.01)
    hung = StallingObserver()
    hung.filter = EventFilter(types=[T.RUN_START])
    manager.add_observer(hung)
    async with manager.run() as run:
        await asyncio.wait_for(hung.stalled.wait(), 60)
        for _ in range(2000):
            with run.chain(HELLO):
                pass
            assert manager.statistics()[0].queued_bytes < 60_000
        (delivery,) = manager.fanout.deliveries
        assert len(delivery.items) < 300
    hung.release()
    await manager.aclose()


@pytest.mark.parametrize("threaded", [False, True])
def test_closing_delivers_where_no_thread_can_be_started(threaded, monkeypatch):
    """As in Python 3.12 while the interpreter exits."""

    def refuse(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    manager = StreamingManager()
    capture = Threaded() if threaded else EventCapture()
    manager.add_observer(capture)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    manager.emit(StreamEvent.now(T.TRAIN_STEP, train_step=1, policy_version=0, metrics={}))
    manager.close()
    assert capture.types() == ["train_step"]


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="os.fork does not exist on Windows, and this is about its child"
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_goes_on_with_threads_of_its_own():
    """It has none of the parent's; what waited there is the parent's to deliver."""
    manager = StreamingManager()
    capture = Threaded()
    manager.add_observer(capture)

    def hand_over():
        with manager.run() as run, run.chain(HELLO) as chain, chain.generation() as generation:
            generation.chunk("hi")
        return capture.types().count("run_end")

    with manager.run():  # the observer's thread is at work
        assert hand_over() == 1
        child = os.fork()
        if child == 0:
            os._exit(0 if hand_over() == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    manager.close()


def test_what_0_1_had_at_the_manager_is_there():
    """The façade passes on what the fanout has."""
    manager = StreamingManager(queue_limit=100_000, drain_timeout=1.5, source="worker")
    assert (manager.queue_limit, manager.drain_timeout, manager.source) == (100_000, 1.5, "worker")
    with manager.run(run_id="r"):
        assert [*manager.runs] == ["r"]
    assert (manager.deliveries, manager.congested) == ([], set())
    manager.drain_timeout = 0.5
    assert manager.fanout.drain_timeout == 0.5
