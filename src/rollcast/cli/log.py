"""`--json`: the log of the events."""

from __future__ import annotations

import logging

from rollcast.stream.observers import JSONStreamObserver

__all__ = ["log_at", "log_line"]


def log_at(where: str | None) -> JSONStreamObserver | None:
    """The observer of `--json FILE` or `--json -`, not opened; None if nothing is to be written.

    Raises:
        InputError: this is no file that can be written to, as far as can be seen without opening it.
    """
    if where is None:
        return None
    # The summary says what could not be written; once is enough.
    logging.getLogger("rollcast.stream.observers.waiting_lines.count").setLevel(logging.ERROR)
    return JSONStreamObserver(None if where == "-" else where)


def log_line(log: JSONStreamObserver) -> str | None:
    """Where the events are, and what is missing there; None if all of them went to the standard output."""
    if log.incomplete is not None:
        return f"{log.path or 'the standard output'} (not complete: {log.incomplete})"
    return None if log.path is None else str(log.path)
