"""The forward pass of Qwen3 over token rows, in NumPy: pure functions of arrays.

A *row* is one token of one sequence. Decoding a batch and reading a prompt are the same thing here: rows, each with its
position and a view of its sequence's keys and values. What a row computes depends on nothing but the row:

- matrix products go through `RowProduct`, which keeps rows apart (see `product.py`);
- attention multiplies per row and KV head, with a key width that depends only on the row's own position;
- everything else is element by element, or a reduction of fixed length along the row.

So a sequence has the same logits to the bit, whether alone or in any batch, fed at once or token by token.

Letters: N rows, V vocabulary, D hidden, A heads, G KV heads, R = A / G, K head size, W key width.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from rollcast.models.tiny.product import RowProduct
from rollcast.models.tiny.weights import Array, LayerParameters, ModelConfig, Parameters

__all__ = ["Memory", "Model", "Segment", "forward", "key_mask", "key_width"]

Ints = NDArray[np.intp]

_NARROWEST = 64


def key_width(length: int) -> int:
    """How many keys a row of this length multiplies with (64, 128, 256, …); only the length decides."""
    return max(_NARROWEST, 1 << (length - 1).bit_length())


def key_mask(positions_N: Ints, width: int) -> Array:
    """(N, 1, 1, W): 0 where a row may look, and elsewhere minus infinity, whose exponential is exactly 0."""
    mask: Array = _masks(width)[width - 1 - positions_N]
    return mask[:, None, None, :]


@functools.lru_cache
def _masks(width: int) -> Array:
    """All masks of a width, (W, W), as a view: row r hides its last r keys."""
    seen, hidden = np.zeros(width, np.float32), np.full(width - 1, -np.inf, np.float32)
    return sliding_window_view(np.concatenate([seen, hidden]), width)


class Memory(NamedTuple):
    """Keys and values of some sequences. Keys lie transposed, as the product with queries reads them.

    Attributes:
        keys: (layers, slots, G, K, W).
        values: (layers, slots, G, W, K).
    """

    keys: Array
    values: Array


class Segment(NamedTuple):
    """Rows `start:stop` of a forward pass that share a key width.

    Attributes:
        memory: views with the keys and values. A decoding segment has one slot per row; if the rows are consecutive
            tokens of one sequence, there is one slot.
        slots: index of each row's slot, (n,) or an integer.
        positions: each row's position, (n,).
        mask: from `key_mask`, (n, 1, 1, W).
    """

    start: int
    stop: int
    memory: Memory
    slots: Ints | int
    positions: Ints
    mask: Array


class Model(NamedTuple):
    """What a forward pass computes with."""

    config: ModelConfig
    parameters: Parameters
    product: RowProduct


def forward(
    model: Model,
    ids_N: Ints,
    positions_N: Ints,
    segments: list[Segment],
    wanted: Ints | None = None,
) -> Array:
    """Compute the logits (len(wanted), V) of the wanted rows, by default all; keys and values go where the segments say.

    Rows beyond the last segment are padding and attend to nothing.
    """
    config, parameters, product = model
    x_ND = parameters.embed_VD[ids_N]
    # Once over all heads: multiplying whole arrays in every layer is faster than broadcasting.
    heads = config.num_attention_heads + config.num_key_value_heads
    cos = np.repeat(parameters.cos_TK[positions_N][:, None], heads, 1)
    sin = np.repeat(parameters.sin_TK[positions_N][:, None], heads, 1)
    for index, layer in enumerate(parameters.layers):
        x_ND += _attention(model, index, x_ND, (cos, sin), segments)
        x_ND += _feed_forward(model, layer, x_ND)
    if wanted is not None:
        x_ND = x_ND[wanted]
    return product(_normed(x_ND, config.rms_norm_eps), parameters.unembed_DV)


def _normed(x: Array, eps: float) -> Array:
    """Divide by sqrt(sum(x²) + n eps) along the last axis of length n; the rest of the norm is folded into what follows."""
    square = (x[..., None, :] @ x[..., :, None])[..., 0]
    square += np.float32(eps * x.shape[-1])
    normed: Array = x / np.sqrt(square, out=square)
    return normed


def _attention(
    model: Model, index: int, x_ND: Array, rotation: tuple[Array, Array], segments: list[Segment]
) -> Array:
    config, parameters, product = model
    layer, (cos, sin) = parameters.layers[index], rotation
    heads, kv, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    rows = len(x_ND)
    qkv = product(_normed(x_ND, config.rms_norm_eps), layer.qkv_DE)
    qk = _normed(qkv[:, : (heads + kv) * size].reshape(rows, heads + kv, size), config.rms_norm_eps)
    qk *= layer.norm_qk
    swapped = qk.reshape(rows, heads + kv, 2, size // 2)[:, :, ::-1].reshape(qk.shape)
    qk *= cos
    swapped *= sin
    qk += swapped
    q = qk[:, :heads].reshape(rows, kv, heads // kv, size)
    v = qkv[:, (heads + kv) * size :].reshape(rows, kv, size)
    mixed = np.zeros((rows, kv, heads // kv, size), np.float32)
    for start, stop, memory, slots, positions, mask in segments:
        keys, values = memory.keys[index], memory.values[index]
        keys[slots, :, :, positions] = qk[start:stop, heads:]
        values[slots, :, positions] = v[start:stop]
        scores = q[start:stop] @ keys
        scores += mask
        if not layer.bounded:
            scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        np.divide(scores @ values, scores.sum(-1, keepdims=True), out=mixed[start:stop])
    return product(mixed.reshape(rows, heads * size), layer.out_ED)


def _feed_forward(model: Model, layer: LayerParameters, x_ND: Array) -> Array:
    config, _, product = model
    gate_up = product(_normed(x_ND, config.rms_norm_eps), layer.gate_up_DF)
    gate = gate_up[:, : config.intermediate_size]
    # SiLU. The exponential of a large -gate is infinite and the quotient 0, which is the limit; the engine lets NumPy
    # ignore the overflow.
    inner = np.negative(gate)
    np.exp(inner, out=inner)
    inner += np.float32(1)
    np.divide(gate, inner, out=inner)
    inner *= gate_up[:, config.intermediate_size :]
    return product(inner, layer.down_FD)
