"""Checks that every backend with an engine makes on its input before the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollcast.errors import InputError

__all__ = ["check_prompt_ids", "check_version"]


def check_prompt_ids(prompt_ids: Sequence[int], vocabulary: int) -> None:
    """Refuse ids that would kill an engine, which serves other requests too.

    Args:
        prompt_ids: shape (T,).
        vocabulary: how many ids the model knows.

    Raises:
        InputError: there are none, or one is not an int or not in this vocabulary.
    """
    if len(prompt_ids) == 0:
        raise InputError("prompt_ids is empty; expected at least one token")
    if not {*map(type, prompt_ids)} <= {int}:
        raise InputError("prompt_ids has an entry that is not a whole number; expected a list of int")
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocabulary:
        raise InputError(f"prompt_ids has an id outside of this model's vocabulary of {vocabulary} tokens")


def check_version(version: Any) -> None:
    """Refuse a bad version of weights: every token that they sample carries it, and -1 says that none was sampled.

    Raises:
        InputError: it is not a whole number from 0 upward.
    """
    if type(version) is not int or version < 0:
        raise InputError(f"version is {version!r}; expected a whole number from 0 upward")
