"""A training's folder, and the settings with which it began."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rollcast.cli.recording import record_directory
from rollcast.cli.train.settings import TrainSettings
from rollcast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rollcast.train import Progress

__all__ = ["SETTINGS_FILE", "claimed", "folder_for", "history_in", "keep_settings", "newest_checkpoint"]

SETTINGS_FILE = "train.toml"
_NOT_KEPT = {
    "out", "resume", "show", "json", "tensorboard", "no_color", "serve", "token", "tls_cert", "tls_key", "origin", "host_name",
    "alert",
    "keep_serving",
}  # fmt: skip  # they belong to one session

_CHECKPOINTS = {"embedded": re.compile(r"step-\d+$"), "trl": re.compile(r"checkpoint-\d+$")}


def folder_for(settings: TrainSettings) -> Path:
    """The folder for the weights: the one that was named, or one in the working directory.

    Raises:
        InputError: it is not empty and `--resume` was not given, it cannot be read, or it has no training to resume.
    """
    if settings.out is None:
        if settings.resume:
            raise InputError(
                "--resume was given without --out; give the folder of the training to go on with"
            )
        return Path(f"rollcast-train-{settings.task}")
    if not settings.out:
        raise InputError("--out is empty; expected the name of a folder")
    out = Path(settings.out)
    try:
        found = {path.name for path in out.iterdir()}
    except FileNotFoundError:
        found = set()
    except NotADirectoryError:
        raise InputError(f"--out {out} is a file, or is in one; expected a folder") from None
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be used: {error.strerror or error}; give another folder"
        ) from None
    if not settings.resume:
        if found - {SETTINGS_FILE}:  # only that file is from a training that never began
            raise InputError(f"--out {out} is not empty; go on with it with --resume, or name another folder")
        return out
    trainers = {name for name, kept in _CHECKPOINTS.items() if any(map(kept.match, found))}
    if not trainers:
        raise InputError(f"--resume: there is no training in {out}; leave out --resume to begin one")
    if settings.trainer not in trainers:
        raise InputError(
            f"--resume: the training in {out} was made with --trainer {trainers.pop()}; go on with that, or name another folder"
        )
    return out


@contextmanager
def claimed(settings: TrainSettings, out: Path) -> Iterator[Path]:
    """Make the folder for the block that trains, with the settings in it; remove it if training never began.

    A training that goes on has its folder, in which the new settings are saved once they are known to fit.

    Raises:
        InputError: it cannot be written to, or another training is writing to it.
    """
    if settings.resume:
        yield out
        return
    from rollcast.train.checkpoint import sole_writer  # noqa: PLC0415  (NumPy, only for this command)

    made = not out.exists()
    if settings.out is None:
        out, made = _new_folder(out), True
    place = out.absolute()  # the agent's own file may change the current folder
    try:
        with sole_writer(out):
            keep_settings(settings, out)
        yield out
    finally:
        with suppress(OSError, InputError), sole_writer(place):  # another training may hold it by now
            if {path.name for path in place.iterdir()} <= {SETTINGS_FILE}:
                (place / SETTINGS_FILE).unlink(missing_ok=True)
                if made:
                    place.rmdir()


def _new_folder(out: Path) -> Path:
    """Make the first free one of out, out-2, out-3 …; two trainings that begin at once get different ones."""
    for n in count(1):
        path = out if n == 1 else out.with_name(f"{out.name}-{n}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"the folder {path} cannot be made here: {error.strerror or error}; give another with --out"
            ) from None
        return path
    raise AssertionError("count() has no end")


def keep_settings(settings: TrainSettings, out: Path, begun_in: Path | None = None) -> None:
    """Write the settings into the folder, so that `--resume` needs no other options.

    Args:
        settings: the settings.
        out: the folder.
        begun_in: the folder in which the settings were typed; None: the current one.

    Raises:
        InputError: it cannot be written.
    """
    given = {
        name.replace("_", "-"): value
        for name, value in msgspec.structs.asdict(settings).items()
        if name not in _NOT_KEPT and value is not None and value is not False and value != []
    }
    here = Path() if begun_in is None else begun_in
    if settings.model is not None and os.path.isdir(here / settings.model):  # noqa: PTH112  (false for a name that is too long)
        given["model"] = str((here / settings.model).absolute())  # it may be resumed from another directory
    if settings.record_dir is not None:
        given["record-dir"] = str((here / record_directory(settings.record_dir)).absolute())
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in given.items()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / SETTINGS_FILE).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"nothing can be written to {out}: {error.strerror or error}; make room, or give another folder with --out"
        ) from None


def newest_checkpoint(out: Path) -> Path | None:
    """The embedded trainer's newest checkpoint; None if there is none."""
    found = (path for path in out.glob("step-*") if _CHECKPOINTS["embedded"].match(path.name))
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def history_in(out: Path) -> list[Progress]:
    """The steps of the training in this folder, up to its newest checkpoint; empty if it cannot be read.

    The trainer checks whether training can go on from there.
    """
    from rollcast.train import Progress  # noqa: PLC0415  (NumPy, only for this command)

    newest = newest_checkpoint(out)
    try:
        about = b"{}" if newest is None else (newest / "trainer.json").read_bytes()
        return msgspec.convert(msgspec.json.decode(about).get("history", []), list[Progress])
    except (OSError, AttributeError, msgspec.MsgspecError):
        return []
