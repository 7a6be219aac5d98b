"""`rollcast runs` and `rollcast recover`: the records of a directory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from rollcast.archive.format import RunFile
from rollcast.archive.index import RecordEntry, State, find_record, list_records, state_of
from rollcast.archive.recovery import recover
from rollcast.errors import ArchiveError
from rollcast.text import printable_line

__all__ = ["recover_command", "runs_command", "state_word"]

_COLUMNS = ("record", "task", "state", "chains", "failed", "reward", "step", "took")
_RIGHT = frozenset({"chains", "failed", "reward", "step", "took"})


def runs_command(directory: Path, *, json: bool) -> int:
    """List the records, the newest first; the exit code.

    Raises:
        ArchiveError: the directory cannot be read.
    """
    entries = list_records(directory)
    if json:
        for entry in entries:
            sys.stdout.write(msgspec.json.encode(_described(entry)).decode() + "\n")
        return 0
    if not entries:
        sys.stdout.write(f"{directory} holds no records.\n")
        return 0
    rows = [_COLUMNS, *(_cells(entry) for entry in entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        cells = [
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0


def recover_command(directory: Path, word: str, *, force: bool) -> int:
    """Recover the record that a word means, and say what was done; the exit code.

    Raises:
        ArchiveError: no record is meant or more than one, or it cannot be recovered.
    """
    path = find_record(directory, word)
    try:
        result = recover(path, force=force)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be recovered: {error.strerror or error}") from None
    if not result.needed:
        sys.stdout.write(f"{path} needs no recovery.\n")
        return 0
    sys.stdout.write(
        f"{path} is recovered: {result.events:,} events; {result.gaps:,} runs and {result.lost_chains:,} chains have no "
        f"end; {result.rows:,} rows were added.\n"
    )
    for damage in result.damage:
        sys.stdout.write(f"  lost: {printable_line(damage)}\n")
    return 0


def state_word(facts: RunFile, state: State) -> str:
    """How a record stands, in a word or two: of one that has ended, also if it was cancelled or failed."""
    if state == "silent":
        return f"silent for {_span(state_of(facts)[1])}"
    return facts.status if state == "ended" and facts.status in ("cancelled", "failed") else state


def _described(entry: RecordEntry) -> dict[str, Any]:
    facts = entry.facts
    about: dict[str, Any] = {"name": entry.name, "path": str(entry.path), "state": entry.state}
    if facts is None:
        return about | {"damage": entry.damage}
    totals = msgspec.to_builtins(facts.totals) | {"mean_reward": facts.totals.mean_reward}
    return about | {
        "task": facts.name,
        "tags": facts.tags,
        "status": facts.status,
        "started_at": facts.started_at,
        "ended_at": facts.ended_at,
        "parent": facts.parent,
        "totals": totals,
    }


def _cells(entry: RecordEntry) -> tuple[str, ...]:
    facts = entry.facts
    name = printable_line(entry.name, 80)
    if facts is None:
        return (name, "", "damaged", "", "", "", "", "")
    totals, state = facts.totals, state_word(facts, entry.state)
    end = facts.ended_at or (time.time() if entry.state == "running" else facts.writer.heartbeat)
    return (
        name,
        printable_line(facts.name, 30),
        state,
        f"{totals.chains:,}",
        f"{totals.failed:,}",
        "" if totals.mean_reward is None else f"{totals.mean_reward:.3f}",
        f"{totals.train_steps:,}" if totals.train_steps else "",
        _span(max(end - facts.started_at, 0.0)) if facts.started_at else "",
    )


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
