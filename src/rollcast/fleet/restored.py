"""What the record of a hub's last life tells its next one: what it has of each run, and what was open."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rollcast.archive.index import RecordEntry, list_records
from rollcast.archive.reader import Archive
from rollcast.archive.recovery import recover
from rollcast.errors import ArchiveError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.view import ChainView

__all__ = ["HUB", "Restored", "restored_from"]

T = StreamEventType
HUB = "hub"  # the field of a record's settings that says that a hub wrote it
LAST_EVENTS = 200_000  # that are read to find what was recorded and not acknowledged
STALE_S = 24 * 3600.0  # what was open so long ago is not open any more
MOST_PARENTS = 16  # records that are read for it


@dataclass(frozen=True)
class Restored:
    """What a hub begins with, if there was one before it.

    Attributes:
        parent: the name of the last record; None: the directory has no record of a hub.
        recorded: the last `seq` in the record, by run and source, of what was recorded lately.
        open: the `run_start` of each run that was open, and then a snapshot of each of its open chains.
        notes: what is worth saying, a sentence each.
    """

    parent: str | None = None
    recorded: Mapping[tuple[str, str], int] = field(default_factory=dict)
    open: Sequence[StreamEvent] = ()
    notes: Sequence[str] = ()


def restored_from(directory: Path) -> Restored:
    """What the hub before this one left in its record directory. A record whose writer died is recovered.

    Raises:
        ArchiveError: the directory cannot be read.
    """
    entries = [
        e for e in list_records(directory) if e.facts is not None and e.facts.settings.get(HUB) is True
    ]
    if not entries:
        return Restored()
    last = entries[0]
    try:
        notes = _made_whole(last)
        archive = Archive.open(last.path)
        recorded = _recorded(entries)
        is_stale = time.time() - (archive.facts.ended_at or archive.facts.started_at) > STALE_S
        opened = [] if is_stale else [*_open_runs(archive), *_open_chains(archive)]
    except (ArchiveError, OSError) as error:
        return Restored(
            last.name, notes=[f"the record {last.name} of the hub before this one cannot be read: {error}"]
        )
    return Restored(last.name, recorded, opened, notes)


def _made_whole(entry: RecordEntry) -> list[str]:
    if entry.state not in ("crashed", "silent"):
        return []
    if not recover(entry.path).needed:
        return []
    return [
        f"the hub before this one died while it wrote its record {entry.name}; that record is whole again"
    ]


def _recorded(entries: Sequence[RecordEntry]) -> dict[tuple[str, str], int]:
    """The last `seq` by run and source in the latest events of these records, the newest of which comes first."""
    found: dict[tuple[str, str], int] = {}
    left = LAST_EVENTS
    for entry in entries[:MOST_PARENTS]:
        archive = Archive.open(entry.path)
        length = archive.length
        for event in archive.events(max(0, length - left)):
            place = (event.run_id, event.source)
            if event.event_type is not T.GAP:  # one that recovery wrote stands for nothing that came
                found[place] = max(event.seq, found.get(place, -1))
        left -= length
        if left <= 0:
            break
    return found


def _open_runs(archive: Archive) -> list[StreamEvent]:
    """The starts of the runs that have no end, each source's own."""
    starts: dict[tuple[str, str], StreamEvent] = {}
    for event in archive.events(None, EventFilter(types=(T.RUN_START, T.RUN_END))):
        place = (event.run_id, event.source)
        if event.event_type is T.RUN_START:
            starts[place] = event
        elif event.event_type is T.RUN_END or "run_status" in event.data:
            starts.pop(place, None)
    return list(starts.values())


def _open_chains(archive: Archive) -> list[StreamEvent]:
    """A snapshot of each chain that has no end, in a run that has none."""
    views: dict[tuple[str, str], ChainView] = {}
    first = archive.length
    for row in archive.chain_rows():
        if row["state"] != "ended" and row.get("first") is not None:
            views[row["run_id"], row["chain_id"]] = ChainView()
            first = min(first, row["first"])
    gaps: deque[StreamEvent] = deque(maxlen=4096)
    for event in archive.events(first) if views else ():
        view = views.get((event.run_id, event.chain_id))
        if view is not None:
            view.apply(event)
        elif not event.chain_id and event.event_type in (T.RUN_END, T.GAP):
            gaps.append(event)
    for event in gaps:  # the chains of runs that ended are lost, and not open
        for (run_id, _), view in views.items():
            if run_id == event.run_id and (event.event_type is T.RUN_END or "run_status" in event.data):
                view.apply(event)
    shown = [view.snapshot() for view in views.values() if view.state not in ("ended", "lost", "unknown")]
    return sorted(shown, key=lambda event: event.seq)
