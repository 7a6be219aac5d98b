"""The log of events that `--json` asks for."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from rollcast.observers import JSONStreamObserver

__all__ = ["is_standard_output", "log_at", "log_line"]


def is_standard_output(where: str | None) -> bool:
    """Whether the events go to the standard output: `-`, or the file or pipe behind it, such as `/dev/stdout`.

    Then the text for people goes elsewhere: two writers with positions of their own in one file would overwrite each
    other's lines.
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
    """Make the observer for `--json FILE` or `--json -`, not opened; None if nothing is to be written.

    Raises:
        InputError: this is not a file that can be written to, as far as that can be told without opening it.
    """
    if where is None:
        return None
    # The summary says what could not be written, so it need not be logged too.
    logging.getLogger("rollcast.observers.waiting_lines.count").setLevel(logging.ERROR)
    return JSONStreamObserver(None if is_standard_output(where) else where)


def log_line(log: JSONStreamObserver) -> str | None:
    """The place of the events, and what is missing there; None if all of them went to the standard output."""
    if log.incomplete is not None:
        return f"{log.path or 'the standard output'} (not complete: {log.incomplete})"
    return None if log.path is None else str(log.path)
