"""What the environment says of the hub of this process, and the name that this process has in the fleet."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from rollcast.stream.hub import HUB

__all__ = ["HUB", "SOURCE", "TOKEN", "host_name", "source_of_process", "token_for_hub"]

TOKEN = "ROLLCAST_HUB_TOKEN"  # noqa: S105  (the name of the variable that has it)
SOURCE = "ROLLCAST_SOURCE"
_TAKEN = "ROLLCAST_SOURCE_TAKEN"  # which name a process has taken, and its pid: its children inherit the variables, not the name
_LONGEST = 200  # characters


def host_name() -> str:
    """The short name of this host."""
    return socket.gethostname().partition(".")[0] or "localhost"


def source_of_process(environ: MutableMapping[str, str] | None = None) -> str:
    """The name of this process in the fleet: `ROLLCAST_SOURCE`, or `HOST-rankN` under torchrun, or `HOST-PID`.

    A child of a process that has taken such a name gets one of its own: the name with its pid behind it.
    """
    environ = os.environ if environ is None else environ
    pid = os.getpid()
    given = environ.get(SOURCE, "").strip()
    rank = environ.get("RANK", "").strip()
    if not given and not rank.isdecimal():
        return f"{host_name()}-{pid}"
    name = (given or f"{host_name()}-rank{rank}")[:_LONGEST]
    taken, _, by = environ.get(_TAKEN, "").rpartition(":")
    if taken == name and by != str(pid):
        return f"{name}-{pid}"
    environ[_TAKEN] = f"{name}:{pid}"
    return name


def token_for_hub(environ: MutableMapping[str, str] | None = None) -> str | None:
    """The token with which this process publishes, if the environment has one."""
    environ = os.environ if environ is None else environ
    return environ.get(TOKEN) or None
