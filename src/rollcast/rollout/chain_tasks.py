"""The chains of a run that this process takes care of: a task for each, cancelled once, and left behind if it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from functools import partial
from typing import Any

from rollcast.aio import resolve
from rollcast.grace import close_task, grace
from rollcast.records import Trajectory
from rollcast.rollout.agent_value import AgentValue
from rollcast.rollout.chain import ChainGeneration, LatestChain, Prompts
from rollcast.rollout.settings import RunSettings
from rollcast.rollout.workers import ChainOrder
from rollcast.stream import ChainWriter
from rollcast.stream.run import RunWriter

__all__ = ["ChainTasks"]


class ChainTasks:
    """Runs chains of one run, each in a task.

    Args:
        agent: the run's agent.
        stream: the run's writer.
        settings: the run's settings.
    """

    def __init__(self, agent: AgentValue, stream: RunWriter, settings: RunSettings) -> None:
        self._agent = agent
        self._stream = stream
        self._settings = settings
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, ChainGeneration] = {}
        self._asked: set[str] = set()  # chains whose tasks were cancelled
        self._unfinished: set[str] = set()
        self._finished = asyncio.Event()  # all chains are
        self._waiters: dict[str, asyncio.Future[None]] = {}  # for the end of one chain
        self._left: set[str] = set()  # chains that ended, and whose tasks may never
        self._prompts: Prompts = {}
        self._latest = LatestChain()

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Give a chain its task, which does the work. Waiting for the task is `all_done`'s and the caller's business."""
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        self._unfinished.add(name)
        self._finished.clear()
        task.add_done_callback(partial(self._finish, name))
        return task

    def writer(self, agent: AgentValue, order: ChainOrder) -> ChainWriter:
        """The writer of a chain, which has not begun."""
        known = {} if order.row.reference is None else {"reference": order.row.reference}
        return self._stream.chain(
            order.row.messages,
            chain_id=order.chain_id,
            group_id=order.group_id,
            index=order.index,
            tools=list(agent.tools),
            row=order.row.fields,
            seed=order.seed,
            attempt=order.attempt,
            parent_chain_id=order.parent_chain_id,
            **known,
        )

    async def play(self, agent: AgentValue, order: ChainOrder, stream: ChainWriter) -> Trajectory:
        """Run a chain to its end, in the task that it was given.

        Raises:
            asyncio.CancelledError: it was cancelled; it has ended, and its trajectory has what there is.
        """
        grace.set(self._agent.cancel_grace_s)
        chain = ChainGeneration(
            agent, stream, self._settings, order.seed, self._prompts, self._asked, self._latest
        )
        self._running[order.chain_id] = chain
        try:
            return await chain.run()
        finally:
            del self._running[order.chain_id]

    def cancel(self, chain_id: str | None = None) -> None:
        """Cancel one chain, or all."""
        for name, task in self._tasks.items():
            if chain_id in (None, name):
                self._cancel_task(name, task)

    def _cancel_task(self, name: str, task: asyncio.Task[None]) -> None:
        """Cancel the chain's task, only once, since a second time would interrupt its cleanup.

        A backend that keeps running is left behind after the grace period; tools and rewards have their own.
        """
        if task.done() or name in self._asked:
            return
        self._asked.add(name)
        seconds = self._agent.grace_s
        task.get_loop().call_later(seconds, self._leave, name, seconds)
        if not task.cancelling():
            task.cancel()

    def _leave(self, name: str, seconds: float) -> None:
        chain = self._running.get(name)
        if chain is not None and chain.leave(seconds):
            self._left.add(name)
            close_task(self._tasks[name])
            self._finish(name)

    def _finish(self, name: str, _: object = None) -> None:
        self._unfinished.discard(name)
        if (waiter := self._waiters.pop(name, None)) is not None:
            resolve(waiter)
        if not self._unfinished:
            self._finished.set()

    async def ended(self, name: str) -> None:
        """Wait for the end of one chain, and forget it.

        Raises:
            BaseException: what its task raised that is not the chain's own failure.
        """
        if name in self._unfinished:
            self._waiters[name] = asyncio.get_running_loop().create_future()
            await self._waiters[name]
        task = self._tasks.pop(name)
        self._raise_what_was_no_failure_of(name, task)

    async def all_done(self) -> None:
        """Wait for every chain. If the caller is cancelled, end them first and wait for that.

        Raises:
            BaseException: what a task raised that is not its chain's own failure.
        """
        try:
            await self._finished.wait()
        except asyncio.CancelledError:
            self.cancel()
            while self._unfinished:
                with contextlib.suppress(asyncio.CancelledError):
                    await self._finished.wait()
            raise
        for name, task in self._tasks.items():
            self._raise_what_was_no_failure_of(name, task)

    def _raise_what_was_no_failure_of(self, name: str, task: asyncio.Task[None]) -> None:
        if name not in self._left and not task.cancelled() and (error := task.exception()) is not None:
            raise error
