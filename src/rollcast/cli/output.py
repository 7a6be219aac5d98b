"""Prints for people: whole lines in a pipe, rows that fit on a terminal, and no failure ends a run."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from rollcast.cli.standard_error import warn
from rollcast.errors import InputError
from rollcast.terminal.layout import Row, wrap
from rollcast.terminal.printer import Printer

__all__ = ["Output", "discard_stdout"]


class Output:
    """A stream that takes turns with the consoles on it. What cannot be printed is dropped, and reported once.

    Args:
        stream: the standard output or the standard error.
        color: True or False; None: decided by the stream and the environment.
    """

    def __init__(self, stream: TextIO, *, color: bool | None) -> None:
        self._printer = Printer(stream, color=color, width=None, timestamps=False, limits=(8, 600))
        self._warned = False

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None if there is no terminal, and nothing is to be wrapped or cut."""
        with self._printer.output:
            self._printer.measure()
        return self._printer.width

    @property
    def printer(self) -> Printer:
        """The colors and glyphs of the stream."""
        return self._printer

    @property
    def unread(self) -> bool:
        """Whether the reader has gone, as after `| head -1`."""
        return self._printer.output.unread

    def say(self, *rows: Row) -> None:
        """Print the rows, on a terminal each wrapped at its width by whole words."""
        width = self.width
        with self._printer.output as output:
            for row in rows:
                safe = self._printer.rows.safe(row)
                parts = [safe] if width is None else wrap(safe, width - 1, width - 1)
                for part in parts:
                    output.put(self._printer.painter.paint(part) + "\n")

    def must_have_printed(self) -> None:
        """Make sure that everything was printed, for a command that does nothing else.

        Raises:
            InputError: the output cannot be written.
            BrokenPipeError: its reader has gone.
        """
        failure = self._printer.output.lost_to
        if failure is not None:
            why = failure.strerror or failure
            raise InputError(f"the output cannot be written: {why}; make room, or print elsewhere")
        if self.unread:
            raise BrokenPipeError

    def warn_if_broken(self) -> None:
        """Say once on the standard error that the output cannot be written; the run goes on."""
        failure = self._printer.output.lost_to
        if failure is None or self._warned:
            return
        self._warned = True
        warn(f"the output cannot be written: {failure.strerror or failure}; nothing more is shown")


def discard_stdout() -> None:
    """What is still buffered for the standard output is not tried again at exit: it cannot be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError, AttributeError):  # a test's output has no descriptor
        os.dup2(null, sys.stdout.fileno())
    os.close(null)
