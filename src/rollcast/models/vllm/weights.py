"""Checks new weights for vLLM by name and shape, and puts them into a folder that it can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rollcast.errors import InputError

__all__ = ["adapter_folder", "is_adapter", "put_weights"]

Shapes = dict[str, tuple[int, ...]]


def is_adapter(weights: Any) -> bool:
    """Whether this is the folder of a LoRA adapter."""
    return isinstance(weights, str | Path) and (Path(weights) / "adapter_config.json").is_file()


def adapter_folder(path: str | Path) -> str:
    """The folder of a LoRA adapter, checked.

    Raises:
        InputError: it is not a LoRA adapter.
    """
    folder = Path(path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}; expected the folder of a LoRA adapter, as PEFT saves it"
            )
    return str(folder.resolve())


def put_weights(weights: Any, model: Path, scratch: Path) -> None:
    """Make `scratch` a folder of the model with these weights, linking the files that exist already.

    Args:
        weights: a mapping of Hugging Face parameter names to torch tensors or NumPy arrays; or the path of a safetensors
            file, or of a folder with such files.
        model: the folder of the model that runs.
        scratch: an empty folder.

    Raises:
        InputError: a parameter is missing, unknown, of another shape or not finite.
    """
    configuration = json.loads((model / "config.json").read_bytes())
    tied = bool(configuration.get("tie_word_embeddings"))
    files: list[Path] = []
    if isinstance(weights, Mapping):
        _compare({name: tuple(value.shape) for name, value in weights.items()}, model, tied=tied)
        _save(weights, scratch / "model.safetensors", tied=tied)
    elif isinstance(weights, str | Path):
        files = _files(Path(weights))
        by_file = {file: _shapes(file) for file in files}
        _compare(
            {name: shape for shapes in by_file.values() for name, shape in shapes.items()}, model, tied=tied
        )
        _link(by_file, scratch)
    else:
        raise InputError(
            f"weights are {type(weights).__name__}; expected a mapping of parameter names to tensors, or a path"
        )
    shutil.copy(model / "config.json", scratch / "config.json")


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"{path} has no *.safetensors file; expected a checkpoint of the model that runs")
    return files


def _link(by_file: dict[Path, Shapes], scratch: Path) -> None:
    if len(by_file) == 1:
        (file,) = by_file
        (scratch / "model.safetensors").symlink_to(file.resolve())
        return
    for file in by_file:
        (scratch / file.name).symlink_to(file.resolve())
    index = {name: file.name for file, shapes in by_file.items() for name in shapes}
    (scratch / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _save(weights: Mapping[str, Any], path: Path, *, tied: bool) -> None:
    import torch  # noqa: PLC0415  (comes with vLLM, and takes seconds)
    from safetensors.torch import save_file  # noqa: PLC0415

    tensors = {}
    for name, value in weights.items():
        if tied and name == "lm_head.weight":
            continue  # it is the embedding, and safetensors does not write a tensor twice
        tensor = torch.as_tensor(value).detach().to("cpu").contiguous()
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"the weights have values in {name} that are not finite; the training diverged")
        tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def _compare(given: Shapes, model: Path, *, tied: bool) -> None:
    expected = {name: shape for file in _files(model) for name, shape in _shapes(file).items()}
    shared = {"lm_head.weight"} if tied else set()
    missing = sorted(expected.keys() - given.keys() - shared)
    unknown = sorted(given.keys() - expected.keys() - shared)
    other = [name for name in given.keys() & expected.keys() if given[name] != expected[name]]
    for what, names in (("lack", missing), ("have no place for", unknown)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            subject = "the weights" if what == "lack" else "the model would"
            raise InputError(
                f"{subject} {what} {', '.join(names[:3])}{more}; expected the parameters of {model}"
            )
    for name in sorted(other):
        raise InputError(f"{name} has shape {given[name]}; expected {expected[name]}, as in {model}")


def _shapes(path: Path) -> Shapes:
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a safetensors file") from error
