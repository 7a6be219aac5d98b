"""Rows of the chains of runs that leave a record, from what its writer makes of them anyway.

    ArchiveObserver ──rows of starts, ends and what was learned, as they are written──▶ RecordedRows
    the open chains ◀──what they add up to, when somebody wants their rows──────────────┘

The run itself does nothing for this table, and no event is kept for it. It is of no more use (`closed`) if the record falls behind, if
it lost events, or if there are chains of which it does not tell, or that cannot be asked, such as those that another process relays: see
`can_follow`. Then `LiveRows` has to take the events.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence, Set
from typing import Any

import msgspec

from rollcast.aio import call_in
from rollcast.archive import ArchiveObserver
from rollcast.archive.format import ChainRow
from rollcast.archive.skeleton import row_so_far, said_at_start
from rollcast.archive.writer import OnRows
from rollcast.records import EventFilter, StreamEventType
from rollcast.records.secrets import Masker
from rollcast.serve.kept_rows import AT_ONCE, MAX_STEPS, KeptRows, Key
from rollcast.serve.record import LATE_S, delivered, record_of, written
from rollcast.stream.asked import ChainSoFar
from rollcast.stream.chain import ChainWriter
from rollcast.stream.own_filter import OwnFilter
from rollcast.stream.run import RunWriter

__all__ = ["RecordedRows", "can_follow"]

T = StreamEventType

LATE_LOOKS = 4
_MAKES_ROWS = frozenset((T.RUN_START, T.RUN_END, T.CHAIN_START, T.CHAIN_END, T.TRAIN_STEP))


def can_follow(manager: Any, record: ArchiveObserver) -> bool:
    """Whether the record tells of all chains of this manager, and its runs are this process's own, so that they can be asked."""
    if not record.begun or record.level == "summary":
        return False
    with manager.lock:
        delivery = manager.delivery_of(record)
        return (
            delivery is not None
            and not delivery.dropped
            and _tells_of_all(delivery.filter)
            and all(type(run) is RunWriter for run in manager.fanout.runs.values())
        )


def _tells_of_all(filter: EventFilter) -> bool:
    """Whether it lets everything pass of which rows of chains are made."""
    return not isinstance(filter, OwnFilter) and any(
        (part.types is None or part.types >= _MAKES_ROWS)
        and part.runs is part.chains is part.groups is part.sources is None
        for part in filter.alternatives
    )


class _End(msgspec.Struct):
    """The end of a chain, and its start if the table has it."""

    end: ChainRow
    start: ChainRow | None

    def row(self) -> dict[str, Any]:
        """Its row."""
        row: dict[str, Any] = msgspec.to_builtins(self.end)
        return row if self.start is None else row | said_at_start(self.start)


class _Owed(msgspec.Struct):
    """Since when something is owed, and how often it was looked for: the loop may have stood still meanwhile."""

    since: float
    looks: int


class RecordedRows(KeptRows):
    """The table. Use it in the event loop in which it is made, and `close` it at the end.

    Args:
        masker: of secrets in what comes from outside; None masks nothing.
        manager: whose chains they are.
        record: the record of its runs.
    """

    def __init__(self, masker: Masker | None, manager: Any, record: ArchiveObserver) -> None:
        super().__init__(masker)
        self.complete = False  # what was over before is in the record, and not here
        self.record = record
        self._manager = manager
        self._delivery = manager.delivery_of(
            record
        )  # what waits there still comes after the record was taken off
        self._loop = asyncio.get_running_loop()
        self._came: deque[tuple[Sequence[ChainRow], Sequence[dict[str, Any]]]] = deque()
        self._started: dict[Key, ChainRow] = {}  # what the start of each open chain told
        self._answers: dict[Key, ChainSoFar] = {}  # what each added up to when it was asked last
        self._owed: dict[Key, _Owed] = {}  # chains of which the record owes the start or the end
        self._useless = self._unwanted = False
        self._late: str | None = None  # what `catch_up` returned
        self._follower = _follower(weakref.ref(self))

    async def begin(self) -> None:
        """Take the chains that are open, and follow the record."""
        await asyncio.to_thread(self.record.follow_rows, self._follower)
        self._take()

    def close(self) -> None:
        """Follow the record no longer."""
        self._useless = self._unwanted = True

    @property
    def closed(self) -> bool:
        """Whether it is of no more use. What the record was given before is still taken."""
        if not self._useless:
            record, manager = self.record, self._manager
            self._useless = (
                record_of(manager) is not record
                or manager.delivery_of(record) is not self._delivery  # it was taken off and added again
                or not can_follow(manager, record)
            )
        return self._useless

    @property
    def manager(self) -> Any:
        """The manager, or None if its chains are no longer followed."""
        return None if self.closed else self._manager

    @property
    def lacking(self) -> list[str]:
        """What rows lack: nothing. If the record loses events, the table is of no more use."""
        return []

    # -- what the record tells -----------------------------------------------------------------------------------------

    def rows_came(self, rows: Sequence[ChainRow], train_rows: Sequence[dict[str, Any]]) -> bool:
        """Called on the thread that writes the record. Returns whether more are wanted."""
        self._came.append((rows, train_rows))
        return not self._unwanted and call_in(self._loop, self._take)

    def _take(self) -> None:
        """Take the rows that came."""
        while self._came:
            rows, train_rows = self._came.popleft()
            for row in rows:
                self._take_row(row)
            self._steps += train_rows
            del self._steps[:-MAX_STEPS]

    def _take_row(self, row: ChainRow) -> None:
        key = (row.run_id, row.chain_id)
        if row.row == "start":
            self._started[key] = row
            self._answers.pop(key, None)
            self._ended.pop(key, None)  # an earlier attempt
            self._touch(key)
        elif row.row == "end":
            self._answers.pop(key, None)
            self._end(key, _End(row, self._started.pop(key, None)))
        elif key in self._ended:
            self._learn(key, row)

    async def catch_up(self) -> str | None:
        """Take everything that was emitted before. If the record is late, a sentence that says so; another table is needed then."""
        if self._late is not None:
            self._take()
            return self._late
        delivery = self._delivery
        in_time = delivery is None or await delivered(self._manager.fanout, delivery)
        in_time = in_time and await written(self.record)
        self._take()
        if in_time:
            return None
        self._useless = True
        self._late = f"the record {self.record.path.name} is behind, since its disk is slow: rows may be out of date; ask again"
        return self._late

    # -- what chains tell ----------------------------------------------------------------------------------------------

    @property
    def to_ask(self) -> int:
        """How many chains may have done something that was not asked: see `ask`."""
        return len(self._started)

    def ask(self) -> None:
        """Ask all open chains what they add up to."""
        for _ in self._asking():
            pass

    async def make(self) -> None:
        """Do the same, and make the rows of those that have changed, some at a time."""
        for number, _ in enumerate(self._asking(), 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        await self.make_rows()

    def _asking(self) -> Iterator[None]:
        """Ask the open chains, one at each step: nobody waits for the lock until all have answered."""
        self._take()
        chains = {chain.key: chain for chain in self._open_writers()}
        self._note_owed(self._started.keys() ^ chains.keys())
        for key, chain in chains.items():
            if key not in self._started:
                continue
            with self._manager.lock:
                if chain.route is None or not chain.route.asked:  # somebody makes events of it by hand
                    self._useless = True
                so_far = None if chain.ended else chain.so_far()
            if so_far is not None and key in self._started:
                self._answered(key, so_far)
            yield

    def _note_owed(self, keys: Set[Key]) -> None:
        """The record has not yet told the start or the end of these chains."""
        now = time.monotonic()
        self._owed = {key: self._owed.get(key, _Owed(now, 0)) for key in keys}
        for owed in self._owed.values():
            owed.looks += 1
            if owed.looks > LATE_LOOKS and now - owed.since > LATE_S:
                self._useless = True

    def _open_writers(self) -> list[ChainWriter]:
        with self._manager.lock:
            runs = self._manager.fanout.runs.values()
            return [chain for run in runs if isinstance(run, RunWriter) for chain in run.open_chains.values()]

    def _answered(self, key: Key, so_far: ChainSoFar) -> None:
        before = self._answers.get(key)
        if before is None or not _is_same(before, so_far):
            self._touch(key)
        self._answers[key] = so_far

    # -- rows ----------------------------------------------------------------------------------------------------------

    def open_chains(self) -> list[Key]:
        """The chains that are open."""
        return list(self._started)

    def is_open(self, key: Key) -> bool:
        """Whether this chain is open."""
        return key in self._started

    def _row_so_far(self, key: Key) -> dict[str, Any]:
        return row_so_far(self._started[key], self._answers.get(key))


_TOLD = [name for name in ChainSoFar.__struct_fields__ if name not in ("as_of", "tool_calls")]


def _is_same(one: ChainSoFar, other: ChainSoFar) -> bool:
    """Whether a row tells the same of both; the run may have gone on meanwhile."""
    return _waits(one) == _waits(other) and all(getattr(one, name) == getattr(other, name) for name in _TOLD)


def _waits(so_far: ChainSoFar) -> list[tuple[str, str | None]]:
    """The calls that are open: a row tells for which tools they wait."""
    return [(call.tool_name, call.status) for call in so_far.tool_calls.values()]


def _follower(table: weakref.ref[RecordedRows]) -> OnRows:
    """What the record calls; it does not keep the table alive."""

    def rows_came(rows: Sequence[ChainRow], train_rows: Sequence[dict[str, Any]]) -> bool:
        follows = table()
        return follows is not None and follows.rows_came(rows, train_rows)

    return rows_came
