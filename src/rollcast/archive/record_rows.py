"""Rows of the records of a directory, from `run.json` and the first line of each, and which record a run is in.

A record's row is the row of its first run, so that the page lists records as it lists runs. The child process that reads records for
a server (child.py) uses this, and remembers the first runs, since they never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from rollcast.archive import zstd
from rollcast.archive.format import CHAINS_FILE, EVENTS, RunFile
from rollcast.archive.index import RecordEntry, State, list_records
from rollcast.archive.segments import segments_in
from rollcast.errors import ArchiveError, MissingExtraError
from rollcast.records.codec import one_line_json
from rollcast.records.jsonable import JSON_ERRORS

__all__ = ["UNREADABLE", "first_run_of", "record_rows", "record_with_run"]

UNREADABLE = "record:"  # begins the `run_id` of a record whose first run is not known; its name follows
_BEGINNING = 64 << 10  # bytes of a segment; the first event of a run is short
_STATUS: dict[State, str] = {
    "running": "running",
    "crashed": "lost",
    "silent": "silent",
    "ended": "completed",
}


class _About(msgspec.Struct):
    run_id: str = ""


_about_decoder = msgspec.json.Decoder(_About)
_first_runs: dict[tuple[str, str], str] = {}  # by path and id of the record
_MAX_KNOWN = 65_536


def record_rows(directory: Path) -> Iterator[dict[str, Any] | None]:
    """A row for each record, the newest first; None now and then, so that other work has its turn.

    Raises:
        ArchiveError: the directory cannot be read.
    """
    for number, entry in enumerate(list_records(directory), 1):
        if number % 50 == 0:
            yield None
        yield _row(entry)


def _row(entry: RecordEntry) -> dict[str, Any]:
    facts = entry.facts
    if facts is None:
        about: dict[str, Any] = {"name": entry.name, "state": "damaged", "damage": entry.damage}
        return {
            "run_id": UNREADABLE + entry.name,
            "status": "damaged",
            "name": entry.name,
            "started_at": None,
            "record": about,
        }
    totals = facts.totals
    mean = totals.mean_reward
    counts = {
        "chains": totals.chains,
        "open_chains": totals.open_chains if entry.state == "running" else 0,
        "failed": totals.failed,
        "mean_reward": mean,
        "completion_tokens": totals.completion_tokens,
    }
    record = {
        "name": entry.name,
        "id": facts.id,
        "state": entry.state,
        "level": facts.level,
        "runs": totals.runs,
        "train_steps": totals.train_steps,
        "parent": facts.parent,
    } | counts
    ended_at = _ended_at(facts, entry.state)
    return {
        "run_id": first_run_of(entry.path, facts) or UNREADABLE + entry.name,
        "status": facts.status if facts.status in ("cancelled", "failed") else _STATUS[entry.state],
        "parent_run_id": None,
        "name": facts.name or None,
        "tags": facts.tags,
        "seed": facts.seed,
        "started_at": facts.started_at or None,
        "ended_at": ended_at,
        "duration_s": None if ended_at is None else max(ended_at - facts.started_at, 0.0),
        "record": record,
    } | counts


def _ended_at(facts: RunFile, state: State) -> float | None:
    """When the record ended; if its writer is gone, the writer's last heartbeat."""
    if facts.ended_at is not None or state in ("running", "silent"):
        return facts.ended_at
    return facts.writer.heartbeat or None


def first_run_of(path: Path, facts: RunFile) -> str | None:
    """The id of the first run of a record; None if it has none yet, or it cannot be read."""
    key = (str(path), facts.id)
    known = _first_runs.get(key)
    if known is None:
        with suppress(OSError, ArchiveError, MissingExtraError):
            known = _read_first_run(path)
        if known is not None:
            if len(_first_runs) >= _MAX_KNOWN:
                _first_runs.clear()
            _first_runs[key] = known
    return known


def _read_first_run(path: Path) -> str | None:
    """The run of the first event that has one."""
    for segment in segments_in(path / EVENTS):
        with segment.path.open("rb") as file:
            data = file.read(_BEGINNING)
        if segment.compressed:
            data = zstd.beginning(data)
        for line in data.splitlines(keepends=True):
            with suppress(*JSON_ERRORS):
                run_id = _about_decoder.decode(line).run_id
                if run_id:
                    return run_id
    return None


def record_with_run(directory: Path, run_id: str) -> Iterator[Path | None]:
    """The newest record that has the run, if there is one; None now and then before it.

    In a record of many runs all rows of chains are searched, which takes about a second per gigabyte.

    Raises:
        ArchiveError: the directory cannot be read.
    """
    entries = [entry for entry in list_records(directory) if entry.facts is not None]
    for number, entry in enumerate(entries, 1):
        if number % 50 == 0:
            yield None
        assert entry.facts is not None
        if first_run_of(entry.path, entry.facts) == run_id:
            yield entry.path
            return
    needle = one_line_json(b'"run_id":' + msgspec.json.encode(run_id))
    for entry in entries:
        yield None
        assert entry.facts is not None
        if (entry.facts.totals.runs != 1 or entry.state == "running") and _holds(
            entry.path / CHAINS_FILE, needle
        ):
            yield entry.path
            return


def _holds(path: Path, needle: bytes) -> bool:
    """Whether a file has these bytes; False if it cannot be read."""
    tail = b""
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                if needle in tail + block:
                    return True
                tail = block[-len(needle) :]
    except OSError:
        return False
    return False
