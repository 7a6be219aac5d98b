"""What a proxy counts: plain numbers, which only its event loop changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Counts"]


@dataclass
class Counts:
    """How many requests there were, and what became of them.

    Attributes:
        requests: by kind of path.
        answers: by status.
        open: how many are answered now.
        unreachable: how often the engine could not be reached or gave no answer.
        cut: how many answers the engine broke off.
        left: how many callers left before their answer was whole.
        refused: how many the proxy refused itself.
        watched: how many somebody watched.
        turned: how many of those were made streams for that.
        faults: how often the proxy's own watching failed.
    """

    requests: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    open: int = 0
    unreachable: int = 0
    cut: int = 0
    left: int = 0
    refused: int = 0
    watched: int = 0
    turned: int = 0
    faults: int = 0
