"""`rollcast recover`: recovers a record whose writer died."""

from __future__ import annotations

import sys
from pathlib import Path

from rollcast.archive.index import find_record
from rollcast.archive.recovery import recover
from rollcast.cli.wording import counted
from rollcast.errors import ArchiveError
from rollcast.text import printable_line

__all__ = ["recover_command"]


def recover_command(directory: Path, word: str, *, force: bool) -> int:
    """Recover the record that `word` names, and print what was done; returns the exit code.

    Raises:
        ArchiveError: no record is meant or more than one, or it cannot be recovered.
    """
    path = find_record(directory, word)
    try:
        result = recover(path, force=force)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be recovered: {error.strerror or error}") from None
    if not result.needed:
        sys.stdout.write(f"{path} needs no recovery.\n")
        return 0
    sys.stdout.write(
        f"{path} is recovered: {counted(result.events, 'event')}; {counted(result.gaps, 'run')} and "
        f"{counted(result.lost_chains, 'chain')} have no end; {counted(result.rows, 'row')} added.\n"
    )
    for damage in result.damage:
        sys.stdout.write(f"  lost: {printable_line(damage)}\n")
    return 0
