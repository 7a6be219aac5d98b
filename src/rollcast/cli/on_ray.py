"""Runs chains on a Ray cluster, for `--ray`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rollcast.errors import InputError

if TYPE_CHECKING:
    from rollcast.fleet import RayWorkers

__all__ = ["workers_for"]


def workers_for(address: str | None, runners: int | None, target: str | None) -> RayWorkers | None:
    """Make the workers for `--ray ADDRESS` and `--runners N`, not started; None if the chains run here.

    Args:
        address: the cluster's.
        runners: how many; None: as many as there is room for.
        target: what the command line calls the agent, if the command made it from nothing else. An agent in a module is
            imported by each runner; one in a file is sent, with the file's code.

    Raises:
        InputError: this is not an address, or runners were asked for without a cluster.
        MissingExtraError: Ray is not installed.
    """
    if address is None:
        if runners is not None:
            raise InputError("--runners is given without --ray; say which cluster, such as --ray local")
        return None
    from rollcast.fleet import RayWorkers  # noqa: PLC0415  (most runs need no cluster)
    from rollcast.fleet.ray_cluster import load_ray  # noqa: PLC0415

    load_ray()
    where = "" if target is None else target.rpartition(":")[0]
    if where.endswith(".py"):
        return RayWorkers(address, runners=runners, by_value=[sys.modules[Path(where).stem]])
    return RayWorkers(address, runners=runners, agent=target)
