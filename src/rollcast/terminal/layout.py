"""The look of rows: glyphs, styles, widths in cells, wrapping. Pure; all text that gets here is already safe.

A row is a list of pieces `(text, style)`. Styles are names of `STYLES`, `""` for none, or `chain:N` for palette colour N.
Rich knows the terminals (colour systems, styles, cell widths); its markup is never used.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len, get_character_cell_size
from rich.color import ColorSystem
from rich.style import Style

from rollcast.terminal.shown import chain_number

__all__ = ["ASCII", "UNICODE", "Glyphs", "Painter", "Piece", "Row", "chain_number", "row_cells", "wrap"]

Piece = tuple[str, str]
Row = list[Piece]

STYLES = {
    "dim": "dim",
    "bold": "bold",
    "question": "bold",
    "raw": "dim",
    "think": "dim italic",
    "escape": "reverse",
    "call": "bold cyan",
    "result": "green",
    "fail": "bold red",
    "reward": "bold yellow",
    "done": "bold green",
    "stopped": "bold yellow",
    "gap": "yellow",
    "rule": "dim",
    "title": "bold",
    "train": "bold magenta",
}
# Distinguishable on dark and on light backgrounds; red is reserved for failures.
_PALETTE_256 = (39, 208, 141, 35, 204, 44, 178, 99, 71, 169, 67, 137)
_PALETTE_16 = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


@dataclass(frozen=True)
class Glyphs:
    """The symbols for kinds of rows, so that they can be read without colours."""

    bar: str = "│"
    start: str = "▸"
    call: str = "→"
    result: str = "←"
    below: str = "┊"
    fail: str = "✗"
    reward: str = "★"
    end: str = "■"
    more: str = "…"
    gap: str = "≋"
    joined: str = "↪"
    train: str = "◆"
    rule: str = "─"
    dot: str = "·"
    times: str = "×"
    spinner: str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

    def encodable(self, encoding: str) -> bool:
        """Whether an output with this encoding can show them."""
        try:
            "".join(vars(self).values()).encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True


UNICODE = Glyphs()
ASCII = Glyphs(
    bar="|",
    start=">",
    call="->",
    result="<-",
    below=":",
    fail="x",
    reward="*",
    end="#",
    more="~",
    gap="!!",
    joined="+>",
    train="@",
    rule="-",
    dot="-",
    times="x",
    spinner="|/-\\",
)


class Painter:
    """Turns rows into text with the styles that the terminal can show.

    Args:
        color_system: a colour system of Rich; None: no styles.
    """

    def __init__(self, color_system: ColorSystem | None) -> None:
        self._codes: dict[str, tuple[str, str]] = {}
        if color_system is None:
            return
        palette = (
            _PALETTE_16
            if color_system in (ColorSystem.STANDARD, ColorSystem.WINDOWS)
            else [f"color({number})" for number in _PALETTE_256]
        )
        styles = STYLES | {f"chain:{i}": color for i, color in enumerate(palette)}
        self.colors = len(palette)
        for name, style in styles.items():
            before, after = Style.parse(style).render("\0", color_system=color_system).split("\0")
            self._codes[name] = (before, after)

    colors = 1

    def chain_style(self, chain_id: str) -> str:
        """The chain's colour, chosen by its number so that it is the same in every run and process."""
        return f"chain:{chain_number(chain_id) % self.colors}"

    def paint(self, row: Row) -> str:
        """The row as text, without a newline."""
        codes = self._codes
        if codes:
            row = [
                (f"{codes[style][0]}{text}{codes[style][1]}", "") if style in codes and text else (text, "")
                for text, style in row
            ]
        return "".join([text for text, _ in row]).replace("\u00a0", " ")


def row_cells(row: Row) -> int:
    """The width of the row in terminal cells."""
    return sum([cell_len(text) for text, _ in row])


def wrap(row: Row, first: int, rest: int) -> list[Row]:
    """Wrap the row: the first part is at most `first` cells wide, the others at most `rest`. Words that fit stay whole."""
    if row_cells(row) <= first:
        return [row]
    chars = [
        (char, style, 1 if " " <= char <= "~" else get_character_cell_size(char))
        for text, style in row
        for char in text
    ]
    rows: list[Row] = []
    start, limit = 0, max(first, 2)
    while start < len(chars):
        end = _row_end(chars, start, limit)
        rows.append(_joined(chars[start:end]))
        start = end
        while start < len(chars) and chars[start][0] == " ":
            start += 1  # the space at which the row was broken
        limit = max(rest, 2)
    return rows


def _row_end(chars: list[tuple[str, str, int]], start: int, limit: int) -> int:
    """The end of the row that begins at `start`: at the last space within `limit` cells, or where they are full."""
    used = 0
    space = None
    for i in range(start, len(chars)):
        char, _, cells = chars[i]
        used += cells
        if used > limit and i > start:
            if char == " ":
                return i
            # Breaking far left of the edge would waste more space than a broken word is worth.
            return space if space is not None and (space - start) * 3 >= limit else i
        if char == " " and i > start:
            space = i
    return len(chars)


def _joined(chars: list[tuple[str, str, int]]) -> Row:
    row: Row = []
    for char, style, _ in chars:
        if row and row[-1][1] == style:
            row[-1] = (row[-1][0] + char, style)
        else:
            row.append((char, style))
    return row
