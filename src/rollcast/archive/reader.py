"""Reading a record: `Archive.open(path)`. Nothing of it is changed, and it may be growing meanwhile.

One frame of events is in memory at a time, whatever the record's length. What is damaged is told in `damage` and left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec

from rollcast.archive.chain_rows import merge_row
from rollcast.archive.format import (
    CHAINS_FILE,
    EVENTS,
    NOTES_FILE,
    OPEN_FILE,
    TRAIN_FILE,
    TRAJECTORIES,
    ChainRow,
    Frame,
    RunFile,
    SegmentIndex,
)
from rollcast.archive.index import State, read_run_file, state_of
from rollcast.archive.lines import MISSING, Damage, SegmentedLines
from rollcast.archive.notes import append_note, checked_note
from rollcast.archive.segments import read_index, segments_in
from rollcast.errors import ArchiveError, DecodeError, InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType, Trajectory, decode
from rollcast.records.codec import decode_unchecked, one_line_json
from rollcast.records.jsonable import JSON_ERRORS

__all__ = ["Archive", "ChainRows", "EventReader"]

T = StreamEventType
EVERYTHING = EventFilter()
POLL_S = 0.1
_MAX_DAMAGE = 1000
_BACKWARDS = 1 << 20  # bytes that are read at once of a file that is searched from its end
_PIECE = 1000  # rows that are read before others have their turn


class ChainRows(msgspec.Struct, frozen=True):
    """Some rows of chains.

    Attributes:
        rows: each as `format.ChainRow` describes it, with whatever fields the record has beside those.
        total: how many there are in all.
    """

    rows: list[dict[str, Any]]
    total: int


class Archive:
    """One record. Its methods are one each for what a record can be asked; how files are read is in functions below.

    Attributes:
        path: of its folder.
        facts: what its `run.json` said when it was read last.
    """

    def __init__(self, path: Path, facts: RunFile) -> None:
        self.path = path
        self.facts = facts

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The record in this folder.

        Raises:
            ArchiveError: the folder is no record, it is damaged, or a later version wrote it.
        """
        folder = Path(path)
        return cls(folder, read_run_file(folder))

    def refresh(self) -> Self:
        """Read `run.json` again. Raises what `open` does."""
        self.facts = read_run_file(self.path)
        return self

    @property
    def state(self) -> State:
        """`running`, `ended`, `crashed`, or `silent` if its writer is on another host and says nothing."""
        return state_of(self.facts)[0]

    @property
    def length(self) -> int:
        """The position after the last event that is there."""
        segments = segments_in(self.path / EVENTS)
        if not segments:
            return 0
        last = segments[-1]
        index = read_index(last) if last.sealed else None
        if index is not None:
            return index.last + 1
        end = last.first
        for block in SegmentedLines(self.path / EVENTS).blocks(last.first):
            end = block.first + len(block.lines)
        return end

    # -- places --------------------------------------------------------------------------------------------------------

    def cursor(self, position: int) -> str:
        """The name of a position, which a reader in another process understands too; opaque to clients."""
        return f"{self.facts.id}.{position}"

    def position(self, cursor: str) -> int:
        """The position that a cursor names.

        Raises:
            InputError: it is of another record, or no cursor.
        """
        name, _, number = cursor.partition(".")
        if name != self.facts.id or not number.isascii() or not number.isdecimal() or len(number) > 18:
            raise InputError(f"{cursor!r:.80} is no cursor of the record {self.path.name}")
        return int(number)

    def position_at(self, timestamp: float) -> int:
        """The position of the first event that is not earlier than this; after the last one if all are.

        Args:
            timestamp: in seconds since the epoch.
        """
        since = 0
        for segment in segments_in(self.path / EVENTS):
            index = read_index(segment) if segment.sealed else None
            if index is None:
                break
            frames = (f.first for f in index.frames if f.t1 is not None and f.t1 >= timestamp)
            since = next(frames, index.last + 1)
            if since <= index.last:
                break
        events = self.events(since)
        for event in events:
            if event.timestamp >= timestamp:
                return events.position - 1
        return events.position

    # -- events --------------------------------------------------------------------------------------------------------

    def events(
        self, since: str | int | None = None, filter: EventFilter | None = None, *, until: int | None = None
    ) -> EventReader:
        """The events that are there now.

        Args:
            since: a cursor, or a position; None: from the first on.
            filter: which ones. What is lost is told whatever it says: gaps always pass.
            until: the position before which it stops; None: at the end.

        Raises:
            InputError: it is a cursor of another record.
        """
        return EventReader(self, self._position(since), filter or EVERYTHING, until=until)

    def follow(
        self, since: str | int | None = None, filter: EventFilter | None = None, *, poll_s: float = POLL_S
    ) -> EventReader:
        """As `events`, and those that come, until the record's writer has ended it or is gone. It blocks its thread.

        Args:
            since: as of `events`.
            filter: as of `events`.
            poll_s: how often it looks, in seconds.

        Raises:
            InputError: `since` is a cursor of another record.
            ArchiveError: while it is iterated: the folder was taken away, or holds another record now.
        """
        return EventReader(self, self._position(since), filter or EVERYTHING, poll_s=poll_s)

    def events_of(self, chain_id: str, run_id: str | None = None) -> EventReader:
        """The events of one chain, of the last run that has one if `run_id` is None.

        Raises:
            ArchiveError: there is no such chain.
        """
        return self.events_of_row(self.chain(chain_id, run_id))

    def events_of_row(self, row: dict[str, Any]) -> EventReader:
        """The events of the chain that a row from `chain` or `chains` is about."""
        last = row.get("last")
        wanted = EventFilter(runs=row["run_id"], chains=row["chain_id"])
        return self.events(row.get("first"), wanted, until=None if last is None else last + 1)

    def _position(self, since: str | int | None) -> int:
        if isinstance(since, str):
            return self.position(since)
        return max(since or 0, 0)

    # -- chains --------------------------------------------------------------------------------------------------------

    def chains(
        self,
        *,
        where: Callable[[dict[str, Any]], bool] | None = None,
        sort: str = "first",
        offset: int = 0,
        limit: int | None = None,
        **equal: Any,
    ) -> ChainRows:
        """Rows of chains, from `chains.jsonl` alone.

        Args:
            where: whether a row is wanted.
            sort: the field by which they are sorted; with `-` before it, the highest first. Rows without it come last.
            offset: how many to leave out.
            limit: how many to give; None: all.
            equal: what fields have to be: `train_step=30, state="ended"`.
        """
        run_id = equal.get("run_id")
        rows = self.chain_rows(run_id if isinstance(run_id, str) else None)
        wanted = [row for row in rows if _fits(row, equal) and (where is None or where(row))]
        name, descending = sort.removeprefix("-"), sort.startswith("-")
        having = [row for row in wanted if row.get(name) is not None]
        having.sort(key=lambda row: _sortable(row[name]), reverse=descending)
        wanted = having + [row for row in wanted if row.get(name) is None]
        return ChainRows(wanted[offset : None if limit is None else offset + limit], len(wanted))

    def chain(self, chain_id: str, run_id: str | None = None) -> dict[str, Any]:
        """The row of one chain, of the last run that has one if `run_id` is None.

        Raises:
            ArchiveError: there is no such chain.
        """
        merged: dict[str, Any] = {}
        for row in self._rows_of(chain_id, run_id):
            merge_row(merged, row)
        if not merged:
            of_run = f" of run {run_id}" if run_id else ""
            raise ArchiveError(
                f"the record {self.path.name} has no chain {chain_id!r}{of_run}; it has {self.facts.totals.chains}"
            )
        return self._with_state(merged)

    def train_rows(self) -> list[dict[str, Any]]:
        """The rows of training steps and evaluations."""
        return list(_rows_in(self.path / TRAIN_FILE))

    def open_parts(self) -> list[dict[str, Any]]:
        """What was open in the chains when the writer last said so, at most 10 s before its end."""
        return list(_rows_in(self.path / OPEN_FILE))

    def has_more_chains(self, most: int, run_id: str) -> bool:
        """Whether more than so many chains of this run began; a chain that began again counts twice. No row is decoded."""
        begins = b'{"row":"start",' + _named("run_id", run_id) + b","
        count = 0
        file = _opened(self.path / CHAINS_FILE)
        if file is None:
            return False
        with file:
            for line in file:
                count += line.startswith(begins)
                if count > most:
                    return True
        return False

    def chain_rows(self, run_id: str | None = None) -> Iterator[dict[str, Any]]:
        """The merged rows of all chains, or of those of one run, in the order in which they began."""
        return (row for row in self.chain_rows_in_pieces(run_id) if row is not None)

    def chain_rows_in_pieces(self, run_id: str | None = None) -> Iterator[dict[str, Any] | None]:
        """As `chain_rows`, with None now and then while the file is still being read, so that others may have their turn."""
        merged: dict[tuple[str, str], dict[str, Any]] = {}
        holding = b"" if run_id is None else _named("run_id", run_id)
        for number, row in enumerate(_rows_in(self.path / CHAINS_FILE, _chain_row, holding), 1):
            if number % _PIECE == 0:
                yield None
            key = (row["run_id"], row["chain_id"])
            known = merged.get(key)
            if known is None:
                merged[key] = row
            else:
                merge_row(known, row)
        lost = self.state in ("ended", "crashed")
        for row in merged.values():
            yield _with_state(row, lost=lost)

    def changed_chains(self, since: int | None) -> tuple[set[tuple[str, str]], int]:
        """The chains, as (`run_id`, `chain_id`), of which rows were written since a place, and the place where the rows end now.

        Args:
            since: the place that an earlier call gave; None: only the place is asked for.

        A file that is shorter than that was written anew: then all chains have changed.
        """
        try:
            with (self.path / CHAINS_FILE).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                begin = since if since is not None and since <= size else 0
                file.seek(begin)
                new = file.read(size - begin)
        except FileNotFoundError:
            return set(), 0
        whole = new[: new.rfind(b"\n") + 1]  # what stands behind it is being written
        end = begin + len(whole)
        if since is None:
            return set(), end
        rows = [_object(line) for line in whole.splitlines()]
        keys = {(row.get("run_id"), row.get("chain_id")) for row in rows}
        return {key for key in keys if all(isinstance(each, str) for each in key)}, end  # type: ignore[misc]

    def _with_state(self, row: dict[str, Any]) -> dict[str, Any]:
        return _with_state(row, lost=self.state in ("ended", "crashed"))

    def _rows_of(self, chain_id: str, run_id: str | None) -> list[dict[str, Any]]:
        """The rows of one chain in order, found by the bytes that they have: from the end back to the one of its start."""
        needle = _named("chain_id", chain_id)
        if run_id is not None:
            needle = _named("run_id", run_id) + b"," + needle
        rows: list[dict[str, Any]] = []
        learned: list[
            dict[str, Any]
        ] = []  # of a run that is not known yet: it may be older than the chain's last one
        file = _opened(self.path / CHAINS_FILE)
        if file is None:
            return []
        with file:
            for line in _lines_backwards(file, needle):
                row = _chain_row(line)
                if row.get("chain_id") != chain_id or run_id not in (None, row.get("run_id")):
                    continue
                if run_id is None and row.get("row") == "trained":
                    learned.append(row)
                    continue
                run_id = row.get("run_id")
                rows.append(row)
                if row.get("row") == "start":
                    break
        return rows[::-1] + [row for row in learned[::-1] if row.get("run_id") == run_id]

    # -- notes ---------------------------------------------------------------------------------------------------------

    def notes(self) -> list[dict[str, Any]]:
        """What people said of it, in the order in which they did; each as `format.NoteRow` describes it."""
        return list(_rows_in(self.path / NOTES_FILE))

    def add_note(
        self,
        text: str = "",
        *,
        author: str,
        flag: str | None = None,
        run_id: str | None = None,
        group_id: str | None = None,
        chain_id: str | None = None,
        step: int | None = None,
        tokens: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Add a note; what it is about is kept by a budget. A record that is being written can have notes, too.

        Args:
            text: what is said.
            author: who says it.
            flag: a word by which it is found.
            run_id: the run that it is about, or that of the group or chain; None: the last one that has such a group or chain, or
                the whole record.
            group_id: the group that it is about.
            chain_id: the chain that it is about.
            step: the turn of the chain, from 1.
            tokens: of the turn's sampled tokens the first, and the one after the last, from 0.

        Returns:
            The note, as `notes` gives it.

        Raises:
            InputError: it says nothing, has no author, or what it is about is not named as a whole.
            ArchiveError: there is no such run, group or chain.
            OSError: it cannot be written.
        """
        note = checked_note(
            text, author=author, flag=flag, run_id=run_id, group_id=group_id, chain_id=chain_id, step=step, tokens=tokens
        )  # fmt: skip
        if chain_id is not None:
            row = self.chain(chain_id, run_id)
            note.run_id, note.group_id = row["run_id"], row.get("group_id")
        elif group_id is not None or run_id is not None:
            note.run_id = _run_of(self, group_id, run_id)
        return append_note(self.path, note)

    # -- trajectories --------------------------------------------------------------------------------------------------

    def trajectory(self, chain_id: str, run_id: str | None = None) -> Trajectory:
        """The trajectory of one chain, of the last run that has one if `run_id` is None.

        Raises:
            ArchiveError: there is no such chain, it has not ended, or its trajectory was not kept.
        """
        row = self.chain(chain_id, run_id)
        lines = SegmentedLines(self.path / TRAJECTORIES)
        position = row.get("trajectory")
        place = [row["run_id"], chain_id]
        wanted = (lambda frame, index: _has_place(frame, index, place)) if position is None else None
        for block in lines.blocks(position or 0, wanted):
            for line in block.lines[: None if position is None else 1]:
                value = _object(line)
                if [value.get("run_id"), value.get("chain_id")] == place:
                    try:
                        return Trajectory.from_dict(value)
                    except JSON_ERRORS as error:
                        raise ArchiveError(
                            f"the trajectory of {chain_id} in the record {self.path.name} is damaged: {error}"
                        ) from None
            if position is not None and block.lines:
                break
        kept = (
            "it was not kept"
            if self.facts.trimmed_at is None
            else "it was not kept, or taken out to keep a budget"
        )
        why = kept if row.get("state") == "ended" else f"the chain is {row.get('state')}"
        if lines.damage:
            why = str(lines.damage[0])
        raise ArchiveError(f"the record {self.path.name} has no trajectory of {chain_id}: {why}")


class EventReader:
    """The events of a record, one by one: an iterator.

    Attributes:
        position: after the event that came last, and after what the filter left out behind it.
        damage: what could not be read so far.
    """

    def __init__(
        self,
        archive: Archive,
        position: int,
        filter: EventFilter,
        *,
        until: int | None = None,
        poll_s: float | None = None,
    ) -> None:
        self.position = position
        self._archive = archive
        self._filter = None if filter == EVERYTHING else filter
        self._types = _types_of(filter)
        self._until = until
        self._poll_s = poll_s
        self._lines = SegmentedLines(archive.path / EVENTS)
        self._bad_lines: list[Damage] = []
        self._places: tuple[SegmentIndex | None, frozenset[int]] = (None, frozenset())
        self._events = self._follow() if poll_s is not None else self.new_events()

    @property
    def cursor(self) -> str:
        """The place from which another reader goes on."""
        return self._archive.cursor(self.position)

    @property
    def damage(self) -> list[Damage]:
        """What could not be read so far."""
        return self._lines.damage + self._bad_lines

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        return next(self._events)

    def new_events(self) -> Iterator[StreamEvent]:
        """Those from `position` on that are there now; call it again for what came since."""
        for found in self.new_lines():
            if found is not None:
                yield found[1]

    def new_lines(self) -> Iterator[tuple[bytes, StreamEvent] | None]:
        """As `new_events`, each event with its line. None follows what was read at once, whether or not it had events that pass."""
        wants = None if self._filter is None else self._wants_frame
        for block in self._lines.blocks(self.position, wants):
            if self._until is not None and block.first >= self._until:
                return
            read = decode_unchecked if block.checked else decode
            for position, line in enumerate(block.lines, block.first):
                if self._until is not None and position >= self._until:
                    return
                if self._types is not None and block.checked and _is_of_another_type(line, self._types):
                    self.position = position + 1
                    continue
                # An empty line of a sealed segment is one that was taken out to keep a budget.
                event = self._event(read, line, position) if line or not block.sealed else None
                self.position = position + 1
                if event is not None and (self._filter is None or passes(self._filter, event)):
                    yield line, event
            self.position = block.first + len(block.lines)
            yield None
        facts = self._archive.facts
        if self._until is None and facts.status != "running" and self.position < facts.totals.events:
            self._bad_lines.append(
                Damage(self._lines.folder, self.position, facts.totals.events - 1, MISSING)
            )
            self.position = facts.totals.events

    def _follow(self) -> Iterator[StreamEvent]:
        assert self._poll_s is not None
        archive, opened = self._archive, self._archive.facts.id
        while True:
            ended = archive.refresh().state in (
                "ended",
                "crashed",
            )  # before reading, so that nothing comes after
            if archive.facts.id != opened:
                self._make_sure_that_positions_go_on()
                opened = archive.facts.id
            yield from self.new_events()
            if ended:
                return
            time.sleep(self._poll_s)

    def _make_sure_that_positions_go_on(self) -> None:
        """The folder was taken away: its writer goes on with the positions when it begins the record anew, another one does not."""
        path = self._archive.path
        segments = segments_in(path / EVENTS)
        if self.position > (segments[0].first if segments else 0):
            raise ArchiveError(
                f"{path} was moved or deleted, and holds another record now; open it again to follow that one"
            )

    def _event(self, read: Callable[[bytes], StreamEvent], line: bytes, position: int) -> StreamEvent | None:
        try:
            return read(line)
        except DecodeError as error:
            if len(self._bad_lines) < _MAX_DAMAGE:
                self._bad_lines.append(Damage(self._lines.folder, position, position, str(error)))
            return None

    def _wants_frame(self, frame: Frame, index: SegmentIndex) -> bool:
        assert self._filter is not None
        if T.GAP.value in frame.types:
            return True
        if self._places[0] is not index:
            self._places = (index, _places_of(self._filter, index))
        of_types = any(
            a.types is None or not a.types.isdisjoint(frame.types) for a in self._filter.alternatives
        ) or (T.CHAIN_SNAPSHOT.value in frame.types)
        return of_types and not self._places[1].isdisjoint(frame.places)


_TYPE_IS = b'{"event_type":"'  # what every line of a writer begins with


def _types_of(filter: EventFilter) -> frozenset[bytes] | None:
    """The types of events that a filter may let through, encoded as in lines; None: all types."""
    types = [part.types for part in filter.alternatives]
    if any(each is None for each in types):
        return None
    names = {name for each in types for name in each or ()} | {T.GAP, T.CHAIN_SNAPSHOT}
    return frozenset(str(name).encode() for name in names)


def _is_of_another_type(line: bytes, types: frozenset[bytes]) -> bool:
    """Whether the line's event certainly has none of these types, so that it need not be decoded."""
    if not line.startswith(_TYPE_IS):
        return False
    begin = len(_TYPE_IS)
    name = line[begin : line.find(b'"', begin)]
    return b"\\" not in name and name not in types


def passes(filter: EventFilter, event: StreamEvent) -> bool:
    """Whether the event is for somebody with this filter, gaps and snapshots included."""
    if event.event_type is T.GAP:
        return filter.wants_gap(event.run_id, event.source)
    if event.event_type is T.CHAIN_SNAPSHOT:
        return filter.wants_snapshot(event.chain_id, event.group_id, event.run_id, event.source)
    return filter.matches(event)


def _places_of(filter: EventFilter, index: SegmentIndex) -> frozenset[int]:
    """The chains of a segment that a filter may want; it does not tell groups."""
    alternatives = filter.alternatives
    return frozenset(
        number
        for number, place in enumerate(index.places)
        if any(
            (a.runs is None or place.run_id in a.runs) and (a.chains is None or place.chain_id in a.chains)
            for a in alternatives
        )
    )


def _run_of(archive: Archive, group_id: str | None, run_id: str | None) -> str:
    """The last run that has the group, or the run itself.

    Raises:
        ArchiveError: there is none.
    """
    rows = archive.chains().rows + ([] if group_id is not None else archive.train_rows())
    for row in reversed(rows):
        if run_id in (None, row["run_id"]) and group_id in (None, row.get("group_id")):
            return str(row["run_id"])
    what = f"group {group_id!r}" if group_id is not None else f"run {run_id!r}"
    raise ArchiveError(f"the record {archive.path.name} has no {what}")


def _has_place(frame: Frame, index: SegmentIndex, place: list[str]) -> bool:
    return any(list(index.places[number]) == place for number in frame.places)


def _named(name: str, value: str) -> bytes:
    """How a field stands in a row that a writer wrote."""
    return one_line_json(msgspec.json.encode(name) + b":" + msgspec.json.encode(value))


def _rows_in(
    path: Path, read: Callable[[bytes], dict[str, Any]] | None = None, holding: bytes = b""
) -> Iterator[dict[str, Any]]:
    """The whole rows of a file that hold these bytes; none if it is not there. What `read` gives as an empty row is left out."""
    read = read or _object
    file = _opened(path)
    if file is None:
        return
    with file:
        for line in file:
            row = read(line) if holding in line and line.endswith(b"\n") else {}
            if row:
                yield row


def _opened(path: Path) -> BinaryIO | None:
    """The file; None if it is not there.

    Raises:
        ArchiveError: it may not be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}") from None


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(line)
    except JSON_ERRORS:
        return {}
    return value if isinstance(value, dict) else {}


_chain_row_decoder = msgspec.json.Decoder(ChainRow)
_FIELD_TYPES = {field.name: field.type for field in msgspec.structs.fields(ChainRow)}


def _chain_row(line: bytes) -> dict[str, Any]:
    """The row with all its fields. A field that has another type than its writer gives it is left out.

    The row is empty if it cannot be read, or does not say of which chain it is.
    """
    row = _object(line)
    try:
        _chain_row_decoder.decode(line)
    except JSON_ERRORS:
        group_id = row.get("group_id")
        places = (row.get("run_id"), row.get("chain_id"), "" if group_id is None else group_id)
        if not all(isinstance(place, str) for place in places):
            return {}
        return {name: value for name, value in row.items() if _is_of(_FIELD_TYPES.get(name, Any), value)}
    return row


def _is_of(type: Any, value: Any) -> bool:
    try:
        msgspec.convert(value, type)
    except msgspec.ValidationError:
        return False
    return True


def _lines_backwards(file: BinaryIO, needle: bytes) -> Iterator[bytes]:
    """The whole lines of a file that have these bytes, the last one first; a block of the file is in memory at a time.

    The file is read and not mapped: another process may cut it meanwhile, and a mapped page that is gone kills whoever reads it.
    """
    end, size = file.seek(0, os.SEEK_END), _BACKWARDS
    tail = b""  # of a line that begins in a block before
    while end > 0:
        begin = max(end - size, 0)
        file.seek(begin)
        data = file.read(end - begin) + tail
        end = begin
        newline = data.find(b"\n")
        if begin > 0 and newline < 0:
            tail, size = data, 2 * size
            continue
        first = newline + 1 if begin > 0 else 0
        at = len(data)
        while (at := data.rfind(needle, first, at)) >= 0:
            stop = data.find(b"\n", at)
            at = max(data.rfind(b"\n", first, at) + 1, first)
            if stop >= 0:
                yield data[at:stop]
        tail, size = data[:first], _BACKWARDS


def _with_state(row: dict[str, Any], *, lost: bool) -> dict[str, Any]:
    if row.get("state", "running") == "running":
        row["state"] = "lost" if lost else "running"
    row.pop("row", None)
    return row


def _fits(row: dict[str, Any], equal: dict[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in equal.items())


def _sortable(value: Any) -> tuple[int, Any]:
    if isinstance(value, int | float):
        return (0, value)
    return (1, value) if isinstance(value, str) else (2, repr(value))
