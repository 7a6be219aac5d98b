"""Chooses the questions for training and those kept for evaluation, by their seeds."""

from __future__ import annotations

from typing import Any

import msgspec

from rollcast.rollout.rows import derived_seed
from rollcast.tasks import Task

__all__ = ["HELD_OUT_SEED", "Questions"]

HELD_OUT_SEED = -1
"""The seed of the questions for evaluation. Those for training come from seeds of 0 and above."""

_LOOKED_AT = 256
_FEWEST_FREE = 0.1


class Questions:
    """The questions of a training run.

    A row that equals a held-out one is never trained on. If a task has so few different rows that hardly any would be left,
    such as a number from 1 to 15 to guess, none is held out.

    Args:
        task: the task that draws them.
        seed: the training run's seed.
        held_out: how many to evaluate on.

    Attributes:
        evaluated: rows to evaluate on, the same for every seed.
        held_out: whether they are kept from training.
    """

    def __init__(self, task: Task, seed: int, held_out: int) -> None:
        self.evaluated = task.rows(held_out, HELD_OUT_SEED)
        self._task = task
        self._seed = seed
        kept = {_key(row) for row in self.evaluated}
        free = sum(_key(row) not in kept for row in task.rows(_LOOKED_AT, HELD_OUT_SEED - 1))
        self.held_out = free >= _FEWEST_FREE * _LOOKED_AT
        self._kept = kept if self.held_out else set()

    def of_step(self, step: int, count: int) -> list[dict[str, Any]]:
        """This many rows to train on in this step; they do not depend on earlier steps."""
        seed = derived_seed("questions", self._seed, step)
        drawn = count
        while True:
            rows = [row for row in self._task.rows(drawn, seed) if _key(row) not in self._kept]
            if len(rows) >= count:
                return rows[:count]
            drawn *= 2


def _key(row: dict[str, Any]) -> bytes:
    """A key that is equal if the rows are; fields that JSON cannot write are compared as text."""
    return msgspec.json.encode(row, enc_hook=repr, order="deterministic")
