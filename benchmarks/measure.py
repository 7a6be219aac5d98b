"""Measures in pairs: every round runs all variants once, so that anything that slows the machine slows all of them.

Costs are CPU seconds of the process, with all threads, unless a benchmark says otherwise.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Estimate", "Figure", "NotInstalledError", "estimate", "figure", "paired", "ratios"]

RESAMPLES = 2000


class NotInstalledError(ImportError):
    """A benchmark needs something that is not installed and that no extra of the package installs."""


T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % interval by the percentile bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what was measured.
        value, low, high: median over the rounds and its 95 % interval; `low` and `high` are None for a count or a size.
        unit: the unit of all three.
        target: `<= 0.1`, `>= 0.8`, `about 1`; None if the figure is a reference.
        met: whether the median meets the target; for `about`, whether the whole interval lies within 5 % of the
            number. None without a target.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str
    target: str | None = None
    met: bool | None = None


def paired(trials: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run each trial once per round, and return the results. A first round is not counted.

    The order rotates from round to round, every second time backwards, so that no trial always profits from caches that
    another has warmed.
    """
    names = list(trials)
    results: dict[str, list[T]] = {name: [] for name in names}
    for r in range(-1, rounds):
        at = r % len(names)
        order = names[at:] + names[:at]
        for name in order if r % 2 else order[::-1]:
            gc.collect()
            result = trials[name]()
            if r >= 0:
                results[name].append(result)
    return results


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """`a / b`, round by round."""
    return [x / y for x, y in zip(a, b, strict=True)]


def estimate(values: Sequence[float]) -> Estimate:
    """The median, and the interval in which it lies in 95 % of resamples of the rounds."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = RESAMPLES // 40
    return Estimate(statistics.median(values), medians[cut], medians[-cut - 1])


def figure(name: str, values: Sequence[float] | float, unit: str, target: str | None = None) -> Figure:
    """Make a figure from one value per round, or from one number without an interval.

    Args:
        name: what was measured.
        values: one per round, or a single number.
        unit: the values' unit.
        target: `<=`, `>=` or `about`, and a number.
    """
    if isinstance(values, int | float):
        value, low, high = float(values), None, None
    else:
        found = estimate(values)
        value, low, high = found.value, found.low, found.high
    met = None if target is None else _holds(target, value, low, high)
    return Figure(name, value, low, high, unit, target, met)


def _holds(target: str, value: float, low: float | None, high: float | None) -> bool:
    operator, number = target.split()
    bound = float(number)
    if operator == "about":  # it must be shown, not just not refuted: a wide interval does not pass
        return low is not None and high is not None and 0.95 * bound <= low and high <= 1.05 * bound
    return value <= bound if operator == "<=" else value >= bound
