"""`rollcast train --trainer trl`: runs TRL's `GRPOTrainer` on the same questions, with the same evaluations.

Importing this module loads torch and TRL.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from rollcast.aio import call_in
from rollcast.cli.train.settings import TrainSettings
from rollcast.errors import CheckpointError, InputError, RolloutCancelledError
from rollcast.grace import run_to_the_end
from rollcast.models import EMBEDDED
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.rollout import BaseAgent
from rollcast.tasks import Task
from rollcast.train import Evaluation, Progress, TrainResult
from rollcast.train.checkpoint import sole_writer
from rollcast.train.questions import Questions
from rollcast.train.scored import cancelled_by_watcher, check_scored, success
from rollcast.train.trl import make_rollout_func

__all__ = ["make_agent", "train_with_trl"]

_HELD_OUT = 128
_MOST_ROWS = 10_000  # after these the questions repeat
_ENDLESS = 1_000_000  # steps, if minutes end it
_COMPLETION_TOKENS = 1024  # everything after the prompt, with observations
_GREATEST_SEED = 2**32 - 1
_DEFAULTS = {"group": 8, "questions": 16, "eval_every": 10, "seed": 0}


def make_agent(task: Task, model: str | None) -> BaseAgent:
    """Make an agent whose weights TRL trains: in float32, since anything shorter loses small updates.

    Raises:
        InputError: the model cannot be loaded.
    """
    _silence_libraries()
    name = str(CHECKPOINT) if model in (None, EMBEDDED) else model
    assert name is not None
    return BaseAgent(
        name,
        task.tools,
        "transformers",
        reward=task.reward,
        name=task.name,
        backend_options={"dtype": "float32", "keep_cache": False},
    )


def _silence_libraries() -> None:
    """Silence the libraries' progress bars and logs: the panel shows the same."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("trl").setLevel(logging.ERROR)


async def train_with_trl(
    agent: BaseAgent,
    task: Task,
    settings: TrainSettings,
    out: Path,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], bool],
    name: str,
) -> TrainResult:
    """Train like `rollcast.train.train` with TRL, on a thread. Arguments and result are the same.

    Raises:
        InputError: the agent cannot be trained by TRL, or TRL refuses a setting.
    """
    _silence_libraries()
    given = {name: value for name in _DEFAULTS if (value := getattr(settings, name)) is not None}
    chosen = _DEFAULTS | given
    if chosen["seed"] > _GREATEST_SEED:
        raise InputError(f"seed is {chosen['seed']}; TRL takes a whole number from 0 to {_GREATEST_SEED}")
    questions = Questions(task, chosen["seed"], _HELD_OUT)
    rows = questions.of_step(1, min((settings.steps or _MOST_ROWS) * chosen["questions"], _MOST_ROWS))
    if agent.reward is None:
        raise InputError("the agent has no reward to learn from; give it one: BaseAgent(…, reward=…)")
    rollouts = make_rollout_func(
        agent, rows, max_steps=task.max_steps, max_tokens=task.sampling.max_tokens, name=name, tags=settings.tag
    )  # fmt: skip
    loop = asyncio.get_running_loop()

    def tell(progress: Progress) -> None:
        call_in(loop, on_progress, progress)

    def ends() -> bool:
        return stop() or rollouts.callback.cancelled

    watch = _Watch(agent, task, questions, settings, chosen, tell, ends, rollouts.run_id)

    def work() -> None:
        config = _config(agent, settings, chosen, task, out)
        with sole_writer(out):
            trainer = GRPOTrainer(
                model=rollouts.backend.model,
                args=config,
                processing_class=rollouts.backend.tokenizer,
                reward_funcs=rollouts.reward,
                rollout_func=rollouts,
                train_dataset=rollouts.train_dataset,
                callbacks=[rollouts.callback, watch],
            )
            trainer.remove_callback(PrinterCallback)  # the panel shows it
            try:
                rollouts.learn(trainer, resume_from_checkpoint=True if settings.resume else None)
            except (OSError, SafetensorError) as error:  # while TRL saves; it reads and writes nothing else
                whole = "resume from the last whole one" if any(out.glob("checkpoint-*")) else "train anew"
                raise CheckpointError(
                    f"the checkpoint in {out} cannot be written or read: {error}; make room, and {whole}"
                ) from error
        if rollouts.callback.cancelled:
            watch.stopped = "interrupted"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and transformers' warnings about each other
        await _in_daemon_thread(work)
    found = [progress.evaluation for progress in watch.history if progress.evaluation is not None]
    found = found or [Evaluation(math.nan, math.nan, 0)]  # the first was cancelled
    return TrainResult(
        rollouts.run_id, watch.history, found[0], found[-1], out, watch.stopped, rollouts.callback.why
    )


async def _in_daemon_thread(work: Callable[[], None]) -> None:
    """Wait for the work; if the wait is cancelled, by a second Ctrl-C, the work does not delay the program's end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error = None
        try:
            work()
        except BaseException as caught:  # noqa: BLE001  it is raised in the waiting task
            error = caught
        call_in(loop, settle, error)  # if the loop has ended, nothing waits

    threading.Thread(target=run, name="rollcast-trl", daemon=True).start()
    await done


def _config(
    agent: BaseAgent, settings: TrainSettings, chosen: dict[str, int], task: Task, out: Path
) -> GRPOConfig:
    on_cpu = getattr(getattr(agent.backend, "model", None), "device", torch.device("cpu")).type == "cpu"
    more: dict[str, Any] = {} if settings.lr is None else {"learning_rate": settings.lr}
    try:
        return GRPOConfig(
            str(out),
            max_steps=settings.steps or _ENDLESS,
            num_generations=chosen["group"],
            per_device_train_batch_size=chosen["group"],
            gradient_accumulation_steps=chosen["questions"],
            max_completion_length=_COMPLETION_TOKENS,
            temperature=task.sampling.temperature,
            lr_scheduler_type="constant",
            seed=chosen["seed"],
            logging_steps=1,
            save_steps=20,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=on_cpu,
            bf16=not on_cpu,
            gradient_checkpointing=None,
            **more,
        )
    except ValueError as error:
        raise InputError(f"TRL refuses a setting: {error}") from error


class _Watch(TrainerCallback):
    """Reports steps, evaluates on held-out questions, and ends the training when it is time."""

    def __init__(
        self,
        agent: BaseAgent,
        task: Task,
        questions: Questions,
        settings: TrainSettings,
        chosen: dict[str, int],
        tell: Callable[[Progress], None],
        stop: Callable[[], bool],
        run_id: str,
    ) -> None:
        self.agent = agent
        self.task = task
        self.questions = questions
        self.settings = settings
        self.chosen = chosen
        self.tell = tell
        self.stop = stop
        self.run_id = run_id
        self.history: list[Progress] = []
        self.stopped: Literal["steps", "minutes", "interrupted"] = "steps"
        self.began = time.perf_counter()
        self.evaluating_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()
        step = int(state.global_step)
        self._note(Progress(step, step, 0.0, {}, self._evaluate(step)))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step = int(state.global_step)
        seconds = time.perf_counter() - self.began - self.evaluating_s
        ends = self._ends(step, seconds)
        if ends is not None:
            self.stopped = ends
            control.should_training_stop = control.should_save = True
        every = self.chosen["eval_every"]
        due = ends in ("steps", "minutes") or (ends is None and every > 0 and step % every == 0)
        evaluation = None
        try:
            evaluation = self._evaluate(step) if due else None
        finally:  # also if a watcher cancelled it
            self._note(Progress(step, step, seconds, self._metrics(logs), evaluation))

    def _ends(self, step: int, seconds: float) -> Literal["steps", "minutes", "interrupted"] | None:
        if self.settings.steps is not None and step >= self.settings.steps:
            return "steps"
        if self.settings.minutes is not None and seconds >= 60 * self.settings.minutes:
            return "minutes"
        return "interrupted" if self.stop() else None

    def _note(self, progress: Progress) -> None:
        self.history.append(progress)
        self.tell(progress)

    def _metrics(self, logs: dict[str, Any]) -> dict[str, float]:
        metrics = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        questions = self.chosen["questions"]
        if "reward" in metrics:
            metrics["mean_reward"] = metrics["reward"]
        if "frac_reward_zero_std" in metrics:
            metrics["flat_groups"] = round(metrics["frac_reward_zero_std"] * questions)
            metrics["kept_groups"] = questions - metrics["flat_groups"]
        chains = questions * self.chosen["group"]
        metrics["failed"] = round(metrics.get("rollcast/unrewarded", 0.0) * chains)
        if metrics.get("step_time"):
            length = metrics.get("completions/mean_length", 0.0)
            metrics["tokens_per_s"] = length * chains / metrics["step_time"]
        return metrics

    def _evaluate(self, step: int) -> Evaluation:
        began = time.perf_counter()
        sampled, greedy = (self._success(t, step) for t in (self.task.sampling.temperature, 0.0))
        self.evaluating_s += time.perf_counter() - began
        return Evaluation(sampled, greedy, len(self.questions.evaluated), self.questions.held_out)

    def _success(self, temperature: float, step: int) -> float:
        async def play() -> float:
            await self.agent.backend.update_weights(None, step)  # the cache belongs to older weights
            run = self.agent.prepare(
                self.task.max_steps,
                self.questions.evaluated,
                1,
                bool(self.agent.streaming_manager.observers),
                sampling=msgspec.structs.replace(self.task.sampling, temperature=temperature),
                seed=0,
                about={"parent_run_id": self.run_id, "split": "eval", "train_step": step},
            )
            result = await run.execute()
            await self.agent.backend.update_weights(None, step)
            if cancelled := cancelled_by_watcher(result, f"the evaluation after step {step}"):
                raise RolloutCancelledError(cancelled)
            check_scored(result.trajectories, f"the evaluation after step {step}")
            return success(result.trajectories)

        return run_to_the_end(play())
