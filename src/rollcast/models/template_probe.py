"""Finds out how a chat template takes messages, by rendering small conversations and looking for their words.

Templates differ in what they read. Some want content as a list of parts and show nothing of a string; some write the
arguments of a call as they are, so that an object breaks them; some print `None`. None of them says so. So each is tried
once, with words that no template has of its own, and conversations are then given in the form that it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from rollcast.errors import MessagesError

__all__ = [
    "PROBE_ARGUMENT",
    "PROBE_CALL",
    "PROBE_RESULT",
    "PROBE_TOOL",
    "Contents",
    "Takes",
    "part",
    "probe_template",
]

Render = Callable[[list[dict[str, Any]], Any], str]

PROBE_ARGUMENT, PROBE_RESULT = "argument7f3a91", "result5c2e77"
_QUESTION, _WORD, _SECOND, _UNREAD, _ROLE = (
    "word4b8d13",
    "word9e6c28",
    "word3d7f64",
    "unread7f3a91",
    "role6a1e55",
)
_CALL_ID = "probe0001"  # nine letters and digits, on which Mistral's templates insist

PROBE_CALL: dict[str, Any] = {
    "id": _CALL_ID,
    "type": "function",
    "function": {"name": "probe", "arguments": {"value": PROBE_ARGUMENT, "flag": True}},
}
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probe.",
        "parameters": {
            "type": "object",
            "properties": {"value": {"type": "string", "description": "A value."}},
            "required": ["value"],
        },
    },
}


_NOTHING_SAID = re.compile(r"None|null|[Uu]ndefined")

MISSING = "missing"
Empty = str | None
"""What says that there is no content: "", None, or MISSING if the key is to be left out."""


class Contents(msgspec.Struct, frozen=True):
    """In which forms the content of a role's messages is shown.

    Attributes:
        text: it is shown if it is a string.
        parts: it is shown if it is several parts.
    """

    text: bool
    parts: bool

    def of_parts(self, content: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        """The content as parts if the template shows all of them, else as one text."""
        return content if self.parts else "".join(each["text"] for each in content)


class Takes(msgspec.Struct, frozen=True):
    """How a template takes messages.

    Attributes:
        contents: how contents are shown, by role.
        developer: it knows the developer role, and does not write it like any unknown role.
        arguments: the form of a call's arguments, "object" or "text" (JSON).
        empty: what to give beside calls for a content of "", of None, and for none at all.
        reads_ids: what it writes for a tool's result depends on its `tool_call_id` or `name`.
    """

    contents: Mapping[str, Contents]
    developer: bool
    arguments: str
    empty: Mapping[Empty, Empty]
    reads_ids: bool

    @property
    def wants_parts(self) -> frozenset[str]:
        """The roles whose content is shown only as parts."""
        return frozenset(role for role, contents in self.contents.items() if not contents.text)


def part(text: str) -> dict[str, Any]:
    """Make a text part of a content."""
    return {"type": "text", "text": text}


def probe_template(render: Render) -> Takes:
    """How a template takes messages.

    Args:
        render: gives the text of messages and tools, or raises MessagesError.
    """
    probe = _Probe(render)
    contents = {"user": probe.contents("user", [], [])}
    probe.question = probe.user(_QUESTION, contents["user"])
    question = [probe.question]
    contents["assistant"] = probe.contents("assistant", question, question)
    contents["system"] = probe.contents("system", [], question)
    developer = probe.knows_developer()
    contents["developer"] = probe.contents("developer", [], question) if developer else contents["system"]
    probe.assistant = contents["assistant"]
    probe.arguments = probe.find_arguments()
    empty = {given: probe.find_empty(given) for given in ("", None, MISSING)}
    probe.nothing = empty[""]
    called = [*question, probe.call(PROBE_CALL, "")]
    contents["tool"] = probe.contents("tool", called, [], tool_call_id=_CALL_ID, name="probe")
    return Takes(contents, developer, probe.arguments, empty, probe.reads_ids(contents["tool"]))


class _Probe:
    """Tries a template; what was found out so far is used for what is tried next."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self.question: dict[str, Any] = {}
        self.assistant = Contents(text=True, parts=False)
        self.arguments = "object"
        self.nothing: Empty = ""

    def text(self, messages: list[dict[str, Any]]) -> str | None:
        """What the template writes, with tools if it refuses the messages without; None if it refuses both."""
        for tools in (None, [PROBE_TOOL]):
            try:
                return self._render(messages, tools)
            except MessagesError:
                continue
        return None

    def shows(self, messages: list[dict[str, Any]], *words: str, not_word: str = _UNREAD) -> bool:
        text = self.text(messages)
        if text is None:
            return False
        lower = text.lower()
        return all(word in lower for word in words) and not_word not in lower

    @staticmethod
    def user(text: str, contents: Contents) -> dict[str, Any]:
        return {"role": "user", "content": text if contents.text else [part(text)]}

    def contents(
        self, role: str, before: list[dict[str, Any]], after: list[dict[str, Any]], **keys: Any
    ) -> Contents:
        """How the content of a role is shown, in a message with these further keys between other messages."""

        def shown(content: Any, *words: str) -> bool:
            return self.shows([*before, {"role": role, "content": content, **keys}, *after], *words)

        text = shown(_WORD, _WORD)
        several = shown([{**part(_WORD), "unread": _UNREAD}, part(_SECOND)], _WORD, _SECOND)
        one = several or (not text and shown([part(_WORD)], _WORD))
        return Contents(text=text or not one, parts=several)

    def knows_developer(self) -> bool:
        """Whether the template writes a developer's message, and differently from one of an unknown role."""
        word = _WORD if self.question["content"].__class__ is str else [part(_WORD)]
        known = self.text([{"role": "developer", "content": word}, self.question])
        if known is None or _WORD not in known.lower():
            return False
        other = self.text([{"role": _ROLE, "content": word}, self.question])
        return other is None or other.lower().replace(_ROLE, "developer") != known.lower()

    def call(self, call: dict[str, Any], content: Empty) -> dict[str, Any]:
        """An assistant's message with a call."""
        function = call["function"]
        if self.arguments == "text":
            function = {**function, "arguments": json.dumps(function["arguments"])}
        message: dict[str, Any] = {"role": "assistant"}
        if content != MISSING:
            parts = content is not None and not self.assistant.text
            message["content"] = [part(content or "")] if parts else content
        return {**message, "tool_calls": [{**call, "function": function}]}

    def find_arguments(self) -> str:
        """Find the form in which a call's arguments are shown, but not as Python prints an object."""
        as_python = str(PROBE_CALL["function"]["arguments"]).lower()
        for content in ("", None, MISSING):
            for form in ("object", "text"):
                self.arguments = form
                messages = [self.question, self.call(PROBE_CALL, content), self.question]
                if self.shows(messages, PROBE_ARGUMENT, not_word=as_python):
                    return form
        return "object"

    def find_empty(self, given: Empty) -> Empty:
        """Find what to give for an empty content: itself, if the template then shows the call and no `None` beside it."""
        worth: dict[Empty, tuple[bool, int]] = {}
        for content in ("", None, MISSING):
            text = self.text([self.question, self.call(PROBE_CALL, content), self.question])
            if text is not None:
                worth[content] = PROBE_ARGUMENT not in text.lower(), len(_NOTHING_SAID.findall(text))
        good = [content for content, found in worth.items() if found == min(worth.values())]
        return given if given in good or not good else good[0]

    def reads_ids(self, contents: Contents) -> bool:
        """Whether a result that names its call is written differently from one that does not."""
        call = self.call(PROBE_CALL, self.nothing)
        result = {"role": "tool", "content": PROBE_RESULT if contents.text else [part(PROBE_RESULT)]}
        named = self.text([self.question, call, {**result, "tool_call_id": _CALL_ID, "name": "probe"}])
        return named is not None and named != self.text([self.question, call, result])
