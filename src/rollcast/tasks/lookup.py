"""Look up something about the boss, friend or doctor of a person: two calls, the second of which needs the first's result.

The model learns to take both steps, each with the right words: the person and the field come first from the question, then
from the answer to the first call.

The embedded model was taught exactly these questions: changing them means training the model anew.
"""

from __future__ import annotations

import random
from typing import Any, Literal

from rollcast.errors import ToolError
from rollcast.models.backend import Sampling
from rollcast.rollout.context import ChainContext
from rollcast.rollout.reward import numeric_match
from rollcast.tasks.base import Task
from rollcast.tools import tool

__all__ = ["ATTRIBUTES", "PEOPLE", "RELATIONS", "TASK", "entry", "lookup", "question"]

PEOPLE = (
    *("Ana", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana"),
    *("Ivan", "Jo", "Kim", "Leo", "Mia", "Nils", "Olga", "Pia"),
)
RELATIONS = ("boss", "friend", "doctor")
ATTRIBUTES = ("phone", "room", "age")
QUESTIONS = (
    "What is the {attribute} of {person}'s {relation}?",
    "Find the {attribute} of the {relation} of {person}.",
    "{person}'s {relation}: which {attribute}?",
)

ABOUT = """\
The embedded model has 0.46 million parameters and knows only the questions of this task: the phone, room or age (all of \
them numbers) of the boss, friend or doctor of one of 16 people ("What is the room of Ana's boss?"). It starts at about \
half right, since it often skips the first of the two steps or asks for the wrong field, and half a minute of training \
mends that. Any other question gets nonsense: it is a real language model to watch and to train, not one to talk to."""


def entry(directory: int, person: str, field: str) -> str:
    """The entry in this directory: another person's name for a relation, a number from 10 to 999 for an attribute.

    Every number is a whole directory, so that a row need not carry one.
    """
    draw = random.Random(f"{directory}/{person}/{field}")
    if field in RELATIONS:
        return draw.choice([name for name in PEOPLE if name != person])
    return str(draw.randint(10, 999))


def question(rng: random.Random) -> dict[str, Any]:
    """One row: the question, its `answer` (int), what it asks for, and the `directory` (int) that has the entries."""
    person, relation, attribute = rng.choice(PEOPLE), rng.choice(RELATIONS), rng.choice(ATTRIBUTES)
    directory = rng.randrange(1 << 30)
    text = rng.choice(QUESTIONS).format(person=person, relation=relation, attribute=attribute)
    return {
        "messages": [{"role": "user", "content": text}],
        "answer": int(entry(directory, entry(directory, person, relation), attribute)),
        "person": person,
        "relation": relation,
        "attribute": attribute,
        "directory": directory,
    }


@tool(inline=True)
def lookup(
    person: str, field: Literal["boss", "friend", "doctor", "phone", "room", "age"], ctx: ChainContext
) -> str:
    """Look up one field of a person.

    Args:
        person: First name.
        field: What to look up.
        ctx: Knows the directory.
    """
    if person not in PEOPLE:
        raise ToolError("not found")
    return entry(ctx.row["directory"], person, field)


TASK = Task(
    name="lookup",
    summary="Look something up in two calls, the second with what the first gave.",
    about=ABOUT,
    tools=(lookup,),
    reward=numeric_match,
    question=question,
    max_steps=4,
    sampling=Sampling(temperature=1.0, max_tokens=48),
)
