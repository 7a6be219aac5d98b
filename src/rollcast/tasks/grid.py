"""Walk to a flag on a board of 6 by 6, with a compass, on a shortest path.

The model learns control: to choose each of two to six moves by the result of the last one, to waste none, and to stop when
it reaches the flag. The path counts and not the words, so every move of every turn has to be right.

The embedded model was taught exactly these questions: changing them means training the model anew.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from rollcast.models.backend import Sampling
from rollcast.rollout.context import ChainContext
from rollcast.rollout.reward import reward
from rollcast.tasks.base import Task
from rollcast.tools import tool

__all__ = ["MOVES", "SIZE", "TASK", "arrived", "compass", "move", "question"]

SIZE = 6
LEAST, MOST = 2, 6  # moves on a shortest path
SPARE = 2  # moves that a chain may have beyond that
PARTIAL = 0.3  # the most reward for coming near
MOVES = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}

ABOUT = """\
The embedded model has 0.46 million parameters and knows only the questions of this task: a flag is so many steps to the \
left or right and up or down ("Go to the flag: 2 right and 1 down."), and each move tells where it is then. It knows how \
to move and when to stop, and goes astray on most ways; a minute of training mends that. Any other question gets \
nonsense: it is a real language model to watch and to train, not one to talk to."""


def distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Moves from one place to the other."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def compass(place: Sequence[int], flag: Sequence[int]) -> str:
    """The direction of the flag from the place: `2 right and 1 down`, or `here`."""
    across, along = flag[0] - place[0], flag[1] - place[1]
    parts = []
    if across:
        parts.append(f"{abs(across)} {'right' if across > 0 else 'left'}")
    if along:
        parts.append(f"{abs(along)} {'down' if along > 0 else 'up'}")
    return " and ".join(parts) or "here"


def question(rng: random.Random) -> dict[str, Any]:
    """One row: the question, and `start` and `flag` as [column, row] from 0, the top left."""
    while True:
        start, flag = ([rng.randrange(SIZE), rng.randrange(SIZE)] for _ in range(2))
        if LEAST <= distance(start, flag) <= MOST:
            break
    text = f"Go to the flag: {compass(start, flag)}."
    return {"messages": [{"role": "user", "content": text}], "start": start, "flag": flag}


@tool(inline=True)
def move(direction: Literal["up", "down", "left", "right"], ctx: ChainContext) -> str:
    """Move one step; says where the flag is then.

    Args:
        direction: Where to.
        ctx: Knows where the flag is and where the chain is.
    """
    x, y = ctx.state.setdefault("place", list(ctx.row["start"]))
    ctx.state["moves"] = ctx.state.get("moves", 0) + 1
    dx, dy = MOVES[direction]
    place = [x + dx, y + dy]
    if not all(0 <= c < SIZE for c in place):
        return f"wall. flag {compass((x, y), ctx.row['flag'])}"
    ctx.state["place"] = place
    return f"flag {compass(place, ctx.row['flag'])}"


@reward(inline=True)
def arrived(
    final_response: str, start: Sequence[int], flag: Sequence[int], ctx: ChainContext
) -> dict[str, float]:
    """1 if the chain stopped at the flag after a shortest path; else up to 0.3 for how near it came. `success` is 1 or 0."""
    whole, left = distance(start, flag), distance(ctx.state.get("place", start), flag)
    if left == 0 and ctx.state.get("moves", 0) <= whole and final_response.strip():
        return {"reward": 1.0, "success": 1.0}
    return {"reward": PARTIAL * max(0.0, 1 - left / whole), "success": 0.0}


TASK = Task(
    name="grid",
    summary="Walk to a flag on a shortest way, by a compass.",
    about=ABOUT,
    tools=(move,),
    reward=arrived,
    question=question,
    max_steps=MOST + SPARE + 1,
    sampling=Sampling(temperature=1.0, max_tokens=32),
)
