"""Slows a model down to a reader's pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from rollcast.errors import InputError
from rollcast.models import Backend, Delta, GenerationRequest

__all__ = ["Paced"]


class Paced:
    """Wraps a backend, with a pause before each delta.

    Args:
        backend: the wrapped backend.
        pace: deltas (mostly tokens) per second in each chain.

    Raises:
        InputError: the pace is not above 0.
    """

    def __init__(self, backend: Backend, pace: float) -> None:
        if not pace > 0:
            raise InputError(f"--pace is {pace:g}; expected a number of tokens per second above 0")
        self._backend = backend
        self._pause_s = 1 / pace

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self._backend,
            1 / self._pause_s,
        )  # what has no attributes yet has no backend to ask for them

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Yield the wrapped backend's deltas, each after a pause."""
        deltas: Any = self._backend.generate(request)
        try:
            async for delta in deltas:
                await asyncio.sleep(self._pause_s)
                yield delta
        finally:
            await deltas.aclose()
