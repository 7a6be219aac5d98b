"""Measures one stream to many clients with the same filter: what another client costs, beside the operating system's part."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from websockets.asyncio.server import broadcast

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.serve_house import House
from benchmarks.tokens import Token, tokens
from rollcast.records import StreamEvent, StreamEventType, encode
from rollcast.serve.protocol import batch_frame
from rollcast.stream import GenerationWriter

__all__ = ["fan_out"]

CLIENTS = 200
SMALL = 50  # events per batch: 25 ms at 2,000 per second
LARGE = 200  # at 8,000 per second

Play = Callable[[list[Token]], Awaitable[None]]


def fan_out(quick: bool) -> list[Figure]:
    """Measure CPU per event and client, and how much of it the kernel takes."""
    clients, batches, rounds = (10, 2, 2) if quick else (CLIENTS, 20, 15)
    house = House(client_buffer=64 << 20)
    with asyncio.Runner() as runner:
        runner.run(house.open(clients))

        def trial(
            play: Play, size: int, times: int = batches, before: Play | None = None
        ) -> Callable[[], tuple[float, float]]:
            words = tokens(size)

            async def go() -> tuple[float, float]:
                total = system = 0.0
                for _ in range(times):
                    if before is not None:
                        await before(words)
                    began = resource.getrusage(resource.RUSAGE_SELF)
                    await play(words)
                    await house.sent()
                    ended = resource.getrusage(resource.RUSAGE_SELF)
                    system += ended.ru_stime - began.ru_stime
                    total += ended.ru_stime - began.ru_stime + ended.ru_utime - began.ru_utime
                share = 1e6 / (times * size * clients)
                return total * share, system * share

            return lambda: runner.run(go())

        (generation,) = runner.run(house.chains(1))
        with _sockets(house) as sockets:
            stage = _Stage(house, generation, sockets)
            trials = {
                "served": trial(stage.served, SMALL),
                "given": trial(stage.given, SMALL, before=stage.emitted),
                "same": trial(stage.same, SMALL),
                "bare": trial(stage.bare, SMALL),
                "raw": trial(stage.raw, SMALL),
                "alone": trial(stage.alone, SMALL, max(1, batches // 10)),
                "served large": trial(stage.served, LARGE, max(1, batches // 4)),
                "raw large": trial(stage.raw, LARGE, max(1, batches // 4)),
            }
            results = paired(trials, rounds)
        runner.run(house.close())
    cost = {name: [total for total, _ in values] for name, values in results.items()}
    what, small, large = (
        f"serve: {clients} clients, an event and client",
        f"batches of {SMALL}",
        f"of {LARGE}",
    )
    return [
        figure(f"{what}, emitted, encoded, sent in {small}", cost["served"], "µs", "<= 0.2"),
        figure(f"{what}: of that in the kernel", [system for _, system in results["served"]], "µs"),
        figure(f"{what}: reference: send(2) of a frame, {small}", cost["raw"], "µs"),
        figure(f"{what}: reference: send(2) of the same bytes, {small}", cost["same"], "µs"),
        figure(
            f"{what}: served / send(2) of the same bytes", ratios(cost["served"], cost["same"]), "×", "<= 1.3"
        ),
        figure(f"{what}: sent alone, what was emitted and encoded before", cost["given"], "µs"),
        figure(
            f"{what}: sent alone / send(2) of the same bytes",
            ratios(cost["given"], cost["same"]),
            "×",
            "<= 1.3",
        ),
        figure(f"{what}: served / send(2)", ratios(cost["served"], cost["raw"]), "×"),
        figure(f"{what}: reference: websockets.broadcast of a frame, {small}", cost["bare"], "µs"),
        figure(f"{what}: served / broadcast of a frame", ratios(cost["served"], cost["bare"]), "×"),
        figure(f"{what}: reference: websockets.broadcast, one event a frame", cost["alone"], "µs"),
        figure(f"{what}: served / one event a frame", ratios(cost["served"], cost["alone"]), "×"),
        figure(f"{what}, sent in batches {large}", cost["served large"], "µs", "<= 0.2"),
        figure(f"{what}: reference: send(2) of a frame, batches {large}", cost["raw large"], "µs"),
    ]


class _Stage:
    """The ways to send a batch to all clients."""

    def __init__(self, house: House, generation: GenerationWriter, sockets: list[socket.socket]) -> None:
        self.house = house
        self.generation = generation
        self.sockets = sockets
        self.frames: dict[int, bytes] = {}
        self.sent_frame = b""

    async def served(self, words: list[Token]) -> None:
        """Do everything from `chunk` to the sockets."""
        await self.emitted(words)
        await self.given(words)

    async def emitted(self, words: list[Token]) -> None:
        """From `chunk` to the server's history."""
        history = self.house.server._broadcaster.history
        goal = history.head + len(words)
        for text, ids, logprobs in words:
            self.generation.chunk(text, ids, logprobs, 0)
        while history.head < goal:  # noqa: ASYNC110  (as many turns as the observer takes; nothing announces them)
            await asyncio.sleep(0)

    async def given(self, words: list[Token]) -> None:
        """From the history to the sockets, as at the end of a batch's time."""
        del words
        self.house.server._broadcaster.flush()

    async def same(self, words: list[Token]) -> None:
        """The frame that the last batch of `served` was, given to the operating system and nothing else."""
        if not self.sent_frame:
            await self.emitted(words)
            history = self.house.server._broadcaster.history
            entries = history.window(history.head - len(words), len(words))
            body = batch_frame("1", history.cursor(history.head), b",".join(entry.data for entry in entries))
            self.sent_frame = struct.pack("!BBH", 0x81, 126, len(body)) + body
            await self.given(words)
            await self.house.sent()
        self._send(self.sent_frame)

    async def alone(self, words: list[Token]) -> None:
        """Encode events, and send them one by one."""
        connections = [client.connection for client in self.house.server._clients]
        for seq, token in enumerate(words):
            broadcast(connections, encode(_event(token, seq)), text=True)

    async def bare(self, words: list[Token]) -> None:
        """Encode events, and send them as one frame."""
        connections = [client.connection for client in self.house.server._clients]
        broadcast(connections, _body(words), text=True)

    async def raw(self, words: list[Token]) -> None:
        """A smaller frame made before, with a short name of the run, given to the operating system and nothing else."""
        if len(words) not in self.frames:
            body = _body(words)
            self.frames[len(words)] = struct.pack("!BBH", 0x81, 126, len(body)) + body
        self._send(self.frames[len(words)])

    def _send(self, frame: bytes) -> None:
        for sock in self.sockets:
            left = memoryview(frame)
            while left:
                try:
                    left = left[sock.send(left) :]
                except BlockingIOError:
                    select.select([], [sock], [])


@contextmanager
def _sockets(house: House) -> Iterator[list[socket.socket]]:
    """The sockets of the server's connections, beneath its event loop."""
    transports = [client.connection.transport for client in house.server._clients]
    numbers = [transport.get_extra_info("socket").fileno() for transport in transports]
    sockets = [socket.socket(fileno=os.dup(number)) for number in numbers]
    try:
        yield sockets
    finally:
        for sock in sockets:
            with suppress(OSError):
                sock.close()


def _event(token: Token, seq: int) -> StreamEvent:
    data = {"content": token[0], "offset": seq, "token_ids": token[1], "logprobs": token[2]}
    kind = StreamEventType.LLM_GENERATION_CHUNK
    return StreamEvent(kind, "chain_0", time.time(), data, 1, 1, seq, "run", "group_0", "")


def _body(words: list[Token]) -> bytes:
    return b"[" + b",".join(encode(_event(token, seq)) for seq, token in enumerate(words)) + b"]"
