"""The embedded trainer's settings: one checked object."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from rollcast.errors import InputError

__all__ = ["GRPOConfig"]


class GRPOConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of GRPO; the defaults are values with which the embedded model learns well.

    Exactly one of `steps` and `minutes` says when training ends. The values are checked when the object is made.

    Attributes:
        steps: how many times to roll out and update.
        minutes: how long to train; evaluations do not count.
        group: chains per question; their rewards are compared with each other.
        questions: questions per step.
        learning_rate: AdamW's learning rate, after the warm-up.
        warmup_steps: steps over which it rises linearly; 0: no warm-up.
        clip_low, clip_high: the probability ratio counts between 1 - clip_low and 1 + clip_high
            (https://arxiv.org/abs/1707.06347; the higher upper end: https://arxiv.org/abs/2503.14476).
        minibatches: updates in each pass over a step's chains; fewer if few chains are left.
        epochs: passes over a step's chains.
        max_grad_norm: longer gradients are scaled down to it.
        entropy_bonus: weight of the mean entropy of the sampled tokens' distributions (nats), which is added to the
            objective (https://arxiv.org/abs/1602.01783, section 4) so that chains keep differing, and there is something to
            compare; 0: none.
        temperature: the temperature of the rollouts, and of the probabilities that are trained.
        scale_advantages: divide by the group's standard deviation (https://arxiv.org/abs/2402.03300), or not
            (https://arxiv.org/abs/2503.20783).
        max_tokens: longer sequences are not trained on; None: all are.
        seed: the seed of questions, rollouts and minibatches: the same seed gives the same weights to the byte.
        eval_every: steps between evaluations; 0: only at the start and the end.
        eval_questions: held-out questions per evaluation.
        save_every: steps between checkpoints, if there is a folder for them; 0: only at the end.

    Raises:
        InputError: a value is out of range, or not exactly one of `steps` and `minutes` is given.
    """

    steps: int | None = None
    minutes: float | None = None
    group: int = 8
    questions: int = 16
    learning_rate: float = 6e-4
    warmup_steps: int = 5
    clip_low: float = 0.2
    clip_high: float = 0.28
    minibatches: int = 2
    epochs: int = 1
    max_grad_norm: float = 1.0
    entropy_bonus: float = 0.003
    temperature: float = 1.0
    scale_advantages: bool = True
    max_tokens: int | None = None
    seed: int = 0
    eval_every: int = 10
    eval_questions: int = 128
    save_every: int = 20

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            found = "neither" if self.steps is None else "both"
            raise InputError(
                f"{found} of steps and minutes are given; expected exactly one, such as minutes=1"
            )
        given: dict[str, Any] = msgspec.structs.asdict(self)
        for name, lowest in _WHOLE.items():
            value = given[name]
            if value is None and name in {"steps", "max_tokens"}:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise InputError(f"{name} is {value!r}; expected a whole number from {lowest} upward")
        for name in _POSITIVE:
            value = given[name]
            if value is None and name == "minutes":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{name} is {value!r}; expected a number above 0")
        bonus: Any = self.entropy_bonus
        if isinstance(bonus, bool) or not isinstance(bonus, int | float) or not 0 <= bonus < math.inf:
            raise InputError(f"entropy_bonus is {bonus!r}; expected a number from 0 upward")
        if self.clip_low >= 1:
            raise InputError(f"clip_low is {self.clip_low!r}; expected a number above 0 and below 1")
        if not isinstance(self.scale_advantages, bool):
            raise InputError(f"scale_advantages is {self.scale_advantages!r}; expected True or False")


# A group of one has nothing to be compared with.
_WHOLE = {
    "steps": 1,
    "group": 2,
    "questions": 1,
    "warmup_steps": 0,
    "minibatches": 1,
    "epochs": 1,
    "max_tokens": 1,
    "seed": 0,
    "eval_every": 0,
    "eval_questions": 1,
    "save_every": 0,
}
_POSITIVE = (
    "minutes",
    "learning_rate",
    "clip_low",
    "clip_high",
    "max_grad_norm",
    "temperature",
)
