"""The seam between a run and runners elsewhere: chains go out as orders and come back as trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from rollcast.records import Trajectory
from rollcast.records.event import RunStatus
from rollcast.rollout.agent_value import AgentValue
from rollcast.rollout.rows import PromptRow
from rollcast.rollout.settings import RunSettings

__all__ = ["ChainOrder", "RunElsewhere", "RunOrder", "Workers", "first_attempt"]


class ChainOrder(msgspec.Struct, frozen=True):
    """A chain to run. With the agent and the run's settings it decides everything that the chain samples.

    Attributes:
        chain_id, group_id, index: where it belongs.
        row: what it begins with.
        seed: its own.
        attempt: from 2 if runners died with the earlier ones; None: the first.
        parent_chain_id: the chain that began its run, if the run is a sub-agent's.
    """

    chain_id: str
    group_id: str
    index: int
    row: PromptRow
    seed: int
    attempt: int | None = None
    parent_chain_id: str | None = None

    def again(self, attempt: int) -> ChainOrder:
        """The order for a later attempt. Its chain has an id of its own, `chain_5.2`, since ids are unique in a run."""
        return msgspec.structs.replace(self, chain_id=f"{self.chain_id}.{attempt}", attempt=attempt)


def first_attempt(chain_id: str) -> str:
    """The id of the first attempt at a chain, given that of any."""
    name, dot, attempt = chain_id.rpartition(".")
    return name if dot and attempt.isdecimal() else chain_id


class RunOrder(msgspec.Struct, frozen=True):
    """What a runner must know of the run to which its chains belong.

    Attributes:
        run_id: the run's id.
        settings: the run's settings, without its callback.
        about: further fields of `run_start`.
        leader: the source of the process that began the run.
    """

    run_id: str
    settings: RunSettings
    about: dict[str, Any] = {}
    leader: str = ""


class RunElsewhere(Protocol):
    """A run whose chains are played by workers."""

    async def play(self, order: ChainOrder) -> Trajectory:
        """Run a chain; its trajectory. After `cancel` that is what there is of it, and it comes soon.

        Raises:
            WorkersError: no runner is left that could run it, or its runners died with it several times.
        """
        ...

    def cancel(self, chain_id: str) -> None:
        """Have a chain end, wherever it runs. Ids that are unknown or over are ignored. This does not wait."""
        ...

    async def close(self, status: RunStatus) -> None:
        """End the run at every runner that had a part in it. Its chains are over."""
        ...


class Workers(Protocol):
    """Processes that run the chains of an agent."""

    async def start(self, agent: AgentValue) -> None:
        """Start the runners with this agent, unless they run. Raises what `begin` raises."""
        ...

    async def begin(self, agent: AgentValue, order: RunOrder, rows: Sequence[PromptRow]) -> RunElsewhere:
        """Begin a run; the runners are started if they do not run yet.

        Raises:
            InputError: the agent or a row cannot be sent to other processes, or these workers have another agent already.
            WorkersError: no runner can be started.
        """
        ...

    async def update_weights(self, weights: Any, version: int) -> None:
        """From the next token on, sample from these weights in every process, whose version is `version`."""
        ...
