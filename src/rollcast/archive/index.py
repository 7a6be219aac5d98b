"""The records of a directory: which there are, how each stands, and which one a word means."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from rollcast.archive.format import DIRECTORY, RUN_FILE, RunFile, check_format
from rollcast.archive.owner import is_alive
from rollcast.errors import ArchiveError, NewerFormatError
from rollcast.records.jsonable import JSON_ERRORS

__all__ = [
    "RecordEntry",
    "State",
    "find_record",
    "list_records",
    "read_run_file",
    "record_directory",
    "resumed_as",
    "state_of",
]

State = Literal["running", "ended", "crashed", "silent"]

SILENT_S = 30.0  # three heartbeats


class RecordEntry(msgspec.Struct, frozen=True):
    """One record of a directory.

    Attributes:
        path: of its folder; its name is the last part.
        facts: what `run.json` says; None if it cannot be read, and `damage` says why.
        state: how it stands; of a record of a later version `ended`, since nothing is known.
        newer_format: its format, if a later version of Rollcast wrote it, which this one cannot read.
    """

    path: Path
    facts: RunFile | None
    state: State
    damage: str | None = None
    newer_format: int | None = None

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name


def read_run_file(path: Path) -> RunFile:
    """What `run.json` of a record says.

    Raises:
        ArchiveError: the folder is no record, it is damaged, or a later version wrote it.
    """
    try:
        data = (path / RUN_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArchiveError(
            f"{path} {_why_no_record(path)}; rollcast runs lists the records of a directory"
        ) from None
    except OSError as error:
        raise ArchiveError(f"{path / RUN_FILE} cannot be read: {error.strerror or error}") from None
    try:
        number = msgspec.json.decode(data, type=_Format).format
        check_format(number, str(path))
        return msgspec.json.decode(data, type=RunFile)
    except JSON_ERRORS as error:
        raise ArchiveError(f"{path / RUN_FILE} is damaged: {error}") from None


def _why_no_record(path: Path) -> str:
    if os.path.isdir(path):  # noqa: PTH112  (unlike Path.is_dir it never raises)
        return f"has no {RUN_FILE}, so it is not a record"
    return "is a file, and a record is a folder" if os.path.exists(path) else "is not there"  # noqa: PTH110  (as above)


class _Format(msgspec.Struct):
    format: object = None


def state_of(facts: RunFile, now: float | None = None) -> tuple[State, float]:
    """How a record stands, and for how many seconds its writer has said nothing.

    A writer whose process is gone has crashed, whatever its heartbeat says. One on another host that says nothing is silent:
    whether it lives cannot be known from here.
    """
    silence = max((time.time() if now is None else now) - facts.writer.heartbeat, 0.0)
    if facts.status == "crashed":
        return "crashed", silence
    if facts.status != "running":
        return "ended", silence
    alive = is_alive(facts.writer)
    if alive is None:
        return ("silent" if silence > SILENT_S else "running"), silence
    return ("running" if alive else "crashed"), silence


def record_directory(given: str | os.PathLike[str] | None = None) -> Path:
    """Where records are: in the given directory, or where `ROLLCAST_RECORDS` says, or in `rollcast-runs` in the current folder.

    A `~` at its beginning is the home folder: shells do not replace it in `--record-dir=~/runs`, nor does anything in a file of
    options or of variables.
    """
    named = given or os.environ.get("ROLLCAST_RECORDS") or DIRECTORY
    return Path(os.path.expanduser(named))  # noqa: PTH111  (unlike Path.expanduser it never raises)


def list_records(directory: Path, now: float | None = None) -> list[RecordEntry]:
    """The records of a directory, the newest first. Folders that are no records are left out, and those of other users that only
    these may read.

    Raises:
        ArchiveError: the directory cannot be read.
    """
    try:
        folders = [path for path in directory.iterdir() if _is_record(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArchiveError(f"{directory} cannot be read: {error.strerror or error}") from None
    entries = [_entry(path, now) for path in folders]
    return sorted(entries, key=lambda entry: (_began(entry), entry.name), reverse=True)


def resumed_as(entries: Iterable[RecordEntry]) -> dict[str, str]:
    """Which records of a directory were resumed: by name, the newest record that continues each.

    Args:
        entries: all records of the directory, the newest first.
    """
    entries = list(entries)
    names = {entry.facts.id: entry.name for entry in entries if entry.facts is not None}
    names |= {entry.name: entry.name for entry in entries}
    found: dict[str, str] = {}
    for entry in entries:
        parent = None if entry.facts is None else names.get(entry.facts.parent or "")
        if parent is not None:
            found.setdefault(parent, entry.name)
    return found


def _is_record(path: Path) -> bool:
    return os.path.exists(path / RUN_FILE)  # noqa: PTH110  (unlike Path.exists it never raises)


def _began(entry: RecordEntry) -> float:
    """When the record began, as far as that is known of a damaged one."""
    if entry.facts is not None:
        return entry.facts.started_at
    try:
        return entry.path.stat().st_mtime
    except OSError:
        return 0.0


def _entry(path: Path, now: float | None) -> RecordEntry:
    try:
        facts = read_run_file(path)
    except NewerFormatError as error:
        return RecordEntry(path, None, "ended", str(error), error.number)
    except ArchiveError as error:
        return RecordEntry(path, None, "crashed", str(error))
    return RecordEntry(path, facts, state_of(facts, now)[0])


def find_record(directory: Path, word: str) -> Path:
    """The record that a word means: a path, `latest`, a folder's name or a beginning of it that no other has, or a run's name.

    Of several records whose run has that name, the newest is meant.

    Raises:
        ArchiveError: no record is meant, or more than one.
    """
    if word not in ("", ".") and _is_record(Path(word)):
        return Path(word)
    entries = list_records(directory)
    is_path = word not in ("", ".", "latest") and os.path.exists(word)  # noqa: PTH110  (unlike Path.exists it never raises)
    if not entries and not is_path:
        raise ArchiveError(
            f"{directory} holds no records; rollcast run and rollcast train leave one each, and --record-dir says where"
        )
    if word == "latest":
        return entries[0].path
    exact = [entry for entry in entries if entry.name == word]
    begins = [entry for entry in entries if word and entry.name.startswith(word)]
    named = [entry for entry in entries if entry.facts is not None and word and entry.facts.name == word]
    if found := exact or named[:1] or (begins if len(begins) == 1 else []):
        return found[0].path
    if begins:
        names = ", ".join(entry.name for entry in begins[:5])
        more = f" and {len(begins) - 5} more" if len(begins) > 5 else ""
        raise ArchiveError(
            f"{word!r:.80} begins the names of {len(begins)} records: {names}{more}; give more of the name"
        )
    if is_path:
        raise ArchiveError(
            f"{word} {_why_no_record(Path(word))}; name a record's folder, or give the folder around it as --record-dir"
        )
    raise ArchiveError(f"{directory} holds no record {word!r:.80}{_nearest(word, entries)}")


def _nearest(word: str, entries: list[RecordEntry]) -> str:
    names = [entry.name for entry in entries]
    by_part = {name.rsplit("-", 1)[-1]: name for name in names} | {
        entry.facts.name: entry.name for entry in entries if entry.facts is not None and entry.facts.name
    }
    near = difflib.get_close_matches(word, names, 3, 0.5)
    near += [by_part[part] for part in difflib.get_close_matches(word, list(by_part), 3, 0.6)]
    near = list(dict.fromkeys(near))[:3] or names[:3]
    return f"; the nearest: {', '.join(near)}"
