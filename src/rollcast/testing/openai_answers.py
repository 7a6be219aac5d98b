"""What a scripted server answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

__all__ = ["Dialect", "ServedAnswer", "ServedCall"]

Dialect = Literal["vllm", "sglang", "text", "hosted"]


class ServedCall(msgspec.Struct, frozen=True):
    """A tool call in an answer of the chat route.

    Attributes:
        name: the tool.
        arguments: JSON text, which is streamed in pieces of eight characters.
        id: the call's id, which only its first delta carries.
        index: its place in `tool_calls`; None leaves the field out, as some servers do.
    """

    name: str
    arguments: str = "{}"
    id: str = "call_0"
    index: int | None = 0


class ServedAnswer(msgspec.Struct, frozen=True):
    """What the server answers to one generation, and how it fails.

    Attributes:
        text: the text, which is streamed word by word; or the texts of the chunks.
        reasoning: what it thinks before, streamed in the same way. Only the chat route has it.
        calls: the tool calls of the answer. Only the chat route has them.
        finish_reason: `stop`, `length`, `tool_calls`, `abort` …
        token_ids: one list for each chunk of the text; None makes up one id for each chunk.
        logprobs: one list for each chunk of the text; None makes up one for each id.
        weight_version: the version of the weights that the last chunk names.
        chunks: payloads that are sent word for word, in place of all of the above; bytes need not be JSON.
        status: the HTTP status; with another than 200 the answer is an error.
        headers: further headers, such as `{"Retry-After": "0"}`.
        body: the body of an answer with another status; None is an error as OpenAI writes it.
        cut_at: close the connection after so many bytes of the body.
        stall_at: send so many chunks and then nothing more, until `OpenAIServer.resume` is called.
        error_at: send so many chunks, and then an error inside the stream.
        split: send the body in writes of so many bytes, so that characters and lines are split.
    """

    text: str | Sequence[str] = "The answer is 4."
    reasoning: str | Sequence[str] = ""
    calls: Sequence[ServedCall] = ()
    finish_reason: str = "stop"
    token_ids: Sequence[Sequence[int]] | None = None
    logprobs: Sequence[Sequence[float]] | None = None
    weight_version: int | str | None = None
    chunks: Sequence[dict[str, Any] | bytes] | None = None
    status: int = 200
    headers: dict[str, str] = {}
    body: bytes | None = None
    cut_at: int | None = None
    stall_at: int | None = None
    error_at: int | None = None
    split: int | None = None
