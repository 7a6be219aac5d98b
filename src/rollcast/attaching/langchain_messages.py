"""What LangChain's messages, chunks and answers say, as plain values. LangChain is not imported: its objects are read by their fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rollcast.records import Message, ToolCall
from rollcast.records.event import GenerationFinishReason
from rollcast.records.jsonable import as_json

__all__ = [
    "Answer",
    "Piece",
    "answer_of",
    "as_messages",
    "key_of",
    "observation_of",
    "piece_of",
    "piece_of_event",
    "text_in",
]

_ROLES = {
    "human": "user", "user": "user", "ai": "assistant", "assistant": "assistant", "system": "system", "developer": "developer",
    "tool": "tool", "function": "tool",
}  # fmt: skip
_REASONING = {"reasoning": "reasoning", "thinking": "thinking"}  # by a block's type, the field with its text
_OUT_OF_ROOM = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})


class Piece(NamedTuple):
    """New text of a generation, the reasoning in it, and its tokens if the model's integration hands them on."""

    text: str
    reasoning: str
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None


class Answer(NamedTuple):
    """What a model call came to.

    Attributes:
        message: as `trajectory.messages` has it.
        text: the whole answer without its reasoning.
        reasoning: the reasoning before it.
        calls: the tool calls that it asks for.
        finish_reason: why it ended.
        completion_tokens, prompt_tokens: as the server counted them; None if it did not.
    """

    message: Message
    text: str
    reasoning: str
    calls: list[ToolCall]
    finish_reason: GenerationFinishReason
    completion_tokens: int | None
    prompt_tokens: int | None


# -- messages ----------------------------------------------------------------------------------------------------------


def as_messages(given: Any) -> list[Message]:
    """The messages in the form that trajectories have; those that are none are left out.

    Args:
        given: messages of LangChain, or what it takes in their place: text, pairs of a role and text, dicts.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        given = [given]
    return [message for each in given if (message := _as_message(each)) is not None]


def _as_message(given: Any) -> Message | None:
    if isinstance(given, str):
        return {"role": "user", "content": given}
    if isinstance(given, tuple) and len(given) == 2:
        given = {"role": given[0], "content": given[1]}
    field: Any = (
        given.get if isinstance(given, Mapping) else lambda name, default=None: getattr(given, name, default)
    )
    kind = field("role") or field("type")
    if not isinstance(kind, str) or kind == "remove":
        return None
    role = _ROLES.get(kind.removesuffix("MessageChunk").lower(), "user")
    message: dict[str, Any] = {"role": role, "content": _content_of(field("content"), role)}
    if role == "assistant":
        if reasoning := _reasoning_of(field("content"), field("additional_kwargs")):
            message["reasoning_content"] = reasoning
        if calls := _calls_of(field("tool_calls"), field("invalid_tool_calls")):
            message["tool_calls"] = calls
    elif role == "tool":
        message["tool_call_id"] = str(field("tool_call_id") or "")
    if isinstance(name := field("name"), str) and name:
        message["name"] = name
    return message  # type: ignore[return-value]  # built field by field


def _content_of(content: Any, role: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return "" if content is None else str(as_json(content))
    if role == "assistant" or all(isinstance(part, str) for part in content):
        return text_in(content)
    return [_part_of(part) for part in content]


def _part_of(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    described = as_json(part)
    if isinstance(described, dict):
        return described if isinstance(described.get("type"), str) else {"type": "other", **described}
    return {"type": "text", "text": str(described)}


def text_in(content: Any) -> str:
    """The text in a message's content, which is text or a list of text and blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    texts = [
        part if isinstance(part, str) else part.get("text")
        for part in content
        if isinstance(part, str) or (isinstance(part, Mapping) and part.get("type") == "text")
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _reasoning_of(content: Any, beside: Any) -> str:
    """The reasoning in a message: a block of its content, or what an integration puts beside that."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        blocks = [part for part in content if isinstance(part, Mapping)]
        texts = [block.get(_REASONING.get(str(block.get("type")), "")) for block in blocks]
        if whole := "".join(text for text in texts if isinstance(text, str)):
            return whole
    if isinstance(beside, Mapping):
        found = beside.get("reasoning_content") or beside.get("reasoning")
        return found if isinstance(found, str) else ""
    return ""


def _calls_of(calls: Any, invalid: Any) -> list[dict[str, Any]]:
    found = []
    for call in [*(calls or ()), *(invalid or ())]:
        arguments = call.get("args")
        text = (
            arguments
            if isinstance(arguments, str)
            else json.dumps(as_json(arguments or {}), ensure_ascii=False)
        )
        about = {"name": str(call.get("name") or ""), "arguments": text}
        found.append({"id": str(call.get("id") or ""), "type": "function", "function": about})
    return found


def key_of(message: Message) -> tuple[Any, ...]:
    """What two copies of one message share, however they came here."""
    content = message["content"]
    text = content if isinstance(content, str) else text_in(content)
    others = (
        0 if isinstance(content, str) or content is None else sum(p.get("type") != "text" for p in content)
    )
    calls = tuple(call.get("id") for call in message.get("tool_calls", ()))
    return message["role"], text, others, calls, message.get("tool_call_id")


# -- what a model sends ------------------------------------------------------------------------------------------------


def piece_of(token: Any, chunk: Any) -> Piece:
    """A token of `on_llm_new_token`. What belongs to a tool call is left out, since the call shows it."""
    message = getattr(chunk, "message", None)
    if message is None:
        text, reasoning = text_in(token), ""
    else:
        text, reasoning = text_in(message.content), _reasoning_of(message.content, message.additional_kwargs)
    about = getattr(chunk, "generation_info", None) or getattr(message, "response_metadata", None)
    return Piece(text, reasoning, *_tokens_of(about)) if about else Piece(text, reasoning)


def piece_of_event(event: Any) -> Piece | None:
    """A part of an answer in the protocol of `stream_events(version="v3")`; None if it has no text."""
    if event.get("event") != "content-block-delta":
        return None
    delta = event.get("delta") or {}
    match delta.get("type"):
        case "text-delta":
            return Piece(str(delta.get("text") or ""), "")
        case "reasoning-delta":
            return Piece("", str(delta.get("reasoning") or ""))
    return None


def _tokens_of(about: Any) -> tuple[list[int] | None, list[float] | None]:
    """The ids and log-probabilities of a chunk, if its integration hands them on. Log-probabilities without ids are of no use."""
    if not isinstance(about, Mapping):
        return None, None
    ids = about.get("token_ids")
    if not isinstance(ids, list) or not ids or not all(type(each) is int for each in ids):
        return None, None
    logprobs = about.get("logprobs")
    if isinstance(logprobs, Mapping):
        logprobs = [each.get("logprob") for each in logprobs.get("content") or ()]
    if (
        isinstance(logprobs, list)
        and len(logprobs) == len(ids)
        and all(type(each) is float for each in logprobs)
    ):
        return [*ids], [*logprobs]
    return [*ids], None


def answer_of(generation: Any, about_all: Any) -> Answer:
    """What `on_llm_end` has for a model call.

    Args:
        generation: the first of its generations.
        about_all: the `llm_output` of all of them.
    """
    message = getattr(generation, "message", None)
    about: dict[str, Any] = dict(getattr(generation, "generation_info", None) or {})
    if message is None:  # a model that completes text
        text, reasoning = str(getattr(generation, "text", "")), ""
        said: Message = {"role": "assistant", "content": text}
    else:
        text, reasoning = text_in(message.content), _reasoning_of(message.content, message.additional_kwargs)
        about.update(message.response_metadata or {})
        said = _as_message(message) or {"role": "assistant", "content": text}
    calls = [_asked(call) for call in said.get("tool_calls", ())]
    prompt, completion = _usage_of(message, about_all)
    return Answer(said, text, reasoning, calls, _finish_reason(about, calls), completion, prompt)


def _asked(call: dict[str, Any]) -> ToolCall:
    about = call["function"]
    try:
        arguments = json.loads(about["arguments"])
    except ValueError:
        arguments = None
    whole = arguments if isinstance(arguments, dict) else about["arguments"]
    return ToolCall(call["id"], about["name"], whole)


def _finish_reason(about: Mapping[str, Any], calls: list[ToolCall]) -> GenerationFinishReason:
    why = about.get("finish_reason") or about.get("stop_reason") or about.get("done_reason")
    if isinstance(why, str) and why.lower() in _OUT_OF_ROOM:
        return "length"
    return "tool_call" if calls else "stop"


def _usage_of(message: Any, about_all: Any) -> tuple[int | None, int | None]:
    """The tokens of the prompt and of the answer."""
    usage = getattr(message, "usage_metadata", None)
    names = ("input_tokens", "output_tokens")
    if not usage and isinstance(about_all, Mapping):
        usage, names = (
            about_all.get("token_usage") or about_all.get("usage"),
            ("prompt_tokens", "completion_tokens"),
        )
    if not isinstance(usage, Mapping):
        return None, None
    prompt, completion = (usage.get(name) for name in names)
    return prompt if type(prompt) is int else None, completion if type(completion) is int else None


def observation_of(output: Any) -> tuple[str, bool]:
    """The text that a tool returned, and whether it is an error that the tool reports itself."""
    if isinstance(output, str):
        return output, False
    update = getattr(
        output, "update", None
    )  # a LangGraph `Command`, which has the message in the state that it changes
    if not callable(update) and isinstance(update, Mapping):
        messages = update.get("messages")
        output = messages[-1] if isinstance(messages, Sequence) and messages else update
    if getattr(output, "type", None) == "tool":
        content = output.content
        text = content if isinstance(content, str) else text_in(content) or _as_text(content)
        return text, getattr(output, "status", "success") == "error"
    return _as_text(output), False


def _as_text(value: Any) -> str:
    plain = as_json(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
