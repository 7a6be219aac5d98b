"""Samples tokens from logits on the device: temperature, top-k, top-p, and the log-probability of what was drawn.

The rules are those of the embedded model's sampler. Every row depends only on its own logits, parameters and uniform
number.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rollcast.models.backend import Sampling

__all__ = ["SamplingPlan", "sample", "sampling_plan"]

# Below this the distribution is greedy to the last bit, and 1 / temperature still is a float32.
_COLDEST = 1e-8

_CHUNK = 64

# More than any vocabulary has.
_ALL = 1 << 31


class SamplingPlan(NamedTuple):
    """The parameters of a batch as tensors. It is built once for as long as the same rows decode.

    Attributes:
        temperature: (B, 1), 1 for greedy rows; None if all are 1.
        greedy: row numbers, or None.
        narrowed: numbers of the rows with top-k or top-p, or None; then `top_k` and `top_p` are (len(narrowed), 1).
        most: the largest top-k; None if a row has none.
    """

    temperature: Tensor | None
    greedy: Tensor | None
    narrowed: Tensor | None
    top_k: Tensor
    top_p: Tensor
    most: int | None


def sampling_plan(samplings: Sequence[Sampling], device: torch.device) -> SamplingPlan:
    """The parameters of these rows as tensors."""
    temperatures = [max(s.temperature, _COLDEST) if s.temperature else 1.0 for s in samplings]
    greedy = [i for i, s in enumerate(samplings) if s.temperature == 0]
    narrowed = [i for i, s in enumerate(samplings) if s.temperature > 0 and (s.top_k > 0 or s.top_p < 1)]
    top_k = [samplings[i].top_k for i in narrowed]
    return SamplingPlan(
        temperature=None
        if set(temperatures) <= {1.0}
        else torch.tensor(temperatures, dtype=torch.float32, device=device)[:, None],
        greedy=torch.tensor(greedy, device=device) if greedy else None,
        narrowed=torch.tensor(narrowed, device=device) if narrowed else None,
        top_k=torch.tensor([min(k or _ALL, _ALL) for k in top_k], device=device)[:, None],
        top_p=torch.tensor([samplings[i].top_p for i in narrowed], dtype=torch.float32, device=device)[
            :, None
        ],
        most=max(top_k) if top_k and all(top_k) else None,
    )


def sample(logits_BV: Tensor, plan: SamplingPlan, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw tokens (B,); also return their log-probabilities (B,) in the distribution that was sampled from.

    A greedy row takes the most probable token; its log-probability is that of temperature 1. The others invert the
    cumulative distribution at their uniform number. Nothing waits for the device.
    """
    scores = logits_BV.float()
    scores = scores - scores.amax(1, keepdim=True)
    if plan.temperature is not None:
        scores = scores / plan.temperature
    if plan.narrowed is not None:
        scores[plan.narrowed] = _narrowed(scores[plan.narrowed], plan)
    tokens, total = _inverted(scores.exp(), uniform_B)
    if plan.greedy is not None:
        tokens[plan.greedy] = scores[plan.greedy].argmax(1)
    return tokens, scores.gather(1, tokens[:, None])[:, 0] - total.log()


def _inverted(weights_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first token (B,) at which the running sum passes that share of the total, and the total (B,).

    The sums run over chunks first, then inside the chunk that was found: one long running sum is slow and inexact.
    """
    rows, vocabulary = weights_BV.shape
    padded = torch.nn.functional.pad(weights_BV, (0, -vocabulary % _CHUNK))
    chunks = padded.reshape(rows, -1, _CHUNK)
    sums = chunks.sum(2).cumsum(1)
    total = sums[:, -1]
    target = uniform_B * total
    chunk = _first_above(sums, target)
    before = torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = chunks[torch.arange(rows, device=chunk.device), chunk].cumsum(1)
    return chunk * _CHUNK + _first_above(inside, target - before), total


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """The index at which rising sums (B, n) first exceed the target (B,); rounding never leads past the last rise."""
    below = torch.nextafter(sums[:, -1], torch.zeros_like(sums[:, -1]))
    return (sums > torch.minimum(target, below)[:, None]).to(torch.uint8).argmax(1)


def _narrowed(scores: Tensor, plan: SamplingPlan) -> Tensor:
    """Set scores to minus infinity outside the top-k, then outside the smallest set with at least `top_p` of the rest."""
    if plan.most is not None and plan.most < scores.shape[1]:
        ordered, order = scores.topk(plan.most, 1)
    else:
        ordered, order = scores.sort(dim=1, descending=True, stable=True)
    kept = torch.arange(ordered.shape[1], device=scores.device) < plan.top_k
    probability = torch.where(kept, ordered.exp(), 0.0)
    cumulative = probability.cumsum(1)
    kept &= cumulative - probability < plan.top_p * cumulative[:, -1:]
    return torch.full_like(scores, -torch.inf).scatter(1, order, torch.where(kept, ordered, -torch.inf))
