"""The record of what a server serves, and the subscriptions that are given it: what they missed, or a replay.

manager ──▶ ArchiveObserver ──a block was written──▶ Checkpoints     where the history's places stand in the record
subscribe {since} ──▶ RecordFeed ──checkpoint──▶ the live tail
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from rollcast.archive.index import list_records, read_run_file, state_of
from rollcast.archive.observer import ArchiveObserver
from rollcast.archive.pace import Pace
from rollcast.archive.record_process import RecordProcess
from rollcast.archive.writer import Written
from rollcast.errors import ArchiveError, RecordReaderError
from rollcast.records.lanes import Lane
from rollcast.serve.feed import Part, RecordFeed, Source
from rollcast.serve.history import History
from rollcast.serve.ledger import RunLedger
from rollcast.serve.on_disk import Recorded, RecordFolder, RecordOnDisk
from rollcast.serve.record import record_of
from rollcast.serve.recorded import (
    RECORD_ID,
    Checkpoint,
    Checkpoints,
    RecordPlace,
    keeps_all_of,
    place_named,
)
from rollcast.serve.settings import ServerSettings
from rollcast.serve.subscription import Replay, Sender, Subscription
from rollcast.stream import StreamObserver

__all__ = ["Endings", "RecordFeeds"]

logger = logging.getLogger("rollcast.serve")

VIEWED_IDLE_S = 600.0  # how long the process that reads is kept without a reading, if records are served
READINGS = 16  # at once, of all feeds together
NOW = 1e12  # seconds since the epoch: later than any event, so a feed begins at the end of what is recorded
MAX_PARENTS = 64  # how many records back a cursor may be


class Answer(Protocol):
    """Answers `subscribe` with a place in the record, None if snapshots come first.

    `recovered`: it is the place that was asked for.
    """

    def __call__(self, subscription: Subscription, cursor: str | None, *, recovered: bool) -> None: ...


class Endings(NamedTuple):
    """What becomes of a subscription when its feed begins or ends; called in the event loop.

    Attributes:
        answer: answers `subscribe` with a place in the record.
        without: answers it without the record.
        live: gives it the live tail from a position in the history on; False if that is gone.
        anew: begins anew with snapshots, after the gaps from what it was given (by run) until then.
    """

    answer: Answer
    without: Callable[[Subscription], object]
    live: Callable[[Subscription, int], bool]
    anew: Callable[[Subscription, Mapping[Lane, int], int, str], object]


class _Link:
    """The record of what is served: of the server's manager, or one on the disk, which has no checkpoints."""

    def __init__(self, observer: Recorded, checkpoints: Checkpoints) -> None:
        self.observer = observer
        self.checkpoints = checkpoints
        self.record_id = observer.id


class _OneRecord:
    """The source of a feed from a folder of records: the record that has a run. See `feed.Source`."""

    def __init__(self, feeds: RecordFeeds, folder: RecordFolder, run_id: str | None) -> None:
        self.on_disk: RecordOnDisk | None = None
        self.records = feeds.records
        self.settings = feeds.settings
        self.sender = feeds.sender
        self.readings = feeds.readings
        self.begun = feeds.begun
        self.goes_live = feeds.goes_live
        self.ends = feeds.ends
        self.leaves = feeds.leaves
        self._feeds = feeds
        self._folder = folder
        self._run_id = run_id

    async def parts(self, since: RecordPlace | float | None) -> list[Part] | None:
        record = self.on_disk = await self._folder.record_of(self._run_id, self.records)
        return await self._feeds.parts_of(record, record.id, since)

    def target(self) -> Checkpoint | None:
        return None

    def why_stuck(self) -> str | None:
        return None


class RecordFeeds:
    """The feeds of one server.

    Args:
        observer: the server's observer: a record of the same manager is used.
        history: the server's history.
        ledger: how far its runs got.
        lock: guards both, and the checkpoints.
        settings: the server's.
        sender: sends batches.
        endings: what becomes of subscriptions.
        on_disk: the record, or the folder of records, that is served in place of a manager's runs; None: there is none.

    Attributes:
        records: reads records in another process.
        readings: lets a number of feeds read at once.
    """

    def __init__(
        self,
        observer: StreamObserver,
        history: History,
        ledger: RunLedger,
        lock: threading.RLock,
        settings: ServerSettings,
        sender: Sender,
        endings: Endings,
        on_disk: RecordOnDisk | RecordFolder | None = None,
    ) -> None:
        self.folder = on_disk if isinstance(on_disk, RecordFolder) else None
        self.on_disk = on_disk if isinstance(on_disk, RecordOnDisk) else None
        self.records = RecordProcess() if on_disk is None else RecordProcess(idle_s=VIEWED_IDLE_S)
        self.readings = asyncio.Semaphore(READINGS)
        self.settings = settings
        self.sender = sender
        self._observer = observer
        self._history = history
        self._ledger = ledger
        self._lock = lock
        self._endings = endings
        self._link: _Link | None = None
        # The manager, and the version of its observers, that were looked at.
        self._seen: tuple[object, int] = (None, -1)
        if on_disk is None:
            history.recorded = self._place_of
        elif self.on_disk is not None:
            self._link = _Link(self.on_disk, Checkpoints(history, ledger))

    # -- the record ----------------------------------------------------------------------------------------------------

    def find(self) -> bool:
        """Look for a record of the manager, if its observers have changed; whether there is one.

        The lock is not held, since it is taken after the manager's.
        """
        manager = self._observer.manager
        if self.settings.history_bytes and manager is not None:
            seen = (manager, manager.fanout.version)
            if self._seen != seen:
                self._seen = seen
                self._link_to(record_of(manager), manager.observers)
        return self._link is not None or self.folder is not None

    def warm(self) -> None:
        """Let records be read. If they are what is served, start the process that reads them, so that the first client need not wait for it."""
        self.records.reopen()
        if self.is_on_disk:
            try:
                self.records.warm()
            except RecordReaderError as error:
                logger.info("%s; the first query tries again", error)

    @property
    def is_on_disk(self) -> bool:
        """Whether records on the disk are served, rather than the runs of a manager."""
        return self.on_disk is not None or self.folder is not None

    @property
    def features(self) -> list[str]:
        """The features in the server's `welcome` that are about records."""
        if self.folder is not None:
            return ["record", "records"]
        return ["record"] if self.find() else []

    def _link_to(self, record: ArchiveObserver | None, observers: list[StreamObserver]) -> None:
        link = self._link
        if record is None or (link is not None and link.observer is record):
            return  # one that has ended is still read
        if re.fullmatch(RECORD_ID, record.id) is None:
            return  # its owner gave it an id that no cursor can have
        with self._lock:
            if self._link is not link:
                return  # another thread found it first
            if link is not None and isinstance(link.observer, ArchiveObserver):
                link.observer.on_written.remove(self._written)
            self._link = _Link(record, Checkpoints(self._history, self._ledger))
            added = [each for each in observers if each in (record, self._observer)]
            if self._history.head == 0 and added and added[0] is record:
                self._link.checkpoints.begin()  # it was added first, so it is given all that the server is
            record.on_written.append(self._written)

    @property
    def record(self) -> Recorded | None:
        """What records, or recorded, the runs that are served; or the record that is served in their place."""
        return None if self._link is None else self._link.observer

    def came(self) -> None:
        """Called when events came into the history. The lock is held."""
        if self._link is not None:
            self._link.checkpoints.advance()

    def _written(self, block: Written) -> None:
        """Called on the recorder's thread."""
        with self._lock:
            link = self._link
            if link is not None:
                link.checkpoints.written(block)
                link.record_id = link.observer.id

    def _place_of(self, position: int) -> str:
        """The end of a cursor for a position in the history."""
        with self._lock:
            link = self._link
            place = "" if link is None else link.checkpoints.place_of(position)
            return "" if link is None or not place else f".{link.record_id}{place}"

    # -- feeds ---------------------------------------------------------------------------------------------------------

    def begin(self, subscription: Subscription, since: str, replay: Replay | None = None) -> bool:
        """Give the subscription the record from this place on. False if no record has it.

        Args:
            subscription: which.
            since: `start` or a cursor.
            replay: how the record is replayed; None: it is given as fast as the client takes it.
        """
        link, place = self._link, place_named(since)
        pace = None if replay is None else replay.pace
        if self.folder is not None and subscription.of_run is None:
            return False  # it is about no record, as when a page lists them
        at_time = None if replay is None else replay.time
        if at_time is not None and (link is not None or self.folder is not None):
            subscription.pace = pace
            self.restart(subscription, at_time, snapshots=subscription.snapshots)
            return True
        if self.is_on_disk:
            known = since in ("start", "live") or place is not None
            subscription.pace = pace
            begins_at = place if known and since != "live" else NOW
            self.restart(subscription, begins_at, recovered=known, snapshots=subscription.snapshots)
            return True
        if link is None or (place is None and since != "start"):
            return False
        if place is not None and place.record_id != link.record_id and link.observer.parent is None:
            return False
        if pace is None and not keeps_all_of(link.observer.level, subscription.selector.filter):
            return False
        subscription.pace = pace
        self.restart(subscription, place, snapshots=subscription.snapshots)
        return True

    def restart(
        self,
        subscription: Subscription,
        place: RecordPlace | float | None,
        *,
        recovered: bool = True,
        snapshots: bool = False,
    ) -> None:
        """Give the subscription the record from another place on.

        Args:
            subscription: which.
            place: a place in the record, or a time; None: its beginning.
            recovered: whether that is what the client asked for.
            snapshots: whether it begins with snapshots of the chains that are open there.
        """
        if subscription.feed is not None:
            subscription.feed.stop()
        source: Source = self
        if self.folder is not None:
            source = _OneRecord(self, self.folder, subscription.of_run)
        subscription.feed = feed = RecordFeed(
            subscription, source, place, recovered=recovered, snapshots=snapshots
        )
        feed.start()

    def detach(self) -> None:
        """Called when the server stops serving from an event loop."""
        self.readings = asyncio.Semaphore(READINGS)  # the old one belongs to that loop

    def seek(
        self,
        subscription: Subscription | None,
        cursor: str | None,
        at: float | None,
        *,
        snapshots: bool = False,
    ) -> str | None:
        """Go on at a cursor or a time; why that cannot be done, in a sentence."""
        link = self._link
        if subscription is None:
            return "the subscription is closed"
        if link is None and (self.folder is None or subscription.of_run is None):
            return "there is no record here, so there is no other place to go to"
        place: RecordPlace | float | None = at
        if cursor is not None:
            place = place_named(cursor)
            if place is None or (link is not None and place.record_id != link.record_id):
                return "the cursor names no place in the record that is served here"
        speed = math.inf if subscription.pace is None else subscription.pace.speed
        subscription.pace, subscription.join = Pace(speed), None
        subscription.snapshots = snapshots
        self.restart(subscription, place, snapshots=snapshots)
        return None

    def change_speed(self, subscription: Subscription | None, speed: float) -> str | None:
        """Go on at another speed; why that cannot be done, in a sentence."""
        if subscription is None or subscription.pace is None:
            return "this subscription is not a replay; subscribe with a speed, or seek"
        subscription.pace.change(speed, time.monotonic())
        if subscription.feed is not None:
            subscription.feed.hurry.set()
        return None

    async def parts(self, since: RecordPlace | float | None) -> list[Part] | None:
        """See `feed.Source`."""
        link = self._link
        return None if link is None else await self.parts_of(link.observer, link.record_id, since)

    async def parts_of(
        self, record: Recorded, record_id: str, since: RecordPlace | float | None
    ) -> list[Part] | None:
        """Like `parts`, for one record and those that it continues."""
        last = Part(record.path, record_id, 0)
        if since is None:
            return [last]
        if isinstance(since, float):
            return [last._replace(position=await self.records.place_at(last.path, since))]
        if since.record_id == last.record_id:
            latest = self.target()
            most = (
                since.position if latest is None else latest.recorded
            )  # more is no place that a client was told
            return [last._replace(position=min(since.position, most), seen=since.seen)]
        before = await asyncio.to_thread(_parents, last.path, record.parent, since)
        return None if before is None else [*before, last]

    def target(self) -> Checkpoint | None:
        """See `feed.Source`."""
        with self._lock:
            return None if self._link is None else self._link.checkpoints.latest

    def why_stuck(self) -> str | None:
        """See `feed.Source`."""
        link = self._link
        if link is None:
            return "the server has no record any more"
        with self._lock:
            latest = link.checkpoints.latest
            if latest is not None and latest.position >= self._history.tail:
                return None
        if link.observer.failing is not None:
            return f"the record cannot be written: {link.observer.failing}"
        return None if link.observer.recording else "the record ends before this"

    def begun(self, feed: RecordFeed, place: RecordPlace | None) -> None:
        """See `feed.Source`."""
        subscription = feed.subscription
        if subscription.feed is not feed:
            return
        if place is not None:
            feed.answered = True
            cursor = None if feed.snapshots else str(place)
            self._endings.answer(subscription, cursor, recovered=feed.recovered)
        elif self.is_on_disk and feed.recovered:  # no record has its place
            self.restart(subscription, NOW, recovered=False)
        elif self.folder is not None:  # no record has its run, or it cannot be read
            subscription.feed = None
            self._endings.answer(subscription, self._history.cursor(self._history.head), recovered=False)
        else:
            subscription.feed = None
            self._endings.without(subscription)

    def goes_live(self, feed: RecordFeed, checkpoint: Checkpoint) -> bool:
        """See `feed.Source`."""
        return feed.subscription.feed is not feed or self._endings.live(
            feed.subscription, checkpoint.position
        )

    def ends(self, feed: RecordFeed) -> None:
        """See `feed.Source`."""
        if feed.subscription.feed is feed:
            self._endings.live(feed.subscription, 0)

    def leaves(self, feed: RecordFeed, as_of: Mapping[Lane, int], reason: str) -> None:
        """See `feed.Source`."""
        if feed.subscription.feed is feed:
            link, place, position = self._link, feed.place, 0
            if link is not None and isinstance(place, RecordPlace) and place.record_id == link.record_id:
                with self._lock:
                    position = link.checkpoints.position_of(place.position)
            feed.subscription.feed = None
            self._endings.anew(feed.subscription, as_of, position, reason)


def _parents(path: Path, parent: str | None, wanted: RecordPlace) -> list[Part] | None:
    """The records that this one goes on from, from the wanted place on, the earliest first; None if it is not among them."""
    parts: list[Part] = []
    while parent is not None and len(parts) < MAX_PARENTS:
        try:
            found = _record_called(path.parent, parent)
        except ArchiveError:
            return None
        if found is None:
            return None
        path = found
        facts = read_run_file(path)
        part = Part(path, facts.id, 0, crashed=state_of(facts)[0] == "crashed")
        if facts.id == wanted.record_id:
            return [part._replace(position=wanted.position, seen=wanted.seen), *parts]
        parts.insert(0, part)
        parent = facts.parent
    return None


def _record_called(directory: Path, name: str) -> Path | None:
    """The record in this directory with this name, path or id."""
    by_name = directory / name
    if (by_name / "run.json").exists():
        return by_name
    entries = list_records(directory)
    return next((e.path for e in entries if e.facts is not None and e.facts.id == name), None)
