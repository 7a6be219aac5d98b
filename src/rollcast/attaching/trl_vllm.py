"""Shows the tokens of a vLLM engine that a TRL trainer holds in its process (`vllm_mode="colocate"`), as the engine samples them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rollcast.attaching.attachment import Attachment
from rollcast.attaching.trl_batch import Batch
from rollcast.attaching.vllm_engine import Begun, Sampled, hook_processor, logprobs_of
from rollcast.errors import InputError

__all__ = ["EngineRows", "engine_rows"]

logger = logging.getLogger("rollcast.attach")


def engine_rows(trainer: Any, attachment: Attachment) -> EngineRows | None:
    """Hook the trainer's engine; None if its tokens cannot be seen one by one.

    That is so on a server, and if several processes share an engine, each of which then samples the rows of all. An engine without
    the expected methods is said in a warning.
    """
    generation = trainer.vllm_generation
    if generation.mode != "colocate" or generation.tensor_parallel_size != 1:
        return None
    rows = EngineRows()
    try:
        hook_processor(generation.llm.llm_engine.output_processor, attachment, rows)
    except (AttributeError, InputError) as error:
        logger.warning(
            "the tokens of the trainer's vLLM are not seen one by one, but each turn when it is whole: %s",
            error,
        )
        return None
    return rows


class EngineRows:
    """Which request of the engine is which row of the turn. TRL gives the engine the rows of a turn in their order.

    Everything here happens on the watch's thread.
    """

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._places: dict[str, int] = {}
        self._free: list[tuple[int, list[int]]] = []

    def turn(self, batch: Batch, prompt_ids: list[list[int]]) -> None:
        """A turn of this batch begins: what the engine is given from now on are its rows.

        Args:
            batch: the batch.
            prompt_ids: the whole prompt of each row of the turn.
        """
        self._batch, self._places, self._free = batch, {}, [*enumerate(prompt_ids)]

    def over(self) -> None:
        """The turn is over: what the engine is given now is not of a batch."""
        self._batch, self._places, self._free = None, {}, []

    def begin(self, about: Begun) -> None:
        """A request was given to the engine: it is the first row with this prompt that has none yet."""
        for number, (place, prompt_ids) in enumerate(self._free):
            if prompt_ids == about.prompt_ids:
                self._places[about.key] = place
                del self._free[number]
                return

    def step(self, sampled: list[Sampled], left: list[str]) -> None:
        """The engine has taken a step."""
        for new in sampled:
            place = self._places.get(new.key)
            if place is not None and self._batch is not None:
                self._batch.token(place, new.ids, logprobs_of(new))

    def end(self, keys: Iterable[str], reason: str | None = None) -> None:
        """Requests were aborted. The turn ends with what the trainer has of them."""

    def fail(self, error: BaseException) -> None:
        """The engine died, which the trainer raises."""
