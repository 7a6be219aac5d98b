"""`rollcast.v1`: its frames, its close codes, and the server's side of a session as a state machine without I/O.

    message ──receive──▶ Session ──▶ actions      (send this frame, subscribe, cancel, close)
    time    ───tick────▶

One WebSocket text message is one frame, a JSON object tagged by `type`. `schema/frames.schema.json` describes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Literal, get_args

import msgspec

from rollcast.errors import DecodeError, FilterError
from rollcast.records import EventFilter, StreamEvent
from rollcast.records.codec import decode_unchecked, one_line_json
from rollcast.records.jsonable import JSON_ERRORS
from rollcast.serve.access import Door, Grant, refusal
from rollcast.serve.settings import SMALLEST_MESSAGE, Limits, Scope
from rollcast.text import printable_line

__all__ = [
    "FEATURES",
    "FRAME_BYTES",
    "SUBPROTOCOL",
    "VERSION",
    "Ack",
    "Action",
    "Batch",
    "Cancel",
    "CancelRun",
    "ChangeSpeed",
    "ClientFrame",
    "Close",
    "CloseCode",
    "CloseSubscription",
    "Done",
    "ErrorCode",
    "ErrorFrame",
    "FilterFrame",
    "Greet",
    "Hello",
    "Interest",
    "LostRun",
    "OpenSubscription",
    "Ping",
    "Pong",
    "Publish",
    "Query",
    "Rate",
    "Rows",
    "RunInfo",
    "RunQuery",
    "Seek",
    "SeekReplay",
    "Send",
    "ServerFrame",
    "Session",
    "Speed",
    "Stop",
    "StopQuery",
    "Subscribe",
    "Subscribed",
    "TakeAnswer",
    "TakeEvents",
    "Unsubscribe",
    "Update",
    "Welcome",
    "batch_frame",
    "decode_client_frame",
    "decode_server_frame",
    "encode_frame",
    "is_of_later_server",
    "rows_frame",
]

SUBPROTOCOL = "rollcast.v1"
VERSION = 1
FEATURES = (
    "parts",
    "queries",
    "replay",
    "replay_at",
)  # what a side may support beyond 0.1; `record`, `records`: there is one, or a folder of them


class CloseCode(IntEnum):
    """Why the server closes. 4000-4499: reconnect; 4500-4999: do not."""

    SHUTTING_DOWN = 4001
    TOKEN_EXPIRED = 4003
    TOO_SLOW = 4008
    SOURCE_IN_USE = 4009
    NO_PONG = 4012
    BAD_TOKEN = 4500
    BAD_FRAME = 4501
    NO_HELLO = 4502
    FORBIDDEN = 4503
    LIMIT = 4504
    FORBIDDEN_ORIGIN = 4507
    VERSION = 4510
    FAILED = 4511


class ErrorCode(IntEnum):
    """Codes of an `error` frame after which the session continues. Before a close, the code is the close code."""

    BAD_REQUEST = 400
    FORBIDDEN = 403
    NOT_FOUND = 404
    CONFLICT = 409
    TOO_MANY = 429
    UNAVAILABLE = 503


# -- frames ------------------------------------------------------------------------------------------------------------


# A client's words are repeated in every batch or stay in the server's memory, so they are bounded.
LONGEST_ID = 128
LONGEST_SHOWN = 100  # characters of a client's message in an answer
LONGEST_AFTER = 8192  # characters of the place from which a query goes on
QUERIES = ("runs", "chains", "chain", "steps", "sources")
Id = Annotated[str, msgspec.Meta(max_length=LONGEST_ID)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
LongName = Annotated[str, msgspec.Meta(max_length=256)]
Names = Annotated[list[Annotated[str, msgspec.Meta(max_length=256)]], msgspec.Meta(max_length=1024)]


class FilterFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which events: those whose run, chain, group, type and source are all among the named ones. None: all."""

    runs: Names | None = None
    chains: Names | None = None
    groups: Names | None = None
    types: Names | None = None
    sources: Names | None = None

    def filter(self) -> EventFilter:
        """The `EventFilter` that this describes.

        Raises:
            FilterError: a type does not exist.
        """
        return EventFilter(self.runs, self.chains, self.groups, self.types, sources=self.sources)


class Hello(msgspec.Struct, frozen=True, tag="hello", omit_defaults=True):
    """The client's first frame. `client`: its name; `max_message`: the size of the largest message that it takes, in bytes.

    `role` is `viewer`, `page` or `producer`, each with its own limits; an unknown role has a viewer's limits. `features` names
    what the client supports beyond the first version, such as `parts`.

    A producer also says who it is: its `source`, which no other process of the fleet has; the `host` that it runs on; its `epoch`,
    which is drawn when the process starts, so that numbers of `publish` begin anew with each; and the `time` on its clock, in
    seconds since the epoch.
    """

    token: str | None = None
    client: str = ""
    version: int = VERSION
    max_message: Annotated[int, msgspec.Meta(ge=SMALLEST_MESSAGE)] | None = None
    role: Name = "viewer"
    features: Annotated[list[Name], msgspec.Meta(max_length=64)] = []
    source: LongName = ""
    host: LongName = ""
    epoch: Name = ""
    time: float | None = None

    def __repr__(self) -> str:
        return (
            f"Hello(client={self.client!r}, version={self.version!r}, max_message={self.max_message!r}, "
            f"role={self.role!r}, features={self.features!r}, source={self.source!r}, epoch={self.epoch!r})"
        )


TimesAsFast = Annotated[float, msgspec.Meta(ge=0, le=1e6)] | Literal["max"]


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe", omit_defaults=True):
    """Start watching. The client chooses `id`; `since` is `live`, `start` or a cursor.

    With a `speed`, the record is replayed from there, so many times as fast as it was; 0 waits for `speed` to change. It means
    nothing for `live`, unless there is a `time`: in seconds since the epoch, where the replay begins in place of `since`.

    With `snapshots`, what begins in the middle of a record begins with a snapshot of each chain that is open there: a replay, and
    `live` on a server of records; and so does each `update` of its filter.

    A server of a folder of records gives a subscription the events of one record: of the one that has the run `of_run`, or else
    the first run of the filter.
    """

    id: Id
    filter: FilterFrame = FilterFrame()
    since: str = "live"
    speed: TimesAsFast | None = None
    time: float | None = None
    snapshots: bool = False
    of_run: LongName | None = None


class Update(msgspec.Struct, frozen=True, tag="update"):
    """Change a subscription's filter; chains that come into view start with snapshots."""

    id: Id
    filter: FilterFrame = FilterFrame()


class Unsubscribe(msgspec.Struct, frozen=True, tag="unsubscribe"):
    """Stop watching."""

    id: Id


class Seek(msgspec.Struct, frozen=True, tag="seek", omit_defaults=True):
    """Go on with a subscription at another place of the record: at a cursor, or at a time in seconds since the epoch.

    The answer is `subscribed`. Chains that are open at that place begin in the middle, or with `snapshots` each with one.
    """

    id: Id
    cursor: str | None = None
    time: float | None = None
    snapshots: bool = False


class Speed(msgspec.Struct, frozen=True, tag="speed"):
    """Go on with a replay at another speed; 0 pauses it. The answer is `done`."""

    id: Id
    speed: TimesAsFast


class Cancel(msgspec.Struct, frozen=True, tag="cancel", omit_defaults=True):
    """Cancel a run, one chain of it, or a group's chains; this needs the `control` scope. The answer has the same `id`.

    Chains that have not begun then do not begin, as far as the run has announced them.
    """

    run_id: str
    chain_id: str | None = None
    id: Id | None = None
    group_id: str | None = None


Scalar = str | int | float | bool | None
Values = Scalar | Annotated[list[Scalar], msgspec.Meta(max_length=1024)]


class Query(msgspec.Struct, frozen=True, tag="query", omit_defaults=True, kw_only=True):
    """Ask for rows. The client chooses `id`, under which `rows` and then `done` come, or `error`.

    Attributes:
        what: `runs`: the runs, the newest first. `chains`: chains, those that are open included. `chain`: the events of one
            chain. `steps`: training steps and evaluations. `sources`: the producers of a hub.
        run: only of this run; `chain` without it: of the last run that has such a chain. On a server of a folder of records, of
            the record that has this run: `runs` without it gives a row for each record, and the others need it.
        chain: which one, for `chain`.
        filter: for `chains`: by field of a row, the value that it has to have there, or several of which one is enough.
        sort: for `chains`: the field by which rows are sorted; with `-` before it, the highest first.
        after: `next` of an earlier answer, to go on from there.
        limit: how many rows, or events of the chain, at most; the server's limits apply too.
        watch: for `chains`: the rows that change afterwards come as well, until `stop`.
        recorded: for `chain`: its events as the record has them, although the chain is open and has a snapshot.
    """

    id: Id
    what: Name
    run: LongName | None = None
    chain: LongName | None = None
    filter: Annotated[dict[Name, Values], msgspec.Meta(max_length=32)] = {}
    sort: Name | None = None
    after: Annotated[str, msgspec.Meta(max_length=LONGEST_AFTER)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    watch: bool = False
    recorded: bool = False


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Abandon a query. The answer is `done`, after which nothing more of it comes."""

    id: Id


class Publish(msgspec.Struct, frozen=True, tag="publish", omit_defaults=True):
    """Events of a producer, in order, each a JSON object as in docs/events.md. The answer is `ack`, which may cover several of these.

    Attributes:
        seq: the number of the first event. A producer numbers what it publishes from 1, by one for each event, for as long as its
            epoch lasts; it sends an event again under its number until that is acknowledged.
        events: the events, not read yet.
        source, epoch: of the producer whose events these are, if it is another one that has ended: its record is handed over.
            Empty: the sender's own.
        last: nothing more comes of that other producer.
    """

    seq: Annotated[int, msgspec.Meta(ge=1)]
    events: list[msgspec.Raw]
    source: LongName = ""
    epoch: Name = ""
    last: bool = False


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """A question whether the other side is there. Either side may send it."""


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to a ping."""


class RunInfo(msgspec.Struct, frozen=True):
    """A run that the server knows. `chains`: how many it has; `status`: `running`, or the status in its `run_end`."""

    run_id: str
    parent_run_id: str | None
    status: Literal["running", "completed", "cancelled", "failed"]
    chains: int


class Welcome(msgspec.Struct, frozen=True, tag="welcome", omit_defaults=True):
    """The answer to `hello`. `limits` are those of the client's role.

    `runs` has as many as fit in a message, preferring open runs, then the latest; `more_runs`: how many others are known.
    `features` names what the server supports beyond the first version, `record` if what it serves is recorded, and `records` if it is a
    folder of records, and `hub` if it takes producers.

    `acked`: for a producer, the number of the last of its events that the hub has; 0: it has none of this epoch.
    """

    version: int
    runs: list[RunInfo]
    heartbeat_s: float
    limits: Limits
    scopes: list[Scope]
    features: list[str] = []
    more_runs: int = 0
    acked: int | None = None


class Ack(msgspec.Struct, frozen=True, tag="ack", omit_defaults=True):
    """The hub has every event up to the number `seq`, in its record if it has one, and the producer may forget them.

    `source` and `epoch` are those of the `publish`, if it had them.
    """

    seq: Annotated[int, msgspec.Meta(ge=0)]
    source: str = ""
    epoch: str = ""


class Interest(msgspec.Struct, frozen=True, tag="interest"):
    """Whose tokens somebody watches at the hub. Everything but `llm_generation_chunk` is published in any case.

    Attributes:
        version: of the interest, one more each time that it changes; it is renewed under the same version.
        filters: chunks are wanted of the chains that one of these lets pass. A chain that comes into view is published with a
            `chain_snapshot` first. None at all: nobody watches.
        expires_s: after this many seconds without a renewal nobody watches.
    """

    version: Annotated[int, msgspec.Meta(ge=0)]
    filters: list[FilterFrame]
    expires_s: float


class LostRun(msgspec.Struct, frozen=True):
    """A run with events that the client's filter wants, that it missed, and that the server no longer has.

    Attributes:
        run_id, source: the run and its source.
        from_seq: the `seq` of the first event after the cursor; None: the run began earlier, so the client knows how far it was.
        to_seq: the `seq` of the last event that will not come.
        status: the status in its `run_end` if that is among the missing events, otherwise `running`.
    """

    run_id: str
    source: str
    from_seq: int | None
    to_seq: int
    status: str


class Subscribed(msgspec.Struct, frozen=True, tag="subscribed", omit_defaults=True):
    """The answer to `subscribe` and `update`.

    `recovered` is false if what `since` asked for is gone; snapshots of the open chains come instead. `cursor` is None if
    snapshots come first: their batch has the first cursor to come back to.

    If `recovered` is false, `lost` has the runs with missing events, the latest 64, and `lost_more` counts further ones. None:
    the server does not know, such as one without a history or one of 0.1. `began_anew`: the cursor is another server's, and
    this one does not know what came before it began.
    """

    id: str
    recovered: bool
    cursor: str | None
    lost: list[LostRun] | None = None
    lost_more: int = 0
    began_anew: bool = False


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Events of one subscription, in order. `cursor` is the place after them, whatever the filter left out.

    If the client's `features` has `parts`, the snapshots that a subscription begins with may come in parts: `part` 1 comes first,
    and the part whose `part` equals its `parts` completes the batch. Until then `parts` is the server's estimate, which may
    change. A client that is disconnected before that continues from the cursor that it had.
    """

    id: str
    cursor: str
    events: list[StreamEvent]
    part: Annotated[int, msgspec.Meta(ge=1)] = 1
    parts: Annotated[int, msgspec.Meta(ge=1)] = 1


class _RawBatch(Batch, frozen=True, tag="batch"):
    """A batch whose events are not read yet."""

    events: list[msgspec.Raw]  # type: ignore[assignment]  # read one by one


class Rows(msgspec.Struct, frozen=True, tag="rows", omit_defaults=True):
    """Some rows of a query's answer, in order; for `chain` they are events. More may come, until `done`.

    Attributes:
        rows: each of them a JSON object.
        total: how many rows there are in all, on every page; None: that is not counted.
        next: the `after` of a query that goes on behind these rows; None: more rows come, or there are no more.
        changed: whether these rows have changed since they came, or are new: `watch` asked for that.
        missing: with `watch`, which has no `done`: what the answer lacks so far, a sentence each.
    """

    id: str
    rows: list[dict[str, Any]]
    total: int | None = None
    next: str | None = None
    changed: bool = False
    missing: list[str] = []


class Done(msgspec.Struct, frozen=True, tag="done", omit_defaults=True):
    """The request was done.

    Attributes:
        id: of the request.
        run_id, chain_id, group_id: what was cancelled.
        chains: after `cancel` of a run or a group: its open chains, which are told to end; as many as fit in 8 KiB.
        ending, not_begun, over: after `cancel` of a run or a group: how many of its open chains are told to end, how many had
            not begun and will not, how many were over.
        cursor: after `chain`: the place in the live stream, or in the record, behind the events that came.
        missing: after a query: what its answer lacks, a sentence each.
    """

    id: str | None = None
    run_id: str | None = None
    chain_id: str | None = None
    cursor: str | None = None
    missing: list[str] = []
    group_id: str | None = None
    chains: list[str] = []
    ending: int = 0
    not_begun: int = 0
    over: int = 0


class ErrorFrame(msgspec.Struct, frozen=True, tag="error", omit_defaults=True):
    """The request was not done; with a code from 4000 on, the connection is then closed with the same code."""

    code: int
    message: str
    id: str | None = None


ViewerFrame = Hello | Subscribe | Update | Unsubscribe | Seek | Speed | Cancel | Query | Stop | Ping | Pong
ProducerFrame = Publish | Done | ErrorFrame  # the last two answer a hub's `cancel`
ClientFrame = ViewerFrame | ProducerFrame
ServerFrame = Welcome | Subscribed | Batch | Rows | Done | ErrorFrame | Ping | Pong | Ack | Interest | Cancel

_encoder = msgspec.json.Encoder()
_client_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_server_decoder: msgspec.json.Decoder[ServerFrame] = msgspec.json.Decoder(ServerFrame)

_raw_batch_decoder: msgspec.json.Decoder[_RawBatch] = msgspec.json.Decoder(_RawBatch)


def encode_frame(frame: ClientFrame | ServerFrame) -> bytes:
    """The frame as JSON, on one line."""
    return one_line_json(_encoder.encode(frame))


FRAME_BYTES = 1024  # the most that a `batch` frame adds to its events


def batch_frame(id: str, cursor: str, events: bytes, part: int = 1, parts: int = 1) -> bytes:
    """A `batch` frame around events that are already JSON, separated by commas."""
    name = one_line_json(_encoder.encode(id))
    numbers = b"" if parts == 1 else b',"part":%d,"parts":%d' % (part, parts)
    return b'{"type":"batch","id":%b,"cursor":"%b","events":[%b]%b}' % (
        name,
        cursor.encode(),
        events,
        numbers,
    )


def rows_frame(
    id: str,
    rows: bytes,
    total: int | None = None,
    next: str | None = None,
    *,
    changed: bool = False,
    missing: Sequence[str] = (),
) -> bytes:
    """A `rows` frame around rows that are already JSON, separated by commas."""
    rest = _encoder.encode(
        Rows(id, [], total, next, changed, list(missing))
    )  # {"type":"rows","id":…,"rows":[]…
    head, tail = rest.split(b'"rows":[]', 1)
    return one_line_json(head) + b'"rows":[' + rows + b"]" + tail


def decode_client_frame(message: str | bytes) -> ClientFrame:
    """Decode a message from a client.

    Raises:
        DecodeError: it is not a frame.
    """
    frame: ClientFrame = _decoded(_client_decoder, message)
    return frame


def decode_server_frame(message: str | bytes) -> ServerFrame:
    """Decode a message from a server.

    Raises:
        DecodeError: it is not a frame.
    """
    try:
        frame: ServerFrame = _decoded(_server_decoder, message)
    except DecodeError:
        return _foreign_batch(message)
    return frame


def _foreign_batch(message: str | bytes) -> Batch:
    """A batch with events of a later version: of unknown types, or with unknown fields."""
    raw = _decoded(_raw_batch_decoder, message)
    given = {name: getattr(raw, name) for name in Batch.__struct_fields__}
    return Batch(**given | {"events": [decode_unchecked(bytes(event)) for event in raw.events]})


def _decoded(decoder: msgspec.json.Decoder[Any], message: str | bytes) -> Any:
    try:
        return decoder.decode(message)
    except JSON_ERRORS as error:
        raise DecodeError(
            f"this is not a frame: {printable_line(str(error))}; expected a JSON object as in docs/server.md"
        ) from None


# -- actions -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    frame: ServerFrame


@dataclass(frozen=True)
class Close:
    """Send `error` with this code and message, then close with the same. The session is over."""

    code: CloseCode
    message: str


@dataclass(frozen=True)
class Greet:
    """Send `welcome`.

    Attributes:
        grant: what the client may do.
        max_message: the size of the largest message that it takes, if it said so.
        role: the role that it claims.
        features: the features that it supports.
        producer: its `hello`, without the token, if it is a producer and this is a hub.
    """

    grant: Grant
    max_message: int | None = None
    role: str = "viewer"
    features: tuple[str, ...] = ()
    producer: Hello | None = None


@dataclass(frozen=True)
class OpenSubscription:
    """Answer `subscribed`, and send what the filter wants from there on.

    Attributes:
        id: of the subscription.
        filter: which events.
        since: from where; None: change the open subscription.
        speed: of a replay of the record, from 0 upward, perhaps infinite; None: no replay.
        time: where a replay begins in place of `since`, in seconds since the epoch.
        snapshots: whether what begins in the middle of a record begins with snapshots.
        of_run: a run of the record that is meant, of a folder of records.
    """

    id: str
    filter: EventFilter
    since: str | None
    speed: float | None = None
    time: float | None = None
    snapshots: bool = False
    of_run: str | None = None


@dataclass(frozen=True)
class CloseSubscription:
    """End the subscription."""

    id: str


@dataclass(frozen=True)
class SeekReplay:
    """Go on with the subscription at this cursor, or at this time, and answer `subscribed` or `error`."""

    id: str
    cursor: str | None
    time: float | None
    snapshots: bool = False


@dataclass(frozen=True)
class ChangeSpeed:
    """Go on with the replay at this speed, from 0 upward, perhaps infinite; answer `done` or `error`."""

    id: str
    speed: float


@dataclass(frozen=True)
class CancelRun:
    """Cancel, and answer `done` or `error`."""

    run_id: str
    chain_id: str | None
    id: str | None
    group_id: str | None = None


@dataclass(frozen=True)
class RunQuery:
    """Answer the query, and call `Session.finished` when `done` or `error` is sent.

    Attributes:
        query: what is asked.
        limit: how many rows at most.
    """

    query: Query
    limit: int


@dataclass(frozen=True)
class StopQuery:
    """Send nothing more of this query, and answer `done`."""

    id: str


@dataclass(frozen=True)
class TakeEvents:
    """Take a producer's events, and acknowledge them when they are safe."""

    frame: Publish


@dataclass(frozen=True)
class TakeAnswer:
    """Take a producer's answer to a `cancel`."""

    frame: Done | ErrorFrame


Action = (
    Send
    | Close
    | Greet
    | OpenSubscription
    | CloseSubscription
    | SeekReplay
    | ChangeSpeed
    | CancelRun
    | RunQuery
    | StopQuery
    | TakeEvents
    | TakeAnswer
)
Authorize = Callable[[str | None], Grant | Literal["wrong", "expired"]]


class Rate:
    """A rate limit, with twice as many in a burst.

    Args:
        per_s: how many per second.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._clock = clock
        self._left = 2.0 * per_s
        self._at = clock()

    def spend(self) -> bool:
        """Use one; False if none is left."""
        now = self._clock()
        self._left = min(2.0 * self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Session:
    """One client of `rollcast.v1`, as the server sees it.

    Args:
        authorize: what a token grants.
        limits: the client's limits before its `hello`; after that its role's limits apply.
        hello_s, heartbeat_s: see `ServerSettings`.
        clock: a monotonic clock in seconds.
        epoch: gives the seconds since the epoch, for tokens that expire.
        token: the token of the request, for a `hello` without one.
        limits_of: gives the limits of a role with these scopes; None: all roles have `limits`.
        hub: whether it takes producers.

    Attributes:
        producer: the `hello` of a producer, without its token; None: the client is none, or this is no hub.
        grant: what the client may do; None before its `hello`.
        closed: whether the session is over.
        subscriptions: the ids of the open subscriptions.
        queries: the ids of the queries that are being answered.
    """

    def __init__(
        self,
        authorize: Authorize,
        limits: Limits,
        *,
        hello_s: float,
        heartbeat_s: float,
        clock: Callable[[], float],
        epoch: Callable[[], float],
        token: str | None = None,
        limits_of: Callable[[str, tuple[Scope, ...]], Limits] | None = None,
        hub: bool = False,
    ) -> None:
        self.producer: Hello | None = None
        self.grant: Grant | None = None
        self.closed = False
        self.subscriptions: set[str] = set()
        self.queries: set[str] = set()
        self._authorize = authorize
        self._limits = limits
        self._limits_of = limits_of
        self._hub = hub
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._epoch = epoch
        self._token = token
        self._hello_s = hello_s
        self._hello_by = clock() + hello_s
        self._hello_comes = False  # whether bytes came without a `hello`, so that it was given more time
        self._heard_at = clock()
        self._asked_at: float | None = None  # when a ping was sent that is unanswered
        self._rate = Rate(limits.messages_per_s, clock)

    # -- time --------------------------------------------------------------------------------------------------------

    @property
    def wait_s(self) -> float:
        """Seconds until `tick` may return an action, from 0 upward."""
        return max(0.0, self._due() - self._clock())

    def _due(self) -> float:
        if self.grant is None:
            return self._hello_by
        due = self._silent_at()
        if self.grant.expires_at is not None:
            due = min(due, self._clock() + self.grant.expires_at - self._epoch())
        return due

    def tick(self) -> list[Action]:
        """The actions that are due now."""
        if self.closed:
            return []
        now = self._clock()
        if self.grant is None:
            if now >= self._hello_by:
                return self._close(
                    CloseCode.NO_HELLO, "no hello came in time; send it first, right after connecting"
                )
            return []
        if self.grant.expires_at is not None and self._epoch() >= self.grant.expires_at:
            return self._close(CloseCode.TOKEN_EXPIRED, "the token has expired; reconnect with a new one")
        if now < self._silent_at():
            return []
        if self._asked_at is not None:
            return self._close(
                CloseCode.NO_PONG, "no message and no pong came within the heartbeat; reconnect"
            )
        self._asked_at = now
        return [Send(Ping())]

    def _silent_at(self) -> float:
        """When the client is asked whether it is there, or has not answered that: both count from when they were done.

        If this process stood still, the client is asked late, and has the same time to answer.
        """
        silent_at = self._heard_at + self._heartbeat_s
        return silent_at if self._asked_at is None else max(silent_at, self._asked_at) + self._heartbeat_s

    def moved(self) -> None:
        """Note that bytes are moving, so the client is not silent although no whole message came.

        Its `hello` has as long again then, but only once: this process may have stood still while it waited to be read.
        """
        self._heard_at = self._clock()
        if self.grant is None and not self._hello_comes:
            self._hello_comes, self._hello_by = True, self._heard_at + self._hello_s

    # -- messages ----------------------------------------------------------------------------------------------------

    def receive(self, message: str | bytes | bytearray | memoryview) -> list[Action]:
        """Take a message, text as `str` and binary as bytes; returns the actions."""
        # It is here, however long it waited until this process had time to read it.
        self._heard_at, self._asked_at = self._clock(), None
        actions = [] if self.grant is None else self.tick()
        if self.closed:
            return actions
        if not self._rate.spend():
            return self._close(
                CloseCode.LIMIT, f"more than {self._limits.messages_per_s} messages a second came; send fewer"
            )
        if not isinstance(message, str):
            return self._close(CloseCode.BAD_FRAME, "a binary message came; expected text")
        size = len(message) if message.isascii() else len(message.encode("utf-8", "replace"))
        if size > self._limits.message_bytes:
            return self._close(
                CloseCode.LIMIT, f"a message of {size} bytes came; at most {self._limits.message_bytes} may"
            )
        try:
            frame = decode_client_frame(message)
        except DecodeError as error:
            answer = _answer_to_unknown_type(message)
            if answer is None and self.grant is not None:
                answer = _answer_to_unknown_filter(message) or _answer_to_bad_query(message, error)
            return [answer] if answer is not None else self._close(CloseCode.BAD_FRAME, str(error))
        if self.grant is None:
            return self._hello(frame)
        return self._handle(frame, self.grant)

    def _hello(self, frame: ClientFrame) -> list[Action]:
        if isinstance(frame, Ping):
            return [Send(Pong())]
        if isinstance(frame, Pong):
            return []
        if not isinstance(frame, Hello):
            return self._close(CloseCode.NO_HELLO, "another frame came before hello; send that first")
        if frame.version != VERSION:
            return self._close(
                CloseCode.VERSION, f"hello asks for version {frame.version}; this server speaks {VERSION}"
            )
        grant = self._authorize(self._token if frame.token is None else frame.token)
        if grant == "wrong":
            return self._close(CloseCode.BAD_TOKEN, "the token is missing or wrong")
        if grant == "expired":
            return self._close(CloseCode.TOKEN_EXPIRED, "the token has expired; reconnect with a new one")
        if self._hub and frame.role == "producer":
            if refused := refusal(grant, Door.PUBLISH):
                return self._close(CloseCode.FORBIDDEN, refused)
            if wrong := _wrong_in_producer(frame):
                return self._close(CloseCode.BAD_FRAME, wrong)
            self.producer = msgspec.structs.replace(frame, token=None)
        self.grant = grant
        if self._limits_of is not None:
            self._limits = self._limits_of(frame.role, grant.scopes)
            self._rate = Rate(self._limits.messages_per_s, self._clock)
        return [Greet(grant, frame.max_message, frame.role, tuple(frame.features), self.producer)]

    def _of_producer(self, frame: ClientFrame) -> list[Action]:
        """The actions for a frame that only producers send, or that they do not send."""
        match frame:
            case Publish():
                wrong = _wrong_in_publish(frame)
                return (
                    [TakeEvents(frame)] if wrong is None else [Send(ErrorFrame(ErrorCode.BAD_REQUEST, wrong))]
                )
            case Done() | ErrorFrame():
                return [TakeAnswer(frame)]
            case _:
                message = "a producer publishes, and asks for nothing; connect once more as a viewer for that"
                return [Send(ErrorFrame(ErrorCode.FORBIDDEN, message, getattr(frame, "id", None)))]

    def _handle(self, frame: ClientFrame, grant: Grant) -> list[Action]:
        if self.producer is not None and not isinstance(frame, Ping | Pong | Hello):
            return self._of_producer(frame)
        match frame:
            case Ping():
                return [Send(Pong())]
            case Pong():
                return []
            case Hello():
                return self._close(CloseCode.BAD_FRAME, "a second hello came; it is said once")
            case Subscribe() | Update():
                if refused := refusal(grant, Door.SUBSCRIBE):
                    return [Send(ErrorFrame(ErrorCode.FORBIDDEN, refused, frame.id))]
                return self._subscribe(frame) if isinstance(frame, Subscribe) else self._update(frame)
            case Unsubscribe():
                if frame.id not in self.subscriptions:
                    return [_unknown(frame.id)]
                self.subscriptions.discard(frame.id)
                return [CloseSubscription(frame.id), Send(Done(frame.id))]
            case Seek() | Speed():
                if refused := refusal(grant, Door.SUBSCRIBE):
                    return [Send(ErrorFrame(ErrorCode.FORBIDDEN, refused, frame.id))]
                if frame.id not in self.subscriptions:
                    return [_unknown(frame.id)]
                return [
                    _seek(frame) if isinstance(frame, Seek) else ChangeSpeed(frame.id, _factor(frame.speed))
                ]
            case Cancel():
                if refused := refusal(grant, Door.CANCEL):
                    return [Send(ErrorFrame(ErrorCode.FORBIDDEN, refused, frame.id))]
                if frame.chain_id is not None and frame.group_id is not None:
                    message = "cancel names a chain and a group; name one of them"
                    return [Send(ErrorFrame(ErrorCode.BAD_REQUEST, message, frame.id))]
                return [CancelRun(frame.run_id, frame.chain_id, frame.id, frame.group_id)]
            case Query():
                if refused := refusal(grant, Door.QUERY):
                    return [Send(ErrorFrame(ErrorCode.FORBIDDEN, refused, frame.id))]
                return [self._query(frame)]
            case Stop():
                if frame.id not in self.queries:
                    message = f"there is no query {frame.id!r}; it may be complete"
                    return [Send(ErrorFrame(ErrorCode.NOT_FOUND, message, frame.id))]
                self.queries.discard(frame.id)
                return [StopQuery(frame.id), Send(Done(frame.id))]
            case Publish() | Done() | ErrorFrame():
                message = "this server takes nothing from producers; `rollcast hub` starts one that does"
                if self._hub:
                    message = "only a producer publishes; say so in hello: its role, its source and its epoch"
                return [Send(ErrorFrame(ErrorCode.BAD_REQUEST, message))]

    def finished(self, id: str) -> None:
        """Note that a query is answered."""
        self.queries.discard(id)

    def _query(self, frame: Query) -> Action:
        code, wrong = ErrorCode.BAD_REQUEST, _wrong_in_query(frame)
        if wrong is None and (frame.id in self.queries or frame.id in self.subscriptions):
            code, wrong = ErrorCode.CONFLICT, f"the id {frame.id!r} is in use; choose another id"
        if wrong is None and len(self.queries) >= self._limits.queries:
            code = ErrorCode.TOO_MANY
            wrong = f"{len(self.queries)} queries are running; there may be no more: wait for one, or stop it"
        if wrong is not None:
            return Send(ErrorFrame(code, wrong, frame.id))
        self.queries.add(frame.id)
        most = self._limits.rows
        return RunQuery(frame, most if frame.limit is None else min(frame.limit, most))

    def _subscribe(self, frame: Subscribe) -> list[Action]:
        if frame.id in self.queries:
            message = f"the id {frame.id!r} is that of a query; choose another id"
            return [Send(ErrorFrame(ErrorCode.CONFLICT, message, frame.id))]
        if frame.id in self.subscriptions:
            message = f"subscription {frame.id!r} is open already; update it, or choose another id"
            return [Send(ErrorFrame(ErrorCode.CONFLICT, message, frame.id))]
        if len(self.subscriptions) >= self._limits.subscriptions:
            return self._close(
                CloseCode.LIMIT, f"{len(self.subscriptions)} subscriptions are open; there may be no more"
            )
        wanted = _filter(frame)
        if isinstance(wanted, Send):
            return [wanted]
        if frame.time is not None and frame.speed is None:
            message = "subscribe has a time and no speed; a replay needs both"
            return [Send(ErrorFrame(ErrorCode.BAD_REQUEST, message, frame.id))]
        self.subscriptions.add(frame.id)
        of_run = frame.of_run or _first_run(frame)
        if frame.speed is None or (frame.since == "live" and frame.time is None):
            return [OpenSubscription(frame.id, wanted, frame.since, None, None, frame.snapshots, of_run)]
        speed = _factor(frame.speed)
        return [OpenSubscription(frame.id, wanted, frame.since, speed, frame.time, frame.snapshots, of_run)]

    def refused(self, id: str) -> None:
        """Note that a subscription could not be opened."""
        self.subscriptions.discard(id)

    def _update(self, frame: Update) -> list[Action]:
        if frame.id not in self.subscriptions:
            return [_unknown(frame.id)]
        wanted = _filter(frame)
        return [
            wanted
            if isinstance(wanted, Send)
            else OpenSubscription(frame.id, wanted, None, of_run=_first_run(frame))
        ]

    def _close(self, code: CloseCode, message: str) -> list[Action]:
        self.closed = True
        return [Close(code, message)]


def _filter(frame: Subscribe | Update) -> EventFilter | Send:
    try:
        return frame.filter.filter()
    except FilterError as error:
        return Send(ErrorFrame(ErrorCode.BAD_REQUEST, str(error), frame.id))


def _wrong_in_producer(hello: Hello) -> str | None:
    """What is wrong with a producer's `hello`, in a sentence; None if nothing is."""
    for name, value in (("source", hello.source), ("epoch", hello.epoch)):
        if not value.strip():
            return f"hello of a producer has no {name}; both its source and its epoch are needed"
        if not value.isprintable():
            shown = printable_line(value, LONGEST_SHOWN)
            return f"hello has the {name} {shown!r}; expected characters that can be printed"
    return None


def _wrong_in_publish(frame: Publish) -> str | None:
    """What is wrong with a `publish`, in a sentence; None if nothing is."""
    if bool(frame.source) != bool(frame.epoch):
        return "publish has only one of source and epoch; give both for the record of another producer"
    if frame.last and not frame.source:
        return "publish says that it is the last, and names no other producer; only a record that is handed over has a last"
    if not frame.events and not frame.last:
        return "publish has no events"
    return None


def _first_run(frame: Subscribe | Update) -> str | None:
    return frame.filter.runs[0] if frame.filter.runs else None


def _wrong_in_query(query: Query) -> str | None:
    """What is wrong with a query, in a sentence; None if nothing is, as far as can be told here."""
    what = query.what
    if what not in QUERIES:
        shown = printable_line(what, LONGEST_SHOWN)
        return f"a query cannot ask for {shown!r}; this server answers {', '.join(QUERIES)}"
    if what == "chain" and not query.chain:
        return "a query for `chain` needs the id of one; give chain"
    if what != "chain" and query.chain is not None:
        return f"a query for `{what}` takes no chain; ask for `chain`, or use the filter of `chains`"
    if what != "chain" and query.recorded:
        return f"a query for `{what}` takes no `recorded`; only `chain` does"
    if what != "chains" and (query.filter or query.sort is not None or query.watch):
        return f"a query for `{what}` takes no filter, sort or watch; only `chains` does"
    return None


def _factor(speed: float | Literal["max"]) -> float:
    return math.inf if speed == "max" else speed


def _seek(frame: Seek) -> Action:
    if (frame.cursor is None) == (frame.time is None):
        return Send(ErrorFrame(ErrorCode.BAD_REQUEST, "seek needs either a cursor or a time", frame.id))
    return SeekReplay(frame.id, frame.cursor, frame.time, frame.snapshots)


def _unknown(id: str) -> Send:
    return Send(ErrorFrame(ErrorCode.NOT_FOUND, f"there is no subscription {id!r}; subscribe first", id))


class _Tagged(msgspec.Struct):
    type: str
    id: Any = None


_tagged_decoder = msgspec.json.Decoder(_Tagged)
_CLIENT_TYPES = frozenset(str(kind.__struct_config__.tag) for kind in get_args(ClientFrame))
_SERVER_TYPES = frozenset(str(kind.__struct_config__.tag) for kind in get_args(ServerFrame))


def is_of_later_server(message: str | bytes) -> bool:
    """Whether it is a frame of a type that is not known here, and is called as types are. A client passes over it."""
    frame = _of_unknown_type(message, _SERVER_TYPES)
    return frame is not None and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", frame.type) is not None


def _of_unknown_type(message: str | bytes, known: frozenset[str]) -> _Tagged | None:
    """The frame, as far as it can be read, if a later version may have it."""
    try:
        frame = _tagged_decoder.decode(message)
    except JSON_ERRORS:
        return None
    return None if frame.type in known else frame


def _answer_to_unknown_type(message: str) -> Send | None:
    """What is said about a frame that a later version may have; None: it is no such frame."""
    frame = _of_unknown_type(message, _CLIENT_TYPES)
    if frame is None:
        return None
    shown = printable_line(frame.type, LONGEST_SHOWN)
    text = f"there is no frame of type '{shown}'; this server knows {', '.join(sorted(_CLIENT_TYPES))}"
    given = frame.id if isinstance(frame.id, str) and len(frame.id) <= LONGEST_ID else None
    return Send(ErrorFrame(ErrorCode.BAD_REQUEST, text, given))


class _Asked(msgspec.Struct):
    type: Literal["subscribe", "update"]
    id: Id
    filter: dict[str, Any]


_asked_decoder = msgspec.json.Decoder(_Asked)
_FILTER_FIELDS = frozenset(FilterFrame.__struct_fields__)


def _answer_to_unknown_filter(message: str) -> Send | None:
    """What is said about a filter that a later version may have; None: the frame is wrong in another way.

    What the server does not know cannot be left out: the client would see more than it asked for.
    """
    try:
        asked = _asked_decoder.decode(message)
        unknown = sorted(asked.filter.keys() - _FILTER_FIELDS)
        known = {name: value for name, value in asked.filter.items() if name in _FILTER_FIELDS}
        frame = msgspec.json.decode(message, type=dict[str, Any]) | {"filter": known}
        msgspec.convert(frame, Subscribe | Update)
    except JSON_ERRORS:
        return None
    if not unknown:
        return None
    shown = printable_line(unknown[0], LONGEST_SHOWN)
    text = f"a filter has no field '{shown}' here; this server knows {', '.join(sorted(_FILTER_FIELDS))}"
    return Send(ErrorFrame(ErrorCode.BAD_REQUEST, text, asked.id))


class _AskedRows(msgspec.Struct):
    type: Literal["query"]
    id: Id


_asked_rows_decoder = msgspec.json.Decoder(_AskedRows)


def _answer_to_bad_query(message: str, error: DecodeError) -> Send | None:
    """What is said about a query with a field of the wrong type; None: it is no query with an id."""
    try:
        asked = _asked_rows_decoder.decode(message)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return Send(ErrorFrame(ErrorCode.BAD_REQUEST, str(error), asked.id))
