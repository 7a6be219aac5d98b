"""A runner: a process with an agent and a backend of its own that runs chains of other processes' runs.

It does not know who gives it orders; under Ray it is an actor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import time
from functools import partial
from typing import Any

import msgspec

from rollcast.aio import call_in
from rollcast.cli.load import load_agent
from rollcast.errors import InputError, RollcastError
from rollcast.failures import text_and_place
from rollcast.fleet.crossing import PackedAgent
from rollcast.records import Trajectory
from rollcast.records.event import RunStatus
from rollcast.rollout import BaseAgent
from rollcast.rollout.chain_tasks import ChainTasks
from rollcast.rollout.choice import chosen_tools
from rollcast.rollout.rows import PromptRow
from rollcast.rollout.workers import ChainOrder, RunOrder
from rollcast.serve.hub_observer import HubStreamObserver
from rollcast.stream import StreamingManager
from rollcast.version import __version__

__all__ = ["Runner", "RunnerAbout", "RunnerOrder", "hub_has_all"]

logger = logging.getLogger("rollcast.fleet")

AWAY_S = 1.0  # how long a hub elsewhere may take to acknowledge what it was sent, if it is away
SLOW_S = 6.0  # and if it is there


class RunnerOrder(msgspec.Struct, frozen=True):
    """What a runner begins with.

    Attributes:
        agent: the agent that it runs.
        environment: variables that it sets before the agent is loaded.
        version: the version of Rollcast that gives it orders.
    """

    agent: PackedAgent
    environment: dict[str, str] = {}
    version: str = __version__


class RunnerAbout(msgspec.Struct, frozen=True):
    """What a runner says of itself.

    Attributes:
        host, pid: where it runs.
        source: the `source` of its events.
        backend, model: what samples there.
        refusal: why it cannot run the agent, in a sentence; empty if it can.
    """

    host: str
    pid: int
    source: str = ""
    backend: str = ""
    model: str = ""
    refusal: str = ""


class Runner:
    """Runs chains with an agent of its own."""

    def __init__(self) -> None:
        self._agent: BaseAgent | None = None
        self._parts: dict[str, _Part] = {}

    async def start(self, order: RunnerOrder) -> RunnerAbout:
        """Load the agent. If it cannot be loaded, `refusal` in the answer says why."""
        here = RunnerAbout(socket.gethostname(), os.getpid())
        if order.version != __version__:
            return msgspec.structs.replace(
                here,
                refusal=f"Rollcast is {__version__} on {here.host} and {order.version} here; install the same version on both",
            )
        os.environ.update(order.environment)
        try:
            self._agent = _unpacked(order.agent)
        except RollcastError as error:
            return msgspec.structs.replace(here, refusal=f"{error} (on {here.host})")
        except Exception as error:  # the agent's own modules can raise anything
            logger.debug("the agent cannot be loaded", exc_info=error)
            told = " ".join(text_and_place(error).split())
            return msgspec.structs.replace(
                here,
                refusal=f"agent {order.agent.name} cannot be loaded on {here.host}: {type(error).__name__}: {told}",
            )
        backend = self._agent.backend
        source = self._agent.streaming_manager.source
        return msgspec.structs.replace(here, source=source, backend=backend.name, model=backend.model_name)

    async def watch(self) -> None:
        """Never return: whoever waits for this learns at once when the process dies."""
        await asyncio.Event().wait()

    async def play(self, run: RunOrder, order: ChainOrder) -> Trajectory:
        """Run a chain; its trajectory, without the fields of its row, which the caller has."""
        part = self._parts.get(run.run_id)
        if part is None:
            assert self._agent is not None
            part = self._parts[run.run_id] = _Part(self._agent, run)
        trajectory = await part.play(order)
        return msgspec.structs.replace(trajectory, row={})

    async def cancel(self, run_id: str, chain_id: str) -> None:
        """Cancel a chain; its `play` returns soon. A chain that is unknown, or over, is ignored."""
        part = self._parts.get(run_id)
        if part is not None:
            part.tasks.cancel(chain_id)

    async def end_run(self, run_id: str, status: RunStatus) -> bool:
        """End this runner's part in a run, and wait until its events are delivered. False if it had no part, or one without events."""
        part = self._parts.pop(run_id, None)
        if part is not None:
            await part.end(status)
        return part is not None and part.stream.live

    async def update_weights(self, weights: Any, version: int) -> None:
        """From the next token on, sample from these weights."""
        assert self._agent is not None
        await self._agent.backend.update_weights(weights, version)

    async def close(self) -> None:
        """Cancel what runs, and close the agent with its backend."""
        for run_id, part in list(self._parts.items()):
            part.tasks.cancel()
            await part.tasks.all_done()
            await self.end_run(run_id, "cancelled")
        if self._agent is not None:
            await self._agent.aclose()


class _Part:
    """A runner's part in one run."""

    def __init__(self, agent: BaseAgent, order: RunOrder) -> None:
        backend, settings = agent.backend, order.settings
        self._agent = agent
        self._with_tools: dict[tuple[str, ...], BaseAgent] = {}
        self.stream = agent.streaming_manager.run(
            live=settings.streaming,
            chains=0,  # the process that began the run says how many there will be
            groups=0,
            agent=agent.name,
            model=backend.model_name,
            backend=backend.name,
            policy_version=backend.policy_version,
            run_id=order.run_id,
            sampling=settings.sampling_data,
            settings=settings.data,
            tools=agent.tool_schemas,
            leader=order.leader,
            **order.about,
        )
        self.tasks = ChainTasks(agent, self.stream, settings)
        self.stream.on_cancel = partial(call_in, asyncio.get_running_loop(), self.tasks.cancel)
        self.stream.open()

    async def play(self, order: ChainOrder) -> Trajectory:
        """Run a chain to its end, however that comes."""
        agent = self._agent_of(order.row)
        stream = self.tasks.writer(agent, order)
        self.tasks.begin(order.chain_id, self._play(agent, order, stream))
        await self.tasks.ended(order.chain_id)
        return stream.trajectory

    async def _play(self, agent: BaseAgent, order: ChainOrder, stream: Any) -> None:
        await self.tasks.play(agent, order, stream)

    def _agent_of(self, row: PromptRow) -> BaseAgent:
        """The agent with the tools that the row names."""
        tools = chosen_tools(row.fields, self._agent.tools, "the row")
        if tools is None:
            return self._agent
        names = tuple(tools)
        if names not in self._with_tools:
            self._with_tools[names] = self._agent.with_tools(tools)
        return self._with_tools[names]

    async def end(self, status: RunStatus) -> None:
        """End the run here."""
        self.stream.close(status)
        if self.stream.live:
            await self._agent.streaming_manager.drain()
            await hub_has_all(
                self._agent.streaming_manager
            )  # the leader's end, which follows, ends what is open


async def hub_has_all(manager: StreamingManager) -> None:
    """Wait until a hub elsewhere has what this process emitted: at most a moment if it is away, and longer if it is slow."""
    await manager.drain(AWAY_S)
    give_up = time.monotonic() + SLOW_S
    for observer in manager.observers:
        if isinstance(observer, HubStreamObserver):
            while not await observer.published(AWAY_S) and observer.producer.connected:
                if time.monotonic() >= give_up:
                    return


def _unpacked(packed: PackedAgent) -> BaseAgent:
    """The agent that was packed.

    Raises:
        InputError: there is no agent of that name here, or what was pickled is not an agent.
    """
    if packed.target is not None:
        return load_agent(packed.target)
    assert packed.pickled is not None
    found = pickle.loads(packed.pickled)  # noqa: S301  (from the process that started this one)
    if not isinstance(found, BaseAgent):
        raise InputError(f"{packed.name} is {type(found).__name__}; expected a BaseAgent")
    return found
