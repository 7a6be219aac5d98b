"""Find a number from 1 to 15 in four guesses, each answered with `higher`, `lower` or `correct`.

The model learns a strategy. Only halving the rest finds every number in four guesses: each guess has to be exactly the
middle. The embedded model was sometimes shown this, more often counting up from below, and also guesses without a plan; it
has only the reward to find out which is better. An episode has up to five turns, and the first guess decides about the
last.

The embedded model was taught exactly this question: changing it means training the model anew.
"""

from __future__ import annotations

import math
import random
from typing import Any

from rollcast.errors import ToolError
from rollcast.models.backend import Sampling
from rollcast.rollout.context import ChainContext
from rollcast.rollout.reward import reward
from rollcast.tasks.base import Task
from rollcast.tools import tool

__all__ = ["GUESSES", "HIGHEST", "TASK", "found", "guess", "question"]

HIGHEST = 15
GUESSES = 4
PARTIAL = 0.3  # the reward for having narrowed it down to one number

ABOUT = """\
The embedded model has 0.46 million parameters and knows only the one question of this task: a number from 1 to 15 is to \
be found in 4 guesses. It understands "higher" and "lower", but mostly counts up from below or guesses anywhere in between, so \
it fails more often than not; training teaches it to halve, which always succeeds. Any other question gets nonsense: it is a \
real language model to watch and to train, not one to talk to."""


def question(rng: random.Random) -> dict[str, Any]:
    """One row: the question and the `answer` (int), which the tool knows and the model does not."""
    text = f"I think of a number from 1 to {HIGHEST}. Find it in {GUESSES} guesses."
    return {"messages": [{"role": "user", "content": text}], "answer": rng.randint(1, HIGHEST)}


@tool(inline=True)
def guess(number: int, ctx: ChainContext) -> str:
    """Guess the secret number; says whether it is higher or lower than the guess, or that the guess is correct.

    Args:
        number: A whole number.
        ctx: Knows the number and counts the guesses.
    """
    guesses: list[int] = ctx.state.setdefault("guesses", [])
    if len(guesses) >= GUESSES:
        raise ToolError("no guesses left")
    guesses.append(number)
    answer = ctx.row["answer"]
    if number == answer:
        return "correct"
    return "higher" if answer > number else "lower"


@reward(inline=True)
def found(final_response: str, answer: int, ctx: ChainContext) -> dict[str, float]:
    """1 if the number was guessed and the chain came to an answer.

    Else it is up to 0.3, for how far the guesses narrowed the number down, in bits: a group whose chains all fail still has
    better and worse ones. `success` is 1 or 0.
    """
    guesses: list[int] = ctx.state.get("guesses", [])
    if answer in guesses and final_response.strip():
        return {"reward": 1.0, "success": 1.0}
    low = max((n + 1 for n in guesses if n < answer), default=1)
    high = min((n - 1 for n in guesses if n > answer), default=HIGHEST)
    left = max(min(high, HIGHEST) - max(low, 1) + 1, 1)
    return {"reward": PARTIAL * (1 - math.log2(left) / math.log2(HIGHEST)), "success": 0.0}


TASK = Task(
    name="guess",
    summary="Find a number from 1 to 15 in four guesses.",
    about=ABOUT,
    tools=(guess,),
    reward=found,
    question=question,
    max_steps=GUESSES + 1,
    sampling=Sampling(temperature=1.0, max_tokens=32),
)
