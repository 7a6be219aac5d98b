"""`--json`: the log of the events."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from rollcast.observers import JSONStreamObserver

__all__ = ["is_standard_output", "log_at", "log_line"]


def is_standard_output(where: str | None) -> bool:
    """Whether the events go to the standard output: `-`, or the file or pipe that it leads to, such as `/dev/stdout`.

    What is printed for people goes elsewhere then: two writers, each at a place of its own in one file, would overwrite
    each other's lines.
    """
    if where is None or where == "-":
        return where == "-"
    try:
        status = Path(where).stat()
        same = os.path.samestat(status, os.fstat(sys.stdout.fileno()))
        return same and not os.path.samestat(status, Path(os.devnull).stat())
    except (OSError, ValueError, AttributeError):  # no such file yet; or a test captures the output
        return False


def log_at(where: str | None) -> JSONStreamObserver | None:
    """The observer of `--json FILE` or `--json -`, not opened; None if nothing is to be written.

    Raises:
        InputError: this is not a file that can be written to, as far as can be seen without opening it.
    """
    if where is None:
        return None
    # The summary says what could not be written; once is enough.
    logging.getLogger("rollcast.observers.waiting_lines.count").setLevel(logging.ERROR)
    return JSONStreamObserver(None if is_standard_output(where) else where)


def log_line(log: JSONStreamObserver) -> str | None:
    """Where the events are, and what is missing there; None if all of them went to the standard output."""
    if log.incomplete is not None:
        return f"{log.path or 'the standard output'} (not complete: {log.incomplete})"
    return None if log.path is None else str(log.path)
