"""What the environment says of the hub of this process, and the name that this process has in the fleet."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from rollcast.stream.hub import HUB
from rollcast.stream.processes import SOURCE, host_name, source_of_process

__all__ = ["HUB", "SOURCE", "TOKEN", "host_name", "source_of_process", "token_for_hub"]

TOKEN = "ROLLCAST_HUB_TOKEN"  # noqa: S105  (the name of the variable that has it)


def token_for_hub(environ: MutableMapping[str, str] | None = None) -> str | None:
    """The token with which this process publishes, if the environment has one."""
    environ = os.environ if environ is None else environ
    return environ.get(TOKEN) or None
