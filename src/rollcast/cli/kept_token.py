"""The token that a command makes for its own page: kept in the record directory, so that links work again after a restart."""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rollcast.cli.standard_error import warn

__all__ = ["TOKEN_FILE", "MadeToken", "made_token"]

TOKEN_FILE = "token"  # noqa: S105  (the name of the file that has it)
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,128}")
_BYTES = 18  # 144 random bits


@dataclass(frozen=True)
class MadeToken:
    """A token that nobody gave.

    Attributes:
        value: what clients send.
        path: the file that it is to be kept in; None: it is kept already, or nowhere.
    """

    value: str = field(repr=False)
    path: Path | None = None

    def keep(self) -> None:
        """Keep it for the next start. If that cannot be done, a warning says why, and the links end with this process."""
        if self.path is None:
            return
        try:
            _write(self.path, self.value)
        except OSError as error:
            warn(
                f"the token of the page cannot be kept in {self.path}: {error.strerror or error}; its links end with this command"
            )


def made_token(directory: Path | None) -> MadeToken:
    """The token that is kept in the record directory, or a new one; None: one that is not kept.

    A file that others may read or write, or that belongs to somebody else, is not trusted: a new token replaces it.
    """
    if directory is None:
        return MadeToken(secrets.token_urlsafe(_BYTES))
    path = directory / TOKEN_FILE
    kept = _read(path)
    return MadeToken(secrets.token_urlsafe(_BYTES), path) if kept is None else MadeToken(kept)


def _read(path: Path) -> str | None:
    """The token in the file; None if there is none that can be trusted."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            return None
        if os.name == "posix" and (about.st_mode & 0o077 or about.st_uid != os.geteuid()):
            return None
        text = file.read(256).decode("ascii", "replace").strip()
    return text if _TOKEN.fullmatch(text) else None


def _write(path: Path, value: str) -> None:
    """Put the token there in one step, readable for its owner alone.

    Raises:
        OSError: it cannot be written.
    """
    from rollcast.archive.writer import prepare_directory  # noqa: PLC0415  (not every command records)

    prepare_directory(path.parent)
    beside = path.with_name(f".{TOKEN_FILE}.{os.getpid()}")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(value + "\n")
        beside.replace(path)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
