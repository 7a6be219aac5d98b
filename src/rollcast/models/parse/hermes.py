"""The Hermes format, which Qwen and the embedded model speak: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

Source: the function-calling format of NousResearch's Hermes 2 Pro.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from rollcast.models.parse.base import IncrementalParser
from rollcast.records.message import ToolCall

__all__ = ["HermesParser"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
CALL_LIMIT = 1 << 20
"""Characters of one call; what goes beyond is not kept."""

_NAME = re.compile(r'"name"\s{0,8}:\s{0,8}"([^"\\]{1,64})"')


class HermesParser:
    """Hermes tool calls. The first `</tool_call>` ends a call, even inside a JSON string, as elsewhere in the field.

    The errors are few words, since a model has to learn to read them: `error: bad json`, `error: no tool name`,
    `error: bad arguments`, `error: call too long`, `error: unclosed call`.
    """

    name = "hermes"
    stop: tuple[str, ...] = ()

    def parse(self, text: str) -> list[ToolCall]:
        """The calls in the whole text of a turn."""
        turn = self.incremental()
        turn.feed(text)
        return turn.close()

    def incremental(self) -> IncrementalParser:
        """For one turn."""
        return _Turn()


class _Turn:
    """Time and memory are linear in the text, however it is cut."""

    def __init__(self) -> None:
        self._calls: list[ToolCall] = []
        self._outside: list[str] = []
        self._inside: list[str] = []
        self._inside_length = 0
        self._in_call = False
        self._held = ""  # the end of the text, where it may be the beginning of the next tag
        self._finished = False
        self._closed = False

    def feed(self, text: str) -> list[ToolCall]:
        if not self._held and "<" not in text:  # most tokens: no tag begins or ends here
            self._take(text)
            return []
        text = self._held + text
        done = len(self._calls)
        at = 0
        while True:
            tag = CLOSE if self._in_call else OPEN
            found = text.find(tag, at)
            if found < 0:
                break
            self._take(text[at:found])
            if self._in_call:
                self._end_call()
            self._in_call = not self._in_call
            at = found + len(tag)
        keep = _may_begin(tag, text, at)
        self._take(text[at : len(text) - keep])
        self._held = text[len(text) - keep :] if keep else ""
        return self._calls[done:]

    def close(self) -> list[ToolCall]:
        if not self._closed:
            self._closed = True
            self._take(self._held)
            self._held = ""
            if self._in_call:
                self._end_call("error: unclosed call")
        return list(self._calls)

    @property
    def content(self) -> str:
        return "".join(self._outside) + ("" if self._in_call else self._held)

    @property
    def finished(self) -> bool:
        return self._finished

    def _take(self, text: str) -> None:
        if not text:
            return
        if self._in_call:
            kept = text[: CALL_LIMIT + 1 - self._inside_length]
            if kept:
                self._inside.append(kept)
                self._inside_length += len(kept)
            return
        self._outside.append(text)
        if self._calls and not text.isspace():
            self._finished = True

    def _end_call(self, error: str | None = None) -> None:
        body = "".join(self._inside)
        self._inside, self._inside_length = [], 0
        call_id = f"call_{len(self._calls)}"
        if len(body) > CALL_LIMIT:
            body, error = body[:CALL_LIMIT], error or "error: call too long"
        self._calls.append(_malformed(call_id, body, error) if error else _call(call_id, body))


def _may_begin(tag: str, text: str, at: int) -> int:
    """How many of the last characters of `text[at:]` may be the beginning of the tag, of which only the first is "<"."""
    start = text.rfind("<", max(at, len(text) - len(tag) + 1))
    return len(text) - start if start >= 0 and tag.startswith(text[start:]) else 0


def _call(call_id: str, body: str) -> ToolCall:
    try:
        value = msgspec.json.decode(body.strip())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return _malformed(call_id, body, "error: bad json")
    if not isinstance(value, dict):
        return _malformed(call_id, body, "error: bad json")
    name = value.get("name")
    if not (isinstance(name, str) and name):
        return _malformed(call_id, body, "error: no tool name")
    arguments = _arguments(value.get("arguments"))
    if arguments is None:
        return ToolCall(call_id, name, body, "error: bad arguments")
    return ToolCall(call_id, name, arguments)


def _arguments(value: Any) -> dict[str, Any] | None:
    """An object; the same as a JSON string; nothing stands for no arguments. None: it is something else."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _malformed(call_id: str, body: str, error: str) -> ToolCall:
    named = _NAME.search(body)
    return ToolCall(call_id, named[1] if named else "", body, error)
