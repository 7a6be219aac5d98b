"""The format of Qwen3-Coder and Qwen3.5: XML-like tags around unescaped values.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

Source: the chat template and parser of
https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct; `qwen3_coder` among vLLM's tool parsers,
https://docs.vllm.ai/en/latest/features/tool_calling.html.
"""

from __future__ import annotations

import re

from rollcast.models.parse.reader import TaggedTurnReader, TurnParser, TurnReader, Words
from rollcast.records.message import ToolCall

__all__ = ["Qwen3CoderParser"]

_OPEN = Words("<tool_call>", "</tool_call>", "<function=", "<parameter=")
_CLOSE_FUNCTION = Words("</function>")
_FUNCTION = re.compile(r"\s*<function=\s*([^<>\s]{1,256})\s*>")
_PARAMETER = re.compile(r"<parameter=\s*([^<>\s]{1,256})\s*>")
_PARAMETER_TAG = "<parameter="
_TAG_IN_VALUE = re.compile(r"<parameter=|</?function[=>]")
_END_PARAMETER, _END_FUNCTION = "</parameter>", "</function>"
_SPACE = re.compile(r"\s*")


class Qwen3CoderParser(TurnParser):
    """Qwen3-Coder's calls. Every value is a string, without the line breaks next to its tags.

    The parser knows no types: a tool reads such a string as JSON if its parameter is not a string. The first
    `</parameter>` ends a value and the first `</tool_call>` a call. `<function=…>` without `<tool_call>` before it, which
    the model sometimes forgets, is a call too.

    If another parameter or a function begins or ends inside a value, the value was not closed.

    Errors: `error: no tool name`, `error: unclosed parameter`, `error: unclosed function`, `error: repeated parameter`,
    `error: parameter outside of a function`, `error: bad call`, `error: call too long`, `error: unclosed call`.
    """

    name = "qwen3_coder"

    def turn(self) -> TurnReader:
        return _Qwen3CoderReader()


class _Qwen3CoderReader(TaggedTurnReader):
    def begin(self, text: str, at: int) -> int:
        place, tag = _OPEN.find(text, at)
        self.add_text(text[at:place])
        if tag is None:
            return place
        end = place + len(tag)
        if tag == "<tool_call>":
            return self.opened(text, end, tag)
        if tag == "<function=":
            self._begin_function(tag)
        elif tag == "<parameter=":
            if self._outside and not self._outside[-1].endswith("\n"):
                self.add_text(tag)
            else:  # `<function=…>` is missing
                self._begin_function(tag)
        return end  # a closing tag without its opening one is ignored

    def _begin_function(self, tag: str) -> None:
        self.body.add(tag)
        self.state, self.in_call = self._in_function, True

    def _in_function(self, text: str, at: int) -> int:
        place, tag = _CLOSE_FUNCTION.find(text, at)
        self.body.add(text[at:place])
        if tag is None:
            return place
        self.body.add(tag)
        self.state = self._after_function
        return place + len(tag)

    def _after_function(self, text: str, at: int) -> int:
        """The state after a function. A parameter here means that the function was closed too early."""
        space = _end_of_space(text, at)
        if space > at:
            return space
        rest = text[at : at + len(_PARAMETER_TAG)]
        if rest != _PARAMETER_TAG and _PARAMETER_TAG.startswith(rest):
            return at
        self.end_call("error: parameter outside of a function" if rest == _PARAMETER_TAG else None)
        self._leave()
        return at

    def end(self, held: str) -> None:
        if self.state == self._after_function:
            self.end_call()
            self._leave()
        super().end(held)

    def call(self, body: str, error: str | None) -> ToolCall:
        return _call(self.next_id, body, error)


def _call(call_id: str, body: str, error: str | None) -> ToolCall:
    named = _FUNCTION.match(body)
    name = named[1] if named else ""
    if error is None:
        arguments = _arguments(body, named.end()) if named else "error: no tool name"
        if isinstance(arguments, dict):
            return ToolCall(call_id, name, arguments)
        error = arguments
    return ToolCall(call_id, name, body, error)


def _arguments(body: str, at: int) -> dict[str, str] | str:
    """The arguments between the function's tags; an error if there is anything else."""
    arguments: dict[str, str] = {}
    while True:
        at = _end_of_space(body, at)
        if body.startswith(_END_FUNCTION, at):
            at = _end_of_space(body, at + len(_END_FUNCTION))
            return arguments if at == len(body) else "error: bad call"
        parameter = _PARAMETER.match(body, at)
        if parameter is None:
            return "error: unclosed function" if at == len(body) else "error: bad call"
        end = body.find(_END_PARAMETER, parameter.end())
        if end < 0 or _TAG_IN_VALUE.search(body, parameter.end(), end):
            return "error: unclosed parameter"
        if parameter[1] in arguments:
            return "error: repeated parameter"
        arguments[parameter[1]] = body[parameter.end() : end].removeprefix("\n").removesuffix("\n")
        at = end + len(_END_PARAMETER)


def _end_of_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None  # it matches an empty text, too
    return space.end()
