r"""Text from outside: as valid Unicode, on one line, within a limit, and harmless for a terminal.

Three ways with surrogates, which a Python string can hold and no encoding takes, as a model's JSON of a split emoji gives:
`well_formed` joins the pairs and replaces what is alone, `replace_surrogates` replaces each and keeps the length, and
`escape_surrogates` shows each as `\ud800`.

Three lines: `one_line` only removes line breaks, for a model or a log; `printable_line` escapes what a terminal would obey;
`plain_line` leaves it out, for words of our own that quote something.

A model, a tool or a log can hold terminal escapes (they move the cursor, set the title, write the clipboard),
bidirectional overrides (they reorder what is read, CVE-2021-42574) and characters without width (they hide text). `visible`
shows each as an escape.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = [
    "bounded",
    "escape_surrogates",
    "is_terminal_safe",
    "one_line",
    "plain_line",
    "printable_line",
    "replace_surrogates",
    "shorten",
    "terminal_safe_json",
    "visible",
    "well_formed",
]

_SURROGATE = re.compile("[\ud800-\udfff]")
# Printable by category, yet without ink: joiners, fillers, variation selectors other than text and emoji style.
_INKLESS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)
_TAB = "    "


def well_formed(text: str) -> str:
    """The text as valid Unicode: pairs of surrogates joined to the character they mean, each lone one replaced by U+FFFD.

    It is the same object if there was nothing to do.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def replace_surrogates(text: str) -> str:
    """The text with every surrogate replaced by U+FFFD, one by one: its length stays."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def escape_surrogates(text: str) -> str:
    r"""The text with every surrogate shown as an escape, `\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode()


def shorten(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters and how many were left out."""
    return (text, 0) if len(text) <= limit else (text[:limit], len(text) - limit)


def bounded(text: str, limit: int, length: int | None = None) -> str:
    """The text, or its beginning and how long it was; never more than `limit` characters.

    Args:
        text: the text or its beginning.
        limit: characters, the note on how long it was included.
        length: of the whole text, if `text` is its beginning only.
    """
    length = len(text) if length is None else length
    if length <= limit:
        return text
    note = f"… [truncated: {length} characters]"
    return text[: limit - len(note)] + note if limit > len(note) else text[:limit]


def one_line(text: str, limit: int = 300) -> str:
    """The text without line breaks, `bounded` by `limit`. It is not safe to print on a terminal."""
    return bounded(" ".join(text.split()), limit)


def plain_line(text: str, limit: int) -> str:
    """The text without line breaks and control characters, at most `limit` characters, with `…` at the end if it was cut."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def printable_line(text: str, limit: int = 300) -> str:
    """The text as one line that is safe to print: what a terminal would obey is escaped, and what is over `limit` is cut."""
    text, left_out = shorten(text, limit)
    return "".join(piece for piece, _ in visible(text)) + ("…" if left_out else "")


def is_terminal_safe(text: str) -> bool:
    """Whether every character is seen as itself and none is obeyed. False for tabs, newlines and wide spaces too."""
    return text.isprintable() and (text.isascii() or _INKLESS.search(text) is None)


def visible(text: str, encoding: str | None = None) -> list[tuple[str, bool]]:
    r"""The text in pieces `(text, escaped)`; joined, they are safe to print.

    Escapes are Python's: `\x1b`, `\r`, `\u202e`. Tabs become four spaces.

    Args:
        text: one line; a newline in it is shown as `\x0a`.
        encoding: of the output, if it lacks characters; those are escaped too. None: it has them all.
    """
    if is_terminal_safe(text) and (encoding is None or _encodable(text, encoding)):
        return [(text, False)] if text else []
    pieces: list[tuple[str, bool]] = []
    run: list[str] = []
    run_escaped = False
    for char in text:
        escaped = _must_be_escaped(char, encoding)
        if escaped is not run_escaped and run:
            pieces.append(("".join(run), run_escaped))
            run = []
        run_escaped = escaped
        run.append(_escape(char) if escaped else _TAB if char == "\t" else char)
    if run:
        pieces.append(("".join(run), run_escaped))
    return pieces


def terminal_safe_json(text: str) -> str:
    """JSON text (lines of it) in which what a terminal would obey is a JSON escape; it means the same."""
    if all(map(is_terminal_safe, text.split("\n"))):
        return text
    return "".join(
        char if char == "\n" or not _must_be_escaped(char, None) else _json_escape(char) for char in text
    )


def _must_be_escaped(char: str, encoding: str | None) -> bool:
    if char in "\t\u00a0":  # a no-break space is printed as a space
        return False
    if not char.isprintable() and unicodedata.category(char) != "Zs":
        return True
    return _INKLESS.match(char) is not None or (encoding is not None and not _encodable(char, encoding))


def _encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escape(char: str) -> str:
    if char == "\r":
        return "\\r"
    return char.encode("ascii", "backslashreplace").decode() if ord(char) > 0x7F else f"\\x{ord(char):02x}"


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
