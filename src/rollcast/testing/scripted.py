"""A backend that generates the text that a test gives it."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from rollcast.errors import BackendClosedError, BackendError
from rollcast.models.backend import BaseBackend, Delta, GenerationRequest
from rollcast.models.reasoning import UNKNOWN, Thinking, families_of
from rollcast.records import Message

__all__ = ["ScriptedBackend", "tokens_of"]

Script = str | Sequence[str] | Callable[[GenerationRequest], str]


def tokens_of(text: str) -> list[str]:
    """The text in the tokens that `ScriptedBackend` streams: words with the space before them."""
    return re.findall(r"\s*\S+|\s+$", text)


def _ids(text: str) -> list[int]:
    return [zlib.crc32(token.encode("utf-8", "replace")) & 0xFFFF for token in tokens_of(text)]


def _thinking(script: Script) -> Thinking:
    """What is known about reasoning: a script's tags tell whether it has any."""
    if callable(script):
        return UNKNOWN
    texts = [script] if isinstance(script, str) else script
    return Thinking(expected=tuple({family for text in texts for family in families_of(text)}))


class _WordRenderer:
    """Turns messages into ids of words, which is enough for exact prompts."""

    def render(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
        return [i for message in messages for i in _ids(f"{message['role']}: {message['content']}\n")]

    def extend(
        self, ids: list[int], messages: list[Message], new: int, tools: list[dict[str, Any]]
    ) -> list[int]:
        return self.render(messages[len(messages) - new :], tools)


class ScriptedBackend(BaseBackend):
    """Streams given text, word by word.

    Args:
        script: the text of every generation; or one text per turn (the last one repeats); or a function of the request.
        delay: seconds before each token; 0 lets other tasks run once.
        fail_at: the index of the token before which every generation fails, from 0.
        error: the error that it fails with.
        before_token: awaited before each token with the request and the token's index: a place for gates and faults.
        token_exact: whether tokens carry ids and log-probabilities and prompts are ids.
        finish_reason: the finish reason of every generation.
        logprob: the log-probability of a token, from its text. None: a fixed number below 0 for each word.
    """

    name = "scripted"

    def __init__(
        self,
        script: Script = "The answer is 4.",
        *,
        delay: float = 0.0,
        fail_at: int | None = None,
        error: Exception | None = None,
        before_token: Callable[[GenerationRequest, int], Awaitable[None]] | None = None,
        token_exact: bool = True,
        finish_reason: str = "stop",
        model_name: str = "scripted",
        logprob: Callable[[str], float] | None = None,
    ) -> None:
        self.model_name = model_name
        self.token_exact = self.logprobs = token_exact
        self.renderer = _WordRenderer() if token_exact else None
        self.requests: list[GenerationRequest] = []
        self.running: set[str] = set()
        self._script = script
        self._delay = delay
        self._fail_at = fail_at
        self._error = (
            error if error is not None else BackendError("the scripted backend failed, as it was told to")
        )
        self._before_token = before_token
        self._finish_reason = finish_reason
        self._logprob = logprob
        self._cancelled: set[str] = set()
        self._closed = False
        self.thinking = _thinking(script)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """See `Backend.generate`."""
        if self._closed:
            raise BackendClosedError("the scripted backend is closed; make a new one")
        self.requests.append(request)
        self.running.add(request.request_id)
        try:
            whole = tokens_of(self._text(request))
            tokens = whole[: request.sampling.max_tokens]
            reason = self._finish_reason if len(tokens) == len(whole) else "length"
            for i, token in enumerate(tokens):
                if self._before_token is not None:
                    await self._before_token(request, i)
                await asyncio.sleep(self._delay)
                if self._closed:
                    raise BackendClosedError("the scripted backend was closed; make a new one")
                if i == self._fail_at:
                    raise self._error
                if request.request_id in self._cancelled:
                    return
                yield self._delta(token, reason if i == len(tokens) - 1 else None)
            if not tokens:
                yield Delta("", finish_reason=self._finish_reason)
        finally:
            self.running.discard(request.request_id)
            self._cancelled.discard(request.request_id)

    def _text(self, request: GenerationRequest) -> str:
        script = self._script
        if isinstance(script, str):
            return script
        if callable(script):
            return script(request)
        turn = sum(message["role"] == "assistant" for message in request.messages)
        return script[min(turn, len(script) - 1)]

    def _delta(self, token: str, finish_reason: str | None) -> Delta:
        if not self.token_exact:
            return Delta(token, finish_reason=finish_reason)
        (token_id,) = _ids(token)
        fixed = -(token_id % 64 + 1) / 16  # any number below 0, exact in binary
        logprob = fixed if self._logprob is None else self._logprob(token)
        return Delta(token, [token_id], [logprob], self.policy_version, finish_reason=finish_reason)

    async def cancel(self, request_id: str) -> None:
        """See `Backend.cancel`."""
        if request_id in self.running:
            self._cancelled.add(request_id)

    async def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
