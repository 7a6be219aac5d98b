"""Measures what `/metrics` and `/healthz` cost a run while four clients request them without pause, in another process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Figure, figure, paired, ratios
from rollcast.models.tiny import TinyBackend
from rollcast.observers import PrometheusStreamObserver
from rollcast.rollout import BaseAgent
from rollcast.serve import WebSocketStreamingServer
from rollcast.stream import StreamingManager
from rollcast.tasks import get_task

__all__ = ["asked"]

CLIENTS = 4
SEED = 7


class _Cost(NamedTuple):
    cpu: float  # µs per token
    rate: float  # tokens/s


def asked(quick: bool) -> list[Figure]:
    """Measure CPU per token and tokens per second of a run that is served as `rollcast run --serve` does, with and without them."""
    questions, rounds = (2, 1) if quick else (100, 15)
    figures = []
    with asyncio.Runner() as runner:
        server = WebSocketStreamingServer("127.0.0.1", 0)
        manager = StreamingManager()
        metrics = PrometheusStreamObserver()
        runner.run(server.start())
        manager.add_observer(server.get_observer())
        manager.add_observer(metrics)
        answers = {"/metrics": 0, "/healthz": 0}

        def trial(path: str | None) -> _Cost:
            if path is None:
                return runner.run(_run(manager, questions))
            with _asking(server.port, path) as told:
                cost = runner.run(_run(manager, questions))
            answers[path] += told()
            return cost

        trials = {path or "nobody": lambda path=path: trial(path) for path in (None, *answers)}
        costs = paired(trials, rounds)
        runner.run(manager.aclose())
        runner.run(server.stop())
        metrics.unregister()
    nobody = costs["nobody"]
    figures.append(figure("serve: CPU a token, nobody asks", [c.cpu for c in nobody], "µs"))
    for path, told in answers.items():
        found = costs[path]
        cpu = ratios([c.cpu for c in found], [c.cpu for c in nobody])
        rate = ratios([c.rate for c in found], [c.rate for c in nobody])
        name = f"serve: {CLIENTS} clients that ask for {path} without pause"
        figures += [
            figure(f"{name}: CPU with / without", cpu, "×", "about 1"),
            figure(f"{name}: tokens/s with / without", rate, "×", "about 1"),
            figure(f"{name}: answers in all rounds", float(told), "answers"),
        ]
    return figures


async def _run(manager: StreamingManager, questions: int) -> _Cost:
    task = get_task("arithmetic")
    agent = BaseAgent(backend=TinyBackend(), tools=task.tools, reward=task.reward, streaming_manager=manager)
    run = agent.prepare(
        task.max_steps,
        task.rows(questions, SEED),
        4,
        True,
        sampling=task.sampling,
        max_concurrent_chains=16,
        seed=SEED,
    )
    began, cpu = time.perf_counter(), time.process_time()
    result = await run.execute()
    await manager.drain()
    tokens = result.completion_tokens
    return _Cost((time.process_time() - cpu) / tokens * 1e6, tokens / (time.perf_counter() - began))


@contextmanager
def _asking(port: int, path: str) -> Iterator[Callable[[], int]]:
    """Let clients ask while the block runs. It yields a function that afterwards returns how many answers there were."""
    options = json.dumps({"port": port, "path": path, "clients": CLIENTS})
    command = [sys.executable, str(Path(__file__).with_name("askers.py")), options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    told = ""
    try:
        yield lambda: sum(json.loads(told).values())
    finally:
        told, _ = process.communicate("")
