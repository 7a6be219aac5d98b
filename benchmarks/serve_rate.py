"""Measures how late events are, and how many there can be per second. Clients read on the same cores, in another process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.measure import Figure, figure
from benchmarks.serve_house import House
from rollcast.stream import GenerationWriter

__all__ = ["rates"]

RATE = 5000  # events per second, to 50 clients
CLIENTS = 50
FAST = 50_000  # events per second, to one client
BURST = 500  # events at a time, if as many are sent as possible


def rates(quick: bool) -> list[Figure]:
    """Measure the latency from `chunk` to a client's socket, with the server's usual batches; and what is lost."""
    seconds, rounds = (0.1, 1) if quick else (3.0, 7)
    chunks = {"types": ["llm_generation_chunk"]}  # the end of a generation would repeat their texts
    own = [{**chunks, "chains": [f"chain_{i}"]} for i in range(CLIENTS)]
    others = [{**chunks, "chains": [f"chain_{j}" for j in range(CLIENTS) if j != i]} for i in range(CLIENTS)]
    audiences: dict[str, dict[str, Any]] = {
        "own": {"readers": CLIENTS, "filters": own, "clocked": 1},
        "others": {"readers": CLIENTS, "filters": others, "clocked": 10},
        "one": {"readers": 1, "filters": [chunks], "clocked": 1},
        "flat out": {"readers": 1, "filters": [chunks], "clocked": 1},
    }
    speeds = {"own": RATE, "others": RATE, "one": FAST, "flat out": 0}
    came: dict[str, list[dict[str, Any]]] = {name: [] for name in audiences}
    for _ in range(rounds):
        for name, audience in audiences.items():
            came[name].append(asyncio.run(_round(audience, speeds[name], seconds)))

    def each(name: str, what: str) -> list[float]:
        return [result[what] for result in came[name]]

    lost = sum(result["expected"] - result["tokens"] for results in came.values() for result in results)
    few = f"serve: {RATE:,} events/s to {CLIENTS} clients, each"
    one = f"serve: {FAST:,} events/s to 1 client"
    return [
        figure(f"{few} a chain of its own: p50", each("own", "p50"), "ms"),
        figure(f"{few} a chain of its own: p99", each("own", "p99"), "ms", "<= 60"),
        figure(f"{few} all chains but one: p50", each("others", "p50"), "ms"),
        figure(f"{few} all chains but one: p99", each("others", "p99"), "ms", "<= 60"),
        figure(f"{one}: rate reached", each("one", "rate"), "events/s", f">= {FAST * 0.99:.0f}"),
        figure(f"{one}: p50", each("one", "p50"), "ms"),
        figure(f"{one}: p99", each("one", "p99"), "ms"),
        figure(f"{one}: server and producer, of a core", each("one", "cpu"), "×"),
        figure("serve: flat out to 1 client: rate reached", each("flat out", "rate"), "events/s"),
        figure("serve: events lost in all these", float(lost), "events", "<= 0"),
    ]


async def _round(audience: dict[str, Any], rate: int, seconds: float) -> dict[str, Any]:
    """What the audience reports, how many tokens it should have got, their `rate`, and the share of a core that they took."""
    house = House(batch_s=0.025)
    await house.open(**audience)
    generations = await house.chains(CLIENTS)
    await asyncio.sleep(0.1)
    began, cpu = time.monotonic(), time.process_time()
    emitted = await (_paced(generations, rate, seconds) if rate else _flat_out(house, generations, seconds))
    await house.flush()
    await house.sent()
    took = time.monotonic() - began
    cpu = time.process_time() - cpu
    await house.close()
    expected = sum(
        1
        for i in range(1, emitted + 1)
        for wanted in audience["filters"][:: audience["clocked"]]
        if f"chain_{i % CLIENTS}" in wanted.get("chains", (f"chain_{i % CLIENTS}",))
    )
    return {**house.came, "expected": expected, "rate": emitted / took, "cpu": cpu / took}


async def _paced(generations: list[GenerationWriter], rate: int, seconds: float) -> int:
    """Emit events at the pace of chains: each millisecond those that are due."""
    began, emitted = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        for emitted in range(emitted + 1, int(now * rate) + 1):  # noqa: B020  (goes on where it was)
            _emit(generations[emitted % len(generations)])
        await asyncio.sleep(0.001)
    return emitted


async def _flat_out(house: House, generations: list[GenerationWriter], seconds: float) -> int:
    """Emit as many as the server and the client can take."""
    began, emitted = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for emitted in range(emitted + 1, emitted + BURST + 1):  # noqa: B020
            _emit(generations[emitted % len(generations)])
        await house.manager.drain()
        await house.sent()
    return emitted


def _emit(generation: GenerationWriter) -> None:
    """Emit a token that says when it was sent."""
    generation.chunk(f"t{time.monotonic():.6f} ", [1234], [-0.5], 0)
