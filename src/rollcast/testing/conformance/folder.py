"""What a Hugging Face checkpoint folder says about its model, computed by transformers."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rollcast.errors import MissingExtraError
from rollcast.models.backend import Backend
from rollcast.models.tiny.weights import read_weights
from rollcast.testing.conformance.subject import BackendUnderTest

__all__ = ["TransformersReference", "perturbed_checkpoint", "subject_from_folder"]


class TransformersReference:
    """Computes log-probabilities with one forward pass of transformers, in float32 on the CPU.

    Args:
        folders: one for each version of the weights, from 0.

    Raises:
        MissingExtraError: torch and transformers are not installed.
    """

    def __init__(self, *folders: str | Path) -> None:
        try:
            import torch  # noqa: F401, PLC0415  (an extra)
            import transformers  # noqa: F401, PLC0415
        except ImportError as error:
            raise MissingExtraError("the reference", "torch") from error
        self._folders = folders
        self._models: dict[int, Any] = {}
        # transformers ties weights through global state: two loads at once gave a model with a random head.
        self._loading = threading.Lock()

    def __call__(self, ids: Sequence[int], version: int) -> NDArray[Any]:
        """Log-probabilities (T, V) of the token after each of the T ids, at temperature 1."""
        import torch  # noqa: PLC0415

        with torch.inference_mode():
            logits = self._model(version)(torch.tensor([list(ids)])).logits[0]
            found: NDArray[Any] = torch.log_softmax(logits.double(), -1).numpy()
        return found

    def _model(self, version: int) -> Any:
        with self._loading:
            if version not in self._models:
                import torch  # noqa: PLC0415
                from transformers import AutoModelForCausalLM  # noqa: PLC0415

                model: Any = AutoModelForCausalLM.from_pretrained(self._folders[version], dtype=torch.float32)
                self._models[version] = model.eval()
            return self._models[version]


def perturbed_checkpoint(
    folder: str | Path, target: str | Path, *, scale: float = 0.02, seed: int = 0
) -> Path:
    """Make another checkpoint of the same model: a copy of the folder, in float32, with noise on every weight.

    Args:
        folder: a folder with safetensors of floats.
        target: the new folder; it is made, or is empty.
        scale: the noise's standard deviation.
        seed: the noise's seed.

    Raises:
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise MissingExtraError("writing a checkpoint", "torch") from error
    target = Path(target)
    weights = "*.safetensors*"
    shutil.copytree(folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(weights, "*.bin*"))
    draw = np.random.default_rng(seed)
    noisy = {
        name: array + draw.normal(0, scale, array.shape).astype(np.float32)
        for name, array in read_weights(folder).items()
    }
    save_file(noisy, target / "model.safetensors", metadata={"format": "pt"})
    return target


def subject_from_folder(
    name: str,
    make: Callable[[], Backend | Awaitable[Backend]],
    folder: str | Path,
    *,
    new_folder: str | Path | None = None,
    **known: Any,
) -> BackendUnderTest:
    """Make a subject whose vocabulary, context, special tokens, decoding and reference are a checkpoint folder's.

    Args:
        name: the subject's name.
        make: returns a new backend with the folder's model.
        folder: a folder with `config.json`, `tokenizer.json` and safetensors.
        new_folder: another checkpoint of the same model: the reference's version 1, and, if `known` has no others, the
            `new_weights`, as a string.
        known: further fields of `BackendUnderTest`; they override what the folder says.

    Raises:
        MissingExtraError: torch and transformers are not installed.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_bytes())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = config.get("eos_token_id")
    fields: dict[str, Any] = {
        "vocabulary": config["vocab_size"],
        "context": config["max_position_embeddings"],
        "stop_ids": frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends]),
        "special_tokens": {
            token.content: index
            for index, token in tokenizer.get_added_tokens_decoder().items()
            if not token.content.isspace()
        },
        "decode": lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    }
    if "reference" not in known:
        fields["reference"] = TransformersReference(folder, *([] if new_folder is None else [new_folder]))
    if new_folder is not None:
        fields["new_weights"] = str(new_folder)
    return BackendUnderTest(name=name, make=make, **{**fields, **known})
