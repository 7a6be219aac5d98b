"""Samples tokens from logits: temperature, top-k, top-p, and the log-probability of what was drawn.

These are pure functions; every row depends only on its own logits, parameters and uniform number.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rollcast.models.backend import Sampling

__all__ = ["SamplingPlan", "sample", "sampling_plan", "uniforms"]

Doubles = NDArray[np.float64]
Ints = NDArray[np.intp]

# Below this the distribution is greedy to the last bit, and 1 / temperature still is a float32.
_COLDEST = 1e-8

_CHUNK = 32


class SamplingPlan(NamedTuple):
    """The parameters of a batch as arrays. It is built once for as long as the same rows decode.

    Attributes:
        temperature: (B, 1), 1 for greedy rows; None if all are 1.
        greedy: row numbers, or None.
        narrowed: numbers of the rows with top-k or top-p, or None; then `top_k` and `top_p` are (len(narrowed), 1).
    """

    temperature: NDArray[np.float32] | None
    greedy: Ints | None
    narrowed: Ints | None
    top_k: Ints
    top_p: Doubles


def sampling_plan(samplings: Sequence[Sampling]) -> SamplingPlan:
    """The parameters of these rows as arrays."""
    temperature = np.array([[s.temperature or 1.0] for s in samplings], np.float32)
    greedy = [i for i, s in enumerate(samplings) if s.temperature == 0]
    narrowed = [i for i, s in enumerate(samplings) if s.temperature > 0 and (s.top_k > 0 or s.top_p < 1)]
    every = np.iinfo(np.intp).max
    return SamplingPlan(
        temperature=None if (temperature == 1).all() else np.maximum(temperature, np.float32(_COLDEST)),
        greedy=np.array(greedy, np.intp) if greedy else None,
        narrowed=np.array(narrowed, np.intp) if narrowed else None,
        top_k=np.array([[min(samplings[i].top_k or every, every)] for i in narrowed], np.intp),
        top_p=np.array([[samplings[i].top_p] for i in narrowed], np.float64),
    )


def uniforms(seed: int | None, count: int) -> list[float]:
    """One number in [0, 1) for each token of a generation; the same for the same seed. None draws fresh entropy.

    It uses the standard library's Mersenne Twister: NumPy's generators release the interpreter lock while they fill, and
    getting it back in the engine's thread took half a millisecond.
    """
    number = random.Random(seed).random
    return [number() for _ in range(count)]


def sample(logits_BV: NDArray[np.float32], plan: SamplingPlan, uniform_B: Doubles) -> tuple[Ints, Doubles]:
    """Draw tokens (B,); also return their log-probabilities (B,) in the distribution that was sampled from.

    A greedy row takes the most probable token, the first of equals; its log-probability is that of temperature 1.
    The other rows invert the cumulative distribution at their uniform number.
    """
    scores = logits_BV - logits_BV.max(1, keepdims=True)
    if plan.temperature is not None:
        scores /= plan.temperature
    if plan.narrowed is not None:
        scores[plan.narrowed] = _narrowed(scores[plan.narrowed], plan.top_k, plan.top_p)
    tokens, total = _inverted(np.exp(scores), uniform_B)
    if plan.greedy is not None:
        tokens[plan.greedy] = scores[plan.greedy].argmax(1)
    logprobs = scores[np.arange(len(scores)), tokens] - np.log(total)
    return tokens, logprobs


def _inverted(weights_BV: NDArray[np.float32], uniform_B: Doubles) -> tuple[Ints, Doubles]:
    """The first token (B,) at which the running sum passes that share of the total, and the total (B,).

    The sums run over chunks first, then inside the chunk that was found: one long running sum is slow.
    """
    rows, vocabulary = weights_BV.shape
    if vocabulary % _CHUNK:
        padding = np.zeros((rows, -vocabulary % _CHUNK), np.float32)
        weights_BV = np.concatenate([weights_BV, padding], 1)
    chunks = weights_BV.reshape(rows, -1, _CHUNK)
    sums = np.cumsum(chunks.sum(2), axis=1, dtype=np.float64)
    total = sums[:, -1]
    each = np.arange(rows)
    target = uniform_B * total
    chunk = _first_above(sums, target)
    before = np.where(chunk > 0, sums[each, chunk - 1], 0.0)
    place = _first_above(np.cumsum(chunks[each, chunk], axis=1, dtype=np.float64), target - before)
    return chunk * _CHUNK + place, total


def _first_above(sums: Doubles, target: Doubles) -> Ints:
    """The index at which rising sums (B, n) first exceed the target (B,); rounding never leads past the last rise."""
    target = np.minimum(target, np.nextafter(sums[:, -1], 0))
    places: Ints = (sums > target[:, None]).argmax(1)
    return places


def _narrowed(scores: NDArray[np.float32], top_k: Ints, top_p: Doubles) -> NDArray[np.float32]:
    """Set scores to minus infinity outside the top-k, then outside the smallest set with at least `top_p` of the rest."""
    order = np.argsort(-scores, axis=1, kind="stable")
    sorted_scores = np.take_along_axis(scores, order, 1)
    kept = np.arange(scores.shape[1]) < top_k
    probability = np.where(kept, np.exp(sorted_scores, dtype=np.float64), 0.0)
    cumulative = np.cumsum(probability, axis=1)
    kept &= cumulative - probability < top_p * cumulative[:, -1:]
    narrowed = np.full_like(scores, -np.inf)
    np.put_along_axis(narrowed, order, np.where(kept, sorted_scores, np.float32(-np.inf)), 1)
    return narrowed
