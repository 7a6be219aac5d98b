"""Pages of rows as answers give them: a bounded number of rows, each of a bounded size, and what names the page behind. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from rollcast.errors import InputError
from rollcast.records.codec import one_line_json
from rollcast.text import printable_line

__all__ = [
    "PAGE_BYTES",
    "ROW_BYTES",
    "Rows",
    "encoded_row",
    "no_page",
    "page_by_number",
    "page_by_run",
    "take",
]

ROW_BYTES = 64 << 10  # of one row; a larger one leaves out its largest fields, and says so
PAGE_BYTES = 1 << 20  # of one page, unless one row is larger
_NAMES = ("run_id", "chain_id", "row")  # fields that are never left out, only cut
_NAME_CHARS = 256
_SHOWN = 80


class Rows(msgspec.Struct, tag="rows", kw_only=True):
    """Some rows that follow each other.

    Attributes:
        rows: each as JSON on one line.
        total: how many there are in all.
        next: names the page behind these; None if these are the last.
    """

    rows: list[bytes]
    total: int
    next: str | None = None


def encoded_row(row: dict[str, Any], limit: int = ROW_BYTES) -> bytes:
    """The row as JSON on one line. If it has more than `limit` bytes, its largest fields are left out and named in `left_out`."""
    data = one_line_json(msgspec.json.encode(row))
    if len(data) <= limit:
        return data
    kept = {
        name: value[:_NAME_CHARS] if isinstance(value, str) and name in _NAMES else value
        for name, value in row.items()
    }
    sizes = {name: len(msgspec.json.encode(value)) for name, value in kept.items() if name not in _NAMES}
    left_out: list[str] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        del kept[name]
        left_out.append(name[:_NAME_CHARS])
        data = one_line_json(msgspec.json.encode(kept | {"left_out": left_out[:16]}))
        if len(data) <= limit:
            break
    return data


def take(rows: Sequence[dict[str, Any]], limit: int, row_bytes: int) -> list[bytes]:
    """The first rows, encoded: at most `limit`, and no more than make a page."""
    taken: list[bytes] = []
    size = 0
    for row in rows[:limit]:
        data = encoded_row(row, row_bytes)
        size += len(data)
        if taken and size > PAGE_BYTES:
            break
        taken.append(data)
    return taken


def page_by_number(rows: Sequence[dict[str, Any]], after: str | None, limit: int, row_bytes: int) -> Rows:
    """A page of rows that only grow at their end: the page behind is named by how many rows are before it.

    Raises:
        InputError: `after` is not the `next` of a page.
    """
    if after is not None and not (after.isascii() and after.isdecimal() and len(after) < 16):
        raise no_page(after)
    begin = int(after or 0)
    taken = take(rows[begin : begin + limit], limit, row_bytes)
    end = begin + len(taken)
    return Rows(rows=taken, total=len(rows), next=str(end) if end < len(rows) else None)


def page_by_run(rows: Sequence[dict[str, Any]], after: str | None, limit: int, row_bytes: int) -> Rows:
    """A page of rows of runs: the page behind is named by the last run of this one.

    Raises:
        InputError: there is no run `after`.
    """
    begin = 0
    if after is not None:
        begin = next((i for i, row in enumerate(rows, 1) if row["run_id"] == after), 0)
        if not begin:
            raise no_page(after)
    taken = take(rows[begin : begin + limit], limit, row_bytes)
    end = begin + len(taken)
    return Rows(
        rows=taken, total=len(rows), next=rows[end - 1]["run_id"] if taken and end < len(rows) else None
    )


def no_page(after: str) -> InputError:
    """What is said about an `after` that is not the `next` of a page."""
    shown = printable_line(after, _SHOWN)
    return InputError(f"{shown!r} is not the `next` of a page of rows; leave `after` out to begin")
