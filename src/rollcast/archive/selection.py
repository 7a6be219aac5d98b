"""Which part of a record somebody means: a training step, chains, groups."""

from __future__ import annotations

import difflib
from typing import Any

from rollcast.archive.reader import Archive
from rollcast.errors import ArchiveError
from rollcast.text import printable_line

__all__ = ["check_names", "runs_of_step", "steps_of"]

_NAMED = 3  # that a sentence names


def steps_of(rows: list[dict[str, Any]]) -> list[int]:
    """The training steps that have chains, in order. Evaluations are not among them, although each comes after a step."""
    return sorted({row["train_step"] for row in rows if _is_of_a_step(row)})


def _is_of_a_step(row: dict[str, Any]) -> bool:
    return isinstance(row.get("train_step"), int) and row.get("split") != "eval"


def runs_of_step(archive: Archive, rows: list[dict[str, Any]], step: int) -> list[str]:
    """The runs that are rollouts of this training step.

    Raises:
        ArchiveError: the record has no chains of that step.
    """
    found = list(
        dict.fromkeys(row["run_id"] for row in rows if _is_of_a_step(row) and row["train_step"] == step)
    )
    if found:
        return found
    steps = steps_of(rows)
    has = f"it has the steps {steps[0]} to {steps[-1]}" if steps else "it has no training steps"
    raise ArchiveError(f"the record {archive.path.name} has no chains of training step {step}; {has}")


def check_names(archive: Archive, rows: list[dict[str, Any]], field: str, names: list[str]) -> None:
    """Make sure that chains or groups of these names are there; `field` is `chain_id` or `group_id`.

    Raises:
        ArchiveError: the record has no such chain or group.
    """
    known = {row.get(field) for row in rows}
    what = field.removesuffix("_id")
    for name in names:
        if name not in known:
            there = sorted(str(each) for each in known if each is not None)
            near = difflib.get_close_matches(name, there, _NAMED) or there[:_NAMED]
            nearest = f"; the nearest: {', '.join(printable_line(each, 60) for each in near)}" if near else ""
            raise ArchiveError(f"the record {archive.path.name} has no {what} {name!r:.80}{nearest}")
