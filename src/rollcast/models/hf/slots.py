"""Tracks which sequence is in which slot of the cache, and what can be used again. No forward pass happens here."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from rollcast.models.backend import Sampling
from rollcast.models.hf.cache import SlotCache

__all__ = ["Row", "Slots", "shared_ids"]

Ids = NDArray[np.int32]

_NARROWEST = 256
_FEWEST = 4

# Fewer tokens than this are read again sooner than they are copied.
_WORTH_COPYING = 8


class Row:
    """One generation in the batch.

    Attributes:
        ids: the prompt's ids, then those that were sampled.
        prompt_tokens: how many of them are the prompt.
        sampling: how to sample.
        uniform: gives a number in [0, 1) for each token; only the seed decides them.
        sampled: how many tokens were sampled.
        slot: the slot with its keys and values; -1 while it waits.
        filled: how many of its ids have keys and values there.
        to_read: the ids to read before it decodes, as an array.
        number: grows with each row that gets a slot.
        mixed: whether two versions of the weights computed the keys and values: others cannot use them.
    """

    __slots__ = (
        "filled",
        "ids",
        "mixed",
        "number",
        "prompt_tokens",
        "sampled",
        "sampling",
        "slot",
        "to_read",
        "uniform",
    )

    def __init__(self, prompt_ids: list[int], sampling: Sampling) -> None:
        self.ids = list(prompt_ids)
        self.prompt_tokens = len(prompt_ids)
        self.sampling = sampling
        self.uniform = random.Random(sampling.seed).random
        self.sampled = 0
        self.number = -1
        self.wait()

    def wait(self) -> None:
        """Wait with everything still to read: at first, and when its slot was taken from it."""
        self.slot = -1
        self.filled = 0
        self.mixed = False
        self.to_read: Ids = np.array(self.ids, np.int32)

    @property
    def remaining(self) -> int:
        """Tokens to feed before one can be sampled; a row that decodes has one, which was sampled last."""
        return len(self.ids) - self.filled


class KeptSequence:
    """Keys and values of a row that has ended, for prompts that begin alike.

    Attributes:
        ids: the ids that they belong to.
        age: grows with each row that ends.
    """

    __slots__ = ("age", "ids")

    def __init__(self, ids: list[int], age: int) -> None:
        self.ids: Ids = np.array(ids, np.int32)
        self.age = age


class Slots:
    """The cache's slots: first those that decode, without gaps, so that one slice has them all; then the others.

    Args:
        cache: the cache that it arranges.
        max_tokens: how many tokens all slots together may hold.
        context: the most tokens in a sequence, at most `max_tokens`.
        max_slots: the most slots.

    Attributes:
        decoding: the rows that decode, by slot.
    """

    def __init__(self, cache: SlotCache, max_tokens: int, context: int, max_slots: int) -> None:
        self.cache = cache
        self._max_tokens = max_tokens
        self._context = context
        self._max_slots = max_slots
        self.decoding: list[Row] = []
        self._content: list[Row | KeptSequence | None] = []
        self._count = 0

    def rows(self) -> list[Row]:
        """The rows that have a slot."""
        return [content for content in self._content if isinstance(content, Row)]

    # -- sizes ---------------------------------------------------------------------------------------------------------

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether this many rows fit if the longest has this many tokens."""
        return rows <= self._most_slots(self._rounded_width(tokens))

    def widen(self, tokens: int) -> None:
        """Make room for a row of this many tokens in each slot; the caller has checked that the rows fit."""
        width = self._rounded_width(tokens)
        if width <= self.cache.width:
            return
        others = [i for i, content in enumerate(self._content) if isinstance(content, Row)][
            len(self.decoding) :
        ]
        kept = [i for i, content in enumerate(self._content) if isinstance(content, KeptSequence)]
        kept.sort(key=self._age, reverse=True)
        order = [*range(len(self.decoding)), *others, *kept][: self._most_slots(width)]
        self._resize(max(len(order), min(_FEWEST, self._most_slots(width))), width, order)

    def _age(self, slot: int) -> int:
        content = self._content[slot]
        assert isinstance(content, KeptSequence)
        return content.age

    def _resize(self, slots: int, width: int, order: list[int]) -> None:
        self.cache.resize(slots, width, order)
        self._content = [self._content[i] for i in order] + [None] * (slots - len(order))
        for slot, content in enumerate(self._content):
            if isinstance(content, Row):
                content.slot = slot

    def _rounded_width(self, tokens: int) -> int:
        return min(max(_NARROWEST, 1 << (tokens - 1).bit_length(), self.cache.width), self._context)

    def _most_slots(self, width: int) -> int:
        return max(1, min(self._max_slots, self._max_tokens // width))

    # -- coming and going ----------------------------------------------------------------------------------------------

    def known(self, ids: Ids) -> tuple[int, int]:
        """How many of the first ids (T,) some slot has, and which slot."""
        counts = [
            (shared_ids(ids, self._written(content)), slot)
            for slot, content in enumerate(self._content)
            if content
        ]
        count, slot = max(counts, default=(0, -1))
        return (count, slot) if count >= _WORTH_COPYING else (0, -1)

    @staticmethod
    def _written(content: Row | KeptSequence) -> Ids:
        if isinstance(content, KeptSequence):
            return content.ids
        return content.to_read[: 0 if content.mixed else content.filled]

    def put(self, row: Row) -> bool:
        """Give a waiting row a slot, with the known part of its prompt; return whether there was one.

        The last token is always read: its logits are what is sampled from.
        """
        known, source = self.known(row.to_read[:-1])
        found = self._content[source] if known else None
        slot = source if isinstance(found, KeptSequence) and known == len(found.ids) else self._free()
        if slot is None:
            return False
        if known and slot != source:
            self.cache.copy(source, slot, known)
        self._content[slot] = row
        row.slot, row.filled, row.number = slot, known, self._next_count()
        return True

    def _free(self) -> int | None:
        """An empty slot, a new one, or the one that was kept longest."""
        for slot in range(len(self.decoding), len(self._content)):
            if self._content[slot] is None:
                return slot
        slots = len(self._content)
        most = self._most_slots(self.cache.width)
        if slots < most:
            self._resize(min(2 * slots, most), self.cache.width, list(range(slots)))
            return slots
        kept = [i for i, content in enumerate(self._content) if isinstance(content, KeptSequence)]
        return min(kept, key=self._age) if kept else None

    def begin(self, row: Row) -> None:
        """Move a row from reading to decoding."""
        self._swap(row.slot, len(self.decoding))
        self.decoding.append(row)

    def end(self, row: Row, *, keep: bool) -> None:
        """Take a row's slot; what it computed may be kept for others."""
        slot = row.slot
        if slot < len(self.decoding):
            last = len(self.decoding) - 1
            mover = self.decoding.pop()
            if slot != last:
                self._swap(slot, last)
                self.decoding[slot] = mover
            slot = last
        use = keep and not row.mixed and row.filled >= _WORTH_COPYING
        self._content[slot] = KeptSequence(row.ids[: row.filled], self._next_count()) if use else None

    def _swap(self, a: int, b: int) -> None:
        if a == b:
            return
        first, second = self._content[a], self._content[b]
        if first is not None and second is not None:
            self.cache.swap(a, b, max(_length(first), _length(second)))
        elif first is not None:
            self.cache.copy(a, b, _length(first))
        elif second is not None:
            self.cache.copy(b, a, _length(second))
        for slot, content in ((b, first), (a, second)):
            self._content[slot] = content
            if isinstance(content, Row):
                content.slot = slot

    def _next_count(self) -> int:
        self._count += 1
        return self._count

    def forget(self) -> None:
        """Drop what was kept, and stop sharing what rows have, because the weights have changed."""
        for slot, content in enumerate(self._content):
            if isinstance(content, Row):
                content.mixed = content.filled > 0
            else:
                self._content[slot] = None

    def drop(self) -> None:
        """Free all memory; no row may have a slot."""
        self.cache.drop()
        self.decoding, self._content = [], []


def _length(content: Row | KeptSequence) -> int:
    return content.filled if isinstance(content, Row) else len(content.ids)


def shared_ids(a: Ids, b: Ids) -> int:
    """How many ids two sequences share from the start."""
    length = min(len(a), len(b))
    if not length or a[0] != b[0]:
        return 0
    same = a[:length] == b[:length]
    return length if same.all() else int(same.argmin())
