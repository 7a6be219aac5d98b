"""What Ray costs a chain: the same chains here, and on two runners of a cluster that is started for this.

The chains are as small as chains get (a scripted model says one word), so that all that is measured is the way there and back. CPU is
that of this process and of everything that it started: Ray's own processes and the runners.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Figure, figure, paired, ratios
from rollcast import BaseAgent, EventFilter, StreamEventType
from rollcast.fleet import RayWorkers
from rollcast.fleet.ray_cluster import load_ray
from rollcast.testing import EventCapture, ScriptedBackend

load_ray()  # without it, this benchmark is left out

__all__ = ["run"]

HELLO = [{"role": "user", "content": "go"}]
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
LIFECYCLE = EventFilter(types=[kind for kind in StreamEventType if kind != "llm_generation_chunk"])


@dataclass(frozen=True)
class Spent:
    """Of one trial, a chain: seconds on the clock, of this process's CPU, and of the CPU of all."""

    wall: float
    driver: float
    everywhere: float


def run(quick: bool) -> list[Figure]:
    """Chains here and there, many at once, one at a time, and watched."""
    chains, rounds = (8, 1) if quick else (400, 10)
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    with asyncio.Runner() as runner:
        workers = RayWorkers("local", runners=2, cpus=0.5)

        def trial(
            there: RayWorkers | None, *, watched: bool = False, at_once: int | None = None
        ) -> Callable[[], Spent]:
            return lambda: runner.run(_trial(agent, there, chains, watched, at_once))

        try:
            came = paired(
                {
                    "here": trial(None),
                    "ray": trial(workers),
                    "watched here": trial(None, watched=True),
                    "watched ray": trial(workers, watched=True),
                    "one by one": trial(workers, at_once=1),
                },
                rounds,
            )
        finally:
            runner.run(workers.aclose())
    return _figures(came)


def _figures(came: dict[str, list[Spent]]) -> list[Figure]:
    def ms(name: str, part: str) -> list[float]:
        return [1000 * getattr(spent, part) for spent in came[name]]

    return [
        figure("ray: a chain here, CPU", ms("here", "everywhere"), "ms"),
        figure("ray: a chain on Ray, CPU of the driver", ms("ray", "driver"), "ms"),
        figure("ray: a chain on Ray, CPU everywhere", ms("ray", "everywhere"), "ms"),
        figure("ray: the same / here", ratios(ms("ray", "everywhere"), ms("here", "everywhere")), "×"),
        figure("ray: a chain on Ray, all at once", ms("ray", "wall"), "ms"),
        figure("ray: a chain on Ray, one at a time: there and back", ms("one by one", "wall"), "ms"),
        figure("ray: watched here, CPU a chain", ms("watched here", "everywhere"), "ms"),
        figure("ray: watched on Ray, CPU of the driver a chain", ms("watched ray", "driver"), "ms"),
        figure("ray: watched on Ray, CPU everywhere a chain", ms("watched ray", "everywhere"), "ms"),
    ]  # fmt: skip


async def _trial(
    agent: BaseAgent, there: RayWorkers | None, chains: int, watched: bool, at_once: int | None
) -> Spent:
    if there is not None:
        await there.start(agent)
    capture = EventCapture()
    capture.filter = LIFECYCLE
    if watched:
        agent.streaming_manager.add_observer(capture)
    wall, driver, everywhere = time.perf_counter(), time.process_time(), _cpu_of_started()
    await agent.run_async(1, HELLO, chains, watched, max_concurrent_chains=at_once, seed=1, workers=there)
    driver = time.process_time() - driver
    spent = Spent(
        (time.perf_counter() - wall) / chains,
        driver / chains,
        (driver + _cpu_of_started() - everywhere) / chains,
    )
    if watched:
        agent.streaming_manager.remove_observer(capture)
        assert sum(event.event_type == "chain_end" for event in capture.events) == chains
    return spent


def _cpu_of_started() -> float:
    """CPU seconds so far of the processes that this one has started, and of those that they have."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = int(path.parent.name), path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
    return sum(spent for pid, spent in seconds.items() if _descends(pid, parents))


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False
