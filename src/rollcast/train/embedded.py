"""GRPO for the embedded model: a backward pass by hand and AdamW, in NumPy.

**This is not for real models.** It knows one architecture (Qwen3: RMSNorm before each block and on queries and keys, rotary
positions, grouped-query attention, SwiGLU; tied or untied embeddings), keeps everything in float32 on the CPU, and holds
all activations. It exists so that the whole loop, from sampled tokens to better weights, can be read, watched and run
anywhere in a minute. For real models use `rollcast.train.trl`, or verl through `rollcast.train.export`.

`EmbeddedTrainer.step` cuts a batch into minibatches and these into micro-batches, `_gradient` is one micro-batch's loss and
gradient, `_grpo` the loss; the model's forward and backward pass are in `gradient.py`. All parameters lie one after the other in
one vector, all gradients in another of the same layout, so that clipping and AdamW are a few lines over vectors.

Two threads work on micro-batches; their gradients are summed in the order of the micro-batches, with one BLAS thread, so
that the same seed gives the same weights to the byte.

Letters: B rows, T tokens, S sampled tokens, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from rollcast.errors import InputError
from rollcast.models.tiny.weights import Array, ModelConfig
from rollcast.train.batch import TrainBatch
from rollcast.train.config import GRPOConfig
from rollcast.train.gradient import Model, ParameterVector

__all__ = ["EmbeddedTrainer", "one_blas_thread"]

_BETAS, _EPSILON = (0.9, 0.98), 1e-8
_THREADS = 2
_MICRO_TOKENS = 768  # in a micro-batch, with padding: its arrays then stay in a core's cache
_SMALLEST_MINIBATCH = 16


def _grpo(
    logits_SV: Array,
    ids_S: NDArray[np.int64],
    old_S: Array,
    advantages_S: Array,
    tokens: int,
    config: GRPOConfig,
) -> tuple[Array, NDArray[np.float64]]:
    """Return the gradient of the loss with respect to the logits, (S, V), and what this micro-batch adds to the metrics.

    The loss is the mean over the minibatch's `tokens` of -min(r A, clip(r) A) - bonus H, with r = exp(logprob - old) and H
    the entropy of the trained model's distribution there. The rollout's own log-probabilities are the old ones
    (https://arxiv.org/abs/2402.03300, without its KL term; mean over tokens as in https://arxiv.org/abs/2503.14476).
    """
    here = np.arange(len(ids_S))
    logits_SV = logits_SV / np.float32(config.temperature)
    logits_SV -= logits_SV.max(-1, keepdims=True)
    logprobs_SV = logits_SV - np.log(np.exp(logits_SV).sum(-1, keepdims=True))
    p_SV = np.exp(logprobs_SV)
    change_S = logprobs_SV[here, ids_S] - old_S
    ratio_S = np.exp(change_S)
    clipped_S = np.clip(ratio_S, 1 - config.clip_low, 1 + config.clip_high)
    held_S = ratio_S * advantages_S > clipped_S * advantages_S  # the minimum is the constant: no gradient
    objective_S = np.minimum(ratio_S * advantages_S, clipped_S * advantages_S)
    slope_S = np.where(held_S, 0, -ratio_S * advantages_S / tokens / config.temperature).astype(np.float32)
    d_SV = -slope_S[:, None] * p_SV
    d_SV[here, ids_S] += slope_S
    entropy_S = -np.einsum("sv,sv->s", p_SV, logprobs_SV)
    bonus = np.float32(config.entropy_bonus)
    if bonus:  # dH/dlogit = -p (logprob + H) / temperature
        d_SV += bonus / np.float32(tokens * config.temperature) * p_SV * (logprobs_SV + entropy_S[:, None])
    sums = (
        -objective_S - bonus * entropy_S,
        entropy_S,
        held_S,
        ratio_S - 1 - change_S,  # never negative, and its mean estimates the KL divergence without bias
    )
    return d_SV, np.array([part.sum(dtype=np.float64) for part in sums]) / tokens


class EmbeddedTrainer:
    """Trains the embedded model's weights.

    Args:
        model: the model's sizes.
        weights: the weights by their Hugging Face names; they are copied.
        config: how to learn.

    Attributes:
        steps: how often `step` was called.
        updates: how often the weights were updated.

    Raises:
        InputError: the weights are not this model's.
    """

    def __init__(self, model: ModelConfig, weights: Mapping[str, Any], config: GRPOConfig) -> None:
        self.config = config
        self.steps = self.updates = 0
        self._model = Model(model, weights)
        size = self._model.parameters.flat.size
        self._moments = np.zeros((2, size), np.float32)
        _blas()  # reads files, which is better done here than later, in an event loop

    @property
    def weights(self) -> dict[str, Array]:
        """The parameters by their Hugging Face names: views that change with the next step."""
        return dict(self._model.parameters.named)

    def state(self) -> dict[str, Array]:
        """A copy of what `load_state` needs beside the weights."""
        return {"moments": self._moments.copy(), "counts": np.array([self.steps, self.updates], np.float32)}

    def load_state(self, weights: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Go on from a trainer's `weights` and `state()`.

        Raises:
            InputError: they belong to another model.
        """
        moments, counts = (np.asarray(state[name]) for name in ("moments", "counts"))
        if moments.shape != self._moments.shape or counts.shape != (2,):
            raise InputError(
                f"the optimizer's moments have shape {moments.shape}; expected {self._moments.shape} of this model"
            )
        model = Model(self._model.config, weights)
        self._model, self._moments = model, moments.astype(np.float32)
        self.steps, self.updates = map(int, counts)

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Learn from a batch: `epochs` passes, each in up to `minibatches` updates.

        Returns:
            Means over the updates: `loss`, `entropy` (nats per token), `clip_fraction` (of tokens), `kl` (nats per token,
            from the rollout's weights to those before the update), `grad_norm` (before clipping); and `learning_rate`.

        Raises:
            InputError: the batch is empty or does not fit this model, or the gradient is not finite.
        """
        self._check(batch)
        config = self.config
        rate = config.learning_rate * min(1.0, (self.steps + 1) / max(1, config.warmup_steps))
        shuffle = np.random.default_rng([config.seed, self.steps])
        parts = min(config.minibatches, max(1, len(batch) // _SMALLEST_MINIBATCH))
        figures = []
        with one_blas_thread(), ThreadPoolExecutor(_THREADS, "rollcast-train") as pool:
            for _ in range(config.epochs):
                order = shuffle.permutation(len(batch))
                for part in range(parts):
                    gradient, metrics = self._sum(batch, order[part::parts], pool)
                    norm = self._update(gradient, rate)
                    figures.append([*metrics, norm])
        self.steps += 1
        names = ("loss", "entropy", "clip_fraction", "kl", "grad_norm")
        means = np.mean(figures, 0).tolist()
        return dict(zip(names, means, strict=True)) | {"learning_rate": rate}

    def gradients(self, batch: TrainBatch) -> tuple[dict[str, Array], float]:
        """The gradient of the loss over the whole batch, by parameter name, and the loss; the weights do not change."""
        self._check(batch)
        with one_blas_thread(), ThreadPoolExecutor(_THREADS, "rollcast-train") as pool:
            gradient, metrics = self._sum(batch, np.arange(len(batch)), pool)
        return ParameterVector(self._model.config, gradient).named, float(metrics[0])

    def _check(self, batch: TrainBatch) -> None:
        model, ids = self._model.config, batch.input_ids_BT
        if not batch.loss_mask_BT[:, 1:].any():
            raise InputError(
                "the batch has no sampled token to learn from; skip a step whose groups are all flat"
            )
        if ids.shape[1] > model.max_position_embeddings or ids.max() >= model.vocab_size or ids.min() < 0:
            raise InputError(
                f"the batch has rows of {ids.shape[1]} tokens and ids up to {ids.max()}; this model has "
                f"{model.max_position_embeddings} positions and {model.vocab_size} tokens"
            )

    def _sum(
        self, batch: TrainBatch, rows: NDArray[np.intp], pool: ThreadPoolExecutor
    ) -> tuple[Array, NDArray[np.float64]]:
        """Sum the loss and gradient of a minibatch over micro-batches of rows of similar length, the longest first."""
        tokens = int(batch.loss_mask_BT[rows, 1:].sum())
        lengths = batch.attention_mask_BT.sum(1)
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        cuts, begin = [], 0
        while begin < len(rows):
            end = begin + max(1, _MICRO_TOKENS // int(lengths[rows[begin]]))
            cuts.append(batch.rows(rows[begin:end]))
            begin = end
        gradient: Array | None = None
        metrics = np.zeros(4)
        for part, sums in pool.map(functools.partial(self._gradient, tokens=tokens), cuts):  # in this order
            gradient = part if gradient is None else np.add(gradient, part, out=gradient)
            metrics += sums
        assert gradient is not None
        return gradient, metrics

    def _gradient(self, batch: TrainBatch, tokens: int) -> tuple[Array, NDArray[np.float64]]:
        """The gradient and the metrics of one micro-batch."""
        ids_BT, targets_BT, mask_BT = (
            batch.input_ids_BT[:, :-1],
            batch.input_ids_BT[:, 1:],
            batch.loss_mask_BT[:, 1:],
        )
        picked_S = np.flatnonzero(mask_BT)
        old_S = batch.logprobs_BT[:, 1:][mask_BT]
        advantages_S = np.repeat(batch.advantages_B, mask_BT.sum(1))
        with np.errstate(over="ignore"):  # SiLU's exponential overflows to the right limit
            logits_SV, kept, top = self._model.forward(ids_BT, picked_S)
            d_SV, sums = _grpo(logits_SV, targets_BT[mask_BT], old_S, advantages_S, tokens, self.config)
            return self._model.backward(d_SV, ids_BT, picked_S, kept, top), sums

    def _update(self, gradient: Array, rate: float) -> float:
        """Update with AdamW (https://arxiv.org/abs/1711.05101) without weight decay; return the gradient's norm before clipping."""
        norm = math.sqrt(float(gradient @ gradient))
        if not math.isfinite(norm):
            raise InputError(
                f"the gradient is not finite after {self.updates} updates; train again with a learning_rate below "
                f"{self.config.learning_rate:g}, or resume from an earlier checkpoint"
            )
        gradient *= np.float32(min(1.0, self.config.max_grad_norm / (norm + 1e-6)))
        self.updates += 1
        (mean, square), (beta1, beta2) = self._moments, _BETAS
        mean += np.float32(1 - beta1) * (gradient - mean)
        square += np.float32(1 - beta2) * (gradient * gradient - square)
        root = np.sqrt(square / np.float32(1 - beta2**self.updates)) + np.float32(_EPSILON)
        self._model.parameters.flat -= np.float32(rate / (1 - beta1**self.updates)) * mean / root
        return norm


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread.

    Two threads with one BLAS thread each are faster here than one with two, and a fixed number keeps sums in order.
    """
    with _blas().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _blas() -> ThreadpoolController:
    """Search the process's libraries for BLAS, once: it takes milliseconds."""
    return ThreadpoolController()
