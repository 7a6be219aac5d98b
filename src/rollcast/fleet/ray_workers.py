"""Runs an agent's chains on a Ray cluster: `agent.run_async(…, workers=RayWorkers(…))`.

Ray places the runners, takes the chains to them, and brings their trajectories back. Events never go through it: each runner
publishes its own to a hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import Mapping, Sequence
from itertools import count
from types import ModuleType
from typing import Any, Self

from rollcast.errors import InputError
from rollcast.fleet.crossing import pack_agent, pack_value
from rollcast.fleet.ray_cluster import RayCluster, checked_address
from rollcast.fleet.ray_pool import RunnerDiedError, RunnerNeeds, RunnerPool
from rollcast.fleet.runner import RunnerAbout, RunnerOrder, hub_has_all
from rollcast.fleet.runners_hub import RunnersHub, environment_of_hub
from rollcast.records import Trajectory
from rollcast.records.event import RunStatus
from rollcast.rollout.agent_value import AgentValue
from rollcast.rollout.rows import PromptRow
from rollcast.rollout.rows import count as checked_count
from rollcast.rollout.workers import ChainOrder, RunOrder

__all__ = ["RayWorkers"]

logger = logging.getLogger("rollcast.fleet")

MAX_ATTEMPTS = 3  # at a chain whose runners die
LEAVE_S = 5.0  # how much longer than the agent's grace period a runner may take to end a cancelled chain
END_S = 10.0  # how long the runners may take to end a run


class RayWorkers:
    """Runners on a Ray cluster, each with the agent and a backend of its own.

    They start with the first run and stay for the next ones, until `aclose`, the end of an `async with` block, or the end of
    this process: its runners never outlive it. They belong to one event loop, so `agent.run(…)` starts new ones each time.

    Args:
        address: `local` (a cluster that is started here and ends with this), `auto` (the cluster that this machine belongs
            to), or `HOST:PORT` of a cluster's head.
        runners: how many; None: as many as the cluster has room for.
        cpus, gpus: what each runner needs, as Ray counts them.
        agent: `module:name`, if each runner is to import the agent and make its backend itself. None: the agent is sent, pickled;
            an agent on the embedded model is sent without the weights, which each runner loads.
        by_value: modules that the runners cannot import, whose functions and classes are sent with the agent.
        runtime_env: Ray's description of what its workers need, such as `{"working_dir": "."}`.
        start_timeout_s: how many seconds the first runner may take to start.

    Raises:
        InputError: an argument is wrong.
    """

    def __init__(
        self,
        address: str = "local",
        *,
        runners: int | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        agent: str | None = None,
        by_value: Sequence[ModuleType] = (),
        runtime_env: Mapping[str, Any] | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self._address = checked_address(address)
        self._how_many = None if runners is None else checked_count("runners", runners)
        if not (cpus >= 0 and gpus >= 0 and cpus + gpus > 0):
            raise InputError(f"a runner needs {cpus:g} CPUs and {gpus:g} GPUs; expected some of one of them")
        self._needs = RunnerNeeds(cpus, gpus, start_timeout_s)
        self._target = agent
        self._by_value = by_value
        self._runtime_env = runtime_env
        self._agent: AgentValue | None = None
        self._version = 0  # of the weights of all runners
        self._weights: Any = None  # the newest, or a reference to them in the cluster
        self._cluster: RayCluster | None = None
        self._pool: RunnerPool | None = None
        self._hub: RunnersHub | None = None
        self._starting: tuple[Any, asyncio.Lock] = None, asyncio.Lock()  # a lock belongs to an event loop

    # -- what a run asks -----------------------------------------------------------------------------------------------

    async def begin(self, agent: AgentValue, order: RunOrder, rows: Sequence[PromptRow]) -> _RayRun:
        """Begin a run; the runners are started if they do not run yet.

        Raises:
            InputError: the agent or a row cannot be sent to other processes, these workers have another agent already, or their
                weights are not the agent's.
            MissingExtraError: Ray is not installed.
            WorkersError: no cluster can be reached at this address, or no runner can be started.
        """
        await self.start(agent)
        assert self._cluster is not None
        assert self._pool is not None
        if agent.backend.policy_version != self._version:
            raise InputError(
                f"the agent's backend has weights of version {agent.backend.policy_version}, and the runners have those of version "
                f"{self._version}; give them the same: await workers.update_weights(weights, version)"
            )
        dumps = self._cluster.ray.cloudpickle.dumps
        pack_value(rows, "start_messages", dumps, "leave it out of the row, or give what it is made from")
        return _RayRun(self._pool, self._hub, order, agent)

    async def start(self, agent: AgentValue) -> None:
        """Start the runners, unless they run. Raises what `begin` raises."""
        loop = asyncio.get_running_loop()
        if self._starting[0] is not loop:
            self._starting = loop, asyncio.Lock()
        async with self._starting[1]:
            if self._agent is not None and self._agent is not agent:
                raise InputError(
                    f"these workers run agent {self._agent.name}; make others, RayWorkers(…), for agent {agent.name}"
                )
            if self._pool is not None and self._pool.loop is loop:
                return
            cluster = self._cluster or RayCluster(self._address, self._runtime_env)
            packed = pack_agent(agent, self._target, self._pickling(cluster))
            if self._cluster is None:
                await cluster.connect()
                self._cluster = cluster
            how_many = self._how_many or cluster.how_many(self._needs.cpus, self._needs.gpus)
            hub = await self._started_hub(agent, cluster)
            order = RunnerOrder(packed, environment_of_hub() if hub is None else hub.environment)
            pool = RunnerPool(cluster, order, how_many, self._needs, self._tell_hub_of_death)
            if self._weights is not None:
                if not isinstance(self._weights, cluster.ray.ObjectRef):
                    self._weights = await cluster.put(self._weights)
                await pool.update_weights(self._weights, self._version)
            try:
                await pool.start()
            except BaseException:
                await self._close_hub()
                raise
            self._pool, self._agent = pool, agent

    async def _started_hub(self, agent: AgentValue, cluster: RayCluster) -> RunnersHub | None:
        """The hub to which the runners publish; None if the environment names one, which this process has too."""
        await self._close_hub()
        manager = agent.streaming_manager
        if manager.publishes:
            return None
        self._hub = RunnersHub(manager, cluster.host)
        await self._hub.start()
        return self._hub

    async def _close_hub(self) -> None:
        hub, self._hub = self._hub, None
        if hub is not None:
            await hub.aclose()

    def _tell_hub_of_death(self, about: RunnerAbout) -> None:
        if self._hub is not None:
            self._hub.died(about.source)

    def _pickling(self, cluster: RayCluster) -> Any:
        """A function that pickles the agent, with the modules that cannot be imported elsewhere."""
        cloudpickle = cluster.ray.cloudpickle

        def dumps(value: Any) -> bytes:
            for module in self._by_value:
                cloudpickle.register_pickle_by_value(module)
            try:
                return bytes(cloudpickle.dumps(value))
            finally:
                for module in self._by_value:
                    cloudpickle.unregister_pickle_by_value(module)

        return dumps

    # -- what their owner asks -----------------------------------------------------------------------------------------

    async def update_weights(self, weights: Any, version: int) -> None:
        """From the next token on, sample from these weights at every runner; also at those that start later.

        Args:
            weights: what the backend's own `update_weights` takes, and Ray can send.
            version: their number, which every token that they sample carries.

        Raises:
            InputError: they are not this model's.
        """
        self._version = version
        if self._cluster is None:
            self._weights = copy.deepcopy(weights)  # their owner may go on training its arrays in place
            return
        self._weights = await self._cluster.put(weights)
        if self._pool is not None:
            await self._pool.update_weights(self._weights, version)

    async def aclose(self) -> None:
        """End the runners, and leave the cluster; a local one ends."""
        pool, self._pool, self._agent = self._pool, None, None
        self._weights, self._version = None, 0
        if pool is not None and pool.loop is asyncio.get_running_loop():
            await pool.close()
            await self._close_hub()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            await cluster.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _RayRun:
    """One run whose chains are played by the runners of a pool."""

    def __init__(self, pool: RunnerPool, hub: RunnersHub | None, order: RunOrder, agent: AgentValue) -> None:
        self._pool = pool
        self._hub = hub
        self._order = order
        self._grace_s = agent.grace_s
        self._manager = agent.streaming_manager
        self._known: asyncio.Task[None] | None = None  # done when the hub elsewhere knows of the run
        self._stages: dict[str, asyncio.Task[Any]] = {}  # by chain: what its `play` waits for
        self._where: dict[str, tuple[str, str]] = {}  # by chain: its runner, and its id there
        self._cancelled: set[str] = set()

    async def play(self, order: ChainOrder) -> Trajectory:
        """See `RunElsewhere.play`. A chain whose runner dies runs again elsewhere, with the same seed and an id of its own."""
        name = order.chain_id
        if self._known is None:
            self._known = asyncio.ensure_future(self._told_hub())
        await self._known
        try:
            for attempt in count(1):
                this = order if attempt == 1 else order.again(attempt)
                try:
                    trajectory = await self._attempt(name, this)
                except asyncio.CancelledError:
                    if name not in self._cancelled:
                        raise
                    return unfinished(self._order.run_id, this, "cancelled")
                except RunnerDiedError as died:
                    if name in self._cancelled:
                        return unfinished(self._order.run_id, this, "cancelled", str(died))
                    if attempt == MAX_ATTEMPTS:
                        why = f"its runners died with all {MAX_ATTEMPTS} attempts at it; the last: {died}"
                        return unfinished(self._order.run_id, this, "error", why)
                    logger.warning("%s runs again elsewhere: %s", this.chain_id, died)
                else:
                    trajectory.row = order.row.fields
                    return trajectory
        finally:
            self._stages.pop(name, None)
            self._where.pop(name, None)
        raise AssertionError("a chain has a last attempt")

    async def _told_hub(self) -> None:
        """Wait a moment until the hub elsewhere has the `run_start` of this process: no runner's part may end before that."""
        await hub_has_all(self._manager)

    async def _attempt(self, name: str, order: ChainOrder) -> Trajectory:
        self._where.pop(name, None)
        runner: str = await self._stage(name, self._pool.take())
        self._where[name] = runner, order.chain_id
        try:
            trajectory: Trajectory = await self._stage(
                name, self._pool.call(runner, "play", self._order, order)
            )
            return trajectory
        finally:
            self._pool.give_back(runner)

    async def _stage(self, name: str, what: Any) -> Any:
        """Wait for the next thing that a chain needs, so that `cancel` can reach it."""
        self._stages[name] = task = asyncio.ensure_future(what)
        if name in self._cancelled:
            task.cancel()
        return await task

    def cancel(self, chain_id: str) -> None:
        """See `RunElsewhere.cancel`."""
        if chain_id in self._cancelled:
            return
        self._cancelled.add(chain_id)
        stage, where = self._stages.get(chain_id), self._where.get(chain_id)
        if stage is None:
            return
        if where is None:
            stage.cancel()
            return
        runner, there = where
        seconds = self._grace_s + LEAVE_S
        asyncio.get_running_loop().call_later(seconds, self._leave, chain_id, stage, runner, seconds)
        telling = asyncio.ensure_future(self._tell_of_cancel(runner, there))
        telling.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _tell_of_cancel(self, runner: str, chain_id: str) -> None:
        with contextlib.suppress(RunnerDiedError):
            await self._pool.call(runner, "cancel", self._order.run_id, chain_id)

    def _leave(self, chain_id: str, stage: asyncio.Task[Any], runner: str, seconds: float) -> None:
        """Stop waiting for a cancelled chain whose runner does not end it."""
        if not stage.done():
            logger.warning(
                "%s did not end %s within %g s of its cancellation; it is left behind",
                runner,
                chain_id,
                seconds,
            )
            stage.cancel()

    async def close(self, status: RunStatus) -> None:
        """See `RunElsewhere.close`."""
        run_id = self._order.run_id
        had_part = await self._pool.call_all("end_run", run_id, status, timeout=END_S)
        if self._hub is None:
            return
        sources = [self._pool.about[name].source for name, had in had_part.items() if had]
        if late := await self._hub.have_ended(run_id, sources, END_S):
            logger.warning(
                "the last events of %s did not come within %g s; a gap stands for them",
                ", ".join(late),
                END_S,
            )


def unfinished(run_id: str, order: ChainOrder, reason: Any, error: str | None = None) -> Trajectory:
    """The trajectory of a chain of which nothing came back."""
    messages = list(order.row.messages)
    return Trajectory(
        run_id,
        order.chain_id,
        order.group_id,
        order.index,
        row=order.row.fields,
        messages=messages,
        prompt_length=len(messages),
        finish_reason=reason,
        error=error,
    )
