"""Measures how fast the embedded model learns each task that ships, and what watching it costs.

Success is measured on held-out questions, sampled and greedy, against the seconds of training; evaluations are not counted.
Seconds are wall-clock, since that is how long a user waits; CPU seconds of the same steps are beside them, in case the cores
were busy. Watching is measured by CPU time of whole trainings, paired, and their weights are compared to the byte.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, figure, paired, ratios
from rollcast.cli.train.shown import ShownChains
from rollcast.models.tiny import TinyBackend
from rollcast.observers import JSONStreamObserver
from rollcast.rollout import BaseAgent
from rollcast.stream import StreamingManager
from rollcast.tasks import get_task, task_names
from rollcast.terminal import ConsoleStreamObserver
from rollcast.train import GRPOConfig, Progress, train

__all__ = ["CURVES", "run"]

SEEDS = (0, 1, 2)
MINUTES = {"arithmetic": 1.0, "guess": 4.0}  # 2 for the others
START_BARS = {"arithmetic": 0.6, "guess": 0.5}
RATE = 6e-4
BAR = 0.95
SHOWN, WATCHED_STEPS = 4, 8
CURVES: dict[str, list[dict[str, Any]]] = {}
"""The curves of the last call of `run`, by task, one per seed. `--save` keeps them beside the figures."""


def run(quick: bool) -> Iterator[Figure]:
    """Measure learning curves of every task, then the cost of watching."""
    CURVES.clear()
    for name in task_names()[:1] if quick else task_names():
        yield from _learning(name, quick)
    yield from _watching(quick)


def _config(task: str, seed: int, quick: bool) -> GRPOConfig:
    if quick:
        return GRPOConfig(steps=2, group=4, questions=4, eval_questions=8, eval_every=1, seed=seed)
    return GRPOConfig(
        minutes=MINUTES.get(task, 2.0),
        learning_rate=RATE,
        eval_every=5,
        seed=seed,
    )


def _learning(name: str, quick: bool) -> Iterator[Figure]:
    task = get_task(name)
    curves = []
    for seed in SEEDS[: 1 if quick else None]:
        agent = BaseAgent(tools=task.tools, reward=task.reward)
        config = _config(name, seed, quick)
        history = asyncio.run(_trained(agent, name, config))
        curves.append(_curve(seed, history))
    CURVES[name] = curves
    told = "2 steps" if quick else f"{MINUTES.get(name, 2.0):g} min"
    for kind in ("sampled", "greedy"):
        first, last = ([curve[kind][at] for curve in curves] for at in (0, -1))
        start_bar = f"<= {START_BARS[name]}" if name in START_BARS and not quick else None
        yield figure(f"learning: {name}, {kind}, at the start", max(first), "of 1", start_bar)
        end_bar = None if quick else f">= {BAR}"
        yield figure(f"learning: {name}, {kind}, after {told}: the median seed", last, "of 1", end_bar)
        yield figure(f"learning: {name}, {kind}, after {told}: the worst seed", min(last), "of 1", end_bar)
        for clock, unit in (("seconds", "s"), ("cpu", "CPU s")):
            reached = [_first_above(curve, kind, clock) for curve in curves]
            if None not in reached:
                times = [value for value in reached if value is not None]
                yield figure(f"learning: {name}, {kind} first at {BAR}: the slowest seed", max(times), unit)
    for part in ("rollout_s", "update_s", "cpu_s"):
        values = [curve[part] for curve in curves]
        yield figure(f"learning: {name}, a step: {part.removesuffix('_s')}", values, "s")


async def _trained(agent: BaseAgent, name: str, config: GRPOConfig) -> list[Progress]:
    async with agent:
        return (await train(agent, get_task(name), config)).history


def _curve(seed: int, history: list[Progress]) -> dict[str, Any]:
    steps = [progress.metrics for progress in history[1:]]
    cpu, at = 0.0, []
    for progress in history:
        cpu += progress.metrics.get("cpu_s", 0.0)
        if progress.evaluation is not None:
            at.append((progress, cpu))
    means = {
        part: sum(metrics[part] for metrics in steps) / len(steps)
        for part in ("rollout_s", "update_s", "cpu_s")
    }
    return {
        "seed": seed,
        "step": [p.step for p, _ in at],
        "seconds": [round(p.seconds, 3) for p, _ in at],
        "cpu": [round(cpu, 3) for _, cpu in at],
        "sampled": [p.evaluation.sampled for p, _ in at if p.evaluation],
        "greedy": [p.evaluation.greedy for p, _ in at if p.evaluation],
        "train_reward": [round(metrics["mean_reward"], 4) for metrics in steps],
        **means,
    }


def _first_above(curve: dict[str, Any], kind: str, clock: str) -> float | None:
    pairs = zip(curve[clock], curve[kind], strict=True)
    return next((float(when) for when, share in pairs if share >= BAR), None)


Watch = Callable[[StreamingManager, Path], Callable[[], None] | None]
"""Adds the observers; what it returns is called after each step."""


def _jsonl(manager: StreamingManager, folder: Path) -> None:
    manager.add_observer(JSONStreamObserver(folder / "events.jsonl"))


def _terminal(manager: StreamingManager, _: Path) -> None:
    chains = [f"chain_{i}" for i in range(SHOWN)]
    manager.add_observer(
        ConsoleStreamObserver(chain_filter=chains, file=io.StringIO(), color=True, width=100)
    )


def _command(manager: StreamingManager, _: Path) -> Callable[[], None]:
    """Show chains as `rollcast train` does: at most one rollout every three seconds."""
    return ShownChains(manager, SHOWN, io.StringIO(), color=True).next_step


WATCHED: dict[str, tuple[Watch, str]] = {
    "every token to JSONL": (_jsonl, "<= 1.1"),
    "4 chains on a terminal, as rollcast train shows them": (_command, "<= 1.03"),
    "4 chains of every rollout on a terminal": (_terminal, "<= 1.03"),
}


def _watching(quick: bool) -> Iterator[Figure]:
    watchers: dict[str, Watch | None] = {"nobody": None} | {name: who for name, (who, _) in WATCHED.items()}
    trials = {name: _trial(who, quick) for name, who in watchers.items()}
    results = paired(trials, 1 if quick else 9)
    cpu = {name: [seconds for seconds, _ in found] for name, found in results.items()}
    yield figure(f"learning: nobody watches, CPU of {WATCHED_STEPS} steps", cpu["nobody"], "s")
    for name, (_, bar) in WATCHED.items():
        yield figure(f"learning: {name} / nobody", ratios(cpu[name], cpu["nobody"]), "×", bar)
    weights = [data for found in results.values() for _, data in found]
    different = sum(data != weights[0] for data in weights)
    yield figure("learning: trainings whose weights differ by a byte", float(different), "", "<= 0")


def _trial(watch: Watch | None, quick: bool) -> Callable[[], tuple[float, bytes]]:
    """CPU seconds of a training until its observer is closed, and the final weights."""
    size = {"steps": 1, "group": 4, "questions": 4} if quick else {"steps": WATCHED_STEPS}

    async def whole() -> tuple[float, bytes]:
        task = get_task("arithmetic")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            manager = StreamingManager()
            agent = BaseAgent(
                backend=TinyBackend(), tools=task.tools, reward=task.reward, streaming_manager=manager
            )
            after = watch(manager, folder) if watch is not None else None
            began = time.process_time()
            config = GRPOConfig(**size, eval_questions=1, eval_every=0, save_every=0)
            told = None if after is None else lambda _: after()
            result = await train(agent, task, config, out=folder / "out", on_progress=told)
            await manager.aclose()
            cpu = time.process_time() - began
            await agent.backend.close()
            step = result.history[-1].step
            return cpu, (folder / f"out/step-{step:06d}/model.safetensors").read_bytes()

    return lambda: asyncio.run(whole())
