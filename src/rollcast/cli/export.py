"""`rollcast export`: a record, or part of it, in a format that others read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from rollcast.archive.atif import atif_of
from rollcast.archive.index import find_record
from rollcast.archive.lines import Damage
from rollcast.archive.markdown import markdown_of
from rollcast.archive.reader import Archive
from rollcast.archive.selection import check_names, runs_of_step
from rollcast.archive.story import Story, stories_of
from rollcast.cli.output import discard_stdout
from rollcast.cli.records import warn_of_damage
from rollcast.cli.standard_error import warn
from rollcast.errors import InputError
from rollcast.records import EventFilter, encode
from rollcast.text import terminal_safe_json, visible, well_formed

__all__ = ["FORMATS", "ExportOptions", "export_command"]

FORMATS = ("jsonl", "markdown", "atif")


@dataclass(frozen=True)
class ExportOptions:
    """The options on the command line; see `rollcast export --help`."""

    record: str
    to: str
    step: int | None
    chains: list[str] | None
    groups: list[str] | None


def export_command(directory: Path, options: ExportOptions) -> int:
    """Write it to the standard output; the exit code.

    Raises:
        ArchiveError: no record is meant or more than one, it cannot be read, or it has no such step, chain or group.
        InputError: there is no such format, or the output cannot be written.
        BrokenPipeError: the output's reader has gone.
    """
    if options.to not in FORMATS:
        raise InputError(f"--to is {options.to!r:.40}; expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    archive = Archive.open(find_record(directory, options.record))
    wanted, rows = _selected(archive, options)
    damage: list[Damage] = []
    pieces = (
        _events(archive, wanted, damage)
        if options.to == "jsonl"
        else _chains(archive, wanted, rows, options, damage)
    )
    _print_all(pieces)
    warn_of_damage(archive, damage)
    return 0


def _print_all(pieces: Iterator[bytes]) -> None:
    """Print in UTF-8, whatever the locale says."""
    binary = sys.stdout.buffer
    for piece in chain(pieces, [b""]):
        try:
            binary.write(piece)
            if not piece:
                binary.flush()
        except BrokenPipeError:
            raise BrokenPipeError from None  # without its number, at which the framework would end the program
        except OSError as error:
            discard_stdout()
            raise InputError(f"the output cannot be written: {error.strerror or error}") from None


def _selected(archive: Archive, options: ExportOptions) -> tuple[EventFilter, list[dict[str, Any]]]:
    rows = archive.chains().rows
    wanted = EventFilter(chains=options.chains, groups=options.groups)
    if options.step is not None:
        runs = runs_of_step(archive, rows, options.step)
        wanted &= EventFilter(runs=runs)
        rows = [row for row in rows if row["run_id"] in runs]
    check_names(archive, rows, "chain_id", options.chains or [])
    check_names(archive, rows, "group_id", options.groups or [])
    return wanted, rows


def _events(archive: Archive, wanted: EventFilter, damage: list[Damage]) -> Iterator[bytes]:
    reader = archive.events(filter=wanted)
    for event in reader:
        line = encode(event)
        yield (terminal_safe_json(line.decode()).encode() if sys.stdout.isatty() else line) + b"\n"
    damage += reader.damage


def _chains(
    archive: Archive,
    wanted: EventFilter,
    rows: list[dict[str, Any]],
    options: ExportOptions,
    damage: list[Damage],
) -> Iterator[bytes]:
    silent = told = 0
    if options.to == "markdown":
        yield _readable(f"# {archive.path.name}\n\n")
    for story in stories_of(archive, wanted, rows):
        piece = _markdown(story) if options.to == "markdown" else _atif(story, archive)
        silent += piece is None
        told += 1
        if piece is not None:
            yield piece
        damage[:] = story.reader.damage
    if silent:
        warn(f"chains without messages are left out: {silent:,}")
    lacking = sum(_is_selected(row, options) for row in rows) - told
    if lacking > 0:
        warn(f"chains whose events are not in the record are left out: {lacking:,}")


def _is_selected(row: dict[str, Any], options: ExportOptions) -> bool:
    return (not options.chains or row["chain_id"] in options.chains) and (
        not options.groups or row.get("group_id") in options.groups
    )


def _markdown(story: Story) -> bytes:
    return _readable(markdown_of(story) + "\n")


def _readable(text: str) -> bytes:
    """Control characters are shown as escapes."""
    return "\n".join("".join(part for part, _ in visible(line)) for line in text.split("\n")).encode()


def _atif(story: Story, archive: Archive) -> bytes | None:
    document = atif_of(story, archive.facts, archive.path.name)
    if document is None:
        return None
    return terminal_safe_json(well_formed(msgspec.json.encode(document).decode())).encode() + b"\n"
