"""Prints rows to one output, with the prefix, wrapping, and the open line of a single visible chain."""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from typing import TextIO

from rich.color import ColorSystem

from rollcast.terminal.event_rows import EventRows
from rollcast.terminal.layout import ASCII, UNICODE, Painter, Row, row_cells, wrap
from rollcast.terminal.output import SharedOutput
from rollcast.terminal.ownership import owns_terminal
from rollcast.terminal.shown import VisibleChain
from rollcast.terminal.tags import style_tags
from rollcast.text import LINE_CHARS, shorten

__all__ = ["Printer"]

_LABEL_CHARS = 24
_SOURCE_CHARS = 16  # the end of a source's name tells it from others: host-rank12
_LABELS = 1_024  # of printed chains, that are kept
_LIVE_ROWS = 8
_WIDE = 60  # from this many cells on, timestamps have room
_NARROW = 32  # below this many cells, only the number of a chain's id is shown


class Printer:
    """What one console needs to print to one stream. Everything but `measure` is called inside `with output:`.

    Attributes:
        output: the stream's output, which is shared with other consoles.
        terminal: whether the stream is a terminal on which no other process draws.
        piped: whether the stream is a pipe or a file, which is read by lines.
        capable: whether it is a terminal that supports moving the cursor.
        width: the column at which rows are wrapped; None: they are not. `room`: what the prefix leaves of it.
        live: whether the terminal has room for rows that show what chains are writing.
        glyphs, painter, rows: the look of rows there.
        sources: the names of those that were seen, as they are shown; from the second one on, each line names its own.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        color: bool | None,
        width: int | None,
        timestamps: bool,
        limits: tuple[int, int],
    ) -> None:
        self.output = SharedOutput.of(stream)
        self.terminal = _is_terminal(stream) and owns_terminal(stream)
        self.piped = not self.terminal and _has_descriptor(stream)
        self.capable = self.terminal and _is_capable()
        encoding = getattr(stream, "encoding", None) or "utf-8"
        self.glyphs = UNICODE if UNICODE.encodable(encoding) else ASCII
        self.painter = Painter(_color_system(stream, color))
        self.rows = EventRows(self.glyphs, None if _shows_everything(encoding) else encoding, *limits)
        self._stream = stream
        self._fixed_width = width
        self._timestamps = timestamps
        self._second: tuple[int, str] = (-1, "")
        self._labels: dict[str, tuple[Row, int]] = {}
        self._column = 0
        self.sources: set[str] = set()
        self._source_chars = 0
        self.width: int | None = None
        self.live = False
        self.room = LINE_CHARS

    def measure(self) -> None:
        """Update the width from the terminal's size, since it may have been resized."""
        self.width = self._columns()
        self.live = self.capable and self.status_size()[1] > 0
        self.room = LINE_CHARS if self.width is None else self.width - row_cells(self.prefix(None, 0.0))

    def _columns(self) -> int | None:
        if self._fixed_width is not None:
            return self._fixed_width
        return max(self.size()[0] or 80, 20) if self.terminal else None

    def size(self) -> tuple[int, int]:
        """The columns and lines of the terminal; 0 if they are not known."""
        try:
            return os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError, AttributeError):
            return (0, 0)

    def status_size(self) -> tuple[int, int]:
        """The width of the terminal in cells, and how many chains may have a row in the status."""
        columns, lines = self.size()
        return min(self.width or 80, max(columns or 80, 20)), max(min((lines or 24) // 2 - 2, _LIVE_ROWS), 0)

    def live_row(self, chain: VisibleChain) -> Row:
        """The line that the chain is writing, or the tools that it waits for."""
        row = self.prefix(chain, chain.stamp)
        if chain.pending:
            text = "".join(chain.pending)[-self.room :]
            return [*row, *self.safe(style_tags(text, chain.tag, final=True)[0])]
        more = (f" {self.glyphs.more}", "dim")
        names = ", ".join(chain.awaited_tools)
        return (
            [*row, *self.rows.line(f"{self.glyphs.call} {names}", 60, "dim"), more] if names else [*row, more]
        )

    def widen_labels(self, chain_id: str, source: str = "") -> None:
        """Leave room for this id in every prefix from now on, and for the source that it ends with."""
        if _without_source(chain_id, source) != chain_id:  # other processes take part in the run
            self._source_chars = max(self._source_chars, len(source[-_SOURCE_CHARS:]))
            self.measure()
        cells = self._label(self._shown_id(chain_id, source))[1]
        if cells > self.output.label_cells:
            self.output.label_cells = cells
            self.measure()

    def see_source(self, source: str) -> None:
        """Leave room for the name of this source in every prefix from now on, if it is not the only one."""
        self.sources.add(source[-_SOURCE_CHARS:])
        if len(self.sources) > 1:
            self._source_chars = max(map(len, self.sources))
        self.measure()

    def safe(self, pieces: Row) -> Row:
        """Styled text from outside as safe pieces, bounded."""
        row: Row = []
        for text, style in pieces:
            head, left_out = shorten(text, LINE_CHARS)
            row += self.rows.text(head, style)
            if left_out:
                row.append((f" {self.glyphs.more} {left_out:,} characters not shown ", "gap"))
        return row

    def print_inline(self, chain: VisibleChain, row: Row, stamp: float) -> None:
        """Continue the chain's open line, or begin it. The last column stays free, since terminals treat it differently."""
        output = self.output
        more = (f"{self.glyphs.more} ", "dim")
        prefix = self.prefix(chain, stamp)
        begins = output.line_owner is not chain
        if begins:
            head = [*prefix, more] if chain.partial_line else prefix
            output.put(self.painter.paint(head), owner=chain)
            self._column = row_cells(head)
        cells = row_cells(row)
        if self.width is None or self._column + cells < self.width:
            output.put(self.painter.paint(row), owner=chain)
            self._column += cells
            return
        rest = self.room - 3
        left = self.width - 1 - self._column
        # A token that fits in a row of its own goes there whole.
        rows = [[], _stripped(row)] if cells <= rest or left < 2 else wrap(row, left, rest)
        if cells > rest and left < 2:
            rows = [[], *wrap(row, rest, rest)]
        output.put(self.painter.paint(rows[0]), owner=chain)
        for following in rows[1:]:
            head = [*prefix, more, *following]
            output.put("\n" + self.painter.paint(head), owner=chain)
            self._column = row_cells(head)

    def print_rows(
        self,
        rows: list[Row],
        chain: VisibleChain | None,
        stamp: float,
        *,
        goes_on: bool = False,
        run_id: str = "",
        source: str = "",
    ) -> None:
        """Print whole rows, each wrapped and with the prefix.

        Args:
            rows: the rows.
            chain: the chain that they are about, if it is one.
            stamp: their time.
            goes_on: whether the first continues a line.
            run_id: the run, if they are about no single chain.
            source: the source, in the same case.
        """
        output = self.output
        prefix = self.painter.paint(self.prefix(chain, stamp, run_id, source))
        more = (f"{self.glyphs.more} ", "dim")
        for row in map(self.rows.safe, rows):
            first = [more, *_stripped(row)] if goes_on else row
            parts = [first] if self.width is None else wrap(first, self.room, self.room - 2)
            output.put(prefix + self.painter.paint(parts[0]) + "\n")
            for part in parts[1:]:
                output.put(prefix + self.painter.paint([more, *part]) + "\n")

    def print_rule(self, row: Row, run_id: str) -> None:
        """Print a row about the whole run as a rule across the output."""
        output = self.output
        rule = self.glyphs.rule
        head: Row = [(rule * 2 + " ", "rule")]
        if output.several_runs:
            head += [*self.rows.line(_short_run(run_id), _LABEL_CHARS, "dim"), (" ", "")]
        head += [*self.rows.safe(row), (" ", "")]
        parts = [head] if self.width is None else wrap(head, self.width - 3, self.width - 6)
        fill = 2 if self.width is None else max(self.width - row_cells(parts[-1]) - 3 * (len(parts) > 1), 2)
        parts[-1] = [*parts[-1], (rule * fill, "rule")]
        for i, part in enumerate(parts):
            output.put(self.painter.paint([*([("   ", "")] if i else []), *part]) + "\n")

    # -- the prefix ------------------------------------------------------------------------------------------------

    def prefix(self, chain: VisibleChain | None, stamp: float, run_id: str = "", source: str = "") -> Row:
        """The time, the run and the source if there are several, the chain's id, and a bar."""
        output = self.output
        row: Row = []
        if self._timestamps and (self.width is None or self.width >= _WIDE):
            row.append((self._time(stamp) + " ", "dim"))
        if output.several_runs and (self.width is None or self.width >= _NARROW):
            run = _short_run(run_id if chain is None else chain.run_id)
            row += [*self.rows.line(f"{run:<4}", 4, "dim"), (" " * (5 - len(run)), "")]
        if self._names_sources():
            name = (source if chain is None else chain.source)[-_SOURCE_CHARS:]
            row += [
                *self.rows.line(name, _SOURCE_CHARS, "dim"),
                (" " * (self._source_chars - len(name) + 1), ""),
            ]
        label, cells = self._label("run" if chain is None else self._shown_id(chain.chain_id, chain.source))
        style = "dim" if chain is None else chain.style
        pad = " " * (output.label_cells - cells) if not self._is_narrow() else ""
        row += [(text, style if kind != "escape" else kind) for text, kind in label]
        row.append((f"{pad} {self.glyphs.bar} ", style))
        return row

    def _names_sources(self) -> bool:
        return self._source_chars > 0 and (self.width is None or self.width >= _WIDE)

    def _shown_id(self, chain_id: str, source: str) -> str:
        """The chain's id, without the source if that stands before it."""
        return _without_source(chain_id, source) if self._names_sources() else chain_id

    def _label(self, chain_id: str) -> tuple[Row, int]:
        """The chain's label, and its width in cells. This is called for every line."""
        name = chain_id.rpartition("_")[2] if self._is_narrow() else chain_id
        label = self._labels.get(name)
        if label is None:
            head, left_out = shorten(name, _LABEL_CHARS)
            row = self.rows.text(head.replace("\n", " ")) + ([(self.glyphs.more, "")] if left_out else [])
            if len(self._labels) >= _LABELS:
                self._labels.clear()
            label = self._labels[name] = (row, row_cells(row))
        return label

    def _is_narrow(self) -> bool:
        return self.width is not None and self.width < _NARROW

    def _time(self, stamp: float) -> str:
        """The local time as HH:MM:SS.mmm."""
        try:
            second, millis = divmod(int(stamp * 1000), 1000)
            if second != self._second[0]:
                self._second = (second, time.strftime("%H:%M:%S", time.localtime(second)))
        except (OverflowError, ValueError, OSError):  # an impossible time in a user-made event
            return "--:--:--.---"
        return f"{self._second[1]}.{millis:03d}"


def _without_source(chain_id: str, source: str) -> str:
    """The id without the source that it ends with, as in `chain_0@host-rank1`."""
    return (chain_id.removesuffix(f"@{source}") or chain_id) if source else chain_id


def _short_run(run_id: str) -> str:
    """The end of the id, which is random in a UUIDv7."""
    return run_id[-4:]


def _stripped(row: Row) -> Row:
    if not row:
        return row
    (first, style), *rest = row
    return [(first.lstrip(" "), style), *rest]


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (ValueError, AttributeError):  # closed, or an object with nothing but write
        return False


def _has_descriptor(stream: TextIO) -> bool:
    """Whether the stream has a file descriptor, unlike a notebook's output or text in memory."""
    if not isinstance(stream, io.TextIOWrapper):
        return False
    try:
        stream.fileno()
    except (OSError, ValueError):
        return False
    return True


def _is_capable() -> bool:
    """Whether the terminal supports moving the cursor."""
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    if sys.platform == "win32":
        from rich.console import detect_legacy_windows  # noqa: PLC0415  (needed there alone)

        return not detect_legacy_windows()
    return True


def _shows_everything(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name.startswith("utf-")
    except LookupError:
        return False


def _is_plain_output(stream: TextIO) -> bool:
    """Whether this is the program's own standard output, into a pipe or a file, and no environment variable asks for colours: then Rich is not needed."""
    if any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")):
        return False
    return stream in (sys.__stdout__, sys.__stderr__) and not _is_terminal(stream)


def _color_system(stream: TextIO, color: bool | None) -> ColorSystem | None:
    """The colours that the stream can show; Rich knows the environment variables and the terminals."""
    if color is False or (color is None and (os.environ.get("NO_COLOR") or _is_plain_output(stream))):
        return None
    from rich.console import Console  # noqa: PLC0415  (large; loaded only to print)

    console = Console(file=stream, force_terminal=True if color else None)
    name = console.color_system
    if name is None or (console.legacy_windows and not color):
        return ColorSystem.STANDARD if color else None
    return {"standard": ColorSystem.STANDARD, "256": ColorSystem.EIGHT_BIT}.get(name, ColorSystem.TRUECOLOR)
