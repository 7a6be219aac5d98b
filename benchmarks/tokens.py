"""Makes tokens like those of a token-exact backend."""

from __future__ import annotations

from rollcast.records import StreamEvent
from rollcast.stream import StreamObserver

__all__ = ["NoOp", "Token", "tokens"]

Token = tuple[str, list[int], list[float]]
"""Text, one id, its log-probability."""


class NoOp(StreamObserver):
    """Takes each event and does nothing."""

    async def on_event(self, event: StreamEvent) -> None:
        """Nothing."""


def tokens(n: int) -> list[Token]:
    """`n` tokens. Texts come from a vocabulary and are shared; ids and log-probabilities are each token's own."""
    vocabulary = [f" word{i}" for i in range(500)]
    return [(vocabulary[i % 500], [1000 + i], [-0.5 - i / 1024]) for i in range(n)]
