"""`rollcast runs` and `rollcast recover`: the records of a directory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from rollcast.archive.format import RunFile
from rollcast.archive.index import (
    RecordEntry,
    State,
    find_record,
    list_records,
    record_directory,
    resumed_as,
    state_of,
)
from rollcast.archive.lines import Damage
from rollcast.archive.reader import Archive
from rollcast.archive.recovery import recover
from rollcast.cli.chain_screen import counted
from rollcast.cli.itself import quoted, this_command
from rollcast.cli.output import Output, warn
from rollcast.errors import ArchiveError
from rollcast.terminal.layout import Row, row_cells
from rollcast.text import printable_line

__all__ = [
    "ended_at",
    "lacking",
    "recover_command",
    "runs_command",
    "state_word",
    "warn_of_damage",
    "word_for",
]

_RESUMED = "resumed as"
_COLUMNS = ("record", "task", "state", "chains", "failed", "reward", "step", "took", _RESUMED)
_NAMED_DAMAGE = 5
_RIGHT = frozenset({"chains", "failed", "reward", "step", "took"})


def runs_command(directory: Path, *, json: bool) -> int:
    """List the records, the newest first; the exit code.

    Raises:
        ArchiveError: the directory cannot be read.
    """
    entries = list_records(directory)
    later = resumed_as(entries)
    if json:
        for entry in entries:
            described = _described(entry) | {"resumed_as": later.get(entry.name)}
            sys.stdout.write(msgspec.json.encode(described).decode() + "\n")
        return 0
    if not entries:
        sys.stdout.write(f"{directory} holds no records.\n")
        return 0
    rows = [(*_cells(entry), printable_line(later.get(entry.name, ""), 80)) for entry in entries]
    out = Output(sys.stdout, color=False)
    shown = len(_COLUMNS) if later else len(_COLUMNS) - 1
    table = _table([row[:shown] for row in (_COLUMNS, *rows)])
    if out.width is not None and max(row_cells([(line, "")]) for line in table) >= out.width:
        out.say(*(line for row in rows for line in _paragraph(row)))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in table))
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
        f"{path} is recovered: {counted(result.events, 'event')}; {counted(result.gaps, 'run')} and "
        f"{counted(result.lost_chains, 'chain')} have no end; {counted(result.rows, 'row')} added.\n"
    )
    for damage in result.damage:
        sys.stdout.write(f"  lost: {printable_line(damage)}\n")
    return 0


def state_word(facts: RunFile, state: State) -> str:
    """How a record stands, in a word or two: of one that has ended, also if it was cancelled or failed."""
    if state == "silent":
        return f"silent for {_span(state_of(facts)[1])}"
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
    """What a record's own `run.json` says, by the columns but the last."""
    facts = entry.facts
    name = printable_line(entry.name, 80)
    if facts is None:
        return (name, "", "damaged", "", "", "", "", "")
    totals, state = facts.totals, state_word(facts, entry.state)
    return (
        name,
        printable_line(facts.name, 30),
        state,
        f"{totals.chains:,}",
        f"{totals.failed:,}",
        "" if totals.mean_reward is None else f"{totals.mean_reward:.3f}",
        f"{totals.train_steps:,}" if totals.train_steps else "",
        _span(max(ended_at(facts, entry.state) - facts.started_at, 0.0)) if facts.started_at else "",
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows, the first of which names the columns, as lines in columns."""
    cells = [[row_cells([(cell, "")]) for cell in row] for row in rows]
    widths = [max(column) for column in zip(*cells, strict=True)]
    lines = []
    for row, taken in zip(rows, cells, strict=True):
        padded = []
        for name, cell, width, had in zip(rows[0], row, widths, taken, strict=True):
            pad = " " * (width - had)
            padded.append(pad + cell if name in _RIGHT else cell + pad)
        lines.append("  ".join(padded).rstrip())
    return lines


def _paragraph(row: tuple[str, ...]) -> list[Row]:
    """A record on a terminal that is too narrow for the table."""
    of = dict(zip(_COLUMNS, row, strict=True))
    facts = [of["task"], of["state"]]
    if of["chains"]:
        facts += [f"{of['chains']} chains", f"{of['failed']} failed"]
    facts += [f"{name} {of[name]}" for name in ("reward", "step") if of[name]] + [of["took"]]
    facts += [f"{_RESUMED} {of[_RESUMED]}"] if of[_RESUMED] else []
    return [[(of["record"], "")], [("  " + ", ".join(filter(None, facts)), "")]]


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
