"""`rollcast runs`: the records of a directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from rollcast.archive.format import FORMAT
from rollcast.archive.index import RecordEntry, list_records, resumed_as
from rollcast.cli.output import Output
from rollcast.cli.records import ended_at, state_word
from rollcast.cli.standard_error import warn
from rollcast.cli.wording import counted, span_text
from rollcast.terminal.layout import Row, row_cells
from rollcast.text import printable_line

__all__ = ["runs_command"]

_RESUMED = "resumed as"
_COLUMNS = ("record", "task", "state", "chains", "failed", "reward", "step", "took", _RESUMED)
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
    _warn_of_newer_formats(entries)
    return 0


def _warn_of_newer_formats(entries: list[RecordEntry]) -> None:
    formats = [entry.newer_format for entry in entries if entry.newer_format is not None]
    if formats:
        which = ", ".join(map(str, sorted(set(formats))))
        warn(
            f"a later version of Rollcast wrote {counted(len(formats), 'record')} (format {which}); this one reads formats up to "
            f"{FORMAT}: pip install --upgrade rollcast"
        )


def _described(entry: RecordEntry) -> dict[str, Any]:
    facts = entry.facts
    about: dict[str, Any] = {"name": entry.name, "path": str(entry.path), "state": entry.state}
    if facts is None:
        return about | {"damage": entry.damage, "newer_format": entry.newer_format}
    totals = msgspec.to_builtins(facts.totals) | {
        "mean_reward": facts.totals.mean_reward,
        "mean_eval_reward": facts.totals.mean_eval_reward,
    }
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
    """The cells of all columns but the last, from the record's `run.json`."""
    facts = entry.facts
    name = printable_line(entry.name, 80)
    if facts is None:
        state = "damaged" if entry.newer_format is None else f"format {entry.newer_format}"
        return (name, "", state, "", "", "", "", "")
    totals, state = facts.totals, state_word(facts, entry.state)
    return (
        name,
        printable_line(facts.name, 30),
        state,
        f"{totals.chains:,}",
        f"{totals.failed:,}",
        "" if totals.mean_reward is None else f"{totals.mean_reward:.3f}",
        f"{totals.train_steps:,}" if totals.train_steps else "",
        span_text(max(ended_at(facts, entry.state) - facts.started_at, 0.0)) if facts.started_at else "",
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines with aligned columns. The first row has the names of the columns."""
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
    """A record as a few lines, for a terminal that is too narrow for the table."""
    of = dict(zip(_COLUMNS, row, strict=True))
    facts = [of["task"], of["state"]]
    if of["chains"]:
        facts += [f"{of['chains']} chains", f"{of['failed']} failed"]
    facts += [f"{name} {of[name]}" for name in ("reward", "step") if of[name]] + [of["took"]]
    facts += [f"{_RESUMED} {of[_RESUMED]}"] if of[_RESUMED] else []
    return [[(of["record"], "")], [("  " + ", ".join(filter(None, facts)), "")]]
