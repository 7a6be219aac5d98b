"""`rollcast proxy` beside a plain copy with aiohttp: CPU for each chunk that passes, the first token, and memory.

Engine, copy and proxies are processes of their own. Each round has the same streams through each of them, and the CPU time is that of
the process, all threads, as Linux counts it.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp

from benchmarks.measure import Figure, NotInstalledError, figure, paired, ratios

__all__ = ["run"]

STREAMS = 32
PAUSE_S = 0.02


class _Stage:
    """A process that serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.url = process.stdout.readline().strip()
        assert self.url, "the process did not start"

    def cpu_s(self) -> float:
        """CPU seconds so far, of all threads."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def memory(self) -> int:
        """Bytes in memory now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024


@contextmanager
def _stage(*arguments: str) -> Iterator[_Stage]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.proxy_stage", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield _Stage(process)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait()
        process.stdout.close()


def run(quick: bool) -> list[Figure]:
    """Measure the bars of the proxy.

    Raises:
        NotInstalledError: this is not Linux, whose count of CPU time is used.
    """
    if not Path("/proc/self/schedstat").exists():
        raise NotInstalledError("the proxy's benchmark reads /proc, which only Linux has")
    chunks, rounds, firsts, calls = (10, 2, 5, 64) if quick else (100, 15, 300, 4096)
    with ExitStack() as stack:
        engine = stack.enter_context(_stage("engine"))
        names = ("plain", "unwatched", "watched")
        stages = {name: stack.enter_context(_stage(name, engine.url)) for name in names}
        cpu = paired({name: lambda s=stage: _cpu_of(s, chunks) for name, stage in stages.items()}, rounds)
        found = [
            figure("proxy: a plain aiohttp copy, a chunk", cpu["plain"], "µs of CPU"),
            figure("proxy: unwatched, a chunk", cpu["unwatched"], "µs of CPU"),
            figure("proxy: watched, a chunk", cpu["watched"], "µs of CPU"),
            figure("proxy: unwatched / plain copy", ratios(cpu["unwatched"], cpu["plain"]), "×", "<= 1.2"),
            figure("proxy: watched / plain copy", ratios(cpu["watched"], cpu["plain"]), "×", "<= 1.6"),
        ]
        for name in ("unwatched", "watched"):
            later = asyncio.run(_first_token(engine.url, stages[name].url, firsts))
            found.append(figure(f"proxy: first token later than direct, {name}, p50", later, "ms", "<= 3"))
        grown = _growth(stages["unwatched"], calls)
        found.append(
            figure(f"proxy: memory after {calls:,} more calls, 256 at a time", grown, "× before", "<= 1.1")
        )
    return found


def _cpu_of(stage: _Stage, chunks: int) -> float:
    """CPU microseconds for each chunk that passes a process."""
    before = stage.cpu_s()
    asyncio.run(_streams(stage.url, STREAMS, chunks, PAUSE_S))
    return (stage.cpu_s() - before) / (STREAMS * chunks) * 1e6


def _asked(chunks: int, pause_s: float, prompt: int) -> dict[str, object]:
    return {"model": "m", "prompt": [1, prompt], "max_tokens": chunks, "stream": True, "pause_s": pause_s}


async def _streams(url: str, streams: int, chunks: int, pause_s: float) -> None:
    """Read as many streams at once, each to its end."""

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        async with session.post(f"{url}/v1/completions", json=_asked(chunks, pause_s, number)) as answer:
            body = await answer.read()
        if body.count(b"data: ") != chunks + 1:
            raise AssertionError("an answer is not whole")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(one(session, number) for number in range(streams)))


async def _first_token(direct: str, passed: str, calls: int) -> list[float]:
    """How many milliseconds later the first byte of a body comes through the proxy, call by call."""

    async def first(session: aiohttp.ClientSession, url: str, number: int) -> float:
        began = time.perf_counter()
        async with session.post(f"{url}/v1/completions", json=_asked(1, 0.0, number)) as answer:
            await answer.content.readany()
            taken = time.perf_counter() - began
            await answer.read()
        return taken * 1e3

    later = []
    async with aiohttp.ClientSession() as session:
        for number in range(calls + 5):
            pair = [await first(session, url, number) for url in (direct, passed)[:: 1 if number % 2 else -1]]
            if number >= 5:  # the connections are open by then
                later.append(pair[1] - pair[0] if number % 2 else pair[0] - pair[1])
    return later


def _growth(stage: _Stage, calls: int) -> float:
    """Memory after so many calls, in the memory after a first part of them."""
    at_once = min(256, calls)

    def some(times: int) -> None:
        for _ in range(times):
            asyncio.run(_streams(stage.url, at_once, 4, 0.0))

    some(2)
    before = statistics.median(stage.memory() for _ in range(5))
    some(calls // at_once)
    return stage.memory() / before
