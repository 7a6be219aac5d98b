"""The agent loop manager that a configuration of verl names, so that its workers are watched. Importing this module imports verl."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import ray
from verl.experimental.agent_loop import AgentLoopManager
from verl.utils.ray_utils import auto_await

from rollcast.attaching.front import attach
from rollcast.attaching.verl_chains import TRAINING
from rollcast.stream.run import new_run_id

__all__ = ["WatchedAgentLoopManager", "watched_manager"]

logger = logging.getLogger("rollcast.attach")

_HANDED_ON = ("ROLLCAST_HUB", "ROLLCAST_HUB_TOKEN", "ROLLCAST_RECORDS")


class WatchedAgentLoopManager:
    """Stands for verl's own manager, of the trainer that the configuration asks for, with workers that are watched."""

    @classmethod
    @auto_await  # type: ignore[untyped-decorator]  # verl has no types
    async def create(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the manager as verl's `AgentLoopManager.create` does, with the same arguments."""
        config = kwargs["config"] if "config" in kwargs else args[0]
        manager = watched_manager(_base_of(config))(*args, **kwargs)
        await manager._init_agent_loop_workers()  # noqa: SLF001  (as verl's own `create` does)
        return manager


def _base_of(config: Any) -> Any:
    if config.trainer.get("use_v1", False):
        from verl.trainer.ppo.v1 import AgentLoopManagerTQ  # noqa: PLC0415  (only that trainer has the transfer queue)

        return AgentLoopManagerTQ
    return AgentLoopManager


@cache
def watched_manager(base: Any) -> Any:
    """A subclass of this agent loop manager, verl's or your own, whose workers are watched.

    Put it into a module of yours and name it in the configuration: `MyWatchedManager = watched_manager(MyManager)`.
    """

    class Watched(base):  # type: ignore[misc]  # any manager
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            try:
                manager: Any = self
                setattr(manager.llm_client, TRAINING, new_run_id())
                manager.agent_loop_workers_class = _watched_workers(manager.agent_loop_workers_class)
            except Exception:  # a training must start whatever is wrong here
                logger.exception("Rollcast steps aside from verl, whose workers go on unwatched")

    Watched.__name__ = Watched.__qualname__ = f"Watched{base.__name__}"
    return Watched


def _watched_workers(actor: Any) -> Any:
    """The Ray actor class of workers that attach themselves when they are made, each in its own process."""
    worker: Any = actor.__ray_metadata__.modified_class
    options = dict(getattr(actor, "_default_options", None) or {})
    told = {name: value for name, value in os.environ.items() if name in _HANDED_ON}

    class Watched(worker):  # type: ignore[misc]  # whichever worker it is
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            try:
                for name, value in told.items():  # a worker on another host inherits nothing of the trainer's
                    os.environ.setdefault(name, value)
                attach.verl(self)
            except Exception:  # a worker must start whatever is wrong here
                logger.exception("Rollcast steps aside from this worker of verl, which goes on unwatched")

    Watched.__name__ = Watched.__qualname__ = worker.__name__
    return ray.remote(**options)(Watched) if options else ray.remote(Watched)
