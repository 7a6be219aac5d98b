"""Keys and values: of the rows that decode, and of what was read before and may be wanted again.

Letters: L layers, G KV heads, W width, K head size. Every block of memory has the axes (L, slots, 2, G, W, K), where 2 is
keys and values.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rollcast.models.tiny.weights import Array, ModelConfig

if TYPE_CHECKING:
    from rollcast.models.tiny.batch import Row

__all__ = ["Arena", "PrefixCache", "new_block"]


def new_block(config: ModelConfig, slots: int, width: int) -> Array:
    """Zeros of shape (L, slots, 2, G, W, K)."""
    layers, kv, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    return np.zeros((layers, slots, 2, kv, width, size), np.float32)


class Arena:
    """The rows of one key width that decode, in slots without a hole between them, so that a slice is all of them.

    Attributes:
        width: keys a row.
        rows: by slot.
        memory: (L, capacity, 2, G, W, K).
        ids: the token that each row feeds next, (capacity,).
        positions: where it stands, (capacity,).
    """

    def __init__(self, config: ModelConfig, width: int) -> None:
        self.width = width
        self.rows: list[Row] = []
        self._config = config
        self.memory = new_block(config, 4, width)
        self.ids: NDArray[np.intp] = np.zeros(4, np.intp)
        self.positions: NDArray[np.intp] = np.zeros(4, np.intp)

    def put(self, row: Row, block: Array, token: int, position: int) -> None:
        """Take a row whose first `position` keys and values are in `block` (L, 2, G, ≥ position, K)."""
        slot = len(self.rows)
        if slot == self.memory.shape[1]:
            self._grow()
        self.memory[:, slot, :, :, :position] = block[:, :, :, :position]
        # What a former row left is masked, but 0 times a value that is not finite would not be 0.
        self.memory[:, slot, :, :, position:] = 0
        self.ids[slot], self.positions[slot] = token, position
        self.rows.append(row)
        row.arena, row.slot = self, slot

    def take(self, slot: int) -> None:
        """Free a slot; the last row moves into it."""
        last = len(self.rows) - 1
        mover = self.rows.pop()
        if slot != last:
            filled = int(self.positions[last])
            self.memory[:, slot, :, :, :filled] = self.memory[:, last, :, :, :filled]
            self.memory[:, slot, :, :, filled:] = 0
            self.ids[slot], self.positions[slot] = self.ids[last], self.positions[last]
            self.rows[slot] = mover
            mover.slot = slot

    def _grow(self) -> None:
        capacity = len(self.ids)
        memory = new_block(self._config, 2 * capacity, self.width)
        memory[:, :capacity] = self.memory
        self.memory = memory
        self.ids = np.concatenate([self.ids, self.ids])
        self.positions = np.concatenate([self.positions, self.positions])


class PrefixCache:
    """Keys and values of token sequences that were read or sampled lately, the oldest forgotten first.

    A turn's prompt begins with all of the turn before, and the chains of a group share theirs. Because a row computes
    the same bits in any company, what is found here is what reading the prompt again would give.
    """

    def __init__(self, context: int, max_entries: int = 256, max_bytes: int = 48 << 20) -> None:
        self._ids: NDArray[np.int32] = np.full((max_entries, context), -1, np.int32)
        self._blocks: list[Array | None] = [None] * max_entries
        self._ages: deque[int] = deque()
        self._free = list(range(max_entries))
        self._bytes = 0
        self._max_bytes = max_bytes

    def longest(self, ids: NDArray[np.int32]) -> tuple[int, Array | None]:
        """How many of the ids (T,) are known from the start, and the block (L, 2, G, ≥ that many, K) that has them."""
        if not self._ages:
            return 0, None
        same = self._ids[:, : len(ids)] == ids
        counts = np.where(same.all(1), len(ids), same.argmin(1))
        best = int(counts.argmax())
        count = int(counts[best])
        return count, self._blocks[best] if count else None

    def store(self, ids: list[int], block: Array) -> None:
        """Remember the block (L, 2, G, ≥ len(ids), K) of these ids; it must not be changed afterwards."""
        if block.nbytes > self._max_bytes:
            return
        while self._ages and (not self._free or self._bytes + block.nbytes > self._max_bytes):
            self._forget(self._ages.popleft())
        entry = self._free.pop()
        self._ids[entry, : len(ids)] = ids
        self._blocks[entry] = block
        self._bytes += block.nbytes
        self._ages.append(entry)

    def clear(self) -> None:
        """Forget everything: the weights that computed it are gone."""
        while self._ages:
            self._forget(self._ages.popleft())

    def _forget(self, entry: int) -> None:
        block = self._blocks[entry]
        assert block is not None
        self._bytes -= block.nbytes
        self._blocks[entry] = None
        self._ids[entry] = -1
        self._free.append(entry)
