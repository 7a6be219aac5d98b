"""Answers the queries of `rollcast.v1`: what is open from memory, what is over from the record, by a child process that reads it.

    Session ─▶ RunQuery ─▶ Queries ─▶ a task for each: rows … done
                              ├─ RecordedRows    open chains, while somebody asks, of runs that leave a record
                              ├─ LiveRows        open chains of others
                              ├─ RecordProcess   the record, if the runs leave one
                              └─ memory          otherwise: what the history still has

A client that does not read holds its own answer up, and nothing else: an answer waits until the client has room, and lets go
of the record meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any

import msgspec

from rollcast.archive import ArchiveObserver
from rollcast.archive.chain_rows import (
    DEFAULT_SORT,
    ChainQuery,
    Page,
    check_query,
    fits,
    merged_page,
    page_of,
)
from rollcast.archive.pages import ROW_BYTES, Rows, page_by_number, page_by_run
from rollcast.archive.readings import ChangesWanted, EventWindow, RecordsWanted, RunsWanted, StepsWanted
from rollcast.archive.record_process import RecordProcess
from rollcast.archive.run_rows import RunTally
from rollcast.errors import ArchiveError, InputError, RecordReaderError
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.lanes import Lane
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.fitting import fitted
from rollcast.serve.live_rows import EVERY_RUN, Key, LiveRows
from rollcast.serve.memory import Past, past_of
from rollcast.serve.on_disk import FOLLOW_S, Recorded, RecordOnDisk
from rollcast.serve.outlet import Client, transmit
from rollcast.serve.protocol import (
    FRAME_BYTES,
    LONGEST_AFTER,
    Done,
    ErrorCode,
    ErrorFrame,
    RunQuery,
    Session,
    rows_frame,
)
from rollcast.serve.publishing import ProducerDesk
from rollcast.serve.record import LATE_S, begun_record, caught_up, lost_by, record_of, recorded
from rollcast.serve.recorded_rows import RecordedRows, can_follow
from rollcast.serve.shared_readings import SharedReadings
from rollcast.serve.stories import NotThereError, Told, live_story, remembered_story

__all__ = ["Queries"]

ChainTable = LiveRows | RecordedRows

logger = logging.getLogger("rollcast.serve")

WATCH_S = 0.25  # rows that change are sent no more often
LOOK_S = 0.02  # how often an answer looks whether its client has room again
KEEP_S = 30.0  # how long the table of open chains is kept after the last query
READINGS = 16  # of the record at a time, by all clients together
REST = 9  # the event loop makes rows that are asked for in a tenth of its time
WATCH_REST = 99  # and rows that have changed in a hundredth
LONGEST_REST_S = 1.0  # after rows that have changed
MAX_MISSING = 16  # sentences about what an answer lacks
FRAME_ROWS = 256 << 10  # bytes of rows in one frame, unless one row is larger
NO_RECORD = (
    "these runs leave no record: what is over is told as far as the memory of the server goes back; "
    "an ArchiveObserver keeps a record"
)
REREADING = "the server fell behind its runs, and is still reading the rows that it lost; ask again"
ROWS_LOST = "the server fell behind run {}: rows of chains that ended meanwhile may be missing"
ROWS_LOST_OF_ALL = "the server fell behind its runs: rows of chains that ended meanwhile may be missing"
RECORD_LACKS = (
    "the record {} fell behind its runs and lacks {:,} events: rows of chains may be missing or out of date"
)
LATE_RECORD_S = 1.0  # a record that begins with its run may open its files a little later
LATE_RECORD = "the record {} begins after some of the runs did: what was over by then is not told"
LET_GO = "more rows have changed than were kept for this client; ask again for all"


class Queries:
    """The queries of all clients of one server. Use it in the server's event loop.

    Args:
        broadcaster: of the server.

    Attributes:
        records: reads records; anything else of this server that needs one uses it too.
        desk: knows the producers; None: the server is no hub.
    """

    desk: ProducerDesk | None = None

    def __init__(self, broadcaster: Broadcaster) -> None:
        self.records = broadcaster.feeds.records
        self._broadcaster = broadcaster
        self._table = _Table(broadcaster, self.records)
        self._tasks: dict[tuple[Client, str], asyncio.Task[None]] = {}
        self._readings = asyncio.Semaphore(READINGS)
        self._turn = asyncio.Lock()
        self._watching = asyncio.Lock()
        self._free_at = 0.0  # when the event loop may make rows again
        self._watch_at = 0.0  # when it may make those that have changed
        self._shared = SharedReadings(self._rows)

    def run(self, client: Client, session: Session, action: RunQuery) -> None:
        """Begin to answer a query."""
        answer = _Answer(client, action, self)
        key = (client, action.query.id)
        task = asyncio.get_running_loop().create_task(answer.give(session), name="rollcast-server-query")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._tasks.pop(key) if self._tasks.get(key) is done else None)

    def stop(self, client: Client, id: str) -> None:
        """Send nothing more of a query."""
        task = self._tasks.pop((client, id), None)
        if task is not None:
            task.cancel()

    def leave(self, client: Client) -> None:
        """The client has gone."""
        for key in [key for key in self._tasks if key[0] is client]:
            self.stop(*key)

    async def aclose(self) -> None:
        """End every answer, and the process that reads records."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._shared.aclose()
        self._readings, self._turn = (
            asyncio.Semaphore(READINGS),
            asyncio.Lock(),
        )  # another event loop may come
        await self._table.aclose()
        await self.records.aclose()

    @property
    def running(self) -> int:
        """How many queries are being answered."""
        return len(self._tasks)

    # -- what an answer is made of -------------------------------------------------------------------------------------

    @property
    def manager(self) -> Any:
        """The manager that the server's observer is added to, or None."""
        return self._broadcaster.observer.manager

    @property
    def broadcaster(self) -> Broadcaster:
        """The server's broadcaster."""
        return self._broadcaster

    async def table(self, missing: list[str] | None = None) -> ChainTable:
        """The rows of open chains, up to date; what they lack because of a delay is added to `missing`."""
        rows, behind = await self._table.up_to_date()
        if missing is not None:
            missing += behind
        return rows

    def watched(self, change: int) -> None:
        """Count those that watch the table, so that it is kept for them."""
        self._table.watched(change)

    def note_let_go(self, table: ChainTable, missing: list[str]) -> None:
        """Add to `missing` that there is no record, if rows of what is over were let go for that."""
        if isinstance(table, RecordedRows):  # there is one, which cannot be read: that is told
            return
        runs = self._broadcaster.upstream.runs
        if not (table.complete and runs.complete) and self.manager is not None:
            missing.append(NO_RECORD)

    async def record(
        self, missing: list[str], run_id: str | None = None, late: list[str] | None = None
    ) -> Recorded | None:
        """The record of the runs, up to date, or None; what it lacks is added to `missing`.

        Args:
            missing: sentences about what is missing.
            run_id: a run of the record that is meant, of a folder of records.
            late: what only comes later is added to this instead.

        Raises:
            InputError: there is a folder of records, and no run is named.
            NotThereError: none of them has the run.
        """
        folder = self._broadcaster.feeds.folder
        if folder is not None:
            try:
                return await folder.record_of(run_id, self.records)
            except RecordReaderError:
                raise
            except ArchiveError as error:
                raise NotThereError(str(error)) from None
        manager = self.manager
        if manager is None and (past := self._broadcaster.feeds.record) is not None:
            return past  # the manager is closed, and nothing more is recorded
        if manager is None:
            return None
        record, behind = await begun_record(manager)
        if record is None:
            return None
        if behind is not None:
            (missing if late is None or record.failing is not None else late).append(behind)
        lost = lost_by(manager, record)
        if lost:
            missing.append(RECORD_LACKS.format(record.path.name, lost))
        with self._broadcaster.lock:
            runs = self._broadcaster.upstream.runs.events()
        if any(
            run.event_type is StreamEventType.RUN_START and self._began_before(run, record.began_at)
            for run in runs
        ):
            missing.append(LATE_RECORD.format(record.path.name))
        return record

    def _began_before(self, start: StreamEvent, began_at: float) -> bool:
        """Whether the record, which began then, lacks the beginning of this run.

        The time of another process tells nothing: its clock may be wrong, and what it kept while a hub was away comes whole, later.
        """
        if self.desk is not None:
            return start.run_id in self.desk.resumed
        own = self.manager is not None and start.source in ("", self.manager.source)
        return own and start.timestamp + LATE_RECORD_S < began_at

    async def rows(self, reading: RunsWanted | StepsWanted | RecordsWanted) -> Rows:
        """A page of rows; one reading serves all who ask for the same before it begins. Raises what `RecordProcess.rows` raises."""
        return await self._shared.rows(reading)

    async def _rows(self, reading: RunsWanted | StepsWanted | RecordsWanted) -> Rows:
        async with self._readings:
            return await self.records.rows(reading)

    def reading(self) -> asyncio.Semaphore:
        """Held while an answer reads a record."""
        return self._readings

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Held while rows are made in the event loop. Afterwards nobody makes any for nine times as long, however many ask.

        What counts is CPU time: on a machine that is busy with other work, a turn costs the loop no more.
        """
        async with self._turn:
            await asyncio.sleep(self._free_at - time.perf_counter())
            began = time.thread_time()
            try:
                yield
            finally:
                spent = time.thread_time() - began
                self._free_at = time.perf_counter() + spent * REST
                self._watch_at = time.perf_counter() + min(spent * WATCH_REST, LONGEST_REST_S)

    @asynccontextmanager
    async def watching_turn(self) -> AsyncGenerator[None, None]:
        """Do the same for rows that have changed. If there are many they follow later, so that they cost the run little."""
        async with self._watching:
            await asyncio.sleep(self._watch_at - time.perf_counter())
            async with self.turn():
                yield


class _Table:
    """The one table of open chains of a server: it begins with the first query, and ends a while after the last one."""

    def __init__(self, broadcaster: Broadcaster, records: RecordProcess) -> None:
        self._broadcaster = broadcaster
        self._records = records
        self._rows: ChainTable | None = None
        self._given_up: ArchiveObserver | None = None  # a record that could not be followed
        self._manager: Any = None  # whose chains it has
        self._before: list[ChainTable] = []  # earlier ones of them, of which this one has to take over
        self._filled: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None
        self._removed = False  # the observer was taken off this manager: what happened meanwhile is not known
        self._watchers = 0
        self._leave: asyncio.TimerHandle | None = None

    async def up_to_date(self) -> tuple[ChainTable, list[str]]:
        """The table, with everything that has been emitted; and what it lacks, a sentence each, because that takes too long."""
        rows, manager = self._rows, self._broadcaster.observer.manager
        record = self._record_to_follow(rows, manager)
        if rows is None or rows.closed or self._manager is not manager or record is not None:
            rows = self._begin_anew(rows, manager, record)
        assert self._filled is not None
        try:
            await asyncio.shield(self._filled)
            behind = await self._catch_up(rows)
            await rows.make()
        except Exception:  # whatever it is: the next query begins anew
            self.drop()
            raise
        finally:  # also if who asked has gone meanwhile
            self._leave_later()
        return rows, behind

    async def _catch_up(self, rows: ChainTable) -> list[str]:
        """Have the table take everything that has been emitted; returns why it does not have all of it yet."""
        behind = await rows.catch_up()
        if behind is not None:
            return [behind]
        if self._mending is not None:
            _, late = await asyncio.wait([self._mending], timeout=LATE_S)
            if late:
                return [REREADING]
        return []

    def _record_to_follow(self, rows: ChainTable | None, manager: Any) -> ArchiveObserver | None:
        """The record of the manager's runs, if a new table should follow it."""
        if isinstance(rows, RecordedRows) and rows.closed:
            self._given_up = rows.record
        record = None if manager is None else record_of(manager)
        if record is None or record is self._given_up or not can_follow(manager, record):
            return None
        return None if isinstance(rows, RecordedRows) and rows.record is record else record

    def _begin_anew(
        self, before: ChainTable | None, manager: Any, record: ArchiveObserver | None
    ) -> ChainTable:
        """Begin another table, which follows the record if that is given."""
        masker, loop = self._broadcaster.masker, asyncio.get_running_loop()
        taken_off = isinstance(before, LiveRows) and before.closed
        self._removed = self._manager is manager and (self._removed or taken_off)
        earlier = self._before if before is None else [*self._before, before]
        self._forget()
        self._before = earlier if self._manager is manager else []
        if record is not None:
            followed = RecordedRows(masker, manager, record)
            self._rows, self._manager = followed, manager
            self._filled = loop.create_task(self._follow(followed, manager), name="rollcast-server-rows")
            return followed
        self._take_off()
        rows = self._rows = LiveRows(masker)
        self._manager = manager
        rows.on_lost = partial(self._mend_soon, rows, manager)
        self._filled = loop.create_task(self._begin(rows, manager), name="rollcast-server-rows")
        if isinstance(before, RecordedRows) and manager is not None:
            rows.lose(EVERY_RUN)  # what the record told too late
        return rows

    async def _follow(self, rows: RecordedRows, manager: Any) -> None:
        """Have the table follow its record, and only then end one that takes events, so that what happens meanwhile is in one of the two.

        If the record is late, who watches the other one is told nothing that is older than what he knows.
        """
        await rows.begin()
        if await rows.catch_up() is None and self._rows is rows:
            self._take_off()
            await self._take_over(rows, manager)

    async def _take_over(self, rows: ChainTable, manager: Any) -> None:
        """Have the table tell what happened between those before it and itself."""
        while self._rows is rows and self._before:
            before = self._before[-1]
            ended = _ended(before, manager)
            await rows.catch_up()
            await before.catch_up()
            if self._rows is rows:
                rows.take_over(before, ended)
                self._before.remove(before)
                if isinstance(before, RecordedRows):
                    before.close()

    async def _begin(self, rows: LiveRows, manager: Any) -> None:
        """Let the manager fill the table, and add what only the record or the history knows about open chains."""
        if manager is None or self._rows is not rows:  # nobody wants it any more
            return
        broadcaster = self._broadcaster
        observer = broadcaster.observer
        rows.loop = asyncio.get_running_loop()
        with manager.lock, broadcaster.lock:
            started = [
                event for event in broadcaster.upstream.runs.events() if event.run_id in manager.fanout.runs
            ]
        for event in started:
            if event.event_type is StreamEventType.RUN_START:
                rows.began(event)
        observer.companions = (rows,)
        manager.refresh(observer)
        with manager.lock:
            ended = manager.fanout.emitted[StreamEventType.RUN_END]
        await rows.catch_up()
        record, behind = await begun_record(manager)
        if record is None:
            past = await self._past(manager)
            rows.fill(past.rows, ended=True)
            rows.fill_steps(past.steps)
            whole = broadcaster.keeps and past.whole and past.ended >= ended
            rows.complete = rows.complete and whole and not self._removed
            if self._mending is None:
                await self._take_over(rows, manager)
            return
        if self._removed or behind is not None:
            rows.lose(EVERY_RUN)  # what was over when the table began may not be in the record yet
        query = ChainQuery(where={"state": ["running"]}, limit=10_000)
        try:
            async for page in self._pages(record, query):
                rows.fill(page, ended=False)
        except ArchiveError as error:
            logger.info("rows of open chains lack what only the record tells: %s", error)

    async def _past(self, manager: Any) -> Past:
        """What the history tells, with everything that was on its way to it."""
        broadcaster = self._broadcaster
        while not await caught_up(manager, broadcaster.observer):
            logger.debug("the server's history is behind; its rows wait for it")
        with broadcaster.lock:
            until = broadcaster.history.head
        return await past_of(broadcaster.history, broadcaster.lock, until, self._records)

    async def _pages(self, record: Recorded, query: ChainQuery) -> AsyncGenerator[list[dict[str, Any]], None]:
        while True:
            answer = merged_page([await self._records.chains(record.path, query)], query)
            yield [msgspec.json.decode(row) for row in answer.rows]
            query.after = answer.next
            if query.after is None:
                return

    # -- rows that were lost ---------------------------------------------------------------------------------------------

    def _mend_soon(self, rows: LiveRows, manager: Any) -> None:
        """Read what the table has lost, unless that is being done."""
        if self._rows is rows and (self._mending is None or self._mending.done()):
            self._mending = asyncio.get_running_loop().create_task(
                self._mend(rows, manager, self._filled), name="rollcast-server-rows-lost"
            )

    async def _mend(self, rows: LiveRows, manager: Any, filled: asyncio.Task[None] | None) -> None:
        if filled is not None:
            await asyncio.wait([filled])
        while not rows.closed and (lost := rows.take_lost()):
            try:
                await self._mend_runs(rows, manager, lost)
            except ArchiveError as error:
                rows.lacks(f"{_rows_lost(lost)}: {error}")
            except Exception:  # a fault of ours must not hide that rows are missing
                logger.exception("rows that were lost could not be read again, by a fault in Rollcast")
                rows.lacks(_rows_lost(lost))
        await self._take_over(rows, manager)

    async def _mend_runs(self, rows: LiveRows, manager: Any, lost: dict[Lane, int]) -> None:
        """Read the rows of runs of which events were lost: from the record, or else from the history.

        1. Note which chains are open in the table and have ended: their ends are on their way, or were lost.
        2. Give the table the rows that the record or the history has.
        3. Note that rows are missing if neither has all that was lost.
        4. End the chains of 1 of which nothing more came.
        """
        broadcaster, every = self._broadcaster, EVERY_RUN in lost
        of_runs = {lane.run_id for lane in lost}
        with manager.lock, broadcaster.lock:
            runs = manager.fanout.runs
            ended = [key for key in _ended(rows, manager) if every or key[0] in of_runs]
            starts = [
                event
                for event in broadcaster.upstream.runs.events()
                if event.event_type is StreamEventType.RUN_START
                and event.run_id in runs
                and (every or event.run_id in of_runs)
            ]
        for event in starts:
            rows.began(event)
        record, behind = await begun_record(manager)
        if record is None:
            past = await self._past(manager)
            rows.mend(row for row in past.rows if every or row["run_id"] in of_runs)
            rows.fill_steps(past.steps)
            known = (
                past.whole
                if every
                else all(past.since.get(lane, since + 1) <= since for lane, since in lost.items())
            )
            if not (known and broadcaster.keeps):
                rows.lacks(_rows_lost(lost))
        else:
            while behind is not None and record.failing is None:
                logger.debug("%s; the rows that were lost wait for it", behind)
                behind = await recorded(manager, record)
            query = ChainQuery(run=None if every or len(of_runs) > 1 else next(iter(of_runs)), limit=10_000)
            async for page in self._pages(record, query):
                rows.mend(row for row in page if every or row["run_id"] in of_runs)
                await asyncio.sleep(0)
            if behind is not None:
                rows.lacks(f"{_rows_lost(lost)}: {behind}")
            if lacking := lost_by(manager, record):
                rows.lacks(RECORD_LACKS.format(record.path.name, lacking))
        await rows.catch_up()
        rows.lose_ends(ended)

    def watched(self, change: int) -> None:
        self._watchers += change
        self._leave_later()

    def _leave_later(self) -> None:
        if self._leave is not None:
            self._leave.cancel()
        self._leave = None
        if not self._watchers:
            self._leave = asyncio.get_running_loop().call_later(KEEP_S, self.drop)

    async def aclose(self) -> None:
        """End the table, even while it is being filled."""
        tasks = [task for task in (self._filled, self._mending) if task is not None]
        self.drop()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def drop(self) -> None:
        """End the table."""
        if isinstance(self._rows, RecordedRows):
            self._rows.close()
        self._forget()
        self._take_off()

    def _forget(self) -> None:
        """Have no table. Who watches it is told its last changes by itself."""
        self._rows, self._before = None, []
        if self._leave is not None:
            self._leave.cancel()
            self._leave = None
        self._filled = None
        if self._mending is not None:
            self._mending.cancel()
            self._mending = None

    def _take_off(self) -> None:
        """Have the manager give no more events to a table."""
        observer = self._broadcaster.observer
        if observer.companions:
            observer.companions = ()
            if observer.manager is not None:
                observer.manager.refresh(observer)


def _ended(rows: ChainTable, manager: Any) -> list[Key]:
    """The chains that are open in the table and have ended: their ends are on their way, or were lost."""
    with manager.lock:
        runs = manager.fanout.runs
        return [key for key in rows.open_chains() if not (key[0] in runs and runs[key[0]].has_chain(key[1]))]


def _rows_lost(lost: dict[Lane, int]) -> str:
    of_runs = {lane.run_id for lane in lost}
    return ROWS_LOST_OF_ALL if "" in of_runs or len(of_runs) > 1 else ROWS_LOST.format(next(iter(of_runs)))


class _BehindError(Exception):
    """A client that watches does not read fast enough."""


class _Answer:
    """The answer to one query."""

    def __init__(self, client: Client, action: RunQuery, queries: Queries) -> None:
        self._client = client
        self._query = action.query
        self._limit = action.limit
        self._queries = queries
        self._room = client.max_message - FRAME_BYTES - LONGEST_AFTER
        self._missing: list[str] = []
        self._cursor: str | None = None

    async def give(self, session: Session) -> None:
        """Send the rows, and then `done`; or `error`."""
        query = self._query
        try:
            await _GIVE[query.what](self)
        except asyncio.CancelledError:
            raise
        except NotThereError as error:
            frame = ErrorFrame(ErrorCode.NOT_FOUND, str(error), query.id)
        except InputError as error:
            frame = ErrorFrame(ErrorCode.BAD_REQUEST, str(error), query.id)
        except (ArchiveError, _BehindError) as error:
            frame = ErrorFrame(ErrorCode.UNAVAILABLE, str(error), query.id)
        except Exception:  # a fault of ours ends this answer, and no connection
            logger.exception("a query for %s could not be answered, by a fault in Rollcast", query.what)
            frame = ErrorFrame(
                ErrorCode.UNAVAILABLE, "the query could not be answered, by a fault in Rollcast", query.id
            )
        else:
            missing = list(dict.fromkeys(self._missing))[:MAX_MISSING]
            session.finished(query.id)
            self._client.send(Done(query.id, cursor=self._cursor, missing=missing))
            return
        session.finished(query.id)
        self._client.send(frame)

    # -- runs and steps ------------------------------------------------------------------------------------------------

    async def runs(self) -> None:
        """The runs, the newest first."""
        query = self._query
        page: dict[str, Any] = {"after": query.after, "limit": self._limit, "row_bytes": self._row_bytes}
        folder = self._queries.broadcaster.feeds.folder
        if folder is not None and query.run is None:
            await self._send_page(await self._queries.rows(RecordsWanted(path=str(folder.path), **page)))
            return

        async def of_record(record: Recorded) -> Rows:
            rows = await self._queries.rows(RunsWanted(path=str(record.path), **page))
            if folder is not None and isinstance(record, RecordOnDisk):
                folder.knows(record, [_run_decoder.decode(row).run_id for row in rows.rows])
            return rows

        async def of_memory() -> Rows:
            table, broadcaster = await self._memory(), self._queries.broadcaster
            tally, masker = RunTally(), broadcaster.masker
            with broadcaster.lock:
                events = broadcaster.upstream.runs.events()
            async with self._queries.turn():
                for event in events:
                    tally.event(event if masker is None else masker.event(event))
                for row in (*table.ended_rows(), *table.open_rows()):
                    tally.chain(row)
                return page_by_run(tally.rows(over=False), query.after, self._limit, self._row_bytes)

        await self._send_page(await self._of_record_or(of_record, of_memory))

    async def steps(self) -> None:
        """The rows of training steps and evaluations."""
        query = self._query

        async def of_record(record: Recorded) -> Rows:
            wanted = StepsWanted(
                path=str(record.path),
                run_id=query.run,
                after=query.after,
                limit=self._limit,
                row_bytes=self._row_bytes,
            )
            return await self._queries.rows(wanted)

        async def of_memory() -> Rows:
            rows = (await self._memory()).step_rows()
            rows = [row for row in rows if query.run in (None, row.get("run_id"))]
            return page_by_number(rows, query.after, self._limit, self._row_bytes)

        await self._send_page(await self._of_record_or(of_record, of_memory))

    async def sources(self) -> None:
        """The producers, in the order in which they came.

        Raises:
            InputError: the server is no hub.
        """
        if self._queries.desk is None:
            raise InputError(
                "this server takes nothing from producers, so it has no sources; a `rollcast hub` does"
            )
        rows = self._queries.desk.rows()
        await self._send_page(page_by_number(rows, self._query.after, self._limit, self._row_bytes))

    async def _of_record_or(
        self,
        of_record: Callable[[Recorded], Any],
        of_memory: Callable[[], Any],
        late: list[str] | None = None,
    ) -> Any:
        """What the record tells, or what the memory does if there is none or it cannot be read, which is then told.

        What only comes later is added to `late`, if that is given.
        """
        record = await self._queries.record(self._missing, self._query.run, late)
        if record is not None:
            try:
                return await of_record(record)
            except RecordReaderError:
                raise
            except ArchiveError as error:
                self._missing.append(f"the record cannot be read, so this is what the memory has: {error}")
        return await of_memory()

    async def _memory(self) -> ChainTable:
        """The table, for what is over too; what it lacks is noted."""
        table = await self._queries.table(self._missing)
        self._queries.note_let_go(table, self._missing)
        self._missing += table.lacking
        return table

    # -- chains --------------------------------------------------------------------------------------------------------

    async def chains(self) -> None:
        """The chains, those that are open included; with `watch`, then those that change."""
        query = self._query
        wanted = ChainQuery(
            run=query.run,
            where={
                name: value if isinstance(value, list) else [value] for name, value in query.filter.items()
            },
            sort=query.sort or DEFAULT_SORT,
            after=query.after,
            limit=self._limit,
            row_bytes=self._row_bytes,
        )
        check_query(wanted)
        if self._queries.broadcaster.feeds.is_on_disk:
            record = await self._queries.record(self._missing, query.run)
            if isinstance(record, RecordOnDisk):
                await self._chains_on_disk(record, wanted)
                return
        # What only comes late is no gap in an answer that goes on.
        late: list[str] = [] if query.watch else self._missing
        table = await self._queries.table(late)
        with ExitStack() as stack:
            if query.watch:
                self._queries.watched(1)
                stack.callback(self._queries.watched, -1)
            version, open_rows = table.version, table.open_rows()
            wanted.without = [_key(row) for row in open_rows]
            told = {_key(row) for row in open_rows if fits(row, wanted)}
            async with self._queries.turn():
                is_open = page_of(open_rows, msgspec.structs.replace(wanted, without=[]), table.encoded)

            async def of_record(record: Recorded) -> list[Page]:
                # A record that cannot be written lacks what the table knows, or has it as it was before.
                fails = isinstance(record, ArchiveObserver) and record.failing is not None
                known = table.ended_rows() if fails else []
                rest = msgspec.structs.replace(wanted, without=[*wanted.without, *map(_key, known)])
                async with self._queries.reading():
                    pages = [await self._queries.records.chains(record.path, rest)]
                return [*pages, await of_table(known)] if known else pages

            async def of_table(rows: list[dict[str, Any]]) -> Page:
                async with self._queries.turn():
                    return page_of(rows, wanted, table.encoded)

            async def of_memory() -> list[Page]:
                self._queries.note_let_go(table, self._missing)
                return [await of_table(table.ended_rows())]

            over: list[Page] = []
            if wanted.where.get("state") != ["running"]:  # otherwise what is over is not wanted
                over = await self._of_record_or(of_record, of_memory, late)
                if late:  # rows that ended before `version` may not be in the record yet
                    version = table.forgotten
            self._missing += table.lacking
            await self._send_page(merged_page([is_open, *over], wanted))
            if query.watch:
                await self._watch(table, wanted, version, told)

    async def _chains_on_disk(self, record: RecordOnDisk, wanted: ChainQuery) -> None:
        """The chains of a record that another process writes; with `watch`, then those of which it writes rows."""
        records, look = self._queries.records, await record.look()
        changes = ChangesWanted(path=str(record.path), run_id=wanted.run, row_bytes=self._row_bytes)
        async with self._queries.reading():
            changes.since = (await records.rows(changes)).next
            page = await records.chains(record.path, wanted)
        told = {_key(row) for row in map(msgspec.json.decode, (row.data for row in page.rows))}
        await self._send_page(merged_page([page], wanted))
        if not self._query.watch:
            return
        while True:  # until the query is stopped
            await asyncio.sleep(FOLLOW_S)
            await self._until_room()
            seen, look = look, await record.look()
            if look == seen:
                continue
            async with self._queries.reading():
                rows = await records.rows(changes)
                given = [*rows.rows]
                if look.over and not seen.over:  # what is open then has lost its end
                    lost = msgspec.structs.replace(wanted, where={"state": ["lost"]}, after=None)
                    given += [row.data for row in (await records.chains(record.path, lost)).rows]
            if rows.total != len(rows.rows):
                raise _BehindError(LET_GO)
            changes.since = rows.next
            changed = []
            async with self._queries.turn():
                for data in given:
                    row = msgspec.json.decode(data)
                    if fits(row, wanted):
                        told.add(_key(row))
                    elif _key(row) not in told:
                        continue
                    else:
                        told.discard(_key(row))
                    changed.append(data)
            if changed:
                await self._send_rows(changed, changed=True)

    async def _watch(self, table: ChainTable, wanted: ChainQuery, version: int, told: set[Key]) -> None:
        """Send the rows that change, until the query is stopped.

        A row is sent if it fits, and once more when it no longer does.
        """
        while True:
            await asyncio.sleep(WATCH_S)
            await self._until_room()
            is_over = table.closed or table.manager is None  # then what follows are its last changes
            if is_over or isinstance(table, LiveRows):
                await table.catch_up()
            news = [sentence for sentence in table.lacking if sentence not in self._missing]
            if news:
                self._missing += news
                await self._send_rows([], changed=True, missing=news)
            if table.version != version or table.to_ask:
                if table.forgotten > version:
                    raise _BehindError(LET_GO)
                async with self._queries.watching_turn():
                    table.ask()
                    rows, version = table.changed_since(version), table.version
                    changed = []
                    for row in rows:
                        key, fitting = _key(row), fits(row, wanted)
                        if fitting or key in told:
                            changed.append(table.encoded(row, self._row_bytes))
                        (told.add if fitting and row.get("state") == "running" else told.discard)(key)
                if changed:
                    await self._send_rows(changed, changed=True)
            if is_over and table.after is not None:
                table, version = table.after, 0
                await table.catch_up()  # or it would tell what is older
            elif is_over and self._queries.manager is not None:  # it was added anew
                table, version = await self._queries.table(), 0

    # -- the story of one chain ----------------------------------------------------------------------------------------

    async def chain(self) -> None:
        """The events of one chain: a snapshot if it is open, otherwise those of the record or of the history."""
        query, queries = self._query, self._queries
        assert query.chain is not None
        if query.after is None and not query.recorded:
            story = await live_story(queries.broadcaster, query.chain, query.run, self._room)
            if story is not None:
                self._cursor = story.cursor
                for part in story.parts:
                    await self._send_rows(part)
                return
        record = await queries.record(self._missing, query.run)
        if record is not None and await self._recorded_story(record):
            return
        told = Told()
        async for window in remembered_story(
            queries.broadcaster, query.chain, query.run, query.after, self._limit, told
        ):
            await self._send_rows([await self._fitted(event) for event in window])
        if told.missing:
            self._missing += [*told.missing, *([NO_RECORD] if record is None else [])]
        self._cursor = told.cursor
        if told.next is not None:
            await self._send_rows([], next=told.next)

    async def _recorded_story(self, record: Recorded) -> bool:
        """Send what the record has of the chain. False if it does not have the chain; nothing was sent then."""
        since, left, sent = self._query.after, self._limit, False
        while True:
            last: EventWindow | None = None
            held: EventWindow | None = None  # it came when there was no room for it
            try:
                async with aclosing(self._windows(record, since, left)) as windows:
                    async for window in windows:
                        last, since = window, window.cursor
                        left -= len(window.events)
                        if not self._client.keeps_up():
                            held = window
                            break  # lets go of the record until there is room
                        await self._send_window(window, left)
                        sent = True
            except RecordReaderError:
                raise
            except ArchiveError as error:
                if sent:
                    raise
                self._missing.append(f"the record does not tell of it: {error}")
                return False
            if held is not None:
                await self._send_window(held, left)
            if last is None or last.complete or left <= 0:
                self._cursor = since
                return True

    async def _send_window(self, window: EventWindow, left: int) -> None:
        self._missing += window.damage
        more = not window.complete and left <= 0
        events = [await self._fitted(event.data) for event in window.events]
        await self._send_rows(events, next=window.cursor if more else None)

    async def _windows(
        self, record: Recorded, since: str | None, limit: int
    ) -> AsyncGenerator[EventWindow, None]:
        assert self._query.chain is not None
        async with (
            self._queries.reading(),
            self._queries.records.story(
                record.path, self._query.chain, self._query.run, since=since, limit=limit
            ) as windows,
        ):
            async for window in windows:
                yield window

    async def _fitted(self, event: bytes) -> bytes:
        if len(event) <= self._room:
            return event
        return await asyncio.to_thread(fitted, event, self._room)

    # -- to the client -------------------------------------------------------------------------------------------------

    @property
    def _row_bytes(self) -> int:
        return min(ROW_BYTES, self._room)

    async def _send_page(self, page: Rows) -> None:
        missing = list(dict.fromkeys(self._missing))[:MAX_MISSING] if self._query.watch else []
        await self._send_rows(page.rows, page.total, page.next, missing=missing)

    async def _send_rows(
        self,
        rows: list[bytes],
        total: int | None = None,
        next: str | None = None,
        *,
        changed: bool = False,
        missing: Sequence[str] = (),
    ) -> None:
        """Send the rows when the client has room, in as many frames as they need. They are about a page at most.

        The last frame says what is `missing`.
        """
        await self._until_room()
        most = min(self._room, FRAME_ROWS)
        frames: list[list[bytes]] = [[]]
        size = 0
        for row in rows:
            if frames[-1] and size + len(row) + 1 > most:
                frames.append([])
                size = 0
            frames[-1].append(row)
            size += len(row) + 1
        for number, portion in enumerate(frames, 1):
            last = number == len(frames)
            behind, said = (next, missing) if last else (None, ())
            data = rows_frame(
                self._query.id, b",".join(portion), total, behind, changed=changed, missing=said
            )
            transmit([self._client], data)

    async def _until_room(self) -> None:
        while not self._client.keeps_up():  # noqa: ASYNC110  (the transport tells no event)
            await asyncio.sleep(LOOK_S)


_GIVE = {
    "runs": _Answer.runs,
    "chains": _Answer.chains,
    "chain": _Answer.chain,
    "steps": _Answer.steps,
    "sources": _Answer.sources,
}


class _RunRow(msgspec.Struct):
    run_id: str


_run_decoder = msgspec.json.Decoder(_RunRow)


def _key(row: dict[str, Any]) -> Key:
    return row["run_id"], row["chain_id"]
