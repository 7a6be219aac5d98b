"""Checks new weights for a model that samples, and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module

from rollcast.errors import InputError
from rollcast.models.checksums import check_folder

__all__ = ["NewWeights", "read_new_weights"]


class NewWeights:
    """Checked tensors, to be copied into a model's parameters.

    Args:
        pairs: each parameter with its new value.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs

    def write(self) -> None:
        """Copy them; called between two steps, on the thread that computes."""
        with torch.no_grad():
            for parameter, new in self._pairs:
                parameter.copy_(new)


def read_new_weights(weights: Any, model: Module) -> NewWeights:
    """Read and check weights for all of a model's parameters.

    Args:
        weights: a mapping of parameter names to tensors or arrays; the path of a safetensors file or of a folder with
            such files; None if the model's own were changed in place.
        model: the model that they are for.

    Raises:
        InputError: a parameter is missing, unknown, of another shape or not finite; or nothing can be read.
    """
    if weights is None:
        return NewWeights([])
    given = _tensors(weights)
    own = model.state_dict(keep_vars=True)
    unknown = sorted(set(given) - set(own))
    if unknown:
        raise InputError(
            f"the weights have {unknown[0]!r}, which the model does not have; it has {', '.join(list(own)[:3])} …"
        )
    pairs: dict[int, tuple[str, Tensor, Tensor]] = {}
    for name, new in given.items():
        parameter = own[name]
        if new.shape != parameter.shape:
            raise InputError(
                f"{name} has shape {tuple(new.shape)}; expected {tuple(parameter.shape)}, as the model has"
            )
        if new.is_meta or (parameter.is_floating_point() and not new.is_floating_point()):
            found = "no data (it is on the device meta)" if new.is_meta else f"dtype {new.dtype}"
            raise InputError(f"{name} has {found}; expected floating-point numbers, as the model has")
        if not bool(torch.isfinite(new).all()):
            raise InputError(f"{name} is not finite; the training that made it diverged: load others")
        # Parameters that are tied have several names and one place.
        before = pairs.setdefault(parameter.data_ptr(), (name, parameter, new))
        if before[2] is not new and not torch.equal(before[2].to(new.device), new):
            raise InputError(
                f"{before[0]} and {name} are one parameter in this model, and the weights differ; give one of them, or "
                "load the model with tie_word_embeddings=False"
            )
    lacking = [name for name, parameter in own.items() if parameter.data_ptr() not in pairs]
    if lacking:
        raise InputError(f"the weights lack {lacking[0]!r}; expected all parameters of the model")
    return NewWeights([(parameter, new) for _, parameter, new in pairs.values()])


def _tensors(weights: Any) -> dict[str, Tensor]:
    if isinstance(weights, str | Path):
        return _files(Path(weights))
    if not isinstance(weights, Mapping):
        raise InputError(
            f"weights is {type(weights).__name__}; expected a mapping of parameter names to tensors, the path of a "
            "safetensors file or a folder with such files, or None if the model was changed in place"
        )
    try:
        return {name: torch.as_tensor(value).detach() for name, value in weights.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the weights cannot be read as tensors ({error})") from error


def _files(path: Path) -> dict[str, Tensor]:
    check_folder(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({error}); expected a safetensors file") from error
    if not tensors:
        raise InputError(
            f"{path} has no *.safetensors file; expected one, or several, with the model's weights"
        )
    return tensors
