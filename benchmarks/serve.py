"""The WebSocket server: what a client costs, and how soon it sees the first token."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from websockets.asyncio.server import broadcast

from benchmarks.measure import Figure, figure, paired
from benchmarks.tokens import Token, tokens
from rollcast.records import StreamEvent, StreamEventType, encode
from rollcast.serve import ServerSettings, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.stream import StreamingManager

__all__ = ["run"]

CLIENTS = 200
BATCH = 50  # events between two flushes: 25 ms at 2,000 events a second
CHUNK = StreamEventType.LLM_GENERATION_CHUNK


def run(quick: bool) -> list[Figure]:
    """Clients read in a process of their own, and their cost is not counted."""
    return [*_fan_out(quick), *asyncio.run(_first_token(10 if quick else 200))]


# -- fan-out -----------------------------------------------------------------------------------------------------------


class _House:
    """A server with its audience."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.manager = StreamingManager()
        settings = ServerSettings(batch_s=3600.0, history_bytes=8 << 20, client_buffer=64 << 20, close_s=0.2)
        self.server = WebSocketStreamingServer("127.0.0.1", 0, settings=settings)

    async def open(self) -> None:
        await self.server.start()
        self.manager.add_observer(self.server.get_observer())
        readers = [sys.executable, str(Path(__file__).with_name("readers.py")), str(self.server.port)]
        self.audience = await asyncio.to_thread(subprocess.Popen, [*readers, str(self.clients)])
        await _until(lambda: self.server.statistics().subscriptions == self.clients)
        await self.sent()

    async def close(self) -> None:
        await self.manager.aclose()
        await self.server.stop()
        await asyncio.to_thread(self.audience.wait)

    async def sent(self) -> None:
        """Until the network has taken everything."""
        await _until(lambda: not any(client.unsent() for client in self.server._clients))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (states of the server that nothing announces)
            await asyncio.sleep(0.001)


def _fan_out(quick: bool) -> list[Figure]:
    clients, batches, rounds = (10, 2, 2) if quick else (CLIENTS, 20, 15)
    house = _House(clients)
    words = tokens(BATCH)
    with asyncio.Runner() as runner:
        runner.run(house.open())

        def trial(play: Callable[[_House, list[Token]], Awaitable[None]]) -> Callable[[], float]:
            async def go() -> float:
                began = time.process_time()
                for _ in range(batches):
                    await play(house, words)
                    await house.sent()
                return time.process_time() - began

            return lambda: runner.run(go())

        plays = {"served": _served, "alone": _alone, "bare": _bare}
        results = paired({name: trial(play) for name, play in plays.items()}, rounds)
        runner.run(house.close())
    cost = {name: [s / (batches * BATCH * clients) * 1e6 for s in values] for name, values in results.items()}
    what = f"serve: {clients} clients, an event and client"
    return [
        figure(f"{what}, emitted, encoded, batched, sent", cost["served"], "µs", "<= 0.2"),
        figure(f"{what}: reference: websockets.broadcast, one event a frame", cost["alone"], "µs"),
        figure(f"{what}: reference: websockets.broadcast, a bare frame of {BATCH}", cost["bare"], "µs"),
    ]


async def _served(house: _House, words: list[Token]) -> None:
    """From `chunk` to the sockets, everything included."""
    with house.manager.run() as run, run.chain() as chain, chain.generation() as generation:
        for text, ids, logprobs in words:
            generation.chunk(text, ids, logprobs, 0)
    await house.manager.drain()
    house.server._hub.flush()


def _event(token: Token, seq: int) -> StreamEvent:
    data = {"content": token[0], "offset": seq, "token_ids": token[1], "logprobs": token[2]}
    return StreamEvent(CHUNK, "chain_0", time.time(), data, 1, 1, seq, "run", "group_0", "")


async def _alone(house: _House, words: list[Token]) -> None:
    connections = [client.connection for client in house.server._clients]
    for seq, token in enumerate(words):
        broadcast(connections, encode(_event(token, seq)), text=True)


async def _bare(house: _House, words: list[Token]) -> None:
    connections = [client.connection for client in house.server._clients]
    events = [encode(_event(token, seq)) for seq, token in enumerate(words)]
    broadcast(connections, b"[" + b",".join(events) + b"]", text=True)


# -- the first token ---------------------------------------------------------------------------------------------------


async def _first_token(generations: int) -> list[Figure]:
    """From `chunk` until `WebSocketStreamingClient` has it, in one event loop, with a batch's usual 25 ms."""
    manager = StreamingManager()
    waits: list[float] = []
    async with WebSocketStreamingServer("127.0.0.1", 0) as server:
        manager.add_observer(server.get_observer())
        async with WebSocketStreamingClient(server.url) as client:
            events = aiter(client)
            run_start = asyncio.ensure_future(anext(events))
            await _until(lambda: server.statistics().subscriptions == 1)
            run = manager.run().open()
            await run_start
            for _ in range(generations):
                with run.chain() as chain, chain.generation() as generation:
                    await asyncio.sleep(0.03)  # what opened the generation has gone
                    began = time.perf_counter()
                    generation.chunk("word")
                    while (await anext(events)).event_type is not CHUNK:
                        pass
                    waits.append((time.perf_counter() - began) * 1e3)
            run.close()
        await manager.aclose()
    last = sorted(waits)[int(0.99 * len(waits))]
    return [
        figure("serve: first token of a generation at the client", waits, "ms", "<= 10"),
        figure("serve: the same, 99th percentile", last, "ms"),
    ]
