"""The processes of a schedule: started in sessions of their own, read, stopped, killed, and looked for when all is over."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fleet_faults.nursery import Nursery

__all__ = ["Child", "left_over"]

MEMORY = "VmHWM:"  # of /proc/PID/status: the most that it ever had


class Child:
    """A process, its output read line by line.

    Args:
        nursery: forks it.
        name: for messages.
        module: whose `main` it runs.
        arguments: those of its command line.
        environment: beyond that of this process.
        take: called with each line of its standard output.

    Attributes:
        killed: whether this schedule killed it.
        code: its exit code, negative for a signal; None: it has not ended, or not begun.
        peak: the most memory that it had when that was last looked at, in bytes.
        errors: the lines of its standard error. It is a pipe, since a process that may write no file may not write them to one.
    """

    def __init__(
        self,
        nursery: Nursery,
        name: str,
        module: str,
        arguments: list[str],
        environment: dict[str, str],
        take: Callable[[bytes], None],
    ) -> None:
        self.name = name
        self.killed = False
        self.code: int | None = None
        self.peak = 0
        self.pid = 0  # also that of its session
        self.errors: list[str] = []
        self._nursery = nursery
        self._asked = (module, arguments, environment)
        self._take = take
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start it."""
        module, arguments, more = self._asked
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROLLCAST_")} | more
        pipes = [os.pipe(), os.pipe()]
        self.pid = self._nursery.fork(module, arguments, environment, pipes[0][1], pipes[1][1])
        for (there, end), take in zip(pipes, (self._take, self._say), strict=True):
            os.close(end)
            self._tasks.append(asyncio.create_task(_read(there, take), name=f"fleet-faults-{self.name}"))
        self._tasks.append(asyncio.create_task(self._end(), name=f"fleet-faults-{self.name}-end"))

    def _say(self, line: bytes) -> None:
        self.errors.append(line.decode(errors="replace").rstrip())

    async def _end(self) -> None:
        self.code = await self._nursery.wait(self.pid)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.code is not None or not self.pid

    def signal(self, number: int) -> None:
        """Send it a signal if it is there."""
        self._nursery.hear()
        if self.pid and self.pid not in self._nursery.ended:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """Kill it, as `kill -9` does, and wait until everything that it had written is read."""
        self._nursery.hear()
        self.killed = bool(self.pid) and self.pid not in self._nursery.ended
        self.signal(signal.SIGKILL)
        await self.wait()

    async def wait(self) -> None:
        """Wait until it has ended and its output is read."""
        for task in self._tasks:
            await task

    def look_at_memory(self) -> None:
        """Note how much it had at most so far."""
        if self.over:
            return
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith(MEMORY):
                    self.peak = int(line.split()[1]) << 10


async def _read(descriptor: int, take: Callable[[bytes], None]) -> None:
    """Take the lines of a pipe, until nobody can write to it any more."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    try:
        while line := await reader.readline():
            if line.endswith(b"\n"):  # half a line is of one that was killed
                take(line)
    finally:
        transport.close()


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
