"""Gives one subscription the events of a record: what a client missed until it can have the live tail, or a replay.

    record ──a window at a time, read by another process──▶ RecordFeed ──batches, as the client takes them──▶ client

A feed is a task. It holds a few windows, whatever the length of the record, and a client that takes nothing holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from rollcast.archive.format import RUN_FILE
from rollcast.archive.pace import Pace
from rollcast.archive.readings import EventWindow, RecordedEvent, RunsWanted
from rollcast.archive.record_process import Items, RecordProcess
from rollcast.archive.recovery import CRASHED
from rollcast.errors import ArchiveError, InputError, RecordReaderError
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.lanes import Lane
from rollcast.serve.fitting import fitted
from rollcast.serve.history import WITHIN, encoded
from rollcast.serve.on_disk import FOLLOW_S, RecordOnDisk
from rollcast.serve.recorded import Checkpoint, RecordPlace
from rollcast.serve.seen import Seen
from rollcast.serve.settings import ServerSettings
from rollcast.serve.subscription import Sender, Subscription

__all__ = ["Part", "RecordFeed", "Source"]

logger = logging.getLogger("rollcast.serve")

LOOK_S = 0.1  # how often to look whether the record has more, or whether a client has room
HELD_S = (
    0.5  # a client that takes nothing for so long ends its reading, which is begun again when it has room
)
FILL_BYTES = 256 << 10  # a client with more unsent bytes is given nothing more for now
MAX_FAILURES = 5  # of the process that reads, in a row, after which the record counts as unreadable
AGAIN_S = 0.2  # how long to wait after the first of them, before the reading is begun again
MAX_LOST_RUNS = 256  # the latest ones; the others had ended
DAMAGED = "the record is damaged"
DIED = "the process that ran it died"


class Part(NamedTuple):
    """A record, the position in it from which it is given, and what of it the client has."""

    path: Path
    record_id: str
    position: int
    crashed: bool = False
    seen: Seen | None = None


class Source(Protocol):
    """What a feed is given from, and what becomes of its subscription afterwards. Used in the server's event loop."""

    records: RecordProcess
    settings: ServerSettings
    sender: Sender
    readings: asyncio.Semaphore
    on_disk: RecordOnDisk | None  # the record that is served, if another process writes it

    async def parts(self, since: RecordPlace | float | None) -> list[Part] | None:
        """The records to give, one after the other; the last is the one that grows. None: the place is in none of them."""
        ...

    def target(self) -> Checkpoint | None:
        """The latest place in the growing record that is also a place in the history."""
        ...

    def why_stuck(self) -> str | None:
        """Why the record will not lead to what the history has; None if it will."""
        ...

    def begun(self, feed: RecordFeed, place: RecordPlace | None) -> None:
        """Answer the client, who begins at this place; None: its place is in no record."""
        ...

    def goes_live(self, feed: RecordFeed, checkpoint: Checkpoint) -> bool:
        """Give the subscription the live tail from the checkpoint on. False if the history does not have it any more."""
        ...

    def ends(self, feed: RecordFeed) -> None:
        """The record on the disk is complete, and the subscription has been given all of it."""
        ...

    def leaves(self, feed: RecordFeed, as_of: Mapping[Lane, int], reason: str) -> None:
        """Have the subscription begin anew with snapshots, after a `gap` for what is missing."""
        ...


class RecordFeed:
    """One subscription that is given a record.

    Args:
        subscription: which.
        source: of what.
        since: a place in the records, or a time in the latest; None: the beginning of the latest.
        recovered: whether that is what the client asked for.
        snapshots: whether it begins with snapshots of the chains that are open there.
    """

    def __init__(
        self,
        subscription: Subscription,
        source: Source,
        since: RecordPlace | float | None,
        *,
        recovered: bool = True,
        snapshots: bool = False,
    ) -> None:
        self.subscription = subscription
        self.recovered = recovered
        self.snapshots = snapshots
        self.answered = False
        self.hurry = asyncio.Event()  # set when the pace has changed
        self._source = source
        self._since = since
        self._record_id = ""
        self._position = 0  # in the record, after what was put into the batch
        self._turn = source.readings
        self._windows: Items[EventWindow] | None = None  # the reading that is open
        self._events: list[bytes] = []  # of the next batch
        self._size = 0
        self._part = 1  # which part of the snapshots is sent next
        self._snapshots_begun = False  # and they are not all sent
        self._before = False  # whether a record is given that the one that grows continues
        self._seen: Seen | None = None  # what the client has of what follows its place
        self._last: dict[Lane, int] = {}  # the `seq` of the latest event that was given
        self._going_on: set[Lane] = set()  # runs and sources of this part that a later part goes on with
        self._begun: set[Lane] = set()  # those of the parts before, whose start is repeated where they go on
        # The runs and sources that were told that something could not be read; None: everything could.
        self._holed: set[Lane] | None = None
        self._why = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def place(self) -> RecordPlace | float | None:
        """Before what is given next; as `since` before that is known."""
        if not self._record_id:
            return self._since
        return RecordPlace(self._record_id, self._position, self._seen)

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="rollcast-server-record")

    def stop(self) -> None:
        """End, without waiting."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        source = self._source
        try:
            parts = await source.parts(self._since)
            if not parts:
                source.begun(self, None)
                return
            if self.snapshots:  # the snapshots already contain what the client has seen of what follows
                parts[0] = parts[0]._replace(seen=None)
            source.begun(self, RecordPlace(parts[0].record_id, parts[0].position, parts[0].seen))
            if self.snapshots:
                await self._give_snapshots(parts[0])
            self._before = len(parts) > 1
            for number, part in enumerate(parts[:-1], 1):
                self._begin(part)
                self._going_on = await self._lanes_of(part, parts[number:])
                await self._give(part, None)
                if part.crashed:
                    await self._end_lost_runs(part)
                self._begun |= self._going_on
            self._going_on, self._before = set(), False
            if source.on_disk is None:
                await self._follow(parts[-1])
            else:
                await self._follow_on_disk(parts[-1], source.on_disk)
        except (ArchiveError, InputError, OSError) as error:
            logger.warning("a client is not given what it missed: %s", error)
            self._end(f"the record cannot be read: {error}")
        except Exception:  # a fault of ours must not leave the client without an answer
            logger.exception("a client is not given what it missed, by a fault in Rollcast")
            self._end("the server has a fault")

    def _end(self, reason: str) -> None:
        """Give no more of the records, after what was read, and a `gap` for runs of which nothing was given and that nobody can name.

        Of those in the record that grows, the server knows itself what comes next.
        """
        if not self.answered:
            self._source.begun(self, None)
            return
        events, self._events, self._size = self._events, [], 0
        if self._snapshots_begun:  # what comes now begins with snapshots anyway
            self._source.leaves(self, self._last, reason)
            return
        if self._before and self.subscription.selector.filter.wants_gap("", ""):
            events.append(encoded(_gap(Lane("", ""), 0, 0, f"{reason}; events of any runs may be missing")))
        if events and self.subscription.feed is self:
            cursor = str(RecordPlace(self._record_id, self._position, self._seen))
            self._source.sender.send([self.subscription], events, cursor)
        self._source.leaves(self, self._last, reason)

    # -- what is given -------------------------------------------------------------------------------------------------

    async def _follow(self, part: Part) -> None:
        """Give the record that grows, until the client can have the live tail."""
        source = self._source
        self._begin(part)
        while True:
            target = source.target()
            if target is not None and self._position < target.recorded:
                await self._give(part, target.recorded)
            elif target is not None and self._position == target.recorded and source.goes_live(self, target):
                return
            elif (why := source.why_stuck()) is not None:
                source.leaves(self, self._last, why)
                return
            else:
                await asyncio.sleep(LOOK_S)

    async def _follow_on_disk(self, part: Part, record: RecordOnDisk) -> None:
        """Give a record that another process writes, until it is complete."""
        self._begin(part)
        seen: object = None
        while True:
            look = await record.look()
            if look.mark != seen:
                await self._give(part, None)
                seen = look.mark
            if look.over:
                if look.crashed:
                    await self._end_lost_runs(part)
                self._source.ends(self)
                return
            await asyncio.sleep(FOLLOW_S)

    async def _give_snapshots(self, part: Part) -> None:
        """Send snapshots of the chains that are open at the place: one batch in parts, or several batches for clients of 0.1."""
        self._begin(part)
        source, subscription = self._source, self.subscription
        room, most = subscription.room, source.settings.batch_bytes
        most = most if room is None else min(most, room)
        given = failures = 0
        whole = False
        self._part, self._snapshots_begun = 1, True
        while not whole:
            self._turn = source.readings
            await self._turn.acquire()
            self._windows = windows = source.records.snapshots(
                part.path, part.position, subscription.selector.filter
            )
            number = 0
            try:
                async for window in windows:
                    for event in window.events:
                        number += 1
                        if number <= given:  # sent before the reading had to start again
                            continue
                        data = event.data
                        if room is not None and len(data) > room:
                            data = await asyncio.to_thread(fitted, data, room)
                        if self._events and self._size + len(self._events) + len(data) > most:
                            await self._send_snapshots(last=False)
                        self._events.append(data)
                        self._size += len(data)
                        given += 1
                whole = self._windows is not None
            except RecordReaderError:
                failures += 1
                if failures > MAX_FAILURES:
                    raise
                await asyncio.sleep(AGAIN_S * failures)
            finally:
                self._let_go()
        await self._send_snapshots(last=True)
        self._snapshots_begun = False

    async def _send_snapshots(self, *, last: bool) -> None:
        """Send a part of the snapshots, and wait until the client has room for another."""
        events, self._events, self._size = self._events, [], 0
        subscription, sender = self.subscription, self._source.sender
        cursor = str(RecordPlace(self._record_id, self._position))
        if subscription.parts:
            sender.send([subscription], events, cursor, self._part, self._part + (not last))
            self._part += 1
        else:
            sender.send([subscription], events, cursor if last else cursor + WITHIN)
        await self._until_room()

    def _begin(self, part: Part) -> None:
        self._record_id, self._position, self._seen = part.record_id, part.position, part.seen

    async def _give(self, part: Part, until: int | None) -> None:
        """Give the events of a record from `_position` on, as far as they are there."""
        source, wanted = self._source, self.subscription.selector.filter
        failures = 0
        while True:
            begun, given = self._position, False
            self._turn = source.readings
            await self._turn.acquire()
            since = f"{part.record_id}.{begun}"  # at its path there may be another record by now
            self._windows = windows = source.records.events(
                part.path, since=since, filter=wanted, until=until
            )
            try:
                async for window in windows:
                    given = True
                    if self.subscription.pace is not None:
                        self._let_go()
                    if window.damage:
                        self._holed, self._why = set(), f"{DAMAGED}: {'; '.join(window.damage)}"
                    for event in window.events:
                        await self._give_event(event)
                    self._position = window.position
                    if self._events or window.position > begun:
                        await self._send()
                    failures = 0
            except RecordReaderError:  # what was given is known, so another process can go on there
                failures += 1
                if failures > MAX_FAILURES:
                    raise
                self._let_go()
                await asyncio.sleep(AGAIN_S * failures)
                continue
            finally:
                whole = self._windows is not None
                self._let_go()
            if whole or (given and self._position == begun):
                if until is not None:
                    self._position = max(self._position, until)
                return

    def _let_go(self) -> None:
        """End the reading, so that others may read."""
        if self._windows is not None:
            self._windows.close()
            self._windows = None
            self._turn.release()

    async def _give_event(self, event: RecordedEvent) -> None:
        """Add the event to the batch when it is due, after a `gap` if something before it could not be read."""
        if self._joins_parts(event):
            self._position = event.position + 1
            return
        pace = self.subscription.pace
        if pace is not None and event.event_type != StreamEventType.GAP:
            await self._until_due(event.timestamp, pace)
        lane = Lane(event.run_id, event.source)
        last = self._last.get(lane, -1)
        data: bytes | None = event.data
        if self._seen is not None:
            data = self._seen.rest_of(
                event.data, event.event_type, lane, event.chain_id, event.seq, event.from_seq
            )
        if self._holed is not None and lane not in self._holed:
            self._holed.add(lane)
            if event.run_id and event.from_seq > last + 1:
                gap = _gap(lane, last + 1, event.from_seq - 1, self._why)
                await self._add(encoded(gap))
        if data is not None:
            await self._add(data)
        self._position = event.position + 1
        self._last[lane] = max(event.seq, last)

    def _joins_parts(self, event: RecordedEvent) -> bool:
        """Whether the event is there only since a run goes on in another record: its start once more, or the gap of a crash."""
        lane = Lane(event.run_id, event.source)
        if event.event_type == StreamEventType.RUN_START:
            return lane in self._begun
        if event.event_type == StreamEventType.GAP and lane in self._going_on:
            return bool(_gap_decoder.decode(event.data).data.get("reason") == CRASHED)
        return False

    async def _lanes_of(self, part: Part, later: list[Part]) -> set[Lane]:
        """The runs and sources of a record that later ones go on with, as those of a hub that was restarted do.

        The record that grows begins with its first run. If it goes on with one, it began before clients could connect.
        """
        lanes = await self._all_lanes(part)
        going_on: set[Lane] = set()
        for each in later if lanes else ():
            if each is not later[-1] or await asyncio.to_thread((each.path / RUN_FILE).exists):
                going_on |= lanes & await self._all_lanes(each)
        return going_on

    async def _all_lanes(self, part: Part) -> set[Lane]:
        page = await self._source.records.rows(RunsWanted(path=str(part.path), limit=MAX_LOST_RUNS))
        rows = map(msgspec.json.decode, page.rows)
        return {Lane(row["run_id"], source) for row in rows for source in row["sources"]}

    async def _add(self, data: bytes) -> None:
        room, settings = self.subscription.room, self._source.settings
        if room is not None and len(data) > room:
            data = await asyncio.to_thread(fitted, data, room)
        most = settings.batch_bytes if room is None else min(settings.batch_bytes, room)
        full = self._size + len(self._events) + len(data) > most
        if self._events and (full or len(self._events) >= settings.batch_events):
            await self._send()
        self._events.append(data)
        self._size += len(data)

    async def _send(self) -> None:
        """Send the batch, and wait until the client has room for another."""
        events, self._events, self._size = self._events, [], 0
        cursor = str(RecordPlace(self._record_id, self._position, self._seen))
        self._source.sender.send([self.subscription], events, cursor)
        await self._until_room()

    async def _until_room(self) -> None:
        """Wait until the client has room for another batch. If that takes long, stop reading, so that others can."""
        outlet, most = self.subscription.outlet, min(self._source.settings.client_buffer, FILL_BYTES)
        held_s, pause_s = 0.0, 0.005
        while outlet.unsent() > most:
            if held_s >= HELD_S:
                self._let_go()
            await asyncio.sleep(pause_s)
            held_s += pause_s
            pause_s = min(2 * pause_s, LOOK_S)

    async def _until_due(self, timestamp: float, pace: Pace) -> None:
        """Wait until the event is due, after what waits was sent. What is due within the time of a batch is sent together."""
        pace.take(timestamp, time.monotonic())
        while (left_s := pace.left_s(time.monotonic())) > 0:
            if self._events:
                await self._send()
            self.hurry.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(min(left_s, 3600.0), self._source.settings.batch_s)):
                    await self.hurry.wait()

    async def _end_lost_runs(self, part: Part) -> None:
        """Send a `gap` that ends each run that the record leaves open, since the process that wrote it died."""
        page = await self._source.records.rows(RunsWanted(path=str(part.path), limit=MAX_LOST_RUNS))
        for row in map(msgspec.json.decode, page.rows):
            for source, status in row["sources"].items() if row["status"] == "lost" else ():
                lane = Lane(row["run_id"], source)
                if (
                    status == "lost"
                    and lane not in self._going_on
                    and self.subscription.selector.filter.wants_gap(*lane)
                ):
                    first = self._last.get(lane, -1) + 1
                    await self._add(encoded(_gap(lane, first, first, DIED, "unknown")))
        await self._send()


class _GapData(msgspec.Struct):
    data: dict[str, object]


_gap_decoder = msgspec.json.Decoder(_GapData)


def _gap(lane: Lane, first: int, last: int, reason: str, run_status: str | None = None) -> StreamEvent:
    run_id, source = lane
    data = {"from_seq": first, "to_seq": last, "dropped": {}, "reason": reason}
    if run_status is not None:
        data["run_status"] = run_status
    return StreamEvent(StreamEventType.GAP, "", time.time(), data, seq=last, run_id=run_id, source=source)
