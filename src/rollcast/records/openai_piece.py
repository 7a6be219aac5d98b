"""The pieces in which an engine that speaks OpenAI sends an answer: what is read from each chunk of a stream. Pure.

Engines differ, and proxies drop fields, so nothing is taken for granted: what is missing or has another type is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from rollcast.records.event import GenerationFinishReason

__all__ = [
    "MISSING_LOGPROB",
    "CallDelta",
    "Piece",
    "VersionSpan",
    "calls_of",
    "fit_64_bits",
    "generation_reason",
    "piece_of",
    "pieces_of",
    "whole_answer_pieces",
]

MISSING_LOGPROB = -9999.0  # what vLLM sends if there is no log-probability, since JSON has no infinity

DONE = b"[DONE]"
_MOST_DIGITS = 18  # of an id, which is kept in 64 bits
_ID_PREFIX = "token_id:"  # how vLLM writes a token if `return_tokens_as_token_ids` is set
_REASONS: dict[str, GenerationFinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "abort": "cancelled",
    "error": "error",
}


class CallDelta(msgspec.Struct, gc=False):
    """A part of a tool call.

    Attributes:
        index: which of the answer's calls it belongs to; None if the engine does not say.
        id, name: only in the first part of a call, as a rule.
        arguments: the next characters of the arguments, which are JSON.
    """

    index: int | None = None
    id: str = ""
    name: str = ""
    arguments: str = ""


class VersionSpan(msgspec.Struct, frozen=True, gc=False):
    """Which version of the weights sampled the tokens from `start` to `end` (exclusive; None: to the last one)."""

    version: str
    start: int = 0
    end: int | None = None


class Piece(msgspec.Struct, kw_only=True):
    """What one chunk says of one choice.

    Attributes:
        index: the choice, from 0; there are several only if the request asks for `n` of them.
        text, reasoning: new text of the answer, and of the reasoning before it.
        calls: parts of tool calls.
        token_ids: the sampled ids, shape (T,); None if the chunk has none.
        logprobs: their log-probabilities, shape (T,); None if the chunk has none, or one of them is missing.
        finish_reason: why the choice ended, in the engine's word; None while it goes on.
        usage: what the engine counted: `prompt_tokens`, `completion_tokens` and others; mostly in the last chunk.
        prompt_token_ids: the ids of the whole prompt, if the engine sends them.
        error: what the engine reports instead of an answer, in a sentence; None as a rule.
        weight_versions: the versions of the weights that sampled the tokens, if the engine says.
        done: whether this is the end of the stream, `[DONE]`.
        raw: the decoded chunk; None in all but the first piece of a chunk.
    """

    index: int = 0
    text: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = []
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    error: str | None = None
    weight_versions: list[VersionSpan] = []
    done: bool = False
    raw: dict[str, Any] | None = None

    def count(self, name: str) -> int | None:
        """A count of the usage, such as `completion_tokens`; None if the engine does not give it."""
        found = (self.usage or {}).get(name)
        return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def generation_reason(finish_reason: str | None, *, calls: bool = False) -> GenerationFinishReason:
    """The engine's finish reason in the words of `llm_generation_end`.

    Args:
        finish_reason: what the engine said.
        calls: whether the answer has tool calls. Some engines say `stop` then.
    """
    reason = _REASONS.get(finish_reason or "", "stop")
    return "tool_call" if calls and reason == "stop" else reason


def piece_of(data: bytes | Mapping[str, Any]) -> Piece:
    """The piece of the first choice of a chunk; see `pieces_of`."""
    return pieces_of(data)[0]


def pieces_of(data: bytes | Mapping[str, Any]) -> list[Piece]:
    """What a chunk of a stream says, a piece for each choice; at least one.

    It raises nothing: a chunk that is not JSON, or not an object, is a piece with an `error`.

    Args:
        data: the payload of an event, or the chunk if it is decoded.
    """
    chunk = _decoded(data)
    if isinstance(chunk, Piece):
        return [chunk]
    return _pieces(chunk, "delta")


def whole_answer_pieces(body: bytes | Mapping[str, Any]) -> list[Piece]:
    """The same for an answer that did not stream: one piece for each choice."""
    answer = _decoded(body)
    if isinstance(answer, Piece):
        return [answer]
    return _pieces(answer, "message")


def _decoded(data: bytes | Mapping[str, Any]) -> dict[str, Any] | Piece:
    if isinstance(data, Mapping):
        return dict(data)
    if data.strip() == DONE:
        return Piece(done=True)
    try:
        chunk = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        shown = data[:80].decode("utf-8", "replace")
        return Piece(error=f"the engine sent {shown!r}, which is not JSON")
    if not isinstance(chunk, dict):
        return Piece(error=f"the engine sent {type(chunk).__name__}; expected an object with choices")
    return chunk


def _error_of(chunk: dict[str, Any]) -> str | None:
    """What an engine reports instead of an answer, in any of the forms that are in use; None if it reports nothing."""
    error = chunk.get("error")
    if error is None and chunk.get("object") == "error":
        error = chunk
    if not error:
        return None
    if isinstance(error, dict):
        said = error.get("message") or error.get("type") or error.get("code") or "the engine failed"
        return str(said)
    return str(error)


def _pieces(chunk: dict[str, Any], said: str) -> list[Piece]:
    if (error := _error_of(chunk)) is not None:
        return [Piece(error=error, raw=chunk)]
    usage = chunk.get("usage")
    usage = usage if isinstance(usage, dict) else None
    choices = chunk.get("choices")
    if isinstance(choices, list):
        pieces = [_of_choice(each, at, said) for at, each in enumerate(choices) if isinstance(each, dict)]
    elif "meta_info" in chunk:
        pieces = [_of_sglang(chunk)]
    else:
        pieces = []
    if not pieces:
        pieces = [Piece()]
    first = pieces[0]
    first.raw, first.usage = chunk, usage or first.usage
    if first.prompt_token_ids is None:
        first.prompt_token_ids = _ids(chunk.get("prompt_token_ids"))
    if not first.weight_versions:
        first.weight_versions = _versions(chunk)
    return pieces


def _of_choice(choice: dict[str, Any], at: int, said: str) -> Piece:
    index = choice.get("index")
    piece = Piece(index=index if isinstance(index, int) else at)
    delta = choice.get(said)
    if isinstance(delta, dict):
        piece.text, thought = _text_and_thought(delta.get("content"))
        piece.reasoning = thought or _reasoning(delta)
        if not piece.text and isinstance(refusal := delta.get("refusal"), str):
            piece.text = refusal
        piece.calls = calls_of(delta)
    elif isinstance(text := choice.get("text"), str):
        piece.text = text
    if isinstance(reason := choice.get("finish_reason"), str) and reason:
        piece.finish_reason = reason
    piece.token_ids = _ids(choice.get("token_ids"))
    if isinstance(logprobs := choice.get("logprobs"), dict):
        _read_logprobs(piece, logprobs)
    if "prompt_token_ids" in choice:
        piece.prompt_token_ids = _ids(choice["prompt_token_ids"])
    if "weight_versions" in choice or "weight_version" in choice or "meta_info" in choice:
        piece.weight_versions = _versions(choice)
    return piece


def _reasoning(delta: dict[str, Any]) -> str:
    """The reasoning, under either of its names; a server may send both with the same text."""
    for name in ("reasoning", "reasoning_content"):
        if isinstance(found := delta.get(name), str) and found:
            return found
    return ""


def _text_and_thought(content: Any) -> tuple[str, str]:
    """Text and reasoning of a content, which is text or a list of parts."""
    if isinstance(content, str):
        return content, ""
    texts, thoughts = [], []
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        if isinstance(text := part.get("text"), str):
            texts.append(text)
        if isinstance(thinking := part.get("thinking"), list):
            thoughts.append(_text_and_thought(thinking)[0])
        elif isinstance(thinking, str):
            thoughts.append(thinking)
    return "".join(texts), "".join(thoughts)


def calls_of(delta: Mapping[str, Any]) -> list[CallDelta]:
    """The parts of tool calls in a delta or a message."""
    found = []
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if not isinstance(call, dict):
            continue
        function: dict[str, Any] = next(
            (call[kind] for kind in ("function", "custom") if isinstance(call.get(kind), dict)), {}
        )
        index = call.get("index")
        found.append(
            CallDelta(
                index if isinstance(index, int) else None,
                _text(call.get("id")),
                _text(function.get("name")),
                _arguments(function.get("arguments", function.get("input"))),
            )
        )
    if isinstance(old := delta.get("function_call"), dict):  # before there were tools
        found.append(CallDelta(0, "", _text(old.get("name")), _arguments(old.get("arguments"))))
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: Any) -> str:
    """The text of arguments; some servers send them as an object."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        return str(value)


def _ids(value: Any) -> list[int] | None:
    if not isinstance(value, list) or not all(each.__class__ is int for each in value):
        return None
    return value if fit_64_bits(value) else None


def fit_64_bits(ids: list[int]) -> bool:
    """Whether these can be token ids, which are kept in 64 bits; JSON has integers of any size."""
    return not ids or (min(ids) >= -(1 << 63) and max(ids) < 1 << 63)


def _read_logprobs(piece: Piece, logprobs: dict[str, Any]) -> None:
    """Take log-probabilities, and ids if the tokens are written as ids, from either of the two forms."""
    values: list[Any]
    if isinstance(content := logprobs.get("content"), list):  # chat
        entries = [each for each in content if isinstance(each, dict)]
        tokens: Iterable[Any] = [each.get("token") for each in entries]
        values = [each.get("logprob") for each in entries]
        if piece.token_ids is None and entries and all("token_id" in each for each in entries):
            piece.token_ids = _ids([each["token_id"] for each in entries])
    elif isinstance(found := logprobs.get("token_logprobs"), list):  # completions
        values = found
        tokens = logprobs.get("tokens") if isinstance(logprobs.get("tokens"), list) else ()  # type: ignore[assignment]
    else:
        return
    if piece.token_ids is None:
        piece.token_ids = _ids_of_tokens(tokens)
    if values and all(map(_is_logprob, values)):
        piece.logprobs = values


def _is_logprob(value: Any) -> bool:
    return value.__class__ in (float, int) and math.isfinite(value) and value > MISSING_LOGPROB


def _ids_of_tokens(tokens: Iterable[Any]) -> list[int] | None:
    ids = []
    for token in tokens:
        if not isinstance(token, str) or not token.startswith(_ID_PREFIX):
            return None
        number = token.removeprefix(_ID_PREFIX)
        if not number.isdecimal() or len(number) > _MOST_DIGITS:
            return None
        ids.append(int(number))
    return ids or None


def _of_sglang(chunk: dict[str, Any]) -> Piece:
    """SGLang's own `/generate`: the text and everything about it stand beside each other, so far or new, as the server was started."""
    meta = chunk["meta_info"] if isinstance(chunk["meta_info"], dict) else {}
    piece = Piece(text=_text(chunk.get("text")), weight_versions=_versions(chunk))
    reason = meta.get("finish_reason")
    piece.finish_reason = _text(reason.get("type") if isinstance(reason, dict) else reason) or None
    counted = {name: meta[name] for name in ("prompt_tokens", "completion_tokens") if name in meta}
    piece.usage = counted or None
    sampled = meta.get("output_token_logprobs")
    triples = (
        [each for each in sampled if isinstance(each, list) and len(each) >= 2]
        if isinstance(sampled, list)
        else []
    )
    piece.token_ids = _ids(chunk.get("output_ids")) or (
        _ids([each[1] for each in triples]) if triples else None
    )
    values: list[Any] = [each[0] for each in triples]
    if values and all(map(_is_logprob, values)):
        piece.logprobs = values
    return piece


def _versions(place: dict[str, Any]) -> list[VersionSpan]:
    """The spans of weight versions, or the one version, that a chunk or a choice names."""
    meta = place.get("meta_info")
    for here in (place, meta if isinstance(meta, dict) else {}):
        spans = here.get("weight_versions")
        if isinstance(spans, list):
            return [span for each in spans if (span := _span(each)) is not None]
        version = here.get("weight_version")
        if isinstance(version, str | int) and not isinstance(version, bool):
            return [VersionSpan(str(version))]
    return []


def _span(value: Any) -> VersionSpan | None:
    if not isinstance(value, dict) or not isinstance(value.get("version"), str | int):
        return None
    start, end = value.get("start"), value.get("end")
    return VersionSpan(
        str(value["version"]), start if isinstance(start, int) else 0, end if isinstance(end, int) else None
    )
