"""Rows of the chains that are open, and of those that ended a while ago, from what an observer of the manager gets.

The table is kept only while somebody asks for rows: it gets no tokens, so a token costs nothing more.

Its queue is bounded. If very many chains begin and end at once, events are dropped and a `gap` stands for them: snapshots follow for the
chains that are open then, but nothing tells of those that ended meanwhile. The table notes the run (`take_lost`), and its owner reads what
was lost from the record or the history (`mend`), or notes why that cannot be done (`lacks`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from rollcast.archive.chain_rows import merge_row
from rollcast.archive.format import ChainRow
from rollcast.archive.pages import ROW_BYTES, encoded_row
from rollcast.archive.skeleton import Skeleton
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.bounded import whole
from rollcast.records.lanes import Lane, end_status
from rollcast.records.secrets import Masker
from rollcast.records.view_fields import object_of
from rollcast.stream import StreamObserver

__all__ = ["EVERY_RUN", "Key", "LiveRows"]

logger = logging.getLogger("rollcast.serve")

T = StreamEventType
Key = tuple[str, str]  # run_id, chain_id

QUEUE_LIMIT = (
    32 << 20
)  # bytes; all chains of a large run may begin and end while the loop has no time for the table
EVERY_RUN = Lane("", "")
MAX_ENDED = 4096  # chains, those that ended last
MAX_STEPS = 4096
MAX_LACKING = 16  # sentences
AT_ONCE = 64  # rows that are made before others get their turn
_FROM_OUTSIDE = frozenset(("reference", "error", "metrics"))  # what may hold secrets; an answer is sampled
_LEARNED = ("advantage", "staleness")  # what a training step says of a chain that has ended
_TOKENS_ONLY = {T.LLM_GENERATION_CHUNK.value}
_OF_A_RECORD = ("row", "first", "last", "trajectory")  # what only a record can tell


class LiveRows(StreamObserver):
    """The table. Use it in the event loop in which it is called.

    Its methods are more than twenty: half of them take events, note what was lost, and put it back; the other half answer from the rows, and
    both change the same rows and versions.

    Args:
        masker: of secrets in what comes from outside; None masks nothing.

    Attributes:
        version: rises with each change of a row.
        forgotten: the version of the latest change that is no longer known, since the chain ended long ago.
        complete: whether it has every chain that ended, as far as it is known: none was let go, and none was lost.
        closed: whether it no longer gets events: it was taken off its manager.
        on_lost: called when events of a run were lost, so that `take_lost` names it.
    """

    filter = EventFilter(types=[kind for kind in T if kind is not T.LLM_GENERATION_CHUNK])
    chunk_interest = "never"
    queue_limit_bytes = QUEUE_LIMIT

    def __init__(self, masker: Masker | None = None) -> None:
        self._masker = masker
        self.closed = False
        self.on_lost: Callable[[], object] = lambda: None
        self.version = self.forgotten = 0
        self.complete = True
        self._lost: dict[Lane, int] = {}
        self._lacking: dict[str, None] = {}
        self._skeleton = Skeleton(live=True)
        self._begun: dict[Key, dict[str, Any]] = {}  # what the start of each open chain told
        self._known: dict[Key, dict[str, Any]] = {}  # what was told of open chains before the table began
        self._made: dict[Key, dict[str, Any]] = {}  # rows of open chains that have not changed since
        self._encoded: dict[Key, bytes] = {}  # rows that somebody was sent and that have not changed since
        self._ended: OrderedDict[Key, dict[str, Any]] = OrderedDict()
        self._changed: OrderedDict[Key, int] = OrderedDict()  # the version of each row's latest change
        self._steps: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """The observer's name in warnings, errors and statistics."""
        return "WebSocketStreamingServer (rows)"

    async def aclose(self) -> None:
        """Note that nothing more comes. Those who watch may still take the last changes.

        A new table is needed when the observer is added again.
        """
        self.closed = True

    # -- what happens --------------------------------------------------------------------------------------------------

    async def on_event(self, event: StreamEvent) -> None:
        self._take(event)

    async def on_batch(self, events: list[StreamEvent]) -> None:
        for event in events:
            self._take(event)

    def _take(self, event: StreamEvent) -> None:
        skeleton = self._skeleton
        kind = event.event_type
        if end_status(event) is not None:
            self._lose(event)
        try:
            skeleton.feed(event, -1)
        except Exception:  # an event that somebody made by hand costs its row, not those of the others
            logger.exception("a row could not be made of a %s event", event.event_type)
        if kind is T.GAP:
            self._note_lost(event)
        for row in skeleton.take_rows():
            self._row(row)
        if skeleton.is_open(event.run_id, event.chain_id):
            self._touch((event.run_id, event.chain_id))
        self._steps += skeleton.take_train_rows()
        del self._steps[:-MAX_STEPS]

    def _note_lost(self, gap: StreamEvent) -> None:
        dropped = set(object_of(gap.data.get("dropped")))
        if not dropped or dropped - _TOKENS_ONLY:
            # What a trainer learned is told in an event of the training, about chains of other runs.
            since = whole(gap.data.get("from_seq"))
            lane = Lane(gap.run_id, gap.source)
            self.lose(EVERY_RUN if T.TRAIN_STEP.value in dropped else lane, since or 0)

    def lose(self, lane: Lane, since: int = 0) -> None:
        """Note that events of a run and source were lost, the first of them with this `seq`; `EVERY_RUN` stands for all runs."""
        self._lost[lane] = min(since, self._lost.get(lane, since))
        self.on_lost()

    def began(self, event: StreamEvent) -> None:
        """Take the start of a run that opened before the table began, or whose start was lost."""
        self._skeleton.feed(event, -1)

    def _row(self, row: ChainRow) -> None:
        key = (row.run_id, row.chain_id)
        told = msgspec.to_builtins(row)
        if row.row == "start":
            self._begun[key] = told
            self._ended.pop(key, None)  # an earlier attempt
        elif row.row == "end":
            self._end(key, self._begun.pop(key, {}) | told)
        elif key in self._ended:
            merge_row(self._ended[key], told)
            self._touch(key)

    def _lose(self, end: StreamEvent) -> None:
        """A source's part of a run ends, or its end was lost: its chains that are open have lost their ends."""
        for key in self._skeleton.open_chains_of(end):
            self._end(key, self._skeleton.row_so_far(*key) | {"state": "lost"})
            self._begun.pop(key, None)
        self._skeleton.forget_open(end)

    def _end(self, key: Key, row: dict[str, Any]) -> None:
        self._ended[key] = self._told(self._known.pop(key, {}) | row)
        self._made.pop(key, None)
        self._touch(key)
        while len(self._ended) > MAX_ENDED:
            oldest, _ = self._ended.popitem(last=False)
            self.forgotten = max(self.forgotten, self._changed.pop(oldest, 0))
            self._encoded.pop(oldest, None)
            self.complete = False

    def _touch(self, key: Key) -> None:
        self.version += 1
        self._made.pop(key, None)
        self._encoded.pop(key, None)
        self._changed[key] = self.version
        self._changed.move_to_end(key)

    # -- what was before the table began -------------------------------------------------------------------------------

    def fill(self, rows: Iterable[dict[str, Any]], *, ended: bool) -> None:
        """Take rows of chains that began before the table did: what they tell of chains that are open here.

        Args:
            rows: merged rows, as in a record.
            ended: whether chains that have ended are to be kept too.
        """
        is_open = set(self._skeleton.open_chains())
        before: list[tuple[Key, dict[str, Any]]] = []
        for row in rows:
            key = (row["run_id"], row["chain_id"])
            if key in is_open:
                self._known[key] = row
                self._touch(key)
            elif ended and key not in self._ended and row.get("state") != "running":
                before.append((key, self._told(row)))
        before = before[-max(MAX_ENDED - len(self._ended), 0) :] if len(self._ended) < MAX_ENDED else []
        for key, row in reversed(before):
            self._ended[key] = row
            self._ended.move_to_end(key, last=False)

    def take_lost(self) -> dict[Lane, int]:
        """The runs and sources of which events were lost since this was called last, with the `seq` of the first; see `lose`."""
        lost, self._lost = self._lost, {}
        return lost

    def mend(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take rows of runs of which events were lost, as a record or the history has them.

        What the table knows better is kept, so rows may come that are older than its own.
        """
        for row in rows:
            key = (row["run_id"], row["chain_id"])
            if self._skeleton.is_open(*key):
                self._mend_open(key, row)
            elif row.get("state") != "running":  # otherwise its start is on its way, or a snapshot
                self._mend_ended(key, row)

    def _mend_open(self, key: Key, row: dict[str, Any]) -> None:
        if _is_before(row, self._open_row(key)):
            return
        if row.get("state") == "running":
            if self._known.get(key) != row:
                self._known[key] = row
                self._touch(key)
            return
        self._skeleton.end_unseen(*key)
        self._begun.pop(key, None)
        self._end(key, row)

    def _mend_ended(self, key: Key, row: dict[str, Any]) -> None:
        known = self._ended.get(key)
        if known is None or _is_before(known, row) or known.get("state") == "lost" != row.get("state"):
            self._end(key, row)
            return
        learned = {name: row[name] for name in _LEARNED if row.get(name) not in (None, known.get(name))}
        if learned:
            known.update(learned)
            self._touch(key)

    def lose_ends(self, keys: Iterable[Key]) -> None:
        """These chains have ended, and their ends were lost: those that are still open here are told as lost."""
        for key in keys:
            if self._skeleton.is_open(*key):
                self._end(key, self._skeleton.row_so_far(*key) | {"state": "lost"})
                self._skeleton.end_unseen(*key)
                self._begun.pop(key, None)

    def lacks(self, sentence: str) -> None:
        """Note that rows are missing, and why."""
        self.complete = False
        if len(self._lacking) < MAX_LACKING:
            self._lacking[sentence] = None

    @property
    def lacking(self) -> list[str]:
        """What rows lack, a sentence each."""
        return list(self._lacking)

    def fill_steps(self, rows: list[dict[str, Any]]) -> None:
        """Take the rows of training steps from before the table began."""
        known = {_place_of(row) for row in self._steps}
        self._steps[:0] = [row for row in rows if _place_of(row) not in known]
        del self._steps[:-MAX_STEPS]

    # -- what it tells -------------------------------------------------------------------------------------------------

    def open_chains(self) -> list[Key]:
        """The chains that are open."""
        return self._skeleton.open_chains()

    async def make(self) -> None:
        """Make the rows of open chains that have changed, some at a time."""
        for number, key in enumerate(self.open_chains()):
            if key not in self._made:
                self._open_row(key)
                if number % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)

    def open_rows(self) -> list[dict[str, Any]]:
        """A row for each open chain."""
        return [self._open_row(key) for key in self.open_chains()]

    def ended_rows(self) -> list[dict[str, Any]]:
        """A row for each chain that ended and is still known."""
        return list(self._ended.values())

    def step_rows(self) -> list[dict[str, Any]]:
        """The rows of training steps and evaluations that are still known."""
        return list(self._steps)

    def changed_since(self, version: int) -> list[dict[str, Any]]:
        """The rows that have changed since then, the latest change last."""
        keys: list[Key] = []
        for key in reversed(self._changed):
            if self._changed[key] <= version:
                break
            keys.append(key)
        is_open = set(self.open_chains())
        rows = [self._open_row(key) if key in is_open else self._ended.get(key) for key in reversed(keys)]
        return [row for row in rows if row is not None]

    def encoded(self, row: dict[str, Any], limit: int) -> bytes:
        """A row of this table as JSON, made once for all who watch; see `pages.encoded_row`."""
        if limit != ROW_BYTES:
            return encoded_row(row, limit)
        key = (row["run_id"], row["chain_id"])
        data = self._encoded.get(key)
        if data is None:
            data = self._encoded[key] = encoded_row(row)
        return data

    def _open_row(self, key: Key) -> dict[str, Any]:
        row = self._made.get(key)
        if row is None:
            row = self._made[key] = self._told(self._known.get(key, {}) | self._skeleton.row_so_far(*key))
        return row

    def _told(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as clients may see it."""
        told = {name: value for name, value in row.items() if name not in _OF_A_RECORD}
        if self._masker is not None:
            for name in _FROM_OUTSIDE & told.keys():
                told[name] = self._masker.value(told[name])
        return told


def _is_before(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the row is of an earlier attempt. The starts of one attempt may differ a little: a snapshot's is not the event's time."""
    ended, began = row.get("ended_at"), other.get("started_at")
    return ended is not None and began is not None and ended < began


def _place_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row.get("row"), row.get("run_id"), row.get("train_step"), row.get("timestamp"))
