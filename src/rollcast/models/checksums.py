"""SHA-256 of a checkpoint's files, so that damage is found before anything is computed with it. No torch, no NumPy.

    step-000040/checksums.json    {"format": 1, "checkpoint": "step-000040", "sha256": {"model.safetensors": ["9f86d0…"], …}}

This file is written last, and renamed into place: a folder that has it was complete. A file that is replaced later has two
sums for a moment, so that the folder is whole whichever version a killed process left.

A folder without it (a model from elsewhere, or a checkpoint of Rollcast 0.1) has nothing to compare with.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from rollcast.errors import InputError

__all__ = [
    "CHECKSUMS",
    "check_folder",
    "find_damage",
    "has_checksums",
    "replace_checked",
    "write_checksums",
]

CHECKSUMS = "checksums.json"
_FORMAT = 1
_THREADS = 4  # a large model has several files

# The files that loaders and trainers read; files of other kinds beside them are ignored.
_READ = {".safetensors", ".bin", ".pt", ".pth", ".json", ".jinja", ".model", ".py", ".state"}
_READ_IN = ("", "additional_chat_templates/")

# The files that only resuming needs: optimizers are twice as large as the weights.
_OF_TRAINERS = {
    "optimizer.bin",
    "optimizer.pt",
    "scaler.pt",
    "scheduler.pt",
    "trainer.json",
    "trainer.state",
    "trainer_state.json",
    "training_args.bin",
}


class _Sums(msgspec.Struct, forbid_unknown_fields=True):
    """The file's content.

    Attributes:
        format: the version of this file's format.
        checkpoint: the name of its folder when it was saved.
        sha256: the sums that each file may have, by its path in the folder.
    """

    format: int
    checkpoint: str
    sha256: dict[str, list[str]]


def has_checksums(folder: Path) -> bool:
    """Whether there is anything to compare the folder's files with."""
    return (folder / CHECKSUMS).is_file()


def write_checksums(folder: Path, checkpoint: str | None = None) -> None:
    """Write the checksums of all files of a checkpoint; call it when they are complete.

    Args:
        folder: the checkpoint.
        checkpoint: the folder's name, if it is renamed after this.

    Raises:
        OSError: a file cannot be read, or the sums cannot be written.
    """
    (folder / CHECKSUMS).unlink(missing_ok=True)
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    sums = dict(zip(names, _sums_of(folder, names), strict=True))
    _write(folder, _Sums(_FORMAT, checkpoint or folder.name, {name: [sum_] for name, sum_ in sums.items()}))


def replace_checked(folder: Path, new: Path) -> None:
    """Put a new version of a file into a checkpoint, so that the folder is whole at any moment.

    Args:
        folder: the checkpoint; if it has no checksums, the file is just replaced.
        new: the file, on the same file system, under the name that it will have.

    Raises:
        OSError: something cannot be read or written.
        InputError: the checksums cannot be read.
    """
    old = folder / new.name
    if has_checksums(folder):
        known = _read(folder)
        listed = known.sha256.get(new.name, [])
        here = [found for found in listed if old.is_file() and found == _sum_of(old)] or listed
        known.sha256[new.name] = [*here, _sum_of(new)]
        _write(folder, known)
    new.replace(old)


def find_damage(folder: Path, *, to_resume: bool) -> str | None:
    """What is wrong with a folder that has checksums, as the beginning of a sentence; None if nothing is.

    Args:
        folder: the checkpoint.
        to_resume: also look at what trainers read, and whether this is the checkpoint that its folder's name says.
    """
    try:
        known = _read(folder)
        if to_resume and known.checkpoint != folder.name:
            return f"it was saved as {known.checkpoint}, as its {CHECKSUMS} says, and is called {folder.name}"
        read = (path for place in _READ_IN for path in folder.glob(f"{place}*") if path.suffix in _READ)
        present = {path.relative_to(folder).as_posix() for path in read if path.is_file()}
        unknown = sorted(present - set(known.sha256) - {CHECKSUMS})
        if unknown:
            return f"{unknown[0]} was not there when it was saved ({CHECKSUMS} does not list it)"
        names = [name for name in known.sha256 if to_resume or not _is_trainer_file(name)]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            return f"{missing[0]} is missing, which {CHECKSUMS} lists"
        for name, found in zip(names, _sums_of(folder, names), strict=True):
            if found not in known.sha256[name]:
                saved = known.sha256[name][-1:] or [""]
                return (
                    f"{name} has changed since it was saved (its SHA-256 begins with {found[:12]}, and {CHECKSUMS} has "
                    f"{saved[0][:12]})"
                )
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error}: {error.filename})"
    return None


def check_folder(folder: str | Path) -> None:
    """Refuse to load a model from a folder whose files are not what was saved. Without checksums, anything passes.

    Raises:
        InputError: a file has changed, is missing, or was not there; the message names the file.
    """
    folder = Path(folder)
    if not has_checksums(folder):
        return
    damage = find_damage(folder, to_resume=False)
    if damage is not None:
        raise InputError(
            f"the checkpoint {folder} is damaged: {damage}; load another one, or, if you changed it yourself, delete its "
            f"{CHECKSUMS}"
        )


def _is_trainer_file(name: str) -> bool:
    return name in _OF_TRAINERS or name.startswith(("rng_state", "global_step"))


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sums_of(folder: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(_THREADS, "rollcast-checksums") as pool:
        return list(pool.map(_sum_of, [folder / name for name in names]))


def _read(folder: Path) -> _Sums:
    try:
        found = msgspec.json.decode((folder / CHECKSUMS).read_bytes(), type=_Sums)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise InputError(f"{CHECKSUMS} cannot be read ({error})") from error
    if found.format != _FORMAT:
        raise InputError(f"{CHECKSUMS} has format {found.format}; this version reads {_FORMAT}")
    return found


def _write(folder: Path, sums: _Sums) -> None:
    """Write beside the file, then rename: a reader sees the old one or the new one."""
    beside = folder / f".{CHECKSUMS}.new"
    with beside.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(sums), indent=1))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / CHECKSUMS)
