"""The option `--speed` of commands that replay a record."""

from __future__ import annotations

import math

from rollcast.errors import InputError

__all__ = ["speed_of"]


def speed_of(text: str) -> float:
    """The factor by which a replay is faster than the run was; infinite for `max`.

    Raises:
        InputError: it is neither `max` nor a number above 0.
    """
    if text == "max":
        return math.inf
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < math.inf:
        raise InputError(f"--speed is {text!r:.40}; expected a number above 0, such as 4, or max")
    return speed
