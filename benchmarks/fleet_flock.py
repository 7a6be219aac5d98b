"""A process with many producers, each a task that speaks `rollcast.v1`: `python -m benchmarks.fleet_flock '{"hub": "ws://127.0.0.1:8765"}'`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.fleet_hub import TOKEN
from benchmarks.helper import obey
from rollcast.records import StreamEvent, StreamEventType, encode
from rollcast.serve.protocol import SUBPROTOCOL, Hello, Pong, Publish, encode_frame
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events
from rollcast.testing.load import Load, play_load

__all__ = ["main"]


class Member:
    """One producer. It publishes the events of a load, in two halves, under its own name."""

    def __init__(self, connection: ClientConnection, source: str, events: list[StreamEvent]) -> None:
        self._connection = connection
        self._source = source
        self._events = events
        self._published = 0
        self._acked = 0
        self._news = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def greet(self) -> None:
        """Say hello, and wait for the welcome."""
        hello = Hello(
            token=TOKEN, role="producer", source=self._source, host="here", epoch="1", time=time.time()
        )
        await self._connection.send(encode_frame(hello).decode())
        async with asyncio.timeout(60):
            await self._news.wait()

    async def publish(self, until: int) -> None:
        """Publish the events before this one, and wait until the hub has them."""
        run_id = f"run-of-{self._source}"
        some = [
            msgspec.Raw(encode(msgspec.structs.replace(event, run_id=run_id, source=self._source)))
            for event in self._events[self._published : until]
        ]
        frame = Publish(self._published + 1, some)
        self._published = until
        await self._connection.send(encode_frame(frame).decode())
        async with asyncio.timeout(60):
            while self._acked < until:
                self._news.clear()
                await self._news.wait()

    async def _read(self) -> None:
        async for message in self._connection:
            frame = json.loads(message)
            if frame["type"] == "ping":
                await self._connection.send(encode_frame(Pong()).decode())
            elif frame["type"] == "ack":
                self._acked = frame["seq"]
            elif frame["type"] == "error":
                raise RuntimeError(f"the hub says: {frame['message']}")
            self._news.set()


class Stage:
    """The producers of this process."""

    def __init__(self, hub: str, stack: AsyncExitStack) -> None:
        self._hub = hub
        self._stack = stack
        self._members: list[Member] = []
        self._events: list[StreamEvent] = []

    async def connect(self, count: int, first: int) -> dict[str, Any]:
        """Connect so many producers; how long that took, in seconds."""
        manager = StreamingManager()
        with capture_events(manager) as capture:
            load = Load(
                chains=4, chains_per_run=100, tokens_per_s=0, events_per_s=20, seconds=1, flat_out=True
            )
            await play_load(manager, load)
        await manager.aclose()
        self._events = [
            event for event in capture.events if event.event_type is not StreamEventType.LLM_GENERATION_CHUNK
        ]
        began = time.perf_counter()
        for number in range(first, first + count):
            connection = await self._stack.enter_async_context(
                connect(self._hub, subprotocols=[SUBPROTOCOL], compression=None, open_timeout=60)
            )
            member = Member(connection, f"producer-{number}", self._events)
            await member.greet()
            self._members.append(member)
        half = [event.event_type for event in self._events[: len(self._events) // 2]]
        begun = half.count(StreamEventType.RUN_START) - half.count(StreamEventType.RUN_END)
        return {"seconds": time.perf_counter() - began, "events": len(self._events), "begun": begun}

    async def publish(self, half: bool) -> dict[str, Any]:
        """Let all publish half of their events, or the rest, and wait until the hub has them; how long that took, in seconds."""
        until = len(self._events) // 2 if half else len(self._events)
        began = time.perf_counter()
        await asyncio.gather(*[member.publish(until) for member in self._members])
        return {"seconds": time.perf_counter() - began}

    async def leave(self) -> dict[str, Any]:
        """Close the connections."""
        await self._stack.aclose()
        await asyncio.gather(*[member.reading for member in self._members])
        return {}


async def main() -> None:
    """Perform the actions on standard input until it closes."""
    options = json.loads(sys.argv[1])
    async with AsyncExitStack() as stack:
        stage = Stage(options["hub"], stack)
        await obey({}, {"connect": stage.connect, "publish": stage.publish, "leave": stage.leave})


if __name__ == "__main__":
    asyncio.run(main())
