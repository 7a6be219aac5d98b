"""`--json`: the log of the events."""

from __future__ import annotations

import logging

from rollcast.stream.observers import JSONStreamObserver

__all__ = ["log_at", "what_is_missing"]


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


def what_is_missing(log: JSONStreamObserver) -> str:
    """To be said behind the name of the log; empty if it is complete."""
    return "" if log.incomplete is None else f" (not complete: {log.incomplete})"
