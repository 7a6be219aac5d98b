"""Checkpoint folders: training resumes from them, and backends load them. They are written beside, then renamed, so that
each is whole or not there.

    out/step-000040/    config.json model.safetensors tokenizer.json tokenizer_config.json chat_template.jinja
                        trainer.json trainer.state checksums.json

The first line's files are a Qwen3 checkpoint that transformers, vLLM and `TinyBackend` load; the second's are what else
training needs (also a safetensors file, under a name that loaders of weights do not look for), and the SHA-256 of them all,
which is compared before resuming or loading. The newest two are kept, and the best. There is no state of a random generator:
questions, rollouts and minibatches depend only on the seed and the number of the step.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from rollcast.errors import CheckpointError, InputError
from rollcast.models.checksums import CHECKSUMS, has_checksums, replace_checked, write_checksums
from rollcast.models.tiny.weights import Array, ModelConfig, parameter_shapes, read_config, read_safetensors
from rollcast.train.resumable import check_resumable, remedy_for

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Checkpoint", "Checkpoints", "safetensors_bytes", "sole_writer"]

_NAME = re.compile(r"step-(\d{6,})")
_KEPT = 2
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
_FORMAT = 1
_NO_LOCKS = {
    errno.EBADF,
    errno.EINVAL,
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}  # the file system has no locks


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Attributes:
        folder: its folder.
        step: the step after which it was saved.
        weights: the weights by their Hugging Face names.
        state: the trainer's state, as `EmbeddedTrainer.state` returned it.
        about: everything else, as JSON: configuration and history.
    """

    folder: Path
    step: int
    weights: dict[str, Array]
    state: dict[str, Array]
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training run.

    Args:
        out: their folder; it is made with the first checkpoint.
        source: the checkpoint that training began with: each checkpoint gets its tokenizer and configuration.
    """

    def __init__(self, out: Path, source: Path) -> None:
        self.out = out
        # Read now: the source may be a checkpoint in this folder or of another training, and may be deleted later.
        found = [path for pattern in _COPIED for path in source.glob(pattern) if path.is_file()]
        self._copied = {path.relative_to(source).as_posix(): path.read_bytes() for path in found}
        self._config = _config_of(source)

    def steps(self) -> list[int]:
        """The steps after which there is a checkpoint, ascending."""
        if not self.out.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.out.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def folder(self, step: int) -> Path:
        """The folder of the checkpoint after a step."""
        return self.out / f"step-{step:06d}"

    def save(
        self,
        step: int,
        weights: Mapping[str, ArrayLike],
        state: Mapping[str, ArrayLike],
        about: Mapping[str, Any],
        best: int | None = None,
    ) -> Path:
        """Write a checkpoint, and delete those that are neither among the newest nor the `best` step's.

        If this step has a checkpoint already, only `about` is written again: the weights are the same.

        Raises:
            CheckpointError: it cannot be written; the others are as they were.
        """
        folder, beside = self.folder(step), self.out / f".step-{step:06d}.new"
        summed = not folder.exists() or has_checksums(folder)
        told = {"format": _FORMAT, "step": step, "checksums": summed, **about}
        with self._writing(beside):
            self.out.mkdir(parents=True, exist_ok=True)
            self._delete_leftovers()
            beside.mkdir()
            _write(beside / "trainer.json", msgspec.json.format(msgspec.json.encode(told), indent=1))
            if folder.exists():
                replace_checked(folder, beside / "trainer.json")
                _sync(folder)
            else:
                self._fill(beside, weights, state)
                write_checksums(beside, folder.name)
                _sync(beside)
                beside.rename(folder)
                _sync(self.out)
            self._prune(best)
        return folder

    def _fill(self, folder: Path, weights: Mapping[str, ArrayLike], state: Mapping[str, ArrayLike]) -> None:
        for name, data in self._copied.items():
            (folder / name).parent.mkdir(exist_ok=True)
            _write(folder / name, data)
        _write(folder / "config.json", self._config)
        _write(folder / "model.safetensors", safetensors_bytes(weights))
        _write(folder / "trainer.state", safetensors_bytes(state))

    def load(self, model: ModelConfig, step: int | None = None) -> Checkpoint:
        """Load the newest checkpoint, or that of a step.

        Args:
            model: the sizes that it must have.
            step: one of `steps()`.

        Raises:
            CheckpointError: there is none, it is damaged, or it is for another model.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.out} has no checkpoint; expected a folder such as step-000040 in it"
            )
        folder = self.folder(steps[-1] if step is None else step)
        others = [self.folder(s) for s in steps]
        check_resumable(folder, others)  # before anything reads files that may be damaged
        try:
            return _read(folder, model)
        except InputError as error:
            raise CheckpointError(
                f"the checkpoint {folder} cannot be used: {error}; {remedy_for(folder, others)}"
            ) from error

    def _prune(self, best: int | None) -> None:
        steps = self.steps()
        for step in steps[:-_KEPT]:
            if step != best:
                # Deleting takes several calls: part of a checkpoint must not be seen under its name.
                self.folder(step).rename(self.out / f".step-{step:06d}.old")
        self._delete_leftovers()

    def _delete_leftovers(self) -> None:
        for path in self.out.glob(".step-*"):
            if _NAME.fullmatch(path.stem.removeprefix(".")) and path.suffix in {".new", ".old"}:
                shutil.rmtree(path)

    @contextmanager
    def _writing(self, beside: Path) -> Iterator[None]:
        """Turn a failure into a CheckpointError, and delete what was half written."""
        try:
            yield
        except (OSError, InputError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            remedy = "make room, or give another folder"
            with suppress(OSError):
                if self.steps():
                    remedy = "the earlier ones are whole: make room, and resume from them"
            raise CheckpointError(
                f"the checkpoint in {self.out} cannot be written: {getattr(error, 'strerror', None) or error}; {remedy}"
            ) from error


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Make the folder, and lock it while the block runs, so that no other training writes to it.

    The system releases the lock however the process ends. If it cannot lock folders (Windows, some network file systems),
    there is no lock.

    Raises:
        InputError: another training has locked it, in this process or another, or it cannot be made.
    """
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if fcntl is not None:
                descriptor = os.open(out, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another training is writing to {out}; wait for its end, or give this one another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise InputError(
                    f"nothing can be written to {out}: {error.strerror or error}; give another folder"
                ) from error
        yield


def safetensors_bytes(arrays: Mapping[str, ArrayLike]) -> bytes:
    """Write the arrays as a safetensors file of float32 (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    parts, end = [], 0
    for name, value in arrays.items():
        array = np.asarray(value, "<f4")
        part = array.tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + len(part)]}
        parts.append(part)
        end += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _config_of(source: Path) -> bytes:
    """The source's configuration without its dtype, since training saves float32."""
    config = json.loads((source / "config.json").read_bytes())
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    return json.dumps(config | {"torch_dtype": "float32"}, indent=1).encode()


def _read(folder: Path, model: ModelConfig) -> Checkpoint:
    found = read_config(folder)
    if msgspec.structs.replace(found, eos_token_ids=model.eos_token_ids) != model:
        name = next(n for n in ModelConfig.__struct_fields__ if getattr(found, n) != getattr(model, n))
        raise InputError(
            f"it has {name} {getattr(found, name)}, and the agent's model {getattr(model, name)}"
        )
    path = folder / "trainer.json"
    try:
        about = json.loads(path.read_bytes())
        step, version = int(about["step"]), about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path.name} cannot be read ({error})") from error
    if version != _FORMAT:
        raise InputError(f"{path.name} has format {version}; this version reads {_FORMAT}")
    if about.get("checksums") and not has_checksums(folder):
        raise InputError(f"its {CHECKSUMS} is missing")
    weights = read_safetensors(folder / "model.safetensors")
    for name, shape in parameter_shapes(model).items():
        if name not in weights or weights[name].shape != shape:
            found_shape = weights[name].shape if name in weights else "nothing"
            raise InputError(f"model.safetensors has {found_shape} as {name}; expected {shape}")
    return Checkpoint(folder, step, weights, read_safetensors(folder / "trainer.state"), about)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Write the folder's entries to disk, if the system can do that for folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
