"""Compares answers with references, as far as that can be done without knowing the task."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["contains_reference", "normal_answer"]

MAX_REFERENCE = 60  # characters; a longer reference is an essay, which no answer repeats word by word

_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?"
)
_FORMULA = re.compile(r"[\\/^√%{}]")  # an answer that may write the same number in another way


def normal_answer(text: str) -> str:
    """The answer without case, spacing and surrounding punctuation, so that equal answers are equal."""
    return " ".join(text.casefold().split()).strip(" .!\"'`*$")


def contains_reference(answer: str, reference: Any) -> bool | None:
    """Whether the answer contains the reference; None if that cannot be decided, as for a formula or an object.

    It is lenient, since it does not know what a reward accepts: case, spaces and surrounding text make no difference.
    """
    if isinstance(reference, list):
        found = [contains_reference(answer, each) for each in reference]
        return None if not found or None in found else any(found)
    if isinstance(reference, bool) or not isinstance(reference, int | float | str):
        return None
    wanted, said = normal_answer(str(reference)), normal_answer(answer)
    if not wanted or _FORMULA.search(wanted) or _FORMULA.search(said):
        return None
    if wanted in said or (said and said in wanted):
        return True
    numbers = [_number(each) for each in _NUMBER.findall(wanted)]
    if not numbers:
        return False if len(wanted) <= MAX_REFERENCE else None
    if len(wanted) > MAX_REFERENCE:
        numbers = numbers[-1:]
    return any(
        math.isclose(_number(each), numbers[-1], rel_tol=1e-6, abs_tol=1e-6) for each in _NUMBER.findall(said)
    )


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("\u2212", "-"))
