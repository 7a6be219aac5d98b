"""Gives recorded events to observers as fast as they take them, on one thread and without queues.

A manager is for producers that must not wait, and for observers that come, go and fall behind. None of that happens when a recording
is shown as fast as possible: its reader has nothing else to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.lanes import RunSources
from rollcast.stream.observer import StreamObserver, overrides_on_batch
from rollcast.stream.relay import RUNS_LIMIT

__all__ = ["Playback"]

T = StreamEventType
BATCH = 256  # events that an observer is given at once
EVERYTHING = EventFilter()


class Playback:
    """Gives each event to the observers that want it, with the hooks of runs and chains where `StreamingManager.relay` calls them.

    An exception of an observer ends the playback. Filters must not change during it.

    Args:
        observers: they get the events, each in the order of this list.
    """

    def __init__(self, observers: Sequence[StreamObserver]) -> None:
        self._readers = [_Reader(observer) for observer in observers]
        self._runs: dict[str, _Run] = {}

    async def play(self, events: Iterable[StreamEvent], check: Callable[[], object]) -> None:
        """Give all events to the observers, and close them; also if the playback is cancelled, or an observer raises.

        Args:
            events: oldest first.
            check: called every few hundred events and at the end; what it raises ends the playback.
        """
        try:
            for number, event in enumerate(events):
                await self._pass_on(event)
                if number % BATCH == 0:
                    check()
                    await asyncio.sleep(0)  # lets timers of observers run
            for run_id in list(self._runs):
                await self._close(run_id)
        finally:
            await self._close_readers(self._readers)
        check()

    async def _close_readers(self, readers: Sequence[_Reader]) -> None:
        """Close all of them, also if one raises."""
        if readers:
            try:
                await readers[0].close()
            finally:
                await self._close_readers(readers[1:])

    async def _pass_on(self, event: StreamEvent) -> None:
        run_id, kind = event.run_id, event.event_type
        run = self._runs.get(run_id)
        if run is None and run_id:
            run = await self._open(run_id)
        for reader in self._readers:
            if reader.wants(event):
                reader.events.append(event)
                if len(reader.events) >= BATCH:
                    await reader.hand_over()
        if run is None:
            return
        if event.chain_id and kind is not T.RUN_START:
            run.chains[event.chain_id] = event.source
        ended = run.sources.note(event)
        if kind is T.CHAIN_END:
            run.chains.pop(event.chain_id, None)
            await self._close_chain(run_id, event.chain_id)
        elif ended and run.sources.over:
            await self._close(run_id)
        elif ended:
            for chain_id in [name for name, source in run.chains.items() if source in ended]:
                del run.chains[chain_id]
                await self._close_chain(run_id, chain_id)

    async def _open(self, run_id: str) -> _Run:
        if len(self._runs) >= RUNS_LIMIT:
            await self._close(next(iter(self._runs)))
        run = self._runs[run_id] = _Run({}, RunSources())
        for reader in self._readers:
            await reader.call(reader.observer.on_run_opened, run_id)
        return run

    async def _close_chain(self, run_id: str, chain_id: str) -> None:
        for reader in self._readers:
            if reader.follows_chains:
                await reader.call(reader.observer.on_chain_closed, run_id, chain_id)

    async def _close(self, run_id: str) -> None:
        for chain_id in self._runs.pop(run_id).chains:
            await self._close_chain(run_id, chain_id)
        for reader in self._readers:
            await reader.call(reader.observer.on_run_closed, run_id)


class _Run(NamedTuple):
    """An open run: its open chains, each with its source, and its sources."""

    chains: dict[str, str]
    sources: RunSources


class _Reader:
    """One observer, and the events that it is given next."""

    def __init__(self, observer: StreamObserver) -> None:
        self.observer = observer
        self.events: list[StreamEvent] = []
        self.follows_chains = type(observer).on_chain_closed is not StreamObserver.on_chain_closed
        self._filter = None if observer.filter == EVERYTHING else observer.filter
        self._batched = overrides_on_batch(observer)

    def wants(self, event: StreamEvent) -> bool:
        """Whether the observer is given the event."""
        wanted = self._filter
        if wanted is None:
            return True
        if event.event_type is T.GAP:  # it may stand for any missing event of its run
            return wanted.wants_gap(event.run_id, event.source)
        return wanted.matches(event)

    async def hand_over(self) -> None:
        """Deliver the waiting events."""
        events, self.events = self.events, []
        if self._batched:
            await self.observer.on_batch(events)
        else:
            for event in events:
                await self.observer.on_event(event)

    async def call(self, hook: Callable[..., Awaitable[None]], *names: str) -> None:
        """Deliver the waiting events, and then call a hook."""
        if self.events:
            await self.hand_over()
        await hook(*names)

    async def close(self) -> None:
        """Deliver the waiting events, and close the observer."""
        try:
            if self.events:
                await self.hand_over()
        finally:
            await self.observer.aclose()
