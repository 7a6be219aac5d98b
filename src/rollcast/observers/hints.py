"""An observer that calls a function when a hint appears and when it goes (docs/hints.md)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from rollcast.records import EventFilter, StreamEvent
from rollcast.records.hint_watch import HINT_EVENTS, HintChange, HintWatch
from rollcast.records.view_parts import moment
from rollcast.stream.observer import ChunkInterest, StreamObserver

__all__ = ["HintObserver"]

TICK_S = 1.0


class HintObserver(StreamObserver):
    """Calls a function with each `HintChange`. It watches no tokens, so they cost nothing for it.

    The function is called on a thread of the observer, which it may block.

    Args:
        on_change: the function.
        chain_filter: an `EventFilter`, a chain id or several: the chains in which hints are looked for; None: all.
        by_clock: whether a chain is also called quiet while no event comes at all. False: only by the times of events, as for
            events that come over a network, which may itself be quiet.

    Raises:
        FilterError: `chain_filter` is not one of these.
    """

    threaded = True
    chunk_interest: ChunkInterest = "never"

    def __init__(
        self,
        on_change: Callable[[HintChange], object],
        *,
        chain_filter: EventFilter | str | Iterable[str] | None = None,
        by_clock: bool = True,
    ) -> None:
        self.filter = EventFilter.coerce(chain_filter) & EventFilter(types=HINT_EVENTS)
        self._on_change = on_change
        self._by_clock = by_clock
        self._watch = HintWatch()
        self._clock: Callable[[], float] = time.monotonic
        self._latest: tuple[float, float] | None = None  # an event's timestamp, and when it came
        self._timer: asyncio.TimerHandle | None = None

    async def on_event(self, event: StreamEvent) -> None:
        await self.on_batch([event])

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Take the events, and call the function with what follows from them."""
        changes = [change for event in events for change in self._watch.take(event)]
        at = moment(events[-1].timestamp) if events else None  # an event made by hand may have any time
        if at is not None:
            self._latest = (at, self._clock())
        self._set_timer()
        self._call_with(changes)

    async def on_run_closed(self, run_id: str) -> None:
        """Call the function with what the run ends with, if its `run_end` did not come."""
        self._call_with(self._watch.end_run(run_id))

    async def aclose(self) -> None:
        """Stop looking. The observer may be added again later."""
        self._stop_timer()

    def _call_with(self, changes: list[HintChange]) -> None:
        for change in changes:
            self._on_change(change)

    def _set_timer(self) -> None:
        self._stop_timer()
        if self._by_clock and self._watch.chains:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _tick(self) -> None:
        """Look for hints although no event came."""
        self._timer = None
        if self._latest is None:
            return
        timestamp, came = self._latest
        try:
            self._call_with(self._watch.look(timestamp + max(self._clock() - came, 0.0)))
        except Exception as error:  # noqa: BLE001  (the user's function; in `on_batch` the manager reports it)
            self.report(error)
        self._set_timer()
