"""A server of models in a process of its own, on the loopback interface, for tests and benchmarks."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

__all__ = ["ModelServer"]

START_S = 240.0


class ModelServer(ABC):
    """A server on a free port, in a process group of its own.

    Args:
        model: a folder.
        log: the file that gets what the server writes.
        options: of its command line.

    Attributes:
        url: where it is, once it was started.
    """

    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        self.model = model
        self.log = log
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @abstractmethod
    def command(self, port: int) -> list[str]:
        """The command line that serves on this port of 127.0.0.1."""

    def start(self) -> Self:
        """Start it unless it runs, and wait until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time; the end of its log is in the message.
        """
        if self.is_running():
            return self
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(port),
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        atexit.register(self.kill)
        until = time.monotonic() + START_S
        while not self._answers():
            if not self.is_running() or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        return self

    def is_running(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def kill(self) -> None:
        """End the server and its engine at once, as when memory runs out."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        """End the server."""
        if self.is_running() and self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()
