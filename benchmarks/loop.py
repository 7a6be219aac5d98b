"""Compares the agent's loop on the embedded model to the bare engine, which serves exactly the same requests."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.tiny_runs import Requests, Spent, agent_run, bare_run, record
from benchmarks.tokens import NoOp
from rollcast.observers import JSONStreamObserver
from rollcast.stream import StreamObserver

__all__ = ["run"]

# How many chains run at once, how many there are, and how often: single chains are slow, so there are fewer.
SIZES = ((1, 40, 7), (8, 160, 7), (32, 320, 7))
QUICK = ((2, 4, 1),)

NAMES = {"off": "off", "on": "on, an observer that does nothing", "jsonl": "on, to a JSONL file"}


def run(quick: bool) -> list[Figure]:
    """Measure tokens per second and CPU time per token, with 1, 8 and 32 chains at once."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            line for size in (QUICK if quick else SIZES) for line in _at(*size, Path(folder) / "events.jsonl")
        ]


def _at(concurrent: int, chains: int, rounds: int, path: Path) -> list[Figure]:
    requests = asyncio.run(record(concurrent, chains))

    def agent(streaming: bool, make: Callable[[], list[StreamObserver]]) -> Callable[[], Spent]:
        return lambda: _agent(concurrent, chains, streaming, make(), requests)

    spent = paired(
        {
            "bare": lambda: asyncio.run(bare_run(concurrent, requests)),
            "off": agent(False, list),
            "on": agent(True, lambda: [NoOp()]),
            "jsonl": agent(True, lambda: [JSONStreamObserver(path, append=False)]),
        },
        rounds,
    )
    speed = {name: [s.tokens / s.wall for s in values] for name, values in spent.items()}
    cpu = {name: [s.cpu / s.tokens * 1e6 for s in values] for name, values in spent.items()}
    at = f"loop: {concurrent} at once"
    lines = [
        figure(f"{at}: bare engine", speed["bare"], "tokens/s"),
        figure(f"{at}: bare engine, CPU a token", cpu["bare"], "µs"),
    ]
    for name, words in NAMES.items():
        lines += [
            figure(f"{at}: {words}", speed[name], "tokens/s"),
            figure(f"{at}: {words}, / bare", ratios(speed[name], speed["bare"]), "×", ">= 0.8"),
            figure(f"{at}: {words}, CPU a token", cpu[name], "µs"),
            figure(f"{at}: {words}, CPU bare / CPU", ratios(cpu["bare"], cpu[name]), "×"),
        ]
    return [*lines, figure(f"{at}: CPU on / CPU off", ratios(cpu["on"], cpu["off"]), "×")]


def _agent(
    concurrent: int, chains: int, streaming: bool, observers: list[StreamObserver], requests: Requests
) -> Spent:
    result, spent, _ = asyncio.run(agent_run(concurrent, chains, streaming=streaming, observers=observers))
    for t in result.trajectories:
        assert [turn.token_ids for turn in t.turns] == [ids for _, ids in requests[t.chain_id]]
    return spent
