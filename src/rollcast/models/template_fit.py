"""Fits conversations to a chat template: each message is given in the form that it shows; what it hides is refused."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from rollcast.errors import MessagesError
from rollcast.models.template import ChatTemplate, Moment
from rollcast.models.template_messages import (
    Adaptation,
    in_parts,
    joined_systems,
    merged_system,
    named_results,
    prepared,
    short_call_ids,
)
from rollcast.models.template_probe import (
    PROBE_CALL,
    PROBE_RESULT,
    PROBE_TOOL,
    Takes,
    part,
    probe_template,
)
from rollcast.models.template_tools import FittedTools
from rollcast.models.template_trace import Hidden, Outline, outline_of, worded
from rollcast.records import Message

__all__ = ["FittedTemplate"]

logger = logging.getLogger("rollcast.models")

# What may make a template take a conversation that it refuses, or show one that it hides; the least comes first.
_FURTHER: tuple[tuple[Adaptation, ...], ...] = (
    (short_call_ids,),
    (joined_systems,),
    (merged_system,),
    (joined_systems, short_call_ids),
    (merged_system, short_call_ids),
)

_MOST_OUTLINES = 4096  # remembered

_IN_PLAIN_MESSAGES = (
    "use a ReactAgent or a CodeAgent, which tell the model of its tools in plain messages, or a model whose template shows "
    "tools"
)


class FittedTemplate:
    """Renders guarded messages and tools.

    How the template takes them is found out before the first (`template_probe`). What only some conversations need
    (shorter ids, a system message in another place) is tried when the template refuses or hides one, and kept if it helps.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.source = template.source
        self._template = template
        self._further: tuple[Adaptation, ...] = ()
        # Conversations that were checked, by number: the number of each with further messages of some outline.
        self._checked: dict[tuple[int, Outline], tuple[int, list[Hidden]]] = {}
        self._numbers = itertools.count(2)  # 0 and 1 are the beginnings, without and with tools
        self._names_told = False

    @cached_property
    def takes(self) -> Takes:
        """How the template takes messages."""
        return probe_template(self._template.text)

    @cached_property
    def _always(self) -> tuple[Adaptation, ...]:
        """What every conversation needs, in order; `_further` comes between the two."""
        return (named_results,) if self.takes.reads_ids else ()

    @cached_property
    def _at_last(self) -> tuple[Adaptation, ...]:
        adapt = in_parts(self.takes)
        return () if adapt is None else (adapt,)

    @cached_property
    def tools(self) -> FittedTools:
        """How the template reads tools."""
        content: Any = [part("hello")] if "user" in self.takes.wants_parts else "hello"
        return FittedTools(self._template.text, {"role": "user", "content": content}, self._renders)

    # -- what is given to it -------------------------------------------------------------------------------------------

    def prepared(
        self, message: Mapping[str, Any], index: int, tools: Sequence[Any], *, own: bool = False
    ) -> Message:
        """A message as the template reads it; `own`: the model sampled it.

        Raises:
            MessagesError: it has a part that is not text.
        """
        return prepared(message, index, self.takes, tools, own=own)

    # -- what it writes ------------------------------------------------------------------------------------------------

    def text(self, messages: list[dict[str, Any]], tools: Any, moment: Moment | None = None) -> str:
        """The rendered text.

        Raises:
            MessagesError: the template refuses the messages.
        """
        try:
            return self._text(messages, tools, moment, self._further)
        except MessagesError:
            for further in _FURTHER:
                if further != self._further and _changes(messages, further):
                    try:
                        text = self._text(messages, tools, moment, further)
                    except MessagesError:
                        continue
                    self._keep(further)
                    return text
            raise

    def _text(
        self,
        messages: list[dict[str, Any]],
        tools: Any,
        moment: Moment | None,
        further: tuple[Adaptation, ...],
    ) -> str:
        for adapt in (*self._always, *further, *self._at_last):
            messages = adapt(messages)
        return self._template.text(messages, tools, moment)

    def _keep(self, further: tuple[Adaptation, ...]) -> None:
        if merged_system in further and merged_system not in self._further:
            logger.warning(
                "the chat template has no system role; the system message is put before the first user message"
            )
        self._further = further
        self._checked.clear()

    def refusal(self, error: MessagesError, messages: list[dict[str, Any]], tools: Any) -> MessagesError:
        """The template's refusal of these messages, with the first that it does not take."""
        index = next((n for n in range(len(messages) - 1, 0, -1) if self._renders(messages[:n], tools)), None)
        if index is None:
            without = (
                n for n in range(len(messages)) if self._renders(messages[:n] + messages[n + 1 :], tools)
            )
            index = next(without, 0)
        role = messages[index]["role"]
        return MessagesError(
            f"messages[{index}], whose role is {role}, cannot be shown: {str(error).rstrip('.!')}; leave it out, or say it "
            "in a message that the template takes"
        )

    def _renders(self, messages: list[dict[str, Any]], tools: Any) -> bool:
        try:
            self._text(messages, tools, None, self._further)
        except MessagesError:
            return False
        return bool(messages)

    # -- what it leaves out --------------------------------------------------------------------------------------------

    def check_shown(
        self, messages: list[dict[str, Any]], tools: Any, checked: int, before: int, first: int
    ) -> tuple[int, bool]:
        """Check that the prompt has everything that the messages say.

        Args:
            messages: guarded.
            tools: guarded.
            checked: the number that this returned for the messages that were there before.
            before: how many those are.
            first: how many messages the first prompt has. After those, the assistant's are the model's own: if the
                template shows them differently, the conversation goes on in a new segment.

        Returns:
            A number for the next call, and whether the template now gets another form of the messages: render them again.

        Raises:
            MessagesError: the prompt does not show a message.
        """
        key = (checked if before else bool(tools), outline_of(messages[before:]))
        further, known = self._further, self._checked.get(key)
        if known is None:
            roles = enumerate(messages[first:], first)
            own = {index for index, message in roles if message["role"] == "assistant"}
            hidden = self._find_hidden(messages, tools, own)
            if len(self._checked) >= _MOST_OUTLINES:
                self._checked.clear()
            known = self._checked[key] = next(self._numbers), hidden
        number, hidden = known
        if hidden:
            self._tell(hidden)
        return number, self._further is not further

    def _tell(self, hidden: list[Hidden]) -> None:
        for each in hidden:
            if each.what != "name":
                raise MessagesError(each.sentence)
        if not self._names_told:
            self._names_told = True
            logger.warning(
                "the chat template does not show the `name` of messages[%d], whose role is %s; say in the content who speaks",
                hidden[0].index,
                hidden[0].role,
            )

    def _find_hidden(
        self, messages: list[dict[str, Any]], tools: Any, sampled: Collection[int]
    ) -> list[Hidden]:
        hidden = self._hidden_with(messages, tools, sampled, self._further)
        if not any(each.role in ("system", "developer") for each in hidden):
            return hidden
        for further in ((joined_systems,), (merged_system,)):
            both = (*further, *(each for each in self._further if each is short_call_ids))
            if both == self._further or not _changes(messages, further):
                continue
            try:
                less = self._hidden_with(messages, tools, sampled, both)
            except MessagesError:
                continue
            if len(less) < len(hidden):
                self._keep(both)
                return less
        return hidden

    def _hidden_with(
        self,
        messages: list[dict[str, Any]],
        tools: Any,
        sampled: Collection[int],
        further: tuple[Adaptation, ...],
    ) -> list[Hidden]:
        copies, words = worded(messages, sampled)
        try:
            text = self._text(copies, [PROBE_TOOL] if tools else None, None, further).lower()
        except MessagesError:
            return self._hidden_as_written(messages, tools, sampled, further)
        return [each for word, each in words.items() if word not in text and _matters(each)]

    def _hidden_as_written(
        self,
        messages: list[dict[str, Any]],
        tools: Any,
        sampled: Collection[int],
        further: tuple[Adaptation, ...],
    ) -> list[Hidden]:
        """Do what `_hidden_with` does with the texts themselves: a template that reads them may refuse others."""
        text = _without_whitespace(self._text(messages, tools, None, further))
        return [
            Hidden(index, message["role"], "content", bool(message.get("tool_calls")))
            for index, message in enumerate(messages)
            if index not in sampled and not _stands_in(message.get("content"), text)
        ]

    # -- tools ---------------------------------------------------------------------------------------------------------

    def tools_problem(
        self, messages: list[dict[str, Any]], tools: Any, text: str, moment: Moment
    ) -> str | None:
        """Why an agent with these tools cannot use the template, given the text of its first prompt."""
        if text == self.text(messages, None, moment):
            names = ", ".join(str(tool.get("function", tool).get("name")) for tool in tools)
            return f"does not show tools, so the model cannot know of {names}; {_IN_PLAIN_MESSAGES}"
        try:
            told = self.text([*messages, *self.probe_messages], tools, moment)
        except MessagesError as error:
            return f"does not take a tool's result ({error}); {_IN_PLAIN_MESSAGES}"
        return None if PROBE_RESULT in told else f"does not show tool results; {_IN_PLAIN_MESSAGES}"

    @property
    def probe_messages(self) -> list[dict[str, Any]]:
        """A call and its result."""
        result = {"role": "tool", "content": PROBE_RESULT, "tool_call_id": PROBE_CALL["id"], "name": "probe"}
        call = {"role": "assistant", "content": "", "tool_calls": [PROBE_CALL]}
        return [dict(self.prepared(call, 0, ())), result]

    @cached_property
    def probed_call(self) -> str:
        """What the template writes for a call with `PROBE_ARGUMENT` and for `PROBE_RESULT`; empty if it refuses them."""
        try:
            return self.text([{"role": "user", "content": "hello"}, *self.probe_messages], None)
        except MessagesError:
            return ""


def _changes(messages: list[dict[str, Any]], further: tuple[Adaptation, ...]) -> bool:
    """Whether these adaptations make other messages of them."""
    changed = messages
    for adapt in further:
        changed = adapt(changed)
    return changed != messages


def _matters(hidden: Hidden) -> bool:
    """Whether the model is meant to read it: an id or the reasoning of an earlier turn is not."""
    return hidden.what in ("content", "a call") or (hidden.what == "name" and hidden.role != "tool")


def _stands_in(content: Any, text: str) -> bool:
    texts = [each["text"] for each in content] if isinstance(content, list) else [content]
    return all(
        _without_whitespace(each) in text or _escaped(each) in text for each in texts if isinstance(each, str)
    )


def _without_whitespace(text: str) -> str:
    return "".join(text.split())


def _escaped(text: str) -> str:
    """The text as JSON writes it."""
    return _without_whitespace(text).replace("\\", "\\\\").replace('"', '\\"')
