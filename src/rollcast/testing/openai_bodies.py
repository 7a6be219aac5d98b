"""The bodies that an engine's OpenAI routes write, as vLLM 0.32 and SGLang 0.5.23 have them; pure."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, Protocol, Self

import msgspec

from rollcast.testing.openai_answers import Dialect, ServedAnswer, ServedCall
from rollcast.testing.scripted import tokens_of

__all__ = ["CREATED", "BodyWriter", "ServedPiece", "served_pieces"]

CREATED = 1_700_000_000
_CALL_PIECE = 8  # characters of a call's arguments in one chunk


class ServedPiece(msgspec.Struct, frozen=True):
    """What one chunk of an answer adds.

    Attributes:
        text, reasoning: new text.
        call: an entry of `tool_calls`, as it stands in the delta.
        token_ids, logprobs: shape (T,).
        finish_reason: on the last piece.
        weight_version: the version of the weights.
    """

    text: str = ""
    reasoning: str = ""
    call: dict[str, Any] | None = None
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    finish_reason: str | None = None
    weight_version: int | str | None = None


def _id_of(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "replace")) & 0xFFFF


def _texts(given: str | Sequence[str]) -> list[str]:
    return tokens_of(given) if isinstance(given, str) else list(given)


def _call_pieces(call: ServedCall) -> list[dict[str, Any]]:
    place = {} if call.index is None else {"index": call.index}
    first = {**place, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
    cut = [call.arguments[at : at + _CALL_PIECE] for at in range(0, len(call.arguments), _CALL_PIECE)]
    return [first, *({**place, "function": {"arguments": part}} for part in cut)]


def _made_up(ids: Sequence[int]) -> list[float]:
    """Any numbers below 0, exact in binary."""
    return [-(token % 64 + 1) / 16 for token in ids]


class Limits(Protocol):
    """What of a request bounds its answer."""

    @property
    def chat(self) -> bool:
        """Whether it is the chat route, which has reasoning and calls."""
        ...

    @property
    def limit(self) -> int | None:
        """The most tokens; None if the request does not say."""
        ...


async def served_pieces(answer: ServedAnswer, writer: Limits) -> AsyncIterator[ServedPiece]:
    """Cut a scripted answer into pieces, at most as many tokens as the request allows."""
    texts = _texts(answer.text)
    ids = [[_id_of(text)] for text in texts] if answer.token_ids is None else answer.token_ids
    logprobs = [_made_up(each) for each in ids] if answer.logprobs is None else answer.logprobs
    pieces: list[ServedPiece] = []
    if writer.chat:
        for text in _texts(answer.reasoning):
            thought = [_id_of(text)]
            pieces.append(ServedPiece(reasoning=text, token_ids=thought, logprobs=_made_up(thought)))
    pieces += [
        ServedPiece(text, token_ids=each, logprobs=values)
        for text, each, values in zip(texts, ids, logprobs, strict=True)
    ]
    if writer.chat:
        for delta in [delta for call in answer.calls for delta in _call_pieces(call)]:
            written = [_id_of(delta["function"]["arguments"])]
            pieces.append(ServedPiece(call=delta, token_ids=written, logprobs=_made_up(written)))
    if answer.token_ids is None and writer.limit is not None and len(pieces) > writer.limit:
        pieces = pieces[: writer.limit]
        reason = "length"
    else:
        reason = answer.finish_reason
    for piece in pieces[:-1]:
        yield piece
    last = pieces[-1] if pieces else ServedPiece()
    yield msgspec.structs.replace(last, finish_reason=reason, weight_version=answer.weight_version)


class BodyWriter(msgspec.Struct):
    """Writes the answer to one request: its chunks, or the whole body.

    Attributes:
        body: the request's.
        chat: whether it is the chat route.
        refused: why the server does not take the request; None if it does.
    """

    body: dict[str, Any]
    chat: bool
    model: str
    id: str
    dialect: Dialect
    refused: str | None = None

    @classmethod
    def of(
        cls,
        path: str,
        body: dict[str, Any],
        dialect: Dialect,
        models: Collection[str],
        model: str,
        request_id: str | None,
    ) -> Self:
        """Read a request's body.

        Args:
            path: that was asked.
            body: what was asked.
            dialect: what the server takes and gives.
            models: the names that it takes as a model.
            model: the one that is meant if the body names none.
            request_id: what the caller calls the request.
        """
        chat = "chat" in path
        name = f"{'chatcmpl' if chat else 'cmpl'}-{request_id or 'served'}"
        refused = _refusal(body, chat, dialect, models)
        return cls(body, chat, body.get("model") or model, name, dialect, refused)

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream."""
        return bool(self.body.get("stream"))

    @property
    def limit(self) -> int | None:
        """The most tokens; None if the request does not say."""
        return self.body.get("max_completion_tokens") or self.body.get("max_tokens")

    @property
    def ids(self) -> bool:
        """Whether the answer has token ids."""
        return bool(self.body.get("return_token_ids")) and self.dialect in {"vllm", "sglang"}

    @property
    def logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        asked = self.body.get("logprobs")
        return (bool(asked) if self.chat else asked is not None) and self.dialect in {"vllm", "sglang"}

    def _prompt_ids(self) -> list[int]:
        prompt = self.body.get("prompt")
        if isinstance(prompt, list):
            return prompt
        if isinstance(prompt, str):
            return [_id_of(token) for token in tokens_of(prompt)]
        return [
            _id_of(token)
            for message in self.body.get("messages") or []
            for token in tokens_of(f"{message.get('role')}: {message.get('content')}\n")
        ]

    @property
    def sampling(self) -> dict[str, Any]:
        """How to sample."""
        return self.body

    @property
    def prompt(self) -> Any:
        """The prompt of the completions route: ids, shape (T,), or text."""
        return self.body.get("prompt")

    # -- a stream ------------------------------------------------------------------------------------------------------

    async def chunks(self, answer: ServedAnswer, pieces: AsyncIterator[ServedPiece]) -> AsyncIterator[bytes]:
        """The payloads of the stream's events, without the `[DONE]`."""
        if answer.chunks is not None:
            for chunk in answer.chunks:
                yield chunk if isinstance(chunk, bytes) else msgspec.json.encode(chunk)
            return
        sampled, first = 0, True
        count = self.body.get("n") or 1
        if self.chat:
            for index in range(count):
                yield self._chunk(
                    [self._choice({"role": "assistant", "content": ""}, ServedPiece(), index)], first
                )
                first = False
        async for piece in pieces:
            sampled += len(piece.token_ids) or 1
            for index in range(count):
                choice = self._choice(self._delta(piece) if self.chat else piece.text, piece, index)
                if first and not self.chat and self.ids:
                    choice["prompt_token_ids"] = self._prompt_ids()
                yield self._chunk([choice], first, piece)
                first = False
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield self._chunk([], usage=self._usage(sampled * count))

    @staticmethod
    def _delta(piece: ServedPiece) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if piece.reasoning:
            delta["reasoning"] = piece.reasoning
        elif piece.call is not None:
            delta["tool_calls"] = [piece.call]
        else:
            delta["content"] = piece.text
        return delta

    def _choice(self, said: str | dict[str, Any], piece: ServedPiece, index: int) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta" if self.chat else "text": said,
            "logprobs": self._logprobs([piece]),
            "finish_reason": piece.finish_reason,
        }
        if self.ids:
            choice["token_ids"] = list(piece.token_ids) or None
        return choice

    def _chunk(
        self,
        choices: list[dict[str, Any]],
        first: bool = False,
        piece: ServedPiece | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        chunk = {"id": self.id, "object": kind, "created": CREATED, "model": self.model, "choices": choices}
        if first and self.chat and self.ids:
            chunk["prompt_token_ids"] = self._prompt_ids()
        if piece is not None and piece.weight_version is not None:
            chunk["weight_version"] = str(piece.weight_version)
        if usage is not None:
            chunk["usage"] = usage
        return msgspec.json.encode(chunk)

    def _usage(self, sampled: int) -> dict[str, int]:
        prompt = len(self._prompt_ids())
        return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}

    def _logprobs(self, pieces: Sequence[ServedPiece]) -> dict[str, Any] | None:
        values = [value for piece in pieces for value in piece.logprobs]
        if not self.logprobs or not values:
            return None
        names = [f"token_id:{token}" for piece in pieces for token in piece.token_ids]
        if self.chat:
            entries = zip(names, values, strict=True)
            return {
                "content": [
                    {"token": name, "logprob": value, "bytes": None, "top_logprobs": []}
                    for name, value in entries
                ]
            }
        return {
            "text_offset": [0] * len(values),
            "token_logprobs": values,
            "tokens": names,
            "top_logprobs": [{name: value} for name, value in zip(names, values, strict=True)],
        }

    # -- a whole answer ------------------------------------------------------------------------------------------------

    async def whole(self, answer: ServedAnswer, pieces: AsyncIterator[ServedPiece]) -> bytes:
        """The body of an answer that does not stream."""
        if answer.chunks is not None:
            (chunk,) = answer.chunks
            return chunk if isinstance(chunk, bytes) else msgspec.json.encode(chunk)
        said = [piece async for piece in pieces]
        count = self.body.get("n") or 1
        sampled = sum(len(piece.token_ids) or 1 for piece in said)
        kind = "chat.completion" if self.chat else "text_completion"
        body = {
            "id": self.id,
            "object": kind,
            "created": CREATED,
            "model": self.model,
            "choices": [self._whole_choice(answer, said, index) for index in range(count)],
            "usage": self._usage(sampled * count),
        }
        if self.ids and self.chat:
            body["prompt_token_ids"] = self._prompt_ids()
        if said[-1].weight_version is not None:
            body["weight_version"] = str(said[-1].weight_version)
        return msgspec.json.encode(body)

    def _whole_choice(self, answer: ServedAnswer, said: list[ServedPiece], index: int) -> dict[str, Any]:
        text = "".join(piece.text for piece in said)
        choice: dict[str, Any] = {"index": index}
        if self.chat:
            reasoning = "".join(piece.reasoning for piece in said)
            calls = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
            choice["message"] = {
                "role": "assistant",
                "content": text or None,
                "reasoning": reasoning or None,
                "tool_calls": calls,
            }
        else:
            choice["text"] = text
        choice |= {"logprobs": self._logprobs(said), "finish_reason": said[-1].finish_reason}
        if self.ids:
            choice["token_ids"] = [token for piece in said for token in piece.token_ids]
            if not self.chat:
                choice["prompt_token_ids"] = self._prompt_ids()
        return choice


def _refusal(body: dict[str, Any], chat: bool, dialect: Dialect, models: Collection[str]) -> str | None:
    if body.get("model") not in {*models, None}:
        return f"the model `{body['model']}` does not exist"
    if dialect == "sglang" and chat and body.get("stream") and body.get("return_token_ids"):
        return "return_token_ids is not supported with stream"
    if dialect == "text":
        lacking = [
            name
            for name in ("return_token_ids", "logprobs", "top_logprobs", "stream_options")
            if name in body
        ]
        if lacking:
            return f"Unexpected fields: {', '.join(lacking)}"
        if not chat:
            return "there is no /v1/completions here; use /v1/chat/completions"
    if dialect == "hosted" and isinstance(body.get("prompt"), list):
        return "prompt: expected a string"
    return None
