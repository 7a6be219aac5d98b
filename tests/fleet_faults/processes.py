"""The processes of a schedule: started in sessions of their own, read, stopped, killed, and looked for when all is over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import rollcast

__all__ = ["Child", "left_over"]

TESTS = Path(__file__).parent.parent
MEMORY = "VmHWM:"  # of /proc/PID/status: the most that it ever had


class Child:
    """A process, its output read line by line.

    Args:
        name: for messages.
        arguments: what comes after `python`.
        environment: beyond that of this process.
        take: called with each line of its standard output.

    Attributes:
        killed: whether this schedule killed it.
        peak: the most memory that it had when that was last looked at, in bytes.
        errors: the lines of its standard error. It is a pipe, since a process that may write no file may not write them to one.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        environment: dict[str, str],
        take: Callable[[bytes], None],
    ) -> None:
        self.name = name
        self.killed = False
        self.peak = 0
        self.errors: list[str] = []
        self._arguments = arguments
        self._environment = environment
        self._take = take
        self._process: asyncio.subprocess.Process | None = None
        self._reading: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start it."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROLLCAST_")}
        environment |= {
            "PYTHONPATH": f"{TESTS}{os.pathsep}{Path(rollcast.__file__).parent.parent}",
            "PYTHONWARNINGS": "default",
            "ROLLCAST_RECORD": "0",
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL, env=environment | self._environment, start_new_session=True, limit=1 << 20,
        )  # fmt: skip
        self._reading = [
            asyncio.create_task(
                self._read(self._process.stdout, self._take), name=f"fleet-faults-{self.name}"
            ),
            asyncio.create_task(
                self._read(self._process.stderr, self._say), name=f"fleet-faults-{self.name}-errors"
            ),
        ]

    def _say(self, line: bytes) -> None:
        self.errors.append(line.decode(errors="replace").rstrip())

    @staticmethod
    async def _read(pipe: asyncio.StreamReader | None, take: Callable[[bytes], None]) -> None:
        assert pipe is not None
        while line := await pipe.readline():
            if line.endswith(b"\n"):  # half a line is of one that was killed
                take(line)

    @property
    def pid(self) -> int:
        """Its id, which is also that of its session."""
        assert self._process is not None
        return self._process.pid

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process is None or self._process.returncode is not None

    @property
    def code(self) -> int | None:
        """Its exit code; None: it has not ended."""
        return None if self._process is None else self._process.returncode

    def signal(self, number: int) -> None:
        """Send it a signal if it is there."""
        if not self.over:
            assert self._process is not None
            self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill it, as `kill -9` does, and wait until everything that it had written is read."""
        self.killed = not self.over
        self.signal(signal.SIGKILL)
        await self.wait()

    async def wait(self) -> None:
        """Wait until it has ended and its output is read."""
        if self._process is not None:
            await self._process.wait()
        for reading in self._reading:
            await reading

    def look_at_memory(self) -> None:
        """Note how much it had at most so far."""
        if self.over:
            return
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith(MEMORY):
                    self.peak = int(line.split()[1]) << 10


def left_over(sessions: set[int]) -> list[str]:
    """The processes of these sessions that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            name, _, rest = (folder / "stat").read_text().rpartition(")")
            fields = rest.split()
            if int(fields[3]) in sessions and fields[0] != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{folder.name}: {command.strip() or name}")
    return found
