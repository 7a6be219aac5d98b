"""One request on its way to a server: what is asked, and what the pieces of the answer mean. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from rollcast.aio import call_in
from rollcast.errors import BackendError
from rollcast.models.backend import Delta, GenerationRequest, Sampling
from rollcast.models.loop_engine import TaskInbox
from rollcast.models.openai.bodies import chat_body, completion_body
from rollcast.models.openai.facts import ServerFacts
from rollcast.models.openai.trouble import AbortedError, TroubleError
from rollcast.models.text import StopStrings, TextStream, TokenTexts
from rollcast.records import ToolCall
from rollcast.records.openai_answer import CallParts
from rollcast.records.openai_piece import Piece
from rollcast.stream import current_chain

__all__ = ["ChatGeneration", "Generation", "TokenGeneration"]

_OPENING, _CLOSING = "<think>\n", "\n</think>\n\n"


class Generation(TaskInbox, ABC):
    """One request. It is made in the loop of its consumer, and read in the server's.

    Attributes:
        route: the path under the address, `/completions` or `/chat/completions`.
        attempt: how often it was asked for again.
    """

    __slots__ = ("_chain", "attempt")

    route: str

    def __init__(self) -> None:
        super().__init__()
        self._chain = current_chain()
        self.attempt = 0

    @abstractmethod
    def body(self, facts: ServerFacts) -> dict[str, Any]:
        """The body of the next attempt."""

    @abstractmethod
    def take(self, piece: Piece, version: int) -> Delta | None:
        """What a piece adds; None if it adds nothing yet. The last delta has a finish reason.

        Raises:
            TroubleError: the server reports an error, or ended early.
            BackendError: it gave something that cannot be used.
        """

    @abstractmethod
    def close(self, version: int) -> Delta | None:
        """The last delta, if only the end of the answer shows that it is complete; None if it is not.

        Raises:
            BackendError: what came cannot be used.
        """

    @property
    @abstractmethod
    def can_continue(self) -> bool:
        """Whether another attempt can go on from here, without giving a token twice."""

    @property
    @abstractmethod
    def taken(self) -> int:
        """How much has come so far; if it grows, the server makes progress."""

    def tell(self, error: BackendError) -> None:
        """Show an attempt that failed as an `error` event of the chain that asked. Called from any thread."""
        call_in(self.loop, self._tell, error)

    def _tell(self, error: BackendError) -> None:
        chain = self._chain
        if chain.generation_open is not None:  # the chain has not ended meanwhile
            chain.error(error, "backend")


class TokenGeneration(Generation):
    """Ids in and ids out. The text is decoded here, since servers drop special tokens and hold back text.

    Args:
        prompt_ids: shape (T,).
        limit: the most tokens that may be sampled.
        texts: the texts of the model's tokens.
        end_ids: ids of the tokens that end a turn.
    """

    __slots__ = ("_ends", "_ids", "_limit", "_prompt_ids", "_sampling", "_stops", "_text", "_wants_logprobs")

    route = "/completions"

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        limit: int,
        texts: TokenTexts,
        end_ids: frozenset[int],
    ) -> None:
        super().__init__()
        self._prompt_ids = list(prompt_ids)
        self._ids: list[int] = []
        self._sampling = sampling
        self._limit = limit
        self._ends = end_ids
        self._text = TextStream(texts)
        self._stops = StopStrings(sampling.stop) if sampling.stop else None
        self._wants_logprobs = False

    def body(self, facts: ServerFacts) -> dict[str, Any]:
        """Continue the prompt and what has been sampled so far."""
        body = completion_body(
            facts,
            self._prompt_ids + self._ids,
            self._sampling,
            self._limit - len(self._ids),
            sorted(self._ends),
            self.attempt,
        )
        self._wants_logprobs = "logprobs" in body
        return body

    @property
    def can_continue(self) -> bool:
        return True

    @property
    def taken(self) -> int:
        return len(self._ids)

    def take(self, piece: Piece, version: int) -> Delta | None:
        if piece.error is not None:
            raise TroubleError(f"the server reports an error inside its answer: {piece.error}")
        reason, ids = piece.finish_reason, piece.token_ids or []
        if piece.text and not ids:
            raise BackendError(
                "the server gave text without token ids, although it gave ids before; see its log"
            )
        if self._wants_logprobs and len(piece.logprobs or ()) != len(ids):
            raise BackendError(
                f"the server gave {len(ids)} token ids and {len(piece.logprobs or ())} log-probabilities; "
                "expected one for each token: -9999 stands for a missing one"
            )
        if not ids and reason is None:
            return None
        self._ids += ids
        if len(self._ids) >= self._limit and reason in {"abort", None}:
            reason = "length"  # nothing is left to continue
        if reason not in {None, "stop", "length", "abort"}:
            raise BackendError(
                f"the server ended a generation with {reason!r}; expected 'stop' or 'length': see its log"
            )
        return self._delta(ids, piece, version, reason)

    def _delta(self, ids: list[int], piece: Piece, version: int, reason: str | None) -> Delta:
        logprobs = piece.logprobs if self._wants_logprobs else None
        if piece.weight_versions and piece.weight_versions[-1].version.isdecimal():
            version = int(piece.weight_versions[-1].version)
        pieces: list[str] = []
        last = len(ids) - 1
        for at, token in enumerate(ids):
            if token in self._ends or (at == last and reason == "stop"):
                continue  # what ends a turn has no text
            text = self._text.feed(token)
            if self._stops is not None and (cut := self._stops.cut(text)) is not None:
                kept = None if logprobs is None else logprobs[: at + 1]
                return Delta("".join(pieces) + cut, ids[: at + 1], kept, version, None, "stop")
            pieces.append(text)
        if reason in {"stop", "length"}:
            pieces.append(self._text.end())
        ended = None if reason == "abort" else reason
        return Delta("".join(pieces), ids, logprobs, version, None, ended)

    def close(self, version: int) -> Delta | None:
        return None


class ChatGeneration(Generation):
    """Messages in, text and tool calls out: the ids that were sampled are not known.

    Reasoning that the server gives apart is put between the usual tags, as the model wrote it.
    """

    __slots__ = ("_calls", "_given", "_prompt_tokens", "_reason", "_request", "_thinks")

    route = "/chat/completions"

    def __init__(self, request: GenerationRequest) -> None:
        super().__init__()
        self._request = request
        self._calls = CallParts()
        self._reason: str | None = None
        self._prompt_tokens: int | None = None
        self._given = 0  # pieces that had something
        self._thinks = False

    def body(self, facts: ServerFacts) -> dict[str, Any]:
        request = self._request
        return chat_body(facts, request.messages, request.tools, request.sampling)

    @property
    def can_continue(self) -> bool:
        return self._given == 0

    @property
    def taken(self) -> int:
        return self._given

    def take(self, piece: Piece, version: int) -> Delta | None:
        if piece.error is not None:
            raise TroubleError(f"the server reports an error inside its answer: {piece.error}")
        if (tokens := piece.count("prompt_tokens")) is not None:
            self._prompt_tokens = tokens
        if piece.index:
            return None
        self._calls.add(piece.calls)
        text = self._said(piece)
        if piece.finish_reason is not None:
            self._reason = piece.finish_reason
            if self._reason == "abort":
                raise AbortedError(
                    "the server ended the generation early, and gives no token ids to continue from"
                )
        if piece.done:
            return self.close(version)
        if not text and not piece.calls:
            return None
        self._given += 1
        return Delta(text) if text else None

    def _said(self, piece: Piece) -> str:
        text = ""
        if piece.reasoning:
            text = piece.reasoning if self._thinks else _OPENING + piece.reasoning
            self._thinks = True
        if (piece.text or piece.calls) and self._thinks:
            text += _CLOSING
            self._thinks = False
        return text + piece.text

    def close(self, version: int) -> Delta | None:
        if self._reason is None:
            return None
        text = _CLOSING if self._thinks else ""
        self._thinks = False
        calls = [_tool_call(call.id, call.name, "".join(call.arguments)) for call in self._calls.calls]
        reason = "length" if self._reason == "length" else "stop"
        return Delta(text, None, None, None, calls or None, reason, self._prompt_tokens)


def _tool_call(call_id: str, name: str, arguments: str) -> ToolCall:
    """The call, its arguments an object if the text is one."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return ToolCall(call_id, name, arguments, f"error: the arguments are not valid JSON: {error}")
    if not isinstance(found, dict):
        return ToolCall(call_id, name, arguments, "error: the arguments are not a JSON object")
    return ToolCall(call_id, name, found)
