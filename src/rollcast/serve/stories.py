"""The story of one chain from memory: a snapshot if it is open, or the events that the history still has of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from rollcast.aio import follower
from rollcast.errors import ArchiveError, InputError
from rollcast.records import EventFilter, StreamEventType
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.history import Selector
from rollcast.serve.memory import entries
from rollcast.serve.opening import Opening
from rollcast.serve.record import LATE_S
from rollcast.text import printable_line

__all__ = ["LiveStory", "NotThereError", "Told", "live_story", "remembered_story"]

T = StreamEventType
TRIES = 5
WINDOW_EVENTS = 256
_SHOWN = 100
LOST = "the server fell behind this run, and events of it never reached its memory: some of this chain may be missing"
LET_GO = "the memory of the server has let go of some events while they were read"
BEGINNING_GONE = "the beginning of this chain is no longer in the memory of the server"


class NotThereError(InputError):
    """There is no such chain, as far as the server knows."""


class LiveStory(NamedTuple):
    """The story of an open chain.

    Attributes:
        parts: encoded events: a snapshot, and what came while it was made.
        cursor: the place in the live stream behind them; None if the server has no history.
    """

    parts: list[list[bytes]]
    cursor: str | None


class Told:
    """What is known of a story from the history once it was given.

    Attributes:
        cursor: the place behind the last event.
        next: the same, if a limit ended the story.
        missing: what it lacks, a sentence each.
    """

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.next: str | None = None
        self.missing: list[str] = []


async def live_story(
    broadcaster: Broadcaster, chain_id: str, run_id: str | None, room: int
) -> LiveStory | None:
    """The story of an open chain, of the last run that has one open if `run_id` is None; None if it is not open.

    Args:
        broadcaster: of the server.
        chain_id: which chain.
        run_id: of which run.
        room: the most bytes of a part.

    Raises:
        ArchiveError: the server lags too far behind its runs.
    """
    manager = broadcaster.observer.manager
    if manager is None:
        return None
    with manager.lock:
        having = [name for name, run in manager.fanout.runs.items() if run.has_chain(chain_id)]
    found = having[-1:] if run_id is None else [name for name in having if name == run_id]
    if not found:
        return None
    selector = Selector(EventFilter(runs=found[0], chains=chain_id))
    for _ in range(TRIES):
        opening = await _opening(broadcaster, manager, selector)
        if opening is None:
            return None
        if opening.position is not None:
            parts, index = [], 0
            while index < len(opening):
                part = await asyncio.to_thread(opening.part, index, room)
                parts.append(part.events)
                index = part.next
            cursor = broadcaster.history.cursor(opening.position) if broadcaster.keeps else None
            return LiveStory(parts, cursor)
    raise ArchiveError("the server is too far behind its runs to tell of an open chain; ask again")


async def _opening(broadcaster: Broadcaster, manager: Any, selector: Selector) -> Opening | None:
    """The chain's snapshot, joined with what came since if its `position` is not None. None if the chain is not open."""
    history = broadcaster.history
    with manager.lock, broadcaster.lock:
        opening = Opening(selector, None, history.head, history.total, history.masker)
        delivery = manager.delivery_of(broadcaster.observer)
        cut = manager.fanout.cut(selector.filter, reader=delivery)
    if not cut.snapshots:
        return None
    opening.renew(cut.snapshots, cut.as_of)
    if not broadcaster.keeps:  # the history has only what some client wants
        opening.arrive([])
        return opening
    if cut.arrived is not None:
        try:
            async with asyncio.timeout(LATE_S):
                await asyncio.wrap_future(follower(cut.arrived))
        except TimeoutError:
            return opening
    with broadcaster.lock:
        if opening.start >= history.tail:
            opening.arrive(history.window(opening.start, history.head - opening.start))
    return opening


async def remembered_story(
    broadcaster: Broadcaster, chain_id: str, run_id: str | None, after: str | None, limit: int, told: Told
) -> AsyncIterator[list[bytes]]:
    """The events that the history has of a chain, of the last run that has one if `run_id` is None, in windows.

    Args:
        broadcaster: of the server.
        chain_id: which chain.
        run_id: of which run.
        after: the place from which to go on; None: from the first event on.
        limit: the most events.
        told: what is known when all windows have come.

    Raises:
        NotThereError: the history has no event of such a chain.
        InputError: the place is gone.
    """
    history, lock = broadcaster.history, broadcaster.lock
    with lock:
        begin = history.tail if after is None else history.position(after)
        until = history.head
    if begin is None:
        shown = printable_line(after or "", _SHOWN)
        raise InputError(f"{shown!r} is a place that the server no longer has; leave `after` out to begin")
    if run_id is None:
        async for _, window in entries(history, lock, begin, until):
            run_id = next((e.place.run_id for e in reversed(window) if e.place.chain_id == chain_id), run_id)
    events: list[bytes] = []
    given, end, first = 0, begin, after is None
    async for position, window in entries(history, lock, begin, until):
        if position > end:
            told.missing.append(LET_GO)
        end = position + len(window)
        for number, entry in enumerate(window, position):
            if given and entry.place.event_type is T.GAP and entry.place.run_id == run_id:
                told.missing.append(LOST)
            if entry.place.chain_id != chain_id or entry.place.run_id != run_id:
                continue
            if first and entry.place.event_type is not T.CHAIN_START:
                told.missing.append(BEGINNING_GONE)
            first = False
            events.append(entry.data)
            given += 1
            if given == limit:
                end = number + 1
                break
            if len(events) >= WINDOW_EVENTS:
                yield events
                events = []
        if given == limit:
            break
    if not given and after is None:
        of_run = f" of run {printable_line(run_id, _SHOWN)}" if run_id else ""
        raise NotThereError(f"there is no chain {printable_line(chain_id, _SHOWN)!r}{of_run}")
    if events:
        yield events
    told.cursor = history.cursor(end)
    told.next = told.cursor if given == limit and end < until else None
