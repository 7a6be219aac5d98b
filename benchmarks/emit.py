"""With streaming on: what an event costs until it is queued, delivered, or written to a file."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.tokens import NoOp, Token, tokens
from rollcast.observers import JSONStreamObserver
from rollcast.records import StreamEvent, StreamEventType, Turn, encode
from rollcast.stream import GenerationWriter, RunWriter, StreamingManager, StreamObserver

__all__ = ["run"]

OBSERVERS = 3
TICK = 8  # events between two turns of the loop, as if this many chains decoded in one batch
LENGTH = 512  # tokens per generation; fewer than a queue takes before it merges

_CHUNK = StreamEventType.LLM_GENERATION_CHUNK


def run(quick: bool) -> list[Figure]:
    """Measure events of one token each, with id and log-probability."""
    generations, rounds = (2, 2) if quick else (40, 21)
    deltas, n = tokens(LENGTH), generations * LENGTH
    with tempfile.TemporaryDirectory() as folder:
        trials: dict[str, Callable[[], float]] = {
            "build": lambda: _build(deltas, generations),
            "encode": lambda: _encode(deltas, generations),
            "emit": lambda: asyncio.run(_emitted(deltas, generations)),
            "loop": lambda: asyncio.run(_delivered(deltas, generations, [])),
            "delivered": lambda: asyncio.run(
                _delivered(deltas, generations, [NoOp() for _ in range(OBSERVERS)])
            ),
            "jsonl": lambda: asyncio.run(_delivered(deltas, generations, [_jsonl(folder)])),
            "naive": lambda: asyncio.run(_naive(deltas, generations)),
        }
        results = paired(trials, rounds)
    cost = {name: [seconds / n * 1e6 for seconds in values] for name, values in results.items()}
    build = cost["build"]
    return [
        figure("emit: reference: build the event, append it to a list", build, "µs"),
        figure("emit: reference: encode it as JSON", cost["encode"], "µs"),
        figure("emit: reference: the loop's own turns, nobody watching", cost["loop"], "µs"),
        figure(f"emit: chunk(), {OBSERVERS} observers, delivery aside", cost["emit"], "µs", "<= 2"),
        figure("emit: the same / build + append", ratios(cost["emit"], build), "×"),
        figure(f"emit: delivered to {OBSERVERS} observers, all in", cost["delivered"], "µs", "<= 4"),
        figure("emit: the same / build + append", ratios(cost["delivered"], build), "×"),
        figure("emit: to a JSONL file, all in", cost["jsonl"], "µs", "<= 4"),
        figure("emit: the same / build + append", ratios(cost["jsonl"], build), "×"),
        figure(f"emit: naive gather over {OBSERVERS} observers, an event", cost["naive"], "µs"),
        figure("emit: the same / build + append", ratios(cost["naive"], build), "×"),
        figure("emit: delivered / naive", ratios(cost["delivered"], cost["naive"]), "×"),
    ]


def _event(token: Token, offset: int, seq: int) -> StreamEvent:
    data = {"content": token[0], "offset": offset, "token_ids": token[1], "logprobs": token[2]}
    return StreamEvent(_CHUNK, "chain_0", time.time(), data, 1, 1, seq, "run", "group_0", "")


# -- references ------------------------------------------------------------------------------------------------------


def _build(deltas: list[Token], generations: int) -> float:
    began = time.process_time()
    for _ in range(generations):
        events: list[StreamEvent] = []
        for seq, (text, ids, logprobs) in enumerate(deltas):
            data = {"content": text, "offset": seq, "token_ids": ids, "logprobs": logprobs}
            events.append(StreamEvent(_CHUNK, "chain_0", time.time(), data, 1, 1, seq, "run", "group_0", ""))
    return time.process_time() - began


def _encode(deltas: list[Token], generations: int) -> float:
    events = [_event(token, seq, seq) for seq, token in enumerate(deltas)]
    began = time.process_time()
    for _ in range(generations):
        for event in events:
            encode(event)
    return time.process_time() - began


async def _naive(deltas: list[Token], generations: int) -> float:
    """The plain way to isolate observers: gather all of them at every event."""
    observers = [NoOp() for _ in range(OBSERVERS)]
    began = time.process_time()
    for _ in range(generations):
        turn = Turn(step=1)
        for seq, token in enumerate(deltas):
            turn.append(*token, 0)
            event = _event(token, turn.chars, seq)
            await asyncio.gather(*(o.on_event(event) for o in observers), return_exceptions=True)
    return time.process_time() - began


# -- Rollcast ----------------------------------------------------------------------------------------------------------


async def _emitted(deltas: list[Token], generations: int) -> float:
    """Time only `chunk`: observers take what waits between the generations, which is not counted."""
    manager = StreamingManager()
    for _ in range(OBSERVERS):
        manager.add_observer(NoOp())
    spent = 0.0
    async with manager.run(live=True) as run:
        for _ in range(generations):
            generation = _generation(run)
            await manager.drain()
            began = time.process_time()
            for text, ids, logprobs in deltas:
                generation.chunk(text, ids, logprobs, 0)
            spent += time.process_time() - began
            generation.chain.end("answered")
    await manager.aclose()
    return spent


async def _delivered(deltas: list[Token], generations: int, observers: Sequence[StreamObserver]) -> float:
    """Time everything until the observers have the events: `TICK` of them, then the loop's turn, and so on."""
    manager = StreamingManager()
    for observer in observers:
        manager.add_observer(observer)
    began = time.process_time()
    async with manager.run(live=bool(observers)) as run:
        for _ in range(generations):
            generation = _generation(run)
            for start in range(0, len(deltas), TICK):
                for text, ids, logprobs in deltas[start : start + TICK]:
                    generation.chunk(text, ids, logprobs, 0)
                    if manager.fanout.congested:
                        await manager.ready()
                await asyncio.sleep(0)
            generation.chain.end("answered")
    await manager.aclose()
    return time.process_time() - began


def _generation(run: RunWriter) -> GenerationWriter:
    return run.chain().start().generation().start()


def _jsonl(folder: str) -> JSONStreamObserver:
    return JSONStreamObserver(Path(folder) / "events.jsonl", append=False)
