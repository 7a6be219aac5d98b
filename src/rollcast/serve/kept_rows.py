"""The rows that a server keeps of chains: of those that are open, and of those that ended a while ago; and which of them have changed.

Each change gives its row a new version, so that who watches is sent what has changed since the version that it has. A row is made when
somebody asks for it, however often its chain has changed until then.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from rollcast.archive.chain_rows import merge_row
from rollcast.archive.format import ChainRow
from rollcast.archive.pages import ROW_BYTES, encoded_row
from rollcast.records.secrets import Masker

__all__ = ["AT_ONCE", "MAX_ENDED", "MAX_STEPS", "KeptRows", "Key"]

Key = tuple[str, str]  # run_id, chain_id

MAX_ENDED = 4096  # chains, those that ended last
MAX_STEPS = 4096
AT_ONCE = 64  # rows that are made before others get their turn
_FROM_OUTSIDE = frozenset(("reference", "error", "metrics"))  # what may hold secrets; an answer is sampled
_OF_A_RECORD = ("row", "first", "last", "trajectory")  # what only a record can tell


class MakesRow(Protocol):
    """Makes a row when it is wanted."""

    def row(self) -> dict[str, Any]:
        """The row."""
        ...


class _Ended(msgspec.Struct):
    """A chain that has ended.

    Attributes:
        row: its row; None: it was not made yet.
        late: makes it.
        known: what was told of the chain before the table began.
        learned: what came after its end, to complete the row by.
    """

    row: dict[str, Any] | None = None
    late: MakesRow | None = None
    known: dict[str, Any] | None = None
    learned: list[ChainRow] = []


class KeptRows(ABC):
    """The rows. Where what they tell comes from is another matter (`live_rows.py`, `recorded_rows.py`).

    Args:
        masker: of secrets in what comes from outside; None masks nothing.

    Attributes:
        version: rises with each change of a row.
        forgotten: the version of the latest change that is no longer known, since the chain ended long ago.
        complete: whether it has every chain that ended, as far as it is known: none was let go, and none was lost.
        after: the table that took over from this one, and tells what happened since; None if none has.
    """

    def __init__(self, masker: Masker | None = None) -> None:
        self._masker = masker
        self.version = self.forgotten = 0
        self.complete = True
        self.after: Any = None
        self._known: dict[Key, dict[str, Any]] = {}  # what was told of open chains before the table began
        self._made: dict[Key, dict[str, Any]] = {}  # rows of open chains that have not changed since
        self._encoded: dict[Key, bytes] = {}  # rows that somebody was sent and that have not changed since
        self._ended: OrderedDict[Key, _Ended] = OrderedDict()
        self._changed: OrderedDict[Key, int] = OrderedDict()  # the version of each row's latest change
        self._steps: list[dict[str, Any]] = []

    # -- what changes ----------------------------------------------------------------------------------------------------

    def _end(self, key: Key, row: dict[str, Any] | MakesRow) -> None:
        """The chain has ended, and this is its row."""
        known = self._known.pop(key, None)
        if isinstance(row, dict):
            self._ended[key] = _Ended(self._told(row if known is None else known | row))
        else:
            self._ended[key] = _Ended(late=row, known=known)
        self._touch(key)
        while len(self._ended) > MAX_ENDED:
            oldest, _ = self._ended.popitem(last=False)
            self.forgotten = max(self.forgotten, self._changed.pop(oldest, 0))
            self._encoded.pop(oldest, None)
            self.complete = False

    def _learn(self, key: Key, row: ChainRow) -> None:
        """Complete the row of a chain that has ended."""
        ended = self._ended[key]
        if ended.row is None:
            ended.learned.append(row)
        else:
            merge_row(ended.row, msgspec.to_builtins(row))
        self._touch(key)

    def take_over(self, before: KeptRows, ended: Iterable[Key]) -> None:
        """Watchers of an earlier table go on with this one: mark what changed between the two.

        Args:
            before: the earlier table.
            ended: chains that were open there and have ended. If nothing tells how, they are lost.
        """
        for key in [key for key in self._ended if key not in before._ended and key not in self._changed]:
            self._touch(key)
        for key in ended:
            if self.is_open(key) or key in self._ended:
                continue
            known = before._ended.get(key)
            if known is not None:
                self._end(key, before._ended_row(known))
            elif before.is_open(key):
                self._end(key, before._open_row(key) | {"state": "lost"})
        before.after = self

    def _touch(self, key: Key) -> None:
        self.version += 1
        self._made.pop(key, None)
        self._encoded.pop(key, None)
        self._changed[key] = self.version
        self._changed.move_to_end(key)

    def fill(self, rows: Iterable[dict[str, Any]], *, ended: bool) -> None:
        """Take rows of chains that began before the table did: what they tell of chains that are open here.

        Args:
            rows: merged rows, as in a record.
            ended: whether chains that have ended are to be kept too.
        """
        is_open = set(self.open_chains())
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
            self._ended[key] = _Ended(row)
            self._ended.move_to_end(key, last=False)

    def fill_steps(self, rows: list[dict[str, Any]]) -> None:
        """Take the rows of training steps from before the table began."""
        known = {_place_of(row) for row in self._steps}
        self._steps[:0] = [row for row in rows if _place_of(row) not in known]
        del self._steps[:-MAX_STEPS]

    # -- what it tells -------------------------------------------------------------------------------------------------

    @abstractmethod
    def open_chains(self) -> list[Key]:
        """The chains that are open."""

    @abstractmethod
    def is_open(self, key: Key) -> bool:
        """Whether this chain is open."""

    @abstractmethod
    def _row_so_far(self, key: Key) -> dict[str, Any]:
        """What the row of an open chain tells now."""

    async def make_rows(self) -> None:
        """Make the rows of open chains that have changed, some at a time."""
        for number, key in enumerate(self.open_chains()):
            if key not in self._made and self.is_open(key):  # it may have ended while others had their turn
                self._open_row(key)
                if number % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)

    def open_rows(self) -> list[dict[str, Any]]:
        """A row for each open chain."""
        return [self._open_row(key) for key in self.open_chains()]

    def ended_rows(self) -> list[dict[str, Any]]:
        """A row for each chain that ended and is still known."""
        return [self._ended_row(ended) for ended in self._ended.values()]

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
        rows = []
        for key in reversed(keys):
            if self.is_open(key):
                rows.append(self._open_row(key))
            elif (ended := self._ended.get(key)) is not None:
                rows.append(self._ended_row(ended))
        return rows

    def encoded(self, row: dict[str, Any], limit: int) -> bytes:
        """A row of this table as JSON, made once for all who watch; see `pages.encoded_row`."""
        key = (row["run_id"], row["chain_id"])
        ended = self._ended.get(key)
        is_latest = row is self._made.get(key) or (ended is not None and row is ended.row)
        if limit != ROW_BYTES or not is_latest:
            return encoded_row(row, limit)
        data = self._encoded.get(key)
        if data is None:
            data = self._encoded[key] = encoded_row(row)
        return data

    def _open_row(self, key: Key) -> dict[str, Any]:
        row = self._made.get(key)
        if row is None:
            row = self._made[key] = self._told(self._known.get(key, {}) | self._row_so_far(key))
        return row

    def _ended_row(self, ended: _Ended) -> dict[str, Any]:
        row = ended.row
        if row is None:
            assert ended.late is not None
            row = ended.late.row()
            row = ended.row = self._told(row if ended.known is None else ended.known | row)
            for learned in ended.learned:
                merge_row(row, msgspec.to_builtins(learned))
            ended.late, ended.known, ended.learned = None, None, []
        return row

    def _told(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as clients may see it."""
        told = dict(row)
        for name in _OF_A_RECORD:
            told.pop(name, None)
        if self._masker is not None:
            for name in _FROM_OUTSIDE & told.keys():
                told[name] = self._masker.value(told[name])
        return told


def _place_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row.get("row"), row.get("run_id"), row.get("train_step"), row.get("timestamp"))
