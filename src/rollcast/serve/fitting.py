"""Shortens events that are larger than a client takes in one message. Pure.

A shortened event still has its type. Two places say what was cut: the text itself, and `data.truncated`, which maps the path
of each value that was cut to its full length. Paths begin in `data`; those of fields that this version does not know begin with
`/..`, which leads out of it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.codec import decode_unchecked, encode
from rollcast.records.event import ExtendedEvent

__all__ = ["fitted"]

_LONGEST_TEXT = 1 << 19  # how many characters a text keeps at most; halved until the event fits
_SHORTEST_TEXT = 64
_KEPT_ITEMS = 1 << 16  # how many items a list or an object keeps; halved too
_FEWEST_ITEMS = 16
_LEVELS = [
    (_LONGEST_TEXT >> i, max(_FEWEST_ITEMS, _KEPT_ITEMS >> i))
    for i in range((_LONGEST_TEXT // _SHORTEST_TEXT).bit_length())
]
_NAME_CHARS = 256  # characters of ids, as a last resort
_MAX_PATHS = 32  # how many paths `truncated` lists


def fitted(event: bytes, limit: int) -> bytes:
    """The event's JSON, shortened if it has more than `limit` bytes."""
    return event if len(event) <= limit else _shortened(event, limit)


def _shortened(data: bytes, limit: int) -> bytes:
    """The event with its longest texts and lists cut, by no more than needed up to a factor of two."""
    event = decode_unchecked(data)
    with suppress(RecursionError):  # it is nested too deeply
        shorter = _least_cut(event, len(data), limit)
        if shorter is not None:
            return shorter
    told = {
        "error": f"this {event.event_type} event has {len(data)} bytes of JSON, and this client takes {limit} in a message",
        "error_type": "TooLarge",
        "where": "observer:WebSocketStreamingServer",
    }
    return encode(
        StreamEvent(
            event_type=StreamEventType.ERROR,
            chain_id=event.chain_id[:_NAME_CHARS],
            timestamp=event.timestamp,
            data=told,
            step=event.step,
            depth=event.depth,
            seq=event.seq,
            run_id=event.run_id[:_NAME_CHARS],
            group_id=None if event.group_id is None else event.group_id[:_NAME_CHARS],
            source=event.source[:_NAME_CHARS],
        )
    )


def _least_cut(event: StreamEvent, size: int, limit: int) -> bytes | None:
    """The event cut at the first of `_LEVELS` at which it fits, found by bisection; None if it fits at none."""
    fits: bytes | None = None
    low, high = 0, len(_LEVELS)
    while low < high:
        middle = (low + high) // 2
        cut = _Cut(*_LEVELS[middle], limit)
        shorter = b""
        with suppress(_TooLargeError):
            fields: dict[str, Any] = {"data": cut.value(event.data, "")}
            if isinstance(event, ExtendedEvent):
                fields["beyond"] = cut.value(event.beyond, "/..")
            fields["data"]["truncated"] = cut.told(size)
            shorter = encode(msgspec.structs.replace(event, **fields))
        if 0 < len(shorter) <= limit:
            fits, high = shorter, middle
        else:
            low = middle + 1
    return fits


class _TooLargeError(Exception):
    """What is kept already has more bytes than the limit."""


class _Cut:
    """Cuts texts to a number of characters, and lists and objects to a number of items, and remembers what it cut.

    Attributes:
        size: how many bytes of JSON the kept values have at least.
    """

    def __init__(self, chars: int, items: int, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._chars = chars
        self._items = items
        self._lengths: dict[str, int] = {}

    def told(self, size: int) -> dict[str, int]:
        """The full length of each value that was cut, and the event's size in bytes under the path ""."""
        return {"": size} | dict(list(self._lengths.items())[:_MAX_PATHS])

    def value(self, value: Any, path: str) -> Any:
        """The value, cut.

        Raises:
            _TooLargeError: with this value, what is kept is larger than the limit.
        """
        self.size += 2
        if self.size > self._limit:
            raise _TooLargeError
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, list):
            if len(value) > self._items:
                self._lengths[path] = len(value)
            return [self.value(item, f"{path}/{i}") for i, item in enumerate(value[: self._items])]
        if isinstance(value, dict):
            pairs = list(value.items())
            if len(pairs) > self._items and path:
                self._lengths[path] = len(pairs)
                pairs = pairs[: self._items]
            return {key: self.value(item, f"{path}/{key}") for key, item in pairs}
        return value

    def _text(self, text: str, path: str) -> str:
        self.size += min(len(text), self._chars)
        if len(text) <= self._chars:
            return text
        self._lengths[path] = len(text)
        return f"{text[: self._chars]}… [{len(text) - self._chars} of {len(text)} characters left out]"
