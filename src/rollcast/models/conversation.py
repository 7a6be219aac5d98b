"""One chain's prompts, turn by turn: each goes on from the exact ids so far, or begins afresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from rollcast.models.backend import ChatRenderer
from rollcast.records import Message

__all__ = ["Conversation", "Conversing", "conversation_of"]

_NOTHING: Mapping[int, str] = {}


class Conversation(Protocol):
    """Renders the prompts of one chain. Messages are only ever added to it, and none is changed."""

    def prompt(
        self,
        messages: Sequence[Message],
        ids: Sequence[int] = (),
        sampled: Mapping[int, str] = _NOTHING,
    ) -> tuple[list[int], bool]:
        """Return the ids, shape (T,), of the next prompt, and whether they are all of it.

        If they are not, they come after `ids`, none of which are encoded again.

        Args:
            messages: the whole conversation. After the last prompt come the assistant's message and the new messages.
            ids: the prompts so far and what was sampled, shape (S,); empty at the beginning.
            sampled: what the model wrote, word for word, by the index of its message. If a new assistant message is not
                among them, it was not sampled, and the prompt is rendered afresh.
        """
        ...

    def copy(self) -> Self:
        """Return a copy, for a chain that begins with the same messages."""
        ...


@runtime_checkable
class Conversing(Protocol):
    """A renderer that remembers what it rendered for a chain."""

    def conversation(self, tools: list[dict[str, Any]]) -> Conversation:
        """Begin the conversation of a chain with these tools."""
        ...


def conversation_of(renderer: ChatRenderer, tools: list[dict[str, Any]]) -> Conversation:
    """Begin the renderer's own conversation if it has one; else one that calls `render` and `extend`."""
    return renderer.conversation(tools) if isinstance(renderer, Conversing) else _Plain(renderer, tools)


class _Plain:
    def __init__(self, renderer: ChatRenderer, tools: list[dict[str, Any]], shown: int = 0) -> None:
        self._renderer = renderer
        self._tools = tools
        self._shown = shown  # messages in the last prompt

    def prompt(
        self,
        messages: Sequence[Message],
        ids: Sequence[int] = (),
        sampled: Mapping[int, str] = _NOTHING,
    ) -> tuple[list[int], bool]:
        turn, self._shown = self._shown, len(messages)
        if ids and turn in sampled:
            new = len(messages) - turn - 1
            following = self._renderer.extend(list(ids), list(messages), new, self._tools)
            if following is not None:
                return following, False
        return self._renderer.render(list(messages), self._tools), True

    def copy(self) -> Self:
        return type(self)(self._renderer, self._tools, self._shown)
