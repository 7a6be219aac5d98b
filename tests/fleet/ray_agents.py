"""Agents that runners import or are sent, for test_ray.py."""

import asyncio
import os
from pathlib import Path

from rollcast import BaseAgent, tool
from rollcast.testing import ScriptedBackend

WAIT = '<tool_call>{"name": "wait", "arguments": {"folder": "%s"}}</tool_call>'
DIE = '<tool_call>{"name": "die_once", "arguments": {"folder": "%s"}}</tool_call>'


@tool
async def wait(folder: str) -> str:
    """Note that it waits, and wait until the folder has a file `go`."""
    (Path(folder) / f"waits-{os.getpid()}").touch()
    while not (Path(folder) / "go").exists():
        await asyncio.sleep(0.02)
    return "went on"


@tool
async def die_once(folder: str) -> str:
    """Kill this process, unless it has happened before."""
    mark = Path(folder) / "died"
    if not mark.exists():
        mark.touch()
        os._exit(9)
    return "alive"


def waiting(folder):
    return BaseAgent("m", [wait], ScriptedBackend([WAIT % folder, "done"]), name="Waiting")


def dying(folder):
    return BaseAgent("m", [die_once], ScriptedBackend([DIE % folder, "done"]), name="Dying")
