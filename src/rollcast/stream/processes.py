"""What this process is among others: its rank, its name in a fleet, and the run that they share."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, MutableMapping

from rollcast.text import is_terminal_safe, printable_line

__all__ = [
    "RUN_ID",
    "SOURCE",
    "SharedRun",
    "default_source",
    "host_name",
    "rank_of_process",
    "source_of_process",
]

logger = logging.getLogger("rollcast.stream")

RUN_ID = "ROLLCAST_RUN_ID"
SOURCE = "ROLLCAST_SOURCE"
_TAKEN = "ROLLCAST_SOURCE_TAKEN"  # which name a process has taken, and its pid: its children inherit the variables, not the name
_LONGEST = 200  # characters
_told: set[str] = set()


def host_name() -> str:
    """The short name of this host."""
    return socket.gethostname().partition(".")[0] or "localhost"


def rank_of_process(environ: Mapping[str, str] | None = None) -> int | None:
    """The number of this process among several that torchrun or `accelerate launch` started; None if it is the only one."""
    environ = os.environ if environ is None else environ
    rank, count = (environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE"))
    several = rank.isdecimal() and count.isdecimal() and int(count) > 1
    return int(rank) if several else None


def source_of_process(environ: MutableMapping[str, str] | None = None) -> str:
    """The name of this process in the fleet: `ROLLCAST_SOURCE`, or `HOST-rankN` under torchrun, or `HOST-PID`.

    A child of a process that has taken such a name gets one of its own: the name with its pid behind it. A `ROLLCAST_SOURCE`
    that cannot be a name counts as unset, and a warning says why, once.
    """
    environ = os.environ if environ is None else environ
    pid = os.getpid()
    given = _name_in(environ, SOURCE)
    rank = environ.get("RANK", "").strip()
    if not given and not rank.isdecimal():
        return f"{host_name()}-{pid}"
    name = (given or f"{host_name()}-rank{rank}")[:_LONGEST]
    taken, _, by = environ.get(_TAKEN, "").rpartition(":")
    if taken == name and by != str(pid):
        return f"{name}-{pid}"
    environ[_TAKEN] = f"{name}:{pid}"
    return name


def _name_in(environ: Mapping[str, str], variable: str) -> str:
    """The name that the variable has; `""` if it has none, or one that no hub or terminal would take, which is said once."""
    name = environ.get(variable, "").strip()
    if len(name) > _LONGEST:
        wrong = f"has {len(name):,} characters"
    elif not is_terminal_safe(name):
        wrong = f"is '{printable_line(name)}'"
    else:
        return name
    sentence = f"{variable} is not used, since it {wrong}; expected a name of at most {_LONGEST} printable characters"
    if sentence not in _told:
        _told.add(sentence)
        logger.warning("%s", sentence)
    return ""


def default_source() -> str:
    """The source of a manager that is given none: `""`, unless the environment says that this process is one of several."""
    several = _name_in(os.environ, SOURCE) or rank_of_process() is not None
    return source_of_process() if several else ""


class SharedRun:
    """The run that `ROLLCAST_RUN_ID` names, which several processes share. The first run of a process is its part of it.

    What cannot be a name counts as unset, and a warning says why, once.
    """

    _pid: int | None = None  # of the process that has taken it

    @classmethod
    def take(cls) -> str | None:
        """The run's id, for the first caller in this process; None if the environment names none, or it is taken."""
        run_id = _name_in(os.environ, RUN_ID)
        if not run_id or cls._pid == os.getpid():
            return None
        cls._pid = os.getpid()
        return run_id
