"""Rows of chains, the same from a record and from what is in memory: which are wanted, their order, and pages of them. Pure.

A row is a line of `chains.jsonl` (`format.ChainRow`) after those of the same chain were merged. A page is named by the row before
it (`after`), not by a number, so rows that come meanwhile move no other row to another page.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from rollcast.archive.pages import PAGE_BYTES, ROW_BYTES, Rows, encoded_row
from rollcast.errors import InputError
from rollcast.text import printable_line

__all__ = [
    "DEFAULT_SORT",
    "FIELDS",
    "ChainQuery",
    "Page",
    "PlacedRow",
    "RowOrder",
    "check_query",
    "fits",
    "merge_row",
    "merged_page",
    "page_of",
]

# The fields by which rows can be chosen and sorted: numbers, short texts and truth values.
FIELDS = frozenset(
    (
        "run_id", "chain_id", "group_id", "source", "index", "state", "activity", "train_step", "split", "prompt_hash",
        "seed", "attempt", "parent_chain_id", "policy_first", "policy_last", "model", "session", "started_at", "ended_at", "last_event_at",
        "duration_s", "finish_reason", "reward", "advantage", "staleness", "steps", "completion_tokens", "calls",
        "calls_failed", "truncated",
    )
)  # fmt: skip
DEFAULT_SORT = "started_at"
MAX_KEY = 256  # characters of a text that count when rows are sorted
_SHOWN = 80
_LARGEST = (1 << 63) - 1  # an integer beyond it cannot be sent by the process that reads records
_HUGE = 10**300  # all integers beyond it are equal when rows are sorted

Scalar = str | int | float | bool | None


class ChainQuery(msgspec.Struct, kw_only=True):
    """Which rows, in which order.

    Attributes:
        run: only chains of this run; None: of all.
        where: by field, the values that a row may have there; all fields have to fit.
        sort: the field by which they are sorted; with `-` before it, the highest first. Rows without it come last.
        after: `Page.next` of the page before; None: from the first row on.
        limit: how many rows to give.
        row_bytes: the most bytes of a row.
        without: chains, as (`run_id`, `chain_id`), that are left out.
    """

    run: str | None = None
    where: dict[str, list[Scalar]] = {}
    sort: str = DEFAULT_SORT
    after: str | None = None
    limit: int = 100
    row_bytes: int = ROW_BYTES
    without: list[tuple[str, str]] = []


class RowOrder(msgspec.Struct, array_like=True, frozen=True):
    """Where a row stands among the others, for one `sort`.

    Attributes:
        absent: 1 if the row lacks the field: such rows come last.
        value: of the field: a number, or the beginning of a text.
        run_id, length, chain_id: tell rows with equal values apart; `length` puts `chain_2` before `chain_10`.
    """

    absent: int
    value: float | int | str
    run_id: str
    length: int
    chain_id: str

    def key(self, *, descending: bool) -> tuple[Any, ...]:
        """What sorts."""
        value: Any = self.value
        text = isinstance(value, str)
        if descending:
            value = _Descending(value) if text else -value
        return (self.absent, text, value, self.run_id, self.length, self.chain_id)


class _Descending(str):
    """A text that sorts the other way round."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)

    def __gt__(self, other: str) -> bool:
        return str.__lt__(self, other)

    def __le__(self, other: str) -> bool:
        return str.__ge__(self, other)

    def __ge__(self, other: str) -> bool:
        return str.__le__(self, other)


class PlacedRow(msgspec.Struct, array_like=True, frozen=True):
    """A row as JSON on one line, and where it stands."""

    order: RowOrder
    data: bytes


class Page(msgspec.Struct, tag="page", kw_only=True):
    """Some rows.

    Attributes:
        rows: in order.
        total: how many rows fit in all, on every page.
        more: whether rows follow.
    """

    rows: list[PlacedRow]
    total: int
    more: bool


def check_query(query: ChainQuery) -> None:
    """Make sure that the query names fields that there are.

    Raises:
        InputError: a field does not exist, or `after` does not come from an earlier page.
    """
    for name in (query.sort.removeprefix("-"), *query.where):
        if name not in FIELDS:
            known = ", ".join(sorted(FIELDS))
            raise InputError(
                f"rows of chains cannot be chosen or sorted by {printable_line(name, _SHOWN)!r}; the fields are {known}"
            )
    for name, values in query.where.items():
        for value in values:
            if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
                raise InputError(
                    f"{name} cannot be chosen by a number of {value.bit_length()} bits; expected at most 63"
                )
    if query.after is not None:
        _order_named(query.after)


def page_of(
    rows: Iterable[dict[str, Any]],
    query: ChainQuery,
    encode: Callable[[dict[str, Any], int], bytes] = encoded_row,
) -> Page:
    """The page that the query asks for.

    Args:
        rows: to choose from.
        query: which, and in which order.
        encode: makes JSON of a row, of at most so many bytes; one that remembers what it made saves making it again.

    Raises:
        InputError: as `check_query`.
    """
    check_query(query)
    name, descending = query.sort.removeprefix("-"), query.sort.startswith("-")
    without = set(query.without)
    wanted = []
    for row in rows:
        if fits(row, query) and (row["run_id"], row["chain_id"]) not in without:
            order = _order_of(row, name)
            wanted.append((order.key(descending=descending), order, row))
    rest = wanted
    if query.after is not None:
        after = _order_named(query.after).key(descending=descending)
        rest = [each for each in wanted if each[0] > after]
    page: list[PlacedRow] = []
    size = 0
    for _, order, row in heapq.nsmallest(query.limit, rest, key=lambda each: each[0]):
        data = encode(row, query.row_bytes)
        size += len(data)
        if page and size > PAGE_BYTES:
            break
        page.append(PlacedRow(order, data))
    return Page(rows=page, total=len(wanted), more=len(rest) > len(page))


def merged_page(pages: Iterable[Page], query: ChainQuery) -> Rows:
    """One page of pages that answer the same query about different chains."""
    descending = query.sort.startswith("-")
    pages = list(pages)

    def key(row: PlacedRow) -> tuple[Any, ...]:
        return row.order.key(descending=descending)

    # Behind the last row of a page that was cut, rows of it are missing.
    end = min((key(page.rows[-1]) for page in pages if page.more and page.rows), default=None)
    rows = sorted((row for page in pages for row in page.rows if end is None or key(row) <= end), key=key)
    taken = rows[: query.limit]
    more = len(rows) > len(taken) or end is not None
    return Rows(
        rows=[row.data for row in taken],
        total=sum(page.total for page in pages),
        next=_named(taken[-1].order) if more and taken else None,
    )


def _named(order: RowOrder) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(order)).decode().rstrip("=")


def fits(row: dict[str, Any], query: ChainQuery) -> bool:
    """Whether the row is among those that the query wants."""
    if query.run is not None and row.get("run_id") != query.run:
        return False
    return all(_is_among(row.get(name), values) for name, values in query.where.items())


def merge_row(known: dict[str, Any], row: dict[str, Any]) -> None:
    """Complete a chain's row by a later one. Which training step learned from a chain does not say whose rollout it is of."""
    step = known.get("train_step")
    known.update(row)
    if row.get("row") == "trained" and step is not None:
        known["train_step"] = step


def _is_among(value: Any, values: list[Scalar]) -> bool:
    # True is no 1 here, as in JSON.
    return any(value == each and isinstance(value, bool) is isinstance(each, bool) for each in values)


def _order_of(row: dict[str, Any], name: str) -> RowOrder:
    value = row.get(name)
    if isinstance(value, str):
        value = value[:MAX_KEY]
    elif isinstance(value, bool):
        value = int(value)
    elif isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        value = float(min(max(value, -_HUGE), _HUGE))
    elif not isinstance(value, int | float):
        value = None
    run_id, chain_id = row["run_id"], row["chain_id"]
    return RowOrder(
        int(value is None),
        0 if value is None else value,
        run_id[:MAX_KEY],
        len(chain_id),
        chain_id[:MAX_KEY],
    )


def _order_named(after: str) -> RowOrder:
    try:
        data = base64.urlsafe_b64decode(after + "=" * (-len(after) % 4))
        return msgspec.json.decode(data, type=RowOrder)
    except (ValueError, msgspec.DecodeError):
        shown = printable_line(after, _SHOWN)
        raise InputError(
            f"{shown!r} is not the `next` of a page of rows; leave `after` out to begin"
        ) from None
