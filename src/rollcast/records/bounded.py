"""Turns any value into bounded, plain JSON, for views, which must take whatever an event has.

Characters are Unicode code points, as in an event's `offset`. Numbers are those that a double holds exactly, so that a
reader in another language counts the same.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from rollcast.text import replace_surrogates

__all__ = ["Tail", "clean", "number", "plain", "tail_of", "weight", "whole", "word"]

MAX_WHOLE = 2**53 - 1
MAX_WORD = 1024  # characters in a name or an id
MAX_DEPTH = 32  # levels of nested lists and objects
PIECES = 1024  # pieces of a growing text, until they are joined


def whole(value: Any) -> int | None:
    """The value if it is a whole number that a double holds exactly, else None."""
    if value.__class__ is int:  # nearly always; a view asks this several times for each event
        return value if -MAX_WHOLE <= value <= MAX_WHOLE else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -MAX_WHOLE <= value <= MAX_WHOLE:
        return int(value)
    return None


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def clean(text: str) -> str:
    """The text with lone surrogates, which JSON in UTF-8 cannot hold, replaced one by one, so that its length stays."""
    return replace_surrogates(str.__str__(text))


def word(value: Any) -> str | None:
    """The value if it is text, at most 1,024 characters of it, else None."""
    if value.__class__ is str and len(value) <= MAX_WORD and value.isascii():  # nearly always
        return value
    return clean(value[:MAX_WORD]) if isinstance(value, str) else None


def tail_of(text: str, limit: int) -> tuple[str, int]:
    """The last `limit` characters, and how many came before them."""
    omitted = max(len(text) - limit, 0)
    return clean(text[omitted:]), omitted


class _TooMuchError(Exception):
    """The value is larger or deeper than allowed."""


class _Room:
    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, weight: int) -> None:
        self.left -= weight
        if self.left < 0:
            raise _TooMuchError


def plain(value: Any, limit: int, depth: int = MAX_DEPTH) -> tuple[Any, bool]:
    """Return a copy as plain JSON, and True; or None and False if it is heavier than `limit`, or nested deeper than `depth`.

    What JSON does not have becomes None: an object of another class, a number that is not finite.
    """
    try:
        return _copied(value, _Room(limit), depth), True
    except _TooMuchError:
        return None, False


def _copied(value: Any, room: _Room, depth: int) -> Any:
    room.take(1)
    if isinstance(value, str):
        room.take(len(value))
        return clean(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        exact = whole(value) if isinstance(value, int) else None
        return number(value) if exact is None else exact
    if not isinstance(value, dict | list | tuple):
        return None
    if depth == 0:
        raise _TooMuchError
    if not isinstance(value, dict):
        return [_copied(item, room, depth - 1) for item in value]
    copied = {}
    for name, item in value.items():
        if isinstance(name, str):
            room.take(len(name))
            copied[clean(name)] = _copied(item, room, depth - 1)
    return copied


def weight(value: Any) -> int:
    """The weight of plain JSON: one for each value, and one for each character in its texts and names."""
    if isinstance(value, str):
        return 1 + len(value)
    if isinstance(value, dict):
        return 1 + sum(len(name) + weight(item) for name, item in value.items())
    if isinstance(value, list):
        return 1 + sum(map(weight, value))
    return 1


class Tail(msgspec.Struct, eq=False):
    """A text that grows at its end, of which the last `limit` characters are kept. Growing does not copy the whole text.

    Attributes:
        limit: how many characters to keep.
        start: how many characters came before the pieces.
        end: how many characters the text has so far, including those before the pieces.
        pieces: what is kept; sometimes more than `limit`.
    """

    limit: int
    start: int = 0
    end: int = 0
    pieces: list[str] = []

    @classmethod
    def of(cls, text: str, limit: int, omitted: int = 0) -> Tail:
        """Make a tail of the text, with `omitted` unknown characters before it."""
        tail = cls(limit, omitted, omitted)
        if text:
            tail.append(text)
        return tail

    def append(self, text: str) -> None:
        """Add text at the end."""
        self.pieces.append(text if text.isascii() else clean(text))
        self.end += len(text)
        if len(self.pieces) >= PIECES or self.end - self.start > 2 * self.limit:
            self.shrink()

    def restart(self, at: int) -> None:
        """Go on after a gap, from character `at`: what is kept is one piece of the text, without gaps."""
        self.pieces = []
        self.start = self.end = at

    def shrink(self) -> None:
        """Join the pieces, and drop what comes before the last `limit` characters."""
        text, omitted = tail_of("".join(self.pieces), self.limit)
        self.start += omitted
        self.pieces = [text] if text else []

    @property
    def text(self) -> str:
        """The last `limit` characters, or as many as are known; `omitted` came before them."""
        if len(self.pieces) != 1 or self.end - self.start > self.limit:
            self.shrink()
        return self.pieces[0] if self.pieces else ""

    @property
    def omitted(self) -> int:
        """How many characters came before `text`."""
        return max(self.start, self.end - self.limit)
