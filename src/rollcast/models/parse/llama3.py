"""The format of Llama 3.1 to 3.3: `<|python_tag|>{"name": …, "parameters": {…}}`, or only the object.

Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/prompt_format.md; `llama3_json` among vLLM's
tool parsers, https://docs.vllm.ai/en/latest/features/tool_calling.html.
"""

from __future__ import annotations

import re

from rollcast.models.parse.json_calls import REPEATED, call_in, json_call, json_value, malformed
from rollcast.models.parse.reader import TurnParser, TurnReader, Words

__all__ = ["Llama3Parser"]

_TAG = "<|python_tag|>"
_SPECIAL = Words(_TAG, "<|eom_id|>", "<|eot_id|>")
_END = Words("<|eom_id|>", "<|eot_id|>")
_SPACE = re.compile(r"\s+")
_BETWEEN = re.compile(r"[\s;,]+")
_POINT = re.compile(r'[{}"]')
_IN_STRING = re.compile(r'["\\]')
_NAMED = re.compile(r'\{\s{0,32}"(?:name|type|function)"\s{0,32}:')
_KEYS = ("parameters", "arguments", "args", "params", "tool_input")


class Llama3Parser(TurnParser):
    """Llama 3's calls in JSON, several of them separated by `;` or `,`. `<|eom_id|>`, `<|eot_id|>` or other text ends the turn.

    After `<|python_tag|>` everything is calls. Without it, an object at the beginning of the turn is a call if it has a
    `name` and `parameters` (or `arguments`), or if its JSON is broken and it begins with `name`; else it is the answer.

    Nearly right calls are read as in `HermesParser`, with the same errors.
    """

    name = "llama3"

    def turn(self) -> TurnReader:
        return _Llama3Reader()


class _Llama3Reader(TurnReader):
    """First text or an object; after the tag, objects and other text."""

    def __init__(self) -> None:
        super().__init__()
        self._tagged = False
        self._depth = 0

    def begin(self, text: str, at: int) -> int:
        space = _SPACE.match(text, at)
        if space:
            self.add_text(space[0])
            return space.end()
        self.state = self._object if text[at] == "{" else self._text
        return at

    def _text(self, text: str, at: int) -> int:
        place, word = _SPECIAL.find(text, at)
        self.add_text(text[at:place])
        if word is None:
            return place
        if word != _TAG:
            self.over(place)
            return place
        self._tagged = True
        self.state = self._after_tag
        return place + len(word)

    def _after_tag(self, text: str, at: int) -> int:
        space = _SPACE.match(text, at)
        if space:
            return space.end()
        self.state = self._object if text[at] == "{" else self._raw
        return at

    def _raw(self, text: str, at: int) -> int:
        """The state after the tag, for text that is not an object."""
        place, word = _END.find(text, at)
        self.body.add(text[at:place])
        if word is not None:
            self._end_object("error: bad json")
            self.over(place)
        return place

    def _object(self, text: str, at: int) -> int:
        point = _POINT.search(text, at)
        end = len(text) if point is None else point.end()
        self.body.add(text[at:end])
        if point is None:
            return end
        if point[0] == '"':
            self.state = self._string
            return end
        self._depth += 1 if point[0] == "{" else -1
        if self._depth == 0:
            self.state = self._between if self._end_object() else self._text
        return end

    def _string(self, text: str, at: int) -> int:
        point = _IN_STRING.search(text, at)
        if point is None:
            end = len(text)
        elif point[0] == '"':
            end = point.end()
            self.state = self._object
        else:
            end = point.end() + 1 if point.end() < len(text) else point.start()
        self.body.add(text[at:end])
        return end

    def _between(self, text: str, at: int) -> int:
        between = _BETWEEN.match(text, at)
        if between:
            return between.end()
        if text[at] == "{":
            self.state = self._object
            return at
        place, word = _SPECIAL.find(text, at)
        if place == at and word == _TAG:
            self._tagged = True
            self.state = self._after_tag
            return at + len(word)
        if not (place == at and word is None):
            self.over(at)
        return at

    def end(self, held: str) -> None:
        if self.ended_at is not None:
            return
        if self.state == self._raw:
            self.body.add(held)
            self._end_object("error: bad json")
        elif self.state == self._after_tag:
            self._end_object("error: unclosed call")
        elif self.state in (self._object, self._string):
            self.body.add(held)
            self._end_object("error: unclosed call")
        elif self.state != self._between:
            self.add_text(held)

    @property
    def in_call(self) -> bool:
        return self.state in (self._object, self._string, self._raw, self._after_tag)

    @property
    def content(self) -> str:
        return "".join(self._outside) if self.state == self._between else super().content

    def _end_object(self, error: str | None = None) -> bool:
        """End an object; return whether it was a call, or was meant as one."""
        body, too_long = self.body.take()
        error = error or too_long
        if not (self._tagged or self.calls or _is_call(body, error)):
            self.add_text(body)
            return False
        self.add(malformed(self.next_id, body, error) if error else json_call(self.next_id, body))
        return True


def _is_call(body: str, error: str | None) -> bool:
    """Whether an object without a tag is meant as a call."""
    if error is not None:
        return _NAMED.match(body) is not None
    try:
        value = json_value(body)
    except ValueError as problem:
        return problem.args[0] == REPEATED or _NAMED.match(body) is not None
    if not (isinstance(value, dict) and call_in(value)[0]):
        return False
    inner = value.get("function")
    return any(key in fields for fields in (value, inner) if isinstance(fields, dict) for key in _KEYS)
