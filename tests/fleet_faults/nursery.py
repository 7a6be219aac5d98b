"""Processes that need not import everything anew: one process has done so, and forks each of the others.

    with Nursery() as nursery:
        pid = nursery.fork("worker", arguments, environment, stdout, stderr)

To import Rollcast takes longer than most of what a schedule does. The processes are real all the same: each is in a session of its
own, has its own environment and standard streams, ends as any program does, and can be killed.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import rollcast
from rollcast.serve.page_files import read_page_files

__all__ = ["Nursery"]

TESTS = Path(__file__).parent.parent
MODULES = ("fleet_faults.worker", "fleet_faults.hub")
PRELOADED = (
    "rollcast.cli.app", "rollcast.cli.hub", "rollcast.fleet.hub", "rollcast.fleet.acks_file", "rollcast.fleet.metrics", "rollcast.fleet.restored",
    "rollcast.archive.observer", "rollcast.serve.server", "rollcast.serve.hub_observer", "rollcast.tasks", "rollcast.testing",
    "rollcast.observers.prometheus",
)  # fmt: skip
LONGEST = 1 << 16  # bytes of a message


class Nursery:
    """Starts the process that forks the others, and ends it.

    Attributes:
        ended: exit codes of processes by their id, for those whose end nobody has asked for yet.
    """

    def __init__(self) -> None:
        self.ended: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROLLCAST_")}
        environment["PYTHONPATH"] = f"{TESTS}{os.pathsep}{Path(rollcast.__file__).parent.parent}"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fleet_faults.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()

    def fork(
        self, module: str, arguments: list[str], environment: dict[str, str], stdout: int, stderr: int
    ) -> int:
        """Have a process forked that runs `main` of this module; its id. This waits for some milliseconds."""
        asked = {"module": module, "arguments": arguments, "environment": environment}
        self._socket.setblocking(True)
        socket.send_fds(self._socket, [json.dumps(asked).encode()], [stdout, stderr])
        while True:
            said = json.loads(self._socket.recv(LONGEST))
            if "began" in said:
                pid: int = said["began"]
                return pid
            self.ended[said["ended"]] = said["code"]

    async def wait(self, pid: int) -> int:
        """The exit code of a process, when it has ended."""
        while pid not in self.ended:
            self.hear()
            await asyncio.sleep(0.002)
        return self.ended[pid]

    def hear(self) -> None:
        """Take what is known of processes that have ended."""
        self._socket.setblocking(False)
        try:
            while said := self._socket.recv(LONGEST):
                message = json.loads(said)
                self.ended[message["ended"]] = message["code"]
        except BlockingIOError:
            return
        raise ConnectionError("the process that forks the others has ended")


def _fork_what_is_asked_for(asks: socket.socket) -> dict[str, Any] | None:
    """Fork, until nobody can ask any more; in a child what it was asked to be, and else None."""
    wakes, wake = socket.socketpair()
    for end in (wakes, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    while True:
        ready, _, _ = select.select([asks, wakes], [], [])
        if wakes in ready:
            wakes.recv(4096)
            _tell_who_ended(asks)
        if asks not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(asks, LONGEST, 2)
        if not message:
            return None
        if pid := os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            asks.send(json.dumps({"began": pid}).encode())
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (asks, wakes, wake):
            each.close()
        os.setsid()
        for standard, descriptor in zip((1, 2), descriptors, strict=True):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        child: dict[str, Any] = json.loads(message)
        return child


def _tell_who_ended(asks: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        asks.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def main() -> None:
    """The process that forks; in a child, what it was asked to be."""
    for name in (*PRELOADED, *MODULES):
        importlib.import_module(name)
    read_page_files()  # it compresses them, and keeps them
    asks = socket.socket(fileno=int(sys.argv[1]))
    child = _fork_what_is_asked_for(asks)
    if child is not None:
        os.environ.clear()
        os.environ.update(child["environment"])
        sys.argv = [child["module"], *child["arguments"]]
        sys.modules[child["module"]].main()


if __name__ == "__main__":
    main()
