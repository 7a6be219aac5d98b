"""Measures what goes over the wire, and what it costs: one event per message, in batches, and in compressed batches."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.serve_house import Audience, House, until
from benchmarks.tokens import Token, tokens
from rollcast.stream import GenerationWriter

__all__ = ["wire"]

BATCH = 50  # events between two flushes: 25 ms at 2,000 events per second
CHAINS = 8
MODES: dict[str, dict[str, Any]] = {
    "one event a message": {"plain": True, "query": "?type=llm_generation_chunk"},
    "batches": {},
    "batches, deflate": {"deflate": True},
}
CHUNKS = {"types": ["llm_generation_chunk"]}


def wire(quick: bool) -> list[Figure]:
    """Measure bytes and CPU per event, for one client and for many; and the memory that a client takes."""
    batches, rounds, many = (2, 2, 3) if quick else (20, 15, 20)
    words = _words(BATCH * batches)
    with asyncio.Runner() as runner:
        stages = {(mode, n): _Stage(n, options) for mode, options in MODES.items() for n in (1, many)}
        bare = _Bare(many)
        runner.run(_all(stage.open() for stage in stages.values()))
        runner.run(bare.open())

        def trial(play: Callable[[list[Token]], Awaitable[None]]) -> Callable[[], float]:
            async def go() -> float:
                began = time.process_time()
                for at in range(0, len(words), BATCH):
                    await play(words[at : at + BATCH])
                return (time.process_time() - began) / len(words) * 1e6

            return lambda: runner.run(go())

        trials = {f"{mode} {n}": trial(stage.play) for (mode, n), stage in stages.items()}
        results = paired({**trials, "bare": trial(bare.play)}, rounds)
        runner.run(_all(stage.house.close() for stage in stages.values()))
        runner.run(bare.close())
        held = {
            mode: runner.run(_held(partial(_Stage, options=options), many, words))
            for mode, options in MODES.items()
        }
        held["bare"] = runner.run(_held(_Bare, many, words))
    size = {mode: stages[mode, 1].house.came["bytes"] / stages[mode, 1].events for mode in MODES}
    plain, batched, deflated = MODES
    what, one, every = "serve: wire: ", f"{deflated} 1", f"{deflated} {many}"
    return [
        *(figure(f"{what}{mode}: an event", n, "B") for mode, n in size.items()),
        figure(f"{what}{deflated} / {plain}: bytes", size[deflated] / size[plain], "×"),
        *(figure(f"{what}{name.replace(mode, mode + ',')} clients: CPU an event", results[name], "µs")
          for mode in MODES for name in (f"{mode} 1", f"{mode} {many}")),
        figure(f"{what}{many} clients: {deflated} / {batched}", ratios(results[every], results[f"{batched} {many}"]), "×"),
        figure(f"{what}{deflated}: {many} clients / 1", ratios(results[every], results[one]), "×"),
        figure(f"{what}reference: a context a client, {many} clients, sending alone: CPU an event", results["bare"], "µs"),
        *(figure(f"{what}{mode}: memory that a client holds", n / 1024, "KiB") for mode, n in held.items() if mode in MODES),
        figure(f"{what}reference: a context a client: memory that a client holds", held["bare"] / 1024, "KiB"),
    ]  # fmt: skip


class _Stage:
    """A server with clients of one kind, and a run of several chains."""

    def __init__(self, clients: int, options: dict[str, Any]) -> None:
        self.house = House(compression=True, client_buffer=64 << 20)
        self.clients = clients
        self.options = options
        self.events = 0
        self.generations: list[GenerationWriter] = []

    async def open(self) -> None:
        await self.house.open(self.clients, filters=[CHUNKS] * self.clients, **self.options)
        self.generations = await self.house.chains(CHAINS)
        await self.house.flush()

    async def play(self, words: list[Token]) -> None:
        """Emit the tokens by turns, and send them as a batch."""
        for text, ids, logprobs in words:
            self.generations[ids[0] % CHAINS].chunk(text, ids, logprobs, 0)
        self.events += len(words)
        await self.house.flush()
        await self.house.sent()

    async def close(self) -> None:
        await self.house.close()


class _Bare:
    """Clients of `websockets` with its usual compression, which goes on from message to message, for each client."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.house = House()  # it has no clients, and only makes the events

    async def open(self) -> None:
        async def stay(connection: ServerConnection) -> None:
            await connection.wait_closed()

        self.server: Server = await serve(stay, "127.0.0.1", 0, compression="deflate", close_timeout=0.2)
        port = next(iter(self.server.sockets)).getsockname()[1]
        self.audience = await asyncio.to_thread(Audience, port, readers=self.clients, deflate=True)
        await until(lambda: len(self.server.connections) == self.clients)
        await self.house.open()
        self.generations = await self.house.chains(CHAINS)
        await self.house.manager.drain()

    async def play(self, words: list[Token]) -> None:
        history, generations = self.house.server._broadcaster.history, self.generations
        head = history.head
        for text, ids, logprobs in words:
            generations[ids[0] % CHAINS].chunk(text, ids, logprobs, 0)
        await self.house.manager.drain()
        events = b",".join(entry.data for entry in history.window(head, len(words)))
        broadcast(self.server.connections, b"[" + events + b"]", text=True)
        await asyncio.sleep(0)

    async def close(self) -> None:
        self.server.close()
        await self.server.wait_closed()
        await self.audience.left()
        await self.house.close()


def _words(count: int) -> list[Token]:
    """Make tokens like a model's: numbers that differ from token to token differ in every digit."""
    rng = random.Random(0)
    return [(text, [rng.randrange(50_000)], [-rng.expovariate(1.0)]) for text, _, _ in tokens(count)]


async def _held(make: Callable[[int], _Stage | _Bare], clients: int, words: list[Token]) -> float:
    """The bytes that a client takes while nothing is being sent to it, after two batches."""
    sizes = []
    for count in (1, clients):
        stage = make(count)
        gc.collect()
        tracemalloc.start()
        await stage.open()
        for at in (0, BATCH):
            await stage.play(words[at : at + BATCH])
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        await stage.close()
    return (sizes[1] - sizes[0]) / (clients - 1)


async def _all(steps: Any) -> None:
    for step in steps:
        await step
