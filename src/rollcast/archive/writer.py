"""The recorder: writes one record. Everything here happens on one thread (worker.py), which may block.

Each block of events is written in this order, so that a reader who finds something finds what stands before it:

    trajectories/ → events/ → chains.jsonl, train.jsonl → run.json (each 10 s)
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from rollcast.archive.format import (
    CHAINS_FILE,
    EVENTS,
    LOCK_FILE,
    OPEN_FILE,
    RUN_FILE,
    TRAIN_FILE,
    TRAJECTORIES,
    ChainRow,
    RunFile,
    prompt_hash,
)
from rollcast.archive.line_log import AppendedFile, LineLog
from rollcast.archive.losses import Losses
from rollcast.archive.origin import git_commit, library_versions
from rollcast.archive.owner import FolderLock, this_process
from rollcast.archive.segments import replace_file, sync_folder
from rollcast.archive.skeleton import Skeleton
from rollcast.errors import ArchiveError
from rollcast.records import StreamEvent, StreamEventType, Trajectory, encode_lines
from rollcast.records.codec import encode_described, one_line_json
from rollcast.records.jsonable import JSON_ERRORS, as_json, without_named_secrets
from rollcast.records.lanes import Lane
from rollcast.records.secrets import Masker
from rollcast.stream.fanout import OpenPart
from rollcast.stream.queue import merged_chunks
from rollcast.stream.waiting import ChunkData, Encodable, EncodableChunk, Relayed, event_of
from rollcast.text import LINE_CHARS, grown_line, well_formed
from rollcast.version import __version__

__all__ = ["OnRows", "Recorder", "Written", "prepare_folder"]

logger = logging.getLogger("rollcast.archive")
count_logger = logging.getLogger(
    "rollcast.archive.count"
)  # what is missing at the end; a command says that itself

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK
_WAITING_ROWS = 65_536  # of chains, while they cannot be written

_encoder = msgspec.json.Encoder(enc_hook=as_json)


OnRows = Callable[[Sequence[ChainRow], Sequence[dict[str, Any]]], bool]
"""Takes rows of chains, and rows of training steps and evaluations. Returns whether it wants more of them."""


class Written(NamedTuple):
    """How far a record got.

    Attributes:
        position: after the events that were written last.
        last: the latest of them; None: the record was begun anew, and positions of the earlier one mean nothing any more.
        as_of: the highest `seq` of each run and source among them.
    """

    position: int
    last: StreamEvent | None
    as_of: dict[Lane, int]


def prepare_folder(path: Path) -> None:
    """Make the record's folder, and the record directory around it: for its owner alone, and of no interest to git.

    Raises:
        OSError: it cannot be made.
    """
    prepare_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def prepare_directory(directory: Path) -> None:
    """Make the record directory, if it is not there.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    if not directory.exists():
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        replace_file(directory / ".gitignore", b"*\n")
    elif not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))


class Recorder:
    """Writes one record. What cannot be written is counted, and a `gap` stands for it when it can be again.

    It is one class since all its files fail, and are opened again, together.

    Args:
        path: of the record's folder.
        about: what `run.json` says of the run.
        trajectories: whether they are kept.
        masker: of secrets; None masks nothing.
        open_parts: gives what is open in the chains now.
        on_failure: called with the first failure after a success.
        run_in: the folder in which the run was started.

    Attributes:
        begun: whether the folder has, or had, a record of this recorder.
        failing: why it cannot be written at present; None if it can.
        on_written: called whenever events were written, on the recorder's thread.
        redraw: gives another path if the folder is there already when the record begins, since another process drew the same
            name. None: the path stays.
    """

    def __init__(
        self,
        path: Path,
        about: RunFile,
        *,
        trajectories: bool,
        masker: Masker | None,
        open_parts: Callable[[], Iterable[OpenPart]],
        on_failure: Callable[[BaseException], object],
        run_in: Path,
    ) -> None:
        self.about = about
        self.begun = False
        self.failing: str | None = None
        self.on_written: list[Callable[[Written], object]] = []
        self._on_rows: list[OnRows] = []
        self._feeding = threading.Lock()  # of the rows that are made, and who is told of them
        self._latest_failure = ""
        about.id = about.id or secrets.token_hex(6)
        self._run_in = run_in
        self._keeps_trajectories = trajectories
        self._masker = masker
        self._open_parts = open_parts
        self._on_failure = on_failure
        self.redraw: Callable[[], Path] | None = None
        self._opened = False
        self._place_at(path)
        self._skeleton = Skeleton(about.totals)
        self._rows = b""
        self._train_rows = b""
        self._losses = Losses()
        self._lines: dict[tuple[str, str], int] = {}  # characters of the line that each open generation is at
        self._past = Losses()  # what was written of the runs that are open
        self._warned = False

    def _place_at(self, path: Path) -> None:
        self.path = path
        self._lock = FolderLock(path / LOCK_FILE)
        self._events = LineLog(path / EVENTS)
        self._trajectories = LineLog(path / TRAJECTORIES)
        self._chains = AppendedFile(path / CHAINS_FILE)
        self._train = AppendedFile(path / TRAIN_FILE)

    @property
    def incomplete(self) -> str | None:
        """What the record lacks, and why; None if it lacks nothing."""
        totals = self.about.totals
        lacking = [
            f"{count:,} {noun}"
            for count, noun in ((totals.lost, "events"), (totals.trajectories_lost, "trajectories"))
            if count
        ]
        if not lacking:
            return self.failing
        why = f": {self._latest_failure}" if self._latest_failure else ""
        return f"{' and '.join(lacking)} could not be written{why}"

    # -- opening and closing -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin the record, or go on with it after `finish`. A failure is told, and tried again with the next block."""
        try:
            self._ensure_open()
        except (OSError, ArchiveError) as error:
            self._failed(error)

    def _ensure_open(self) -> None:
        parts = (self._lock, self._events, self._chains, self._trajectories, self._train)
        if self._opened and any(part.is_gone() for part in parts):
            self._begin_anew()
        if self._opened:
            return
        self._claim_name()
        prepare_folder(self.path)
        self._lock.take()
        if self._events.position == 0 and (self.path / RUN_FILE).exists() and not self._is_ours():
            self._lock.release()
            raise ArchiveError(f"{self.path} holds the record of another run; give another path")
        if not self.begun:
            self._note_origin()
        self.about.status, self.about.ended_at = "running", None
        self.about.started_at = self.about.started_at or time.time()
        self._write_run_file(sync=True)
        sync_folder(self.path)
        self._opened = self.begun = True

    def _note_origin(self) -> None:
        ours = {"rollcast": __version__, "python": platform.python_version()}
        self.about.versions = ours | library_versions() | self.about.versions
        self.about.git_commit = self.about.git_commit or git_commit(self._run_in)

    def _claim_name(self) -> None:
        """Make the folder, if its name was drawn: of all that drew the same name only one can."""
        while self.redraw is not None:
            prepare_directory(self.path.parent)
            try:
                self.path.mkdir(mode=0o700)
            except FileExistsError:
                self._place_at(self.redraw())
            else:
                self.redraw = None  # from now on the name stays

    def _is_ours(self) -> bool:
        try:
            return bool(msgspec.json.decode((self.path / RUN_FILE).read_bytes())["id"] == self.about.id)
        except (OSError, *JSON_ERRORS, KeyError, TypeError):
            return False

    def _begin_anew(self) -> None:
        """The folder was taken away: make it again, and say what it had."""
        reason = "the record was moved or deleted while it was written"
        logger.warning("%s was moved or deleted while it was written; it is begun anew", self.path)
        for file in (self._chains, self._train):
            file.close()
        self._lock.release()
        self._events.begin_anew()
        self._trajectories.begin_anew()
        self.lose_past(reason)
        self.about.id = secrets.token_hex(6)  # cursors into the earlier one are not cursors into this one
        self._tell(Written(0, None, {}))
        self._rows = _lines(self._skeleton.open_rows()) + self._rows
        self._opened = False

    def finish(self) -> None:
        """Seal what is live, say how it ended, and let go of the folder."""
        if self._losses:
            self._write_events([])
        try:
            if self._opened:
                self._append_rows()
                self._events.close()
                self._trajectories.close()
                self.about.status, self.about.ended_at = self._skeleton.outcome or "completed", time.time()
                (self.path / OPEN_FILE).unlink(missing_ok=True)
                self._write_last_run_file()
        except OSError as error:
            self._failed(error)
        for file in (self._chains, self._train):
            file.close()
        self._lock.release()
        self._opened = False
        if lost := self.about.totals.lost:
            count_logger.warning("%s lacks %d events that could not be written", self.path, lost)

    def take_gaps(self) -> list[StreamEvent]:
        """A `gap` for each run of which something could not be written. It is not written any more: the caller has it now."""
        gaps = self._losses.gaps()
        self._losses.clear()
        return gaps

    def lose_past(self, reason: str) -> None:
        """What was written of the runs that are open is not there any more; see `take_gaps`."""
        self._losses.join(self._past, reason)
        self._past.clear()

    # -- what is recorded ----------------------------------------------------------------------------------------------

    def record(self, events: list[Relayed], trajectories: Sequence[Trajectory], lost: int = 0) -> None:
        """Write the events, neighbouring chunks merged, after the trajectories of chains that end among them.

        Args:
            events: in order.
            trajectories: of chains that have ended.
            lost: how many trajectories could not wait to be written.
        """
        self.about.totals.trajectories_lost += lost
        if trajectories and self._keeps_trajectories:
            self._write_trajectories(trajectories)
        if events:
            self._write_events(events)

    def _write_events(self, given: list[Relayed]) -> None:
        events = _merged(given, self._lines)
        lines = _event_lines(events)
        masker = self._masker
        if masker is not None and _may_hold_secrets(masker.outside(events), masker):
            events = [self._masked(event, masker) for event in events]
            lines = _event_lines(events)
        told: list[StreamEvent] = []  # the gaps that were written with them
        try:
            self._ensure_open()  # it may find that the folder was taken away, for which a gap stands
            gaps = self._losses.gaps()
            first = self._events.position
            whole = _event_lines(gaps) + lines if gaps else lines
            self._events.append(whole, len(gaps) + len(events))
        except (OSError, ArchiveError) as error:
            self._lose(events, error)
            first = self._events.position
        else:
            self._events.note(whole, [*gaps, *events])
            self._succeeded()
            told = gaps
            self._past.add(events)
            if self.on_written and events:
                as_of = {(e.run_id, e.source): e.seq for e in events}  # in which `seq` rises
                lanes = {Lane(*key): seq for key, seq in as_of.items()}
                self._tell(Written(self._events.position, event_of(events[-1]), lanes))
        with self._feeding:
            self._feed([*told, *events], first)
            rows, train_rows = self._skeleton.take_rows(), self._skeleton.take_train_rows()
            self._on_rows = [each for each in self._on_rows if each(rows, train_rows)]
        self.about.totals.events = self._events.position
        self._append_rows(rows, train_rows)

    def _tell(self, written: Written) -> None:
        for each in list(self.on_written):
            each(written)

    def _feed(self, events: Iterable[Relayed], first: int) -> None:
        """Update the rows of chains with the events, the first of which has this position."""
        feed = self._skeleton.feed
        for position, event in enumerate(events, first):
            try:
                feed(event, position)
            except Exception:  # an event that somebody made by hand costs its row, not those of the others
                logger.exception("%s: a row could not be made of a %s event", self.path, event.event_type)
            if event.event_type is T.RUN_END:
                self._past.forget(event.run_id, event.source)

    def _masked(self, event: Relayed, masker: Masker) -> Relayed:
        """The event without its secrets. The hash of its prompt stays that of what was asked."""
        event = event_of(event)
        masked = masker.event(event)
        if masked is event or event.event_type is not T.CHAIN_START or "prompt_hash" in event.data:
            return masked
        messages = event.data.get("messages")
        if not isinstance(messages, list) or not messages:
            return masked
        asked = prompt_hash(messages)
        return msgspec.structs.replace(masked, data=masked.data | {"prompt_hash": asked})

    def _lose(self, events: list[Relayed], error: BaseException) -> None:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        before = self._losses.count
        self._losses.add(events, f"the record could not be written: {why}")
        self.about.totals.lost += self._losses.count - before
        self._failed(error)

    def follow_rows(self, on_rows: OnRows) -> None:
        """Have something called with the start rows of the chains that are open, now, and with all rows that follow, while it wants them.

        It may be called from any thread, and waits while rows are made. What is called later is on the thread that writes, and must not wait.
        """
        with self._feeding:
            if on_rows(self._skeleton.open_rows(), []):
                self._on_rows.append(on_rows)

    def _append_rows(self, rows: Sequence[ChainRow] = (), train_rows: Sequence[dict[str, Any]] = ()) -> None:
        if len(self._rows) < _WAITING_ROWS * 512:
            self._rows += _lines(rows)
            self._train_rows += _lines(train_rows)
        if not self._opened or self.failing is not None:
            return
        try:
            if self._rows:
                self._chains.append(self._rows)
                self._rows = b""
            if self._train_rows:
                self._train.append(self._train_rows)
                self._train_rows = b""
        except OSError as error:
            self._failed(error)

    def _write_trajectories(self, trajectories: Sequence[Trajectory]) -> None:
        masker = self._masker
        some_may = masker is not None and _may_hold_secrets([*map(_outside_of, trajectories)], masker)
        lines = []
        for trajectory in trajectories:
            may = masker is not None and (
                (some_may and _may_hold_secrets(_outside_of(trajectory), masker))
                or _names_secrets(trajectory)
            )
            lines.append(_trajectory_line(trajectory, masker if may else None))
        try:
            self._ensure_open()
            first = self._trajectories.position
            data = b"".join(lines)
            self._trajectories.append(data, len(lines))
            self._trajectories.note(data, trajectories)
        except (OSError, ArchiveError) as error:
            self.about.totals.trajectories_lost += len(lines)
            self._failed(error)
            return
        for position, trajectory in enumerate(trajectories, first):
            self._skeleton.trajectory_at(trajectory.run_id, trajectory.chain_id, position)

    # -- each 10 seconds -----------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Say that the writer lives, and how far the open generations are."""
        if not self._opened:
            return
        rows = [_open_row(part, self._masker) for part in self._open_parts()]
        try:
            if self._lock.is_gone():  # it was taken away, perhaps for good: only an event makes it again
                return
            replace_file(self.path / OPEN_FILE, _lines(rows))
            self._write_run_file()
            self._events.seal_what_is_left()
            self._trajectories.seal_what_is_left()
        except (OSError, ArchiveError) as error:
            self._failed(error)

    def _write_last_run_file(self) -> None:
        """How it ended. On a disk that is full the old file has room for it, though none is left beside it."""
        try:
            self._write_run_file(sync=True)
        except OSError:
            with (self.path / RUN_FILE).open("r+b") as file:
                file.write(self._run_file())
                file.truncate()
            raise

    def _write_run_file(self, *, sync: bool = False) -> None:
        replace_file(self.path / RUN_FILE, self._run_file(), sync=sync)

    def _run_file(self) -> bytes:
        self.about.writer = this_process()
        if self._masker is not None:
            self.about.totals.masked = dict(self._masker.counts)
        return bytes(msgspec.json.format(_encoder.encode(self.about), indent=1)) + b"\n"

    # -- failures ------------------------------------------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        """Say so once, until something is written again."""
        first = self.failing is None
        self.failing = self._latest_failure = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        )
        if first:
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            logger.log(
                level, "%s cannot be written: %s; the run goes on without its record", self.path, self.failing
            )
            try:
                self._on_failure(error)
            except Exception:  # who is told must not keep what failed from being counted
                logger.exception("%s: the failure could not be told to the run", self.path)

    def _succeeded(self) -> None:
        self._losses.clear()
        if self.failing is not None:
            self.failing = None
            logger.info("%s is written again", self.path)


def _merged(events: list[Relayed], lines: dict[tuple[str, str], int]) -> list[Relayed]:
    """The events, in which neighbouring chunks of a generation are one.

    A chunk that ends a line, or a piece of one that is too long to be shown at once, is the last of those that it joins, and the
    first of a generation stands alone, so that a replay shows the same pieces at the same time. For the same reason, tokens without
    text, such as the one that ends a generation, do not join text before them if none follows: it would get their time.

    Args:
        events: in order.
        lines: by chain, how many characters the line has that its generation is at; kept up to date.
    """
    if not lines and CHUNK not in {event.event_type for event in events}:
        return events
    kept: list[Relayed | None] = list(events)
    open_now: dict[
        tuple[str, str], list[int]
    ] = {}  # by chain, the indexes of its latest chunks, which nothing of the chain follows
    try:
        for i, event in enumerate(events):
            if event.event_type is CHUNK:
                key = (event.run_id, event.chain_id)
                places = open_now.get(key)
                if places is None:
                    open_now[key] = [i]
                else:
                    places.append(i)
            elif event.event_type is T.GAP:
                for each, places in open_now.items():
                    _join(kept, places, each, lines)
                open_now.clear()
                for of_run in [each for each in lines if each[0] == event.run_id]:
                    del lines[of_run]
            else:
                key = (event.run_id, event.chain_id)
                if key in open_now:
                    _join(kept, open_now.pop(key), key, lines)
                lines.pop(key, None)
        for each, places in open_now.items():
            _join(kept, places, each, lines)
    except (KeyError, TypeError):  # chunks made by hand that lack fields
        return events
    return [event for event in kept if event is not None]


def _join(
    kept: list[Relayed | None], places: list[int], key: tuple[str, str], lines: dict[tuple[str, str], int]
) -> None:
    """Merge a chain's chunks at these indexes, which no other event of it separates, into as few as possible; the others become None."""
    if len(places) == 1:
        _count_in(cast("Encodable", kept[places[0]]), key, lines)
        return
    chunks = [cast("Encodable", kept[i]) for i in places]
    begin = 0
    for end in _ends_of_pieces(chunks, key, lines):
        text_end = end
        while text_end > begin and _text_of(chunks[text_end - 1].data)[0] == "":
            text_end -= 1
        for stop in (text_end, end):
            if stop - begin > 1:
                whole = event_of(merged_chunks([*chunks[begin:stop]], timed=True, lengths=True))
                if (
                    well_formed(whole.data["content"]) is whole.data["content"]
                ):  # no halves of characters; see merging.py
                    kept[places[stop - 1]] = whole
                    for i in places[begin : stop - 1]:
                        kept[i] = None
            begin = stop


def _ends_of_pieces(
    chunks: list[Encodable], key: tuple[str, str], lines: dict[tuple[str, str], int]
) -> list[int]:
    """After which of the neighbouring chunks each merged chunk ends, counted from 1; `lines` is kept up to date."""
    if (quick := _ends_if_no_line_ends(chunks, key, lines)) is not None:
        return quick
    ends = []
    for i, chunk in enumerate(chunks):
        if i and chunk.step != chunks[i - 1].step and i not in ends:
            ends.append(i)  # the next generation, if a filter left out the events between
        if _count_in(chunk, key, lines):
            ends.append(i + 1)
    return ends if ends and ends[-1] == len(chunks) else [*ends, len(chunks)]


def _count_in(chunk: Encodable, key: tuple[str, str], lines: dict[tuple[str, str], int]) -> bool:
    """Keep `lines` up to date, and tell whether the chunk is the last of those that it joins."""
    text, offset = _text_of(chunk.data)
    if text.__class__ is not str:
        return False
    before = lines.get(key, 0)
    after = before + len(text)
    if offset == 0 or "\n" in text or after // LINE_CHARS != before // LINE_CHARS:
        lines[key], _ = grown_line(before, text)
        return True
    lines[key] = after
    return False


def _ends_if_no_line_ends(
    chunks: list[Encodable], key: tuple[str, str], lines: dict[tuple[str, str], int]
) -> list[int] | None:
    """The same for chunks of one generation if no line ends after the first chunk; None in all other cases."""
    if set(map(type, chunks)) != {EncodableChunk} or len({chunk.step for chunk in chunks}) > 1:
        return None
    parts = [cast("EncodableChunk", chunk).data for chunk in chunks]
    ends, line = [], lines.get(key, 0)
    if parts[0].offset == 0:  # the first chunk stays alone
        first, ends = parts.pop(0), [1]
        line, _ = grown_line(line, first.content)
    text = "".join([part.content for part in parts])
    if (
        "\n" in text
        or (line + len(text)) // LINE_CHARS != line // LINE_CHARS
        or 0 in [p.offset for p in parts]
    ):
        return None
    lines[key] = line + len(text)
    return [*ends, len(chunks)] if parts else ends


def _text_of(data: Any) -> tuple[Any, Any]:
    """The text of a chunk and its offset; None for what it lacks."""
    if data.__class__ is ChunkData:
        return data.content, data.offset
    return (data.get("content"), data.get("offset")) if data.__class__ is dict else (None, None)


def _event_lines(events: Sequence[Relayed]) -> bytes:
    try:
        return encode_lines(events)
    except Exception:  # noqa: BLE001  (user-made data: whatever its encoding raises, the other events are written)
        return b"".join([encode_described(event_of(event)) + b"\n" for event in events])


def _trajectory_line(trajectory: Trajectory, masker: Masker | None) -> bytes:
    """`Trajectory.to_dict()` as a line, made by the quicker way where the two are the same."""
    for turn in trajectory.turns:
        _ = turn.text  # one piece
    row = as_json(trajectory.row)
    if row is not trajectory.row:
        trajectory = msgspec.structs.replace(trajectory, row=row)
    try:
        data = _encoder.encode(trajectory)
    except Exception:  # noqa: BLE001  (user-made values: `to_dict` describes what JSON cannot hold)
        data = _encoder.encode(trajectory.to_dict())
    if masker is not None:
        value = msgspec.json.decode(data)
        masker.trajectory(value)
        data = _encoder.encode(value)
    return one_line_json(data) + b"\n"


def _outside_of(trajectory: Trajectory) -> list[Any]:
    """The trajectory's values that did not come from the model, and its messages."""
    calls = [turn.tools for turn in trajectory.turns]
    return [trajectory.row, trajectory.messages, calls, trajectory.error]


def _open_row(part: OpenPart, masker: Masker | None) -> dict[str, Any]:
    """A row of `open.jsonl`: what the model says is as it is, and what came from outside as in the events."""
    calls = without_named_secrets(as_json(part.tool_calls))
    return part._asdict() | {"tool_calls": calls if masker is None else masker.value(calls)}


def _names_secrets(trajectory: Trajectory) -> bool:
    """Whether a field of its row, or of its calls' arguments, is named like a secret and holds one."""
    calls = (record.call.arguments for turn in trajectory.turns for record in turn.tools)
    return any(without_named_secrets(each) is not each for each in map(as_json, (trajectory.row, *calls)))


def _may_hold_secrets(outside: list[Any], masker: Masker) -> bool:
    """Whether values from outside may hold a secret; a quick check, as most of what is recorded was sampled. True if it cannot be decided."""
    try:
        return masker.may_hold(_encoder.encode(outside))
    except Exception:  # noqa: BLE001  (user-made values: whatever their encoding raises, they are looked at one by one)
        return True


def _lines(rows: Iterable[Any]) -> bytes:
    return one_line_json(_encoder.encode_lines(list(rows)))
