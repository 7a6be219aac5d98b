"""Finds out which of a conversation's messages a chat template shows.

What a template leaves out depends on the order of the roles and on which fields there are, hardly on the words. So it is
given a conversation of the same outline in which every text is a word that no template has of its own; words that are
missing from the result were left out. All conversations of one outline share the answer, which is remembered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["Hidden", "Outline", "outline_of", "worded"]

Outline = tuple[Any, ...]


class Hidden(msgspec.Struct, frozen=True):
    """Something that a message says and the prompt does not.

    Attributes:
        index, role: the message's.
        what: "content", "a call" or "name".
        calls: whether the message has calls.
    """

    index: int
    role: str
    what: str
    calls: bool

    @property
    def sentence(self) -> str:
        """Why the conversation cannot be shown, and what to do."""
        place = f"messages[{self.index}]"
        if self.what == "a call":
            return (
                f"the chat template of this model does not show all tool calls of the assistant's message {place}; write "
                "them into its content as the model would, or give fewer at once"
            )
        if self.calls:
            return (
                f"the chat template of this model does not show the content of the assistant's message {place} beside its "
                "tool calls; leave the content out, or give it in a message of its own"
            )
        if self.role in ("system", "developer"):
            where = (
                "the first user message" if self.index == 0 else "the one at the beginning or a user message"
            )
            return f"the chat template of this model does not show the {self.role} message {place}; put it into {where}"
        if self.role == "tool":
            return (
                f"the chat template of this model does not show the tool result in {place}; give a result right after the "
                "assistant's message with its call, one for each call, or say it in a user message"
            )
        return (
            f"the chat template of this model does not show the {self.role} message {place}; leave it out, or say it in "
            "a message that the template shows"
        )


def outline_of(messages: Sequence[Mapping[str, Any]]) -> Outline:
    """What decides what is shown: it is equal for messages that differ only in their words."""
    ids: dict[Any, int] = {}
    return tuple([_message_outline(message, ids) for message in messages])


def _message_outline(message: Mapping[str, Any], ids: dict[Any, int]) -> Outline:
    content = message.get("content", ...)
    kind: Any = content.__class__
    if kind is str:
        kind = "text" if content and not content.isspace() else "blank"
    elif kind is list:
        kind = tuple([part["text"].isspace() or not part["text"] for part in content])
    if len(message) == 2 and content is not ...:
        return message["role"], kind
    calls = message.get("tool_calls")
    outlines = tuple([_call_outline(call, ids) for call in calls]) if calls else None
    call_id = message.get("tool_call_id")
    number = ids.setdefault(call_id, len(ids)) if call_id.__class__ is str else None
    return message["role"], kind, outlines, number, tuple(message)


def _call_outline(call: Any, ids: dict[Any, int]) -> Outline:
    call_id = call.get("id") if isinstance(call, dict) else None
    number = ids.setdefault(call_id, len(ids)) if call_id.__class__ is str else None
    function = call.get("function", call) if isinstance(call, dict) else None
    arguments = function.get("arguments", ...) if isinstance(function, dict) else None
    return number, function is call, arguments.__class__, bool(arguments)


def worded(
    messages: Sequence[Mapping[str, Any]], sampled: Collection[int]
) -> tuple[list[dict[str, Any]], dict[str, Hidden]]:
    """Make a conversation of the same outline, and tell what each of its words stands for.

    The words of turns that the model sampled are not looked for: if the template changes those, the conversation
    goes on in a new segment.
    """
    words: dict[str, Hidden] = {}
    numbers: dict[Any, str] = {}
    copies = [_Worded(i, message, words, numbers).copy() for i, message in enumerate(messages)]
    return copies, {word: hidden for word, hidden in words.items() if hidden.index not in sampled}


class _Worded:
    def __init__(
        self, index: int, message: Mapping[str, Any], words: dict[str, Hidden], numbers: dict[Any, str]
    ) -> None:
        self._index = index
        self._message = message
        self._words = words
        self._numbers = numbers

    def copy(self) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for key, value in self._message.items():
            if key == "role" or value is None:
                copied[key] = value
            elif key == "content":
                copied[key] = self._content(value)
            elif key == "tool_calls":
                copied[key] = [self._call(call) for call in value]
            elif key == "tool_call_id":
                copied[key] = self._call_id(value)
            elif isinstance(value, str):
                copied[key] = self._word(key)
        return copied

    def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return self._word("content") if content.strip() else content
        if isinstance(content, list):
            return [{**part, "text": self._content(part["text"])} for part in content]
        return content

    def _call(self, call: Any) -> Any:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return call
        copied = {**function, "name": self._word("a call")}
        if arguments := function.get("arguments"):
            said = self._word("a call")
            copied["arguments"] = {"value": said} if isinstance(arguments, dict) else said
        ids = {"id": self._call_id(call["id"])} if "id" in call else {}
        return {**call, "function": copied, **ids} if "function" in call else {**copied, **ids}

    def _call_id(self, given: Any) -> Any:
        return (
            self._numbers.setdefault(given, f"c{len(self._numbers):08d}") if isinstance(given, str) else given
        )

    def _word(self, what: str) -> str:
        word = f"word{len(self._words):05d}q"
        self._words[word] = Hidden(
            self._index,
            self._message["role"],
            what,
            bool(self._message.get("tool_calls")) and what == "content",
        )
        return word
