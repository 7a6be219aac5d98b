"""Gives TRL's `GRPOTrainer` an agent's chains as rollouts, sampled in this process from the current weights.

Importing this module loads torch and TRL.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec

from rollcast.aio import running_loop
from rollcast.errors import BackendError, InputError, MissingExtraError, RewardError, RolloutCancelledError
from rollcast.grace import run_to_the_end
from rollcast.models import Sampling
from rollcast.models.checksums import write_checksums
from rollcast.records import StreamEvent, StreamEventType, Trajectory
from rollcast.records.event import LearnedFrom, RunStatus
from rollcast.records.trainer_settings import trainer_settings
from rollcast.rollout import BaseAgent
from rollcast.rollout.rows import as_rows, derived_seed
from rollcast.rollout.settings import ChainPlace
from rollcast.stream.processes import SharedRun
from rollcast.stream.run import RunWriter, new_run_id
from rollcast.train.export import Forked, to_trl
from rollcast.train.figures import chain_figures, maxima, means
from rollcast.train.resumable import check_resumable, numbered
from rollcast.train.scored import cancelled_by_watcher, check_scored

try:
    import accelerate  # TRL would report each missing package in a different way
    import transformers
    from datasets import Dataset
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from trl import GRPOConfig, GRPOTrainer

    from rollcast.models.hf.backend import TransformersBackend
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"accelerate", "datasets", "torch", "transformers", "trl"}:
        raise
    raise MissingExtraError("training with TRL", "train") from error

logger = logging.getLogger("rollcast.train")

__all__ = ["ROW_KEY", "Rollouts", "make_rollout_func", "train"]

ROW_KEY = "rollcast_row"
"""The key in each message of a prompt for the number of its row. TRL passes on prompts, and no other column."""


class Rollouts:
    """What a `GRPOTrainer` needs from an agent. It is itself the `rollout_func`. `make_rollout_func` makes it.

    Attributes:
        train_dataset: one prompt per row.
        eval_dataset: the prompts of the rows for evaluation; None if there are none.
        reward: a reward function with the name of the agent's, which gives TRL the agent's rewards; None for a chain without
            one, which TRL then leaves out of its group.
        callback: makes `train_step` events of TRL's logs.
    """

    def __init__(
        self,
        agent: BaseAgent,
        rows: Sequence[Mapping[str, Any]],
        eval_rows: Sequence[Mapping[str, Any]],
        *,
        max_steps: int,
        max_tokens: int | None,
        forked: Forked,
        name: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self.agent = agent
        self.backend = _backend_of(agent)
        given = [*rows, *eval_rows]
        agent.prepare(max_steps, given)  # refuses wrong rows now, not in the middle of training
        self._rows = [{"messages": row.messages, **row.fields} for row in as_rows(given)]
        if len(self._rows) != len(given):
            raise InputError(
                'rows is one conversation; expected a list of rows, [{"messages": […], "answer": …}, …]'
            )
        self._numbers = _numbers(self._rows)
        self._max_steps = max_steps
        self._max_tokens = max_tokens
        self._forked: Forked = forked
        self._calls: Counter[tuple[str, int]] = Counter()
        self.train_dataset = _dataset(self._rows[: len(rows)], 0)
        self.eval_dataset = _dataset(self._rows[len(rows) :], len(rows)) if eval_rows else None
        self.reward = _reward_function("no_reward" if agent.reward is None else agent.reward.name)
        self.callback = _Events(agent, SharedRun.take() or new_run_id(), name, tags)

    @property
    def run_id(self) -> str:
        """The training run's id; each rollout names it as its `parent_run_id`."""
        return self.callback.run_id

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """Roll out these prompts, in their order; return what TRL's `rollout_func` returns, and the rewards.

        Raises:
            InputError: the trainer trains another model than the agent samples from, or asks for sampling that the agent does
                not have; a prompt is not from one of the rows; a chain forked, and `forked` is `error`.
            BackendError: every chain failed.
            RewardError: no chain has a reward.
            RolloutCancelledError: a watcher cancelled the rollout.
        """
        self._check(trainer)
        numbers = [self._number(prompt) for prompt in prompts]
        split: Literal["train", "eval"] = "train" if trainer.model.training else "eval"
        trajectories = _run_blocking(lambda: self._sample(numbers, trainer, split))
        if self.agent.reward is not None or all(t.finish_reason == "error" for t in trajectories):
            check_scored(trajectories, f"step {trainer.state.global_step}")
        if split == "train":
            self.callback.note_rollout(trajectories, trainer)
        return self._rollout(trajectories, trainer)

    def learn(self, trainer: Any, resume_from_checkpoint: str | bool | None = None) -> None:
        """Call `trainer.train(…)`, and end the training run when it ends.

        If a watcher cancels the training, it ends after the step, with a checkpoint; if a watcher cancels a rollout, it ends
        at once. Then the last whole step is saved, as it is if all chains of a rollout fail or none has a reward, provided
        that the trainer's configuration saves any. With several processes nothing is saved, and a watcher can only end this
        process, by cancelling a rollout.

        Raises:
            CheckpointError: the checkpoint to resume from is not what was saved.
            Exception: what the trainer raises, except `RolloutCancelledError` if there is one process.
        """
        _check_checkpoint(trainer, resume_from_checkpoint)
        callback = self.callback
        alone = trainer.accelerator.num_processes == 1  # the others would wait for this one
        try:
            trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        except RolloutCancelledError as error:
            callback.cancelled, callback.why = True, str(error)
            if not alone:
                raise
            _save_last_step(trainer)
        except (BackendError, RewardError):
            if alone:
                try:
                    _save_last_step(trainer)
                except Exception as error:  # noqa: BLE001  (whatever it is, the rollout's failure is what must be raised)
                    logger.warning("step %d could not be saved: %s", trainer.state.global_step, error)
            raise
        except KeyboardInterrupt:
            callback.cancelled = True
            raise
        finally:
            callback.close("cancelled" if callback.cancelled else "failed")  # if it has not ended yet

    def _check(self, trainer: Any) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        if inner is not self.backend.model:
            raise InputError(
                f"the agent samples from a different {type(self.backend.model).__name__} than the trainer trains; build the backend from "
                "the trainer's: TransformersBackend(model, tokenizer), then GRPOTrainer(model=model, …)"
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise InputError(
                "the trainer uses FSDP or DeepSpeed, which may keep a part of the weights in each process; rollouts in this process "
                "need all of them: train on one device, or with plain data parallelism"
            )
        if trainer.tools or trainer.environment_factories:
            raise InputError(
                "the trainer was given tools or environments of its own; the agent runs tools: leave TRL's out"
            )
        if trainer.min_p or trainer.repetition_penalty not in (None, 1, 1.0):
            raise InputError(
                f"the trainer samples with min_p={trainer.min_p}, repetition_penalty={trainer.repetition_penalty}; agents have "
                "temperature, top_p and top_k: leave the others at their defaults"
            )

    def _number(self, prompt: Any) -> int:
        """Find the prompt's row: by the key in its messages, else by the messages."""
        if not (isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping)):
            raise InputError(
                f"a prompt is {type(prompt).__name__}; expected messages, as the rows have: use train_dataset=rollouts.train_dataset"
            )
        key = prompt[0].get(ROW_KEY)
        numbers = self._numbers.get(_fingerprint(prompt), []) if key is None else [key]
        if not numbers or not 0 <= numbers[0] < len(self._rows):
            raise InputError(
                f"the prompt {_shown(prompt)} is not in the {len(self._rows)} rows that make_rollout_func was given; add it there, "
                "or use train_dataset=rollouts.train_dataset"
            )
        if not all(_is_same(self._rows[number], self._rows[numbers[0]]) for number in numbers):
            raise InputError(
                f"rows {numbers[0]} and {numbers[-1]} both begin with {_shown(prompt)}, and their other fields differ, so a prompt "
                "alone does not tell which is meant; use train_dataset=rollouts.train_dataset, which carries their numbers"
            )
        return int(numbers[0])

    async def _sample(self, numbers: list[int], trainer: Any, split: str) -> list[Trajectory]:
        """Run the chains; afterwards the model is as it was, and nothing computes with it any more."""
        version = int(trainer.state.global_step)
        run_id, parent = _told_by_main_process(trainer, [new_run_id(), self.run_id])
        places = _places(numbers, trainer, split)
        groups = [(number, len(list(same))) for number, same in itertools.groupby(numbers)]
        repeats = groups[0][1]
        if any(count != repeats for _, count in groups):  # a group that several processes share
            groups, repeats = [(number, 1) for number in numbers], 1
        place = (split, version)
        seed = derived_seed(trainer.args.seed, trainer.accelerator.process_index, *place, self._calls[place])
        self._calls[place] += 1
        await self.backend.update_weights(None, version)
        manager = self.agent.streaming_manager
        run = self.agent.prepare(
            self._max_steps, [self._rows[number] for number, _ in groups], repeats, bool(manager.observers),
            sampling=self._sampling(trainer), seed=seed,
            about={
                "run_id": run_id, "parent_run_id": parent, "split": split, "train_step": version + (split == "train"),
            },
            places=places,
        )  # fmt: skip
        try:
            result = await run.execute()
            if result.status == "cancelled":
                raise RolloutCancelledError(
                    f"a watcher cancelled the rollout {run.run_id} of step {version}; the training ends with it"
                )
            if cancelled := cancelled_by_watcher(result, f"step {version}"):
                raise RolloutCancelledError(cancelled)
            return result.trajectories
        finally:
            # If a chain was cut short, its last step may still be running. The first of these waits for that step, the second
            # for the work that came with the first.
            await self.backend.update_weights(None, version)
            await self.backend.update_weights(None, version)

    def _sampling(self, trainer: Any) -> Sampling:
        """The trainer's sampling, since it computes the log-probabilities again at its own temperature."""
        limit = trainer.max_completion_length
        return Sampling(
            temperature=trainer.temperature,
            top_p=1.0 if trainer.top_p is None else trainer.top_p,
            top_k=trainer.top_k or 0,
            max_tokens=min(limit, self._max_tokens or limit),
        )

    def _rollout(self, trajectories: list[Trajectory], trainer: Any) -> dict[str, list[Any]]:
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        limit = trainer.max_completion_length
        rollout: dict[str, list[Any]] = {}
        cut = 0
        for t in trajectories:
            left_out = t.finish_reason in ("error", "cancelled") or (
                t.reward is None and self.agent.reward is not None
            )
            one = _empty_rollout(t, tokenizer.eos_token_id) if left_out else to_trl([t], forked=self._forked)
            cut += len(one["completion_ids"][0]) > limit
            for name in ("completion_ids", "env_mask", "logprobs"):
                one[name][0] = one[name][0][:limit]
            for name, values in one.items():
                rollout.setdefault(name, []).extend(values)
        metrics = [_metrics(t) | chain_figures(t, self.agent.tools) for t in trajectories]
        metrics[0] |= {"rollcast/cut": cut / len(trajectories), **maxima(trajectories)}
        return rollout | {"rollcast_reward": [t.reward for t in trajectories], "rollcast_metrics": metrics}


class _Events(transformers.TrainerCallback):
    """The training as a run, with a `train_step` event for each log that is about a step or an evaluation.

    Attributes:
        run_id: the training run's id; the last one's if there were several.
        cancelled: a watcher asked the training to end; it does after the step, with a checkpoint.
        why: what a watcher cancelled, in a sentence; empty if none did.
    """

    def __init__(self, agent: BaseAgent, run_id: str, name: str | None, tags: Sequence[str]) -> None:
        self._agent = agent
        self.run_id = run_id
        self._name, self._tags = name, tags
        self._run: RunWriter | None = None
        self.cancelled = False
        self.why = ""
        self._played: tuple[list[Trajectory], Any] | None = None
        self._chains: dict[str, dict[str, LearnedFrom]] = {}

    def _cancel(self, _: str | None) -> None:
        self.cancelled, self.why = (
            True,
            "a watcher cancelled the training, which ends after the step it was in",
        )

    def note_rollout(self, trajectories: list[Trajectory], trainer: Any) -> None:
        """Note the trajectories that the trainer learns from next."""
        self._note_advantages()
        if self._agent.streaming_manager.observers and trainer.accelerator.is_main_process:
            self._played = trajectories, trainer

    def _note_advantages(self) -> None:
        """Note the advantages of the last rollout's chains, of all processes, which the trainer has computed by now."""
        if self._played is not None:
            trajectories, trainer = self._played
            self._played = None
            learned = self._chains.setdefault(trajectories[0].run_id, {})
            for number, advantage in enumerate(_advantages(trainer, len(trajectories))):
                learned[f"chain_{number}"] = {"advantage": advantage, "staleness": 0}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note_advantages()
        if self.cancelled:
            control.should_training_stop = control.should_save = True

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        _refuse_vllm(args)  # TRL starts the engine after this

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._run is not None:  # an earlier training's
            self.close("failed")  # that training raised
            self.run_id, self.cancelled, self.why = new_run_id(), False, ""
        if args.world_size > 1:  # one run, which every process has a part of
            told = [self.run_id]
            accelerate.utils.broadcast_object_list(told, from_process=0)
            self.run_id = told[0]
        backend = self._agent.backend
        self._run = self._agent.streaming_manager.run(
            chains=0, groups=0, agent=self._agent.name, model=backend.model_name, backend=backend.name,
            policy_version=int(state.global_step), run_id=self.run_id,
            on_cancel=self._cancel if args.world_size == 1 else None,  # other processes would not hear of it
            seed=int(args.seed), settings=trainer_settings(args), tools=self._agent.tool_schemas,
            name=self._name, tags=self._tags,
        ).open()  # fmt: skip

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        about_a_step = "loss" in logs or any(name.startswith("eval_") for name in logs)
        if self._run is None or not about_a_step or not state.is_world_process_zero:
            return
        step = int(state.global_step)
        metrics = {name: value for name, value in logs.items() if _is_finite(value)}
        event = StreamEvent.now(
            StreamEventType.TRAIN_STEP, train_step=step, policy_version=step, metrics=metrics
        )
        if "loss" in logs and self._chains:
            event.data["chains"], self._chains = self._chains, {}
        self._agent.streaming_manager.emit(msgspec.structs.replace(event, run_id=self.run_id))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:  # each process writes a file of its own
            accelerate.PartialState().wait_for_everyone()
        _note_checksums(args, int(state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close("cancelled" if self.cancelled else "completed")

    def close(self, status: RunStatus) -> None:
        """End the run if it is open, and wait until the observers have everything."""
        if self._run is not None:
            self._run.close(status)
            self._agent.streaming_manager.drain_sync()


def make_rollout_func(
    agent: BaseAgent,
    rows: Sequence[Mapping[str, Any]],
    *,
    eval_rows: Sequence[Mapping[str, Any]] = (),
    max_steps: int = 8,
    max_tokens: int | None = None,
    forked: Forked = "error",
    name: str | None = None,
    tags: Sequence[str] = (),
) -> Rollouts:
    """Make what a `GRPOTrainer` needs to train on an agent's chains.

        rollouts = make_rollout_func(agent, rows)
        GRPOTrainer(
            model=model, args=config, rollout_func=rollouts, train_dataset=rollouts.train_dataset,
            reward_funcs=rollouts.reward, callbacks=[rollouts.callback],
        )

    Temperature, top-p and top-k are the trainer's; a completion (all that comes after the first prompt) is cut to its
    `max_completion_length`. The weights' version is `global_step`. Observers of the agent's manager see the chains.

    Args:
        agent: an agent whose backend is a `TransformersBackend` of the model object that the trainer gets.
        rows: rows as for `run_async`; all of their fields reach rewards and tools.
        eval_rows: rows for the trainer's evaluation.
        max_steps: generations that a chain may have.
        max_tokens: the most tokens in one generation; None: `max_completion_length`.
        forked: TRL takes one sequence per rollout. A chain with several segments is an error, or only its last segment is
            trained on; see `to_trl`.
        name: what its owner calls the training; in its `run_start`.
        tags: its owner's tags for it; in its `run_start`.

    Raises:
        InputError: the agent has another backend, or a row is wrong.
    """
    return Rollouts(
        agent,
        rows,
        eval_rows,
        max_steps=max_steps,
        max_tokens=max_tokens,
        forked=forked,
        name=name,
        tags=tags,
    )


def train(
    agent: BaseAgent,
    rows: Sequence[Mapping[str, Any]],
    config: GRPOConfig,
    *,
    eval_rows: Sequence[Mapping[str, Any]] = (),
    tokenizer: Any = None,
    max_steps: int = 8,
    max_tokens: int | None = None,
    forked: Forked = "error",
    callbacks: Sequence[Any] = (),
    resume_from_checkpoint: str | bool | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
) -> GRPOTrainer:
    """Train the agent's model with TRL's `GRPOTrainer`, and return the trainer. It blocks.

    Args:
        agent: an agent with a reward, and a `TransformersBackend` of a model object; that model is trained in place.
        rows: rows as for `run_async`.
        config: TRL's `GRPOConfig`. `logging_steps=1` makes a `train_step` event of every step.
        eval_rows: rows for the trainer's evaluation, if `config.eval_strategy` asks for one.
        tokenizer: the trainer's `processing_class`; None: the backend's tokenizer.
        max_steps: as in `make_rollout_func`.
        max_tokens: as in `make_rollout_func`.
        forked: as in `make_rollout_func`.
        callbacks: further callbacks for the trainer.
        resume_from_checkpoint: as in `Trainer.train`.
        name: as in `make_rollout_func`.
        tags: as in `make_rollout_func`.

    Raises:
        InputError: the agent has no reward, or another backend; `config` is not a `trl.GRPOConfig`, has `use_vllm=True`, or its
            batches are larger than the rows; see `Rollouts`.
        BackendError, RewardError: every chain of a rollout failed, or none has a reward; see `Rollouts.learn`.
    """
    if not isinstance(config, GRPOConfig):
        raise InputError(
            f"config is a {type(config).__module__}.{type(config).__name__}; expected a trl.GRPOConfig"
        )
    _refuse_vllm(config)
    if agent.reward is None:
        raise InputError(
            "the agent has no reward, so there is nothing to learn; give it one: BaseAgent(…, reward=…)"
        )
    rollouts = make_rollout_func(
        agent,
        rows,
        eval_rows=eval_rows,
        max_steps=max_steps,
        max_tokens=max_tokens,
        forked=forked,
        name=name,
        tags=tags,
    )
    _require_rows(len(rows), config)
    with warnings.catch_warnings():
        # TRL warns that rollout_func is experimental, but the caller of this function did not choose it.
        warnings.filterwarnings("ignore", "You are using 'rollout_func'")
        trainer = GRPOTrainer(
            model=rollouts.backend.model,
            args=config,
            processing_class=rollouts.backend.tokenizer if tokenizer is None else tokenizer,
            reward_funcs=rollouts.reward,
            rollout_func=rollouts,
            train_dataset=rollouts.train_dataset,
            eval_dataset=rollouts.eval_dataset,
            callbacks=[rollouts.callback, *callbacks],
        )
    rollouts.learn(trainer, resume_from_checkpoint)
    return trainer


def _refuse_vllm(args: Any) -> None:
    """Refuse to have TRL start an engine that would never sample anything.

    Raises:
        InputError: the configuration asks for vLLM.
    """
    if getattr(args, "use_vllm", False):
        raise InputError(
            "the configuration has use_vllm=True, but the agent's chains sample in this process from the model that is trained, so the "
            "engine that TRL would start is never used; leave use_vllm out, or let TRL sample by itself and watch it: "
            "rollcast.attach(trainer)"
        )


def _require_rows(count: int, config: GRPOConfig) -> None:
    at_once = (config.generation_batch_size or 0) // config.num_generations
    if count < at_once:
        raise InputError(
            f"there are {count} rows, and a step takes {at_once} (generation_batch_size / num_generations), so TRL would end "
            "without a step; give more rows, or a smaller per_device_train_batch_size"
        )


def _backend_of(agent: BaseAgent) -> TransformersBackend:
    backend = agent.backend
    if not isinstance(backend, TransformersBackend):
        raise InputError(
            f"the agent's backend is {type(backend).__name__} ({backend.name}), whose weights TRL does not train; expected "
            "BaseAgent(backend=TransformersBackend(model, tokenizer)) with the model that the trainer gets"
        )
    return backend


def _dataset(rows: Sequence[Mapping[str, Any]], first: int) -> Dataset:
    """The prompts, each message with the number of its row. The agent reads the rows, whatever TRL does to the prompts."""
    return Dataset.from_list(
        [
            {
                "prompt": [
                    {"role": message["role"], "content": _text(message.get("content")), ROW_KEY: number}
                    for message in row["messages"]
                ]
            }
            for number, row in enumerate(rows, first)
        ]
    )


def _text(content: Any) -> str:
    return (
        content
        if isinstance(content, str)
        else ""
        if content is None
        else msgspec.json.encode(content).decode()
    )


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[bytes, list[int]]:
    """Rows by their messages."""
    numbers: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(_fingerprint(row["messages"]), []).append(number)
    return numbers


def _fingerprint(messages: Sequence[Any]) -> bytes:
    """A key that is equal for equal messages; a dataset fills the fields that one of them lacks with None."""
    return msgspec.json.encode(_without_none(messages), order="sorted")


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows are equal; fields that cannot be compared, such as arrays, are equal if they are the same object."""
    if one.keys() != other.keys():
        return False
    for name, value in one.items():
        if value is other[name]:
            continue
        try:
            if not bool(value == other[name]):
                return False
        except Exception:  # noqa: BLE001  (arrays, and whatever else a user's objects raise)
            return False
    return True


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value


def _shown(prompt: Sequence[Mapping[str, Any]]) -> str:
    return repr(_text(prompt[-1].get("content"))[:60])


def _run_blocking(work: Callable[[], Coroutine[Any, Any, list[Trajectory]]]) -> list[Trajectory]:
    """Run it in an event loop of its own, on another thread if a loop runs in this one, as in a notebook."""
    if running_loop() is None:
        return run_to_the_end(work())
    with ThreadPoolExecutor(1, "rollcast-trl") as pool:
        return pool.submit(lambda: run_to_the_end(work())).result()


def _empty_rollout(t: Trajectory, end_id: int) -> dict[str, list[Any]]:
    """A rollout that is not trained on: TRL wants one for each prompt, with at least one token."""
    prompt_ids = t.turns[0].prompt_ids if t.turns else []
    return {
        "prompt_ids": [prompt_ids or [end_id]],
        "completion_ids": [[end_id]],
        "env_mask": [[0]],
        "logprobs": [[0.0]],
    }


def _metrics(t: Trajectory) -> dict[str, float]:
    """What TRL logs about a chain, as a mean over all chains."""
    own = {f"rollcast/metrics/{name}": float(value) for name, value in t.metrics.items() if _is_finite(value)}
    return own | {
        "rollcast/failed": float(t.finish_reason == "error"),
        "rollcast/unrewarded": float(t.reward is None),
        "rollcast/turns": float(len(t.turns)),
        "rollcast/tool_calls": float(len(t.tool_calls)),
    }


def _save_last_step(trainer: Any) -> None:
    """Save a checkpoint as the trainer does, of the weights after its last whole step, if that has none yet.

    A step begins with its rollouts, so the next step has not changed weights and moments yet.
    """
    step = trainer.state.global_step
    if step and trainer.args.save_strategy != "no" and not _checkpoint_of(trainer.args, step).is_dir():
        trainer._save_checkpoint(trainer.model, trial=None)  # noqa: SLF001  (transformers has no other way to save all of it)
        _note_checksums(trainer.args, step)


def _checkpoint_of(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def _note_checksums(args: Any, step: int) -> None:
    """Write the checksums of a checkpoint, after the trainer has written all its files."""
    folder = _checkpoint_of(args, step)
    if args.should_save and folder.is_dir():
        write_checksums(folder)


def _check_checkpoint(trainer: Any, resume: str | bool | None) -> None:
    """Refuse to resume from a checkpoint whose files are not what was saved. The trainer finds other faults itself."""
    if not resume:
        return
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    here = numbered(Path(trainer.args.output_dir), prefix)
    folder = (here[-1] if here else None) if resume is True else Path(resume)
    if folder is not None and folder.is_dir():
        check_resumable(folder, numbered(folder.absolute().parent, prefix))


def _told_by_main_process(trainer: Any, values: list[Any]) -> list[Any]:
    """The values as the main process has them. All processes call it at the same place, and wait for each other there."""
    if trainer.accelerator.num_processes > 1:
        accelerate.utils.broadcast_object_list(values, from_process=0)
    return values


def _places(numbers: Sequence[int], trainer: Any, split: str) -> list[ChainPlace]:
    """Where this process's chains stand in a rollout of all processes.

    TRL hands out one list of prompts, each `num_generations` times in a row, in equal parts: the first to the first process, and so
    on (`RepeatSampler`, `BatchSamplerShard`). So a group may begin in one process and go on in the next. Of a sampler that orders
    them otherwise, equal neighbours in one process make a group.

    Args:
        numbers: the row of each chain.
        trainer: the trainer.
        split: `train` or `eval`.
    """
    first = trainer.accelerator.process_index * len(numbers)
    repeats = trainer.num_generations
    if split == "eval":
        repeats = getattr(trainer, "num_generations_eval", repeats)
    rows: dict[int, int] = {}
    if all(rows.setdefault((first + j) // repeats, row) == row for j, row in enumerate(numbers)):
        return [ChainPlace(first + j, *divmod(first + j, repeats)) for j in range(len(numbers))]
    places: list[ChainPlace] = []
    for _, same in itertools.groupby(numbers):
        begin = first + len(places)
        places += [ChainPlace(begin + i, begin, i) for i, _ in enumerate(same)]
    return places


def _advantages(trainer: Any, count: int) -> list[float]:
    """The advantages that the trainer computed for the last rollouts, of which each process had `count`, by the chains' numbers.

    They depend on its reward weights and its scaling, so they are not computed again here. TRL keeps them for
    `log_completions`, for one process after the other; the list is empty if another version of TRL does not.
    """
    kept = getattr(trainer, "_logs", {}).get("advantages", ())
    everywhere = trainer.accelerator.num_processes * count
    return [float(advantage) for advantage in list(kept)[-everywhere:]] if len(kept) >= everywhere else []


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _reward_function(name: str) -> Callable[..., list[float | None]]:
    def reward(
        rollcast_reward: list[float | None],
        rollcast_metrics: list[dict[str, float]],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """The agent's reward for each chain; None if it has none."""
        for metric, value in sorted(means(rollcast_metrics).items()):
            log_metric(metric, value)
        return rollcast_reward

    reward.__name__ = name
    return reward
