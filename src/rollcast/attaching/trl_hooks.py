"""The hooks in a TRL trainer: methods of this one object that are wrapped, and a callback.

Each hook copies what the trainer will change, and tells the watch's thread. Nothing else happens in the trainer's own threads.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import transformers

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.token_text import TokenReader
from rollcast.attaching.trl_batch import AboutBatch, Batch
from rollcast.attaching.trl_tokens import streaming
from rollcast.attaching.trl_tools import ToolLoop
from rollcast.attaching.trl_training import Training
from rollcast.attaching.trl_vllm import EngineRows, engine_rows
from rollcast.records.event import RunStatus

__all__ = ["EXPECTED", "TrainerHooks", "has_tools", "missing_in"]

EXPECTED: Mapping[str, tuple[str, ...]] = {
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("prompts", "completions", "completion_ids_list"),
    "_generate": ("prompts",),
    "_generate_single_turn": ("prompt_ids",),
    "_tool_call_loop": ("prompts", "completions"),
}
"""The methods that are wrapped, and the parameters of theirs that are read."""


def has_tools(trainer: Any) -> bool:
    """Whether the trainer calls tools of its own."""
    return bool(getattr(trainer, "tools", None))


def missing_in(trainer: Any) -> list[str]:
    """Which of `EXPECTED` this trainer does not have, or not with these parameters."""
    return [name for name, wanted in EXPECTED.items() if not _takes(getattr(trainer, name, None), wanted)]


def _takes(method: Any, wanted: Sequence[str]) -> bool:
    if not callable(method):
        return False
    try:
        return set(wanted) <= set(inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return False


class TrainerHooks:
    """The hooks in one trainer.

    Args:
        trainer: the trainer.
        attachment: its attachment.
        training: what it is told.
        reader: reads the ids as text.
        tokens: whether tokens are shown while they are sampled.
    """

    def __init__(
        self, trainer: Any, attachment: Attachment, training: Training, reader: TokenReader, *, tokens: bool
    ) -> None:
        self._trainer = trainer
        self._attachment = attachment
        self._watch = attachment.watch
        self._training = training
        self._reader = reader
        self._tokens = tokens
        self._batch: Batch | None = None
        self._loop: ToolLoop | None = None
        self._engine: EngineRows | None = None  # the vLLM that the trainer holds
        self._knows_engine = False
        self._phase = "backend"  # in which the trainer would fail now

    def install(self) -> None:
        """Put all hooks in. Detaching takes them out."""
        missing = missing_in(self._trainer)
        self._wrap("train", self._around_train)
        around = {
            "_generate_and_score_completions": self._around_batch,
            "_calculate_rewards": self._around_rewards,
            "_generate": self._around_generate,
            "_generate_single_turn": self._around_turn,
            "_tool_call_loop": self._around_tools,
        }
        for name, wrapper in around.items():
            if name not in missing:
                self._wrap(name, wrapper)
        callback = _Callback(self._attachment, self._training)
        self._trainer.add_callback(callback)
        self._undo_later(_remove_callback, callback)

    def _wrap(self, name: str, around: Callable[..., Any]) -> None:
        """Replace a method of this trainer by `around(method, *args, **kwargs)`; detaching puts the method back."""
        own = vars(self._trainer)
        was_own = name in own  # somebody else's hook
        method = getattr(self._trainer, name)

        @functools.wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self._attachment.attached:
                return method(*args, **kwargs)
            return around(method, *args, **kwargs)

        own[name] = watched
        self._undo_later(functools.partial(_unwrap, name, was_own=was_own), watched)

    def _undo_later(self, undo: Callable[[Any, Any], object], hook: Any) -> None:
        """Have `undo(trainer, hook)` called when the trainer is detached.

        The attachment must keep neither of them alive: it outlives a trainer that nobody detached.
        """
        trainer_of, hook_of = weakref.ref(self._trainer), weakref.ref(hook)

        def undo_now() -> None:
            trainer, there = trainer_of(), hook_of()
            if trainer is not None and there is not None:
                undo(trainer, there)

        self._attachment.on_detach(undo_now)

    # -- the training --------------------------------------------------------------------------------------------------

    def _around_train(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        status: RunStatus = "failed"
        try:
            result = method(*args, **kwargs)
            status = "completed"
            return result
        except KeyboardInterrupt:
            status = "cancelled"
            raise
        finally:
            self._watch.tell(self._training.end, status)

    # -- a generation batch --------------------------------------------------------------------------------------------

    def _around_batch(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch: Batch | None = None
        with self._watch.guarded():
            inputs = _named(method, args, kwargs)["inputs"]
            batch = self._batch = Batch(self._training, self._about_batch(len(inputs)), self._reader)
            self._loop, self._phase = None, "backend"
            self._watch.tell(batch.begin, [dict(row) for row in inputs])
        try:
            result = method(*args, **kwargs)
        except BaseException as error:
            if batch is not None:
                cancelled = not isinstance(error, Exception)
                self._watch.tell(batch.failed, error, self._phase, "cancelled" if cancelled else "failed")
            raise
        finally:
            self._batch = self._loop = None
        with self._watch.guarded():
            if batch is not None:
                self._watch.tell(batch.end, self._advantages(result, len(inputs)))
        return result

    def _about_batch(self, count: int) -> AboutBatch:
        trainer = self._trainer
        is_training = bool(trainer.model.training)
        repeats = trainer.num_generations
        if not is_training:
            repeats = getattr(trainer, "num_generations_eval", repeats)
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        sampling = {name: getattr(trainer, name, None) for name in names}
        sampling["max_tokens"] = getattr(trainer, "max_completion_length", None)
        return AboutBatch(
            split="train" if is_training else "eval",
            step=int(trainer.state.global_step),
            sampling={name: value for name, value in sampling.items() if value is not None},
            repeats=max(1, int(repeats)),
            first=trainer.accelerator.process_index * count,
            ends=_end_ids(trainer),
        )

    def _advantages(self, result: Any, count: int) -> list[float]:
        """The advantages of all rows, of all processes. TRL keeps them for `log_completions`."""
        processes = self._trainer.accelerator.num_processes
        if processes == 1:
            found = result.get("advantages") if isinstance(result, Mapping) else None
            return [] if found is None else [float(value) for value in found.tolist()]
        kept = list(getattr(self._trainer, "_logs", {}).get("advantages", ()))
        return kept[-processes * count :] if len(kept) >= processes * count else []

    def _around_generate(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch = self._batch
        with self._watch.guarded():
            if batch is not None:
                prompts = [_copied(prompt) for prompt in _named(method, args, kwargs)["prompts"]]
                self._watch.tell(batch.prompts, prompts, self._tool_names(len(prompts)))
        result = method(*args, **kwargs)
        with self._watch.guarded():
            if batch is not None and getattr(self._trainer, "rollout_func", None) is not None:
                masks, logprobs = (
                    None if rows is None else [list(row) for row in rows] for rows in (result[2], result[4])
                )
                self._watch.tell(batch.rolled_out, masks, logprobs)
        return result

    def _tool_names(self, count: int) -> list[list[str]]:
        if not has_tools(self._trainer):
            return []
        both = zip(self._trainer._sync_tool_dicts, self._trainer._async_tool_dicts, strict=True)  # noqa: SLF001  (TRL keeps them nowhere else)
        return [[*sync, *others] for sync, others in both][:count]

    # -- turns and tools -----------------------------------------------------------------------------------------------

    def _around_turn(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch, loop, watch = self._batch, self._loop, self._watch
        tokens = None
        with watch.guarded():
            if batch is not None:
                prompt_ids = _named(method, args, kwargs)["prompt_ids"]
                numbers = range(len(prompt_ids)) if loop is None else loop.rows_of_next_turn()
                copies = [list(ids) for ids in prompt_ids]
                watch.tell(batch.turn_begins, numbers, copies)
                if self._tokens and self._attachment.streaming_manager.observers:
                    tokens = batch
                    self._note_engine()
                    if self._engine is not None:
                        watch.tell(self._engine.turn, batch, copies)
        with streaming(self._trainer, watch, tokens):
            result = method(*args, **kwargs)
        with watch.guarded():
            if batch is not None:
                ids, logprobs = (
                    result if isinstance(result, tuple) else (result, None)
                )  # RLOO returns ids alone
                copied = None if logprobs is None else [list(values) for values in logprobs]
                may_call = has_tools(self._trainer)
                if self._engine is not None:
                    watch.tell(self._engine.over)
                watch.tell(batch.turn_ends, [list(row) for row in ids], copied, may_call)
        return result

    def _note_engine(self) -> None:
        """Hook the vLLM engine that the trainer holds, the first time that it generates."""
        if not self._knows_engine and getattr(self._trainer, "use_vllm", False):
            self._knows_engine = True
            self._engine = engine_rows(self._trainer, self._attachment)

    def _around_tools(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loop: ToolLoop | None = None
        with self._watch.guarded():
            if self._batch is not None:
                completions = _named(method, args, kwargs)["completions"]
                loop = self._loop = ToolLoop(self._watch, self._batch, completions)
                loop.wrap(self._trainer)
                loop.look()
        try:
            return method(*args, **kwargs)
        finally:
            self._loop = None
            if loop is not None:
                with self._watch.guarded():
                    loop.look()
                    loop.unwrap(self._trainer)

    # -- rewards -------------------------------------------------------------------------------------------------------

    def _around_rewards(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch = self._batch
        count = 0
        with self._watch.guarded():
            if batch is not None:
                given = _named(method, args, kwargs)
                ids = [list(row) for row in given["completion_ids_list"]]
                count = len(ids)
                prompts = [_copied(prompt) for prompt in given["prompts"]]
                completions = [_copied(completion) for completion in given["completions"]]
                self._phase = "reward"
                self._watch.tell(batch.completed, prompts, completions, ids)
        result = method(*args, **kwargs)
        with self._watch.guarded():
            if batch is not None:
                self._phase = "agent"
                trainer = self._trainer
                first = trainer.accelerator.process_index * count
                rewards = result.tolist()[first : first + count]
                weights = trainer.reward_weights.tolist()
                self._watch.tell(batch.rewards, list(trainer.reward_func_names), rewards, weights)
        return result


def _unwrap(name: str, trainer: Any, watched: Any, *, was_own: bool) -> None:
    own = vars(trainer)
    if own.get(name) is not watched:
        return  # somebody has wrapped it since; what is detached lets every call through
    if was_own:
        own[name] = watched.__wrapped__
    else:
        del own[name]


def _remove_callback(trainer: Any, callback: Any) -> None:
    trainer.remove_callback(callback)


class _Callback(transformers.TrainerCallback):
    """Tells of the training's begin, its logs and its end."""

    def __init__(self, attachment: Attachment, training: Training) -> None:
        self._watch = attachment.watch
        self._training = training
        self._trains = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with self._watch.guarded():
            self._trains = True
            self._watch.tell(self._training.begin, int(state.global_step))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        with self._watch.guarded():
            self._watch.tell(self._training.log, int(state.global_step), dict(logs or {}))

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with self._watch.guarded():
            if not self._trains:  # `trainer.evaluate()` by itself
                self._watch.tell(self._training.end, "completed")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with self._watch.guarded():
            self._trains = False
            self._watch.tell(self._training.end, "completed")


def _named(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return inspect.signature(method).bind(*args, **kwargs).arguments


def _copied(text_or_messages: Any) -> Any:
    """Text as it is; a list with its own dicts."""
    if isinstance(text_or_messages, str):
        return text_or_messages
    return [dict(message) for message in text_or_messages]


def _end_ids(trainer: Any) -> frozenset[int]:
    """The ids after which a completion is whole. TRL before 1.0 had one."""
    ids = getattr(trainer, "eos_token_ids", None) or [getattr(trainer, "eos_token_id", None)]
    return frozenset(int(token_id) for token_id in ids if token_id is not None)
