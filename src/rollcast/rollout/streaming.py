"""A run as a stream of events: `async with agent.run_async_streaming(…) as stream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Self

from rollcast.aio import wait_uncancelled
from rollcast.errors import InputError
from rollcast.observers import AsyncGeneratorStreamObserver
from rollcast.records import EventFilter, StreamEvent
from rollcast.records.filter import Names
from rollcast.rollout.result import RunResult
from rollcast.rollout.run import Run
from rollcast.stream.delivery import ensure_not_in_own_hook

__all__ = ["StreamingRun"]


class StreamingRun:
    """A run that begins when it is entered or iterated, and whose events are its items.

    Leaving the block, or the loop, before the run has ended cancels it: every chain is closed properly, and `result` keeps
    the partial trajectories.

    Attributes:
        run_id: as the events carry it.
    """

    def __init__(self, run: Run, wanted: EventFilter | Names = None) -> None:
        self.run_id = run.run_id
        self._run = run
        self._observer = AsyncGeneratorStreamObserver(
            EventFilter.coerce(wanted) & EventFilter(runs=run.run_id)
        )
        self._task: asyncio.Task[RunResult] | None = None
        self._entered = False
        self._being_read = False
        self._read_to_the_end = False

    @property
    def result(self) -> RunResult:
        """The trajectories: whole when the run has ended, what there is of them before."""
        return self._run.result

    def cancel(self, chain_id: str | None = None) -> None:
        """End one chain, or the whole run, properly; its events still come."""
        self._run.cancel(chain_id)

    async def wait(self) -> RunResult:
        """Wait for the run's end, whoever reads its events."""
        return await asyncio.shield(self._start())

    async def __aenter__(self) -> Self:
        self._entered = True
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._finish()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        if self._read_to_the_end:
            return
        if self._being_read:
            raise InputError(
                "the events of this run are being read already; give each reader an observer of its own"
            )
        self._start()
        self._being_read = True
        try:
            async for event in self._observer.events():
                yield event
            self._read_to_the_end = True
        finally:
            self._being_read = False
            if not self._entered:
                await self._finish()

    def _start(self) -> asyncio.Task[RunResult]:
        if self._task is None:
            manager = self._run.agent.streaming_manager
            ensure_not_in_own_hook("a run with streaming", manager.fanout.deliveries)
            manager.add_observer(self._observer)
            self._task = asyncio.create_task(self._run.execute(), name=f"rollcast-run-{self.run_id}")
            self._task.add_done_callback(self._leave)  # it keeps what it got, for who reads later
        return self._task

    async def _finish(self) -> None:
        """Wait for the run, which is cancelled where it was left before its events ended. Raises what the run raised."""
        task = self._start()
        if not self._read_to_the_end and not task.done():
            self._run.cancel()
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():  # the caller is cancelled, and the run with it
                task.cancel()
                await wait_uncancelled([task])
            raise
        finally:
            self._leave()

    def _leave(self, *_: object) -> None:
        self._run.agent.streaming_manager.remove_observer(self._observer)
