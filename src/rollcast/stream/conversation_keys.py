"""Whether one prompt goes on where another conversation stopped: marks for the beginnings of prompts. Pure.

A prompt is messages, token ids or text. Each beginning of it has a `Mark`, and two beginnings are the same if their marks are equal.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from rollcast.stream.conversation_messages import KEY_BYTES

__all__ = ["Mark", "PromptKind", "Trail", "trail_of_ids", "trail_of_messages", "trail_of_text"]

PromptKind = Literal["messages", "ids", "text"]


class Mark(NamedTuple):
    """The first `length` messages, ids or bytes of a prompt, by their hash."""

    kind: PromptKind
    length: int
    digest: bytes


class Trail:
    """A prompt whose beginnings can be compared.

    Attributes:
        kind: what it consists of.
        length: how many messages, ids or bytes it has.
    """

    def __init__(self, kind: PromptKind, data: bytes, width: int) -> None:
        self.kind: PromptKind = kind
        self.length = len(data) // width
        self._data = data
        self._width = width

    def marks(self, lengths: Iterable[int]) -> list[Mark]:
        """The marks of the beginnings of these lengths, the longest first; those that are longer than the prompt are left out."""
        digest, done, found = hashlib.blake2b(digest_size=16), 0, []
        for length in sorted({n for n in lengths if 0 < n <= self.length}):
            digest.update(self._data[done * self._width : length * self._width])
            done = length
            found.append(Mark(self.kind, length, digest.digest()))
        found.reverse()
        return found

    @property
    def mark(self) -> Mark:
        """The mark of the whole; it has a length of 0 if the prompt is empty."""
        return next(iter(self.marks([self.length])), Mark(self.kind, 0, b""))


def trail_of_messages(keys: Sequence[bytes]) -> Trail:
    """A conversation, by the keys of its messages."""
    return Trail("messages", b"".join(keys), KEY_BYTES)


def trail_of_ids(ids: Sequence[int]) -> Trail:
    """A prompt of token ids."""
    return Trail("ids", array("q", ids).tobytes(), 8)


def trail_of_text(text: str) -> Trail:
    """A prompt of text."""
    return Trail("text", text.encode("utf-8", "surrogatepass"), 1)
