r"""Makes text from outside valid Unicode, one line, bounded, and harmless for a terminal.

A Python string can hold surrogates, for instance from a model's JSON with a split emoji, but they cannot be encoded.
`well_formed` joins pairs and replaces lone ones, `replace_surrogates` replaces each one and keeps the length, and
`escape_surrogates` shows each one as `\ud800`.

Three functions make one line: `one_line` only removes line breaks, for a model or a log; `printable_line` escapes
characters that a terminal would obey; `plain_line` drops them, for our own messages that quote something.

A model, a tool or a log can hold terminal escapes (they move the cursor, set the title, write the clipboard),
bidirectional overrides (they reorder the text on screen, CVE-2021-42574) and zero-width characters (they hide text).
`visible` shows each as an escape.

`looks_secret` tells whether a value had better not be shown at all.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = [
    "LINE_CHARS",
    "bounded",
    "escape_surrogates",
    "grown_line",
    "is_terminal_safe",
    "looks_secret",
    "names_secret",
    "one_line",
    "plain_line",
    "printable_line",
    "replace_surrogates",
    "shorten",
    "terminal_safe_json",
    "visible",
    "well_formed",
]

LINE_CHARS = 4000  # characters of a line of model text that are shown at once

_SURROGATE = re.compile("[\ud800-\udfff]")
# Printable by category but invisible: joiners, fillers, variation selectors other than text and emoji style.
_INKLESS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)
_TAB = "    "


def well_formed(text: str) -> str:
    """The text as valid Unicode: surrogate pairs are joined into their character, and lone ones are replaced by U+FFFD.

    It is the same object if nothing had to change.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def replace_surrogates(text: str) -> str:
    """The text with every surrogate replaced by U+FFFD, one by one, so that its length stays."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def escape_surrogates(text: str) -> str:
    r"""The text with every surrogate shown as an escape, `\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode()


def shorten(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters and how many were left out."""
    return (text, 0) if len(text) <= limit else (text[:limit], len(text) - limit)


def bounded(text: str, limit: int, length: int | None = None) -> str:
    """The text, or its beginning and a note on its length; never more than `limit` characters.

    Args:
        text: the text or its beginning.
        limit: how many characters to return at most, including the note.
        length: the length of the whole text, if `text` is only its beginning.
    """
    length = len(text) if length is None else length
    if length <= limit:
        return text
    note = f"… [truncated: {length} characters]"
    return text[: limit - len(note)] + note if limit > len(note) else text[:limit]


def one_line(text: str, limit: int = 300) -> str:
    """The text without line breaks, `bounded` to `limit`. It is not safe to print on a terminal."""
    return bounded(" ".join(text.split()), limit)


def plain_line(text: str, limit: int) -> str:
    """The text without line breaks and control characters, at most `limit` characters, with `…` at the end if it was cut."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def printable_line(text: str, limit: int = 300) -> str:
    """The text as one line that is safe to print: characters that a terminal would obey are escaped, and the rest is cut after `limit`."""
    text, left_out = shorten(text, limit)
    return "".join(piece for piece, _ in visible(text)) + ("…" if left_out else "")


def is_terminal_safe(text: str) -> bool:
    """Whether a terminal shows every character as itself and obeys none. False also for tabs, newlines and wide spaces."""
    return text.isprintable() and (text.isascii() or _INKLESS.search(text) is None)


def visible(text: str, encoding: str | None = None) -> list[tuple[str, bool]]:
    r"""The text in pieces `(text, escaped)`; joined, they are safe to print.

    Escapes are Python's: `\x1b`, `\r`, `\u202e`. Tabs become four spaces.

    Args:
        text: one line; a newline in it becomes `\x0a`.
        encoding: the output's encoding; characters that it lacks are escaped too. None: it has them all.
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
    """The same JSON, or lines of JSON, with characters that a terminal would obey written as JSON escapes."""
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


_SECRET_NAME = re.compile(
    r"(?:TOKEN|SECRET|AUTH)(?![A-Z])|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8  # characters: shorter ones would be ordinary words
_NO_SECRET = re.compile(r"[./~].*|\d+|true|false|none|null|yes|no|disabled|enabled|default", re.IGNORECASE)


def names_secret(name: str) -> bool:
    """Whether what has this name is mostly a secret: a token, a password, a key."""
    return _SECRET_NAME.search(name.replace("-", "_")) is not None


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable or a field of this name holds a secret: 8 characters or more, and no path, number or common word."""
    return names_secret(name) and len(value) >= _SHORTEST_SECRET and not _NO_SECRET.fullmatch(value)


def grown_line(chars: int, more: str) -> tuple[int, bool]:
    """How many characters the last line has after more text, and whether that took it to a multiple of `LINE_CHARS`.

    A line that never ends is shown in pieces, at these places. A recording keeps them, so that a replay shows the same pieces.
    """
    newline = more.rfind("\n")
    if newline >= 0:
        chars, now = 0, len(more) - newline - 1
    else:
        now = chars + len(more)
    return now, now // LINE_CHARS > chars // LINE_CHARS
