"""Reads server-sent events (the "event stream" of the HTML standard) from bytes, wherever they are split. Pure."""

from __future__ import annotations

from rollcast.errors import InputError

__all__ = ["SseReader"]

MAX_EVENT = 64 * 1024 * 1024  # bytes; a longer event is no chunk of an answer


class SseReader:
    """Gives the payload of each event that is complete: its `data` lines, joined by line breaks.

    Comments (`: keep-alive`), other fields and events without data are left out. Lines end with LF, CRLF or CR. The bytes
    may be split anywhere, also inside a character.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    __slots__ = ("_after_cr", "_data", "_parts", "_size", "limit")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self.limit = limit
        self._parts: list[bytes] = []  # of a line that has not ended
        self._data: list[bytes] = []  # of an event that has not ended
        self._size = 0  # bytes of both
        self._after_cr = False  # whether a line feed that comes next belongs to a line that has ended

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes, and return the payloads of the events that they complete.

        Raises:
            InputError: an event is longer than the limit.
        """
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 10:
                data = data[1:]
        if b"\n" not in data and b"\r" not in data:
            if data:
                self._grow(len(data))
                self._parts.append(data)
            return []
        if self._parts:
            self._parts.append(data)
            data = b"".join(self._parts)
            self._parts = []
        lines = data.splitlines(keepends=True)
        last = lines[-1]
        if last.endswith(b"\r"):
            self._after_cr = True
        elif not last.endswith(b"\n"):
            self._parts.append(lines.pop())
        payloads: list[bytes] = []
        for line in lines:
            self._read(line.rstrip(b"\r\n"), payloads)
        self._size = sum(map(len, self._parts)) + sum(map(len, self._data))
        self._grow(0)
        return payloads

    @property
    def rest(self) -> bytes:
        """What came after the last complete event: if the stream has ended, an event that was cut."""
        return b"\n".join([*(b"data: " + line for line in self._data), b"".join(self._parts)]).strip(b"\n")

    def _read(self, line: bytes, payloads: list[bytes]) -> None:
        if not line:
            if self._data:
                payloads.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data = []
            return
        field, colon, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        if field == b"data":
            self._data.append(value[1:] if colon and value[:1] == b" " else value)

    def _grow(self, more: int) -> None:
        self._size += more
        if self._size > self.limit:
            raise InputError(
                f"an event of a stream has more than {self.limit:,} bytes; expected a chunk of an answer"
            )
