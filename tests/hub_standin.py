"""A hub for tests of producers: it speaks the frames, keeps what it takes by source and epoch, and can be made to misbehave."""

import asyncio
import contextlib
import weakref
from collections import defaultdict

import msgspec
from websockets.asyncio.server import serve

from ports import kept_port
from rollcast.records.codec import decode
from rollcast.serve.protocol import (
    SUBPROTOCOL,
    VERSION,
    Ack,
    Done,
    ErrorFrame,
    FilterFrame,
    Hello,
    Interest,
    Ping,
    Pong,
    Publish,
    Welcome,
    decode_client_frame,
    encode_frame,
)
from rollcast.serve.settings import Limits


class Hub:
    """Takes producers on a port of its own.

    Attributes:
        events: what it took, by source and epoch, without duplicates: by number.
        frames: every frame that came.
        acks, reads: whether it acknowledges, and whether it reads.
        lose_acks: how many acknowledgements it does not send.
        cut_after: after so many further `publish` frames it cuts the connection, before it takes the last one; None: never.
        features, scopes, limits: of its `welcome`.
        refuses: sources whose records it does not take; `takes_of_records`: how many events of a record it acknowledges.
        close_with: it closes with this code and reason instead of a `welcome`.
    """

    def __init__(self, **settings):
        self.events = defaultdict(dict)
        self.ended = []
        self.frames = []
        self.connections = []
        self.hellos = []
        self.acks = True
        self.reading = asyncio.Event()
        self.reading.set()
        self.lose_acks = 0
        self.cut_after = None
        self.features = ["hub", "record"]
        self.scopes = ["publish"]
        self.limits = Limits(message_bytes=1 << 20, messages_per_s=500)
        self.heartbeat_s = 20.0
        self.interest = []
        self.version = 0
        self.expires_s = 60.0
        self.close_with = None
        self.refuses = set()
        self.takes_of_records = 1 << 30
        self.answers = []
        self.port = 0
        self.away = False
        self._server = None
        vars(self).update(settings)
        self.changed = asyncio.Condition()

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}"

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *_):
        await self._close()

    async def start(self):
        """Listen, on the port that it had before if it had one; or be back."""
        if self._server is not None:
            self.away = False
            return
        if self.port == 0:  # it stays the stand-in's, also while nobody listens there
            kept = contextlib.ExitStack()
            self.port = kept.enter_context(kept_port())
            weakref.finalize(self, kept.close)
        self._server = await serve(
            self._take,
            "127.0.0.1",
            self.port,
            subprotocols=[SUBPROTOCOL],
            max_size=None,
            compression=None,
            process_request=self._cut_if_away,
        )

    async def stop(self):
        """Be away: cut every connection, and each that comes."""
        self.away = True
        self.reading.set()
        self.cut()
        self.connections.clear()

    def _cut_if_away(self, connection, _):
        if self.away:
            connection.transport.abort()

    async def _close(self):
        await self.stop()
        self._server.close()
        await self._server.wait_closed()
        self._server, self.away = None, False

    def cut(self):
        for connection in self.connections:
            connection.transport.abort()

    async def _take(self, connection):
        self.connections.append(connection)
        with contextlib.suppress(Exception):
            await self._converse(connection)

    async def _converse(self, connection):
        hello = decode_client_frame(await connection.recv())
        assert isinstance(hello, Hello)
        self.hellos.append(hello)
        if self.close_with is not None:
            await connection.close(*self.close_with)
            return
        key = (hello.source, hello.epoch)
        known = max(self.events[key], default=0)
        welcome = Welcome(
            VERSION, [], self.heartbeat_s, self.limits, self.scopes, features=self.features, acked=known
        )
        await self._send(connection, welcome)
        await self._send(connection, Interest(self.version, self.interest, self.expires_s))
        await self._tell()
        async for message in connection:
            assert len(message) <= self.limits.message_bytes
            await self.reading.wait()
            frame = decode_client_frame(message)
            self.frames.append(frame)
            match frame:
                case Publish():
                    if self.cut_after is not None:
                        self.cut_after -= 1
                        if self.cut_after <= 0:
                            self.cut_after = None
                            connection.transport.abort()
                            return
                    if frame.source in self.refuses:
                        await self._send(connection, ErrorFrame(409, "not now", frame.source))
                        continue
                    self._keep(frame, key)
                    if not frame.source or frame.seq < self.takes_of_records:
                        await self._ack(connection, frame)
                case Ping():
                    await self._send(connection, Pong())
                case Done() | ErrorFrame():
                    self.answers.append(frame)
            await self._tell()

    def _keep(self, frame, key):
        of = (frame.source, frame.epoch) if frame.source else key
        taken = self.events[of]
        last = max(taken, default=0)
        for number, raw in enumerate(frame.events, frame.seq):
            if number > last:
                taken[number] = decode(bytes(raw))
        if frame.last:
            self.ended.append(of)

    async def _ack(self, connection, frame):
        if not self.acks:
            return
        if self.lose_acks:
            self.lose_acks -= 1
            return
        last = frame.seq + max(len(frame.events), 1) - 1
        await self._send(
            connection,
            Ack(min(last, self.takes_of_records) if frame.source else last, frame.source, frame.epoch),
        )

    async def _send(self, connection, frame):
        await connection.send(encode_frame(frame), text=True)

    async def _tell(self):
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition):
        """Wait until something is so; looked at whenever a frame came."""
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(condition)

    async def want(self, *filters, expires_s=60.0):
        """Tell the producers whose tokens are wanted."""
        self.version += 1
        self.interest, self.expires_s = [FilterFrame(**f) for f in filters], expires_s
        for connection in self.connections:
            with contextlib.suppress(Exception):
                await self._send(connection, Interest(self.version, self.interest, self.expires_s))

    async def send(self, frame):
        for connection in self.connections:
            with contextlib.suppress(Exception):
                await self._send(connection, frame)

    def of(self, source=None):
        """The events of one source, in order of their numbers; of the only one if it is not named."""
        found = [taken for (name, _), taken in self.events.items() if source in (None, name) and taken]
        return [event for taken in found for _, event in sorted(taken.items())]

    def types(self, source=None):
        return [event.event_type.value for event in self.of(source)]

    def numbers(self):
        """The numbers that it took, by source and epoch."""
        return {key: sorted(taken) for key, taken in self.events.items() if taken}


def said_beside_waiting(errors):
    """What a process that publishes wrote, without the sentence that comes if a hub on a slow machine takes half a second."""
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if "does not have everything yet, and is given" not in line)


def raw(*events):
    return [msgspec.Raw(event) for event in events]
