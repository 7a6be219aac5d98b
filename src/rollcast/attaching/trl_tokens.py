"""Shows the tokens of a model's `generate` while it samples: a streamer, which transformers hands each step's tokens of all rows.

On a GPU transformers waits for the device once a step in any case, to learn whether all rows have ended; the streamer's copy of a
few ids comes before that. Nothing of it enters the computation, so what is sampled is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rollcast.attaching.trl_batch import Batch
from rollcast.attaching.watch import Watch

__all__ = ["streaming"]

_WITH_STREAMERS = frozenset({"sample", "greedy_search"})


@contextmanager
def streaming(trainer: Any, watch: Watch, batch: Batch | None) -> Iterator[None]:
    """Inside the block, `generate` of the trainer's model has a streamer that tells the batch of every token.

    Args:
        trainer: the trainer.
        watch: where the batch is told.
        batch: the batch; None: tokens are not shown.
    """
    own: dict[str, Any] | None = None
    before: Any = None
    if batch is not None and not getattr(trainer, "use_vllm", False):
        with watch.guarded():
            model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            before, generate = vars(model).get("generate"), model.generate

            def watched(*args: Any, **kwargs: Any) -> Any:
                more: dict[str, Any] = {}
                with watch.guarded():
                    if _can_stream(model, kwargs):
                        more["streamer"] = _Streamer(watch, batch)
                return generate(*args, **kwargs, **more)

            own = vars(model)
            own["generate"] = watched
    try:
        yield
    finally:
        if own is not None:
            if before is None:
                own.pop("generate", None)
            else:
                own["generate"] = before


def _can_stream(model: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this call of `generate` samples one token of each row at a time, and takes a streamer.

    Beam search and other ways refuse one. What the call's configuration leaves open is taken from the model's own.
    """
    if kwargs.get("streamer") is not None or kwargs.get("assistant_model") is not None:
        return False
    configs = [kwargs.get("generation_config"), model.generation_config]
    modes = {
        str(getattr(config.get_generation_mode(), "value", "")) for config in configs if config is not None
    }
    return modes <= _WITH_STREAMERS and not kwargs.get("custom_generate")


class _Streamer:
    """Takes what transformers hands out: first the prompts, shape (B, T), then each step's tokens, shape (B,)."""

    def __init__(self, watch: Watch, batch: Batch) -> None:
        self._watch = watch
        self._batch = batch

    def put(self, value: Any) -> None:
        with self._watch.guarded():
            if value.dim() == 1:
                self._watch.tell(self._batch.tokens, value.tolist())

    def end(self) -> None:
        """The batch is told of the end with all ids, when `generate` has returned."""
