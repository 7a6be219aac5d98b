"""The responses route of OpenAI (`POST /v1/responses`), read as the chat that it is: items as messages, events as pieces. Pure.

Source: the schemas of the openai package, `openai.types.responses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollcast.records.openai_piece import CallDelta, Piece
from rollcast.records.openai_request import WireRequest

__all__ = [
    "id_of_response",
    "is_of_responses",
    "pieces_of_event",
    "pieces_of_response",
    "request_of_responses",
]

_NOT_SAMPLING = frozenset(
    ["input", "instructions", "model", "tools", "stream", "stream_options", "previous_response_id", "conversation", "include", "store",
     "metadata", "user", "background", "prompt", "safety_identifier", "prompt_cache_key"]
)  # fmt: skip
_CALLS = ("function_call", "custom_tool_call")
_RESULTS = ("function_call_output", "custom_tool_call_output")


def request_of_responses(fields: Mapping[str, Any], before: Sequence[dict[str, Any]] = ()) -> WireRequest:
    """Read a request.

    Args:
        fields: the body.
        before: the messages that `previous_response_id` stands for.
    """
    messages = [*before]
    if isinstance(instructions := fields.get("instructions"), str) and instructions and not before:
        messages.append({"role": "system", "content": instructions})
    given = fields.get("input")
    messages += [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
    tools = fields.get("tools")
    model = fields.get("model")
    return WireRequest(
        kind="chat",
        model=model if isinstance(model, str) else "",
        messages=messages,
        tools=[dict(tool) for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else [],
        sampling={n: v for n, v in fields.items() if n not in _NOT_SAMPLING and v is not None},
        stream=fields.get("stream") is True,
        lacks="it goes to the responses route",
    )


def is_of_responses(fields: Mapping[str, Any]) -> bool:
    """Whether an event, or a whole answer, is of this route."""
    kind = fields.get("type")
    return fields.get("object") == "response" or (
        isinstance(kind, str)
        and (kind.startswith("response.") or (kind == "error" and "choices" not in fields))
    )


def id_of_response(fields: Mapping[str, Any]) -> str | None:
    """The response's id, which a later request may name, in an event or a whole answer; None if it is not there."""
    response = fields if fields.get("object") == "response" else fields.get("response")
    found = response.get("id") if isinstance(response, Mapping) else None
    return found if isinstance(found, str) else None


def pieces_of_event(event: Mapping[str, Any]) -> list[Piece]:
    """What an event of a stream says; empty if it says nothing that is shown."""
    kind = str(event.get("type"))
    delta, index = event.get("delta"), event.get("output_index")
    index = index if isinstance(index, int) else None
    if isinstance(delta, str):
        if kind in ("response.output_text.delta", "response.refusal.delta"):
            return [Piece(text=delta)]
        if kind in ("response.reasoning_text.delta", "response.reasoning_summary_text.delta"):
            return [Piece(reasoning=delta)]
        if kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
            return [Piece(calls=[CallDelta(index, "", "", delta)])]
        return []
    item = event.get("item")
    if kind == "response.output_item.added" and isinstance(item, Mapping) and item.get("type") in _CALLS:
        return [Piece(calls=[CallDelta(index, _text(item.get("call_id")), _text(item.get("name")))])]
    if kind in ("response.completed", "response.incomplete", "response.failed") and isinstance(
        response := event.get("response"), Mapping
    ):
        return [_end_of(response), Piece(done=True)]
    if kind == "error":
        return [Piece(error=_text(event.get("message")) or "the engine failed")]
    return []


def pieces_of_response(response: Mapping[str, Any]) -> list[Piece]:
    """The same for an answer that did not stream: one piece."""
    piece = _end_of(response)
    texts, thoughts, calls = [], [], []
    output = response.get("output")
    for at, item in enumerate(output if isinstance(output, list) else ()):
        if not isinstance(item, Mapping):
            continue
        if item.get("type") == "message":
            texts.append(_joined(item.get("content")))
        elif item.get("type") == "reasoning":
            thoughts.append(_joined(item.get("content")) or _joined(item.get("summary")))
        elif item.get("type") in _CALLS:
            arguments = item.get("arguments", item.get("input"))
            calls.append(CallDelta(at, _text(item.get("call_id")), _text(item.get("name")), _text(arguments)))
    piece.text, piece.reasoning, piece.calls = "".join(texts), "".join(thoughts), calls
    return [piece]


def _end_of(response: Mapping[str, Any]) -> Piece:
    """How a response ended, and what was counted."""
    error, status, usage = response.get("error"), response.get("status"), response.get("usage")
    piece = Piece(finish_reason="stop")
    if status == "incomplete":
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, Mapping) else None
        piece.finish_reason = "length" if reason == "max_output_tokens" else "stop"
    elif status == "cancelled":
        piece.finish_reason = "abort"
    elif status == "failed" or isinstance(error, Mapping):
        piece.error = (
            _text(error.get("message")) if isinstance(error, Mapping) else ""
        ) or "the engine failed"
    if isinstance(usage, Mapping):
        piece.usage = {
            "prompt_tokens": usage.get("input_tokens"),
            "completion_tokens": usage.get("output_tokens"),
        }
    return piece


def _messages(items: Any) -> list[dict[str, Any]]:
    """Items as messages: what the assistant said and called one after the other is one message."""
    messages: list[dict[str, Any]] = []
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, Mapping):
            continue
        kind = item.get("type", "message")
        if kind in _RESULTS:
            content = item.get("output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": _parts(content)})
        elif kind in _CALLS:
            arguments = item.get("arguments", item.get("input"))
            function = {"name": _text(item.get("name")), "arguments": _text(arguments)}
            call = {"id": _text(item.get("call_id")), "type": "function", "function": function}
            _assistant(messages).setdefault("tool_calls", []).append(call)
        elif kind == "message" and item.get("role") == "assistant":
            said = _assistant(messages)
            said["content"] = (said["content"] or "") + _joined(item.get("content"))
        elif kind == "message":
            messages.append({"role": item.get("role"), "content": _parts(item.get("content"))})
    return messages


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that an item belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _parts(content: Any) -> Any:
    """A content with text parts named as in chats."""
    if not isinstance(content, list):
        return content
    return [
        {"type": "text", "text": part["text"]} if isinstance(part, Mapping) and isinstance(part.get("text"), str) else part
        for part in content
    ]  # fmt: skip


def _joined(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return "".join(_text(part.get("text", part.get("refusal"))) for part in parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
