"""The embedded model as a `Backend`."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from rollcast.models.backend import Sampling
from rollcast.models.chat import TemplateRenderer
from rollcast.models.engine import Engine
from rollcast.models.local import LocalBackend
from rollcast.models.text import token_texts
from rollcast.models.tiny.batch import Batch, Row
from rollcast.models.tiny.product import measure_block
from rollcast.models.tiny.weights import Parameters, build_parameters, read_config, read_weights

__all__ = ["TinyBackend"]

CHECKPOINT = Path(__file__).parent / "checkpoint"


class TinyBackend(LocalBackend):
    """The tiny language model that ships with Rollcast, or another small Qwen3 checkpoint, in NumPy.

    The same seed gives the same ids and log-probabilities to the bit on one machine, whatever else runs in the batch.
    At temperature 0 the log-probabilities are those of temperature 1. Requests may come from several event loops and
    threads at once. While something runs, the process's BLAS is limited to one thread.

    Args:
        path: a folder with `config.json`, `*.safetensors`, `tokenizer.json` and a chat template; None for the model that
            ships with the package.

    Attributes:
        folder: the checkpoint that it was made from.

    Raises:
        InputError: the folder is not a Qwen3 checkpoint with a byte-level BPE tokenizer.
    """

    name = "tiny"

    def __init__(self, path: str | Path | None = None) -> None:
        folder = CHECKPOINT if path is None else Path(path)
        self.folder = folder
        self.model_name = "rollcast/tiny" if path is None else str(path)
        self.config = read_config(folder)
        self.context, self.vocab_size = self.config.max_position_embeddings, self.config.vocab_size
        # The weights to begin with; the batch has the newest.
        self._first = build_parameters(read_weights(folder), self.config)
        self.renderer = TemplateRenderer.from_folder(folder, self.config.eos_token_ids)
        texts = token_texts(json.loads((folder / "tokenizer.json").read_bytes()), self.vocab_size)
        super().__init__(
            Engine(self.name, self._make_batch, self.renderer.eos_token_ids, _quiet_numpy), texts
        )

    def __reduce__(self) -> Any:
        """Make copies load the checkpoint again."""
        if self.policy_version:
            raise TypeError(
                f"this {type(self).__name__} has the weights of version {self.policy_version}, which its checkpoint does not; "
                "export them, and make a backend from that folder where it should run"
            )
        return type(self), (None if self.folder == CHECKPOINT else self.folder,)

    def _row(self, prompt_ids: list[int], sampling: Sampling, limit: int) -> Row:
        return Row(prompt_ids, sampling, limit)

    def _parameters(self, weights: Any) -> Parameters:
        return build_parameters(read_weights(weights), self.config)

    def _make_batch(self) -> Batch:
        parameters = self._first
        layer = parameters.layers[0]
        matrices = [layer.qkv_DE, layer.out_ED, layer.gate_up_DF, layer.down_FD, parameters.unembed_DV]
        return Batch(self.config, parameters, measure_block(matrices))


@contextmanager
def _quiet_numpy() -> Iterator[None]:
    """Limit BLAS to one thread, and silence NumPy's warnings about overflows.

    On two cores, one BLAS thread beside another thread's Python is faster, and a fixed number keeps the order of sums
    fixed. The limit holds for the whole process; it is lifted when nothing runs. The exponentials of SiLU overflow to the
    right limit; see model.py. Values that are not finite are found by their log-probabilities.
    """
    with _blas().limit(limits=1, user_api="blas"), np.errstate(all="ignore"):
        yield


@functools.cache
def _blas() -> ThreadpoolController:
    """Search the process's libraries for BLAS, once: it takes milliseconds."""
    return ThreadpoolController()
