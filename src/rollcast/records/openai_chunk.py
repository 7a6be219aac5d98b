"""Reads the usual chunk of a stream at a third of the cost of `pieces_of`, which reads any. Pure.

The usual chunk has one choice with text, ids and log-probabilities. It is decoded into structs, so that what nobody reads is skipped. A
chunk that has anything else, such as a tool call, an error or a version of the weights, does not fit them and is left to `pieces_of`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from rollcast.records.openai_piece import MISSING_LOGPROB, Piece, pieces_of

__all__ = ["chunk_pieces"]

_Id = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_PREFIX = "token_id:"
_MOST_DIGITS = 18  # of an id, which is kept in 64 bits


class _Entry(msgspec.Struct, gc=False):
    token: str
    logprob: float
    token_id: None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Entry] | None = None
    token_logprobs: list[float] | None = None
    tokens: list[str] | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[_Id] | None = None
    prompt_token_ids: list[_Id] | None = None
    finish_reason: str | None = None
    weight_versions: None = None
    weight_version: None = None
    meta_info: None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: tuple[_Choice]
    object: str | None = None
    usage: dict[str, Any] | None = None
    prompt_token_ids: list[_Id] | None = None
    error: None = None
    weight_versions: None = None
    weight_version: None = None
    meta_info: None = None


_decoder = msgspec.json.Decoder(_Chunk)


def chunk_pieces(payload: bytes) -> list[Piece]:
    """The same as `pieces_of(payload)`, without the decoded chunk (`raw`) if it is a usual one."""
    try:
        chunk = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return pieces_of(payload)
    if chunk.object == "error":
        return pieces_of(payload)
    (choice,) = chunk.choices
    piece = Piece(
        index=choice.index,
        token_ids=choice.token_ids,
        usage=chunk.usage,
        finish_reason=choice.finish_reason or None,
    )
    delta = choice.delta
    if delta is not None:
        piece.text = delta.content or ""
        piece.reasoning = delta.reasoning or delta.reasoning_content or ""
    else:
        piece.text = choice.text or ""
    ids = choice.prompt_token_ids
    piece.prompt_token_ids = chunk.prompt_token_ids if ids is None else ids
    if choice.logprobs is not None:
        _read_logprobs(piece, choice.logprobs)
    return [piece]


def _read_logprobs(piece: Piece, logprobs: _Logprobs) -> None:
    if logprobs.content is not None:
        values = [entry.logprob for entry in logprobs.content]
        tokens = None if piece.token_ids is not None else [entry.token for entry in logprobs.content]
    elif logprobs.token_logprobs is not None:
        values, tokens = logprobs.token_logprobs, logprobs.tokens
    else:
        return
    if piece.token_ids is None and tokens:
        piece.token_ids = _ids_of(tokens)
    for value in values:
        if not value > MISSING_LOGPROB or value == math.inf:
            return
    if values:
        piece.logprobs = values


def _ids_of(tokens: list[str]) -> list[int] | None:
    """The ids, if the tokens are written as ids."""
    numbers = [token.removeprefix(_PREFIX) for token in tokens if token.startswith(_PREFIX)]
    if len(numbers) != len(tokens) or not all(
        number.isdecimal() and len(number) <= _MOST_DIGITS for number in numbers
    ):
        return None
    return list(map(int, numbers))
