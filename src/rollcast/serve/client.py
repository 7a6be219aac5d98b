"""The WebSocket client: yields a server's events live, over any number of connections.

`ClientSession` is the client's side of `rollcast.v1` as a state machine without I/O; `WebSocketStreamingClient` adds the
socket and the clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import (
    ConnectionClosed,
)

from rollcast.errors import DecodeError, InputError, RefusedError
from rollcast.records import EventFilter, GrammarChecker, StreamEvent
from rollcast.records.codec import checked_event
from rollcast.serve.asking import Asking, QueryRows
from rollcast.serve.continuity import Continuity
from rollcast.serve.dialing import MAX_MESSAGE, UNREACHABLE, Dialer, next_message, pause_s, refusal_in, why
from rollcast.serve.protocol import (
    FEATURES,
    Batch,
    Cancel,
    ClientFrame,
    Done,
    ErrorFrame,
    FilterFrame,
    Hello,
    Ping,
    Pong,
    Query,
    RunInfo,
    Seek,
    ServerFrame,
    Speed,
    Subscribe,
    Subscribed,
    Welcome,
    decode_server_frame,
    encode_frame,
    is_of_later_server,
)
from rollcast.serve.returning import Repetitions
from rollcast.text import printable_line

__all__ = ["ClientSession", "WebSocketStreamingClient"]

logger = logging.getLogger("rollcast.serve")

Token = str | Callable[[], str | None] | None
TimesAsFast = float | Literal["max"]

SUBSCRIPTION = "1"
MAX_PARTS = 8192  # in one batch
MAX_SPEED = 1e6  # times as fast; more is `max`
SILENCE = 3  # after so many heartbeats without a byte, the server counts as gone
FIRST_PAUSE_S = 0.1  # before reconnecting; it doubles each time, up to
LONGEST_PAUSE_S = 10.0
STEADY_S = 1.0  # after a connection that lasted so long, the pauses begin anew
ANSWER_S = 20.0  # how long a server may take to answer `cancel`, `seek` or `speed`
MAX_OPEN_RUNS = 4096  # how many open runs are remembered, since a filter may hide that they end


class Request:
    """A request to change a replay: another place, or another speed.

    Attributes:
        frame: the frame that is sent.
        done: whether the server has answered.
        refusal: the server's reason if it refused.
    """

    def __init__(self, frame: Seek | Speed) -> None:
        self.frame = frame
        self.done = False
        self.refusal: str | None = None


class ClientSession:
    """One subscription over any number of connections: the frames to send, and the events that are new.

    Args:
        filter: which events; a simple filter, not a union.
        since: `live`, `start`, or a cursor from an earlier session.
        check: whether payloads and grammar are checked.
        speed: of a replay of the record; None: no replay.

    Attributes:
        cursor: the place after the last event; None before the first batch.
        recovered: False if the server no longer had everything since `since` or the last cursor.
        runs: the runs that the server knew when the connection was made.
        heartbeat_s: the server's heartbeat, in seconds.
        moves: how often a `seek` moved it to another place.

    Raises:
        FilterError: the filter is a union.
    """

    def __init__(
        self,
        filter: EventFilter,
        since: str = "live",
        *,
        check: bool = True,
        speed: TimesAsFast | None = None,
    ) -> None:
        self.cursor: str | None = None
        self.recovered = True
        self.runs: list[RunInfo] = []
        self.heartbeat_s = 20.0
        self.moves = 0
        self._frame = FilterFrame(**filter.to_dict())
        self._filter = filter
        self._since = since
        self._speed = speed
        self._check = check
        self._subscribed = False  # on this connection
        self._request: Request | None = None  # the one that is not answered yet
        self._held: list[Batch] = []  # batches that came before a `seek` is answered
        self._begin(since)

    def _begin(self, since: str) -> None:
        """Forget everything that came before."""
        self._checker = GrammarChecker(late=True) if self._check and self._filter.types is None else None
        self._parts: list[StreamEvent] = []  # the events of a batch that is not complete yet
        self._parts_came = 0
        self._continuity = Continuity(self._filter, since, MAX_OPEN_RUNS)
        self._repetitions = Repetitions()
        self._last = self._continuity.last  # the same dict: seq of the last event of each open run

    def ask(self, request: Request) -> list[ClientFrame]:
        """Ask for a change of the replay, one at a time. Returns the frames to send now; the rest comes from `receive`."""
        self._request = request
        return [request.frame] if self._subscribed else []

    def withdraw(self, request: Request) -> None:
        """Stop waiting for the answer."""
        if self._request is request:
            self._request = None

    def receive_message(self, message: str | bytes) -> tuple[list[ClientFrame], list[StreamEvent]]:
        """As `receive`. A frame that only later servers know is passed over.

        Raises:
            DecodeError: it is not a frame.
        """
        try:
            frame = decode_server_frame(message)
        except DecodeError:
            if is_of_later_server(message):
                return [], []
            raise
        return self.receive(frame)

    def receive(self, frame: ServerFrame) -> tuple[list[ClientFrame], list[StreamEvent]]:
        """Take a frame. Returns the frames to answer with, and the new events.

        Raises:
            RefusedError: the server rejected a request.
            DecodeError, GrammarError: an event is wrong, or must not come there.
        """
        match frame:
            case Welcome():
                if self._speed is not None and "replay" not in frame.features:
                    raise RefusedError("the server is of an earlier version, which cannot replay a record")
                self._parts, self._parts_came = [], 0
                self._subscribed, self._held = False, []
                self.runs, self.heartbeat_s = frame.runs, frame.heartbeat_s
                self._continuity.welcomed(frame.runs)
                since = self.cursor or self._since
                return [Subscribe(SUBSCRIPTION, self._frame, since, self._speed)], []
            case Subscribed() | Batch() if frame.id != SUBSCRIPTION:
                return [], []  # nobody asked for it
            case Subscribed() if self._subscribed and self._asks(Seek):
                return [], self._moved(frame)
            case Batch() if self._subscribed and self._asks(Seek):
                self._held.append(frame)
                return [], []
            case Done() if frame.id == SUBSCRIPTION and self._asks(Speed):
                self._answered()
                return [], []
            case ErrorFrame() if frame.code < 1000 and self._subscribed and self._request is not None:
                self._answered(printable_line(frame.message))
                held, self._held = self._held, []
                return [], [event for batch in held for event in self.receive(batch)[1]]
            case Subscribed():
                self._subscribed = True
                self.recovered = frame.recovered
                if frame.recovered and self.cursor is not None:
                    self._repetitions.returned(self._last, self._continuity.has_ended)
                if frame.cursor is not None:
                    self.cursor = frame.cursor
                asked: list[ClientFrame] = [] if self._request is None else [self._request.frame]
                return asked, self._in_order(self._continuity.subscribed(frame))
            case Batch():
                whole = self._whole(frame)
                if whole is None:
                    return [], []
                for event in whole if self._check else ():
                    checked_event(event)
                events = self._in_order(self._continuity.arrived(self._repetitions.new(whole)))
                # Not earlier, since the caller gets nothing of a batch with a wrong event.
                self.cursor = frame.cursor
                return [], events
            case Ping():
                return [Pong()], []
            case ErrorFrame() if frame.code < 1000:  # others come with a close that says the same
                raise RefusedError(f"the server answers: {printable_line(frame.message)}")
            case _:
                return [], []

    def _asks(self, kind: type[Seek | Speed]) -> bool:
        return self._request is not None and isinstance(self._request.frame, kind)

    def _answered(self, refusal: str | None = None) -> None:
        """Settle the request; if it was granted, later connections start from there."""
        request, self._request = self._request, None
        assert request is not None
        request.done, request.refusal = True, refusal
        if refusal is None:
            self._speed = request.frame.speed if isinstance(request.frame, Speed) else self._speed or "max"

    def _moved(self, frame: Subscribed) -> list[StreamEvent]:
        """Continue at another place: what came before does not count any more, and may come again."""
        self._answered()
        self.moves += 1
        self._held = []
        self.recovered, self.cursor = frame.recovered, frame.cursor
        self._begin(frame.cursor or "start")
        self._continuity.welcomed(self.runs)
        return self._in_order(self._continuity.subscribed(frame))

    def _whole(self, batch: Batch) -> list[StreamEvent] | None:
        """All events of the batch; None if more parts are to come.

        Raises:
            DecodeError: a part is missing or comes twice, or there are too many.
        """
        if batch.parts == 1 and self._parts_came == 0:
            return batch.events
        if batch.part != self._parts_came + 1 or batch.part > batch.parts or batch.parts > MAX_PARTS:
            raise DecodeError(
                f"part {batch.part} of {batch.parts} of a batch came after part {self._parts_came}; expected the next one, "
                f"of at most {MAX_PARTS}"
            )
        self._parts += batch.events
        self._parts_came += 1
        if self._parts_came < batch.parts:
            return None
        whole, self._parts, self._parts_came = self._parts, [], 0
        return whole

    def _in_order(self, events: list[StreamEvent]) -> list[StreamEvent]:
        """Check the events against the grammar, and return them."""
        if self._checker is not None:
            for event in events:
                self._checker.feed(event)
        return events


class WebSocketStreamingClient:
    """Yields the events of a server live.

        async for event in WebSocketStreamingClient("ws://localhost:8765"):
            ...

    It reconnects a dropped connection, after a pause that grows and varies, and continues where it was: no event is missing
    and none comes twice. If the server no longer has events, `recovered` is False and a `gap` stands for them. The loop
    ends when `aclose` is called.

    As a context manager it connects at once, and raises if the server cannot be reached.

    Args:
        url: `ws://…` or `wss://…`. A user and a password in it are sent as HTTP basic authentication and are never shown.
        token: a token, or, for tokens that expire, a function that returns one for each connection.
        filter: which events; None: all.
        since: `live`: from now on, after snapshots of the open chains. `start`: from the oldest event that the server has.
            Or the `cursor` of an earlier client.
        speed: replay the record from `since` on, which is not `live`, so many times as fast as it was: a number from 0 (which
            waits for `set_speed`) to 1,000,000, or `max`: as fast as it is read. None: everything comes at once.
        check: whether payloads and grammar are checked.
        tls_ca: a PEM file with the authority of the server's certificate, or the certificate itself; None: the authorities
            that the system trusts.

    Attributes:
        url: the address without a user, a password and a query.
        reconnections: how often the connection was lost.

    Raises:
        InputError: the URL is not valid or has a token in it, the authority cannot be read, or a replay is not possible with this
            `speed` and `since`.
        FilterError: the filter is a union, which the protocol cannot express.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token = None,
        filter: EventFilter | None = None,
        since: str = "live",
        speed: TimesAsFast | None = None,
        check: bool = True,
        tls_ca: str | None = None,
    ) -> None:
        self._dialer = Dialer(url, tls_ca)
        if speed is not None:
            speed = _times_as_fast(speed)
            if since == "live":
                raise InputError(
                    f"speed is {speed}, and since is 'live', which cannot be replayed; give since='start' or a cursor"
                )
        self.url = self._dialer.url
        self.reconnections = 0
        self._token = token
        self._session = ClientSession(
            filter if filter is not None else EventFilter(), since, check=check, speed=speed
        )
        self._advancing = asyncio.Lock()  # so that one task at a time reads
        self._asking = asyncio.Lock()
        self._connection: ClientConnection | None = None
        self._connected_at = 0.0
        self._opening: asyncio.Task[ClientConnection] | None = None
        self._events: deque[StreamEvent] = deque()
        self._closed = asyncio.Event()
        self._failures = 0  # how many attempts in a row failed or did not last

    @property
    def cursor(self) -> str | None:
        """The place after the last event received, to use as `since` of a later client. Events that wait here are before it."""
        return self._session.cursor

    @property
    def recovered(self) -> bool:
        """False if the server no longer had everything that was asked for when the connection was last made."""
        return self._session.recovered

    @property
    def runs(self) -> list[RunInfo]:
        """The runs that the server knew when the connection was last made."""
        return self._session.runs

    async def connect(self) -> Self:
        """Connect, once.

        Raises:
            RefusedError: the server cannot be reached, or refuses this client.
        """
        if self._connection is None:
            try:
                self._connection = await self._open()
            except UNREACHABLE as error:
                raise RefusedError(f"{self.url} cannot be reached: {why(error)}") from error
        return self

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Yield the events.

        Raises:
            RefusedError: the server refuses this client, and reconnecting does not help.
            DecodeError, GrammarError: an event is wrong, or must not come there.
        """
        while True:
            while self._events:
                yield self._events.popleft()
            if self._closed.is_set():
                return
            async with self._advancing:
                if not self._events:  # a task that waits for an answer may have read some
                    await self._advance()

    async def aclose(self) -> None:
        """End the loop and the connection."""
        self._closed.set()
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            await self._connection.close()

    async def seek(self, cursor: str | None = None, *, time: float | None = None) -> None:
        """Continue at another place of the record, earlier or later. The next event is from there; events that waited to be read are dropped.

        It may be called inside `async for event in client` and from another task. A client without a `speed` replays from then
        on, as fast as it reads.

        Args:
            cursor: the place, from an earlier `client.cursor`.
            time: the place as a time, in seconds since the epoch like the events' `timestamp`. Give either it or `cursor`.

        Raises:
            InputError: neither or both are given.
            RefusedError: the server has no record, or no such place in it, or does not answer; the replay goes on where it was.
        """
        if (cursor is None) == (time is None):
            raise InputError("seek needs either a cursor or a time; give one of them")
        await self._ask(Seek(SUBSCRIPTION, cursor, None if time is None else float(time)))

    async def set_speed(self, speed: TimesAsFast) -> None:
        """Set the speed of a replay, as a multiple of the run's own; 0 pauses it. It may be called from another task.

        Raises:
            InputError: it is not a number from 0 to 1,000,000, nor `max`.
            RefusedError: it is not a replay, or the server does not answer.
        """
        await self._ask(Speed(SUBSCRIPTION, _times_as_fast(speed)))

    async def cancel(
        self, run_id: str, chain_id: str | None = None, *, group_id: str | None = None
    ) -> list[str]:
        """Cancel a run, one chain of it, or a group's open chains. This needs a token with the `control` scope.

        Returns:
            The open chains that are told to end, as many as fit in the answer; a server of 0.2 or before does not name those of
            a run.

        Raises:
            RefusedError: the token lacks the scope, there is no such run, chain or group, or the server cannot be reached.
        """
        try:
            async with asyncio.timeout(ANSWER_S), await self._open() as connection:
                await connection.send(encode_frame(Cancel(run_id, chain_id, group_id=group_id)), text=True)
                while True:
                    message = await connection.recv()
                    if is_of_later_server(message):
                        continue
                    frame = decode_server_frame(message)
                    if isinstance(frame, ErrorFrame):
                        raise RefusedError(f"{self.url} does not cancel: {printable_line(frame.message)}")
                    if isinstance(frame, Done):
                        return frame.chains or ([] if chain_id is None else [chain_id])
        except UNREACHABLE as error:
            raise RefusedError(f"{self.url} cannot be reached: {why(error)}") from error

    async def query(
        self,
        what: Literal["runs", "chains", "chain", "steps"],
        *,
        run: str | None = None,
        chain: str | None = None,
        filter: dict[str, Any] | None = None,
        sort: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        watch: bool = False,
    ) -> AsyncGenerator[QueryRows, None]:
        """Ask for rows, on a connection of its own: `async for rows in client.query("chains", sort="-reward")`.

        Args:
            what: `runs`, `chains`, `chain` (the events of one chain) or `steps` (of a training).
            run: only of this run; `chain` without it: of the last run that has such a chain.
            chain: which one, for `chain`.
            filter: for `chains`: by field of a row, the value that it has to have, or a list of them.
            sort: for `chains`: the field by which rows are sorted; with `-` before it, the highest first.
            after: `next` of an earlier answer, to go on behind it.
            limit: how many rows, or events of the chain, at most.
            watch: for `chains`: rows that change come as well, until the generator is closed.

        Raises:
            RefusedError: the server does not answer the query, or cannot be reached.
            DecodeError: what it answers cannot be read.
        """
        asked = Query(
            id=SUBSCRIPTION, what=what, run=run, chain=chain, filter=filter or {}, sort=sort, after=after, limit=limit, watch=watch
        )  # fmt: skip
        asking = Asking(asked)
        try:
            async with await self._open() as connection:
                while not asking.done:
                    message = await next_message(connection, SILENCE * asking.heartbeat_s)
                    answers, rows = asking.receive_message(message)
                    for frame in answers:
                        await connection.send(encode_frame(frame), text=True)
                    if rows is not None:
                        yield rows
        except ConnectionClosed as error:
            raise RefusedError(f"{self.url} closed the connection: {why(error)}") from error
        except UNREACHABLE as error:
            raise RefusedError(f"{self.url} cannot be reached: {why(error)}") from error

    async def _ask(self, frame: Seek | Speed) -> None:
        """Ask the server to change the replay, and wait for its answer, on as many connections as that takes.

        Raises:
            RefusedError: it refuses, or does not answer in time.
        """
        async with self._asking:
            if self._closed.is_set():
                raise RefusedError(f"the client of {self.url} is closed; make another one")
            request = Request(frame)
            try:
                async with asyncio.timeout(ANSWER_S):
                    frames = self._session.ask(request)
                    if self._connection is not None:
                        with suppress(ConnectionClosed):  # it is sent again on the next one
                            for each in frames:
                                await self._connection.send(encode_frame(each), text=True)
                    while not (request.done or self._closed.is_set()):
                        async with self._advancing:
                            if not request.done:
                                await self._advance()
            except TimeoutError:
                raise RefusedError(f"{self.url} did not answer within {ANSWER_S:.0f} s") from None
            finally:
                if not request.done:  # the server may or may not have got it: subscribe again at the cursor
                    self._session.withdraw(request)
                    if self._connection is not None:
                        self._connection.transport.abort()
            if request.refusal is not None or not request.done:
                why = request.refusal or "the client was closed"
                raise RefusedError(f"{self.url} does not change the replay: {why}")

    # -- one connection ----------------------------------------------------------------------------------------------

    async def _open(self) -> ClientConnection:
        """Open a connection and send `hello`; the answer is read later."""
        token = self._token() if callable(self._token) else self._token
        hello = Hello(token, "rollcast", max_message=MAX_MESSAGE, features=list(FEATURES))
        try:
            connection = await self._dialer.dial(hello)
        except ConnectionClosed as error:
            self._raise_if_final(error)
            raise
        self._connected_at = time.monotonic()
        return connection

    async def _advance(self) -> None:
        """Connect if there is no connection; otherwise read the next message."""
        if self._connection is None:
            await self._come_back()
            return
        try:
            await self._read(self._connection)
        except (ConnectionClosed, TimeoutError) as error:
            await self._dropped(error)

    async def _read(self, connection: ClientConnection) -> None:
        """Read the next message: queue its events, and send the answers."""
        silence_s = SILENCE * self._session.heartbeat_s
        message = await next_message(connection, silence_s)
        async with asyncio.timeout(silence_s):
            moves = self._session.moves
            answers, events = self._session.receive_message(message)
            if self._session.moves != moves:
                self._events.clear()  # they are from the place before
            self._events.extend(events)
            for frame in answers:
                await connection.send(encode_frame(frame), text=True)

    async def _dropped(self, error: Exception) -> None:
        """Prepare to reconnect after the connection was lost; raise if reconnecting cannot help."""
        connection, self._connection = self._connection, None
        if self._closed.is_set():
            return
        if connection is not None and isinstance(error, TimeoutError):
            connection.transport.abort()
        self._raise_if_final(error)
        if time.monotonic() - self._connected_at >= STEADY_S:
            self._failures = 0
        self.reconnections += 1
        logger.info("the connection to %s has ended (%s); reconnecting", self.url, why(error))

    def _raise_if_final(self, error: Exception) -> None:
        refusal = refusal_in(error, new_token=callable(self._token))
        if refusal is not None:
            self._closed.set()
            raise RefusedError(f"{self.url} refuses: {refusal}") from None

    async def _come_back(self) -> None:
        """Try to connect; after a failure, pause first."""
        if self._failures:
            try:
                async with asyncio.timeout(pause_s(self._failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)):
                    await self._closed.wait()
                return
            except TimeoutError:
                pass
        self._failures += 1
        self._opening = asyncio.create_task(self._open(), name="rollcast-client-open")
        try:
            self._connection = await self._opening
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if not self._closed.is_set() or (here is not None and here.cancelling()):
                raise
            return  # so that `aclose` does not wait for a server that does not answer
        except UNREACHABLE as error:
            level = logging.WARNING if self._failures == 1 else logging.DEBUG
            logger.log(level, "%s cannot be reached (%s); trying again", self.url, why(error))
        finally:
            self._opening = None
        if self._closed.is_set() and self._connection is not None:
            await self._connection.close()


def _times_as_fast(speed: object) -> TimesAsFast:
    """The speed of a replay.

    Raises:
        InputError: it is not one.
    """
    if speed == "max":
        return "max"
    if isinstance(speed, int | float) and not isinstance(speed, bool) and 0 <= speed <= MAX_SPEED:
        return float(speed)
    raise InputError(f"speed is {speed!r:.40}; expected a number from 0 to {MAX_SPEED:,.0f}, or 'max'")
