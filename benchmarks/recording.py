"""What writing a record costs, and how large it is."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.tokens import tokens
from rollcast import JSONStreamObserver, StreamingManager, StreamObserver, ToolAgent
from rollcast.archive import Archive, ArchiveObserver
from rollcast.models.tiny import TinyBackend
from rollcast.tasks import get_task

__all__ = ["run"]

CHAINS = 64
TURNS = 4
LENGTH = 256  # tokens of a generation

Make = Callable[[Path], StreamObserver | None]


def run(quick: bool) -> list[Figure]:
    """A loop that only writes tokens, a run of the embedded model, and a whole training of it."""
    with tempfile.TemporaryDirectory(prefix="rollcast-recording-") as folder:
        root = Path(folder)
        return [
            *_written(root, 2 if quick else 15, 4 if quick else CHAINS),
            *_of_a_real_run(root, 1 if quick else 15),
            *_of_a_training(root, *((1, 1) if quick else (9, 8))),
        ]


def _written(root: Path, rounds: int, chains: int) -> Iterator[Figure]:
    numbers = itertools.count()
    makers: dict[str, Make] = {
        "none": lambda _path: None,
        "json lines": lambda path: JSONStreamObserver(path.with_suffix(".jsonl")),
        "auto": lambda path: ArchiveObserver(path, level="auto"),
        "tokens": lambda path: ArchiveObserver(path, level="tokens"),
        "tokens, no trajectories": lambda path: ArchiveObserver(path, level="tokens", trajectories=False),
    }
    trials = {name: _trial(make, root, numbers, chains) for name, make in makers.items()}
    results = paired(trials, rounds)
    count = chains * TURNS * LENGTH
    cost = {name: [seconds / count * 1e6 for seconds in values] for name, values in results.items()}
    more = {name: [x - y for x, y in zip(values, cost["none"], strict=True)] for name, values in cost.items()}
    yield figure("recording: reference: a loop that speaks, a token", cost["none"], "µs")
    yield figure("recording: JSON lines, a token more", more["json lines"], "µs")
    yield figure("recording: auto, tokens unwatched, a token more", more["auto"], "µs")
    yield figure("recording: tokens, a token more", more["tokens"], "µs")
    yield figure("recording: tokens / JSON lines", ratios(more["tokens"], more["json lines"]), "×", "<= 1.5")
    lean = ratios(more["tokens, no trajectories"], more["json lines"])
    yield figure("recording: the same without trajectories", lean, "×")
    path = root / "sizes"
    _speak(ArchiveObserver(path, level="turns"), chains)
    events, trajectories = (_bytes(path / part) / count for part in ("events", "trajectories"))
    yield figure("recording: sealed at turns, random ids: events, a token", events, "B", "<= 12")
    yield figure("recording: trajectories beside them, a token", trajectories, "B")
    yield figure("recording: both, a token", events + trajectories, "B")


def _trial(make: Make, root: Path, numbers: Iterator[int], chains: int) -> Callable[[], float]:
    return lambda: _speak(make(root / f"run-{next(numbers)}"), chains)


def _speak(observer: StreamObserver | None, chains: int) -> float:
    """CPU seconds of a run in which this many chains write tokens at once, until everything is on the disk."""
    manager = StreamingManager(drain_timeout=60)
    if observer is not None:
        manager.add_observer(observer)

    async def whole() -> None:
        async with manager.run(chains=chains) as run:

            async def one(number: int) -> None:
                rng = random.Random(number)
                with run.chain([{"role": "user", "content": f"question {number}"}]) as chain:
                    for turn in range(TURNS):
                        with chain.generation(prompt_ids=[1, 2, 3]) as generation:
                            for i, (text, _, _) in enumerate(tokens(LENGTH)):
                                generation.chunk(text, [rng.randrange(30_000)], [-rng.random()])
                                if i % 4 == 0:
                                    await asyncio.sleep(0)
                        with chain.tool_call("look", {"turn": turn}) as call:
                            call.observation("seen")
                    chain.reward(1.0)

            await asyncio.gather(*map(one, range(chains)))
        await manager.aclose()

    began = time.process_time()
    asyncio.run(whole())
    return time.process_time() - began


def _of_a_real_run(root: Path, rounds: int) -> Iterator[Figure]:
    """A run of the embedded model, with and without a record. A training would add its own work to both sides."""
    numbers = itertools.count()
    task = get_task("guess")

    def played(*, recorded: bool) -> float:
        agent = ToolAgent(backend=TinyBackend(), tools=list(task.tools), reward=task.reward)
        if recorded:
            agent.streaming_manager.add_observer(ArchiveObserver(root / f"played-{next(numbers)}"))

        async def whole() -> None:
            await agent.run_async(8, task.rows(16), enable_streaming=True)
            await agent.streaming_manager.aclose()

        began = time.process_time()
        asyncio.run(whole())
        return time.process_time() - began

    results = paired({"off": lambda: played(recorded=False), "auto": lambda: played(recorded=True)}, rounds)
    yield figure(
        "recording: a run of the embedded model, auto / off",
        ratios(results["auto"], results["off"]),
        "×",
        "<= 1.02",
    )


def _of_a_training(root: Path, rounds: int, steps: int) -> Iterator[Figure]:
    """A training as a command, from its start to its exit, and the size of its record."""
    numbers = itertools.count()
    records = root / "trainings"

    def trained(*options: str) -> float:
        """CPU seconds of the process."""
        command = [
            sys.executable,
            "-c",
            "from rollcast.cli import main; main()",
            "train",
            "--task",
            "arithmetic",
            "--seed",
            "1",
        ]
        out = root / f"training-{next(numbers)}"
        command += ["--steps", str(steps), "--out", str(out), *options]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            command, check=True, capture_output=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    results = paired(
        {
            "off": lambda: trained("--no-record"),
            "auto": lambda: trained("--record-dir", str(records)),
        },
        rounds,
    )
    chains = [Archive.open(path).facts.totals for path in records.glob("*/")]
    yield figure(
        "recording: a training of the embedded model, auto / off",
        ratios(results["auto"], results["off"]),
        "×",
        "<= 1.02",
    )
    more = [(a - b) / chains[0].chains * 1e3 for a, b in zip(results["auto"], results["off"], strict=True)]
    yield figure("recording: a chain of it, more", more, "ms")
    sampled = sum(totals.completion_tokens for totals in chains)
    for part in ("events", "trajectories"):
        size = sum(_bytes(path / part) for path in records.glob("*/"))
        yield figure(f"recording: its {part}, a sampled token", size / sampled, "B")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
