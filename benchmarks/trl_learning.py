"""Measures how long the embedded trainer and TRL's `GRPOTrainer` take to teach the same model the same questions, both on the CPU.

Both begin with the checkpoint that ships, sample 8 chains of each of 16 questions per step, with the same questions in the same
order, and make two updates from each step's chains; optimizer, learning rate, warm-up and clipping are the same. Held-out
questions are sampled every few steps, while the clock is stopped. What differs: TRL's chains are sampled by Rollcast's
transformers backend, TRL trains in torch, keeps groups whose chains all have the same reward, and computes the old
log-probabilities again. torch gets one thread or two, whichever was faster in a short trial; the embedded trainer has two, and
one while it samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from benchmarks.measure import Figure, figure, ratios
from rollcast.errors import MissingExtraError
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.rollout import BaseAgent
from rollcast.tasks import Task, get_task
from rollcast.train import GRPOConfig, Progress, train
from rollcast.train.questions import Questions

try:
    import torch
    import trl
    from transformers import TrainerCallback

    from rollcast.train import trl as trl_trainer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"accelerate", "datasets", "torch", "transformers", "trl"}:
        raise
    raise MissingExtraError("the benchmark `trl`", "train") from error

__all__ = ["CURVES", "run"]

SEEDS = (0, 1, 2)
BAR = 0.95
UPDATES = 2  # from each step's chains
TORCH_THREADS = (1, 2)
NAMES = {"embedded": "embedded trainer", "trl": "TRL"}
CURVES: dict[str, list[dict[str, Any]]] = {}
"""The curves of the last call of `run`, by trainer, one per seed. `--save` keeps them beside the figures."""


class Size(NamedTuple):
    """A training: steps, or seconds if those are over first; questions and chains per question; what is evaluated how often."""

    steps: int = 60
    seconds: float = 180.0
    questions: int = 16
    group: int = 8
    held_out: int = 128
    every: int = 2


QUICK = Size(steps=1, questions=4, group=4, held_out=8, every=1)
WARM = Size(steps=2, held_out=8)


@dataclass
class Curve:
    """A training with one seed.

    Attributes:
        seed: the seed of questions and rollouts.
        step, seconds, cpu, sampled: one entry per evaluation; seconds of wall clock and CPU since the beginning, without
            evaluations, and the share of held-out questions that were answered right, sampled at temperature 1.
        step_seconds, step_cpu: one entry per step.
    """

    seed: int
    step: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    step_cpu: list[float] = field(default_factory=list)

    def evaluated(self, sampled: float) -> None:
        """Note an evaluation after the steps so far."""
        self.step.append(len(self.step_seconds))
        self.seconds.append(math.fsum(self.step_seconds))
        self.cpu.append(math.fsum(self.step_cpu))
        self.sampled.append(sampled)

    def first_above(self, clock: str) -> float:
        """When the bar was reached for the first time; infinite if it never was."""
        pairs = zip(getattr(self, clock), self.sampled, strict=True)
        return next((when for when, share in pairs if share >= BAR), math.inf)


def run(quick: bool) -> Iterator[Figure]:
    """Measure the seconds to the bar and per step, and where each seed ended."""
    CURVES.clear()
    size = QUICK if quick else Size()
    # First, so that what is loaded at the first call is loaded now.
    warm = QUICK if quick else WARM
    threads = min(TORCH_THREADS, key=lambda n: _trl(0, warm, n).step_seconds[-1])
    _embedded(0, warm)
    yield figure("trl: TRL, torch threads", threads, "threads")
    trainers: dict[str, Callable[[int, Size], Curve]] = {
        "embedded": _embedded,
        "trl": lambda seed, size: _trl(seed, size, threads),
    }
    curves: dict[str, list[Curve]] = {name: [] for name in trainers}
    for i, seed in enumerate(SEEDS[: 1 if quick else None]):
        for name in sorted(trainers, reverse=bool(i % 2)):
            curves[name].append(trainers[name](seed, size))
    for name, found in curves.items():
        CURVES[name] = [asdict(curve) for curve in found]
        yield from _figures(NAMES[name], found)
    yield from _compared(curves["embedded"], curves["trl"])


def _figures(name: str, curves: list[Curve]) -> Iterator[Figure]:
    ends = [curve.sampled[-1] for curve in curves]
    yield figure(f"trl: {name}, sampled at the start", curves[0].sampled[0], "of 1")
    yield figure(f"trl: {name}, sampled at the end: the median seed", ends, "of 1")
    yield figure(f"trl: {name}, sampled at the end: the worst seed", min(ends), "of 1")
    yield figure(
        f"trl: {name}, the fewest steps of a seed", min(len(c.step_seconds) for c in curves), "steps"
    )
    never = sum(math.isinf(curve.first_above("seconds")) for curve in curves)
    yield figure(f"trl: {name}, seeds of {len(curves)} that never came to {BAR}", never, "seeds")
    for clock, unit in (("seconds", "s"), ("cpu", "CPU s")):
        reached = [curve.first_above(clock) for curve in curves]
        for which, value in (("median", statistics.median(reached)), ("slowest", max(reached))):
            if math.isfinite(value):
                yield figure(f"trl: {name}, first at {BAR}: the {which} seed", value, unit)
    yield figure(f"trl: {name}, a step", _medians(curves, "step_seconds"), "s")
    yield figure(f"trl: {name}, a step, CPU", _medians(curves, "step_cpu"), "s")


def _compared(embedded: list[Curve], other: list[Curve]) -> Iterator[Figure]:
    for part, words in (("step_seconds", "a step"), ("step_cpu", "CPU of a step")):
        yield figure(
            f"trl: {words}, TRL / embedded", ratios(_medians(other, part), _medians(embedded, part)), "×"
        )
    for clock, words in (("seconds", "seconds"), ("cpu", "CPU seconds")):
        a, b = ([curve.first_above(clock) for curve in curves] for curves in (other, embedded))
        if all(map(math.isfinite, (*a, *b))) and all(b):
            yield figure(f"trl: {words} to {BAR}, TRL / embedded", ratios(a, b), "×")


def _medians(curves: list[Curve], part: str) -> list[float]:
    return [statistics.median(getattr(curve, part)) for curve in curves]


# -- the embedded trainer ------------------------------------------------------------------------------------------------


def _config(seed: int, size: Size) -> GRPOConfig:
    return GRPOConfig(
        steps=size.steps, questions=size.questions, group=size.group, minibatches=UPDATES, seed=seed,
        eval_questions=size.held_out, eval_every=size.every, save_every=0, entropy_bonus=0,
    )  # fmt: skip


def _embedded(seed: int, size: Size) -> Curve:
    task = get_task("arithmetic")
    told: list[Progress] = []

    async def trained() -> None:
        async with BaseAgent(tools=task.tools, reward=task.reward) as agent:
            await train(
                agent, task, _config(seed, size), on_progress=told.append,
                stop=lambda: told[-1].seconds >= size.seconds,
            )  # fmt: skip

    asyncio.run(trained())
    curve = Curve(seed)
    for before, progress in zip([None, *told], told, strict=False):
        if before is not None:
            curve.step_seconds.append(progress.seconds - before.seconds)
            curve.step_cpu.append(progress.metrics["cpu_s"])
        if progress.evaluation is not None:
            curve.evaluated(progress.evaluation.sampled)
    return curve


# -- TRL -----------------------------------------------------------------------------------------------------------------


def _trl(seed: int, size: Size, threads: int) -> Curve:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _trained_by_trl(seed, size)
    finally:
        torch.set_num_threads(before)


def _trained_by_trl(seed: int, size: Size) -> Curve:
    task, same = get_task("arithmetic"), _config(seed, size)
    questions = Questions(task, seed, size.held_out)
    rows = [row for step in range(size.steps) for row in questions.of_step(step + 1, size.questions)]
    agent = BaseAgent(
        str(CHECKPOINT), task.tools, "transformers", reward=task.reward,
        backend_options={"dtype": "float32", "device": "cpu", "max_batch": size.questions * size.group},
    )  # fmt: skip
    clock = _Clock(agent, task, questions, size, Curve(seed))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and transformers' warnings about each other
        config = trl.GRPOConfig(
            folder,
            max_steps=size.steps * UPDATES,
            num_generations=size.group,
            per_device_train_batch_size=size.questions * size.group // UPDATES,
            steps_per_generation=UPDATES,
            max_completion_length=1024,
            temperature=same.temperature,
            shuffle_dataset=False,
            learning_rate=same.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=same.warmup_steps * UPDATES,
            adam_beta2=0.98,
            max_grad_norm=same.max_grad_norm,
            epsilon=same.clip_low,
            epsilon_high=same.clip_high,
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a summary, in the middle of the table
            trl_trainer.train(
                agent,
                rows,
                config,
                callbacks=[clock],
                max_steps=task.max_steps,
                max_tokens=task.sampling.max_tokens,
            )
    asyncio.run(agent.backend.close())
    return clock.curve


class _Clock(TrainerCallback):
    """Counts the seconds of steps, evaluates while the clock is stopped, and ends the training when the time is over."""

    def __init__(self, agent: BaseAgent, task: Task, questions: Questions, size: Size, curve: Curve) -> None:
        self.agent, self.task, self.questions, self.size, self.curve = agent, task, questions, size, curve
        self._began = 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer."""
        self.curve.evaluated(self._success(0))
        self._began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer after each update."""
        if state.global_step % UPDATES:
            return
        wall, cpu = self._began
        self.curve.step_seconds.append(time.perf_counter() - wall)
        self.curve.step_cpu.append(time.process_time() - cpu)
        step = len(self.curve.step_seconds)
        over = math.fsum(self.curve.step_seconds) >= self.size.seconds
        if over:
            control.should_training_stop = True
        if over or step % self.size.every == 0 or step == self.size.steps:
            self.curve.evaluated(self._success(int(state.global_step)))
        self._began = time.perf_counter(), time.process_time()

    def _success(self, version: int) -> float:
        async def play() -> float:
            backend = self.agent.backend
            await backend.update_weights(None, version)  # its cached prompts belong to older weights
            result = await self.agent.run_async(
                self.task.max_steps, self.questions.evaluated, 1, sampling=self.task.sampling, seed=0
            )
            await backend.update_weights(None, version)  # waits for its last step
            return sum(t.reward is not None and t.reward >= 1 for t in result) / len(result)

        return asyncio.run(play())
