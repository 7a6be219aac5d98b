"""The command line."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from rollcast.cli.exit_codes import BAD_INPUT, INTERRUPTED, UNREAD

__all__ = ["main"]


def main() -> None:
    """Run the `rollcast` command: bad input gives one sentence and exit code 2."""
    try:
        _main()
    except KeyboardInterrupt:  # before a run began, or after it ended
        sys.exit(INTERRUPTED)


def _main() -> None:
    from rollcast.errors import RollcastError  # noqa: PLC0415

    _fill_closed_descriptors()
    try:
        from rollcast.cli.app import app  # noqa: PLC0415  (the options load here, not with the package)

        app()
    except RollcastError as error:
        from rollcast.text import visible  # noqa: PLC0415

        # Part of it may come from a server or a model, and must not control the terminal.
        lines = ("".join(piece for piece, _ in visible(line)) for line in str(error).split("\n"))
        with suppress(OSError):  # the standard error is full, or its reader has gone
            print("rollcast:", "\n".join(lines), file=sys.stderr)
        _print_notes(error)
        sys.exit(BAD_INPUT)
    except BrokenPipeError:
        # The reader has gone. What is still buffered must not be tried again at exit.
        _discard_stdout()
        sys.exit(UNREAD)
    except OSError as error:
        if not _stdout_is_broken():
            raise
        _discard_stdout()
        with suppress(OSError):
            print("rollcast: the output cannot be written:", error.strerror or error, file=sys.stderr)
        sys.exit(BAD_INPUT)


def _print_notes(error: BaseException) -> None:
    """What a command has to say after the error, such as where its record is."""
    for note in getattr(error, "__notes__", ()):
        with suppress(OSError):
            print(note, file=sys.stderr)


def _stdout_is_broken() -> bool:
    """Whether nothing can be written to the standard output.

    A newline is written too: a text that is longer than the buffer, or has none, failed while it was printed, and nothing of it
    is left to be flushed.
    """
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fill_closed_descriptors() -> None:
    """After `>&-` Python has no `sys.stdout`, and the next file that is opened would get its descriptor.

    The descriptor is filled with one that takes no bytes, so that it is reported like a full disk. What is written to a
    closed standard error goes nowhere.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # this gets the lowest free descriptor
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115  (open as long as the program runs)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115
