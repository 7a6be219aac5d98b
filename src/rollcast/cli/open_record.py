"""`rollcast open`: shows recorded runs in the live page: one, or all records of a folder."""

from __future__ import annotations

import asyncio
import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path

from rollcast.archive.format import RUN_FILE
from rollcast.archive.index import find_record, list_records, read_run_file, state_of
from rollcast.cli.kept_token import MadeToken, made_token
from rollcast.cli.output import Output
from rollcast.cli.page_links import forward_lines, has_display, page_link
from rollcast.cli.records import state_word
from rollcast.cli.signals import ending_on_signals
from rollcast.cli.wording import counted
from rollcast.text import printable_line

__all__ = ["OpenOptions", "open_command"]


@dataclass(frozen=True)
class OpenOptions:
    """The options on the command line; see `rollcast open --help`. `record`: None for all records of the directory."""

    record: str | None
    port: int
    token: str | None = field(repr=False)
    browser: bool


def open_command(directory: Path, options: OpenOptions) -> int:
    """Serve the record, or the folder of records, until Ctrl-C or SIGTERM; the exit code.

    Raises:
        ArchiveError: no record is meant or more than one, or it cannot be read.
        InputError: an option is wrong, or the port is in use.
    """
    directory, word = _directory_and_word(directory, options.record)
    path = find_record(directory, "latest" if word is None else word)
    facts = read_run_file(path)
    # A record that lies elsewhere may be somebody else's: nothing is written beside it.
    beside = directory if path.absolute().parent == directory.absolute() else None
    made = made_token(beside) if options.token is None else None
    out = Output(sys.stdout, color=None)
    state = state_word(facts, state_of(facts)[0])
    going_on = ", and what comes is shown" if state == "running" else ""
    what = printable_line(path.name, 80)
    if word is None:
        records = counted(len(list_records(directory)), "record")
        what = f"{printable_line(str(directory), 200)}: {records}; the latest, {what}"
    out.say([(f"{what}: {state}{going_on}", "")])
    asyncio.run(_serve(directory if word is None else path, options, made, out))
    return 0


def _directory_and_word(directory: Path, given: str | None) -> tuple[Path, str | None]:
    """The record directory, and the record that is meant in it; None: all of them, as for a folder that is not a record itself."""
    folder = Path(given or "")
    if given and folder.is_dir() and not (folder / RUN_FILE).exists():
        return folder, None
    return directory, given


async def _serve(path: Path, options: OpenOptions, made: MadeToken | None, out: Output) -> None:
    from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer  # noqa: PLC0415  (other commands need no network)

    value = options.token if made is None else made.value
    assert value is not None
    settings = ServerSettings(tokens=(Token(value),))  # there is nothing to cancel
    server = WebSocketStreamingServer("localhost", options.port, settings=settings, record=path)
    ended = asyncio.Event()
    async with server:
        with ending_on_signals(ended.set):
            if made is not None:
                made.keep()
            link = page_link(server, value)
            shown = link if made is not None else f"{server.page_url}#token=…, with the token for the dots"
            out.say([(f"in a browser: {shown}", "")], *([(line, "")] for line in forward_lines(server)))
            out.say([("Ctrl-C ends it", "dim")])
            out.must_have_printed()
            if options.browser and has_display():
                await asyncio.to_thread(webbrowser.open, link)
            await ended.wait()
