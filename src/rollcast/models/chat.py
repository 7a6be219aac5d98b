"""Turns messages into token ids through a Jinja chat template, turn by turn, on top of the ids that were sampled.

Two things must hold for a prompt. Text from outside stays text (`guard.py`). And what the model sampled keeps the ids
that were sampled: the next prompt is those ids and what the template writes after them. That is right only as long as
the template still shows everything before as it did. Many do not: they drop the reasoning of earlier turns, or
move the tools to the last question. So each prompt is rendered as a whole, and its text is compared with the one before.
If it no longer begins with what the model has seen, it is encoded afresh.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec
from tokenizers import Tokenizer

from rollcast.errors import InputError, MessagesError, PromptTooLongError
from rollcast.models.guard import Codec
from rollcast.models.reasoning import (
    FAMILIES,
    FIELDS,
    Family,
    Thinking,
    families_of,
    field_read,
    left_open,
    thinking_after,
)
from rollcast.models.sampled import SampledTurn, shows_all, with_own_reasoning
from rollcast.models.template import ChatTemplate, Moment
from rollcast.models.template_files import (
    Templates,
    read_chat_templates,
    read_special_tokens,
    with_and_without_tools,
)
from rollcast.models.template_fit import FittedTemplate
from rollcast.models.template_probe import PROBE_ARGUMENT, PROBE_RESULT
from rollcast.records import Message

__all__ = ["TemplateConversation", "TemplateRenderer"]

logger = logging.getLogger("rollcast.models")

_NOTHING: Mapping[int, str] = {}


class TemplateRenderer:
    """A `ChatRenderer` over any Hugging Face chat template and fast tokenizer.

    The ids of a prompt are those of `apply_chat_template` as long as no text from outside contains the string of an added
    token. Everything in the messages and tools is from outside: contents of every role, names, descriptions, arguments.
    An assistant message of a row (a demonstration) is no exception: give its calls in `tool_calls` and its reasoning in
    `reasoning_content`, which the template renders; `arguments` that are a JSON object in a string are rendered as that
    object. Turns that the model itself sampled keep the tags around their reasoning.

    What a template takes is found out before the first prompt, and messages are given in that form (`template_fit.py`). A
    template without a system role (Gemma 2) gets the system message before the first user message, with an empty line
    between, as https://ai.google.dev/gemma/docs/core/prompt-structure advises. One that wants call ids of nine letters and
    digits (Mistral) gets those. A message that the template does not show in any form is refused.

    Added tokens that are only whitespace, which some tokenizers have, are not guarded.

    Args:
        tokenizer: a fast tokenizer; it is only read.
        template: the Jinja source, or several by name: `tool_use` is for conversations with tools, `default` for others.
        special_tokens: tokens that the template may name: `bos_token`, `eos_token` …
        eos_token_ids: tokens that end the assistant's turn.
        template_kwargs: further variables of the template, `enable_thinking` …
        max_characters: how long all contents together may be; more is refused before it is encoded. None: no limit.

    Raises:
        InputError: the template is not valid Jinja, or there are several and none is the default.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Templates,
        special_tokens: Mapping[str, str],
        eos_token_ids: Collection[int],
        template_kwargs: Mapping[str, Any] | None = None,
        max_characters: int | None = None,
    ) -> None:
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_characters = max_characters
        self.codec = Codec(tokenizer)
        self.ends = self.codec.pattern(self.eos_token_ids)
        with_tools, without = with_and_without_tools(template)
        variables = {**special_tokens, **(template_kwargs or {})}
        self.fitted = FittedTemplate(ChatTemplate(without, variables))
        self._guarded_tools: tuple[bytes, Any] = (b"", None)
        self._seen_tools: set[bytes] = set()  # tools that the template was found to show
        self._for_tools = self
        if with_tools != without:
            self._for_tools = copy.copy(self)
            self._for_tools.fitted = FittedTemplate(ChatTemplate(with_tools, variables))

    @classmethod
    def from_folder(
        cls, folder: str | Path, eos_token_ids: Collection[int], **template_kwargs: Any
    ) -> TemplateRenderer:
        """Read `tokenizer.json`, `tokenizer_config.json` and the chat templates beside them or in the latter.

        Raises:
            InputError: one of them is missing or broken.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        except Exception as error:  # the tokenizers package raises bare Exception for a broken file
            raise InputError(f"{path} cannot be read ({error}); expected a fast tokenizer") from error
        templates, special = read_chat_templates(folder), read_special_tokens(folder)
        return cls(tokenizer, templates, special, eos_token_ids, template_kwargs)

    def conversation(self, tools: list[dict[str, Any]]) -> TemplateConversation:
        """Render the prompts of one chain with these tools, turn by turn, as a rollout does. It remembers what it rendered."""
        renderer = self._for_tools if tools else self
        renderer.max_characters = self.max_characters  # set later than the template
        return TemplateConversation(renderer, tools)

    def render(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
        """Return the ids of the whole prompt, shape (T,), up to where the assistant speaks.

        Raises:
            MessagesError: the template refuses the messages, or does not show one of them, the tools or tool results.
            PromptTooLongError: they are longer than `max_characters`.
        """
        return self.conversation(tools).prompt(messages)[0]

    def extend(
        self, ids: list[int], messages: list[Message], new: int, tools: list[dict[str, Any]]
    ) -> list[int] | None:
        """Return the ids, shape (T,), that add the last `new` messages to `ids`, up to where the assistant speaks.

        `ids` end with what the assistant sampled last; its message comes before the `new` ones. No part of `ids` is
        encoded again. If they do not end the turn (the generation was cut), the template's end comes first. None if the
        template would now write what came before differently from `ids`: render the whole prompt.

        Raises:
            MessagesError: there is no assistant message at that place, or the template refuses the messages.
        """
        last = len(messages) - new - 1
        if not 0 <= last < len(messages) or messages[last]["role"] != "assistant":
            raise MessagesError(
                f"the message before the last {new} of {len(messages)} is not the assistant's; "
                "extend needs the conversation as it was sampled, then the new messages"
            )
        conversation = self.conversation(tools)
        conversation.seen(messages[:last])
        content = messages[last].get("content")
        sampled = {last: content if isinstance(content, str) else ""}
        following, whole = conversation.prompt(messages, ids, sampled)
        return None if whole else following

    # -- what a conversation asks --------------------------------------------------------------------------------------

    def text(self, messages: list[dict[str, Any]], tools: Any, moment: Moment) -> str:
        """Render guarded messages and tools, in the form that the template takes.

        Raises:
            MessagesError: the template refuses them.
        """
        try:
            return self.fitted.text(messages, tools, moment)
        except MessagesError as error:
            raise self.fitted.refusal(error, messages, tools) from error

    def first_text(self, messages: list[dict[str, Any]], tools: Any, guard: str, moment: Moment) -> str:
        """Do what `text` does, for a chain's first prompt, in which the template has to show the tools.

        Raises:
            MessagesError: it refuses the messages, or does not show the tools or tool results.
        """
        text = self.text(messages, tools, moment)
        if tools and (key := _bytes(tools)) not in self._seen_tools:
            problem = self.fitted.tools_problem(messages, tools, text, moment)
            if problem is not None:
                raise MessagesError(f"the chat template of this model {problem.replace(guard, '')}")
            self._seen_tools.add(key)
            if fields := self.fitted.tools.undescribed_fields(tools):
                logger.warning(
                    "the chat template of this model does not tell it of %s%s; say in the tool's description what is expected",
                    ", ".join(fields[:3]).replace(guard, ""),
                    f" and {len(fields) - 3} more fields" if len(fields) > 3 else "",
                )
        return text

    @cached_property
    def ends_calls(self) -> bool:
        """Whether the template writes an end of the turn after tool calls, as it does after an answer."""
        called, result = self._probed.find(PROBE_ARGUMENT), self._probed.find(PROBE_RESULT)
        if self.ends is None or not 0 <= called < result:
            return False
        return self.ends.search(self._probed, called, result) is not None

    @cached_property
    def hides_calls(self) -> bool:
        """Whether the template writes a turn's content and not its `tool_calls`, as LFM2's does."""
        return PROBE_RESULT in self._probed and PROBE_ARGUMENT not in self._probed

    @property
    def _probed(self) -> str:
        return self.fitted.probed_call

    @cached_property
    def reasoning_field(self) -> str | None:
        """The key under which the template reads a turn's reasoning; None if it reads no such key."""

        def text(messages: list[dict[str, Any]]) -> str:
            try:
                return self.fitted.text(messages, None)
            except MessagesError:
                return ""

        return field_read(self.fitted.source, text, self.fitted.probe_messages)

    @property
    def splits_turns(self) -> bool:
        """Whether the template looks for the tags in a turn's text, as DeepSeek's does to drop the reasoning."""
        return bool(self._families[0])

    @cached_property
    def _families(self) -> tuple[tuple[Family, ...], Mapping[int, str]]:
        tags = [tag for family in FAMILIES for tag in (*family.openings, family.closing)]
        return families_of(self.fitted.source), self.codec.token_ids(tags)

    def thinking(self, prompt: str) -> Thinking:
        """What is known about the reasoning of the turn that follows this prompt."""
        return thinking_after(prompt, *self._families)

    def guarded_tools(self, tools: list[dict[str, Any]], guard: str) -> Any:
        """Guard the tools, or return those of the last call if they are the same; None if there are no tools."""
        key = _bytes((tools, guard))
        known, guarded = self._guarded_tools
        if not key or key != known:
            guarded = self.codec.guarded(self.fitted.tools.prepared(tools), guard) or None
            self._guarded_tools = key, guarded
        return guarded


class TemplateConversation:
    """A `Conversation` of a `TemplateRenderer`: it remembers the last prompt's text, and compares the next with it."""

    def __init__(self, renderer: TemplateRenderer, tools: list[dict[str, Any]]) -> None:
        self._renderer = renderer
        self._tools = tools
        self._guard = ""
        self._guarded_tools: Any = None
        self._messages: list[Message] = []  # as the template reads them
        self._guarded: list[dict[str, Any]] = []
        self._text = ""  # the last prompt
        self._as_written: frozenset[int] = frozenset()  # turns that are shown as text, with their calls
        self._turns: dict[int, SampledTurn] = {}
        self._characters = 0
        self._first = 0  # messages in the first prompt
        self._checked = 0  # what `check_shown` returned for the last prompt
        self._moment: Moment | None = None

    @property
    def thinking(self) -> Thinking:
        """What is known about the reasoning of the turn that follows the last prompt."""
        return self._renderer.thinking(self._text)

    def copy(self) -> Self:
        """Return a copy, for a chain that begins with the same messages."""
        return copy.copy(self)  # what it holds is replaced, never changed

    def seen(self, messages: Sequence[Message]) -> None:
        """Begin after a prompt of these messages: the model has seen them.

        Raises:
            MessagesError: the template refuses them, or does not show the tools or tool results.
            PromptTooLongError: they are longer than `max_characters`.
        """
        self._first = len(messages)
        self._add(messages, _NOTHING)
        self._text = self._with_all_shown(0, self._rendered(0, _NOTHING))

    def prompt(
        self,
        messages: Sequence[Message],
        ids: Sequence[int] = (),
        sampled: Mapping[int, str] = _NOTHING,
    ) -> tuple[list[int], bool]:
        """See `Conversation.prompt`.

        Raises:
            MessagesError: the template refuses the messages, or does not show the tools or tool results.
            PromptTooLongError: they are longer than `max_characters`.
        """
        renderer = self._renderer
        turn = len(self._guarded)  # the index of the message that was sampled, if there was a prompt before
        if not turn:
            self._first = len(messages)
        if turn in sampled:
            opened = left_open(self._text)
            turns = SampledTurn(sampled[turn], "" if opened is None else opened[1], self.thinking)
            self._turns = {**self._turns, turn: turns}
        self._add(messages, sampled)
        seen, text = self._text, self._rendered(turn, sampled)
        if text == seen:
            raise MessagesError(
                "the chat template shows none of the new messages, so the conversation cannot go on; use one "
                "that writes the assistant's turns and what follows them"
            )
        text = self._text = self._with_all_shown(turn, text)
        if not text.startswith(seen):
            seen = seen.rstrip()  # whitespace where a turn begins is the turn's
        end = None
        if ids and turn in sampled and text.startswith(seen):
            end = self._end_of_turn(text, len(seen), turn)
        if end is None:
            return renderer.codec.encode(text, self._guard), True
        following = renderer.codec.encode(text[end:], self._guard)
        # The turn may have ended with a different end token from the template's: what was sampled counts.
        ends = renderer.eos_token_ids
        ended = bool(following) and ids[-1] in ends and following[0] in ends
        return following[1:] if ended else following, False

    def _add(self, messages: Sequence[Message], sampled: Mapping[int, str]) -> None:
        """Guard the new messages."""
        renderer, codec = self._renderer, self._renderer.codec
        behind = enumerate(messages[len(self._guarded) :], len(self._guarded))
        prepared = renderer.fitted.prepared
        new = [prepared(message, i, self._tools, own=i in sampled) for i, message in behind]
        messages = self._messages = [*self._messages, *new]
        for message in new:
            content = message.get("content")
            self._characters += len(content) if isinstance(content, str) else 0
        if renderer.max_characters is not None and self._characters > renderer.max_characters:
            raise PromptTooLongError(
                f"the messages have {self._characters} characters; expected at most {renderer.max_characters}, which is "
                "more than fits this model's context: shorten the conversation, or use a larger model"
            )
        if not self._guard or codec.occurs(self._guard, new):
            known, self._guard = self._guard, codec.free_character((messages, self._tools))
            self._guarded_tools = renderer.guarded_tools(self._tools, self._guard)
            if known:  # the new guard does not occur in these texts either
                self._text = self._text.replace(known, self._guard)
                new, self._guarded = messages, []
        guarded = list(self._guarded)
        for message in new:
            guarded.append(self._guarded_message(message, len(guarded), sampled.get(len(guarded))))
        self._guarded = guarded

    def _guarded_message(self, message: Message, index: int, written: str | None) -> dict[str, Any]:
        renderer, codec, guard = self._renderer, self._renderer.codec, self._guard
        turn, field = self._turns.get(index), renderer.reasoning_field
        if index in self._as_written or (
            written is not None and "tool_calls" in message and renderer.hides_calls
        ):
            return self._written(index, written or "")
        if written is None or turn is None or not isinstance(message.get("content"), str):
            kept: Any = with_own_reasoning(message, field)
            shown: dict[str, Any] = codec.guarded(kept, guard)
            if written is not None and isinstance(content := message.get("content"), str):
                shown["content"] = codec.guarded_turn(content, guard)
            return shown
        kept = turn.message(message, field, splits=renderer.splits_turns)
        shown = codec.guarded(kept, guard)
        if turn.shown is None or field is None:
            shown["content"] = codec.guarded_turn(kept["content"], guard)
        return shown

    def _written(self, index: int, written: str) -> dict[str, Any]:
        """A turn's message as the model wrote it, with its calls in the text."""
        begun = self._turns[index].begun if index in self._turns else ""
        return {
            "role": "assistant",
            "content": self._renderer.codec.guarded_turn(begun + written, self._guard),
        }

    def _rendered(self, turn: int, sampled: Mapping[int, str]) -> str:
        """The text of the next prompt."""
        renderer = self._renderer
        if self._moment is None:
            self._moment = Moment()
        if not turn:
            return renderer.first_text(self._guarded, self._guarded_tools, self._guard, self._moment)
        try:
            return renderer.text(self._guarded, self._guarded_tools, self._moment)
        except MessagesError:
            # It may refuse calls that were made, as Llama 3.1's does two in a turn: then the turn is shown as text.
            if turn not in sampled or not self._guarded[turn].get("tool_calls"):
                raise
            self._as_written |= {turn}
            shown = self._written(turn, sampled[turn])
            self._guarded = [*self._guarded[:turn], shown, *self._guarded[turn + 1 :]]
            return renderer.text(self._guarded, self._guarded_tools, self._moment)

    def _with_all_shown(self, turn: int, text: str) -> str:
        """The text of the prompt, in which every message that is new since the last one, at `turn`, is shown."""
        fitted, messages, tools = self._renderer.fitted, self._guarded, self._guarded_tools
        self._checked, again = fitted.check_shown(messages, tools, self._checked, turn, self._first)
        assert self._moment is not None
        return self._renderer.text(messages, tools, self._moment) if again else text

    def _end_of_turn(self, text: str, start: int, turn: int) -> int | None:
        """Where, in a rendered text, the template goes on after the turn that begins at `start`.

        None if it does not show all that the turn has, shows more, or if that cannot be told. Whitespace and how it
        writes the calls do not count: the prompt has the turn as it was sampled.
        """
        renderer, message, sampled = self._renderer, self._guarded[turn], self._turns[turn]
        content = message.get("content") or ""
        if not isinstance(content, str):
            return None
        calls, said = bool(message.get("tool_calls")), content.removeprefix(sampled.begun)
        thoughts = [message[key] for key in FIELDS if isinstance(message.get(key), str)]
        end = renderer.ends.search(text, start) if renderer.ends is not None else None
        if end is not None:
            body = text[start : end.start()]
            if (
                sampled.shown is not None and turn not in self._as_written
            ):  # guards are at the ends of texts, and do not count
                kept = shows_all(body.replace(self._guard, ""), [], sampled.shown, calls=calls)
            else:
                kept = shows_all(body, thoughts, said, calls=calls)
            return end.start() if kept and (not calls or renderer.ends_calls) else None
        if calls or thoughts:
            return None
        # The template never writes an end of a turn: what it writes after the content follows.
        written = said.strip()
        begin = text.find(written, start) if written else start
        return begin + len(written) if not text[start:begin].strip() and begin >= 0 else None


def _bytes(value: Any) -> bytes:
    """The value as bytes that tell it from others; empty if it cannot be written (it has lone surrogates)."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError):
        return b""
