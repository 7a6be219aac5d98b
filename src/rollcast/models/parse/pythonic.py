"""A list of calls in Python's syntax: `[get_weather(city="Paris"), add(a=1, b=2)]`.

It is written by Llama 4, Llama 3.2 in its pythonic mode, and models in the style of the Berkeley Function-Calling
Leaderboard.

Source: https://github.com/meta-llama/llama-models/blob/main/models/llama4/prompt_format.md;
https://gorilla.cs.berkeley.edu/leaderboard.html; `pythonic` and `llama4_pythonic` among vLLM's tool parsers,
https://docs.vllm.ai/en/latest/features/tool_calling.html.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from typing import Any

from rollcast.models.parse.json_calls import NESTED
from rollcast.models.parse.reader import Body, TurnParser, TurnReader, Words
from rollcast.records.jsonable import nests_deeply
from rollcast.records.message import ToolCall
from rollcast.text import well_formed

__all__ = ["LIST_LIMIT", "PythonParser"]

LIST_LIMIT = 1 << 17
"""The most characters in a list of calls; Python's own parser takes them all at once, in up to 0.2 s."""

_SPACE = re.compile(r"\s+")
_TAGS = Words("<|python_start|>", "<|python_tag|>")
_BEGIN = re.compile(r"\[\s{0,32}[A-Za-z_][\w.]{0,127}\(", re.ASCII)
_MAY_BEGIN = re.compile(r"\[\s{0,32}(?:[A-Za-z_][\w.]{0,127})?", re.ASCII)
_POINT = re.compile(r"""[\[\](){}"']""")
_IN_STRING = {quote: re.compile(rf"\\|{quote}") for quote in ("'", '"', "'''", '"""')}
_JSON_NAMES = {"true": True, "false": False, "null": None}


class PythonParser(TurnParser):
    """A list of calls at the beginning of the turn, after whitespace or `<|python_start|>`. Its `]` ends the turn.

    Nothing is evaluated: arguments are literals (numbers, strings, True, False, None, lists, tuples, dicts with string
    keys; also JSON's true, false and null), given by name. One positional literal is taken for a tool's only argument.
    A turn that begins in any other way, `[1, 2, 3]` too, is text.

    Errors: `error: bad python`, `error: a call is name(argument=value)`, `error: give arguments by name`,
    `error: repeated argument`, `error: arguments must be literals`, `error: nested too deeply`, `error: call too long`, `error: unclosed call`.
    """

    name = "python"

    def turn(self) -> TurnReader:
        return _PythonReader()


class _PythonReader(TurnReader):
    """Its states: whitespace, a tag, the head of the first call, the list with its strings; or text."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body(LIST_LIMIT)
        self._depth = 0
        self._quote = ""

    def begin(self, text: str, at: int) -> int:
        space = _SPACE.match(text, at)
        if space:
            self.add_text(space[0])
            return space.end()
        place, tag = _TAGS.find(text, at)
        if place == at and tag is not None:
            self.state = self._head
            return at + len(tag)
        if not _TAGS.may_begin(text[at:]):
            self.state = self._head
        return at

    def _head(self, text: str, at: int) -> int:
        space = _SPACE.match(text, at)
        if space:
            self.add_text(space[0])
            return space.end()
        if _BEGIN.match(text, at):
            self.state = self._list
        elif len(text) - at > 256 or not _MAY_BEGIN.fullmatch(text, at):
            self.state = self._text
        return at

    def _text(self, text: str, at: int) -> int:
        self.add_text(text[at:])
        return len(text)

    def _list(self, text: str, at: int) -> int:
        point = _POINT.search(text, at)
        end = len(text) if point is None else point.start()
        self.body.add(text[at:end])
        if point is None:
            return end
        if point[0] in "\"'":
            return self._open_string(text, end)
        self.body.add(point[0])
        self._depth += 1 if point[0] in "[({" else -1
        if self._depth == 0:
            self._end_list()
            self.over(end + 1)
        return end + 1

    def _open_string(self, text: str, at: int) -> int:
        quote = text[at]
        three = text[at : at + 3]
        if len(three) < 3 and three == quote * len(three):
            return at  # it may become a triple quote
        self._quote = three if three == quote * 3 else quote
        self.body.add(self._quote)
        self.state = self._string
        return at + len(self._quote)

    def _string(self, text: str, at: int) -> int:
        point = _IN_STRING[self._quote].search(text, at)
        if point is None:
            end = len(text)
            while end > at and len(text) - end < len(self._quote) - 1 and text[end - 1] == self._quote[0]:
                end -= 1  # the last quotes may be the beginning of three
        elif point[0] == "\\":
            end = min(point.start() + 2, len(text))
            if end - point.start() < 2:
                end = point.start()
        else:
            end = point.end()
            self.state = self._list
        self.body.add(text[at:end])
        return end

    def end(self, held: str) -> None:
        if self.ended_at is not None:
            return
        if self.in_call:
            self.body.add(held)
            self._end_list("error: unclosed call")
        else:
            self.add_text(held)

    @property
    def in_call(self) -> bool:
        return self.ended_at is None and self.state in (self._list, self._string)

    def _end_list(self, error: str | None = None) -> None:
        body, too_long = self.body.take()
        error = error or too_long
        calls = error or _parsed(body)
        if isinstance(calls, str):
            named = _BEGIN.match(body)
            name = named[0][1:-1].strip() if named else ""
            self.add(ToolCall(self.next_id, name, body, calls))
            return
        for call in calls:
            self.add(_call(self.next_id, call, body))


def _parsed(body: str) -> list[ast.expr] | str:
    """The elements of the list, or an error if it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in the model's strings does not concern the user
            tree = ast.parse(body.strip(), mode="eval").body
    except (
        SyntaxError,
        ValueError,
        MemoryError,
        RecursionError,
    ):  # the last two mean that it is nested too deeply
        return "error: bad python"
    return tree.elts if isinstance(tree, ast.List) else "error: bad python"


class _NoLiteral(Exception):
    pass


class _RepeatedError(Exception):
    pass


def _call(call_id: str, call: ast.expr, body: str) -> ToolCall:
    written = body[:200]  # only the beginning of a long list, since every call keeps a copy
    if len(body) <= 4096:
        written = ast.get_source_segment(body, call) or written
    name = _dotted(call.func) if isinstance(call, ast.Call) else None
    if not isinstance(call, ast.Call) or name is None:
        return ToolCall(call_id, "", written, "error: a call is name(argument=value)")
    try:
        given = {word.arg: _literal(word.value) for word in call.keywords if word.arg is not None}
        if len(call.args) == 1 and not call.keywords:
            only = _literal(call.args[0])
            if not isinstance(only, dict):
                return ToolCall(call_id, name, json.dumps(only, ensure_ascii=False))
    except _RepeatedError:
        return ToolCall(call_id, name, written, "error: repeated argument")
    except (_NoLiteral, RecursionError):
        return ToolCall(call_id, name, written, "error: arguments must be literals")
    if nests_deeply(given):
        return ToolCall(call_id, name, written, NESTED)
    if call.args or any(word.arg is None for word in call.keywords):
        return ToolCall(call_id, name, written, "error: give arguments by name")
    if len(given) < len(call.keywords):
        return ToolCall(call_id, name, written, "error: repeated argument")
    return ToolCall(call_id, name, given)


def _dotted(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _literal(node: ast.expr) -> Any:
    """The value of a literal that JSON can express."""
    match node:
        case ast.Constant(value=None | bool() | int() as value) if _is_short(value):
            return value
        case ast.Constant(value=float() as number) if math.isfinite(number):
            return number
        case ast.Constant(value=str() as text):
            return _joined(text)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            if not isinstance(number, bool) and math.isfinite(number) and _is_short(number):
                return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            names = [None if key is None else _literal(key) for key in keys]
            if not all(isinstance(name, str) for name in names):
                raise _NoLiteral
            if len(set(names)) < len(names):
                raise _RepeatedError
            return dict(zip(names, map(_literal, values), strict=True))
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
    raise _NoLiteral


def _is_short(number: object) -> bool:
    """Whether an integer can be written in digits, of which Python allows 4,300."""
    return not isinstance(number, int) or number.bit_length() <= 4096


def _joined(text: str) -> str:
    r"""The text with pairs of surrogates (JSON's "\ud83d\ude00", which Python reads as two characters) joined."""
    joined = well_formed(text)
    if joined.count("\ufffd") > text.count("\ufffd"):  # one was alone
        raise _NoLiteral
    return joined
