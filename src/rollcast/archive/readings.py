"""What may be asked of a record, and reading it piece by piece. Used by the child process that reads for a server (child.py).

A reading is a generator: it gives items, and None now and then when it has found nothing yet, so that other readings get
their turn. One frame of events is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from rollcast.archive.chain_rows import ChainQuery, Page, check_query, fits, page_of
from rollcast.archive.pages import PAGE_BYTES, ROW_BYTES, Rows, encoded_row, page_by_number, page_by_run, take
from rollcast.archive.past_rows import PastRows
from rollcast.archive.reader import Archive, EventReader
from rollcast.archive.record_rows import record_rows, record_with_run
from rollcast.archive.run_rows import RUN_EVENTS, RunTally
from rollcast.errors import ArchiveError, FilterError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.codec import encode
from rollcast.records.view import ChainView

__all__ = [
    "ChainsWanted",
    "ChangesWanted",
    "EventWindow",
    "EventsWanted",
    "Given",
    "PastWanted",
    "PlaceWanted",
    "Reading",
    "RecordOfRunWanted",
    "RecordedEvent",
    "RecordsWanted",
    "RunsWanted",
    "SnapshotsWanted",
    "StepsWanted",
    "StoryWanted",
    "alternatives_of",
    "given_by",
]

WINDOW_EVENTS = 512
WINDOW_BYTES = 256 << 10
MAX_PASTS = 4  # whose last portion has not come
MAX_SNAPSHOTS = 4096  # at a time; each needs a view in memory while the events before it are read
CHUNK = StreamEventType.LLM_GENERATION_CHUNK


class EventsWanted(msgspec.Struct, tag="events", kw_only=True):
    """The events of a record that are there now: `EventWindow`s, at least one.

    Attributes:
        path: the record's folder.
        since: a cursor of the record, or a position; None: from the first event on.
        filter: the alternatives of an `EventFilter` (`alternatives_of`); None: all events.
        until: the position before which to stop; None: at the end.
    """

    path: str
    since: str | int | None = None
    filter: list[dict[str, list[str]]] | None = None
    until: int | None = None


class PlaceWanted(msgspec.Struct, tag="place", kw_only=True):
    """The position of the first event that is not earlier than `timestamp`: one `EventWindow` without events."""

    path: str
    timestamp: float


class SnapshotsWanted(msgspec.Struct, tag="snapshots", kw_only=True):
    """A `chain_snapshot` of each chain that is open at a position, with its state there: `EventWindow`s, at least one.

    Attributes:
        position: the snapshots cover what was recorded before it.
        filter: as for `EventsWanted`; the types that it names do not matter.
    """

    path: str
    position: int
    filter: list[dict[str, list[str]]] | None = None


class StoryWanted(msgspec.Struct, tag="story", kw_only=True):
    """The events of one chain, of the last run that has one if `run_id` is None: `EventWindow`s, at least one.

    Attributes:
        since: `EventWindow.cursor` of an earlier one; None: from the chain's first event on.
        limit: the most events.
    """

    path: str
    chain_id: str
    run_id: str | None = None
    since: str | None = None
    limit: int | None = None


class ChainsWanted(msgspec.Struct, tag="chains", kw_only=True):
    """Rows of chains: one `Page`."""

    path: str
    query: ChainQuery


class ChangesWanted(msgspec.Struct, tag="changes", kw_only=True):
    """The merged rows of the chains of which rows were written since a place in `chains.jsonl`: one page of `Rows`.

    Its `next` is the place to go on from, and `total` is how many chains have changed; if they are more than a page, it has only
    the first of them.

    Attributes:
        since: `next` of an earlier answer; None: nothing is given but the place where the rows end now.
        run_id: only of this run.
    """

    path: str
    since: str | None = None
    run_id: str | None = None
    row_bytes: int = ROW_BYTES


class RunsWanted(msgspec.Struct, tag="runs", kw_only=True):
    """A row for each run of a record, the newest first: one page of `Rows`. See `pages.page_by_run`."""

    path: str
    after: str | None = None
    limit: int = 100
    row_bytes: int = ROW_BYTES


class RecordsWanted(msgspec.Struct, tag="records", kw_only=True):
    """A row for each record of a directory, the newest first: one page of `Rows`. See `record_rows` and `pages.page_by_run`."""

    path: str
    after: str | None = None
    limit: int = 100
    row_bytes: int = ROW_BYTES


class RecordOfRunWanted(msgspec.Struct, tag="record_of_run", kw_only=True):
    """The newest record of a directory that has a run: `Rows` with a row `{"path": …}`, or none."""

    path: str
    run_id: str


class StepsWanted(msgspec.Struct, tag="steps", kw_only=True):
    """The rows of training steps and evaluations, of one run if `run_id` is not None, in order: one page of `Rows`.

    See `pages.page_by_number`.
    """

    path: str
    run_id: str | None = None
    after: str | None = None
    limit: int = 100
    row_bytes: int = ROW_BYTES


class PastWanted(msgspec.Struct, tag="past", kw_only=True):
    """A portion of events that are in no record. The last one is answered with pages of `Rows` of what all portions add up to.

    `next` of a page says of what its rows are: `chains` or `steps`. Other portions are answered with no rows.

    Attributes:
        name: of the portions that belong together; `number`: which of them this is, from 0.
        lines: events, each as its JSON.
        last: whether it is the last portion.
        most: how many rows of chains that are over are wanted; those that began last.
    """

    name: str
    number: int
    lines: list[bytes]
    last: bool
    most: int


class RecordedEvent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One event of a record, encoded, with what filters and clocks look at.

    Attributes:
        position: in the record.
        data: its JSON on one line.
        seq, from_seq: its own `seq`, and that of the first event that was merged into it.
    """

    position: int
    data: bytes
    event_type: str
    chain_id: str
    group_id: str | None
    run_id: str
    source: str
    seq: int
    from_seq: int
    timestamp: float


class EventWindow(msgspec.Struct, tag="window", kw_only=True):
    """Some events that follow each other.

    Attributes:
        events: in order; there may be none.
        position: after the last of them, and after what the filter left out behind it.
        cursor: names that position.
        complete: whether the reading was complete with it, and not ended by its limit.
        damage: what could not be read before it and was not told in an earlier window, a sentence each.
    """

    events: list[RecordedEvent]
    position: int
    cursor: str
    complete: bool = False
    damage: list[str] = []


Reading = (
    EventsWanted
    | PlaceWanted
    | SnapshotsWanted
    | StoryWanted
    | ChainsWanted
    | ChangesWanted
    | RunsWanted
    | StepsWanted
    | RecordsWanted
    | RecordOfRunWanted
    | PastWanted
)
Given = EventWindow | Page | Rows


def alternatives_of(filter: EventFilter) -> list[dict[str, list[str]]]:
    """The filter in plain lists, unions included. Token ids (`ids`) are not asked of a record: it has what it has."""
    return [
        {
            name: sorted(names)
            for name in ("runs", "chains", "groups", "types")
            if (names := getattr(part, name)) is not None
        }
        for part in filter.alternatives
    ]


def given_by(reading: Reading) -> Iterator[Given | None]:
    """The items of a reading; None when it found nothing for a while.

    Raises:
        ArchiveError: the record cannot be read.
        InputError: a cursor is of another record, or a filter is wrong.
        OSError: a file cannot be read.
    """
    if isinstance(reading, RecordsWanted | RecordOfRunWanted):
        yield from _of_directory(reading)
        return
    if isinstance(reading, PastWanted):
        yield from _past(reading)
        return
    archive = Archive.open(Path(reading.path))
    match reading:
        case EventsWanted():
            wanted = None if reading.filter is None else _filter_of(reading.filter)
            yield from _windows(archive, archive.events(reading.since, wanted, until=reading.until))
        case PlaceWanted():
            position = archive.position_at(reading.timestamp)
            yield EventWindow(events=[], position=position, cursor=archive.cursor(position))
        case SnapshotsWanted():
            yield from _snapshots(archive, reading)
        case StoryWanted():
            yield from _windows(archive, _events_of_chain(archive, reading), reading.limit)
        case ChainsWanted():
            yield from _chains(archive, reading.query)
        case ChangesWanted():
            yield from _changes(archive, reading)
        case RunsWanted():
            yield from _runs(archive, reading)
        case StepsWanted():
            rows = [row for row in archive.train_rows() if reading.run_id in (None, row.get("run_id"))]
            yield page_by_number(rows, reading.after, reading.limit, reading.row_bytes)


def _of_directory(reading: RecordsWanted | RecordOfRunWanted) -> Iterator[Rows | None]:
    directory = Path(reading.path)
    if isinstance(reading, RecordOfRunWanted):
        for path in record_with_run(directory, reading.run_id):
            if path is None:
                yield None
            else:
                yield Rows(rows=[msgspec.json.encode({"path": str(path)})], total=1)
                return
        yield Rows(rows=[], total=0)
        return
    rows = []
    for row in record_rows(directory):
        if row is None:
            yield None
        else:
            rows.append(row)
    yield page_by_run(rows, reading.after, reading.limit, reading.row_bytes)


_pasts: dict[str, tuple[int, PastRows]] = {}  # by name: how many portions came, and what they add up to


def _past(reading: PastWanted) -> Iterator[Rows | None]:
    """Add a portion of events to those before it."""
    number, past = _pasts.pop(reading.name, (0, PastRows()))
    if reading.number != number:
        raise ArchiveError("events that came before these were forgotten; begin again")
    for _ in past.feed(reading.lines):
        yield None
    if not reading.last:
        _pasts[reading.name] = number + 1, past
        while len(_pasts) > MAX_PASTS:  # somebody has gone
            del _pasts[next(iter(_pasts))]
        yield Rows(rows=[], total=0)
        return
    for what, rows in (("chains", past.rows(reading.most)), ("steps", past.steps)):
        while rows:
            taken = take(rows, len(rows), ROW_BYTES)
            del rows[: len(taken)]
            yield Rows(rows=taken, total=len(taken), next=what)
    yield Rows(rows=[], total=0)


def _snapshots(archive: Archive, reading: SnapshotsWanted) -> Iterator[EventWindow | None]:
    """Snapshots of the chains that are open at a position. Only the views of those chains are in memory."""
    wanted = None if reading.filter is None else _filter_of(reading.filter)
    position = reading.position
    views: dict[tuple[str, str], ChainView] = {}
    first = position
    for row in archive.chain_rows_in_pieces():
        if row is None:
            yield None
            continue
        begin, last = row.get("first"), row.get("last")
        if begin is None or begin >= position or (last is not None and last < position):
            continue
        if wanted is not None and not wanted.wants_snapshot(
            row["chain_id"], row.get("group_id"), row["run_id"], row.get("source") or ""
        ):
            continue
        views[row["run_id"], row["chain_id"]] = ChainView()
        first = min(first, begin)
        if len(views) > MAX_SNAPSHOTS:  # those that began first go first
            views.pop(next(iter(views)))
    runs = {run_id for run_id, _ in views}
    of_chains = EventFilter(runs=runs, chains={chain_id for _, chain_id in views})
    of_runs = EventFilter(runs=runs, types=(StreamEventType.RUN_END,))
    reader = archive.events(first, of_chains | of_runs, until=position)
    for found in reader.new_lines() if views else ():
        if found is None:
            yield None
            continue
        event = found[1]
        if event.chain_id:
            view = views.get((event.run_id, event.chain_id))
            if view is not None:
                view.apply(event)
        else:  # the end of a run, or a gap
            for (run_id, _), view in views.items():
                if run_id == event.run_id:
                    view.apply(event)
    events: list[RecordedEvent] = []
    size = 0
    for view in views.values():
        if view.state in ("ended", "lost", "unknown"):
            continue
        snapshot = view.snapshot()
        data = encode(snapshot)
        events.append(_recorded(position, data, snapshot))
        size += len(data)
        if size >= WINDOW_BYTES:
            yield EventWindow(events=events, position=position, cursor=archive.cursor(position))
            events, size = [], 0
    yield EventWindow(
        events=events,
        position=position,
        cursor=archive.cursor(position),
        complete=True,
        damage=[str(each) for each in reader.damage],
    )


def _filter_of(alternatives: list[dict[str, list[str]]]) -> EventFilter:
    if not alternatives:
        raise FilterError("a filter has no alternatives; expected at least one")
    first, *others = map(EventFilter.from_dict, alternatives)
    for other in others:
        first |= other
    return first


def _events_of_chain(archive: Archive, reading: StoryWanted) -> EventReader:
    events = archive.events_of(reading.chain_id, reading.run_id)
    if reading.since is not None:
        events.position = max(events.position, archive.position(reading.since))
    return events


def _windows(archive: Archive, reader: EventReader, limit: int | None = None) -> Iterator[EventWindow | None]:
    reported = given = 0
    events: list[RecordedEvent] = []
    size = 0

    def window(*, complete: bool = False) -> EventWindow:
        nonlocal reported
        damage = reader.damage[reported:]
        reported += len(damage)
        return EventWindow(
            events=events,
            position=reader.position,
            cursor=archive.cursor(reader.position),
            complete=complete,
            damage=[str(each) for each in damage],
        )

    for found in reader.new_lines():
        if found is None:
            yield None
            continue
        line, event = found
        events.append(_recorded(reader.position - 1, line, event))
        size += len(line)
        given += 1
        if given == limit:
            break
        if len(events) >= WINDOW_EVENTS or size >= WINDOW_BYTES:
            yield window()
            events, size = [], 0
    else:
        yield window(complete=True)
        return
    yield window()


def _recorded(position: int, line: bytes, event: StreamEvent) -> RecordedEvent:
    first = event.data.get("from_seq") if event.event_type is CHUNK else None
    return RecordedEvent(
        position, line, event.event_type.value, event.chain_id, event.group_id, event.run_id, event.source, event.seq,
        first if isinstance(first, int) and 0 <= first <= event.seq else event.seq, event.timestamp,
    )  # fmt: skip


def _chains(archive: Archive, query: ChainQuery) -> Iterator[Page | None]:
    check_query(query)
    wanted = []
    for number, row in enumerate(archive.chain_rows_in_pieces()):
        if row is None or number % 1000 == 0:
            yield None
        if row is not None and fits(row, query):
            wanted.append(row)
    yield page_of(wanted, query)


def _changes(archive: Archive, reading: ChangesWanted) -> Iterator[Rows | None]:
    since = None if reading.since is None else int(reading.since)
    changed, place = archive.changed_chains(since)
    rows: list[bytes] = []
    size = total = 0
    for number, row in enumerate(archive.chain_rows_in_pieces() if changed else ()):
        if row is None or number % 1000 == 0:
            yield None
        if (
            row is not None
            and (row["run_id"], row["chain_id"]) in changed
            and reading.run_id in (None, row["run_id"])
        ):
            total += 1
            if size < PAGE_BYTES:
                rows.append(encoded_row(row, reading.row_bytes))
                size += len(rows[-1])
    yield Rows(rows=rows, total=total, next=str(place))


def _runs(archive: Archive, reading: RunsWanted) -> Iterator[Rows | None]:
    tally = RunTally()
    for row in archive.chain_rows_in_pieces():
        if row is None:
            yield None
        else:
            tally.chain(row)
    for found in archive.events(filter=RUN_EVENTS).new_lines():
        if found is None:
            yield None
        else:
            tally.event(found[1])
    rows = tally.rows(over=archive.state in ("ended", "crashed"))
    yield page_by_run(rows, reading.after, reading.limit, reading.row_bytes)
