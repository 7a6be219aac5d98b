"""Notes that people add to a record: flags and remarks, with their author and what they are about. `notes.jsonl`, append-only."""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from rollcast.archive.format import NOTES_FILE, NoteRow
from rollcast.errors import InputError
from rollcast.records.codec import one_line_json

if sys.platform != "win32":
    import fcntl

__all__ = ["append_note", "checked_note"]

MAX_TEXT = 65_536  # characters of one note
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def checked_note(
    text: str,
    *,
    author: str,
    flag: str | None,
    run_id: str | None,
    group_id: str | None,
    chain_id: str | None,
    step: int | None,
    tokens: tuple[int, int] | None,
) -> NoteRow:
    """The note, with its time and a name of its own.

    Raises:
        InputError: it says nothing, has no author, is too long, or what it is about is not named as a whole.
    """
    if not text.strip() and not flag:
        raise InputError("a note is empty; give it a text, or a flag such as flag='odd'")
    if len(text) > MAX_TEXT:
        raise InputError(f"a note has {len(text):,} characters; expected at most {MAX_TEXT:,}")
    if not author.strip():
        raise InputError("a note has no author; give author='a name'")
    if step is not None and (chain_id is None or isinstance(step, bool) or step < 1):
        raise InputError(
            f"a note is about turn {step!r}; expected a number from 1 upward, and the chain_id of its chain"
        )
    if tokens is not None:
        first, last = tokens
        if step is None or not 0 <= first < last:
            raise InputError(
                f"a note is about the tokens {tokens!r}; expected (first, last + 1) from 0 upward, and the step of their turn"
            )
    return NoteRow(
        id=secrets.token_hex(6), at=time.time(), author=author, text=text, flag=flag, run_id=run_id,
        group_id=group_id, chain_id=chain_id, step=step, tokens=tokens,
    )  # fmt: skip


def append_note(folder: Path, note: NoteRow) -> dict[str, Any]:
    """Append the note, whole or not at all, and wait until the disk has it. Several processes may add notes at once.

    Raises:
        OSError: it cannot be written.
    """
    line = one_line_json(msgspec.json.encode(note)) + b"\n"
    fd = os.open(folder / NOTES_FILE, _FLAGS, 0o600)
    try:
        if sys.platform != "win32":
            fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        if (
            size and os.pread(fd, 1, size - 1) != b"\n"
        ):  # a process died while it wrote: its piece stays a line of its own
            line = b"\n" + line
        try:
            written = 0
            while written < len(line):
                written += os.write(fd, line[written:])
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
    row: dict[str, Any] = msgspec.to_builtins(note)
    return row
