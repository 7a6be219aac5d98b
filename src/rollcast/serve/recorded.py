"""Where the places of the server's history stand in a record, so that a cursor also names a place in the record. Pure.

    history   … e1 e2 e3 e4 e5 e6 e7 …        positions, in memory
                      │           │
    record    …   r1  │   r2  r3  │ r4 …      positions, on the disk, at most a quarter of a second behind

Server and record are given the same events in the same order, but each merges chunks by itself, so their positions differ. The
record tells whenever it has written a block of events; a **checkpoint** is the place in both after the last event of a block. A
client between two checkpoints is told the one before it: it may get again what came between that and its place, and leaves out
what it has (`returning.py`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, cast

from rollcast.archive.format import types_of
from rollcast.archive.writer import Written
from rollcast.records import EventFilter, StreamEventType
from rollcast.records.lanes import Lane
from rollcast.serve.history import WITHIN, History
from rollcast.serve.ledger import RunLedger
from rollcast.serve.seen import MOST_EVENTS, Seen

__all__ = ["RECORD_ID", "Checkpoint", "Checkpoints", "RecordPlace", "keeps_all_of", "place_named"]

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
MAX_PENDING = 256  # blocks that wait for the history
MAX_KNOWN = 8192  # checkpoints: twenty minutes, and then longer ago with less precision
RECORD_ID = r"[A-Za-z0-9_-]{1,64}"  # a cursor is part of a frame's JSON, and is split at dots
_IN_RECORD = re.compile(
    rf"(?:[0-9a-f]+\.\d{{1,18}}\.)?({RECORD_ID})\.(\d{{1,18}})(?:\.([0-9a-f_-]{{1,512}}))?"
)


class RecordPlace(NamedTuple):
    """A position in a record, and what of the events behind it the client has, if the cursor says so."""

    record_id: str
    position: int
    seen: Seen | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in self if part is not None)


def place_named(cursor: str) -> RecordPlace | None:
    """The place in a record that a cursor names; None if it names none, or belongs to a client without all its snapshots."""
    found = None if cursor.endswith(WITHIN) else _IN_RECORD.fullmatch(cursor)
    if found is None:
        return None
    seen = None if found[3] is None else Seen.read(found[3])
    return None if seen is None and found[3] is not None else RecordPlace(found[1], int(found[2]), seen)


def keeps_all_of(level: str, filter: EventFilter) -> bool:
    """Whether a record of this level has every event that the filter wants."""
    if level in ("auto", "tokens"):
        return True
    kept = types_of(level)
    without = {CHUNK} if kept is None else set(StreamEventType) - set(kept)
    return all(part.types is not None and without.isdisjoint(part.types) for part in filter.alternatives)


class Checkpoint(NamedTuple):
    """A place in both: what stands before `position` in the history stands before `recorded` in the record, and only that."""

    position: int
    recorded: int


class Checkpoints:
    """The checkpoints of one record. Its owner guards them with a lock, the same as the history.

    Args:
        history: the server's history.
        ledger: how far its runs got.

    Attributes:
        latest: the latest one; None before the first.
    """

    def __init__(self, history: History, ledger: RunLedger) -> None:
        self.latest: Checkpoint | None = None
        self._history = history
        self._ledger = ledger
        self._known: list[Checkpoint] = []
        self._pending: deque[Written] = deque()
        self._named: tuple[object, str] = (None, "")  # the latest place that was asked for

    def begin(self) -> None:
        """Note that both begin at the same place."""
        self.latest = Checkpoint(0, 0)
        self._known.append(self.latest)

    def written(self, block: Written) -> None:
        """Take what the record tells."""
        if block.last is None:
            self._known.clear()
            self._pending.clear()
            self.latest = None
            return
        self._pending.append(block)
        if len(self._pending) > MAX_PENDING:
            self._pending.popleft()
        self.advance()

    def advance(self) -> None:
        """Make the checkpoints of the blocks whose last event has come into the history. Call it when events came."""
        pending = self._pending
        while pending:
            block = pending[0]
            last = block.last
            assert last is not None
            run = self._ledger.run(Lane(last.run_id, last.source))
            if run is None or run.last_seq < last.seq:
                return  # it is on its way
            pending.popleft()
            position = self._after(block)
            if position is not None:
                self.latest = Checkpoint(position, block.position)
                self._known.append(self.latest)
                if len(self._known) > MAX_KNOWN:
                    del self._known[
                        1 : MAX_KNOWN // 2 : 2
                    ]  # of what is long past, every second one is enough

    def _after(self, block: Written) -> int | None:
        """The position after the block's last event.

        None if there is no such place: the history dropped it, or merged chunks from before and after it.
        """
        history, last = self._history, block.last
        assert last is not None
        as_of = cast(
            "Mapping[tuple[str, str], int]", block.as_of
        )  # a `Lane` for each entry would take most of the time
        begin = max(history.tail, self.latest.position if self.latest else 0)
        window = history.window(begin, history.head - begin)
        for index in range(len(window) - 1, -1, -1):
            entry = window[index]
            place = entry.place
            if entry.merged_from <= as_of.get((place.run_id, place.source), -1):
                of_last = place.run_id == last.run_id and place.source == last.source
                if of_last and entry.seq == last.seq:
                    return begin + index + 1
                if of_last or entry.seq != entry.merged_from:
                    return None
        return None

    def before(self, position: int) -> Checkpoint | None:
        """The latest checkpoint that is not after this position in the history."""
        index = bisect_right(self._known, (position, 1 << 62))
        return self._known[index - 1] if index else None

    def place_of(self, position: int) -> str:
        """What a cursor for a position in the history says of the record: a place, and what the client has behind it."""
        checkpoint = self.before(position)
        if checkpoint is None:
            return ""
        key = (position, checkpoint)
        if key != self._named[0]:
            seen: Seen | None = None
            if checkpoint.position >= self._history.tail and position - checkpoint.position <= MOST_EVENTS:
                between = self._history.window(checkpoint.position, position - checkpoint.position)
                seen = Seen.of(between, self._history.window(position, MOST_EVENTS))
            self._named = (key, f".{checkpoint.recorded}" + ("" if seen is None else f".{seen}"))
        return self._named[1]

    def position_of(self, recorded: int) -> int:
        """A position in the history before which a client with this place in the record has everything."""
        index = bisect_right(self._known, recorded, key=lambda checkpoint: checkpoint.recorded)
        return self._known[index - 1].position if index else 0
