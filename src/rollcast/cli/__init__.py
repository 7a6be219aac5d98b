"""The command line."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ["main"]


def main() -> None:
    """The `rollcast` command: bad input is one sentence and exit code 2."""
    from rollcast.errors import RollcastError  # noqa: PLC0415

    try:
        from rollcast.cli.app import app  # noqa: PLC0415  (Typer and Rich load here, not with the package)

        app()
    except RollcastError as error:
        from rollcast.text import visible  # noqa: PLC0415

        # A server or a model may have had its say in it: nothing in it is obeyed by the terminal.
        lines = ("".join(piece for piece, _ in visible(line)) for line in str(error).split("\n"))
        with suppress(OSError):  # a standard error that is full, or that nobody reads
            print("rollcast:", "\n".join(lines), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before a run had begun
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone. What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
