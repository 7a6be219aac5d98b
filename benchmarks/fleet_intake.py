"""What a hub does with an event, stage by stage, in one process without sockets; and what the least of it costs."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.measure import Figure, figure, paired, ratios
from rollcast.fleet.hub import Hub
from rollcast.records import EventFilter
from rollcast.records.codec import decode_unchecked, encode_lines
from rollcast.serve import ServerSettings, WebSocketStreamingServer
from rollcast.serve.access import Grant
from rollcast.serve.hub_observer import GATHER_S
from rollcast.serve.producing import publish_frame
from rollcast.serve.protocol import (
    Hello,
    Publish,
    ServerFrame,
    Session,
    TakeEvents,
    batch_frame,
    decode_client_frame,
)
from rollcast.stream import StreamingManager
from rollcast.stream.merging import tokens_together
from rollcast.stream.observer import EncodingObserver
from rollcast.stream.waiting import Encodable, chunk_of_line
from rollcast.testing.load import Load, play_load

__all__ = ["intake"]

SOURCE, EPOCH = "one", "1"
EVENTS_PER_S = 5_000
STAGES = {
    "frame": "its message is taken apart",
    "intake": "read and checked",
    "relay": "passed on",
    "viewers": "kept for viewers, and put into a message for all",
}


class _Events(EncodingObserver):
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Encodable] = []

    async def on_encodable(self, events: Sequence[Encodable]) -> None:
        self.events += events


class _Peer:
    """A producer's connection, or a viewer's, that takes everything."""

    plain = False

    def send(self, frame: ServerFrame) -> None:
        """Nothing."""

    def unsent(self) -> int:
        """Nothing waits."""
        return 0

    def close(self, *reason: object) -> None:
        """Fail.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"the hub closed a connection of the benchmark: {reason}")


def intake(load: dict[str, Any], *, quick: bool) -> Iterator[Figure]:
    """The figures.

    Args:
        load: what the producer plays.
        quick: whether to show only that it works.
    """
    rounds = 1 if quick else 9
    messages, count = asyncio.run(_messages(Load(**load, seconds=0.5 if quick else 4.0, flat_out=True)))
    stages: dict[str, list[float]] = defaultdict(list)

    def hub() -> float:
        took = asyncio.run(_taken(messages))
        for name, seconds in took.items():
            stages[name].append(seconds / count * 1e6)
        return sum(took.values()) / count * 1e6

    cost = paired({"hub": hub, "least": lambda: _least(messages) / count * 1e6}, rounds)
    title = "fleet: an event at the hub, without sockets"
    for name, words in STAGES.items():
        yield figure(f"{title}: {words}", stages[name][-rounds:], "µs")
    yield figure(f"{title}: all of it", cost["hub"], "µs")
    yield figure(f"{title}: reference: read, kept and put into a message, unchecked", cost["least"], "µs")
    yield figure(f"{title}: all of it / the reference", ratios(cost["hub"], cost["least"]), "×")


async def _messages(load: Load) -> tuple[list[str], int]:
    """The `publish` messages of a producer that plays this load, one for each time that it gathers, and how many events it emitted."""
    manager, observer = StreamingManager(source=SOURCE, publish=False), _Events()
    observer.mode = "lossless"
    manager.add_observer(observer)
    await play_load(manager, load)
    await manager.aclose()
    events, at_once, number, frames = observer.events, round(GATHER_S * EVENTS_PER_S), 1, []
    for at in range(0, len(events), at_once):
        lines = encode_lines(tokens_together(events[at : at + at_once])).split(b"\n")[:-1]
        frames.append(publish_frame(number, b",".join(lines)).decode())
        number += len(lines)
    return frames, len(events)


async def _taken(messages: Sequence[str]) -> dict[str, float]:
    """Have a hub with one viewer take the messages; the CPU seconds of each stage."""
    took = dict.fromkeys(STAGES, 0.0)
    manager, peer, ticks = StreamingManager(drain_timeout=60, publish=False), _Peer(), itertools.count()
    settings = ServerSettings(history_bytes=16 << 20)
    server = WebSocketStreamingServer("127.0.0.1", 0, settings=settings)
    async with Hub(server, manager) as hub:
        broadcaster = server._broadcaster
        broadcaster.sender.transmit = lambda _outlets, *_messages: None
        broadcaster.subscribe(peer, "1", EventFilter())
        hub.connect(Hello(role="producer", source=SOURCE, epoch=EPOCH), peer)
        session = Session(
            lambda _: Grant(("publish",)),
            settings.limits_of("producer", ("publish",)),
            hello_s=3600.0,
            heartbeat_s=3600.0,
            clock=lambda: next(ticks) * 0.01,
            epoch=time.time,
            token="t",
            hub=True,
        )
        session.receive('{"type":"hello","role":"producer","source":"one","epoch":"1"}')
        for message in messages:
            times = [time.thread_time()]
            (action,) = session.receive(message)
            assert isinstance(action, TakeEvents)
            times.append(time.thread_time())
            taken = hub.intake.take(peer, action.frame)
            times.append(time.thread_time())
            manager.relay_read(taken.events)
            times.append(time.thread_time())
            await manager.drain()
            broadcaster.flush()
            times.append(time.thread_time())
            assert not taken.refused, taken.refused
            for name, (began, ended) in zip(STAGES, itertools.pairwise(times), strict=True):
                took[name] += ended - began
    await manager.aclose()
    return took


def _least(messages: Sequence[str]) -> float:
    """The CPU seconds of what no hub in Python can do without: each event is read and kept, and a message made of all of them."""
    began = time.thread_time()
    kept: list[object] = []
    for message in messages:
        frame = decode_client_frame(message)
        assert isinstance(frame, Publish)
        lines = [bytes(raw) for raw in frame.events]
        kept += [(line, chunk_of_line(line) or decode_unchecked(line)) for line in lines]
        batch_frame("1", "c", b",".join(lines))
    return time.thread_time() - began
