"""Sentences about records that several commands print."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rollcast.archive.format import RunFile
from rollcast.archive.index import State, record_directory, state_of
from rollcast.cli.itself import quoted, this_command
from rollcast.cli.standard_error import warn
from rollcast.cli.wording import counted, span_text

if TYPE_CHECKING:
    from rollcast.archive.lines import Damage
    from rollcast.archive.reader import Archive

__all__ = ["ended_at", "lacking", "state_word", "warn_of_damage", "word_for"]

_NAMED_DAMAGE = 5


def state_word(facts: RunFile, state: State) -> str:
    """How a record stands, in a word or two: of one that has ended, also if it was cancelled or failed."""
    if state == "silent":
        return f"silent for {span_text(state_of(facts)[1])}"
    return facts.status if state == "ended" and facts.status in ("cancelled", "failed") else state


def ended_at(facts: RunFile, state: State) -> float:
    """When the record ended, in seconds since the epoch: now if it goes on, and if its writer is gone, when that was last heard."""
    return facts.ended_at or (time.time() if state == "running" else facts.writer.heartbeat)


def lacking(facts: RunFile) -> str | None:
    """What the record lacks, as a sentence; None if it has everything."""
    totals = facts.totals
    counts = ((totals.lost, "event"), (totals.trajectories_lost, "trajectory"))
    parts = [counted(count, noun) for count, noun in counts if count]
    return f"not complete: {' and '.join(parts)} could not be recorded" if parts else None


def word_for(path: Path) -> str:
    """What means this record on the command line: its name if it is where records are by default, else its path; quoted."""
    return quoted(path.name if path.parent == record_directory() else path)


def warn_of_damage(archive: Archive, damage: list[Damage]) -> None:
    """Say on the standard error what could not be read, and which command recovers it."""
    for each in damage[:_NAMED_DAMAGE]:
        warn(f"{archive.path.name} is damaged: {each}")
    if len(damage) > _NAMED_DAMAGE:
        warn(f"{len(damage) - _NAMED_DAMAGE:,} more places of it are damaged")
    if archive.state == "crashed" and archive.facts.recovered_at is None:
        command = f"{this_command()} recover {word_for(archive.path)}"
        warn(f"its writer died; `{command}` makes the record whole")
