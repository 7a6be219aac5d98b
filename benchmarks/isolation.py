"""Measures observers that hang or raise: what they cost the run, whether they change it, and the memory that they keep."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.tiny_runs import Spent, agent_run
from benchmarks.tokens import NoOp, tokens
from rollcast.records import StreamEvent, decode, encode
from rollcast.stream import RunWriter, StreamingManager, StreamObserver
from rollcast.stream.delivery import Delivery
from rollcast.testing import EventCapture, RaisingObserver, StallingObserver

__all__ = ["run"]

CHAINS = 32  # open at once
LENGTH = 256  # tokens per generation
SAMPLE = 25_000  # events between two measurements of memory


def run(quick: bool) -> list[Figure]:
    """Measure isolation in time, in what is sampled, and in memory."""
    return [
        *_time(quick),
        *_emitting(quick),
        *asyncio.run(_memory(100_000 if quick else 1_000_000)),
        *_accounting(quick),
    ]


# -- time and digests -------------------------------------------------------------------------------------------------


def _time(quick: bool) -> list[Figure]:
    chains, rounds = (8, 1) if quick else (320, 21)
    digests: dict[str, set[str]] = {}

    def trial(name: str, make: Callable[[], list[StreamObserver]]) -> Callable[[], Spent]:
        def go() -> Spent:
            result, spent, _ = asyncio.run(agent_run(32, chains, streaming=True, observers=make()))
            whole = "".join(t.digest() for t in result.trajectories)
            digests.setdefault(name, set()).add(whole)
            return spent

        return go

    spent = paired(
        {
            "none": trial("none", list),
            "well": trial("well", lambda: [NoOp(), NoOp()]),
            "ill": trial("ill", lambda: [StallingObserver(), RaisingObserver()]),
        },
        rounds,
    )
    cpu = {name: [s.cpu for s in values] for name, values in spent.items()}
    different = len(set().union(*digests.values())) - 1
    return [
        figure("isolation: CPU of a run, one stalls and one raises / none watches", ratios(cpu["ill"], cpu["none"]), "×", "about 1"),
        figure("isolation: CPU of a run, one stalls and one raises / two that work", ratios(cpu["ill"], cpu["well"]), "×", "about 1"),
        figure("isolation: runs whose trajectories differ by a byte", different, "runs", "<= 0"),
    ]  # fmt: skip


def _emitting(quick: bool) -> list[Figure]:
    """Measure what `chunk` costs while its observer hangs: chunks merge, and in the end the queue is given up."""
    events, rounds = (4_000, 2) if quick else (60_000, 9)
    spent = paired(
        {
            "well": lambda: asyncio.run(_emitted(events, NoOp())),
            "stalled": lambda: asyncio.run(_emitted(events, StallingObserver())),
        },
        rounds,
    )
    stalled = [seconds / events * 1e6 for seconds in spent["stalled"]]
    return [
        figure("isolation: an event while the observer stalls", stalled, "µs"),
        figure("isolation: the same / delivered", ratios(spent["stalled"], spent["well"]), "×"),
    ]


async def _emitted(events: int, observer: StreamObserver) -> float:
    manager = StreamingManager(drain_timeout=0.05)
    manager.add_observer(observer)
    async with manager.run(chains=0) as run:
        if isinstance(observer, StallingObserver):
            await _stalls(run, observer)
        began = time.process_time()
        for number, _ in zip(range(events), _produce(run), strict=False):
            if number % CHAINS == 0:
                await asyncio.sleep(0)
        spent = time.process_time() - began
        _end(run, observer)
    await manager.aclose()
    return spent


def _end(run: RunWriter, observer: StreamObserver) -> None:
    for chain in list(run.open_chains.values()):
        chain.end("cancelled")
    if isinstance(observer, StallingObserver):
        observer.release()


# -- memory under a stalled observer ----------------------------------------------------------------------------------


async def _memory(events: int) -> list[Figure]:
    """Let chains begin, generate and end while an observer has taken nothing since the first event."""
    observer = StallingObserver()
    manager = StreamingManager(drain_timeout=0.05)
    manager.add_observer(observer)
    samples: list[int] = []
    tracemalloc.start()  # resident memory would hide what earlier measurements left free
    async with manager.run(chains=0) as run:
        await _stalls(run, observer)
        for number, _ in zip(range(events), _produce(run), strict=False):
            if number % SAMPLE == 0:
                gc.collect()
                samples.append(tracemalloc.get_traced_memory()[0])
                await asyncio.sleep(0)
        (numbers,) = manager.statistics()
        _end(run, observer)
    tracemalloc.stop()
    await manager.aclose()
    late = samples[len(samples) // 2 :]
    slope = statistics.linear_regression(range(len(late)), late).slope / SAMPLE if len(late) > 1 else 0.0
    title = f"isolation: a stalled observer, {events:,} events"
    return [
        figure(f"{title}: memory gained at most", (max(samples) - samples[0]) / 2**20, "MiB", "<= 8"),
        figure(f"{title}: slope in the second half", slope, "B an event", "<= 0.1"),
        figure(f"{title}: of them dropped and counted", numbers.dropped, "events"),
    ]


async def _stalls(run: RunWriter, observer: StallingObserver) -> None:
    """Give it one event to hang on."""
    run.error("to hang on", "benchmark")
    await observer.stalled.wait()


def _produce(run: RunWriter) -> Iterator[None]:
    """Let `CHAINS` chains produce a token each, in turn, for ever; it yields after every token."""
    deltas = tokens(LENGTH)
    while True:
        generations = [run.chain().start().generation().start() for _ in range(CHAINS)]
        for text, ids, logprobs in deltas:
            for generation in generations:
                generation.chunk(text, list(ids), list(logprobs), 0)
                yield
        for generation in generations:
            generation.chain.end("answered")


# -- what a queue says of its size -------------------------------------------------------------------------------------


def _accounting(quick: bool) -> list[Figure]:
    limit = (1 if quick else 8) << 20
    recorded = asyncio.run(_recorded())
    shapes: dict[str, Callable[[RunWriter], None]] = {
        "tokens with ids": lambda run: _fill_tokens(run, exact=True),
        "texts alone": lambda run: _fill_tokens(run, exact=False),
        "a run of the task": lambda run: _fill_recorded(run, recorded),
    }
    lines = [
        figure(f"isolation: queued_bytes / traced memory, {name}", _accounted(fill, limit), "×", ">= 0.8")
        for name, fill in shapes.items()
    ]
    merged = figure("isolation: queued_bytes / traced memory, merged chunks", _merged(limit), "×", ">= 0.8")
    return [*lines, merged]


def _accounted(fill: Callable[[RunWriter], None], limit: int) -> float:
    """A full queue's own count over the memory that it keeps alive. No loop runs, so nothing is taken from it."""
    manager = StreamingManager(queue_limit=limit)
    manager.add_observer(EventCapture())
    run = manager.run()
    for delivery in manager.fanout.deliveries:
        _stop_reading(delivery)
    tracemalloc.start()
    try:
        fill(run.open())
        return _released(manager)
    finally:
        tracemalloc.stop()


def _stop_reading(delivery: Delivery) -> None:
    """Keep the delivery from waking its reader."""
    delivery.awake = True
    delivery.on_wake = lambda: None


def _merged(limit: int) -> float:
    """The same for an observer that lags, whose chunks are merged."""
    manager = StreamingManager(queue_limit=limit)
    manager.add_observer(EventCapture(mode="coalesce"))
    (delivery,) = manager.fanout.deliveries
    _stop_reading(delivery)
    run = manager.run()
    tracemalloc.start()
    try:
        generations = [run.open().chain().start().generation().start()]
        deltas = tokens(LENGTH)
        while manager.statistics()[0].queued_bytes < limit // 2:
            for text, ids, logprobs in deltas:
                generations[0].chunk(text, [ids[0] + 0], [logprobs[0] * 1.5], 0)
        _forget(generations[0].turn)
        return _released(manager)
    finally:
        tracemalloc.stop()


def _released(manager: StreamingManager) -> float:
    """The count over the memory that emptying the queue frees."""
    (delivery,) = manager.fanout.deliveries
    counted = manager.statistics()[0].queued_bytes
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    delivery.items.clear()
    gc.collect()
    return counted / (before - tracemalloc.get_traced_memory()[0])


def _fill_tokens(run: RunWriter, *, exact: bool) -> None:
    manager = run.manager
    vocabulary = [text for text, _, _ in tokens(500)]
    number = 0
    while not manager.fanout.congested:
        generation = run.chain().start().generation().start()
        for text in vocabulary[:LENGTH]:
            number += 1
            if exact:  # numbers of their own, as a backend makes them
                generation.chunk(text, [1000 + number], [-number / 1024], 0)
            else:
                generation.chunk(f"{text} ")
        _forget(generation.turn)
        generation.chain.end("answered")


def _forget(turn: object) -> None:
    """Drop what the trajectory holds, which is not the queue's."""
    for name in ("pieces", "token_ids", "logprobs", "policy_versions"):
        getattr(turn, name).clear()


async def _recorded() -> list[bytes]:
    capture = EventCapture()
    await agent_run(8, 16, streaming=True, observers=[capture])
    return [encode(event) for event in capture.events]


def _fill_recorded(run: RunWriter, lines: list[bytes]) -> None:
    while not run.fanout.congested:
        for line in lines:
            event: StreamEvent = decode(line)
            run.manager.emit(event)
