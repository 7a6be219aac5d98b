"""The settings of a trainer that its run shows: how it learns, and nothing of where it stores or whom it tells."""

from __future__ import annotations

from typing import Any

from rollcast.records.jsonable import plain_scalar

__all__ = ["trainer_settings"]

_NAMES = (
    "learning_rate", "lr_scheduler_type", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_generations", "num_iterations", "steps_per_generation", "max_completion_length",
    "temperature", "top_p", "top_k", "beta", "epsilon", "epsilon_high", "loss_type", "scale_rewards", "max_grad_norm", "weight_decay",
    "warmup_steps", "bf16", "fp16",
)  # fmt: skip


def trainer_settings(args: Any) -> dict[str, Any]:
    """The settings of a `GRPOConfig` and its like that tell how a training goes; it also has paths, and tokens of hubs."""
    found = {name: plain_scalar(getattr(args, name, None)) for name in _NAMES}
    return {name: value for name, value in found.items() if value is not None}
