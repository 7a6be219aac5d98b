"""One run: many chains at once, from rows to a result."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from rollcast.aio import call_in, wait_uncancelled
from rollcast.errors import InputError
from rollcast.observers import CallbackStreamObserver
from rollcast.records import EventFilter, Trajectory
from rollcast.records.event import RunStatus
from rollcast.rollout.agent_value import AgentValue
from rollcast.rollout.chain_tasks import ChainTasks
from rollcast.rollout.recording import RunRecording
from rollcast.rollout.result import RunResult
from rollcast.rollout.rows import PromptRow, derived_seed
from rollcast.rollout.settings import ChainPlace, RunSettings
from rollcast.rollout.watchdog import watchdog
from rollcast.rollout.workers import ChainOrder, RunElsewhere, RunOrder, Workers, first_attempt
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
        workers: run its chains; None: this process does.

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
        workers: Workers | None = None,
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
            groups=len(rows) if settings.places is None else sum(at.repeat == 0 for at in settings.places),
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
        self._chains = ChainTasks(agent, self.stream, settings)
        self._workers = workers
        self._elsewhere: RunElsewhere | None = None
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
            chain_id = chain_id if self._workers is None else first_attempt(chain_id)
            self._cancelled_chains.add(chain_id)
        self._chains.cancel(chain_id)

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
            InputError: an observer awaits this in one of its own hooks, and so would wait for itself; or the workers cannot run
                this agent.
            WorkersError: no worker is left that could run the chains.
        """
        settings = self.settings
        manager = self.agent.streaming_manager
        if settings.streaming:
            ensure_not_in_own_hook("a run with streaming", manager.fanout.deliveries)
        self._name_parent()
        if self._workers is not None:
            self._elsewhere = await self._workers.begin(self.agent, self._run_order(), self.rows)
        began = time.perf_counter()
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
        self.stream.on_cancel = partial(self._cancel_in, asyncio.get_running_loop())
        self.stream.open()
        watchdog.watch()
        try:
            for position in range(len(self.rows) * settings.num_chains):
                self._begin_chain(position)
            await self._chains.all_done()
            cut_short = self._cancelled and any(t.finish_reason in (None, "cancelled") for t in self.result)
            status = "cancelled" if cut_short else "completed"
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            watchdog.leave()
            try:
                await self._end(status, began)
            finally:
                if callback is not None:
                    manager.remove_observer(callback)
                if self.recording is not None:
                    self.result.record = await self.recording.end(manager)
        return self.result

    async def _end(self, status: RunStatus, began: float) -> None:
        """End the run, and wait until the observers have everything."""
        self.result.status = status
        try:
            if self._elsewhere is not None:
                await self._elsewhere.close(status)
        finally:
            self.stream.close(status)
            for trajectory in self.result.trajectories:
                if trajectory.finish_reason is None:
                    trajectory.finish_reason = "cancelled"  # it never began
            self.result.duration_s = time.perf_counter() - began
        if self.settings.streaming:
            await self.agent.streaming_manager.drain()

    def _name_parent(self) -> None:
        """If a watched chain started this run, as a tool that is an agent does, name that chain and its run as parents."""
        chain = current_chain()
        if isinstance(chain, ChainWriter) and chain.live and self.stream.parent_run_id is None:
            self.stream.parent_run_id = chain.trajectory.run_id
            self._parent_chain_id = chain.trajectory.chain_id

    def _run_order(self) -> RunOrder:
        """What runners elsewhere must know of this run."""
        settings, stream = self.settings, self.stream
        about = {**settings.about, "parent_run_id": stream.parent_run_id, "seed": self.result.seed}
        leader = self.agent.streaming_manager.source
        return RunOrder(self.run_id, msgspec.structs.replace(settings, callback=None), about, leader)

    def _begin_chain(self, position: int) -> None:
        """Give a chain its place in the result, and its task."""
        order = self._order(position)
        place = Trajectory(self.run_id, order.chain_id, order.group_id, order.index)
        self.result.trajectories.append(place)
        self.stream.announce(order.chain_id, order.group_id)
        task = self._chains.begin(order.chain_id, self._chain(position, order))
        if self._cancelled or order.chain_id in self._cancelled_chains:
            task.cancel()  # before it began

    def _order(self, position: int) -> ChainOrder:
        r, i = divmod(position, self.settings.num_chains)
        places, suffix = self.settings.places, self.stream.suffix
        at = ChainPlace(position, r, i) if places is None else places[position]
        return ChainOrder(
            f"chain_{at.number}{suffix}", f"group_{at.group}{suffix}", at.repeat, self.rows[r], derived_seed(self.result.seed, r, i),
            parent_chain_id=self._parent_chain_id,
        )  # fmt: skip

    async def _chain(self, position: int, order: ChainOrder) -> None:
        async with self._slots:
            if self._elsewhere is None:
                agent = self._agents[position // self.settings.num_chains]
                stream = self._chains.writer(agent, order)
                self.result.trajectories[position] = stream.trajectory
                await self._chains.play(agent, order, stream)
            else:
                await self._played_elsewhere(self._elsewhere, position, order)

    async def _played_elsewhere(self, elsewhere: RunElsewhere, position: int, order: ChainOrder) -> None:
        """Have workers run the chain. If it is cancelled, keep what there is of it."""
        playing = asyncio.ensure_future(elsewhere.play(order))
        try:
            await asyncio.shield(playing)
        except asyncio.CancelledError:
            elsewhere.cancel(order.chain_id)
            await wait_uncancelled([playing])
            raise
        finally:
            if playing.done() and not playing.cancelled() and playing.exception() is None:
                self.result.trajectories[position] = playing.result()
                self.stream.count_elsewhere(playing.result(), order.chain_id)

    def _callback_observer(self) -> CallbackStreamObserver | None:
        if self.settings.callback is None:
            return None
        observer = CallbackStreamObserver(self.settings.callback)
        observer.filter &= EventFilter(runs=self.run_id)
        return observer
