"""A transformers `Cache` with the keys and values of many sequences, each in a slot of its own.

Letters: S slots, H KV heads, W width in tokens, K size of a key, V of a value, R rows of a forward pass, C tokens of
each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

__all__ = ["LayerShape", "PrecisionChangedError", "ProbeCache", "SlotCache"]


class PrecisionChangedError(Exception):
    """A forward pass computed keys or values of another dtype than those in the slots.

    The parameters' dtype does not tell: under autocast, which a trainer may put around the forward pass at any time,
    each operation chooses its own, and keys may be float32 and values bfloat16.
    """


class LayerShape(NamedTuple):
    """The shapes and dtypes that one layer keeps for each token."""

    heads: int
    key_size: int
    value_size: int
    key_dtype: torch.dtype
    value_dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """The size of one token's key and value."""
        return self.heads * (
            self.key_size * self.key_dtype.itemsize + self.value_size * self.value_dtype.itemsize
        )


class ProbeCache(DynamicCache):
    """The ordinary cache of a forward pass, which also notes what each layer gives it."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[int, LayerShape] = {}

    @property
    def shapes(self) -> list[LayerShape]:
        """The shapes of every layer that a forward pass has filled."""
        return [shape for _, shape in sorted(self._found.items())]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Note the dtypes: the ordinary cache keeps values in the keys' dtype, so its content does not tell."""
        k, v = key_states, value_states
        self._found[layer_idx] = LayerShape(k.shape[1], k.shape[3], v.shape[3], k.dtype, v.dtype, k.device)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class SlotCache(Cache):
    """Slots to which the rows of a forward pass write, each at its own positions.

    Before each pass, `aim` tells the rows' slots and the positions of their tokens. The caller masks what is in a slot
    after a row's own tokens; it must be finite, since 0 times infinity is not 0.

    Attributes:
        slots, width: the number of slots, and how many tokens each holds.
    """

    def __init__(self, shapes: list[LayerShape]) -> None:
        # `Cache` asks how to make layers; this cache makes its own.
        super().__init__(layers=[])
        self.shapes = shapes
        self.slots = self.width = 0
        self._keys: list[Tensor] = []  # (S, H, W, K) per layer
        self._values: list[Tensor] = []  # (S, H, W, V)
        self._rows: slice | Tensor = slice(0)
        self._write: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._seen = 0

    def resize(self, slots: int, width: int, order: list[int]) -> None:
        """Change the number of slots and the number of tokens in each.

        Args:
            slots: the new number.
            width: tokens in each; no slot may hold more.
            order: old slots, which become the first of the new ones.
        """
        length = min(width, self.width)
        for index, shape in enumerate(self.shapes):
            for store, size, dtype in (
                (self._keys, shape.key_size, shape.key_dtype),
                (self._values, shape.value_size, shape.value_dtype),
            ):
                new = torch.zeros(slots, shape.heads, width, size, dtype=dtype, device=shape.device)
                if index == len(store):
                    store.append(new)
                    continue
                new[: len(order), :, :length] = store[index][order, :, :length]
                store[index] = new
        self.slots, self.width = slots, width

    def drop(self) -> None:
        """Free all memory."""
        self._keys, self._values = [], []
        self.slots = self.width = 0

    def copy(self, source: int, to: int, length: int) -> None:
        """Copy the first `length` tokens of a slot into another."""
        for store in (*self._keys, *self._values):
            store[to, :, :length] = store[source, :, :length]

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` tokens of two slots."""
        for store in (*self._keys, *self._values):
            kept = store[a, :, :length].clone()
            store[a, :, :length] = store[b, :, :length]
            store[b, :, :length] = kept

    def clear(self, slot: int) -> None:
        """Set a slot to zeros, after values that are not finite were written to it."""
        for store in (*self._keys, *self._values):
            store[slot] = 0

    def aim(self, rows: slice | Tensor, index_R: Tensor, positions_RC: Tensor, seen: int) -> None:
        """Set what the next pass reads and writes.

        Args:
            rows: the rows' slots; a slice is read without a copy.
            index_R: the same as numbers.
            positions_RC: the positions of each row's tokens.
            seen: the pass reads the first `seen` tokens of the slots.
        """
        self._rows, self._seen = rows, seen
        self._write = index_R[:, None], positions_RC

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (R, H, C, K) and (R, H, C, V); return what the rows may look at, (R, H, seen, K) and (R, H, seen, V).

        Raises:
            PrecisionChangedError: their dtype is not that of the slots.
        """
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if key_states.dtype != keys.dtype or value_states.dtype != values.dtype:
            raise PrecisionChangedError(
                f"layer {layer_idx} gave keys of {key_states.dtype} and values of {value_states.dtype}; expected {keys.dtype} "
                f"and {values.dtype}, as before"
            )
        at, positions = (part.to(keys.device) for part in self._write)
        keys[at, :, positions] = key_states.transpose(1, 2)
        values[at, :, positions] = value_states.transpose(1, 2)
        return keys[self._rows, :, : self._seen], values[self._rows, :, : self._seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions and masks are given with each pass, so this only says that the cache is not empty."""
        return self._seen - self._write[1].shape[-1]

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """The keys that the pass reads: as many as `aim` said, from the first."""
        return self._seen, 0

    @property
    def is_compileable(self) -> bool:
        """False: its shapes change from step to step."""
        return False
