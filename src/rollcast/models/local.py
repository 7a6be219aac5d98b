"""The base of backends whose engine is Rollcast's own: generations, new weights and closing."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any

from rollcast.errors import BackendClosedError
from rollcast.models.backend import Sampling
from rollcast.models.checks import check_version
from rollcast.models.engine import Engine, Generation, Row
from rollcast.models.engine_backend import EngineBackend

__all__ = ["LocalBackend"]


class LocalBackend(EngineBackend[Generation]):
    """A token-exact backend whose model runs on an engine's thread of this process.

    Requests may come from several event loops and threads at once.
    """

    _engine: Engine[Any]

    @abstractmethod
    def _row(self, prompt_ids: list[int], sampling: Sampling, limit: int) -> Row:
        """Make the row that this backend's batch takes."""

    @abstractmethod
    def _parameters(self, weights: Any) -> Any:
        """Convert the weights to what this backend's batch takes; called on a thread that may block.

        Raises:
            InputError: they are not this model's.
        """

    def _generation(self, prompt_ids: list[int], sampling: Sampling, limit: int) -> Generation:
        return Generation(self._row(prompt_ids, sampling, limit), sampling, limit, self._texts)

    async def update_weights(self, weights: Any, version: int) -> None:
        """From the next token on, sample from these weights, whose version is `version`.

        When this returns, no token is sampled from the old ones any more. Running generations keep the keys and values
        that the old weights computed: their log-probabilities are those of the mixture that sampled them, which a
        forward pass of either version alone does not reproduce. New generations start afresh.

        Args:
            weights: a mapping of Hugging Face parameter names to arrays, which are copied; or the path of a safetensors
                file, or of a folder with such files.
            version: their number, which every token that they sample carries.

        Raises:
            InputError: a parameter is missing, unknown, of another shape or not finite; or the version is not a number.
            BackendClosedError: the backend was closed.
        """
        check_version(version)
        await asyncio.to_thread(self._update, weights, version)

    def _update(self, weights: Any, version: int) -> None:
        self._engine.set_parameters(self._parameters(weights), version)

    async def close(self) -> None:
        """End the engine. Running and later generations raise BackendClosedError. May be called twice."""
        failure = BackendClosedError(
            f"the {self.name} backend was closed; make another {type(self).__name__} to generate"
        )
        await asyncio.to_thread(self._engine.close, failure)
