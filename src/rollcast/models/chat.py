"""Messages to token ids through a Jinja chat template: turn by turn, on the ids that were sampled.

Two things must hold of a prompt. Text from outside stays text (`guard.py`). And what was sampled stands in it as the
ids that were sampled: the next prompt is those ids and what the template writes after them. That is right only as long as
the template still shows everything before as it did. Many do not: they drop the reasoning of earlier turns, or move the
tools to the last question. So each prompt is rendered as a whole, and compared with the one before as text. Where it no
longer begins with what the model has seen, it is encoded afresh.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
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
from rollcast.models.sampled import SampledTurn, given, keeps, squashed
from rollcast.models.template import ChatTemplate
from rollcast.records import Message

__all__ = ["TemplateConversation", "TemplateRenderer"]

logger = logging.getLogger("rollcast.models")

_NOTHING: Mapping[int, str] = {}

_PROBE_ARGUMENT, _PROBE_RESULT = "argument7f3a91", "result5c2e77"
_PROBE: list[dict[str, Any]] = [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_1_0",
                "type": "function",
                "function": {"name": "probe", "arguments": {"value": _PROBE_ARGUMENT}},
            }
        ],
    },
    {"role": "tool", "content": _PROBE_RESULT, "tool_call_id": "call_1_0", "name": "probe"},
]


class TemplateRenderer:
    """A `ChatRenderer` over any Hugging Face chat template and fast tokenizer.

    The ids of a prompt are those of `apply_chat_template` as long as no text from outside contains the string of an added
    token. From outside is everything in the messages and tools: contents of every role, names, descriptions, arguments.
    An assistant message of a row (a demonstration) is no exception: give its calls in `tool_calls` and its reasoning in
    `reasoning_content`, which the template renders; `arguments` that are a JSON object in a string are rendered as that
    object. Turns that the model itself sampled keep the tags around their reasoning.

    A template without a system role (Gemma 2) gets the system message before the first user message, with an empty line
    between, as https://ai.google.dev/gemma/docs/core/prompt-structure advises. One that wants call ids of nine letters and digits (Mistral) gets such.

    Added tokens of whitespace alone, which some tokenizers have, say nothing and are left alone.

    Args:
        tokenizer: a fast tokenizer; it is only read.
        template: the Jinja source.
        special_tokens: what the template may name: `bos_token`, `eos_token` …
        eos_token_ids: which end the assistant's turn.
        template_kwargs: further variables of the template, `enable_thinking` …
        max_characters: of all contents together; more is refused before it is encoded. None: no limit.

    Raises:
        InputError: the template is not valid Jinja.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        special_tokens: Mapping[str, str],
        eos_token_ids: Collection[int],
        template_kwargs: Mapping[str, Any] | None = None,
        max_characters: int | None = None,
    ) -> None:
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_characters = max_characters
        self.codec = Codec(tokenizer)
        self.ends = self.codec.pattern(self.eos_token_ids)
        self._source = template
        self._template = ChatTemplate(template, {**special_tokens, **(template_kwargs or {})})
        self._adaptations: tuple[Adaptation, ...] = ()
        self._guarded_tools: tuple[bytes, Any] = (b"", None)
        self._seen_tools: set[bytes] = set()  # that the template was found to show

    @classmethod
    def from_folder(
        cls, folder: str | Path, eos_token_ids: Collection[int], **template_kwargs: Any
    ) -> TemplateRenderer:
        """From `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` (or the config's `chat_template`).

        Raises:
            InputError: one of them is missing or broken.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        except Exception as error:  # the tokenizers package raises bare Exception for a broken file
            raise InputError(f"{path} cannot be read ({error}); expected a fast tokenizer") from error
        config = _read_object(folder / "tokenizer_config.json")
        template_path = folder / "chat_template.jinja"
        template = template_path.read_text("utf-8") if template_path.exists() else config.get("chat_template")
        if not isinstance(template, str):
            raise InputError(
                f"{folder} has no chat template; expected chat_template.jinja, or one in tokenizer_config.json"
            )
        special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        return cls(tokenizer, template, special, eos_token_ids, template_kwargs)

    def conversation(self, tools: list[dict[str, Any]]) -> TemplateConversation:
        """The prompts of one chain with these tools, turn by turn. It remembers what it rendered: the way of a rollout."""
        return TemplateConversation(self, tools)

    def render(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
        """Ids of the whole prompt, shape (T,), up to where the assistant speaks.

        Raises:
            MessagesError: the template refuses the messages, or does not show the tools or what tools give.
            PromptTooLongError: they are longer than `max_characters`.
        """
        return self.conversation(tools).prompt(messages)[0]

    def extend(
        self, ids: list[int], messages: list[Message], new: int, tools: list[dict[str, Any]]
    ) -> list[int] | None:
        """Ids, shape (T,), that come after `ids` so that the last `new` of the messages stand and the assistant speaks.

        `ids` end with what the assistant sampled last; its message stands before the `new` ones. Nothing of `ids` is
        encoded again. Where they do not end the turn (the generation was cut), the template's end comes first. None where
        the template would show what stands before otherwise than `ids` have it: render the whole.

        Raises:
            MessagesError: there is no assistant message at that place, or the template refuses the messages.
        """
        last = len(messages) - new - 1
        if not 0 <= last < len(messages) or messages[last]["role"] != "assistant":
            raise MessagesError(
                f"the message before the last {new} of {len(messages)} is not the assistant's; "
                "extend needs the conversation as it was sampled, then what is new"
            )
        conversation = self.conversation(tools)
        conversation.seen(messages[:last])
        content = messages[last].get("content")
        sampled = {last: content if isinstance(content, str) else ""}
        following, whole = conversation.prompt(messages, ids, sampled)
        return None if whole else following

    # -- what a conversation asks --------------------------------------------------------------------------------------

    def text(self, messages: list[dict[str, Any]], tools: Any) -> str:
        """The rendered text of guarded messages and tools, adapted to what the template takes.

        Raises:
            MessagesError: the template refuses them.
        """
        for adapt in self._adaptations:
            messages = adapt(messages)
        try:
            return self._template.text(messages, tools)
        except MessagesError:
            for further in ((_short_call_ids,), (_merged_system,), (_merged_system, _short_call_ids)):
                text = self._adapted(messages, tools, further)
                if text is not None:
                    return text
            raise

    def _adapted(
        self, messages: list[dict[str, Any]], tools: Any, further: tuple[Adaptation, ...]
    ) -> str | None:
        """The text where these adaptations make the template take the messages; they stay, then."""
        changed = messages
        for adapt in further:
            changed = adapt(changed)
        if changed == messages:
            return None
        try:
            text = self._template.text(changed, tools)
        except MessagesError:
            return None
        self._adaptations += further
        if _merged_system in further:
            logger.warning(
                "the chat template has no system role; the system message is put before the first user message"
            )
        return text

    def first_text(self, messages: list[dict[str, Any]], tools: Any, guard: str) -> str:
        """As `text`, for a chain's first prompt, of which the template has to show everything.

        Raises:
            MessagesError: it refuses the messages, or shows no system message, no tools or nothing of what tools give.
        """
        text = self.text(messages, tools)
        system = messages[0].get("content") if messages[0]["role"] == "system" else None
        if isinstance(system, str) and system not in text and squashed(system) not in squashed(text):
            merged = self._adapted(messages, tools, (_merged_system,))
            if merged is None or squashed(system) not in squashed(merged):
                raise MessagesError(
                    "the chat template of this model does not show the system message; put it into the first user message"
                )
            text = merged
        if tools:
            self._check_tools(messages, tools, text, guard)
        return text

    def _check_tools(self, messages: list[dict[str, Any]], tools: Any, text: str, guard: str) -> None:
        """Once for each set of tools: the model is told of them and of what they give."""
        key = _bytes(tools)
        if key in self._seen_tools:
            return
        problem = None
        if text == self.text(messages, None):
            names = ", ".join(str(tool.get("function", tool).get("name")) for tool in tools)
            problem = f"does not show tools, so the model cannot know of {names.replace(guard, '')}"
        else:
            try:
                told = self.text([*messages, *_PROBE], tools)
            except MessagesError as error:
                problem = f"does not take a tool's result ({error})"
            else:
                if _PROBE_RESULT not in told:
                    problem = "does not show what tools give"
        if problem is not None:
            raise MessagesError(
                f"the chat template of this model {problem}; use a ReactAgent or a CodeAgent, which tell the model of its "
                "tools in plain messages, or a model whose template shows tools"
            )
        self._seen_tools.add(key)

    @cached_property
    def ends_calls(self) -> bool:
        """Whether the template writes an end of the turn after tool calls, as it does after an answer."""
        called, result = self._probed.find(_PROBE_ARGUMENT), self._probed.find(_PROBE_RESULT)
        if self.ends is None or not 0 <= called < result:
            return False
        return self.ends.search(self._probed, called, result) is not None

    @cached_property
    def hides_calls(self) -> bool:
        """Whether the template writes a turn's content and not its `tool_calls`, as LFM2's does."""
        return _PROBE_RESULT in self._probed and _PROBE_ARGUMENT not in self._probed

    @cached_property
    def _probed(self) -> str:
        """What the template makes of a call and its result; empty where it refuses them."""
        try:
            return self.text([{"role": "user", "content": "hello"}, *_PROBE], None)
        except MessagesError:
            return ""

    @cached_property
    def reasoning_field(self) -> str | None:
        """Under which key the template reads a turn's reasoning; None: it reads none, so it is in the text, if anywhere."""

        def text(messages: list[dict[str, Any]]) -> str:
            try:
                return self.text(messages, None)
            except MessagesError:
                return ""

        return field_read(self._source, text, _PROBE)

    @property
    def splits_turns(self) -> bool:
        """Whether the template looks for the tags in a turn's text, as DeepSeek's does to drop what was thought."""
        return bool(self._families[0])

    @cached_property
    def _families(self) -> tuple[tuple[Family, ...], Mapping[int, str]]:
        tags = [tag for family in FAMILIES for tag in (*family.openings, family.closing)]
        return families_of(self._source), self.codec.token_ids(tags)

    def thinking(self, prompt: str) -> Thinking:
        """What is known of the reasoning of the turn that follows on this prompt."""
        return thinking_after(prompt, *self._families)

    def readable(self, message: Message) -> Mapping[str, Any]:
        """The message as the template reads it: one that writes contents as text gets the text of content in parts."""
        content = message.get("content")
        if not isinstance(content, list | tuple) or self._reads_parts:
            return _with_objects(message)
        for part in content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise MessagesError(
                    f"the content of a {message['role']} message has a part of type {part.get('type')!r}; the chat "
                    "template of this model reads text alone"
                )
        return _with_objects({**message, "content": "".join(part["text"] for part in content)})

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template takes content in parts apart, instead of writing Python's text of the list."""
        parts = [{"type": "text", "text": "hello", "unread": "7f3a91"}]
        try:
            text = self._template.text([{"role": "user", "content": parts}], None)
        except MessagesError:
            return False
        return "hello" in text and "7f3a91" not in text

    def guarded_tools(self, tools: list[dict[str, Any]], guard: str) -> Any:
        """The guarded tools; mostly those of the last time. None where there are none."""
        key = _bytes((tools, guard))
        known, guarded = self._guarded_tools
        if not key or key != known:
            guarded = self.codec.guarded(tools, guard) or None
            self._guarded_tools = key, guarded
        return guarded


class TemplateConversation:
    """A `Conversation` of a `TemplateRenderer`: it remembers the text of the last prompt, and compares the next with it."""

    def __init__(self, renderer: TemplateRenderer, tools: list[dict[str, Any]]) -> None:
        self._renderer = renderer
        self._tools = tools
        self._guard = ""
        self._guarded_tools: Any = None
        self._guarded: list[dict[str, Any]] = []
        self._text = ""  # of the last prompt
        self._as_written: frozenset[int] = frozenset()  # turns that are shown as text, calls and all
        self._turns: dict[int, SampledTurn] = {}
        self._characters = 0

    @property
    def thinking(self) -> Thinking:
        """What is known of the reasoning of the turn that follows on the last prompt."""
        return self._renderer.thinking(self._text)

    def copy(self) -> Self:
        """For a chain that begins with the same messages."""
        return copy.copy(self)  # what it holds is replaced, never changed

    def seen(self, messages: Sequence[Message]) -> None:
        """Begin behind a prompt of these messages: the model has seen them.

        Raises:
            MessagesError: the template refuses them, or does not show the tools or what tools give.
            PromptTooLongError: they are longer than `max_characters`.
        """
        self._add(messages, _NOTHING)
        self._text = self._rendered(0, _NOTHING)

    def prompt(
        self,
        messages: Sequence[Message],
        ids: Sequence[int] = (),
        sampled: Mapping[int, str] = _NOTHING,
    ) -> tuple[list[int], bool]:
        """See `Conversation.prompt`.

        Raises:
            MessagesError: the template refuses the messages, or does not show the tools or what tools give.
            PromptTooLongError: they are longer than `max_characters`.
        """
        renderer = self._renderer
        turn = len(self._guarded)  # the index of the message that was sampled, if there was a prompt before
        if turn in sampled:
            opened = left_open(self._text)
            turns = SampledTurn(sampled[turn], "" if opened is None else opened[1], self.thinking)
            self._turns = {**self._turns, turn: turns}
        self._add(messages, sampled)
        seen, text = self._text, self._rendered(turn, sampled)
        self._text = text
        if text == seen:
            raise MessagesError(
                "the chat template shows nothing of the messages that are new, so the conversation cannot go on; use one "
                "that writes the assistant's turns and what follows them"
            )
        if not text.startswith(seen):
            seen = seen.rstrip()  # whitespace where a turn begins is the turn's
        end = None
        if ids and turn in sampled and text.startswith(seen):
            end = self._end_of_turn(text, len(seen), turn)
        if end is None:
            return renderer.codec.encode(text, self._guard), True
        following = renderer.codec.encode(text[end:], self._guard)
        # The turn may have ended with another of the end tokens than the template writes: what was sampled counts.
        ends = renderer.eos_token_ids
        ended = bool(following) and ids[-1] in ends and following[0] in ends
        return following[1:] if ended else following, False

    def _add(self, messages: Sequence[Message], sampled: Mapping[int, str]) -> None:
        """Guard the messages that are new."""
        renderer, codec = self._renderer, self._renderer.codec
        new = messages[len(self._guarded) :]
        for message in new:
            content = message.get("content")
            self._characters += len(content) if isinstance(content, str) else 0
        if renderer.max_characters is not None and self._characters > renderer.max_characters:
            raise PromptTooLongError(
                f"the messages have {self._characters} characters; expected at most {renderer.max_characters}, which is "
                "more than fits this model's context: shorten the conversation, or use a larger model"
            )
        if not self._guard or codec.occurs(self._guard, new):
            before, self._guard = self._guard, codec.free_character((messages, self._tools))
            self._guarded_tools = renderer.guarded_tools(self._tools, self._guard)
            if before:  # the new guard stands in none of these texts either
                self._text = self._text.replace(before, self._guard)
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
            kept: Any = given(message, field)
            shown: dict[str, Any] = codec.guarded(renderer.readable(kept), guard)
            if written is not None and isinstance(message["content"], str):
                shown["content"] = codec.guarded_turn(message["content"], guard)
            return shown
        kept = turn.message(message, field, splits=renderer.splits_turns)
        shown = codec.guarded(renderer.readable(kept), guard)
        if turn.shown is None or field is None:
            shown["content"] = codec.guarded_turn(kept["content"], guard)
        return shown

    def _written(self, index: int, written: str) -> dict[str, Any]:
        """A turn as it was written, calls and all."""
        begun = self._turns[index].begun if index in self._turns else ""
        return {
            "role": "assistant",
            "content": self._renderer.codec.guarded_turn(begun + written, self._guard),
        }

    def _rendered(self, turn: int, sampled: Mapping[int, str]) -> str:
        """The text of the next prompt."""
        renderer = self._renderer
        if not turn:
            return renderer.first_text(self._guarded, self._guarded_tools, self._guard)
        try:
            return renderer.text(self._guarded, self._guarded_tools)
        except MessagesError:
            # It may refuse calls that were made, as Llama 3.1's does two in a turn: then the turn is shown as text.
            if turn not in sampled or not self._guarded[turn].get("tool_calls"):
                raise
            self._as_written |= {turn}
            shown = self._written(turn, sampled[turn])
            self._guarded = [*self._guarded[:turn], shown, *self._guarded[turn + 1 :]]
            return renderer.text(self._guarded, self._guarded_tools)

    def _end_of_turn(self, text: str, start: int, turn: int) -> int | None:
        """Where, in a rendered text, the template goes on behind the turn that begins at `start`.

        None where it does not show all that the turn has, shows more, or where that cannot be told. How it writes the
        calls, and whitespace, do not count: the turn stands in the prompt as it was sampled.
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
            ):  # guards stand where texts end: they do not count
                kept = keeps(body.replace(self._guard, ""), [], sampled.shown, calls=calls)
            else:
                kept = keeps(body, thoughts, said, calls=calls)
            return end.start() if kept and (not calls or renderer.ends_calls) else None
        if calls or thoughts:
            return None
        # A template that writes no end of a turn at all: what it writes after the content follows.
        written = said.strip()
        begin = text.find(written, start) if written else start
        return begin + len(written) if not text[start:begin].strip() and begin >= 0 else None


Adaptation = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def _merged_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system message before the text of the first user message."""
    if len(messages) < 2 or (messages[0]["role"], messages[1]["role"]) != ("system", "user"):
        return messages
    system, user = messages[0].get("content"), messages[1].get("content")
    if not isinstance(system, str) or not isinstance(user, str):
        return messages
    return [{**messages[1], "content": f"{system}\n\n{user}"}, *messages[2:]]


def _short_call_ids(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Call ids of nine letters and digits; those that are such stay."""
    changed = []
    for message in messages:
        ids: dict[str, Any] = {}
        if "tool_call_id" in message:
            ids["tool_call_id"] = _short(message["tool_call_id"])
        if isinstance(calls := message.get("tool_calls"), list):
            ids["tool_calls"] = [{**call, "id": _short(call.get("id"))} for call in calls]
        changed.append({**message, **ids})
    return changed


def _short(call_id: Any) -> Any:
    if not isinstance(call_id, str) or (len(call_id) == 9 and call_id.isascii() and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _with_objects(message: Message) -> Mapping[str, Any]:
    """The message with its calls' arguments as objects, where the API's format has JSON in a string; else as it is."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not any(isinstance(_arguments(call), str) for call in calls):
        return message
    copied: dict[str, Any] = copy.deepcopy(dict(message))
    for call in copied["tool_calls"]:
        written = _arguments(call)
        if isinstance(written, str):
            try:
                arguments = json.loads(written)
            except ValueError:
                continue  # a demonstration of a malformed call: the template writes it as it is
            if isinstance(arguments, dict):
                call.get("function", call)["arguments"] = arguments
    return copied


def _arguments(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    return function.get("arguments") if isinstance(function, dict) else None


def _bytes(value: Any) -> bytes:
    """The value as bytes that tell it from others; empty where it cannot be written (it has lone surrogates)."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError):
        return b""


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a tokenizer's configuration") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} has {type(value).__name__}; expected a JSON object")
    return value
