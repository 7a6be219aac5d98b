"""What a chain tells its tools and its reward about itself."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rollcast.rollout.given import Given
from rollcast.tools.context import Injected

__all__ = ["ChainContext"]


@dataclass(slots=True)
class ChainContext(Injected):
    """One chain's side of a run. A tool gets it in any parameter that is annotated with it, a reward as `ctx`.

    Attributes:
        row: the fields of the chain's row beside the messages.
        state: scratch space of this chain: what one tool call leaves there, the next ones and the reward find.
        chain_id, group_id, run_id: where the chain belongs.
        seed: of `rng`; made from the run's seed and the chain, so that a tool that draws from it can be repeated.
        given: what `step_reward` and `add_message` gave, until the chain takes it.
    """

    row: Mapping[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    chain_id: str = ""
    group_id: str | None = None
    run_id: str = ""
    seed: int = 0
    _rng: random.Random | None = field(default=None, repr=False)
    given: Given = field(default_factory=Given, repr=False)

    @property
    def rng(self) -> random.Random:
        """Made when it is first asked for: it is larger than all the rest, and most chains draw nothing."""
        if self._rng is None:
            self._rng = random.Random(self.seed)
        return self._rng

    def step_reward(self, reward: float, metrics: Mapping[str, Any] | None = None) -> None:
        """Give the chain a reward for what it has done so far; as often as you like.

        It comes after the calls of this turn, as a `reward` event with `final` false, and stands in `trajectory.step_rewards`. It
        is not added to the chain's own reward, whose function can do that. Call this from any thread.

        Raises:
            InputError: it is not a finite number, or the chain has ended.
        """
        self.given.reward(reward, metrics)

    def add_message(self, message: Mapping[str, Any]) -> None:
        """Add a message to the conversation, such as what a user says meanwhile: `{"role": "user", "content": "…"}`.

        It comes after the calls of this turn, as a `message` event, and the model reads it in its next turn. Call this from any
        thread.

        Raises:
            MessagesError: it has the wrong shape.
            InputError: the chain has ended.
        """
        self.given.message(message)
