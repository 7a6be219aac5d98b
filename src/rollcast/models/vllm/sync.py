"""Brings new weights to an engine, and verifies that they arrived. Everything here runs in the engine's loop."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rollcast.errors import BackendError, InputError
from rollcast.models.vllm.engine import Engine
from rollcast.models.vllm.verify import Probe, reference_logprobs
from rollcast.models.vllm.weights import adapter_folder, is_adapter, put_weights

__all__ = ["Sync"]


class Sync:
    """Brings weights to an engine, one after the other.

    Args:
        engine: the engine that gets them.
        folder: the folder of the model that it was started with.
        adapter: the folder of the LoRA adapter that it was started with.
        verify: compare what arrived with a reference.
    """

    def __init__(self, engine: Engine, folder: Path, adapter: str | None, *, verify: bool) -> None:
        self._engine = engine
        self._folder = folder
        self._adapter = adapter
        self._replaced = False
        self._probe = Probe(engine.vocabulary, engine.context) if verify else None
        self._lock = asyncio.Lock()

    async def update(self, weights: Any, version: int) -> None:
        """See `AsyncVLLMBackend.update_weights`."""
        async with self._lock:
            if is_adapter(weights):
                await self._update_adapter(adapter_folder(weights), version)
            else:
                await self._update_model(weights, version)

    async def _update_model(self, weights: Any, version: int) -> None:
        if self._adapter is not None:
            raise InputError(
                "a LoRA adapter is in use, and weights of the whole model would change what it adapts; give the folder of "
                "an adapter, or make a backend without one"
            )
        with tempfile.TemporaryDirectory(prefix="rollcast-weights-") as name:
            await asyncio.to_thread(put_weights, weights, self._folder, Path(name))
            await self._verified(lambda: self._engine.load(name, version), Path(name), None, version)
        self._replaced = True

    async def _update_adapter(self, adapter: str, version: int) -> None:
        if not self._engine.takes_adapters:
            raise InputError(
                f"{adapter} is a LoRA adapter; make the backend with enable_lora=True to give it one"
            )
        if self._replaced:
            raise InputError(
                "the model's weights were replaced before, so there is no checkpoint that this LoRA adapter could be "
                "verified on; make a backend of that checkpoint"
            )
        await self._verified(
            lambda: self._engine.load_adapter(adapter, version), self._folder, adapter, version
        )
        self._adapter = adapter

    async def _verified(
        self, load: Callable[[], Awaitable[None]], folder: Path, adapter: str | None, version: int
    ) -> None:
        if (probe := self._probe) is None:
            await load()
        else:
            # The slow part comes first: nothing waits while the reference is computed.
            if probe.error is None:
                expected = await self._reference(probe, self._folder, self._adapter)
                probe.calibrate(await self._engine.logprobs(probe.ids), expected)
            expected = await self._reference(probe, folder, adapter)
            before = await self._engine.logprobs(probe.ids)
            await load()
            after = await self._engine.logprobs(probe.ids)
            try:
                probe.judge(before, after, expected, version)
            except BackendError as error:
                self._engine.fail_all(error)
                raise
        self._engine.fail_all(None)

    async def _reference(self, probe: Probe, folder: Path, adapter: str | None) -> list[float]:
        return await asyncio.to_thread(reference_logprobs, folder, self._engine.dtype, probe.ids, adapter)
