"""A process that does what it is told, so that its CPU time and memory are those of one thing: lines of JSON in, lines of JSON out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

__all__ = ["Helper", "obey"]

ROOT = Path(__file__).parent.parent
Action = Callable[..., Awaitable[dict[str, Any]]]


class Helper:
    """A process of one of the modules here, which calls `obey`.

    Args:
        module: its name, such as `benchmarks.page_stage`.
        options: given to it as JSON, its only argument.

    Attributes:
        greeting: what it said when it was ready.
    """

    def __init__(self, module: str, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(options)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.greeting = self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()

    def begin(self, do: str, **options: Any) -> None:
        """Start an action, without waiting for it. While it goes on no other is started."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for the action that was started; returns its result.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def has_ended(self, seconds: float) -> bool:
        """Whether the action that was started has ended, or ends within so many seconds."""
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return bool(ready)

    def do(self, do: str, **options: Any) -> dict[str, Any]:
        """Perform an action, and wait for its result."""
        self.begin(do, **options)
        return self.end()

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the process has used, with all its threads, in steps of a hundredth."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> int:
        """Bytes of memory that are the process's own now: resident, without files."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10


async def obey(greeting: Mapping[str, Any], actions: Mapping[str, Action]) -> None:
    """Say the greeting, then perform the actions on standard input, one after another, until it closes."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    print(json.dumps(dict(greeting)), flush=True)
    while line := await lines.get():
        order = json.loads(line)
        print(json.dumps(await actions[order.pop("do")](**order)), flush=True)
