"""Finds raw tool calls and thoughts in a model's text, which comes in pieces of any size. Pure."""

from __future__ import annotations

from rollcast.terminal.layout import Row

__all__ = ["REASONING", "style_tags"]

REASONING = "reasoning"
"""The open "tag" while a server sends reasoning apart: no text closes it."""

_STYLES = {"<tool_call>": "raw", "<think>": "think"}


def style_tags(text: str, tag: str | None, *, final: bool) -> tuple[Row, str | None, str]:
    """Split the text into pieces, with raw tool calls and thoughts styled, including their tags.

    Args:
        text: the next text.
        tag: the open tag that the last call returned.
        final: whether no text follows on this line, so that nothing is held back.

    Returns:
        The pieces, the tag that is open after them, and what is held back from the end: the beginning of a possible tag, or
        the carriage return of a Windows line end.
    """
    if tag == REASONING:
        held = "" if final or not text.endswith("\r") else "\r"
        text = text[: len(text) - len(held)]
        return [(text, "think")] if text else [], tag, held
    row: Row = []
    while text:
        if tag is None:
            starts = [(found, name) for name in _STYLES if (found := text.find(name)) >= 0]
            if not starts:
                break
            at, tag = min(starts)
            if at:
                row.append((text[:at], ""))
            text = text[at:]
        closing = "</" + tag[1:]
        at = text.find(closing)
        if at < 0:
            break
        row.append((text[: at + len(closing)], _STYLES[tag]))
        text = text[at + len(closing) :]
        tag = None
    awaited = tuple(_STYLES) if tag is None else ("</" + tag[1:],)
    held = "" if final else _beginning(text, awaited)
    text = text[: len(text) - len(held)]
    if text:
        row.append((text, "" if tag is None else _STYLES[tag]))
    return row, tag, held


def _beginning(text: str, awaited: tuple[str, ...]) -> str:
    """The end of the text that may be the beginning of an awaited tag or of a line's end."""
    if text.endswith("\r"):
        return "\r"
    at = text.rfind("<")
    if at < 0:
        return ""
    end = text[at:]
    return end if any(name.startswith(end) and name != end for name in awaited) else ""
