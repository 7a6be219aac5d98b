"""Checks by its checksums whether training may go on from a checkpoint; if not, names another one that is whole."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rollcast.errors import CheckpointError
from rollcast.models.checksums import CHECKSUMS, find_damage, has_checksums

__all__ = ["check_resumable", "numbered", "remedy_for"]

logger = logging.getLogger("rollcast.train")


# The state files of our own trainer and of TRL's, which writes it last: a checkpoint has one of them.
_STATES = ("trainer.json", "trainer_state.json")


def numbered(out: Path, prefix: str) -> list[Path]:
    """The folders in `out` that are named `prefix` and a number, by number; empty if `out` does not exist."""
    if not out.is_dir():
        return []
    found = [
        path
        for path in out.iterdir()
        if path.name.removeprefix(prefix).isdecimal() and path.name.startswith(prefix) and path.is_dir()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))


def check_resumable(folder: Path, others: Sequence[Path]) -> None:
    """Refuse a checkpoint that is not what was saved.

    Args:
        folder: the checkpoint.
        others: checkpoints of the same training, ascending; one of them may be this one.

    Raises:
        CheckpointError: it is not; the message names the file, and the checkpoint from which training can go on.
    """
    damage = _damage_of(folder, others)
    if damage is not None:
        raise CheckpointError(
            f"the checkpoint {folder} cannot be used: {damage}; {remedy_for(folder, others)}"
        )


def _damage_of(folder: Path, others: Sequence[Path]) -> str | None:
    """What is wrong with it, as the beginning of a sentence. For a checkpoint of version 0.1, without sums, it logs a warning."""
    if has_checksums(folder):
        return find_damage(folder, to_resume=True)
    earlier = [other for other in others[: _place(folder, others)] if has_checksums(other)]
    if earlier:
        return f"it has no {CHECKSUMS}, as {earlier[-1].name} has, so it was not saved to its end"
    if folder.is_dir():
        if not any((folder / name).is_file() for name in _STATES):
            return f"it has no {' or '.join(_STATES)}, so it was not saved to its end"
        logger.warning(
            "%s has no %s, like all checkpoints of Rollcast 0.1, so it cannot be checked for damage",
            folder, CHECKSUMS,
        )  # fmt: skip
    return None


def remedy_for(folder: Path, others: Sequence[Path]) -> str:
    """What to do instead, with the name of the newest other checkpoint that is whole."""
    others = [other for other in reversed(others) if other.name != folder.name]
    checked = [other for other in others if has_checksums(other)]
    whole = next((other for other in checked if find_damage(other, to_resume=True) is None), None)
    if whole is None:
        whole = next((other for other in others if not has_checksums(other)), None)
    return "train anew" if whole is None else f"delete {folder.name} to go on from {whole.name}"


def _place(folder: Path, others: Sequence[Path]) -> int:
    names = [other.name for other in others]
    return names.index(folder.name) if folder.name in names else len(names)
