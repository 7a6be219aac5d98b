"""Watches a trainer of TRL as it is: `rollcast.attach(trainer)` before `trainer.train()`. See docs/attach/trl.md.

Importing this module loads transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.token_text import CopiedTokenReader, TokenReader
from rollcast.attaching.trl_hooks import TrainerHooks, has_tools, missing_in
from rollcast.attaching.trl_ranks import SharedTraining
from rollcast.attaching.trl_training import AboutTrainer, Training
from rollcast.attaching.versions import note_version
from rollcast.errors import InputError
from rollcast.records.trainer_settings import trainer_settings

__all__ = ["attach", "check"]

logger = logging.getLogger("rollcast.attach")

_WRITTEN_FOR = ("1.16",)
_ONLY_GRPO = ("_tool_call_loop",)
_told: set[str] = set()


def check(trainer: Any, *, tokens: bool = True, name: str | None = None, tags: Sequence[str] = ()) -> None:
    """Check a trainer before it is attached.

    Raises:
        InputError: its chains are Rollcast's own, which are shown already; or an option is wrong.
    """
    if not isinstance(tokens, bool):
        raise InputError(f"tokens is {type(tokens).__name__}; expected True or False")
    if not isinstance(name, str | None):
        raise InputError(f"name is {type(name).__name__}; expected text")
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise InputError(f"tags is {type(tags).__name__}; expected a list of texts")
    rollouts = getattr(trainer, "rollout_func", None)
    if type(rollouts).__module__ == "rollcast.train.trl":
        raise InputError(
            "this trainer's rollout_func is Rollcast's own, whose chains are shown already; add observers to the agent's "
            "streaming_manager, and leave attach out"
        )


def attach(
    trainer: Any,
    attachment: Attachment,
    *,
    tokens: bool = True,
    name: str | None = None,
    tags: Sequence[str] = (),
) -> None:
    """Put the hooks into a trainer.

    Args:
        trainer: a `GRPOTrainer` or an `RLOOTrainer`.
        attachment: its attachment.
        tokens: whether tokens are shown while `generate` samples them; else each turn is shown when it is whole.
        name: what you call the training; in its `run_start`.
        tags: your tags for it; in its `run_start`.
    """
    missing = [name for name in missing_in(trainer) if name not in _ONLY_GRPO or has_tools(trainer)]
    if not note_version("trl", "TRL", _WRITTEN_FOR) or missing:
        _say_missing(type(trainer).__name__, missing)
    tokenizer = getattr(trainer, "_tokenizer", None) or trainer.processing_class
    training = Training(attachment, _about(trainer, name, tags), _shared(trainer))
    TrainerHooks(trainer, attachment, training, _reader_of(tokenizer), tokens=tokens).install()


def _reader_of(tokenizer: Any) -> TokenReader:
    """Reads the texts of ids without special tokens, as TRL makes them for reward functions."""
    try:
        return TokenReader(tokenizer, special=False)
    except AttributeError:
        return CopiedTokenReader(tokenizer, special=False)


def _say_missing(trainer: str, missing: Sequence[str]) -> None:
    if missing and trainer not in _told:
        _told.add(trainer)
        logger.warning(
            "this %s has no %s as TRL %s has: chains are shown when they are whole, with rewards and steps",
            trainer,
            ", ".join(missing),
            _WRITTEN_FOR[-1],
        )


def _shared(trainer: Any) -> SharedTraining | None:
    """What agrees on the run with the other processes; None if this is the only one."""
    if trainer.accelerator.num_processes == 1:
        return None
    store: Any = None
    try:
        from torch.distributed.distributed_c10d import (  # noqa: PLC0415  (torch may be built without it)
            _get_default_store,  # torch has no public name for it
        )

        store = _get_default_store()
    except (ImportError, ValueError, RuntimeError) as error:
        logger.debug("torch.distributed has no store in which processes could agree: %s", error)
    return SharedTraining(bool(trainer.accelerator.is_main_process), store)


def _about(trainer: Any, name: str | None, tags: Sequence[str]) -> AboutTrainer:
    config = getattr(trainer.model, "config", None)
    backend = "transformers"
    if getattr(trainer, "use_vllm", False):
        backend = f"vllm ({getattr(trainer, 'vllm_mode', 'colocate')})"
    elif getattr(trainer, "rollout_func", None) is not None:
        backend = "rollout_func"
    return AboutTrainer(
        agent=type(trainer).__name__,
        model=str(getattr(config, "_name_or_path", "") or type(trainer.model).__name__),
        backend=backend,
        tools=[str(getattr(tool, "__name__", "tool")) for tool in getattr(trainer, "tools", None) or ()],
        settings=trainer_settings(trainer.args),
        seed=int(trainer.args.seed),
        name=name,
        tags=list(tags),
        first=bool(trainer.accelerator.is_main_process),
    )
