"""The bodies of vLLM 0.32's `/inference/v1/generate`, which takes and gives token ids; pure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, ClassVar, Self

import msgspec

from rollcast.testing.openai_answers import ServedAnswer
from rollcast.testing.openai_bodies import CREATED, ServedPiece

__all__ = ["TokensWriter"]


class TokensWriter(msgspec.Struct):
    """Writes the answer to one request: its chunks, or the whole body.

    A whole answer names the model and the time, and its chunks do not, as in
    vllm/entrypoints/scale_out/token_in_token_out/protocol.py.

    Attributes:
        body: the request's.
        refused: why the server does not take the request; None if it does.
    """

    chat: ClassVar[bool] = False

    body: dict[str, Any]
    model: str
    id: str
    refused: str | None = None

    @classmethod
    def of(cls, body: dict[str, Any], models: Collection[str], model: str, request_id: str | None) -> Self:
        """Read a request's body, which may name one of the models, or none, which means `model`."""
        name = f"generate-tokens-{request_id or body.get('request_id') or 'served'}"
        return cls(body, body.get("model") or model, name, _refusal(body, models))

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream."""
        return bool(self.body.get("stream"))

    @property
    def sampling(self) -> dict[str, Any]:
        """How to sample."""
        sampling: dict[str, Any] = self.body["sampling_params"]
        return sampling

    @property
    def prompt(self) -> list[int]:
        """The ids of the prompt, shape (T,)."""
        prompt: list[int] = self.body["token_ids"]
        return prompt

    @property
    def limit(self) -> int | None:
        """The most tokens; None if the request does not say."""
        return self.sampling.get("max_tokens")

    @property
    def _text(self) -> bool:
        return self.body.get("output_mode") == "text"

    async def chunks(self, answer: ServedAnswer, pieces: AsyncIterator[ServedPiece]) -> AsyncIterator[bytes]:
        """The payloads of the stream's events, without the `[DONE]`."""
        if answer.chunks is not None:
            for chunk in answer.chunks:
                yield chunk if isinstance(chunk, bytes) else msgspec.json.encode(chunk)
            return
        sampled, first = 0, self.body.get("return_token_ids")
        async for piece in pieces:
            sampled += len(piece.token_ids)
            for index in range(self.sampling.get("n") or 1):
                fields: dict[str, Any] = {"request_id": self.id, "usage": None}
                if first:
                    fields |= {"prompt_token_ids": self.prompt, "mm_placeholders": {}}
                    first = False
                choices = [self._choice([piece], index)]
                yield msgspec.json.encode(fields | {"output_mode": self._mode, "choices": choices})
        if (self.body.get("stream_options") or {}).get("include_usage"):
            usage = self._usage(sampled)
            yield msgspec.json.encode(
                {"request_id": self.id, "usage": usage, "output_mode": self._mode, "choices": []}
            )

    async def whole(self, answer: ServedAnswer, pieces: AsyncIterator[ServedPiece]) -> bytes:
        """The body of an answer that does not stream."""
        if answer.chunks is not None:
            (chunk,) = answer.chunks
            return chunk if isinstance(chunk, bytes) else msgspec.json.encode(chunk)
        said = [piece async for piece in pieces]
        asked = bool(self.body.get("return_token_ids"))
        sampled = sum(len(piece.token_ids) for piece in said)
        body = {
            "request_id": self.id,
            "model": self.model,
            "created": CREATED,
            "usage": self._usage(sampled)
            | {"prompt_tokens_details": None, "completion_tokens_details": None},
            "prompt_logprobs": None,
            "prompt_token_id_logprobs": None,
            "prompt_token_ids": self.prompt if asked else None,
            "mm_placeholders": {} if asked else None,
            "metrics": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "output_mode": self._mode,
            "choices": [self._choice(said, index) for index in range(self.sampling.get("n") or 1)],
        }
        return msgspec.json.encode(body)

    @property
    def _mode(self) -> str:
        return "text" if self._text else "tokens"

    def _choice(self, pieces: Sequence[ServedPiece], index: int) -> dict[str, Any]:
        """A choice of the whole answer, or of a chunk."""
        last = pieces[-1]
        ids = [token for piece in pieces for token in piece.token_ids]
        span = {"version": str(last.weight_version), "start": 0, "end": None}
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": last.finish_reason,
            "stop_reason": None,
            "token_ids": ids,
            "routed_experts": None,
            "sampling_mask": None,
            "weight_versions": None if last.weight_version is None else [span],
        }
        if self._text:
            choice["text"] = "".join(piece.text for piece in pieces)
        values = [value for piece in pieces for value in piece.logprobs]
        return choice | {"logprobs": self._logprobs(ids, values)}

    def _logprobs(self, ids: Sequence[int], values: Sequence[float]) -> dict[str, Any] | None:
        if self.sampling.get("logprobs") is None:
            return None
        entries = zip(ids, values, strict=True)
        if self._text:
            return {
                "content": [
                    {"token": f"token_id:{token}", "logprob": value, "bytes": None, "top_logprobs": []}
                    for token, value in entries
                ]
            }
        sampled = [{"token_id": token, "logprob": value, "rank": 1} for token, value in entries]
        return {"content": [{**each, "top_logprobs": [each]} for each in sampled]}

    def _usage(self, sampled: int) -> dict[str, Any]:
        prompt, sampled = len(self.prompt), sampled * (self.sampling.get("n") or 1)
        return {"prompt_tokens": prompt, "total_tokens": prompt + sampled, "completion_tokens": sampled}


def _refusal(body: dict[str, Any], models: Collection[str]) -> str | None:
    if not isinstance(body.get("token_ids"), list) or not body["token_ids"]:
        return "token_ids: expected a list of ids"
    if not isinstance(body.get("sampling_params"), dict):
        return "sampling_params: expected an object"
    if body.get("model") not in {*models, None}:
        return f"the model `{body['model']}` does not exist"
    if body.get("stream_options") and not body.get("stream"):
        return "stream_options: only a stream may have them"
    return None
