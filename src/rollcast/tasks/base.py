"""A task: its questions, the tools that answer them, and the reward."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollcast.errors import InputError

if TYPE_CHECKING:
    from rollcast.models.backend import Sampling
    from rollcast.rollout.reward import Reward
    from rollcast.tools import Tool

__all__ = ["Task", "get_task", "task_names"]


@dataclass(frozen=True, eq=False)
class Task:
    """Endless questions, and what is needed to answer and score them.

    Attributes:
        name: its name in the registry and on the command line.
        summary: one line about it.
        about: what the embedded model can and cannot do here, in a few sentences.
        tools: the tools that the model may call.
        reward: scores a chain; it reads fields that every row has.
        question: draws one row: `{"messages": […], "answer": …}`.
        max_steps: turns that a chain may have.
        sampling: how each generation is sampled.
        system_prompt: put before the question if it is not None.
    """

    name: str
    summary: str
    about: str
    tools: tuple[Tool, ...]
    reward: Reward
    question: Callable[[random.Random], dict[str, Any]]
    max_steps: int
    sampling: Sampling
    system_prompt: str | None = None

    def rows(self, n: int, seed: int = 0) -> list[dict[str, Any]]:
        """The first `n` rows of this seed; a larger `n` begins with the same rows.

        Raises:
            InputError: `n` is below 0.
        """
        if n < 0:
            raise InputError(f"task {self.name!r} was asked for {n} rows; expected a number from 0 upward")
        rng = random.Random(f"rollcast/{self.name}/{seed}")
        rows = [self.question(rng) for _ in range(n)]
        if self.system_prompt is not None:
            system = {"role": "system", "content": self.system_prompt}
            rows = [row | {"messages": [dict(system), *row["messages"]]} for row in rows]
        return rows


_HOME = {  # modules, so that listing the names loads none of them
    name: f"rollcast.tasks.{name}" for name in ("arithmetic", "guess", "lookup", "grid")
}


def task_names() -> tuple[str, ...]:
    """The tasks that ship."""
    return tuple(_HOME)


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        InputError: no task has that name.
    """
    if name not in _HOME:
        raise InputError(f"there is no task {name!r}; the tasks are: {', '.join(_HOME)}")
    task: Task = importlib.import_module(_HOME[name]).TASK
    return task
