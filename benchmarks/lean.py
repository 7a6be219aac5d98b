"""A backend without a model, so that only the agent's loop and the streaming are measured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rollcast.models.backend import BaseBackend, Delta, GenerationRequest
from rollcast.records import Message

__all__ = ["VOCABULARY", "LeanBackend"]

VOCABULARY = [f" word{i}" for i in range(500)]


class _Renderer:
    def render(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
        return [1, 2, 3]

    def extend(
        self, ids: list[int], messages: list[Message], new: int, tools: list[dict[str, Any]]
    ) -> list[int]:
        return [4]


class LeanBackend(BaseBackend):
    """Yields `length` tokens per generation, each with its own id and log-probability, one per turn of the event loop.

    `hold` is awaited before the last token.
    """

    name = model_name = "lean"
    token_exact = logprobs = True
    renderer = _Renderer()

    def __init__(self, length: int, hold: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.length = length
        self._hold = hold

    async def generate(self, request: GenerationRequest | None) -> AsyncIterator[Delta]:
        """See `Backend.generate`."""
        last = self.length - 1
        for i in range(self.length):
            await asyncio.sleep(0)
            if i == last and self._hold is not None:
                await self._hold()
            text = VOCABULARY[i % 500]
            yield Delta(text, [1000 + i], [-0.5 - i / 1024], 0, finish_reason="stop" if i == last else None)
