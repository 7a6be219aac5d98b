"""Joins the page's modules into one, so that a browser requests one file instead of sixty.

Each module becomes a function that is called immediately and returns what the module exports:

    import { h } from "./vendor/preact.js";          import * as $0 from "./vendor/preact.js";
    import { oneLine } from "./text.js";             const $1 = (() => { … return { oneLine }; })();
    export function heading() { … }                  const $2 = (() => {
                                                     const { h } = $0;
                                                     const { oneLine } = $1;
                                                     function heading() { … }
                                                     return { heading };
                                                     })();

Spaces and ends of lines are left out if nothing changes without them, in programs and in templates of `html`.

A module that is `external` stays a module and is imported. What this cannot express is refused: modules that import each other in a circle,
exports that can change (`export let`), `export default`, `import()` and `import.meta`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping

from rollcast.serve.page_source import JavaScriptToken, javascript_tokens

__all__ = ["joined_modules"]

_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
# No statement ends after one of these, nor before one of those, so an end of a line there says nothing. Other tokens do not end or begin so.
_GOES_ON_AFTER = frozenset("([{,;:?=&|<>")
_GOES_ON_BEFORE = frozenset(")]},;:?.=&|<>")


def joined_modules(first: str, sources: Mapping[str, str], external: Callable[[str], bool]) -> str:
    """Join modules into one with the same effect.

    Args:
        first: the name of the module that imports the others, such as `main.js`.
        sources: modules by name.
        external: whether the module with this name stays a module of its own.

    Raises:
        ValueError: a module imports one that does not exist, or contains something that cannot be joined.
    """
    bundle = _Bundle(sources, external)
    bundle.add(first)
    return "".join(bundle.imports) + "".join(bundle.bodies)


class _Bundle:
    def __init__(self, sources: Mapping[str, str], external: Callable[[str], bool]) -> None:
        self.imports: list[str] = []
        self.bodies: list[str] = []
        self._sources = sources
        self._external = external
        self._names: dict[str, str] = {}  # by module, its variable in the joined module
        self._path: list[str] = []  # modules that are being added

    def add(self, name: str) -> str:
        """Add a module after those that it imports; returns its variable in the joined module."""
        if name in self._path:
            circle = " → ".join([*self._path[self._path.index(name) :], name])
            raise ValueError(f"modules of the page import each other in a circle: {circle}")
        if name in self._names:
            return self._names[name]
        if name not in self._sources:
            raise ValueError(
                f"{self._path[-1]} imports {name}, which is not there"
                if self._path
                else f"there is no {name}"
            )
        if self._external(name):
            own = self._names[name] = f"${len(self._names)}"
            self.imports.append(f'import * as {own} from "./{name}";\n')
            return own
        self._path.append(name)
        try:
            module = _Module(
                list(javascript_tokens(self._sources[name])), lambda path: self.add(_beside(name, path))
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None if len(self._path) == 1 else error
        self._path.pop()
        own = self._names[name] = f"${len(self._names)}"
        exports = ", ".join(module.exports)
        self.bodies.append(
            f"const {own} = (() => {{ // {name}\n{module.text}\nreturn {{ {exports} }};\n}})();\n"
        )
        return own


def _beside(name: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))


def _needed(between: str, before: str, after: str) -> str:
    """The necessary part of the space between two tokens: the end of a line if it can end a statement, or a space."""
    if "\n" in between and not (before and before[-1] in _GOES_ON_AFTER) and after[0] not in _GOES_ON_BEFORE:
        return "\n"
    if not between or not before:
        return ""
    is_word = _is_of_word(before[-1]) and _is_of_word(after[0])
    return " " if is_word or before[-1] in "+-/" or after[0] in "+-/" else ""


def _without_indentation(template: str) -> str:
    """A part of a template of `html`, which ignores the ends of lines between tags, and how long other spaces with one are."""
    return re.sub(r"\s*\n\s*", "\n", re.sub(r">\s*\n\s*<", "><", template))


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character in "_$#@\\"


class _Module:
    """A module as the body of a function.

    Args:
        tokens: of its source.
        added: adds a module that it imports, and returns the variable of that one.

    Attributes:
        text: the body, without `import` and `export`.
        exports: the properties of the object that the function returns.
    """

    def __init__(self, tokens: list[JavaScriptToken], added: Callable[[str], str]) -> None:
        self._tokens = tokens
        self._added = added
        self._at = 0
        self.exports: list[str] = []
        self.text = self._body()

    def _body(self) -> str:
        parts = [""]
        depth = 0
        of_html: list[bool] = []  # of the templates that are open: whether `html` takes them
        while self._at < len(self._tokens):
            between, kind, text = self._take()
            if kind == "word" and text in ("import", "export") and self._is_statement(depth):
                parts += (
                    _needed(between, parts[-1], text),
                    self._import() if text == "import" else self._export(),
                )
                continue
            if kind == "template":
                if text.startswith("`"):
                    of_html.append(parts[-1] == "html")
                is_of_html = of_html.pop() if text.endswith("`") else of_html[-1]
                text = _without_indentation(text) if is_of_html else text
            parts += (_needed(between, parts[-1], text), text)
            if kind == "punctuator":
                depth += (text in _OPENING) - (text in _CLOSING)
            elif kind == "template":
                depth += text.endswith("${") - text.startswith("}")
        return "".join(parts)

    def _is_statement(self, depth: int) -> bool:
        """Whether the word that was just taken begins a statement, and is not a property."""
        before = self._tokens[self._at - 2].text if self._at > 1 else ""
        if before in (".", "?.") or self._next() == ":":
            return False
        if depth or self._next() in ("(", "."):
            raise ValueError(f"`{self._tokens[self._at - 1].text} {self._next()}` cannot be joined")
        return True

    def _take(self, *wanted: str) -> JavaScriptToken:
        token = self._tokens[self._at]
        if wanted and token.text not in wanted:
            raise ValueError(f"found {token.text!r}, expected {' or '.join(wanted)}")
        self._at += 1
        return token

    def _next(self) -> str:
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    def _import(self) -> str:
        if self._tokens[self._at].kind == "string":
            return self._from(is_bare=True)
        names: list[str] = []
        whole = ""
        if self._next() == "*":
            self._take("*"), self._take("as")
            whole = self._take().text
        elif self._next() == "{":
            names = [f"{name}: {local}" if name != local else name for name, local in self._list()]
        else:
            names = [f"default: {self._take().text}"]
            if self._next() == ",":
                self._take(",")
                names += [f"{name}: {local}" if name != local else name for name, local in self._list()]
        own = self._from()
        taken = whole or "{ " + ", ".join(names) + " }"
        return f"const {taken} = {own};"

    def _export(self) -> str:
        word = self._next()
        if word == "{":
            listed = self._list()
            own = self._from() if self._next() == "from" else None
            if own is None and self._next() == ";":
                self._take(";")
            for name, outside in listed:
                inside = name if own is None else f"{own}.{name}"
                self.exports.append(outside if inside == outside else f"{outside}: {inside}")
            return ""
        if word not in ("function", "class", "async", "const"):
            raise ValueError(f"`export {word}` cannot be joined")
        at = self._at + (2 if word == "async" else 1)
        declared = self._tokens[at + (self._tokens[at].text == "*")]
        if declared.kind != "word" or (word == "const" and self._has_several(at)):
            raise ValueError("`export const` of several names cannot be joined")
        self.exports.append(declared.text)
        return ""

    def _has_several(self, at: int) -> bool:
        """Whether a declaration that begins here declares more than one name."""
        depth = 0
        for _, kind, text in self._tokens[at:]:
            if kind == "template":
                depth += text.endswith("${") - text.startswith("}")
            elif kind == "punctuator":
                if depth == 0 and text in (";", ","):
                    return text == ","
                depth += (text in _OPENING) - (text in _CLOSING)
        return False

    def _list(self) -> list[tuple[str, str]]:
        """The names in braces, each with the one behind `as`, or the same."""
        self._take("{")
        found: list[tuple[str, str]] = []
        while self._next() != "}":
            name = self._take().text
            other = name
            if self._next() == "as":
                self._take("as")
                other = self._take().text
            found.append((name, other))
            if self._take(",", "}").text == "}":
                return found
        self._take("}")
        return found

    def _from(self, *, is_bare: bool = False) -> str:
        """Take `from "./module.js";`; returns the variable of that module, empty if nothing of it is used."""
        if not is_bare:
            self._take("from")
        own = self._added(self._take().text[1:-1])
        if self._next() == ";":
            self._take(";")
        return "" if is_bare else own
