"""A request to an engine that speaks OpenAI: what is read of it, and what keeps it from being made a stream. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from rollcast.errors import InputError
from rollcast.records.openai_piece import fit_64_bits

__all__ = ["RequestKind", "WireRequest", "kind_of", "request_of"]

RequestKind = Literal["chat", "completions", "generate"]

_PATHS: tuple[tuple[str, RequestKind], ...] = (
    ("/chat/completions", "chat"),
    ("/completions", "completions"),
    ("/generate", "generate"),
)
# The fields that say what to ask, not how to sample.
_NOT_SAMPLING = frozenset(
    [
        "model", "messages", "prompt", "tools", "functions", "stream", "stream_options", "user", "metadata", "input_ids", "token_ids",
        "text", "sampling_params", "features", "request_id", "rid", "session_id", "cache_salt", "prompt_embeds", "store",
        "safety_identifier", "prompt_cache_key",
    ]
)  # fmt: skip
# What an answer may have only if it does not stream, or what streams of one chain cannot hold.
_LACKING_IF_TRUE = (
    "echo",
    "use_beam_search",
    "return_routed_experts",
    "return_hidden_states",
    "return_prompt_text",
    "background",
)
_LACKING_IF_GIVEN = (
    "prompt_logprobs",
    "prompt_embeds",
    "stream_options",  # only a stream may have them: an engine refuses the others
    "audio",
    "kv_transfer_params",
    "ec_transfer_params",
    "routed_experts_prompt_start",
)


class WireRequest(msgspec.Struct, kw_only=True):
    """One request.

    Attributes:
        kind: which route it goes to.
        model: the model that it names; empty if it names none.
        messages: the conversation, if it is a chat.
        prompt_token_ids: the prompt as ids, shape (T,), if it is given so.
        prompt: the prompt as text, if it is given so.
        tools: the schemas of the tools.
        sampling: how to sample: the other fields, and those of `sampling_params`.
        stream: whether the caller asked for a stream.
        lacks: why it cannot be made a stream that gives the same answer, in a sentence; None if it can.
    """

    kind: RequestKind
    model: str = ""
    messages: list[dict[str, Any]] = []
    prompt_token_ids: list[int] | None = None
    prompt: str | None = None
    tools: list[dict[str, Any]] = []
    sampling: dict[str, Any] = {}
    stream: bool = False
    lacks: str | None = None

    @property
    def tool_names(self) -> list[str]:
        """The names of the tools."""
        functions = (tool.get("function", tool) for tool in self.tools)
        names = (function.get("name") for function in functions if isinstance(function, Mapping))
        return [name for name in names if isinstance(name, str)]


def kind_of(path: str) -> RequestKind | None:
    """The kind of request that goes to a path, whatever stands before it; None if no answer of a model comes from there."""
    path = path.partition("?")[0].rstrip("/")
    return next((kind for end, kind in _PATHS if path.endswith(end)), None)


def request_of(route: str, body: bytes | Mapping[str, Any]) -> WireRequest:
    """Read a request.

    Args:
        route: `chat`, `completions` or `generate`, or the path that it goes to.
        body: the JSON, or what it decodes to. It is not changed.

    Raises:
        InputError: the route has no answers of a model, or the body is not a JSON object.
    """
    kind: Any = route if route in ("chat", "completions", "generate") else kind_of(route)
    if kind is None:
        raise InputError(f"{route!r} is no route of a model's answers; expected one that ends with " + ", ".join(
            end for end, _ in _PATHS
        ))  # fmt: skip
    fields = _object(body)
    request = WireRequest(kind=kind, model=_text(fields.get("model")), stream=fields.get("stream") is True)
    inner = fields.get("sampling_params")
    sampling = dict(inner) if kind == "generate" and isinstance(inner, Mapping) else {}
    sampling.update((name, value) for name, value in fields.items() if name not in _NOT_SAMPLING)
    request.sampling = {
        name: value for name, value in sampling.items() if value is not None and name != "messages"
    }
    several = False
    if kind == "chat":
        messages: Any = fields.get("messages")
        request.messages = [dict(m) for m in messages if isinstance(m, Mapping)] if _is_list(messages) else []
        tools: Any = fields.get("tools") or fields.get("functions")
        request.tools = [dict(tool) for tool in tools if isinstance(tool, Mapping)] if _is_list(tools) else []
        request.prompt_token_ids = _ids(fields.get("input_ids"))
    else:
        names = ("prompt",) if kind == "completions" else ("token_ids", "input_ids", "text")
        prompt = next((fields[name] for name in names if fields.get(name) is not None), None)
        several = _read_prompt(request, prompt)
    if several:
        request.lacks = "it has several prompts"
    elif fields.get("stream") is not None and not isinstance(fields["stream"], bool):
        request.lacks = "its stream is not true or false"  # and many engines read 1 or "true" as true
    else:
        request.lacks = _lacks(request.sampling | _given(fields))
    return request


def _object(body: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(body, Mapping):
        return body
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the request is not JSON ({error}); expected an object") from None
    if not isinstance(fields, dict):
        raise InputError(f"the request is {type(fields).__name__}; expected a JSON object")
    return fields


def _read_prompt(request: WireRequest, prompt: Any) -> bool:
    """Take the prompt, of whatever form; whether there are several, none of which is taken."""
    if isinstance(prompt, str):
        request.prompt = prompt
        return False
    if (ids := _ids(prompt)) is not None:
        request.prompt_token_ids = ids
        return False
    if _is_list(prompt) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        return _read_prompt(request, prompt[0])
    return _is_list(prompt) and len(prompt) > 1


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    names = ("prompt_embeds",) if fields.get("stream") else ("prompt_embeds", "stream_options")
    return {name: fields[name] for name in names if fields.get(name) is not None}


def _lacks(asked: Mapping[str, Any]) -> str | None:
    """The first thing that a stream does not give."""
    for name in ("n", "best_of", "beam_width"):
        if isinstance(number := asked.get(name), int) and number > 1:
            return f"it asks for {name} = {number}"
    for name in _LACKING_IF_TRUE:
        if asked.get(name):
            return f"it asks for {name}"
    for name in _LACKING_IF_GIVEN:
        if asked.get(name) is not None:
            return f"it asks for {name}"
    start = asked.get("logprob_start_len")
    if isinstance(start, int) and start >= 0:
        return "it asks for log-probabilities of the prompt (logprob_start_len)"
    if isinstance(modalities := asked.get("modalities"), list) and modalities != ["text"]:
        return "it asks for modalities other than text"
    if any(asked.get(name) == 0 for name in ("max_tokens", "max_completion_tokens", "max_new_tokens")):
        return "it asks for no tokens"
    return None


def _ids(value: Any) -> list[int] | None:
    ids = isinstance(value, list) and value and all(each.__class__ is int for each in value)
    return value if ids and fit_64_bits(value) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
