"""The rows of a batch, and the keys and values of rows that decode and of prompts that may be wanted again.

Letters: L layers, G KV heads, W width, K head size.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from rollcast.models.backend import Sampling
from rollcast.models.tiny.model import Memory
from rollcast.models.tiny.sampler import uniforms
from rollcast.models.tiny.weights import ModelConfig

__all__ = ["Arena", "PrefixCache", "Row", "copy_slot", "new_memory"]

_SLOTS = 8


def new_memory(config: ModelConfig, slots: int, width: int) -> Memory:
    """Make keys (L, slots, G, K, W) and values (L, slots, G, W, K) of zeros."""
    layers, kv, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    return Memory(
        keys=np.zeros((layers, slots, kv, size, width), np.float32),
        values=np.zeros((layers, slots, kv, width, size), np.float32),
    )


def copy_slot(source: Memory, slot: int, target: Memory, to: int, length: int) -> None:
    """Copy the first `length` keys and values of a slot into another, and clear the rest.

    What an earlier row left there is masked, but 0 times a value that is not finite would not be 0.
    """
    target.keys[:, to, :, :, :length] = source.keys[:, slot, :, :, :length]
    target.keys[:, to, :, :, length:] = 0
    target.values[:, to, :, :length] = source.values[:, slot, :, :length]
    target.values[:, to, :, length:] = 0


class Row:
    """One generation in the batch.

    Attributes:
        ids: the prompt's ids, then those that were sampled.
        prompt_tokens: how many of them are the prompt.
        sampling: how to sample.
        uniforms: one number in [0, 1) per token; their count is the most tokens that this row may sample.
        sampled: how many tokens were sampled.
        arena: where it decodes; None before and after.
        slot: its place there.
    """

    __slots__ = (
        "arena",
        "block",
        "ids",
        "mixed",
        "new_prompt",
        "prompt",
        "prompt_tokens",
        "read",
        "sampled",
        "sampling",
        "slot",
        "uniforms",
    )

    def __init__(self, prompt_ids: list[int], sampling: Sampling, limit: int) -> None:
        self.ids = list(prompt_ids)
        self.prompt: NDArray[np.int32] = np.array(prompt_ids, np.int32)
        self.prompt_tokens = len(prompt_ids)
        self.sampling = sampling
        self.uniforms = uniforms(sampling.seed, limit)
        self.sampled = 0
        self.arena: Arena | None = None
        self.slot = -1
        # While the prompt is read: its keys and values in one slot, and how many tokens of it are in there.
        self.block: Memory | None = None
        self.read = 0
        # True if more than the last token of it had to be read.
        self.new_prompt = False
        # True once its keys come from two versions of the weights: other rows cannot use them.
        self.mixed = False


class Arena:
    """The decoding rows of one key width, in slots without gaps, so that one slice has them all.

    Attributes:
        width: keys per row.
        rows: the row in each slot.
        memory: keys and values of all slots.
        ids: the token that each row feeds next, (capacity,).
        positions: the position of that token, (capacity,).
    """

    def __init__(self, config: ModelConfig, width: int) -> None:
        self.width = width
        self.rows: list[Row] = []
        self._config = config
        self.memory = new_memory(config, _SLOTS, width)
        self.ids: NDArray[np.intp] = np.zeros(_SLOTS, np.intp)
        self.positions: NDArray[np.intp] = np.zeros(_SLOTS, np.intp)
        self.slots: NDArray[np.intp] = np.arange(_SLOTS)
        # No row fills the width for at least this many steps.
        self._steps_left = 0

    def put(self, row: Row, source: Memory, slot: int, token: int, position: int) -> None:
        """Add a row whose first `position` keys and values are in a slot of `source`, and which feeds `token` next."""
        own = len(self.rows)
        if own == len(self.ids):
            self._grow()
        copy_slot(source, slot, self.memory, own, position)
        self.ids[own], self.positions[own] = token, position
        self.rows.append(row)
        row.arena, row.slot = self, own
        self._steps_left = min(self._steps_left, self.width - position)

    def take(self, slot: int) -> None:
        """Free a slot; the last row moves into it."""
        last = len(self.rows) - 1
        mover = self.rows.pop()
        if slot != last:
            copy_slot(self.memory, last, self.memory, slot, int(self.positions[last]))
            self.ids[slot], self.positions[slot] = self.ids[last], self.positions[last]
            self.rows[slot] = mover
            mover.slot = slot

    def advance(self, tokens: NDArray[np.intp]) -> None:
        """Let every row feed its next token, one position further."""
        count = len(self.rows)
        self.ids[:count] = tokens
        self.positions[:count] += 1
        self._steps_left -= 1

    def full(self) -> list[int]:
        """Slots of the rows that have filled the width, the last first."""
        if self._steps_left > 0 or not self.rows:
            return []
        positions = self.positions[: len(self.rows)]
        slots: list[int] = np.flatnonzero(positions >= self.width).tolist()
        self._steps_left = self.width - int(positions[positions < self.width].max(initial=0))
        return slots[::-1]

    def _grow(self) -> None:
        capacity = len(self.ids)
        memory = new_memory(self._config, 2 * capacity, self.width)
        memory.keys[:, :capacity], memory.values[:, :capacity] = self.memory
        self.memory = memory
        self.ids = np.concatenate([self.ids, self.ids])
        self.positions = np.concatenate([self.positions, self.positions])
        self.slots = np.arange(2 * capacity)


class PrefixCache:
    """Keys and values of token sequences that were read or sampled recently; the oldest are forgotten first.

    A turn's prompt begins with all of the turn before, and the chains of a group share theirs. Because a row computes
    the same bits in any batch, what is found here is what reading the prompt again would give.
    """

    def __init__(self, context: int, max_entries: int = 256, max_bytes: int = 48 << 20) -> None:
        self._ids: NDArray[np.int32] = np.full((max_entries, context), -1, np.int32)
        self._blocks: list[Memory | None] = [None] * max_entries
        self._ages: deque[int] = deque()
        self._free = list(range(max_entries))
        self._bytes = 0
        self._max_bytes = max_bytes

    def longest(self, ids: NDArray[np.int32]) -> tuple[int, Memory | None]:
        """How many of the ids (T,) are known from the start, and the one-slot memory that has them."""
        if not self._ages:
            return 0, None
        same = self._ids[:, : len(ids)] == ids
        counts = np.where(same.all(1), len(ids), same.argmin(1))
        best = int(counts.argmax())
        count = int(counts[best])
        return count, self._blocks[best] if count else None

    def store(self, ids: list[int], block: Memory) -> None:
        """Remember the one-slot memory of these ids; it must not be changed afterwards."""
        size = _bytes(block)
        if size > self._max_bytes:
            return
        while self._ages and (not self._free or self._bytes + size > self._max_bytes):
            self._forget(self._ages.popleft())
        entry = self._free.pop()
        self._ids[entry, : len(ids)] = ids
        self._blocks[entry] = block
        self._bytes += size
        self._ages.append(entry)

    def clear(self) -> None:
        """Forget everything, because the weights have changed."""
        while self._ages:
            self._forget(self._ages.popleft())

    def _forget(self, entry: int) -> None:
        block = self._blocks[entry]
        assert block is not None
        self._bytes -= _bytes(block)
        self._blocks[entry] = None
        self._ids[entry] = -1
        self._free.append(entry)


def _bytes(memory: Memory) -> int:
    return memory.keys.nbytes + memory.values.nbytes
