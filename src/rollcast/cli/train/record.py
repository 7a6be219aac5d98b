"""What is known about a training so far, and what follows from it. It is pure: no output, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rollcast.train import Evaluation, Progress

__all__ = ["Record", "bucketed", "clock_text", "scale", "sparkline"]

_RECENT_STEPS = 10
_SPARKS = "▁▂▃▄▅▆▇█"
_ASCII_SPARKS = "_.-=+*#@"


class Record:
    """Gathers what a training reports.

    Args:
        steps: steps after which it ends; None if it ends by time.
        minutes: minutes after which it ends; None if it ends by steps.
        started_at: when it began, in seconds, on the same clock as the other times.
    """

    def __init__(self, steps: int | None, minutes: float | None, started_at: float) -> None:
        self.steps = steps
        self.minutes = minutes
        self.started_at = started_at
        self.history: list[Progress] = []
        self.evaluations: list[tuple[int, Evaluation]] = []  # each with its step
        self._times: list[float] = []  # when the last few steps ended

    @property
    def last(self) -> Progress | None:
        """The last step; None before the first."""
        return self.history[-1] if self.history else None

    @property
    def rewards(self) -> list[float]:
        """The mean reward of each step that has one."""
        return [p.metrics["mean_reward"] for p in self.history if "mean_reward" in p.metrics]

    def take(self, progress: Progress, now: float | None) -> None:
        """Note a step, or the evaluation before the first one (step 0). `now` is None for steps of an earlier session."""
        if progress.evaluation is not None:
            self.evaluations.append((progress.step, progress.evaluation))
        if progress.step > 0:
            self.history.append(progress)
        if now is not None:
            self._times = [*self._times[-_RECENT_STEPS:], now]

    def left_s(self, now: float) -> float | None:
        """An estimate of the seconds until the end; None if nothing is known yet."""
        if self.last is None or len(self._times) < 2:
            return None
        since = now - self._times[-1]
        if self.minutes is not None:
            return max(self.minutes * 60 - self.last.seconds - since, 0.0)
        assert self.steps is not None
        a_step = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return max((self.steps - self.last.step) * a_step - since, 0.0)


def sparkline(values: Sequence[float], cells: int, *, ascii_only: bool = False) -> str:
    """The values as a row of bars at most `cells` wide, neighbours averaged if there are more.

    Values between 0 and 1, like most rewards, are on that scale; others between their least and their greatest.
    """
    if not values or cells < 1:
        return ""
    shown = bucketed(values, cells)
    low, high = scale(shown)
    sparks = _ASCII_SPARKS if ascii_only else _SPARKS
    top = len(sparks) - 1
    return "".join([sparks[round((value - low) / (high - low) * top)] for value in shown])


def bucketed(values: Sequence[float], n: int) -> list[float]:
    """The values averaged with their neighbours, so that there are at most `n`."""
    if len(values) <= n:
        return list(values)
    edges = [i * len(values) // n for i in range(n + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def scale(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis for these values."""
    low, high = min(values), max(values)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def clock_text(seconds: float) -> str:
    """Write seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
