"""What a writer that died left: read, reconstructed, written. Doing it twice changes nothing more.

    read         every line that is whole; what is torn or damaged is named
    reconstruct  the rows that were not written yet; which runs and chains were open, and the text of their generations
    write        a `gap` for each open run and a `chain_snapshot` for each chain of which more is known than its events tell;
                 the missing rows; sealed segments; `run.json` with status `crashed`

No end is invented: a chain that has no `chain_end` is shown as lost.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from rollcast.archive.format import (
    CHAINS_FILE,
    EVENTS,
    FORMAT,
    LOCK_FILE,
    OPEN_FILE,
    RUN_FILE,
    TRAIN_FILE,
    TRAJECTORIES,
    ChainRow,
    RunFile,
    Totals,
    check_format,
    index_name,
    live_name,
    sealed_name,
)
from rollcast.archive.index import state_of
from rollcast.archive.line_log import AppendedFile, LineLog
from rollcast.archive.lines import Damage, SegmentedLines, rebuilt_index
from rollcast.archive.owner import FolderLock
from rollcast.archive.reader import Archive
from rollcast.archive.segments import (
    Segment,
    index_bytes,
    read_index,
    replace_file,
    seal,
    segments_in,
    sync_folder,
    whole_lines,
)
from rollcast.archive.skeleton import Skeleton
from rollcast.errors import ArchiveError, DecodeError
from rollcast.records import StreamEvent, StreamEventType, decode, encode_lines
from rollcast.records.bounded import Tail, whole
from rollcast.records.codec import one_line_json
from rollcast.records.jsonable import JSON_ERRORS
from rollcast.records.lanes import Lane
from rollcast.records.view import ChainView
from rollcast.records.view_fields import calls_of
from rollcast.records.view_parts import MAX_TEXT
from rollcast.records.view_progress import open_generation, rest

__all__ = ["CRASHED", "Recovery", "recover"]

T = StreamEventType
CRASHED = "crashed"  # the `reason` of the gaps that recovery writes
_RUN_LEVEL = ("run_start", "run_end", "train_step", "gap")


class Recovery(msgspec.Struct):
    """What recovery did.

    Attributes:
        path: of the record.
        needed: whether there was anything to recover.
        events: that the record has now.
        gaps: that were written, one for each run that was open.
        lost_chains: that have no end.
        rows: of chains and training steps that were added.
        damage: what could not be saved, a sentence each.
    """

    path: Path
    needed: bool = False
    events: int = 0
    gaps: int = 0
    lost_chains: int = 0
    rows: int = 0
    damage: list[str] = []


def recover(path: str | Path, *, force: bool = False) -> Recovery:
    """Make a record whole whose writer died.

    Args:
        path: of the record's folder.
        force: also if its writer is on another host, where it cannot be seen whether it lives.

    Raises:
        ArchiveError: it is no record, it is still being written, or a later version wrote it.
        OSError: it cannot be written.
    """
    folder = Path(path)
    raw, notes = _run_file(folder)
    facts = msgspec.convert(raw, RunFile)
    state, silence = state_of(facts)
    if state == "running":
        raise ArchiveError(
            f"{folder} is still being written, by process {facts.writer.pid}; wait until it has ended"
        )
    if state == "silent" and not force:
        raise ArchiveError(
            f"{folder} was written on {facts.writer.host}, which has said nothing for {silence:.0f} s; recover it there, or "
            "with force=True if you know that its writer is gone"
        )
    if state == "ended" or (facts.status == "crashed" and facts.recovered_at is not None):
        return Recovery(folder, events=facts.totals.events, damage=facts.damage)
    lock = FolderLock(folder / LOCK_FILE)
    lock.take()
    try:
        return _recovered(folder, raw, notes)
    finally:
        lock.release()


def _run_file(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """`run.json` with every field that it has; made anew, with a note, if it is damaged and there are events."""
    try:
        value = msgspec.json.decode((folder / RUN_FILE).read_bytes())
        check_format(value.get("format"), str(folder))
        msgspec.convert(value, RunFile)
    except FileNotFoundError:
        why = "was missing"
    except ArchiveError:
        raise
    except (*JSON_ERRORS, AttributeError) as error:
        why = f"was damaged ({error})"
    else:
        return value, []
    if not segments_in(folder / EVENTS):
        raise ArchiveError(f"{folder} is not a record: its {RUN_FILE} {why}, and it has no events")
    made = RunFile(format=FORMAT, id=os.urandom(6).hex(), name=folder.name, status="crashed")
    return msgspec.to_builtins(made), [f"{RUN_FILE} {why}: what it said of the run is lost"]


# -- read ------------------------------------------------------------------------------------------------------------------


def _tidied(folder: Path) -> list[str]:
    """Take away what was half-made, and cut torn lines off. Returns what was cut."""
    notes = []
    for part in (EVENTS, TRAJECTORIES):
        for path in sorted((folder / part).glob("*.tmp")):
            path.unlink()
        for segment in segments_in(folder / part):
            if segment.compressed:
                _remove_twin(folder / part, segment.first)
            else:
                notes += _without_torn_line(segment.path)
    for name in (CHAINS_FILE, TRAIN_FILE):
        notes += _without_torn_line(folder / name)
    for name in (RUN_FILE, OPEN_FILE):
        with suppress(FileNotFoundError):
            (folder / f"{name}.tmp").unlink()
    return notes


def _remove_twin(folder: Path, first: int) -> None:
    """A writer that died while it sealed a segment left it plain too: whichever is not whole goes."""
    plain = folder / live_name(first)
    if plain.exists():
        sealed = Segment(first, folder / sealed_name(first), sealed=True)
        (sealed.path if rebuilt_index(sealed) is None else plain).unlink()


def _without_torn_line(path: Path) -> list[str]:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return []
    whole = sum(map(len, whole_lines(path)))
    if whole == size:
        return []
    os.truncate(path, whole)
    return [f"{path.name} ended in a torn line, of which {size - whole} bytes were cut off"]


# -- reconstruct -----------------------------------------------------------------------------------------------------------


class _About(msgspec.Struct):
    """What decides whether a line matters to recovery."""

    event_type: str = ""
    run_id: str = ""
    chain_id: str = ""
    source: str = ""
    seq: int = -1
    timestamp: float = 0.0


_about_decoder = msgspec.json.Decoder(_About)


class _Reconstruction:
    """One pass over everything that is recorded.

    Attributes:
        position: after the last event.
        skeleton: fed with the runs, and with the chains that have no end row.
        last_seq: of each run and source; `last_at`: the latest timestamp.
        closed: runs and sources that have ended, or whose gap was written by an earlier recovery.
        views: chains that have not ended.
        damage: what could not be read.
    """

    def __init__(self, archive: Archive, ended: set[tuple[str, str]]) -> None:
        self.position = 0
        self.skeleton = Skeleton()
        self.last_seq: dict[Lane, int] = {}
        self.last_at = 0.0
        self.closed: set[Lane] = set()
        self.views: dict[tuple[str, str], ChainView] = {}
        self.damage: list[Damage] = []
        self._ended = ended
        self._read_trajectories(archive.path)
        lines = SegmentedLines(archive.path / EVENTS)
        for block in lines.blocks(0):
            for position, line in enumerate(block.lines, block.first):
                if line or not block.sealed:  # an empty one was taken out to keep a budget
                    self._take(line, position, lines.folder)
            self.position = block.first + len(block.lines)
        self.damage += lines.damage

    def _read_trajectories(self, folder: Path) -> None:
        lines = SegmentedLines(folder / TRAJECTORIES)
        for block in lines.blocks(0):
            for position, line in enumerate(block.lines, block.first):
                with suppress(*JSON_ERRORS):
                    about = _about_decoder.decode(line)
                    if (about.run_id, about.chain_id) not in self._ended:
                        self.skeleton.trajectory_at(about.run_id, about.chain_id, position)
        self.damage += lines.damage

    def _take(self, line: bytes, position: int, folder: Path) -> None:
        try:
            about = _about_decoder.decode(line)
            key = (about.run_id, about.chain_id)
            lane = Lane(about.run_id, about.source)
            self.last_seq[lane] = max(about.seq, self.last_seq.get(lane, -1))
            self.last_at = max(about.timestamp, self.last_at)
            if about.event_type in _RUN_LEVEL or (about.chain_id and key not in self._ended):
                self._feed(decode(line), key, position)
        except (*JSON_ERRORS, DecodeError) as error:
            self.damage.append(Damage(folder, position, position, str(error)))

    def _feed(self, event: StreamEvent, key: tuple[str, str], position: int) -> None:
        self.skeleton.feed(event, position)
        kind = event.event_type
        if kind is T.RUN_END or (kind is T.GAP and event.data.get("reason") == CRASHED):
            self.closed.add(Lane(event.run_id, event.source))
        if kind is T.RUN_START:
            self.closed.discard(Lane(event.run_id, event.source))
        if event.chain_id:
            view = self.views.setdefault(key, ChainView())
            view.apply(event)
            if kind is T.CHAIN_END:
                del self.views[key]

    def open_runs(self) -> list[Lane]:
        """The runs that have not ended and have no gap yet, each once for every such source."""
        return [lane for lane in self.skeleton.runs if lane not in self.closed]


class _OpenText(msgspec.Struct):
    """The text of an open generation, in a row of `open.jsonl`."""

    run_id: str
    chain_id: str
    step: int
    content: str
    offset: int = 0
    tool_calls: Any = None


def _open_texts(rows: list[dict[str, Any]]) -> dict[tuple[str, str], _OpenText]:
    """The texts that are whole, by run and chain; rows of chains without an open generation, and damaged ones, have none."""
    texts = {}
    for row in rows:
        with suppress(msgspec.ValidationError):
            text = msgspec.convert(row, _OpenText)
            texts[text.run_id, text.chain_id] = text
    return texts


def _closing_events(found: _Reconstruction, open_parts: list[dict[str, Any]]) -> list[StreamEvent]:
    """A `gap` for each open run and source, then how its chains stood, as far as more is known than their events tell."""
    events = []
    parts = _open_texts(open_parts)
    for lane in found.open_runs():
        first = found.last_seq.get(lane, -1) + 1
        data = {"from_seq": first, "to_seq": first, "dropped": {}, "reason": CRASHED}
        gap = StreamEvent(T.GAP, "", found.last_at, data, run_id=lane.run_id, source=lane.source)
        events.append(gap)
        for key, view in found.views.items():
            part = parts.get(key)
            if (key[0], view.source) == lane and part is not None and _knows_more(part, view):
                view.apply(gap)
                _complete(view, part)
                events.append(view.snapshot())
    return events


def _knows_more(part: _OpenText, view: ChainView) -> bool:
    if view.state == "ended":
        return False
    same_step = view.generation_step == part.step
    known = 0 if view.generation is None or not same_step else view.generation.end
    return (
        part.step >= (view.generation_step or 0)
        and (not same_step or view.generation is not None)
        and part.offset + len(part.content) > known
    )


def _complete(view: ChainView, part: _OpenText) -> None:
    if view.generation_step != part.step:
        open_generation(view, part.step)
    view.generation = Tail.of(part.content, MAX_TEXT, part.offset)
    view.step = part.step
    view.tool_calls = calls_of(part.tool_calls)
    rest(view, view.last_event_at)


# -- write -----------------------------------------------------------------------------------------------------------------


def _recovered(folder: Path, raw: dict[str, Any], notes: list[str]) -> Recovery:
    facts = msgspec.convert(raw, RunFile)
    notes += _tidied(folder)
    archive = Archive(folder, facts)
    rows = archive.chains().rows
    ended = {(row["run_id"], row["chain_id"]) for row in rows if row["state"] == "ended"}
    found = _Reconstruction(archive, ended)
    closing = _closing_events(found, archive.open_parts())
    result = Recovery(folder, needed=True, gaps=sum(e.event_type is T.GAP for e in closing))
    if closing:
        _append_events(folder / EVENTS, found.position, closing)
        for position, event in enumerate(closing, found.position):
            found.skeleton.feed(event, position)
    result.events = found.position + len(closing)
    result.rows = _append_rows(folder, archive, found.skeleton)
    for part in (EVENTS, TRAJECTORIES):
        notes += _seal_all(folder / part)
    result.damage = facts.damage + notes + [str(damage) for damage in found.damage]
    result.lost_chains = sum(row["state"] != "ended" for row in archive.chains().rows)
    raw |= {
        "status": "crashed",
        "ended_at": found.last_at or facts.started_at,
        "recovered_at": time.time(),
        "started_at": facts.started_at or found.last_at,
        "damage": result.damage,
        "totals": msgspec.to_builtins(_totals(archive, found.skeleton, result.events, facts.totals)),
    }
    data = msgspec.json.format(msgspec.json.encode(raw), indent=1)
    replace_file(folder / RUN_FILE, data + b"\n", sync=True)
    (folder / OPEN_FILE).unlink(missing_ok=True)
    sync_folder(folder)
    return result


def _append_events(folder: Path, position: int, events: list[StreamEvent]) -> None:
    """To the segment that was live, or in a new one: after damage the positions tell where it begins."""
    segments = segments_in(folder)
    if segments and not segments[-1].sealed:
        file = AppendedFile(segments[-1].path)
        file.append(encode_lines(events))
        file.close()
    else:
        log = LineLog(folder, position)
        log.append(encode_lines(events), len(events))
        log.close()


def _append_rows(folder: Path, archive: Archive, skeleton: Skeleton) -> int:
    """The rows that the record does not have yet."""
    known = {(row["run_id"], row["chain_id"]): row for row in archive.chains().rows}
    rows = [row for row in skeleton.take_rows() if _is_new(row, known)]
    have = [(row.get("row"), row.get("run_id"), row.get("timestamp")) for row in archive.train_rows()]
    train = [
        row for row in skeleton.take_train_rows() if (row["row"], row["run_id"], row["timestamp"]) not in have
    ]
    for name, new in ((CHAINS_FILE, rows), (TRAIN_FILE, train)):
        if new:
            file = AppendedFile(folder / name)
            file.append(b"".join(one_line_json(msgspec.json.encode(row)) + b"\n" for row in new))
            file.close()
    return len(rows) + len(train)


def _is_new(row: ChainRow, known: dict[tuple[str, str], dict[str, Any]]) -> bool:
    have = known.get((row.run_id, row.chain_id))
    if row.row == "trained":
        return have is None or have.get("advantage") != row.advantage
    # Of what runs no longer, a reader says by itself that it is lost.
    return have is None or (row.row == "end" and have["state"] != "ended" and row.state != "lost")


def _seal_all(folder: Path) -> list[str]:
    """Seal what is plain, and make the indexes that are missing."""
    notes = []
    for segment in segments_in(folder):
        if not segment.sealed:
            if segment.path.stat().st_size == 0:
                segment.path.unlink()
            else:
                seal(folder, segment.first)
        elif segment.compressed and read_index(segment) is None:
            index = rebuilt_index(segment)
            if index is None:
                notes.append(f"{sealed_name(segment.first)} is damaged; its frames are read without an index")
                (folder / index_name(segment.first)).unlink(missing_ok=True)
            else:
                replace_file(folder / index_name(segment.first), index_bytes(index), sync=True)
    return notes


def _totals(archive: Archive, skeleton: Skeleton, events: int, before: Totals) -> Totals:
    rows = archive.chains().rows
    ended = [row for row in rows if row["state"] == "ended"]
    rewards = [row["reward"] for row in ended if row.get("reward") is not None]
    of_evals = [
        row["reward"] for row in ended if row.get("reward") is not None and row.get("split") == "eval"
    ]
    return Totals(
        events=events,
        runs=skeleton.totals.runs,
        chains=len(rows),
        open_chains=len(rows) - len(ended),
        failed=sum(row.get("finish_reason") == "error" for row in ended),
        reward_sum=sum(rewards),
        rewarded=len(rewards),
        eval_reward_sum=sum(of_evals),
        eval_rewarded=len(of_evals),
        completion_tokens=sum(row.get("completion_tokens") or 0 for row in ended),
        train_steps=max(
            [whole(row.get("train_step")) or 0 for row in archive.train_rows()], default=before.train_steps
        ),
        lost=before.lost,
        trajectories_lost=before.trajectories_lost,
        masked=before.masked,
    )
