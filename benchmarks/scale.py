"""Measures, from ten chains at once to ten thousand, what a token and a chain cost, and what an unwatched chain takes.

Every trial runs as many chains as the others of its size, in runs of N at once, with few tokens per chain and with many.
The difference is the cost of the tokens, without everything that happens once per chain or run; the rest is the chain's.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lean import LeanBackend
from benchmarks.measure import Figure, figure, paired, ratios
from rollcast.observers import JSONStreamObserver
from rollcast.records import EventFilter, StreamEvent, Turn
from rollcast.rollout import BaseAgent
from rollcast.stream import StreamingManager, StreamObserver

__all__ = ["MODES", "run"]

SIZES = (10, 100, 1000, 10_000)
LENGTHS = (8, 32)  # tokens per chain
CHAINS = 2000  # chains per trial, or N if that is more
ROUNDS = 5

MODES = {
    "bare": "no agent: tasks that append tokens to a Turn",
    "off": "streaming off",
    "unwatched": "on, watched is a chain of another run",
    "count": "on, one observer counts everything",
    "count, rare gc": "the same, garbage collected more rarely",
    "jsonl": "on, everything to a JSONL file",
}
JUDGED = ("unwatched", "count", "jsonl")
RARELY = (100_000, 50, 100)  # gc.set_threshold

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


class Counting(StreamObserver):
    """Counts events, and the tokens in them."""

    def __init__(self, filter: EventFilter | None = None) -> None:
        self.filter = filter or EventFilter()
        self.events = self.tokens = 0

    async def on_event(self, event: StreamEvent) -> None:
        """Count it."""
        self.events += 1
        self.tokens += len(event.data.get("token_ids", ()))


def run(quick: bool) -> list[Figure]:
    """Measure CPU per token and per chain by number of chains at once; memory and events of unwatched chains."""
    sizes, chains, rounds = ((2, 8), 8, 1) if quick else (SIZES, CHAINS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        costs = _costs(sizes, chains, rounds, Path(folder))
    tokens = {key: token for key, (token, _) in costs.items()}
    few, many = sizes[0], sizes[-1]
    lines: list[Figure] = []
    for mode, words in MODES.items():
        for n in sizes:
            at, (token, chain) = f"scale: {n:,} at once, {words}", costs[mode, n]
            lines += [figure(f"{at}, a token", token, "µs"), figure(f"{at}, a chain beside", chain, "µs")]
        target = "<= 1.15" if mode in JUDGED else None
        times = ratios(tokens[mode, many], tokens[mode, few])
        lines.append(figure(f"scale: a token of {many:,} / of {few}, {words}", times, "×", target))
    for n in sizes:
        pairs = zip(tokens["unwatched", n], tokens["off", n], strict=True)
        added = [on - off for on, off in pairs]
        lines.append(figure(f"scale: {n:,} at once, what streaming adds to an unwatched token", added, "µs"))
    return [*lines, *_unwatched(50 if quick else 10_000)]


# -- time --------------------------------------------------------------------------------------------------------------


def _costs(
    sizes: tuple[int, ...], chains: int, rounds: int, folder: Path
) -> dict[tuple[str, int], tuple[list[float], list[float]]]:
    """By mode and size: µs per token, and further µs per chain; one value per round."""
    trials = {
        f"{mode} {n} {length}": partial(_trial, mode, n, max(chains, n) // n, length, folder)
        for mode in MODES
        for n in sizes
        for length in LENGTHS
    }
    spent = paired(trials, rounds)
    few, many = LENGTHS
    costs = {}
    for mode in MODES:
        for n in sizes:
            scale = 1e6 / max(chains, n) / (many - few)
            pairs = list(zip(spent[f"{mode} {n} {few}"], spent[f"{mode} {n} {many}"], strict=True))
            token = [(b - a) * scale for a, b in pairs]
            costs[mode, n] = token, [(a * many - b * few) * scale for a, b in pairs]
    return costs


def _trial(mode: str, at_once: int, runs: int, length: int, folder: Path) -> float:
    if mode == "bare":
        return asyncio.run(_bare(at_once, runs, length))
    before = gc.get_threshold()
    if mode == "count, rare gc":
        gc.set_threshold(*RARELY)
    try:
        return asyncio.run(_agents(mode, at_once, runs, length, folder))
    finally:
        gc.set_threshold(*before)


async def _bare(at_once: int, runs: int, length: int) -> float:
    backend = LeanBackend(length)

    async def chain() -> Turn:
        turn = Turn(step=1)
        async for delta in backend.generate(None):
            turn.append(delta.text, delta.token_ids, delta.logprobs, delta.policy_version)
        return turn

    began = time.process_time()
    for _ in range(runs):
        await asyncio.gather(*[asyncio.create_task(chain()) for _ in range(at_once)])
    return time.process_time() - began


async def _agents(mode: str, at_once: int, runs: int, length: int, folder: Path) -> float:
    manager = StreamingManager(drain_timeout=60)
    agent = BaseAgent(backend=LeanBackend(length), streaming_manager=manager)
    async with manager.run() as other:
        other.chain().start()  # so that the watched chain exists
        observer: Any = None
        if mode == "unwatched":
            observer = Counting(EventFilter(runs=other.run_id, chains="chain_0"))
        elif mode.startswith("count"):
            observer = Counting()
        elif mode == "jsonl":
            observer = JSONStreamObserver(folder / "events.jsonl", append=False)
        if observer is not None:
            manager.add_observer(observer)
            await manager.drain()
        began = time.process_time()
        for _ in range(runs):
            await agent.run_async(1, QUESTION, at_once, enable_streaming=mode != "off")
        spent = time.process_time() - began
        dropped = sum(numbers.dropped for numbers in manager.statistics())
    await manager.aclose()
    assert dropped == 0
    if mode.startswith("count"):
        assert observer.tokens == at_once * runs * length, "merged chunks have all tokens, too"
    return spent


# -- memory and events of chains that nobody watches -------------------------------------------------------------------


def _unwatched(chains: int) -> list[Figure]:
    asyncio.run(_held(10, streaming=True))  # makes what is made only once
    off, _ = asyncio.run(_held(chains, streaming=False))
    on, events = asyncio.run(_held(chains, streaming=True))
    title = f"scale: {chains:,} open chains that nobody watches"
    return [
        figure(f"{title}, memory of one", off / chains / 1024, "KiB"),
        figure(f"{title}, memory that streaming adds to one", (on - off) / chains / 1024, "KiB", "<= 2"),
        figure(f"{title}, events built", events, "events", "<= 0"),
    ]


async def _held(chains: int, *, streaming: bool) -> tuple[int, int]:
    """Traced bytes of chains that wait for their last token, and events built since they began."""
    waiting, all_wait, go = 0, asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        nonlocal waiting
        waiting += 1
        if waiting == chains:
            all_wait.set()
        await go.wait()

    manager = StreamingManager()
    agent = BaseAgent(backend=LeanBackend(8, hold), streaming_manager=manager)
    async with manager.run() as other:
        other.chain().start()
        manager.add_observer(Counting(EventFilter(runs=other.run_id, chains="chain_0")))
        await manager.drain()
        built = _built(manager)
        gc.collect()
        tracemalloc.start()
        run = asyncio.create_task(agent.run_async(1, QUESTION, chains, enable_streaming=streaming, seed=1))
        if not streaming:
            manager.remove_observer(manager.observers[0])  # else a warning: it sees nothing of the run
        await all_wait.wait()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        go.set()
        await run
        built = _built(manager) - built
    await manager.aclose()
    return taken, built


def _built(manager: StreamingManager) -> int:
    return sum(manager.totals().emitted.values())
