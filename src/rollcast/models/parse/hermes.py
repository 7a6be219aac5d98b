"""The Hermes format, which Qwen and the embedded model speak: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

Source: the function-calling format of NousResearch's Hermes 2 Pro,
https://github.com/NousResearch/Hermes-Function-Calling.
"""

from __future__ import annotations

from rollcast.models.parse.turn import CALL_LIMIT, Turn, TurnParser, Words, json_call, malformed
from rollcast.records.message import ToolCall

__all__ = ["CALL_LIMIT", "HermesParser"]

_OPEN, _CLOSE = Words("<tool_call>"), Words("</tool_call>")


class HermesParser(TurnParser):
    """Hermes tool calls. The first `</tool_call>` ends a call, even inside a JSON string, as elsewhere in the field.

    The errors are few words, since a model has to learn to read them: `error: bad json`, `error: no tool name`,
    `error: bad arguments`, `error: call too long`, `error: unclosed call`.
    """

    name = "hermes"

    def incremental(self) -> Turn:
        """For one turn."""
        return _Turn()


class _Turn(Turn):
    """Text and calls in turn; other text than whitespace after a call finishes the turn."""

    in_call = False

    def feed(self, text: str) -> list[ToolCall]:
        """See `IncrementalParser.feed`. It is on the path of every token, and most have no part of a tag."""
        if self._held or "<" in text:
            return super().feed(text)
        self._before += len(text)
        if self.in_call:
            self.body.add(text)
        else:
            self._say(text)
        return []

    def begin(self, text: str, at: int) -> int:
        place, tag = _OPEN.find(text, at)
        self._say(text[at:place])
        if tag is None:
            return place
        self.in_call = True
        self.state = self._inside
        return place + len(tag)

    def _inside(self, text: str, at: int) -> int:
        place, tag = _CLOSE.find(text, at)
        self.body.add(text[at:place])
        if tag is None:
            return place
        self._end_call()
        self.in_call = False
        self.state = self.begin
        return place + len(tag)

    def end(self, held: str) -> None:
        if self.in_call:
            self.body.add(held)
            self._end_call("error: unclosed call")
        else:
            self._say(held)

    def _say(self, text: str) -> None:
        self.say(text)
        if self.calls and text and not text.isspace():
            self.finish()

    def _end_call(self, error: str | None = None) -> None:
        body, too_long = self.body.take()
        error = error or too_long
        self.add(malformed(self.next_id, body, error) if error else json_call(self.next_id, body))
