"""What a chain tells its tools and its reward about itself."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """

    row: Mapping[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    chain_id: str = ""
    group_id: str | None = None
    run_id: str = ""
    seed: int = 0
    _rng: random.Random | None = field(default=None, repr=False)

    @property
    def rng(self) -> random.Random:
        """Made when it is first asked for: it is larger than all the rest, and most chains draw nothing."""
        if self._rng is None:
            self._rng = random.Random(self.seed)
        return self._rng
