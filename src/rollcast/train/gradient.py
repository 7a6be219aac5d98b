"""The embedded model's forward and backward pass, in NumPy, for `embedded.py`.

Letters: B rows, T tokens, N = B T, S sampled tokens, V vocabulary, D hidden, F feed-forward, G KV heads, R queries per KV head,
K head size, E = (heads + 2 G) K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rollcast.models.tiny.weights import Array, ModelConfig, build_parameters, parameter_shapes

__all__ = ["Kept", "Layer", "Model", "Normed", "ParameterVector"]


class Layer(NamedTuple):
    """Views of one decoder layer's parameters, or gradients, output before input as in a checkpoint."""

    norm_D: Array
    qkv_ED: Array
    norm_q_K: Array
    norm_k_K: Array
    out_DE: Array
    norm_after_D: Array
    gate_up_FD: Array  # (2 F, D)
    down_DF: Array


class ParameterVector:
    """All parameters, or their gradients, in one vector, and views of it.

    Attributes:
        flat: the vector, (P,).
        named: views by their Hugging Face names.
        embed_VD, head_VD, norm_D, layers: views as the model multiplies them; a tied head is the embedding.
    """

    def __init__(self, config: ModelConfig, flat: Array | None = None) -> None:
        shapes = parameter_shapes(config)
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()]).tolist()
        self.flat: Array = np.zeros(ends[-1], np.float32) if flat is None else flat
        spans = dict(zip(shapes, zip([0, *ends], ends, strict=False), strict=True))

        def view(first: str, last: str | None = None) -> Array:
            # Matrices that multiply the same input are side by side: one product is enough for them.
            part = self.flat[spans[first][0] : spans[last or first][1]]
            return part.reshape(-1, *shapes[first][1:])

        self.named = {name: view(name) for name in shapes}
        self.embed_VD, self.norm_D = view("model.embed_tokens.weight"), view("model.norm.weight")
        self.head_VD = self.embed_VD if config.tie_word_embeddings else view("lm_head.weight")
        self.layers = []
        for index in range(config.num_hidden_layers):
            at = f"model.layers.{index}.%s.weight"
            self.layers.append(
                Layer(
                    norm_D=view(at % "input_layernorm"),
                    qkv_ED=view(at % "self_attn.q_proj", at % "self_attn.v_proj"),
                    norm_q_K=view(at % "self_attn.q_norm"),
                    norm_k_K=view(at % "self_attn.k_norm"),
                    out_DE=view(at % "self_attn.o_proj"),
                    norm_after_D=view(at % "post_attention_layernorm"),
                    gate_up_FD=view(at % "mlp.gate_proj", at % "mlp.up_proj"),
                    down_DF=view(at % "mlp.down_proj"),
                )
            )


class Normed(NamedTuple):
    """What the backward pass of an RMSNorm needs: the input over its root mean square, and 1 over that."""

    unit: Array
    inverse: Array


class Kept(NamedTuple):
    """What the backward pass of one layer needs."""

    before: Normed
    queries: Normed
    keys: Normed
    q: Array  # (B, G, R T, K), rotated and scaled
    k: Array  # (B, G, T, K), rotated
    v: Array
    probabilities: Array  # (B, G, R T, T)
    mixed_NE: Array
    after: Normed
    gate_up_NF: Array
    sigmoid_NF: Array


class _Positions(NamedTuple):
    """For T tokens: rotations (T, 1, K) and the causal mask, repeated for the R queries of a KV head (R T, T)."""

    cos: Array
    sin: Array
    mask: Array


def _norm(x: Array, weight: Array, eps: float) -> tuple[Array, Normed]:
    inverse = 1 / np.sqrt(
        np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1]) + np.float32(eps)
    )
    unit = x * inverse
    return unit * weight, Normed(unit, inverse)


def _norm_back(dy: Array, kept: Normed, weight: Array, into: Array) -> Array:
    """Return the gradient of a norm's input, and write that of its weight into `into`."""
    unit = kept.unit
    np.einsum("ni,ni->i", dy.reshape(-1, len(weight)), unit.reshape(-1, len(weight)), out=into)
    dy = dy * weight
    along = np.einsum("...i,...i->...", dy, unit)[..., None] / np.float32(len(weight))
    result: Array = kept.inverse * (dy - unit * along)
    return result


def _swap(x: Array) -> Array:
    half = x.shape[-1] // 2
    return np.concatenate([x[..., half:], x[..., :half]], -1)


class Model:
    """The forward and backward pass over rows that are padded at their ends.

    Padding needs no mask: no token looks ahead at it, and it has no loss.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any]) -> None:
        built = build_parameters(weights, config)  # checks the weights
        self.config = config
        self.cos, self.sin = built.cos_TK[:, None], built.sin_TK[:, None]
        self.parameters = ParameterVector(config)
        for name, array in self.parameters.named.items():
            array[...] = weights[name]

    def _positions(self, tokens: int) -> _Positions:
        repeats = self.config.num_attention_heads // self.config.num_key_value_heads
        mask = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        return _Positions(self.cos[:tokens], self.sin[:tokens], np.tile(mask, (repeats, 1)))

    def forward(
        self, ids_BT: NDArray[np.int64], picked_S: NDArray[np.intp]
    ) -> tuple[Array, list[Kept], Normed]:
        """Return logits (S, V) at the picked places of the flattened rows, and what the backward pass needs."""
        positions = self._positions(ids_BT.shape[1])
        x_ND = self.parameters.embed_VD[ids_BT.ravel()]
        kept = []
        for layer in self.parameters.layers:
            x_ND, keeps = self._layer(layer, x_ND, ids_BT.shape, positions)
            kept.append(keeps)
        h_SD, top = _norm(x_ND[picked_S], self.parameters.norm_D, self.config.rms_norm_eps)
        return h_SD @ self.parameters.head_VD.T, kept, top

    def _layer(
        self, layer: Layer, x_ND: Array, shape: tuple[int, ...], positions: _Positions
    ) -> tuple[Array, Kept]:
        c = self.config
        (rows, tokens), eps = shape, c.rms_norm_eps
        kv, size = c.num_key_value_heads, c.head_dim
        h_ND, before = _norm(x_ND, layer.norm_D, eps)
        qkv = (h_ND @ layer.qkv_ED.T).reshape(rows, tokens, -1, size)
        q, queries = _norm(qkv[:, :, : c.num_attention_heads], layer.norm_q_K, eps)
        k, keys = _norm(qkv[:, :, c.num_attention_heads : -kv], layer.norm_k_K, eps)
        q, k = (x * positions.cos + _swap(x) * positions.sin for x in (q, k))
        q *= np.float32(size**-0.5)
        q, k, v = self._by_head(q), self._by_head(k), self._by_head(qkv[:, :, -kv:])
        p: Array = q @ k.swapaxes(-1, -2)
        p += positions.mask
        p -= p.max(-1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(-1, keepdims=True)
        mixed_NE = self._by_token(p @ v, tokens)
        x_ND = x_ND + mixed_NE @ layer.out_DE.T
        h_ND, after = _norm(x_ND, layer.norm_after_D, eps)
        gate_up = h_ND @ layer.gate_up_FD.T
        gate, up = np.split(gate_up, 2, 1)
        sigmoid = 1 / (1 + np.exp(-gate))
        x_ND = x_ND + (gate * sigmoid * up) @ layer.down_DF.T
        return x_ND, Kept(before, queries, keys, q, k, v, p, mixed_NE, after, gate_up, sigmoid)

    def _by_head(self, x: Array) -> Array:
        """Reshape (B, T, G R, K) to (B, G, R T, K)."""
        rows, tokens, heads, size = x.shape
        kv = self.config.num_key_value_heads
        turned = x.reshape(rows, tokens, kv, heads // kv, size).transpose(0, 2, 3, 1, 4)
        return np.ascontiguousarray(turned).reshape(rows, kv, -1, size)

    def _by_token(self, x: Array, tokens: int) -> Array:
        """Reshape (B, G, R T, K) to (B T, G R K)."""
        rows, kv, _, size = x.shape
        turned = x.reshape(rows, kv, -1, tokens, size).transpose(0, 3, 1, 2, 4)
        return turned.reshape(rows * tokens, -1)

    def backward(
        self,
        dlogits_SV: Array,
        ids_BT: NDArray[np.int64],
        picked_S: NDArray[np.intp],
        kept: list[Kept],
        top: Normed,
    ) -> Array:
        """Return the gradient of all parameters, in their layout, (P,)."""
        here, gradient = self.parameters, ParameterVector(self.config)
        np.matmul(dlogits_SV.T, top.unit * here.norm_D, out=gradient.head_VD)
        dx_ND = np.zeros((ids_BT.size, self.config.hidden_size), np.float32)
        dx_ND[picked_S] = _norm_back(dlogits_SV @ here.head_VD, top, here.norm_D, gradient.norm_D)
        positions = self._positions(ids_BT.shape[1])
        for layer, into, keeps in zip(
            reversed(here.layers), reversed(gradient.layers), reversed(kept), strict=True
        ):
            self._feed_forward_back(layer, into, keeps, dx_ND)
            self._attention_back(layer, into, keeps, dx_ND, positions)
        np.add.at(gradient.embed_VD, ids_BT.ravel(), dx_ND)
        return gradient.flat

    def _feed_forward_back(self, layer: Layer, into: Layer, kept: Kept, dx_ND: Array) -> None:
        """Turn `dx_ND` from the gradient of the layer's output into that of the feed-forward's input, by adding to it."""
        gate, up = np.split(kept.gate_up_NF, 2, 1)
        silu = gate * kept.sigmoid_NF
        np.matmul(dx_ND.T, silu * up, out=into.down_DF)
        inner = dx_ND @ layer.down_DF
        slope = kept.sigmoid_NF + silu * (1 - kept.sigmoid_NF)
        d_gate_up = np.concatenate([inner * up * slope, inner * silu], 1)
        np.matmul(d_gate_up.T, kept.after.unit * layer.norm_after_D, out=into.gate_up_FD)
        dx_ND += _norm_back(d_gate_up @ layer.gate_up_FD, kept.after, layer.norm_after_D, into.norm_after_D)

    def _attention_back(
        self, layer: Layer, into: Layer, kept: Kept, dx_ND: Array, positions: _Positions
    ) -> None:
        """Do what `_feed_forward_back` does, for the attention."""
        tokens, size = kept.k.shape[2:]
        p = kept.probabilities
        np.matmul(dx_ND.T, kept.mixed_NE, out=into.out_DE)
        d_mixed = self._by_head(
            (dx_ND @ layer.out_DE).reshape(-1, tokens, layer.out_DE.shape[1] // size, size)
        )
        ds: Array = d_mixed @ kept.v.swapaxes(-1, -2)
        ds -= np.einsum("...i,...i->...", ds, p)[..., None]
        ds *= p
        dq = self._by_token(ds @ kept.k, tokens).reshape(-1, tokens, self.config.num_attention_heads, size)
        dq *= np.float32(size**-0.5)
        dk, dv = (
            self._by_token(x.swapaxes(-1, -2) @ y, tokens).reshape(
                -1, tokens, self.config.num_key_value_heads, size
            )
            for x, y in ((ds, kept.q), (p, d_mixed))
        )
        dq, dk = (d * positions.cos + _swap(d * positions.sin) for d in (dq, dk))
        dq = _norm_back(dq, kept.queries, layer.norm_q_K, into.norm_q_K)
        dk = _norm_back(dk, kept.keys, layer.norm_k_K, into.norm_k_K)
        d_qkv = np.concatenate([dq, dk, dv], 2).reshape(len(dx_ND), -1)
        np.matmul(d_qkv.T, kept.before.unit * layer.norm_D, out=into.qkv_ED)
        dx_ND += _norm_back(d_qkv @ layer.qkv_ED, kept.before, layer.norm_D, into.norm_D)
