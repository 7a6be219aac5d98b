"""Computes what a sampler should do from a reference's log-probabilities. These are pure functions.

Letters: T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollcast.models.backend import Sampling

__all__ = ["chi_square_excess", "expected_logprobs", "sampled_distributions"]

Doubles = NDArray[np.float64]


def sampled_distributions(logprobs_V: NDArray[Any], sampling: Sampling, slack: float) -> list[Doubles]:
    """The log-probabilities (V,) after temperature, top-k and top-p, in this order; minus infinity is never sampled.

    If rounding of the size of `slack` decides which tokens top-k and top-p keep, each possible set gives one entry.
    """
    scores = np.asarray(logprobs_V, np.float64)
    if sampling.temperature == 0:
        best = scores.max()
        return [
            np.where(np.arange(len(scores)) == i, 0.0, -np.inf)
            for i in np.flatnonzero(scores >= best - slack)
        ]
    scores = scores / sampling.temperature
    scores -= _log_sum(scores)
    slack = slack / min(sampling.temperature, 1.0)
    found: dict[bytes, Doubles] = {}
    for kept_k in _top_k(scores, sampling.top_k, slack):
        for kept in _top_p(np.where(kept_k, scores, -np.inf), sampling.top_p, slack):
            narrowed = np.where(kept, scores, -np.inf)
            found[kept.tobytes()] = narrowed - _log_sum(narrowed)
    return list(found.values())


def _log_sum(scores: Doubles) -> float:
    best = scores.max()
    return float(best + np.log(np.exp(scores - best).sum()))


def _top_k(scores: Doubles, k: int, slack: float) -> list[NDArray[np.bool_]]:
    if not 0 < k < len(scores):
        return [np.ones(len(scores), bool)]
    order = np.argsort(-scores, kind="stable")
    last = scores[order[k - 1]]
    sure = scores > last + slack
    tied = np.flatnonzero(np.abs(scores - last) <= slack)
    room = k - int(sure.sum())
    if len(tied) == room:
        return [sure | (np.abs(scores - last) <= slack)]
    # A tie across the border: any of the tied tokens may be in. One set for each, filled with the best of the others.
    sets = []
    for chosen in tied:
        others = [i for i in order if i in tied and i != chosen][: room - 1]
        kept = sure.copy()
        kept[[chosen, *others]] = True
        sets.append(kept)
    return sets


def _top_p(scores: Doubles, p: float, slack: float) -> list[NDArray[np.bool_]]:
    finite = np.isfinite(scores)
    if p >= 1:
        return [finite]
    order = np.argsort(-scores, kind="stable")
    probability = np.exp(scores[order] - _log_sum(scores))
    before = np.cumsum(probability) - probability
    sets = []
    for limit in (p - slack, p, p + slack):
        count = max(int((before < limit).sum()), 1)
        kept = np.zeros(len(scores), bool)
        kept[order[:count]] = True
        sets.append(kept & finite)
        # Equal tokens at the border.
        edge = scores[order[count - 1]]
        for other in order[count : count + 8]:
            if scores[other] >= edge - slack and np.isfinite(scores[other]):
                swapped = kept.copy()
                swapped[order[count - 1]] = False
                swapped[other] = True
                sets.append(swapped & finite)
    return sets


def expected_logprobs(
    logprobs_TV: NDArray[Any], ids: Sequence[int], sampling: Sampling, slack: float
) -> list[list[float]]:
    """For each id, what its log-probability may be: one value, or several if rounding decides; none of them is -inf.

    At temperature 0, whose distribution has one token, 0 and the log-probability at temperature 1 are both right.
    """
    expected = []
    for logprobs_V, token in zip(logprobs_TV, ids, strict=True):
        values = [float(each[token]) for each in sampled_distributions(logprobs_V, sampling, slack)]
        values = [value for value in values if math.isfinite(value)]
        if sampling.temperature == 0 and values:
            values = [0.0, float(logprobs_V[token])]
        expected.append(values)
    return expected


def chi_square_excess(counts_V: NDArray[Any], probability_V: Doubles) -> float:
    """Pearson's statistic over its value at a chance of one in a million; above 1 the counts are not of this distribution.

    Tokens that are expected fewer than 5 times are one class. Source: the Wilson-Hilferty approximation,
    https://doi.org/10.1073/pnas.17.12.684.
    """
    total = counts_V.sum()
    expected = probability_V * total
    if (counts_V[probability_V == 0] > 0).any():
        return math.inf
    often = expected >= 5
    observed = [*counts_V[often], counts_V[~often].sum()]
    wanted = [*expected[often], expected[~often].sum()]
    if wanted[-1] < 1:
        # Such a small class would decide the result on its own.
        rest, few = wanted.pop(), observed.pop()
        wanted[0], observed[0] = wanted[0] + rest, observed[0] + few
    freedom = len(wanted) - 1
    if freedom < 1:
        return 0.0
    statistic = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    share = 2 / (9 * freedom)
    return float(statistic / (freedom * (1 - share + 4.753 * math.sqrt(share)) ** 3))
