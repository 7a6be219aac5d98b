"""Exit codes that several commands have. `docs/cli.md` lists all."""

from __future__ import annotations

__all__ = ["BAD_INPUT", "INTERRUPTED", "SIGNALLED", "UNREAD"]

BAD_INPUT = 2
SIGNALLED = 128  # the shell's code for a program that a signal ended is this and the signal's number
INTERRUPTED = SIGNALLED + 2  # SIGINT, which Ctrl-C sends
UNREAD = SIGNALLED + 13  # SIGPIPE: the output's reader has gone
