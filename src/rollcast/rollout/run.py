"""One run: many chains at once, from rows to a result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from rollcast.aio import call_in
from rollcast.errors import InputError
from rollcast.grace import close_task, grace
from rollcast.observers import CallbackStreamObserver
from rollcast.records import EventFilter, Trajectory
from rollcast.records.event import RunStatus
from rollcast.rollout.agent_value import AgentValue
from rollcast.rollout.chain import ChainGeneration, LatestChain, Prompts
from rollcast.rollout.recording import RunRecording
from rollcast.rollout.result import RunResult
from rollcast.rollout.rows import PromptRow, derived_seed
from rollcast.rollout.settings import RunSettings
from rollcast.rollout.watchdog import watchdog
from rollcast.stream import ChainWriter, current_chain
from rollcast.stream.delivery import ensure_not_in_own_hook

__all__ = ["Run", "RunSettings"]

logger = logging.getLogger("rollcast.rollout")


class Run:
    """A run that can be cancelled, as a whole or by chain. A run's state is kept here, never on the agent.

    Args:
        agent: the agent.
        rows: the checked rows.
        settings: the checked settings.
        agents: for each row, the agent with the tools that the row names; None: the agent itself.

    Attributes:
        run_id: the id in its events.
        result: filled while the run goes on; after a cancellation it has partial trajectories.
        recording: records it; None: it is not recorded.
    """

    def __init__(
        self,
        agent: AgentValue,
        rows: list[PromptRow],
        settings: RunSettings,
        agents: Sequence[AgentValue] | None = None,
    ) -> None:
        self.agent = agent
        self._agents = [agent] * len(rows) if agents is None else agents
        self.rows = rows
        self.settings = settings
        backend = agent.backend
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self.stream = agent.streaming_manager.run(
            live=settings.streaming,
            chains=len(rows) * settings.num_chains,
            groups=len(rows),
            agent=agent.name,
            model=backend.model_name,
            backend=backend.name,
            policy_version=backend.policy_version,
            seed=seed,
            sampling=settings.sampling_data,
            settings=settings.data | ({} if agent.reward is None else {"reward": agent.reward.name}),
            tools=agent.tool_schemas,
            **settings.about,
        )
        self.run_id = self.stream.run_id
        self.result = RunResult(self.run_id, seed)
        self.recording: RunRecording | None = None
        self._slots = asyncio.Semaphore(settings.max_concurrent_chains or len(rows) * settings.num_chains)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, ChainGeneration] = {}
        self._asked: set[str] = set()  # chains whose tasks were cancelled
        self._unfinished: set[str] = set()
        self._finished = asyncio.Event()  # all chains are
        self._left: set[str] = set()  # chains that ended, and whose tasks may never
        self._prompts: Prompts = {}
        self._latest = LatestChain()
        self._cancelled = False
        self._cancelled_chains: set[str] = set()
        self._parent_chain_id: str | None = None

    @property
    def described(self) -> dict[str, Any]:
        """How it goes, as `run.json` of a record says."""
        settings, backend = self.settings, self.agent.backend
        about = {
            "agent": self.agent.name,
            "model": backend.model_name,
            "backend": backend.name,
            "max_steps": settings.max_steps,
            "num_chains": settings.num_chains,
            "max_concurrent_chains": settings.max_concurrent_chains,
            "sampling": settings.sampling_data,
        }
        return {"settings": about, "seed": self.result.seed}

    def cancel(self, chain_id: str | None = None) -> None:
        """Cancel one chain, or the whole run: everything open is closed, and the result keeps what there is."""
        if chain_id is None:
            self._cancelled = True
        else:
            self._cancelled_chains.add(chain_id)
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
        seconds = self.agent.grace_s
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
        if not self._unfinished:
            self._finished.set()

    def _cancel_in(self, loop: asyncio.AbstractEventLoop, chain_id: str | None) -> None:
        """Cancel from any thread.

        Raises:
            InputError: the run's event loop is closed, so the run no longer runs, although it was never closed.
        """
        if not call_in(loop, self.cancel, chain_id):
            raise InputError(
                f"run {self.run_id} cannot be cancelled: the event loop that it ran in is closed"
            )

    async def execute(self) -> RunResult:
        """Run every chain.

        Raises:
            asyncio.CancelledError: the caller was cancelled; every chain and the run have ended by then.
            InputError: an observer awaits this in one of its own hooks, and so would wait for itself.
        """
        settings, began = self.settings, time.perf_counter()
        manager = self.agent.streaming_manager
        if settings.streaming:
            ensure_not_in_own_hook("a run with streaming", manager.fanout.deliveries)
        if self.recording is not None:
            self.recording.begin(manager, self.run_id)
        callback = self._callback_observer()
        if callback is not None:
            manager.add_observer(callback)
        if settings.streaming and not self.agent.backend.streams:
            logger.warning(
                "backend %s does not stream: each generation is one chunk", self.agent.backend.name
            )
        status: RunStatus = "failed"
        self._name_parent()
        self.stream.on_cancel = partial(self._cancel_in, asyncio.get_running_loop())
        self.stream.open()
        watchdog.watch()
        try:
            for r, row in enumerate(self.rows):
                for i in range(settings.num_chains):
                    trajectory = Trajectory(
                        self.run_id, f"chain_{r * settings.num_chains + i}", f"group_{r}", i
                    )
                    self.result.trajectories.append(trajectory)
                    self.stream.announce(trajectory.chain_id, trajectory.group_id)
                    task = asyncio.create_task(
                        self._chain(row, len(self.result.trajectories) - 1, r, i), name=trajectory.chain_id
                    )
                    self._tasks[trajectory.chain_id] = task
                    self._unfinished.add(trajectory.chain_id)
                    task.add_done_callback(partial(self._finish, trajectory.chain_id))
                    if self._cancelled or trajectory.chain_id in self._cancelled_chains:
                        task.cancel()  # before it began
            await self._all_done()
            cut_short = self._cancelled and any(t.finish_reason in (None, "cancelled") for t in self.result)
            status = "cancelled" if cut_short else "completed"
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            watchdog.leave()
            self.result.status = status
            self.stream.close(status)
            for trajectory in self.result.trajectories:
                if trajectory.finish_reason is None:
                    trajectory.finish_reason = "cancelled"  # it never began
            self.result.duration_s = time.perf_counter() - began
            try:
                if settings.streaming:
                    await manager.drain()
            finally:
                if callback is not None:
                    manager.remove_observer(callback)
                if self.recording is not None:
                    self.result.record = await self.recording.end(manager)
        return self.result

    def _name_parent(self) -> None:
        """If a watched chain started this run, as a tool that is an agent does, name that chain and its run as parents."""
        chain = current_chain()
        if isinstance(chain, ChainWriter) and chain.live and self.stream.parent_run_id is None:
            self.stream.parent_run_id = chain.trajectory.run_id
            self._parent_chain_id = chain.trajectory.chain_id

    async def _all_done(self) -> None:
        """Wait for every chain. If the caller is cancelled, end them first and wait for that."""
        try:
            await self._finished.wait()
        except asyncio.CancelledError:
            self.cancel()
            while self._unfinished:
                with contextlib.suppress(asyncio.CancelledError):
                    await self._finished.wait()
            raise
        for name, task in self._tasks.items():
            if name not in self._left and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _chain(self, row: PromptRow, position: int, r: int, i: int) -> None:
        place, agent = self.result.trajectories[position], self._agents[r]
        async with self._slots:
            known = {} if row.reference is None else {"reference": row.reference}
            seed = derived_seed(self.result.seed, r, i)
            stream = self.stream.chain(
                row.messages,
                chain_id=place.chain_id,
                group_id=place.group_id,
                index=i,
                tools=list(agent.tools),
                row=row.fields,
                seed=seed,
                parent_chain_id=self._parent_chain_id,
                **known,
            )
            self.result.trajectories[position] = stream.trajectory
            grace.set(self.agent.cancel_grace_s)
            chain = ChainGeneration(
                agent, stream, self.settings, seed, self._prompts, self._asked, self._latest
            )
            self._running[place.chain_id] = chain
            try:
                await chain.run()
            finally:
                del self._running[place.chain_id]

    def _callback_observer(self) -> CallbackStreamObserver | None:
        if self.settings.callback is None:
            return None
        observer = CallbackStreamObserver(self.settings.callback)
        observer.filter &= EventFilter(runs=self.run_id)
        return observer
