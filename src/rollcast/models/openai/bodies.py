"""The bodies of requests, and what to leave out of the next one if a server refuses one. Pure."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollcast.models.backend import Sampling
from rollcast.models.openai.facts import ServerFacts
from rollcast.models.reasoning import FIELDS
from rollcast.records import Message

__all__ = ["adapted", "chat_body", "completion_body", "is_plain", "mixed_seed"]

# What a server may refuse although it can do without: it is left out from then on.
_DISPENSABLE = (
    "stream_options",
    "min_p",
    "repetition_penalty",
    "top_k",
    "top_p",
    "stop_token_ids",
    "seed",
    "parallel_tool_calls",
)
_RENAMED = {"max_tokens": "max_completion_tokens"}
_NEUTRAL: dict[str, Any] = {"top_k": (-1, 0), "top_p": (1.0,), "min_p": (0.0,), "repetition_penalty": (1.0,)}


def is_plain(sampling: Sampling) -> bool:
    """Whether the model's own distribution is sampled from, or its most probable token taken."""
    return sampling.temperature == 0 or (
        sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k == 0
    )


def mixed_seed(seed: int | None, attempt: int = 0) -> int:
    """A seed for a server: a server's default is the same for every request, so each request gets one of its own.

    The 63 bits are mixed: torch's generator on a CPU reads only the low 32, and vLLM takes -1 for no seed. A generation that
    is continued after an interruption gets another.
    """
    if seed is None:
        return secrets.randbits(63)
    text = str(seed) if attempt == 0 else f"{seed}/{attempt}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def completion_body(
    facts: ServerFacts,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    limit: int,
    end_ids: Sequence[int],
    attempt: int = 0,
) -> dict[str, Any]:
    """The body of `POST /v1/completions` for ids in and ids out.

    Everything that shapes the distribution is said, since vLLM takes what is missing from the model's generation_config.
    """
    body: dict[str, Any] = {
        "model": facts.model,
        "prompt": prompt_ids,
        "stream": True,
        "return_token_ids": True,
        "max_tokens": limit,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "top_k": min(sampling.top_k, 2**31 - 1) or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": mixed_seed(sampling.seed, attempt),
        "stop_token_ids": end_ids,
        "skip_special_tokens": False,
    }
    if facts.logprobs == "processed" or (facts.logprobs == "plain" and is_plain(sampling)):
        body["logprobs"] = 0
    return _as_taken(body, facts)


def chat_body(
    facts: ServerFacts, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], sampling: Sampling
) -> dict[str, Any]:
    """The body of `POST /v1/chat/completions`."""
    body: dict[str, Any] = {
        "model": facts.model,
        "messages": [_sent(message) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "seed": mixed_seed(sampling.seed) >> 32,  # OpenAI's is an integer that JavaScript can hold
    }
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if tools:
        body["tools"] = list(tools)
    return _as_taken(body, facts)


def _as_taken(body: dict[str, Any], facts: ServerFacts) -> dict[str, Any]:
    return {facts.renamed.get(name, name): value for name, value in body.items() if name not in facts.refused}


def _sent(message: Message) -> dict[str, Any]:
    """The message as OpenAI has it: arguments are JSON text, and reasoning is not sent back."""
    sent: dict[str, Any] = {key: value for key, value in message.items() if key not in FIELDS}
    calls = sent.get("tool_calls")
    if isinstance(calls, list):
        sent["tool_calls"] = [_sent_call(call) for call in calls]
    if sent.get("role") == "tool":
        sent.pop("name", None)  # the call's id tells it, and some servers refuse the field
    return sent


def _sent_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return call
    arguments = msgspec.json.encode(function.get("arguments") or {}).decode()
    return {**call, "function": {**function, "arguments": arguments}}


def adapted(facts: ServerFacts, body: Mapping[str, Any], said: str) -> str | None:
    """Learn from a refusal: which field to leave out or to rename from now on; None if the refusal names no such field.

    A field that changes what is sampled is left out only if it has the value that changes nothing.

    Args:
        facts: what is learned goes here.
        body: what was refused.
        said: the server's message.
    """
    for name, other in _RENAMED.items():
        if name in body and re.search(rf"\b{other}\b", said):
            facts.renamed[name] = other
            return name
    for name in _DISPENSABLE:
        if name in body and re.search(rf"\b{name}\b", said):
            if name in _NEUTRAL and body[name] not in _NEUTRAL[name]:
                continue
            facts.refused.add(name)
            return name
    return None
