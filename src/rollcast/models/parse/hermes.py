"""The Hermes format, which Qwen and the embedded model speak: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

Source: the function-calling format of NousResearch's Hermes 2 Pro,
https://github.com/NousResearch/Hermes-Function-Calling.
"""

from __future__ import annotations

from rollcast.models.parse.json_calls import json_call, malformed
from rollcast.models.parse.reader import CALL_LIMIT, TaggedTurnReader, TurnParser, TurnReader, Words
from rollcast.records.message import ToolCall

__all__ = ["CALL_LIMIT", "HermesParser"]

_OPEN = Words("<tool_call>")


class HermesParser(TurnParser):
    """Hermes tool calls. The first `</tool_call>` ends a call, even inside a JSON string, as in other implementations.

    Arguments may be under `parameters`, `args`, `input` …, or beside the name, and the call in OpenAI's form
    `{"function": {…}}`, if there is only one way to read it.

    The errors are short, since a model has to learn to read them: `error: bad json`, `error: no tool name`,
    `error: bad arguments`, `error: repeated argument`, `error: arguments given twice`,
    `error: argument outside of arguments`, `error: nested too deeply`, `error: call too long`, `error: unclosed call`.
    """

    name = "hermes"

    def turn(self) -> TurnReader:
        return _HermesReader()


class _HermesReader(TaggedTurnReader):
    def feed(self, text: str) -> list[ToolCall]:
        """See `IncrementalParser.feed`. Every token passes here, and most contain no part of a tag."""
        if self.held or "<" in text or self.deciding:
            return super().feed(text)
        self._before += len(text)
        if self.in_call:
            self.body.add(text)
        else:
            self.add_text(text)
        return []

    def begin(self, text: str, at: int) -> int:
        place, tag = _OPEN.find(text, at)
        self.add_text(text[at:place])
        return place if tag is None else self.opened(text, place + len(tag), tag)

    def call(self, body: str, error: str | None) -> ToolCall:
        return malformed(self.next_id, body, error) if error else json_call(self.next_id, body)
