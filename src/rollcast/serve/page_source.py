"""Removes comments and indentation from the page's JavaScript and CSS before they are sent.

Lines keep their numbers, so that an error in a browser's console names the line of the source. Strings, templates and regular
expressions are not changed. What a `/` begins in JavaScript depends on what precedes it; `_Before` keeps track of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["JavaScriptToken", "css_without_comments", "javascript_tokens", "javascript_without_comments"]

_TOKEN = re.compile(
    r"""
    (?P<space>[\s\ufeff]+)
  | (?P<line_comment>//[^\n\r\u2028\u2029]*)
  | (?P<comment>/\*.*?\*/)
  | (?P<string>"(?:[^"\\\n\r]|\\.)*"|'(?:[^'\\\n\r]|\\.)*')
  | (?P<word>[\w$\#@]+)
  | (?P<punctuator>=>|\+\+|--|\?\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_REGEX = re.compile(r"/(?:[^/\\\[\n\r]|\\.|\[(?:[^\]\\\n\r]|\\.)*\])+/\w*")
# What follows in a template, up to its end or to an expression in it.
_TEMPLATE = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*(?:`|\$\{)", re.DOTALL)
_CSS_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<comment>/\*.*?\*/)|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<rest>[^\s/"']+|.)""",
    re.VERBOSE | re.DOTALL,
)

# An expression begins after these words, so that a `/` begins a regular expression.
_BEFORE_EXPRESSION = frozenset(
    ("await", "case", "default", "delete", "do", "else", "extends", "in", "instanceof", "new", "of", "return", "throw", "typeof", "void",
     "yield")
)  # fmt: skip
_WITH_CONDITION = frozenset(("for", "if", "while", "with"))  # a statement begins after their `)`


class _Before:
    """What precedes the current position: whether a value has just ended, and which brackets are open."""

    def __init__(self) -> None:
        self.value = False  # whether a value has just ended, so that a `/` divides it
        self._word = ""  # the token just before, if it was a word and not a property
        self._last = ""
        self._open: list[tuple[str, bool]] = []  # each bracket, and whether a value ends with it

    def take(self, kind: str, text: str) -> None:
        """Take a token that is neither space nor comment."""
        word = ""
        if kind == "word":
            is_property = self._last in (".", "?.")
            self.value = is_property or text not in _BEFORE_EXPRESSION
            word = "" if is_property else text
        elif kind != "punctuator":
            self.value = True
        elif text == "(":
            self._open.append((text, self._word not in _WITH_CONDITION))
            self.value = False
        elif text in ("[", "{", "${"):
            # A `{` after an operator begins an object, which is a value; else a block, or the body of something.
            is_value = text != "{" or (
                not self.value
                and self._last not in ("", "=>", ";", "{", "}", ")")
                and self._word not in ("do", "else")
            )
            self._open.append((text, is_value))
            self.value = False
        elif text in (")", "]", "}"):
            self.value = self._open.pop()[1] if self._open else True
        else:
            self.value = text in ("++", "--")
        self._word, self._last = word, text

    @property
    def in_template(self) -> bool:
        """Whether a `}` here ends an expression in a template."""
        return bool(self._open) and self._open[-1][0] == "${"

    def leave_template(self) -> None:
        """Take the `}` that ends an expression in a template."""
        self._open.pop()


class JavaScriptToken(NamedTuple):
    """A token of a program.

    Attributes:
        between: replaces the spaces and comments before it: the same number of line ends, or else a space, or else nothing.
        kind: `word`, `punctuator`, `string`, `regex` or `template`; a template with expressions is several of these.
        text: as it is in the source.
    """

    between: str
    kind: str
    text: str


def javascript_without_comments(source: str) -> str:
    """The same program without comments and indentation; its lines keep their numbers.

    Raises:
        ValueError: a comment, a template, a string or a regular expression has no end.
    """
    text = "".join(token.between + token.text for token in javascript_tokens(source))
    return text + ("\n" if text else "")


def javascript_tokens(source: str) -> Iterator[JavaScriptToken]:
    """The tokens of a program, in order.

    Raises:
        ValueError: as for `javascript_without_comments`.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n")  # as JavaScript does itself, in templates too
    between = ""  # spaces and comments since the last token
    before = _Before()
    at, first = 0, True
    while at < len(source):
        text, kind = _token_at(source, at, before)
        at += len(text)
        if kind in ("space", "line_comment", "comment"):
            between += _line_ends(text) or " "
            continue
        yield JavaScriptToken(_space(between, not first), kind, text)
        between, first = "", False
        if kind == "template" and text.endswith("${"):
            before.take("punctuator", "${")
        else:
            before.take(kind, text)


def _token_at(source: str, at: int, before: _Before) -> tuple[str, str]:
    """The token that begins here, and its kind."""
    first = source[at]
    if first == "`" or (first == "}" and before.in_template):
        if first == "}":
            before.leave_template()
        end = _TEMPLATE.match(source, at + 1)
        if end is None:
            raise ValueError(f"the template at {_place(source, at)} has no end")
        return source[at : end.end()], "template"
    if first == "/" and not before.value and source[at : at + 2] not in ("//", "/*"):
        regex = _REGEX.match(source, at)
        if regex is None:
            raise ValueError(f"the regular expression at {_place(source, at)} has no end")
        return regex[0], "regex"
    match = _TOKEN.match(source, at)
    assert match is not None
    assert match.lastgroup is not None
    text, kind = match[0], match.lastgroup
    if kind == "punctuator" and (text in "\"'" or source.startswith("/*", at)):
        raise ValueError(f"the {'comment' if text == '/' else 'string'} at {_place(source, at)} has no end")
    return text, kind


def css_without_comments(source: str) -> str:
    """The same style sheet without comments and indentation; its lines keep their numbers."""
    parts: list[str] = []
    between = ""
    for match in _CSS_TOKEN.finditer(source):
        if match.lastgroup in ("space", "comment"):
            between += _line_ends(match[0]) or " "
            continue
        parts += (_space(between, bool(parts)), match[0])
        between = ""
    return "".join(parts) + ("\n" if parts else "")


def _line_ends(text: str) -> str:
    return "\n" * (text.count("\n") + text.count("\u2028") + text.count("\u2029"))


def _space(between: str, has_token_before: bool) -> str:
    """What stands for spaces and comments: as many ends of lines as they had, else one space, else nothing."""
    lines = between.replace(" ", "")
    return lines or (" " if between and has_token_before else "")


def _place(source: str, at: int) -> str:
    line = source.count("\n", 0, at) + 1
    return f"line {line}, column {at - source.rfind(chr(10), 0, at)}"
