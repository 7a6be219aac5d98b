"""The learning loop of the embedded model: rollouts, a batch of them, an update, the new weights, and again."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from rollcast.aio import wait_uncancelled
from rollcast.errors import CheckpointError, InputError
from rollcast.models.tiny import TinyBackend
from rollcast.models.tiny.weights import read_weights
from rollcast.records import StreamEvent, StreamEventType
from rollcast.rollout import BaseAgent, RunResult
from rollcast.rollout.rows import derived_seed
from rollcast.rollout.workers import Workers
from rollcast.stream.processes import SharedRun
from rollcast.stream.run import RunWriter, new_run_id
from rollcast.tasks import Task
from rollcast.train.batch import TrainBatch, make_batch
from rollcast.train.checkpoint import Checkpoints, sole_writer
from rollcast.train.config import GRPOConfig
from rollcast.train.embedded import EmbeddedTrainer, one_blas_thread
from rollcast.train.figures import rollout_figures
from rollcast.train.questions import Questions
from rollcast.train.scored import cancelled_by_watcher, check_scored, success

__all__ = ["Evaluation", "Progress", "TrainResult", "train"]

logger = logging.getLogger("rollcast.train")

Stopped = Literal["steps", "minutes", "interrupted"]
_T = TypeVar("_T")

_FLAT_STEPS_TO_TELL = 20
_FREE_AT_RESUME = {"steps", "minutes", "eval_every", "eval_questions", "save_every"}


@dataclass(frozen=True)
class Evaluation:
    """How well the weights do on held-out questions. A chain succeeds if its reward is 1 or more.

    Attributes:
        sampled: share of successes at the rollouts' temperature, with one chain per question.
        greedy: the same at temperature 0.
        questions: how many questions; they are the same in every evaluation, and for every seed.
        held_out: False if the task has too few different questions to keep any from training.
    """

    sampled: float
    greedy: float
    questions: int
    held_out: bool = True


@dataclass(frozen=True)
class Progress:
    """The state of training after a step; step 0 is before the first.

    Attributes:
        step: steps taken, including those without an update.
        policy_version: the version of the weights that sample now: 1 more with every update.
        seconds: time spent on training so far, without evaluations and checkpoints.
        metrics: this step's; empty at step 0. `mean_reward`, `success` (share of chains with a reward of 1 or more),
            `kept_groups`, `flat_groups`, `failed`, `staleness`, `tokens` (trained on), `reward_std`, `tokens_per_s` (sampled,
            over the whole step), `rollout_s`, `update_s`, `cpu_s` (both, for the whole process); if there was an update those
            of `EmbeddedTrainer.step`; and the figures of the rollout (train/figures.py).
        evaluation: the evaluation after this step, if there was one.
    """

    step: int
    policy_version: int
    seconds: float
    metrics: dict[str, float]
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class TrainResult:
    """The result of training.

    Attributes:
        run_id: the training run's id: `train_step` events carry it, and rollouts name it as their parent.
        history: step 0 and every step after it, including those before a resumption.
        start, end: the first evaluation and the last, which is of the final weights unless training was interrupted. They
            have 0 questions and NaN if it was interrupted before the first was complete.
        out: the folder with the checkpoints, or None.
        stopped: what ended it.
        why: if a watcher ended it, what he cancelled, in a sentence; else empty.
    """

    run_id: str
    history: list[Progress]
    start: Evaluation
    end: Evaluation
    out: Path | None
    stopped: Stopped
    why: str = ""


async def train(
    agent: BaseAgent,
    task: Task,
    config: GRPOConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    workers: Workers | None = None,
) -> TrainResult:
    """Train the embedded model on a task with GRPO.

    The agent's backend samples from the new weights after each step. Observers of the agent's streaming manager see every
    token. The same seed gives the same weights to the byte, whether anything observes, and whether or not training was
    interrupted in between.

    Args:
        agent: an agent on a `TinyBackend`, with the task's tools and reward.
        task: gives the questions.
        config: how long and how to train.
        out: a folder for checkpoints; it is made if it does not exist.
        resume: go on from the newest checkpoint in `out`, or from the beginning if there is none.
        on_progress: called in the event loop after each step, and before the first if training begins anew.
        stop: asked after each step; True ends training properly, with a checkpoint.
        name: what its owner calls the training; in its `run_start`.
        tags: its owner's tags for it; in its `run_start`.
        workers: run the chains, and get the new weights after each step; None: this process runs them. The weights that are
            learned are the same.

    Raises:
        InputError: the agent cannot be trained here, every sequence of a step is longer than `config.max_tokens`, the
            gradient is not finite, `out` and `resume` do not go together with what is there, or another training writes to
            `out`.
        CheckpointError: a checkpoint cannot be written or read; those that were written stay.
        BackendError: every chain of a step or an evaluation failed; the last whole step was saved.
        RewardError: no chain of a step or an evaluation has a reward; the last whole step was saved.
        WorkersError: the workers cannot be started, or all died; the last whole step was saved.
        asyncio.CancelledError: the caller was cancelled; the last whole step was saved.
    """
    training = await _in_thread(functools.partial(_Training, agent, task, config, out, on_progress, workers))
    training.name, training.tags = name, tags
    if workers is not None:
        await workers.start(agent)  # now, since its backend still has the weights of its folder
    with one_blas_thread(), ExitStack() as stack:
        if training.out is not None:
            await _in_thread(functools.partial(stack.enter_context, sole_writer(training.out)))
        async with training.training_run() as training_run:
            why = ""
            try:
                stopped = await training.run(resume, stop)
                if stopped == "interrupted":
                    why = training.why_interrupted
            except _InterruptedError as error:
                stopped, why = "interrupted", str(error)
            finally:  # also if the caller was cancelled, or a backend failed
                await training.save()
            if stopped == "interrupted":
                training_run.close("cancelled")
    start, end = training.evaluations
    return TrainResult(training.run_id, training.history, start, end, training.out, stopped, why)


class _InterruptedError(Exception):
    """A watcher cancelled a rollout, or all of its chains. The message says which."""


class _Training:
    """The state of one `train` call. `save` writes the last whole step, whenever it is called."""

    def __init__(
        self,
        agent: BaseAgent,
        task: Task,
        config: GRPOConfig,
        out: Path | None,
        on_progress: Callable[[Progress], None] | None,
        workers: Workers | None,
    ) -> None:
        self.workers = workers
        self.agent, self.task, self.config = agent, task, config
        if not isinstance(config, GRPOConfig):
            raise InputError(
                f"config is a {type(config).__module__}.{type(config).__name__}; expected a rollcast.train.GRPOConfig (TRL's is for "
                "rollcast.train.trl.train)"
            )
        self.backend = _trainable(agent)
        self.out = None if out is None else Path(out).absolute()  # a tool may change the current folder
        self.on_progress = on_progress
        self.run_id = SharedRun.take() or new_run_id()
        self.history: list[Progress] = []
        self.questions = Questions(task, config.seed, config.eval_questions)
        # Refuses rows that lack a field that the reward needs.
        agent.prepare(task.max_steps, self.questions.evaluated)
        self.trainer = EmbeddedTrainer(self.backend.config, read_weights(self.backend.folder), config)
        self.checkpoints = None if self.out is None else Checkpoints(self.out, self.backend.folder)
        self.flat_in_a_row = 0
        self.name: str | None = None
        self.tags: Sequence[str] = ()
        self._cancelled = False
        self.best: tuple[float, int] | None = None  # success, step
        self._whole: tuple[dict[str, Any], dict[str, Any]] | None = (
            None  # weights and state after the last whole step
        )

    @property
    def evaluations(self) -> tuple[Evaluation, Evaluation]:
        """The first and the last."""
        found = [progress.evaluation for progress in self.history if progress.evaluation is not None]
        none = Evaluation(math.nan, math.nan, 0)
        return (found[0], found[-1]) if found else (none, none)

    def training_run(self) -> RunWriter:
        """The training as a run of its own, to be entered: its rollouts name it, and it has the `train_step` events."""
        return self.agent.streaming_manager.run(
            chains=0, groups=0, agent=self.agent.name, model=self.backend.model_name, backend=self.backend.name,
            policy_version=self.backend.policy_version, run_id=self.run_id, on_cancel=self._cancel,
            seed=self.config.seed, tools=self.agent.tool_schemas,
            settings={"task": self.task.name, **msgspec.to_builtins(self.config)}, name=self.name, tags=self.tags,
        )  # fmt: skip

    def _cancel(self, _: str | None) -> None:
        """End the training after this step, as a watcher asked. It is called from any thread."""
        self._cancelled = True

    @property
    def why_interrupted(self) -> str:
        """A sentence that says what a watcher cancelled; empty if nothing was."""
        return (
            "a watcher cancelled the training, which ends after the step it was in" if self._cancelled else ""
        )

    async def run(self, resume: bool, stop: Callable[[], bool] | None) -> Stopped:
        """Train from the beginning, or the newest checkpoint, to the end."""
        await self._begin(resume)
        stopped = self._stop_reason(stop)
        if stopped in ("steps", "minutes") and self.history[-1].evaluation is None:
            await self._evaluate()  # it was interrupted while it evaluated
            self._report_progress()
        while stopped is None:
            await self._step()
            stopped = self._stop_reason(stop)
            due = self.config.eval_every and self.history[-1].step % self.config.eval_every == 0
            if stopped != "interrupted" and (stopped or due):
                await self._evaluate()
            self._report_progress()
            if not stopped and self._save_is_due():
                await self.save()
        return stopped

    def _stop_reason(self, stop: Callable[[], bool] | None) -> Stopped | None:
        now, config = self.history[-1], self.config
        if config.steps is not None and now.step >= config.steps:
            return "steps"
        if config.minutes is not None and now.seconds >= 60 * config.minutes:
            return "minutes"
        return "interrupted" if self._cancelled or (stop is not None and stop()) else None

    def _save_is_due(self) -> bool:
        now, every = self.history[-1], self.config.save_every
        improved = self.best is not None and self.best[1] == now.step
        return improved or bool(every and now.step % every == 0)

    async def _begin(self, resume: bool) -> None:
        found = self.checkpoints is not None and bool(await _in_thread(self.checkpoints.steps))
        if found and not resume:
            raise InputError(
                f"{self.out} has checkpoints of another training; resume it (resume=True), or give another folder"
            )
        if resume and self.checkpoints is None:
            raise InputError(
                "resume was asked for without a folder; give out, the folder with the checkpoints"
            )
        if self.backend.policy_version and not found:
            raise InputError(
                f"the agent's backend has weights of version {self.backend.policy_version}, which came from elsewhere, and "
                "training begins with those of its folder; make a new TinyBackend, or resume from a checkpoint"
            )
        if found:
            await self._resume()
            return
        self.history.append(Progress(0, 0, 0.0, {}))
        self._keep_whole_step()
        await self._evaluate()
        self._report_progress()
        await self.save()

    async def _resume(self) -> None:
        assert self.checkpoints is not None
        load = functools.partial(self.checkpoints.load, self.backend.config)
        saved = await _in_thread(load)
        where = f"the checkpoint {saved.folder}"
        try:
            config = msgspec.convert(saved.about["config"], GRPOConfig)
            self.history = msgspec.convert(saved.about["history"], list[Progress])
            task = saved.about["task"]
            self.trainer.load_state(saved.weights, saved.state)
            if not self.history:
                raise InputError("its history is empty")
        except (KeyError, InputError, msgspec.ValidationError) as error:
            raise CheckpointError(
                f"{where} lacks what training needs ({error}); delete it to go on from an earlier one, or train anew"
            ) from error
        if task != self.task.name:
            raise InputError(f"{where} is for the task {task!r}; resume with that, or give another folder")
        for name in GRPOConfig.__struct_fields__:
            was, asked = getattr(config, name), getattr(self.config, name)
            if was != asked and name not in _FREE_AT_RESUME:
                raise InputError(
                    f"{where} was made with {name}={was!r}, but {asked!r} was given; resume with the same, or train anew"
                )
        for progress in self.history:
            self._note_best(progress)
        self._keep_whole_step()
        await self._give_weights(self.history[-1].policy_version)
        if self.history[-1].step == 0 and self.history[-1].evaluation is None:
            await self._evaluate()

    def _note_best(self, progress: Progress) -> None:
        if progress.evaluation is not None and progress.evaluation.sampled >= (self.best or (0.0, 0))[0]:
            self.best = progress.evaluation.sampled, progress.step

    async def _step(self) -> None:
        config, before = self.config, self.history[-1]
        began, cpu = time.perf_counter(), time.process_time()
        step, version = before.step + 1, before.policy_version
        result = await self._play(
            self.questions.of_step(step, config.questions), config.group, config.temperature,
            derived_seed("rollouts", config.seed, step), "train", step,
        )  # fmt: skip
        played = time.perf_counter()
        check_scored(result.trajectories, f"step {step}")
        batch = make_batch(
            result, version=version, max_tokens=config.max_tokens, scale=config.scale_advantages
        )
        if batch.statistics.dropped_long and not len(batch):
            _check_lengths(result, config.max_tokens, step)
        metrics = _metrics(result, batch)
        if len(batch):
            metrics |= await _in_thread(lambda: self.trainer.step(batch))
            version += 1
            await self._give_weights(version)
        self._count_flat(batch, step)
        now = time.perf_counter()
        metrics |= {
            "tokens_per_s": result.completion_tokens / (now - began),
            "rollout_s": played - began,
            "update_s": now - played,
            "cpu_s": time.process_time() - cpu,
        }
        metrics |= rollout_figures(result.trajectories, self.agent.tools)
        self.history.append(Progress(step, version, before.seconds + now - began, metrics))
        self._keep_whole_step()
        data = {"train_step": step, "policy_version": version, "metrics": metrics}
        if self.agent.streaming_manager.observers:
            data["chains"] = {result.run_id: batch.learned_of(result, before.policy_version)}
        self.agent.streaming_manager.emit(
            StreamEvent(StreamEventType.TRAIN_STEP, "", time.time(), data, run_id=self.run_id)
        )

    async def _give_weights(self, version: int) -> None:
        """Have everything that samples do so from the trainer's weights."""
        await self.backend.update_weights(self.trainer.weights, version)
        if self.workers is not None:
            await self.workers.update_weights(self.trainer.weights, version)

    def _count_flat(self, batch: TrainBatch, step: int) -> None:
        self.flat_in_a_row = 0 if len(batch) else self.flat_in_a_row + 1
        if self.flat_in_a_row and self.flat_in_a_row % _FLAT_STEPS_TO_TELL == 0:
            logger.warning(
                "step %d: for %d steps all chains of each question had the same reward (mean %.3g), so there was nothing to "
                "learn; the task is solved, or too hard for this model",
                step, self.flat_in_a_row, batch.statistics.mean_reward,
            )  # fmt: skip

    async def _play(
        self, rows: list[dict[str, Any]], chains: int, temperature: float, seed: int, split: str, step: int
    ) -> RunResult:
        # The trainer computes the probabilities of the whole distribution, so none of it is cut off.
        sampling = msgspec.structs.replace(self.task.sampling, temperature=temperature, top_p=1.0, top_k=0)
        run = self.agent.prepare(
            self.task.max_steps,
            rows,
            chains,
            enable_streaming=bool(self.agent.streaming_manager.observers),
            sampling=sampling,
            seed=seed,
            workers=self.workers,
            about={"parent_run_id": self.run_id, "split": split, "train_step": step},
        )
        result = await run.execute()
        if cancelled := cancelled_by_watcher(
            result, f"{'step' if split == 'train' else 'the evaluation after step'} {step}"
        ):
            raise _InterruptedError(cancelled)
        return result

    async def _evaluate(self) -> None:
        """Evaluate, and add the result to the last step."""
        rows = self.questions.evaluated
        step = self.history[-1].step
        sampled = await self._play(rows, 1, self.config.temperature, 0, "eval", step)
        greedy = await self._play(rows, 1, 0.0, 0, "eval", step)
        for result in (sampled, greedy):
            check_scored(result.trajectories, f"the evaluation after step {step}")
        evaluation = Evaluation(
            success(sampled.trajectories), success(greedy.trajectories), len(rows), self.questions.held_out
        )
        self.history[-1] = replace(self.history[-1], evaluation=evaluation)
        self._note_best(self.history[-1])

    def _report_progress(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.history[-1])

    def _keep_whole_step(self) -> None:
        if self.checkpoints is not None:
            weights = {name: array.copy() for name, array in self.trainer.weights.items()}
            self._whole = weights, self.trainer.state()

    async def save(self) -> None:
        """Write a checkpoint of the last whole step, if there is a folder for it."""
        if self.checkpoints is None or self._whole is None:
            return
        checkpoints, (weights, state) = self.checkpoints, self._whole
        about = {
            "task": self.task.name,
            "run_id": self.run_id,
            "config": self.config,
            "history": self.history,
        }
        best = None if self.best is None else self.best[1]
        await _in_thread(lambda: checkpoints.save(self.history[-1].step, weights, state, about, best))


def _trainable(agent: BaseAgent) -> TinyBackend:
    backend = agent.backend
    if not isinstance(backend, TinyBackend):
        raise InputError(
            f"train() trains only the embedded model, and this agent's backend is {backend.name}; give it "
            "backend='tiny', or train other models with rollcast.train.trl"
        )
    if agent.reward is None:
        raise InputError(
            "the agent has no reward to learn from; give it one: BaseAgent(…, reward=task.reward)"
        )
    return backend


def _check_lengths(result: RunResult, max_tokens: int | None, step: int) -> None:
    """Raise if no sequence is short enough to be learned from."""
    lengths = [len(segment.token_ids) for t in result for segment in t.segments]
    if max_tokens is not None and min(lengths) > max_tokens:
        raise InputError(
            f"all {len(lengths)} sequences of step {step} are too long: they have {min(lengths)} tokens or more, and "
            f"max_tokens is {max_tokens}; allow more"
        )


def _metrics(result: RunResult, batch: TrainBatch) -> dict[str, float]:
    told = batch.statistics
    return {
        "mean_reward": told.mean_reward,
        "success": success(result.trajectories),
        "kept_groups": told.groups - told.flat_groups,
        "flat_groups": told.flat_groups,
        "failed": told.failed,
        "staleness": told.staleness_mean,
        "tokens": told.tokens,
        "reward_std": told.reward_std,
    }


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Do the work on a thread, and wait for it even if the caller is cancelled: it must not be seen half done."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await wait_uncancelled([task])
        raise
