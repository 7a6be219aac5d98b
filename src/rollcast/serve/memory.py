"""What the server's history still has of chains and runs that are over, for runs that leave no record.

Events are read some at a time, so that the event loop is never held for long.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec

from rollcast.archive.chain_rows import merge_row
from rollcast.archive.skeleton import Skeleton
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.codec import decode_unchecked
from rollcast.records.lanes import Lane
from rollcast.serve.history import Entry, History

__all__ = ["Past", "entries", "past_of"]

T = StreamEventType
LOOKED_AT = 1024  # entries that are looked at before others get their turn
READ = 64  # and those of them that are read


class Past(NamedTuple):
    """What events of the history add up to.

    Attributes:
        rows: merged rows of chains.
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


async def past_of(history: History, lock: threading.RLock, until: int) -> Past:
    """The rows of everything that the history has before a position."""
    skeleton = Skeleton()
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    steps: list[dict[str, Any]] = []
    since: dict[Lane, int] = {}
    read = ended = end = 0
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
            if entry.place.event_type is T.LLM_GENERATION_CHUNK:
                continue
            skeleton.feed(_event_of(entry), -1)
            read += 1
            if read % READ == 0:
                await asyncio.sleep(0)
        for row in skeleton.take_rows():
            known = merged.setdefault((row.run_id, row.chain_id), {})
            merge_row(known, msgspec.to_builtins(row))
        steps += skeleton.take_train_rows()
    is_open = set(skeleton.open_chains())
    told = []
    for key, known in merged.items():
        if known.get("state") == "running" and key not in is_open:  # its run ended without its end
            known["state"] = "lost"
        if "state" in known:
            told.append(known)
    return Past(told, steps, since, whole and end >= until, ended)


def _event_of(entry: Entry) -> StreamEvent:
    return decode_unchecked(entry.data)
