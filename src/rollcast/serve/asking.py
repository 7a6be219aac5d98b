"""The client's side of a query: the frames to send, and the rows that come. Without I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from rollcast.errors import DecodeError, RefusedError
from rollcast.records import StreamEvent
from rollcast.records.codec import decode_unchecked
from rollcast.serve.protocol import (
    ClientFrame,
    Done,
    ErrorFrame,
    Ping,
    Pong,
    Query,
    Rows,
    ServerFrame,
    Stop,
    Welcome,
    decode_server_frame,
    is_of_later_server,
)
from rollcast.text import printable_line

__all__ = ["Asking", "QueryRows"]


class QueryRows(msgspec.Struct, frozen=True):
    """Some rows of the answer to a query.

    Attributes:
        rows: each a JSON object; for `chain` they are events.
        total: how many there are in all; None: that is not counted.
        next: the `after` of a query that goes on behind these rows; None: more come, or there are no more.
        changed: whether these rows have changed since they came, or are new (`watch`).
        last: whether the answer is complete with these.
        cursor: after `chain`, of the last ones: the place behind the events that came, as `since` of a client.
        missing: of the last ones, and with `watch` of any: what the answer lacks, a sentence each.
    """

    rows: list[dict[str, Any]]
    total: int | None = None
    next: str | None = None
    changed: bool = False
    last: bool = False
    cursor: str | None = None
    missing: list[str] = []

    @property
    def events(self) -> list[StreamEvent]:
        """The rows of a `chain` as events.

        Raises:
            DecodeError: one is not an event.
        """
        return [decode_unchecked(msgspec.json.encode(row)) for row in self.rows]


class Asking:
    """One query over one connection.

    Args:
        query: what is asked.

    Attributes:
        done: whether the answer is complete.
        heartbeat_s: that of the server, in seconds.
    """

    def __init__(self, query: Query) -> None:
        self.done = False
        self.heartbeat_s = 20.0
        self._query = query
        self._asked = False

    def receive_message(self, message: str | bytes) -> tuple[list[ClientFrame], QueryRows | None]:
        """As `receive`. A frame that only later servers know is passed over.

        Raises:
            DecodeError: it is not a frame.
        """
        try:
            frame = decode_server_frame(message)
        except DecodeError:
            if is_of_later_server(message):
                return [], None
            raise
        return self.receive(frame)

    def receive(self, frame: ServerFrame) -> tuple[list[ClientFrame], QueryRows | None]:
        """Take a frame. Returns the frames to answer with, and the rows that came.

        Raises:
            RefusedError: the server does not answer the query.
        """
        match frame:
            case Welcome() if not self._asked:
                self._asked, self.heartbeat_s = True, frame.heartbeat_s
                if "queries" not in frame.features:
                    raise RefusedError("the server answers no queries; it is of an earlier version")
                return [self._query], None
            case Rows() if frame.id == self._query.id and not self.done:
                return [], QueryRows(
                    frame.rows, frame.total, frame.next, frame.changed, missing=frame.missing
                )
            case Done() if frame.id == self._query.id:
                self.done = True
                return [], QueryRows([], last=True, cursor=frame.cursor, missing=frame.missing)
            case ErrorFrame() if frame.id in (None, self._query.id):
                raise RefusedError(f"the server does not answer: {printable_line(frame.message)}")
            case Ping():
                return [Pong()], None
            case _:
                return [], None

    def stop(self) -> list[ClientFrame]:
        """The frames that abandon the query."""
        return [Stop(self._query.id)] if self._asked and not self.done else []
