"""Rows of the chains that are open, and of those that ended a while ago, from what an observer of the manager gets.

The table is kept only while somebody asks for rows. It gets no tokens, and of most chains only the starts and ends (`intake.py`): what
an open chain did meanwhile is asked when its row is wanted.

Its queue is bounded. If very many chains begin and end at once, events are dropped and a `gap` stands for them: snapshots follow for the
chains that are open then, but nothing tells of those that ended meanwhile. The table notes the run (`take_lost`), and its owner reads what
was lost from the record or the history (`mend`), or notes why that cannot be done (`lacks`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from rollcast.archive.skeleton import Skeleton
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.bounded import whole
from rollcast.records.lanes import Lane, end_status
from rollcast.records.secrets import Masker
from rollcast.records.view_fields import object_of
from rollcast.serve.intake import Intake
from rollcast.serve.kept_rows import AT_ONCE, MAX_STEPS, KeptRows, Key
from rollcast.stream.asked import ChainSoFar

__all__ = ["EVERY_RUN", "Key", "LiveRows"]

logger = logging.getLogger("rollcast.serve")

T = StreamEventType

QUEUE_LIMIT = (
    32 << 20
)  # bytes; all chains of a large run may begin and end while the loop has no time for the table
EVERY_RUN = Lane("", "")
MAX_LACKING = 16  # sentences
_LEARNED = ("advantage", "staleness")  # what a training step says of a chain that has ended
_TOKENS_ONLY = {T.LLM_GENERATION_CHUNK.value}


class LiveRows(KeptRows, Intake):
    """The table. Use it in the event loop in which it is called.

    Args:
        masker: of secrets in what comes from outside; None masks nothing.

    Attributes:
        on_lost: called when events of a run were lost, so that `take_lost` names it.
    """

    filter = EventFilter(types=[kind for kind in T if kind is not T.LLM_GENERATION_CHUNK])
    chunk_interest = "never"
    queue_limit_bytes = QUEUE_LIMIT

    def __init__(self, masker: Masker | None = None) -> None:
        KeptRows.__init__(self, masker)
        Intake.__init__(self)
        self._skeleton = Skeleton(live=True, late=True)
        self.on_lost: Callable[[], object] = lambda: None
        self._lost: dict[Lane, int] = {}
        self._lacking: dict[str, None] = {}

    @property
    def name(self) -> str:
        """The observer's name in warnings, errors and statistics."""
        return "WebSocketStreamingServer (rows)"

    # -- what happens --------------------------------------------------------------------------------------------------

    def take(self, event: StreamEvent) -> None:
        """See `Intake.take`."""
        skeleton = self._skeleton
        kind = event.event_type
        if end_status(event) is not None:
            self._lose(event)
        if kind is T.CHAIN_END and (so_far := self.asked_at_the_end(event)) is not None:
            skeleton.catch_up(event.run_id, event.chain_id, so_far)
        try:
            skeleton.feed(event, -1)
        except Exception:  # an event that somebody made by hand costs its row, not those of the others
            logger.exception("a row could not be made of a %s event", event.event_type)
        if kind is T.GAP:
            self._note_lost(event)
        if skeleton.late_rows:
            for ended in skeleton.take_late_rows():
                self._end(ended.key, ended)
        if event.chain_id:
            key = (event.run_id, event.chain_id)
            if skeleton.is_open(*key):
                self._ended.pop(key, None)  # an earlier attempt
                self._touch(key)
        elif skeleton.rows or skeleton.train_rows:
            self._learned()

    def _learned(self) -> None:
        """Take what a training step, or an evaluation, says of itself and of chains that have ended."""
        for learned in self._skeleton.take_rows():
            key = (learned.run_id, learned.chain_id)
            if key in self._ended:
                self._learn(key, learned)
        self._steps += self._skeleton.take_train_rows()
        del self._steps[:-MAX_STEPS]

    def take_answer(self, key: Key, so_far: ChainSoFar) -> bool:
        """See `Intake.take_answer`."""
        if not self._skeleton.catch_up(*key, so_far):
            return False
        self._touch(key)
        return True

    async def make(self) -> None:
        """Ask the chains as `ask` does, and make the rows of open chains that have changed, some at a time."""
        for _ in range(0, self.to_ask, AT_ONCE):
            self.ask(AT_ONCE)
            await asyncio.sleep(0)
        await self.make_rows()

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

    def _lose(self, end: StreamEvent) -> None:
        """A source's part of a run ends, or its end was lost: its chains that are open have lost their ends."""
        for key in self._skeleton.open_chains_of(end):
            self._end(key, self._skeleton.row_so_far(*key) | {"state": "lost"})
        self._skeleton.forget_open(end)

    def open_chains(self) -> list[Key]:
        """The chains that are open."""
        return self._skeleton.open_chains()

    def is_open(self, key: Key) -> bool:
        """Whether this chain is open."""
        return self._skeleton.is_open(*key)

    def _row_so_far(self, key: Key) -> dict[str, Any]:
        return self._skeleton.row_so_far(*key)

    # -- what was lost -------------------------------------------------------------------------------------------------

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
        self._end(key, row)

    def _mend_ended(self, key: Key, row: dict[str, Any]) -> None:
        known = self._ended_row(self._ended[key]) if key in self._ended else None
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

    def lacks(self, sentence: str) -> None:
        """Note that rows are missing, and why."""
        self.complete = False
        if len(self._lacking) < MAX_LACKING:
            self._lacking[sentence] = None

    @property
    def lacking(self) -> list[str]:
        """What rows lack, a sentence each."""
        return list(self._lacking)


def _is_before(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the row is of an earlier attempt. The starts of one attempt may differ a little: a snapshot's is not the event's time."""
    ended, began = row.get("ended_at"), other.get("started_at")
    return ended is not None and began is not None and ended < began
