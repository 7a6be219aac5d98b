"""What a producer sends to its hub, and when: its numbers, what is not acknowledged yet, and whose tokens are wanted. Pure.

    put ──▶ waiting ──numbered──▶ sent ──ack──▶ forgotten
                                   │
                     out ◀──lost───┘      (the connection ended: they are sent again, under their numbers)

Events are JSON, in blocks. A block is numbered when it is first sent, or written to the local record: `out` also takes what is read
from there (spool.py). What waits is bounded by whoever puts it in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from rollcast.errors import DecodeError, FilterError
from rollcast.records import EventFilter, StreamEventType
from rollcast.records.codec import one_line_json
from rollcast.serve.fitting import fitted
from rollcast.serve.protocol import (
    FEATURES,
    Ack,
    Cancel,
    ErrorFrame,
    Hello,
    Interest,
    Ping,
    Pong,
    Rate,
    ServerFrame,
    Welcome,
    decode_server_frame,
    is_of_later_server,
)
from rollcast.serve.settings import Limits
from rollcast.text import printable_line

__all__ = [
    "LIFECYCLE",
    "WITH_SNAPSHOTS",
    "Action",
    "Answer",
    "Block",
    "Handed",
    "NoHubError",
    "NotTaken",
    "Outbox",
    "Publishing",
    "Wanted",
    "Welcomed",
    "publish_frame",
    "wanted_of",
]

T = StreamEventType

FRAME_EVENTS = 512  # one `publish` frame has at most so many events,
FRAME_BYTES = 128 << 10  # or is sent once it has as many bytes
FLUSH_S = 0.002  # an event waits here for no longer, if the hub keeps up; it has waited for the observer (hub_observer.py)
WINDOW_BYTES = 4 << 20  # of events that were sent and are not acknowledged; the others wait
_ENVELOPE = 1024  # bytes that a frame may have besides its events
MOST_RECEIVED = 1 << 20  # bytes of a message of the hub
FIRST_CLOSE_CODE = 1000
_PLAIN_LIMIT = 64 << 10  # bytes of a message that any hub takes

LIFECYCLE = EventFilter(types=[kind for kind in T if kind not in (T.LLM_GENERATION_CHUNK, T.CHAIN_SNAPSHOT)])
"""What always travels. A `chain_snapshot` comes by itself, for a chain that comes into view, and stands before its tokens."""

WITH_SNAPSHOTS = EventFilter(types=[kind for kind in T if kind is not T.LLM_GENERATION_CHUNK])
"""The same, with a snapshot of each chain that is open now, for a hub that knows none of them."""


class NoHubError(Exception):
    """What answers is not a hub that takes producers; the message is a sentence."""


class Block(msgspec.Struct, gc=False):
    """Events that stand next to each other.

    Attributes:
        data: their JSON, separated by commas.
        count: how many there are.
        number: of the first; 0: they have no numbers yet.
    """

    data: bytes
    count: int
    number: int = 0

    @property
    def last(self) -> int:
        """The number of the last event."""
        return self.number + self.count - 1


def publish_frame(
    number: int, events: bytes, *, source: str = "", epoch: str = "", last: bool = False
) -> bytes:
    """A `publish` frame around events that are already JSON, separated by commas. See `Publish`."""
    rest = b""
    if source:
        names = msgspec.json.encode({"source": source, "epoch": epoch})[1:-1]
        rest = b"," + one_line_json(names)
    if last:
        rest += b',"last":true'
    return b'{"type":"publish","seq":%d,"events":[%b]%b}' % (number, events, rest)


def wanted_of(interest: Sequence[EventFilter]) -> EventFilter:
    """The filter of a producer's observer: everything but tokens, and the tokens of the chains that somebody watches."""
    wanted = LIFECYCLE
    tokens = EventFilter(types=[T.LLM_GENERATION_CHUNK])
    for each in interest:
        wanted |= tokens & each
    return wanted


class Outbox:
    """Events on their way to a hub, under the numbers of one source and epoch.

    Args:
        window: how many bytes may be sent without being acknowledged.
        acked: the number of the last event that the hub has.
        source, epoch: of the producer whose record is handed over; empty: the events are the sender's own.

    Attributes:
        waiting: blocks that have no numbers yet.
        next_number: of the next event that gets one.
        acked: the number of the last event that the hub has.
    """

    def __init__(
        self, window: int = WINDOW_BYTES, *, acked: int = 0, source: str = "", epoch: str = ""
    ) -> None:
        self.waiting: deque[Block] = deque()
        self.waiting_bytes = 0
        self.next_number = acked + 1
        self.acked = acked
        self._window = window
        self._source = source
        self._epoch = epoch
        self._rate: Rate | None = None
        self._out: deque[Block] = deque()
        self._out_bytes = 0
        self._sent: deque[Block] = deque()
        self._sent_bytes = 0
        self._room = _PLAIN_LIMIT - _ENVELOPE  # bytes of events in one frame

    # -- what comes in -------------------------------------------------------------------------------------------------

    def put(self, block: Block) -> None:
        """Have the events sent after all that were put in before."""
        self.waiting.append(block)
        self.waiting_bytes += len(block.data)

    def put_first(self, block: Block) -> None:
        """Have the events sent before all that have no numbers yet."""
        self.waiting.appendleft(block)
        self.waiting_bytes += len(block.data)

    def put_recorded(self, block: Block) -> None:
        """Have events sent that have their numbers already, which follow those of all that were put in before this way."""
        self._out.append(block)
        self._out_bytes += len(block.data)

    def take_waiting(self) -> Block | None:
        """Take the first block that has no numbers, to put it elsewhere."""
        if not self.waiting:
            return None
        block = self.waiting.popleft()
        self.waiting_bytes -= len(block.data)
        return block

    # -- the connection ------------------------------------------------------------------------------------------------

    def connected(self, limits: Limits, clock: Callable[[], float]) -> None:
        """There is a connection, with these limits; half of the messages that it allows are for other frames."""
        self.lost()
        self._room = limits.message_bytes - _ENVELOPE
        self._rate = Rate(limits.messages_per_s / 2, clock)

    def lost(self) -> None:
        """The connection is lost: what was not acknowledged is sent again on the next one."""
        self._out.extendleft(reversed(self._sent))
        self._out_bytes += self._sent_bytes
        self._sent.clear()
        self._sent_bytes = 0

    def frames(self, *, number: bool = True) -> list[bytes]:
        """The frames to send now, as far as the window goes.

        Args:
            number: whether events without numbers get them, and are sent too.
        """
        frames: list[bytes] = []
        while self._sent_bytes < self._window and self._first(number=number) is not None:
            if self._rate is not None and not self._rate.spend():
                break
            blocks = self._next(number=number)
            events = b",".join([block.data for block in blocks])
            frames.append(publish_frame(blocks[0].number, events, source=self._source, epoch=self._epoch))
            self._sent += blocks
            self._sent_bytes += len(events) - len(blocks) + 1
        return frames

    def _next(self, *, number: bool) -> list[Block]:
        """The blocks of one frame, with their numbers; empty if none is left."""
        blocks: list[Block] = []
        count = size = 0
        while (block := self._first(number=number)) is not None:
            if len(block.data) > self._room:
                block = self._split(block)
            fits = count + block.count <= FRAME_EVENTS and size + len(block.data) + 1 <= min(
                self._room, FRAME_BYTES
            )
            if blocks and (not fits or block.number != blocks[-1].last + 1):
                break
            self._out.popleft()
            self._out_bytes -= len(block.data)
            blocks.append(block)
            count, size = count + block.count, size + len(block.data) + 1
        return blocks

    def _first(self, *, number: bool) -> Block | None:
        """The block that is sent next, at the front of `_out`, with its number; None if nothing is left to send."""
        if not self._out and number and (block := self.take_waiting()) is not None:
            block.number = self.next_number
            self.next_number += block.count
            self.put_recorded(block)
        return self._out[0] if self._out else None

    def _split(self, block: Block) -> Block:
        """Put the pieces of a block that is too long for a message in its place, and give the first."""
        self._out.popleft()
        self._out_bytes -= len(block.data)
        pieces = [*pieces_of(block, self._room)]
        self._out.extendleft(reversed(pieces))
        self._out_bytes += sum(len(piece.data) for piece in pieces)
        return pieces[0]

    def ack(self, number: int) -> None:
        """The hub has every event up to this number; a number that was never sent means the last that was."""
        self.acked = max(self.acked, min(number, self.next_number - 1))
        for blocks in (self._sent, self._out):
            while blocks and blocks[0].last <= self.acked:
                size = len(blocks.popleft().data)
                if blocks is self._sent:
                    self._sent_bytes -= size
                else:
                    self._out_bytes -= size

    # -- numbers -------------------------------------------------------------------------------------------------------

    @property
    def numbered(self) -> list[Block]:
        """What has numbers and is not acknowledged, in order."""
        return [*self._sent, *self._out]

    @property
    def bytes(self) -> int:
        """How many bytes of events are held."""
        return self.waiting_bytes + self._out_bytes + self._sent_bytes

    def can_send(self, *, number: bool = True) -> bool:
        """Whether `frames` has something to send as soon as the hub's limits allow a further message."""
        return bool(self._out or (number and self.waiting)) and self._sent_bytes < self._window

    @property
    def has_room(self) -> bool:
        """Whether more of what is recorded may be put in."""
        return self._out_bytes + self._sent_bytes < self._window

    @property
    def idle(self) -> bool:
        """Whether nothing is held."""
        return not (self.waiting or self._out or self._sent)


def pieces_of(block: Block, room: int) -> list[Block]:
    """The block in pieces of at most so many bytes each, with the same numbers. An event that is longer is shortened, and says so."""
    pieces: list[Block] = []
    for number, raw in enumerate(
        msgspec.json.decode(b"[" + block.data + b"]", type=list[msgspec.Raw]), block.number
    ):
        data = fitted(bytes(raw), room)
        if pieces and len(pieces[-1].data) + 1 + len(data) <= room:
            pieces[-1] = Block(pieces[-1].data + b"," + data, pieces[-1].count + 1, pieces[-1].number)
        else:
            pieces.append(Block(data, 1, number))
    return pieces


@dataclass(frozen=True)
class Welcomed:
    """The hub has greeted this producer.

    Attributes:
        records: whether the hub records what it takes.
        forgot: whether it does not know of events that it had acknowledged, and has no record that would.
    """

    records: bool
    forgot: bool


@dataclass(frozen=True)
class Wanted:
    """The observers are to have this filter from now on."""

    filter: EventFilter


@dataclass(frozen=True)
class Handed:
    """The hub has events of another producer, whose record is handed over."""

    ack: Ack


@dataclass(frozen=True)
class Answer:
    """Send this frame."""

    frame: Pong


@dataclass(frozen=True)
class NotTaken:
    """The hub did not take something, for the reason in the message.

    Attributes:
        source: of the producer whose record was handed over, if it was that.
    """

    message: str
    source: str | None = None


Action = Welcomed | Wanted | Handed | Answer | NotTaken | Cancel


class Publishing:
    """One producer and its hub, over any number of connections.

    Args:
        source, host: of `Hello`.
        epoch: of `Hello`.
        clock: a monotonic clock in seconds.
        window: see `Outbox`.

    Attributes:
        outbox: the producer's events.
        welcomed: whether the hub has greeted this producer on the connection that is open.
        heartbeat_s: the hub's heartbeat, in seconds.
        limits: the hub's.
        wanted: the filter of the producer's observers.
    """

    def __init__(
        self, source: str, host: str, epoch: str, *, clock: Callable[[], float], window: int = WINDOW_BYTES
    ) -> None:
        self.outbox = Outbox(window)
        self.welcomed = False
        self.heartbeat_s = 20.0
        self.limits = Limits()
        self.wanted = LIFECYCLE
        self._source = source
        self._host = host
        self._epoch = epoch
        self._clock = clock
        self._interest: tuple[EventFilter, ...] = ()
        self._version = -1
        self._expires_at = math.inf
        self._shut = False  # tokens are not wanted now, whoever watches

    def hello(self, token: str | None, time: float) -> Hello:
        """The first frame of a connection."""
        return Hello(
            token,
            "rollcast",
            max_message=MOST_RECEIVED,
            role="producer",
            features=list(FEATURES),
            source=self._source,
            host=self._host,
            epoch=self._epoch,
            time=time,
        )

    def lost(self) -> Wanted | None:
        """The connection is lost: nobody watches until the next one tells who does."""
        self.welcomed = False
        self._interest, self._version, self._expires_at = (), -1, math.inf
        self.outbox.lost()
        return self._narrowed()

    def shut(self, *, shut: bool) -> Wanted | None:
        """Make no tokens while the hub is behind, since they would be late; a snapshot of each watched chain follows."""
        self._shut = shut
        return self._narrowed()

    def tick(self) -> Wanted | None:
        """What is due now: an interest that was not renewed has expired."""
        if self._clock() >= self._expires_at:
            self._interest, self._expires_at = (), math.inf
        return self._narrowed()

    @property
    def wait_s(self) -> float:
        """Seconds until `tick` may return something; perhaps infinite."""
        return max(0.0, self._expires_at - self._clock())

    def receive(self, message: str | bytes) -> list[Action]:
        """Take a message. A frame that only later hubs know is passed over.

        Raises:
            DecodeError: it is not a frame.
            NoHubError: what answers is not a hub that takes producers.
        """
        try:
            frame = decode_server_frame(message)
        except DecodeError:
            if is_of_later_server(message):
                return []
            raise
        return self._receive(frame)

    def _receive(self, frame: ServerFrame) -> list[Action]:
        match frame:
            case Welcome():
                return self._welcome(frame)
            case Ack() if frame.source:
                return [Handed(frame)]
            case Ack():
                self.outbox.ack(frame.seq)
            case Interest():
                return self._interested(frame)
            case Ping():
                return [Answer(Pong())]
            case Cancel():
                return [frame]
            case ErrorFrame() if (
                frame.code < FIRST_CLOSE_CODE
            ):  # the others come with a close that says the same
                return [NotTaken(printable_line(frame.message), frame.id)]
        return []

    def _welcome(self, frame: Welcome) -> list[Action]:
        if "hub" not in frame.features:
            raise NoHubError("it takes nothing from producers; `rollcast hub` starts a server that does")
        if "publish" not in frame.scopes:
            raise NoHubError("the token does not let a producer publish; give one with the scope `publish`")
        records, known, outbox = "record" in frame.features, frame.acked or 0, self.outbox
        forgot = known < outbox.acked and not records
        outbox.ack(known)
        outbox.connected(frame.limits, self._clock)
        self.welcomed, self.heartbeat_s, self.limits = True, frame.heartbeat_s, frame.limits
        return [Welcomed(records, forgot)]

    def _interested(self, frame: Interest) -> list[Action]:
        if frame.version < self._version:
            return []  # it was overtaken
        try:
            self._interest = tuple(each.filter() for each in frame.filters)
        except FilterError as error:  # of a type that only later hubs know: its tokens are not wanted here
            return [NotTaken(str(error))]
        self._version, self._expires_at = frame.version, self._clock() + frame.expires_s
        narrowed = self._narrowed()
        return [] if narrowed is None else [narrowed]

    def _narrowed(self) -> Wanted | None:
        """The filter of the observers, if it has changed."""
        wanted = wanted_of(() if self._shut else self._interest)
        if wanted == self.wanted:
            return None
        self.wanted = wanted
        return Wanted(wanted)
