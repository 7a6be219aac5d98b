"""Reads a docstring as people write it: the description, and the text of each parameter.

It reads Google's, NumPy's, Sphinx's and Epytext's styles, even mixed ones, and the usual slips: no empty line before a
section, another word or another case for it, a missing colon, wrong indentation. The parameters' names, which are known,
tell an entry from a line of text. Text outside the sections is description and is never lost.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Docstring", "read_docstring"]

HEADING_LIMIT = 80
"""The most characters in a heading."""

_PARAMETERS = re.compile(
    r"((keyword|other|optional|required|named|input|function|method|tool|call)\s+)*"
    r"(args?|arguments?|params?|parameters?|kwargs|attributes?|fields?)"
)
_INPUTS = re.compile(r"inputs?")  # a section only if entries follow: an input may be many things
_OUTCOMES = re.compile(
    r"returns?|return values?|yields?|raises?|throws?|excepts?|exceptions?|warns|receives?|outputs?"
)
_PROSE = re.compile(r"(usage )?examples?|notes?|warnings?|see also|references?|to-?do|methods?|doctests?")
_HEADING = re.compile(
    r"(?P<mark>#+ |:|[*_]{1,3})?(?P<words>[A-Za-z][A-Za-z -]*?)(?P<end>[*_]{0,3}) ?(\([^)]*\))?[*_ ]*(?P<colon>[:\uff1a]{0,2})[*_ ]*#*"
)
_INLINE = re.compile(
    r"(?P<mark>[*_]{0,2})(?P<words>[A-Za-z][A-Za-z ]{0,40}?)(?P<end>[*_]{0,2})\s?[:\uff1a](?P<last>[*_]{0,2})\s+(?P<rest>\S.*)"
)
_UNDERLINE = re.compile(r"(-{3,}|={3,}|~{3,}|\^{3,})")
_FIELD = re.compile(
    r"[:@\\](?P<kind>param|parameter|arg|argument|key|keyword|kwarg|kwparam|type|kwtype|returns?|rtype|raises?|throws?"
    r"|except|exception|yields?|ytype|i?var|cvar|vartype|meta|example|note|since|author)\b(?P<rest>.*)"
)
_PARAMETER_FIELDS = {
    "param",
    "parameter",
    "arg",
    "argument",
    "key",
    "keyword",
    "kwarg",
    "kwparam",
    "var",
    "ivar",
    "cvar",
}
_DIRECTIVE = re.compile(
    r"\.\. (note|warning|seealso|todo|deprecated|versionadded|versionchanged|rubric:: *Examples?)::?.*",
    re.IGNORECASE,
)
_FENCE = re.compile(r"(```|~~~)")
_BULLET = re.compile(r"([-+•*]|\d+[.)])\s+")
_NAME = re.compile(r"[`'\"]{0,2}(\\?\*){0,2}[`'\"]{0,2}(?P<name>[^\W\d]\w*)[`'\"]{0,2}\*{0,2}[`'\"]{0,2}")
_DEFAULT = re.compile(r"\s?=\s?[^\s:=>][^\s:]*(?=\s*(:|\(|$))")  # `days=3: how many`
_SEPARATOR = re.compile(r"\s*:(?!:)\s*|\s+[-=]{1,2}>?\s+|\s*[–—\uff1a]\s*")
_TYPE_WORD = (
    r"((str|string|int|integer|float|double|number|numeric|bool|boolean|list|dict|dictionary|tuple|set|bytes|object|any|none"
    r"|null|array|array_like|array-like|ndarray|dataframe|sequence|mapping|iterable|callable|optional|union|literal|path"
    r"|path-like|datetime|date)s?\b|[\w.]+(?=\[)|[\w]+(\.\w+)+|[{\['\"])"
)
_TYPE = re.compile(
    rf"(?i){_TYPE_WORD}(\[.*\]|.*[}}\]'\"])?(\s*(,|\||\bor\b|\bof\b|\bto\b)\s*[\w.]+(\[.*\])?)*"
)
_TYPE_TAIL = re.compile(
    r"(?i)(,\s*(optional|required|positional|keyword[- ]only|default(s|ed)?\b.*|by default\b.*))+$"
)


@dataclass(frozen=True)
class Docstring:
    """The content of a docstring.

    Attributes:
        description: the text outside the sections.
        texts: the text of each parameter that it describes, on one line.
        unknown: the texts of names that are not parameters.
    """

    description: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def read_docstring(text: str | None, names: Collection[str]) -> Docstring:
    """Read a docstring.

    Args:
        text: the docstring as written in the source.
        names: the names of the parameters.
    """
    return _Reader(inspect.cleandoc(text), names).read() if text and text.strip() else Docstring()


class _Line(NamedTuple):
    indent: int
    text: str


class _Heading(NamedTuple):
    kind: str  # parameters, outcome or prose
    indent: int
    content: int  # the index of the first line of the section
    underlined: bool = False
    rest: str = ""  # the rest of the heading's line


class _Entry(NamedTuple):
    names: tuple[str, ...]
    text: str
    maybe_type: bool  # whether the text may be a type: NumPy's `name : type`


class _Reader:
    """One pass over the lines; each `_read` method takes the lines that belong to it."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self.lines = [_Line(len(raw) - len(raw.lstrip()), raw.strip()) for raw in text.splitlines()]
        self.names = frozenset(names)
        self.at = 0
        self.description: list[str] = []
        self.texts: dict[str, str] = {}

    def read(self) -> Docstring:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            heading = self._heading(self.at)
            if heading is not None:
                self.at = heading.content
                if heading.kind == "parameters":
                    self._read_parameters(heading)
                else:
                    self._read_past(heading)
                self.description.append("")
            elif _FIELD.fullmatch(line.text):
                self._read_field(line)
                self.description.append("")
            elif _DIRECTIVE.fullmatch(line.text):
                self.at += 1
                self._take_deeper(line.indent)
            else:
                self._read_text(line)
        description = re.sub(r"\n{3,}", "\n\n", "\n".join(self.description)).strip()
        unknown = {name: text for name, text in self.texts.items() if name not in self.names}
        return Docstring(
            description or self._first_sentence(),
            {name: text for name, text in self.texts.items() if name in self.names and text},
            unknown,
        )

    def _first_sentence(self) -> str:
        """The description of a docstring that is only sections and begins with one in a line: `Returns: the time.`"""
        first = self.lines[0].text
        inline = _INLINE.fullmatch(first)
        return first if inline and _OUTCOMES.fullmatch(inline["words"].lower()) else ""

    # -- text ----------------------------------------------------------------------------------------------------------

    def _read_text(self, line: _Line) -> None:
        """Read a line of the description; a code block is taken whole, since text in it may look like a section."""
        self.description.append(" " * line.indent + line.text)
        self.at += 1
        if _FENCE.match(line.text):
            self.description += self._take_fence(line.text[:3])
        elif line.text.endswith("::"):
            self.description += self._take_deeper(line.indent)

    def _take_fence(self, mark: str) -> list[str]:
        taken = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            taken.append(" " * line.indent + line.text)
            self.at += 1
            if line.text.startswith(mark):
                break
        return taken

    def _take_deeper(self, indent: int) -> list[str]:
        """The lines that follow and are indented more, with the empty ones between them."""
        taken = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.text and line.indent <= indent:
                break
            taken.append(" " * line.indent + line.text if line.text else "")
            self.at += 1
        return taken

    def _following(self, at: int) -> _Line | None:
        """The first line with text from there on."""
        return next((line for line in self.lines[at:] if line.text), None)

    # -- headings ------------------------------------------------------------------------------------------------------

    def _heading(self, at: int) -> _Heading | None:
        """The section that begins in this line."""
        line = self.lines[at]
        found = _HEADING.fullmatch(line.text) if len(line.text) <= HEADING_LIMIT else None
        mark = (found["mark"] or "") if found is not None else ""
        if (
            mark.startswith(("*", "_"))
            and found is not None
            and not (found["end"] or found[0].endswith(mark))
        ):
            found = None  # `*args`, which is a parameter
        if found is None or (kind := _kind(found["words"])) is None:
            return self._inline(at)
        below = self.lines[at + 1] if at + 1 < len(self.lines) else _Line(0, "")
        if _UNDERLINE.fullmatch(below.text):
            return _Heading("parameters" if kind == "inputs" else kind, line.indent, at + 2, underlined=True)
        content = self._following(at + 1)
        if content is None:
            return _Heading(kind, line.indent, at + 1) if found["colon"] and kind != "inputs" else None
        described = self._is_known(content.text)
        if kind in {"parameters", "inputs"} and described:
            return _Heading("parameters", line.indent, at + 1)
        deeper = content is below and content.indent > line.indent
        marked = mark.startswith("#") or (len(mark) > 1 and found["end"] == mark)  # Markdown's headings
        if kind == "inputs" or not (found["colon"] or deeper or marked):
            return None
        return _Heading(kind, line.indent, at + 1, underlined=marked and kind != "parameters")

    def _inline(self, at: int) -> _Heading | None:
        """A section whose text begins in the line of its heading: `Returns: a sentence`, `Args: city: where to look`."""
        line = self.lines[at]
        found = _INLINE.fullmatch(line.text) if ":" in line.text[:HEADING_LIMIT] else None
        kind = _kind(found["words"]) if found else None
        if (
            found is None
            or kind is None
            or kind == "prose"
            or found["mark"] not in {found["end"], found["last"]}
        ):
            return None
        rest = found["rest"]
        if kind == "outcome":
            return _Heading(kind, line.indent, at + 1, rest=rest)
        if self._is_known(rest):
            return _Heading("parameters", line.indent, at + 1, rest=rest)
        below = self.lines[at + 1] if at + 1 < len(self.lines) else _Line(0, "")
        if below.indent > line.indent and self._is_known(below.text):  # `Args: these two` over its entries
            self.description.append(rest)
            return _Heading("parameters", line.indent, at + 1)
        return _Heading("outcome", line.indent, at + 1, rest=rest) if _says_none(rest) else None

    def _is_known(self, text: str) -> bool:
        entry = _entry(text, bare=True)
        return entry is not None and not self.names.isdisjoint(entry.names)

    def _ends_section(self, at: int) -> bool:
        text = self.lines[at].text
        return bool(self._heading(at) is not None or _FIELD.fullmatch(text) or _DIRECTIVE.fullmatch(text))

    # -- parameters ----------------------------------------------------------------------------------------------------

    def _read_parameters(self, heading: _Heading) -> None:
        """Read the entries of a section, up to a line that does not belong to one."""
        section = _Section(self, heading)
        if heading.rest:
            section.begin(_entry(heading.rest, bare=True), heading.indent)
        blank = False
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not line.text:
                blank = True
            elif not section.takes(self.at, line, after_blank=blank):
                break
            else:
                blank = False
            self.at += 1
        section.end()

    def _read_field(self, line: _Line) -> None:
        """Read `:param city: where to look`, `@param city where to look`, `:returns: a sentence`."""
        found = _FIELD.fullmatch(line.text)
        assert found is not None
        self.at += 1
        body = []
        while self.at < len(self.lines) and self.lines[self.at].text and not self._ends_section(self.at):
            body.append(self.lines[self.at].text)  # also if it is not indented
            self.at += 1
        below = self._following(self.at)
        if below is not None and below.indent > line.indent:
            body += self._take_deeper(line.indent)
        if found["kind"] in _PARAMETER_FIELDS:
            name, text = self._field_parts(found["rest"].strip())
            self.describe((name,), [text, *body])

    def _field_parts(self, rest: str) -> tuple[str, str]:
        """The parameter and the beginning of its text; `rest` is `int days: how far`, or has lost its colon."""
        rest = re.sub(r"^(:|\{[^}]*\})\s*", "", rest)
        head, colon, text = rest.partition(":")
        words = [word.strip("`'\"*\\,[]") for word in head.split()]
        if colon and words and (words[-1] in self.names or len(words) <= 2):
            return words[-1], text
        for i, word in enumerate(words[:3]):
            if word in self.names:
                text = " ".join(rest.split()[i + 1 :]).lstrip("-–— ")
                return word, text
        return (words[-1] if words else ""), text

    def describe(self, names: tuple[str, ...], lines: list[str]) -> None:
        """Keep the text of the parameters; the first one that is not empty wins."""
        text = " ".join(" ".join(lines).split())
        for name in names:
            if name and not self.texts.get(name):
                self.texts[name] = text

    def _read_past(self, heading: _Heading) -> None:
        """Skip a section that is not for the model."""
        first: int | None = None
        blank = False
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not line.text:
                blank = True
            elif _FENCE.match(line.text) and (
                line.indent > heading.indent or (first is None and heading.kind == "prose")
            ):
                first = line.indent
                self.at += 1
                self._take_fence(line.text[:3])
                continue
            else:
                deepest = heading.indent if first is None else max(first, heading.indent)
                if line.indent <= deepest and self._ends_section(self.at):
                    return
                if not self._belongs(heading, line, blank, first):
                    return
                first, blank = line.indent if first is None else first, False
            self.at += 1

    def _belongs(self, heading: _Heading, line: _Line, blank: bool, first: int | None) -> bool:
        """Whether the line belongs to the section that is left out."""
        if line.indent > heading.indent or line.text.startswith(">>>"):
            return True
        if heading.underlined:
            if heading.kind == "prose" or not blank or first is None:
                return True
            below = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else _Line(0, "")
            is_text = bool(re.search(r"\w\s+\w+.*[.!?:]$", line.text)) or len(line.text.split()) > 3
            return not is_text or below.indent > line.indent
        if blank:
            return False
        if heading.rest:  # a line that begins with a small letter goes on
            return line.text[:1].islower()
        return first is None or first <= heading.indent


class _Section:
    """The entries of one section of parameters."""

    def __init__(self, reader: _Reader, heading: _Heading) -> None:
        self.reader = reader
        self.heading = heading
        self.base: int | None = None  # the indentation of the entries
        self.at_base: frozenset[str] = frozenset()
        self.entry: _Entry | None = None
        self.body: list[str] = []
        self.fence = ""

    def takes(self, at: int, line: _Line, *, after_blank: bool) -> bool:
        """Take the line if it belongs to the section; return whether it does."""
        if self.fence:
            self.fence = "" if line.text.startswith(self.fence) else self.fence
            self.body.append(line.text)
            return True
        deeper = self.base is not None and line.indent > self.base
        entry = self._known(line, deeper)
        if entry is not None:
            self.begin(entry, line.indent)
            return True
        if not deeper:
            if self.reader._ends_section(at):  # noqa: SLF001  (one thing in two classes)
                return False
            entry = self._unknown(at, line)
            if entry is not None:
                self.begin(entry, line.indent)
                return True
            if self.entry is None:
                if line.indent <= self.heading.indent and not self._entries_follow(at):
                    return False
            elif not self._goes_on(at, line, after_blank):
                return False
        self.fence = line.text[:3] if _FENCE.match(line.text) else ""
        self.body.append(line.text)
        return True

    def _entries_follow(self, at: int) -> bool:
        """Whether the line only leads up to the first entry."""
        reader = self.reader
        for i in range(at + 1, len(reader.lines)):
            if reader._ends_section(i):  # noqa: SLF001
                return False
            if reader._is_known(reader.lines[i].text):  # noqa: SLF001
                return True
        return False

    def _known(self, line: _Line, deeper: bool) -> _Entry | None:
        """The entry of a known parameter."""
        names = self.reader.names
        entry = _entry(line.text, bare=not deeper)
        if entry is None or names.isdisjoint(entry.names):
            entry = None if deeper else self._without_colon(line.text)
        described = self.at_base | self.reader.texts.keys()
        if entry is None or (deeper and not described.isdisjoint(entry.names)):
            return None  # a line in this parameter's text about another parameter
        return entry

    def _without_colon(self, text: str) -> _Entry | None:
        """`city where to look`, `city (str) where to look`; not if the parameter has an entry with a colon."""
        start = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
        found = _NAME.match(start)
        if found is None or found["name"] not in self.reader.names or found["name"] in self.at_base:
            return None
        rest = start[found.end() :]
        if not rest[:1].isspace() and not rest.startswith(("(", "[")):
            return None
        rest = rest.lstrip()
        return _Entry((found["name"],), rest[_bracketed(rest) :].strip(), maybe_type=False)

    def _unknown(self, at: int, line: _Line) -> _Entry | None:
        """The entry of a name that is not a parameter."""
        if self.heading.underlined:
            entry = _entry(line.text, bare=True)
            below = self.reader.lines[at + 1] if at + 1 < len(self.reader.lines) else _Line(0, "")
            return entry if entry and (entry.maybe_type or below.indent > line.indent) else None
        entry = _entry(line.text, bare=False)
        inside = line.indent in {self.base, max(line.indent, self.heading.indent + 1)}
        return entry if entry and inside and (line.text[0].islower() or line.text[0] in "*-`") else None

    def _goes_on(self, at: int, line: _Line, after_blank: bool) -> bool:
        """Whether a line that is indented too little goes on with the entry's text."""
        if after_blank:
            return line.indent > self.heading.indent
        assert self.base is not None
        if self.heading.underlined or self.base <= self.heading.indent or line.indent > self.heading.indent:
            return True
        below = self.reader.lines[at + 1] if at + 1 < len(self.reader.lines) else _Line(0, "")
        return (
            bool(below.text)
            and below.indent > self.heading.indent
            and not line.text.endswith((":", "\uff1a"))
        )

    def begin(self, entry: _Entry | None, indent: int) -> None:
        """Begin an entry; the first one tells how far entries are indented."""
        self.end()
        self.entry = entry
        if self.base is None and entry is not None:
            self.base = indent
            entries = (
                _entry(line.text, bare=self.heading.underlined)
                for line in self.reader.lines[self.reader.at :]
                if line.indent == indent
            )
            self.at_base = frozenset(name for each in entries if each is not None for name in each.names)

    def end(self) -> None:
        """End the entry."""
        if self.entry is not None:
            text, bare = self.entry.text, _TYPE_TAIL.sub("", self.entry.text)
            if self.heading.underlined:
                text = "" if self.body or " " not in bare or _TYPE.fullmatch(bare) else text
            elif self.entry.maybe_type and _TYPE.fullmatch(bare):
                text = ""
            self.reader.describe(self.entry.names, [text, *self.body])
        elif not _says_none(" ".join(self.body)):
            self.reader.description += self.body  # it belongs to no parameter, but must not be lost
        self.entry, self.body = None, []


def _says_none(text: str) -> bool:
    return text.strip(" .-*`").lower() in {"", "none", "n/a", "nothing"}


def _kind(words: str) -> str | None:
    lowered = " ".join(words.lower().split())
    kinds = {"parameters": _PARAMETERS, "inputs": _INPUTS, "outcome": _OUTCOMES, "prose": _PROSE}
    return next((kind for kind, pattern in kinds.items() if pattern.fullmatch(lowered)), None)


def _entry(text: str, *, bare: bool) -> _Entry | None:
    """Read the line as an entry: `city: where`, `city (str) - where`, `- city: where`, `x, y : int`, `**options: more`.

    Args:
        text: the line.
        bare: whether a bare name is an entry.
    """
    bullet = _BULLET.match(text)
    rest = text[bullet.end() :] if bullet else text
    names = []
    while True:
        found = _NAME.match(rest)
        if found is None:
            return None
        names.append(found["name"])
        rest = rest[found.end() :]
        if not (comma := re.match(r"\s*,\s*", rest)):
            break
        rest = rest[comma.end() :]
    rest = rest[default.end() :] if (default := _DEFAULT.match(rest)) else rest
    opened = rest.lstrip()
    rest = opened[_bracketed(opened) :] if opened[:1] in {"(", "[", "{", "<"} else rest
    if not rest.strip():
        return _Entry(tuple(names), "", maybe_type=False) if bare else None
    separator = _SEPARATOR.match(rest)
    if separator is None:
        return None
    return _Entry(
        tuple(names), rest[separator.end() :], maybe_type=separator[0].startswith(" ") and ":" in separator[0]
    )


def _bracketed(text: str) -> int:
    """The length of the group in brackets with which the text begins; 0 if it begins with none or never closes it."""
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    if text[:1] not in pairs:
        return 0
    opening, closing = text[0], pairs[text[0]]
    depth = 0
    for i, sign in enumerate(text):
        depth += (sign == opening) - (sign == closing)
        if depth == 0:
            return i + 1
    return 0
