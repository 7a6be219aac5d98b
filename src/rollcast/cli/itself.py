"""Tells how a user can type this command again."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

__all__ = ["quoted", "this_command"]


def this_command() -> str:
    """`rollcast`, if a shell finds this program under that name; else the way in which it was started."""
    started = Path(sys.argv[0])
    found = shutil.which("rollcast")
    if started.name == "__main__.py":
        beside = Path(sys.executable).parent
        if found is not None and Path(found).absolute().parent == beside:
            return "rollcast"
        return f"{quoted(sys.executable)} -m rollcast"
    if started.stem != "rollcast" or not started.is_file():
        return "rollcast"  # another program called it
    if found is not None and started.samefile(found):
        return "rollcast"
    return quoted(started if len(started.parts) > 1 else Path.cwd() / started)


def quoted(value: str | Path) -> str:
    """Quote an argument for a shell, so that it is not taken for an option either."""
    text = str(value)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
