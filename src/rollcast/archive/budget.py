"""Keeping a directory of records within so many bytes: `trim_records`.

What is taken out, of the oldest record first, until the rest fits:

    1. of each record the tokens: trajectories, chunks, and the ids and log-probabilities in `llm_generation_end`
    2. of each record the events of its chains; `gap`s stand for them

What stays: the skeleton (`run.json`, `chains.jsonl`, `train.jsonl`, `notes.jsonl`, the events of runs), whatever a note is
about, records that are being written, and those of other hosts.

A line that is taken out leaves an empty one, so that every other line keeps its position. Each segment is replaced by rename,
after its index: whenever the process dies, the old or the new one is there, and an index that does not belong is not believed.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from rollcast.archive import zstd
from rollcast.archive.format import (
    EVENTS,
    LOCK_FILE,
    RUN_FILE,
    TRAJECTORIES,
    Frame,
    SegmentIndex,
    frames_of,
    index_name,
)
from rollcast.archive.index import list_records, state_of
from rollcast.archive.lines import rebuilt_index
from rollcast.archive.losses import Losses
from rollcast.archive.owner import FolderLock
from rollcast.archive.reader import Archive
from rollcast.archive.recovery import recover
from rollcast.archive.segments import (
    Segment,
    index_bytes,
    indexed,
    plain_index,
    read_index,
    replace_file,
    segments_in,
    sync_folder,
    whole_lines,
)
from rollcast.errors import ArchiveError, DecodeError, InputError
from rollcast.records import StreamEventType, decode, encode
from rollcast.records.jsonable import JSON_ERRORS

__all__ = ["Trimmed", "bytes_of", "trim_records"]

T = StreamEventType
TRIMMED = "they were taken out to keep the records within their budget"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_TOKENS = ("token_ids", "logprobs", "dt_ms")

Stage = Literal["tokens", "events"]
Replace = Callable[[bytes], bytes]


def bytes_of(text: str) -> int:
    """A size as people write it: `20GB`, `1.5 TiB`, or a number of bytes. kB, MB, GB and TB are powers of 1,000.

    Raises:
        InputError: the text is not a size with its unit.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text!r:.40} is not a size; expected one such as 20GB, 500MB or 1.5TiB")
    number, power, binary = found.groups()
    if binary and not power:
        raise InputError(f"{text!r:.40} is not a size; expected one such as 20GB, 500MB or 1.5TiB")
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[power.lower()])


class Trimmed(msgspec.Struct):
    """What `trim_records` did.

    Attributes:
        limit: how many bytes the records may have.
        before, after: how many they had, and have.
        records: of which something was taken out.
        kept: of which nothing could be taken out that should have been, a sentence each.
    """

    limit: int
    before: int
    after: int
    records: list[Path] = []
    kept: list[str] = []

    @property
    def over(self) -> bool:
        """Whether the records are still too large: what is left is what stays in any case."""
        return self.after > self.limit


def trim_records(directory: str | Path, limit_bytes: int) -> Trimmed:
    """Take tokens, then events, out of the oldest records of a directory until all of them have at most so many bytes.

    It blocks; two processes may do it at once.

    Raises:
        ArchiveError: the directory cannot be read.
    """
    folders = [entry.path for entry in reversed(list_records(Path(directory)))]
    sizes = {folder: _size_of(folder) for folder in folders}
    result = Trimmed(limit_bytes, sum(sizes.values()), sum(sizes.values()))
    refused: set[Path] = set()
    stages: tuple[Stage, ...] = ("tokens", "events")
    for stage in stages:
        for folder in folders:
            if result.after <= limit_bytes:
                return result
            if folder in refused:
                continue
            try:
                _trim(folder, stage, result.after - limit_bytes)
            except (ArchiveError, OSError) as error:
                refused.add(folder)
                result.kept.append(f"{folder.name} stays as it is: {error}")
            size = _size_of(folder)
            if size < sizes[folder] and folder not in result.records:
                result.records.append(folder)
            result.after += size - sizes[folder]
            sizes[folder] = size
    return result


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # a writer replaced it a moment ago
            size += path.stat().st_size if path.is_file() else 0
    return size


# -- one record ----------------------------------------------------------------------------------------------------------


def _trim(folder: Path, stage: Stage, excess: int) -> None:
    """Take out what the stage says, a segment after the other, until so many bytes are gone.

    Raises:
        ArchiveError: the record is not one to be trimmed, or cannot be read.
        OSError: it cannot be written.
    """
    archive = _closed(folder)
    if stage in archive.facts.trimmed:
        return
    lock = FolderLock(folder / LOCK_FILE)
    lock.take()
    try:
        archive = _closed(folder)  # as it is now that nobody can change it
        for part in (EVENTS, TRAJECTORIES):
            for path in (folder / part).glob("*.tmp"):  # of somebody who died while trimming
                path.unlink()
        choice = _Choice(archive)
        for part in (TRAJECTORIES, EVENTS) if stage == "tokens" else (EVENTS,):
            for segment in segments_in(folder / part):
                if excess <= 0:
                    return
                replace = _replacement(stage, part, choice)
                excess -= _rewritten(segment, replace, lambda: _begin(folder))
        if archive.refresh().facts.trimmed_at is not None:
            _note(folder, trimmed=[*archive.facts.trimmed, stage])
    finally:
        lock.release()


def _closed(folder: Path) -> Archive:
    """The record, if it may be trimmed; one whose writer died is recovered first."""
    archive = Archive.open(folder)
    if archive.facts.writer.host != socket.gethostname():
        raise ArchiveError(f"it is a record of {archive.facts.writer.host or 'an unknown host'}")
    state = state_of(archive.facts)[0]
    if state in ("running", "silent"):
        raise ArchiveError("it is being written")
    if state == "crashed" and archive.facts.recovered_at is None:
        recover(folder)
        archive.refresh()
    return archive


def _begin(folder: Path) -> None:
    """Before anything is taken out, the record says so."""
    _note(folder, trimmed_at=time.time())


def _note(folder: Path, **about: Any) -> None:
    raw = msgspec.json.decode((folder / RUN_FILE).read_bytes())
    replace_file(
        folder / RUN_FILE, msgspec.json.format(msgspec.json.encode(raw | about), indent=1) + b"\n", sync=True
    )


class _Line(msgspec.Struct):
    event_type: str = ""
    run_id: str = ""
    chain_id: str = ""


_line_decoder = msgspec.json.Decoder(_Line)


class _Choice:
    """Which chains of a record stay whole: those that a note is about."""

    def __init__(self, archive: Archive) -> None:
        self._rows = {(row["run_id"], row["chain_id"]): row for row in archive.chains().rows}
        notes = archive.notes()
        runs = {run_id for run_id, _ in self._rows}
        self._all = any(note.get("run_id") not in runs for note in notes)  # the record, or a whole training
        self._runs = {
            note.get("run_id") for note in notes if not note.get("chain_id") and not note.get("group_id")
        }
        self._groups = {
            (note.get("run_id"), note.get("group_id")) for note in notes if not note.get("chain_id")
        }
        self._chains = {(note.get("run_id"), note.get("chain_id")) for note in notes}

    def keeps(self, run_id: str, chain_id: str) -> bool:
        """Whether everything of this chain stays."""
        if not chain_id or self._all or run_id in self._runs or (run_id, chain_id) in self._chains:
            return True
        group_id = self._rows.get((run_id, chain_id), {}).get("group_id")
        return group_id is not None and (run_id, group_id) in self._groups

    def has_ended(self, run_id: str, chain_id: str) -> bool:
        """Whether the whole text of its generations stands in its events, without its chunks."""
        return self._rows.get((run_id, chain_id), {}).get("state") == "ended"


def _replacement(stage: Stage, part: str, choice: _Choice) -> Replace:
    """What a line becomes: itself, an empty one, or a shorter one. Made anew for each segment."""
    if part == TRAJECTORIES:
        return lambda line: line if _kept(line, choice) is not None else b""
    if stage == "tokens":
        return lambda line: _without_tokens(line, choice)
    return _WithoutChains(choice)


def _kept(line: bytes, choice: _Choice) -> _Line | None:
    """What the line is about, if it stays whatever it is: what cannot be read stays too."""
    try:
        about = _line_decoder.decode(line)
    except JSON_ERRORS:
        return _Line()
    return about if choice.keeps(about.run_id, about.chain_id) else None


def _without_tokens(line: bytes, choice: _Choice) -> bytes:
    if not line or _kept(line, choice) is not None:
        return line
    about = _line_decoder.decode(line)
    if about.event_type == T.LLM_GENERATION_CHUNK:
        return b"" if choice.has_ended(about.run_id, about.chain_id) else line
    if about.event_type != T.LLM_GENERATION_END or not any(name.encode() in line for name in _TOKENS):
        return line
    event = msgspec.json.decode(line)
    data = event.get("data")
    if not isinstance(data, dict):
        return line
    event["data"] = {name: value for name, value in data.items() if name not in _TOKENS}
    return msgspec.json.encode(event)


class _WithoutChains:
    """Leaves out the events of chains. A gap stands for those of a run that have no other event of the run between them, in the
    place of the first, so that `seq` rises as before.
    """

    def __init__(self, choice: _Choice) -> None:
        self._choice = choice
        self._count = 0
        self._stretches: dict[str, tuple[int, Losses]] = {}
        self._gaps: dict[int, bytes] = {}

    def __call__(self, line: bytes) -> bytes:
        """The line, or an empty one."""
        number, self._count = self._count, self._count + 1
        if not line:
            return line
        about = _kept(line, self._choice)
        if about is not None:
            self._end(about.run_id)
            return line
        try:
            event = decode(line)
        except DecodeError:
            return line
        _, losses = self._stretches.setdefault(event.run_id, (number, Losses()))
        losses.add([event], TRIMMED)
        return b""

    def _end(self, run_id: str) -> None:
        if run_id in self._stretches:
            first, losses = self._stretches.pop(run_id)
            self._gaps[first] = encode(losses.gaps()[0])

    def gaps(self) -> dict[int, bytes]:
        """By the number of the line in whose place each stands."""
        for run_id in list(self._stretches):
            self._end(run_id)
        return self._gaps


# -- one segment -----------------------------------------------------------------------------------------------------------


def _rewritten(segment: Segment, replace: Replace, begin: Callable[[], object]) -> int:
    """Replace lines of a sealed segment; how many bytes smaller it is. One that is damaged stays as it is.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    if not segment.sealed:
        return 0
    index = read_index(segment) or (rebuilt_index(segment) if segment.compressed else None)
    try:
        before = _lines_of(segment, index)
    except ArchiveError:
        return 0
    after = [replace(line) for line in before]
    if isinstance(replace, _WithoutChains):
        for number, gap in replace.gaps().items():
            after[number] = gap
    if after == before:
        return 0
    size = segment.path.stat().st_size
    data, made = _sealed_again(segment, [line + b"\n" for line in after])
    if len(data) >= size:
        return 0
    begin()
    beside = segment.path.with_name(segment.path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Its size does not fit the old segment, which is read without an index until the new one has its name.
        replace_file(segment.path.with_name(index_name(segment.first)), index_bytes(made), sync=True)
        beside.replace(segment.path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
    sync_folder(segment.path.parent)
    return size - len(data)


def _lines_of(segment: Segment, index: SegmentIndex | None) -> list[bytes]:
    """All lines, without their newlines.

    Raises:
        ArchiveError: a frame is damaged.
    """
    if not segment.compressed:
        return [line[:-1] for line in whole_lines(segment.path)]
    if index is None:
        raise ArchiveError(f"{segment.path} is damaged")
    lines: list[bytes] = []
    with segment.path.open("rb") as file:
        for frame in index.frames:
            lines += _lines_of_frame(file.read(frame.size), frame)
    return lines


def _lines_of_frame(data: bytes, frame: Frame) -> list[bytes]:
    lines = zstd.decompress(data).removesuffix(b"\n").split(b"\n")
    if len(lines) != frame.last - frame.first + 1:
        raise ArchiveError("a frame has another number of lines than its index says")
    return lines


def _sealed_again(segment: Segment, lines: list[bytes]) -> tuple[bytes, SegmentIndex]:
    if not segment.compressed:
        return b"".join(lines), plain_index(segment.first, lines)
    frames = [(frame, zstd.compress(b"".join(frame))) for frame in frames_of(lines)]
    made = indexed(segment.first, [(frame, len(data)) for frame, data in frames])
    return b"".join(data for _, data in frames), made
