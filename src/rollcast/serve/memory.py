"""What the server's history still has of chains and runs that are over, for runs that leave no record.

Adding up tens of thousands of events would slow the run, so the process that reads records does it: the server only hands it the lines
that it has, some at a time. A few events are added up here, since starting a process takes longer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec

from rollcast.archive.past_rows import PastRows
from rollcast.archive.readings import PastWanted
from rollcast.archive.record_process import RecordProcess
from rollcast.errors import ArchiveError
from rollcast.records import StreamEventType
from rollcast.records.lanes import Lane
from rollcast.serve.history import Entry, History
from rollcast.serve.kept_rows import MAX_ENDED

__all__ = ["Past", "entries", "past_of"]

logger = logging.getLogger("rollcast.serve")

T = StreamEventType
LOOKED_AT = 1024  # entries that are looked at before others get their turn
FEW_BYTES = 128 << 10  # of lines that are added up here
PORTION_BYTES = 256 << 10  # of lines that are handed over at once
DECODED = 64  # rows that are decoded before others get their turn


class Past(NamedTuple):
    """What events of the history add up to.

    Attributes:
        rows: merged rows of chains; of those that are over only as many as a table keeps, the latest.
        steps: rows of training steps and evaluations.
        since: by run and source, the `seq` from which on the history has all its events: 0 if it has the whole run.
        whole: whether it has each run whole, and has let go of nothing.
        ended: how many runs ended in it.
    """

    rows: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    since: dict[Lane, int]
    whole: bool
    ended: int


async def entries(
    history: History, lock: threading.RLock, position: int, until: int
) -> AsyncIterator[tuple[int, list[Entry]]]:
    """The entries from a position on, in portions, each with the position of its first; a portion that is gone is left out."""
    while position < until:
        with lock:
            position = max(position, history.tail)
            window = history.window(position, min(LOOKED_AT, max(until - position, 0)))
        if not window:
            return
        yield position, window
        position += len(window)
        await asyncio.sleep(0)


async def past_of(history: History, lock: threading.RLock, until: int, records: RecordProcess) -> Past:
    """The rows of everything that the history has before a position.

    Args:
        history: the history.
        lock: guards it.
        until: the position.
        records: the process that adds the events up. If it cannot, this one does, with a warning.
    """
    lines: list[bytes] = []
    since: dict[Lane, int] = {}
    ended = end = 0
    whole = True
    async for position, window in entries(history, lock, 0, until):
        whole, end = whole and position == end, position + len(window)
        for entry in window:
            kind, lane = entry.place.event_type, entry.place.lane
            if lane.run_id and lane not in since:
                since[lane] = 0 if kind is T.RUN_START else entry.from_seq
                whole = whole and kind is T.RUN_START
            if kind is T.GAP:
                since[lane] = entry.seq + 1
                whole = False
            ended += kind is T.RUN_END
            if kind is not T.LLM_GENERATION_CHUNK:
                lines.append(entry.data)
    rows, steps = await _rows_of(lines, records)
    return Past(rows, steps, since, whole and end >= until, ended)


async def _rows_of(
    lines: list[bytes], records: RecordProcess
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if sum(map(len, lines)) > FEW_BYTES:
        try:
            return await _added_up_elsewhere(lines, records)
        except ArchiveError as error:
            logger.warning("%s; the event loop adds up what the server's memory has", error)
    return await _added_up(lines)


async def _added_up_elsewhere(
    lines: list[bytes], records: RecordProcess
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of chains and of steps, from the process that reads records."""
    rows: dict[str, list[dict[str, Any]]] = {"chains": [], "steps": []}
    name, begin, number = secrets.token_hex(8), 0, 0
    while begin < len(lines):
        end, size = begin, 0
        while end < len(lines) and size < PORTION_BYTES:
            size += len(lines[end])
            end += 1
        portion = PastWanted(
            name=name, number=number, lines=lines[begin:end], last=end == len(lines), most=MAX_ENDED
        )
        begin, number = end, number + 1
        async with records.past(portion) as pages:
            async for page in pages:
                for count, row in enumerate(page.rows, 1):
                    rows[page.next or "chains"].append(msgspec.json.decode(row))
                    if count % DECODED == 0:
                        await asyncio.sleep(0)
    return rows["chains"], rows["steps"]


async def _added_up(lines: list[bytes]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same, in the event loop."""
    past = PastRows()
    for _ in past.feed(lines):
        await asyncio.sleep(0)
    return past.rows(MAX_ENDED), past.steps
