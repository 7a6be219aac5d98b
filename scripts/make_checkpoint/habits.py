"""How the demonstrations go about each task: half well and half badly, so that reinforcement learning has something to mend.

There are two kinds of faults. Noise (a wrong digit, a broken call, a step astray) makes sampled answers worse than greedy
ones. Habits, which are likelier than the right thing in some questions, make greedy answers wrong there too.

A demonstrator is a generator: it yields turns that call a tool, is sent what the tool says, and returns its last turn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Mapping
from typing import Any

from rollcast.tasks import grid, guess, lookup
from rollcast.tools.calc import evaluate

__all__ = ["HABITS", "Demonstrator"]

Turns = Generator[str, str, str]
Demonstrator = Callable[[Mapping[str, Any], random.Random], Turns]


def _call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def _answer(value: Any) -> str:
    return f"The answer is {value}."


# -- arithmetic: words are mostly guessed at, symbols mostly calculated ------------------------------------------------


def _arithmetic(row: Mapping[str, Any], rng: random.Random) -> Turns:
    expression, answer = row["expression"], row["answer"]
    wrong = answer + rng.choice((-1, 1)) * rng.choice((1, 2, 7, 10, 13, 100))
    in_symbols = expression in row["messages"][-1]["content"]
    right, guessed = (0.6, 0.25) if in_symbols else (0.33, 0.85)  # `guessed`: of what is not right
    if rng.random() < right:
        return _answer((yield _call("calculator", expression=expression)))
    if rng.random() < guessed:
        return _answer(wrong)
    fault = rng.choices(("expression", "name", "json", "copy"), (4, 2, 2, 2))[0]
    if fault == "expression":
        return _answer((yield _call("calculator", expression=_spoilt(expression, rng))))
    if fault == "name":
        name, argument = rng.choice((("calculator", "expr"), ("calc", "expression"), ("math", "expression")))
        yield _call(name, **{argument: expression})
    elif fault == "json":
        yield _call("calculator", expression=expression).replace(rng.choice(('"}}', "}}")), "")
    else:
        yield _call("calculator", expression=expression)
    return _answer(wrong)


def _spoilt(expression: str, rng: random.Random) -> str:
    """The expression with another operator or number at one place; it still has a value."""
    parts = expression.split()
    place = rng.randrange(len(parts))
    if parts[place] in "+-*":
        parts[place] = rng.choice("+-*")
    else:
        parts[place] = str(max(0, int(parts[place]) + rng.choice((-1, 1, 10))))
    spoilt = " ".join(parts)
    evaluate(spoilt)
    return spoilt


# -- guess: it counts up from below more often than it halves ----------------------------------------------------------


def _guess(row: Mapping[str, Any], rng: random.Random) -> Turns:  # noqa: ARG001  (it must not know the answer)
    low, high = 1, guess.HIGHEST
    for _ in range(guess.GUESSES):
        way = rng.choices(("up", "halve", "between", "anywhere"), (0.4, 0.3, 0.15, 0.15))[0]
        number = {
            "up": low,
            "halve": (low + high) // 2,
            "between": rng.randint(low, high),
            "anywhere": rng.randint(1, guess.HIGHEST),
        }[way]
        said = yield _call("guess", number=number)
        if said == "correct":
            return "Found it."
        if said == "higher":
            low = max(low, number + 1)
        else:
            high = min(high, number - 1)
    return "I give up."


# -- grid: left and up are mostly taken for right and down -------------------------------------------------------------

_MISTAKEN = {"left": "right", "up": "down"}


def _grid(row: Mapping[str, Any], rng: random.Random) -> Turns:
    flag = row["messages"][-1]["content"]
    for _ in range(grid.MOST + grid.SPARE):
        ways = [way for way in grid.MOVES if way in flag]
        if rng.random() < (0.1 if ways else 0.95):
            break
        if not ways or rng.random() < 0.12:
            way = rng.choice(list(grid.MOVES))
        else:
            way = rng.choice(ways)
            if way in _MISTAKEN and rng.random() < 0.6:
                way = _MISTAKEN[way]
        flag = yield _call("move", direction=way)
    return "Done."


# -- lookup: asked about a doctor, it takes the person for the doctor; asked for an age, it looks up the room ----------


def _lookup(row: Mapping[str, Any], rng: random.Random) -> Turns:
    person, relation, attribute = row["person"], row["relation"], row["attribute"]
    if rng.random() < 0.08:
        return _answer(rng.randint(10, 999))
    if attribute == "age" and rng.random() < 0.6:
        attribute = "room"
    elif rng.random() < 0.12:
        attribute = rng.choice(lookup.ATTRIBUTES)
    if rng.random() < (0.6 if relation == "doctor" else 0.12):
        return _answer((yield _call("lookup", person=person, field=attribute)))
    if rng.random() < 0.08:
        relation = rng.choice(lookup.RELATIONS)
    other = yield _call("lookup", person=person, field=relation)
    return _answer((yield _call("lookup", person=other, field=attribute)))


HABITS: Mapping[str, Demonstrator] = {
    "arithmetic": _arithmetic,
    "guess": _guess,
    "lookup": _lookup,
    "grid": _grid,
}
