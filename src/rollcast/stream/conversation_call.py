"""One request that is being answered, and what is kept of its chain for the next one; see `conversations.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from rollcast.records import StreamEventType
from rollcast.records.event import ChainFinishReason
from rollcast.records.openai_wire import (
    CallParts,
    Piece,
    ToolCallText,
    VersionSpan,
    WireRequest,
    generation_reason,
)
from rollcast.stream.chain import ChainWriter, GenerationWriter, ToolCallWriter
from rollcast.stream.conversation_keys import Mark, trail_of_ids, trail_of_messages, trail_of_text

__all__ = ["Call", "Talk", "new_ids"]


class OwnerOfCall(Protocol):
    """What a call needs of the conversations that it belongs to."""

    def ended(self, call: Call, failed: ChainFinishReason | None, answer: dict[str, Any] | None) -> None:
        """The call is over; `answer` is the message, if it is whole, otherwise `failed` says why not."""
        ...

    def beside(self, call: Call) -> Call:
        """Begin a chain for another choice of the same request."""
        ...


class CallerName(NamedTuple):
    """Whose conversations a request can go on with: those of equal callers.

    Attributes:
        session: the name of its session, or None.
        key: what its API key is known by, if it names no session; None: it has none.
    """

    session: str | None = None
    key: str | None = None


class Talk:
    """One chain, and what of it the next request is compared with."""

    def __init__(self, writer: ChainWriter, caller: CallerName, names: Sequence[str]) -> None:
        self.writer = writer
        self.caller = caller
        self.names = names
        self.children: list[Talk] = []
        self.call: Call | None = None  # the one that is generating
        self.mark: Mark | None = None  # of the whole conversation; None while it generates
        self.marks: list[Mark] = []  # of it after each answer
        self.certain = True  # whether the mark has the last answer in it
        self.keys: list[bytes] = []  # of the messages, with the answers
        self.text = ""  # the prompt and the answer, if the prompt is text
        self.ids: list[int] | None = []  # the whole sequence of the segment; None if part of it is unknown
        self.tools: dict[str, ToolCallWriter] = {}  # open calls, by the id that the engine gave
        self.last_used = 0.0
        self.failed: ChainFinishReason | None = None  # how the last generation ended, if that was not well

    @property
    def chain_id(self) -> str:
        return self.writer.trajectory.chain_id

    def answers(self, request: WireRequest) -> bool:
        """Whether a message of the request is the result of a call that is open here."""
        return any(message.get("tool_call_id") in self.tools for message in request.messages)


class Call:
    """One request that is being answered. After its end, all of its methods do nothing.

    Attributes:
        request: the request.
        talk: its chain.
        answer: the answer as a message, once it is whole.
        abandoned: whether nobody reads on, though that is not written yet.
    """

    __slots__ = (
        "_finish_reason",
        "_has_ids",
        "_lacks_ids",
        "_lacks_logprobs",
        "_others",
        "_owner",
        "_parts",
        "_reasoning",
        "_spans",
        "_usage",
        "abandoned",
        "answer",
        "done",
        "generation",
        "request",
        "talk",
    )  # fmt: skip

    def __init__(
        self, owner: OwnerOfCall, talk: Talk, request: WireRequest, generation: GenerationWriter
    ) -> None:
        self._owner = owner
        self.talk = talk
        self.request = request
        self.generation = generation
        self.done = False
        self.abandoned = False
        self.answer: dict[str, Any] | None = None
        self._others: dict[int, Call] = {}  # of further choices
        self._parts = CallParts()
        self._reasoning: list[str] = []
        self._finish_reason: str | None = None
        self._usage: Piece | None = None
        self._spans: list[VersionSpan] = []
        self._has_ids = self._lacks_ids = self._lacks_logprobs = False

    @property
    def chain_id(self) -> str:
        """The id of the chain that it belongs to."""
        return self.talk.chain_id

    @property
    def chain(self) -> ChainWriter:
        """The chain that it belongs to."""
        return self.talk.writer

    @property
    def tool_calls(self) -> list[ToolCallText]:
        """The tool calls that the answer asks for; they are whole at its end."""
        return self._parts.calls

    @property
    def told_its_end(self) -> bool:
        """Whether the engine has said why the answer ended."""
        return self._finish_reason is not None

    def wants_tokens(self) -> bool:
        """Whether anybody watches the tokens of this chain."""
        return self.talk.writer.wants(StreamEventType.LLM_GENERATION_CHUNK)

    def piece(self, piece: Piece) -> None:
        """The next piece of the answer has come."""
        if self.done:
            return
        if piece.index > 0:
            self._other(piece)
            return
        if piece.usage is not None:
            self._usage = piece
        if piece.finish_reason is not None:
            self._finish_reason = piece.finish_reason
        if piece.calls:
            self._parts.add(piece.calls)
        if piece.prompt_token_ids is not None:
            self._prompt_came(piece.prompt_token_ids)
        if piece.text or piece.token_ids or piece.reasoning:
            self._chunk(piece)
        if piece.error is not None:
            self.failed(piece.error)

    def end(self) -> None:
        """The answer is whole: end the generation, and open the tool calls that it asked for."""
        if self.done:
            return
        self.done = True
        for other in self._others.values():
            other.end()
        generation, turn = self.generation, self.generation.turn
        self._check_ids()
        reason = generation_reason(self._finish_reason, calls=bool(self._parts.calls))
        counted: dict[str, Any] = {}
        if (usage := self._usage) is not None:
            # With several choices the engine counts the tokens of all of them.
            names = ("prompt_tokens",) if self._others else ("prompt_tokens", "completion_tokens")
            counted = {name: count for name in names if (count := usage.count(name)) is not None}
        generation.end(reason, **counted)
        self.answer = answer = self._answer(turn.text)
        failed: ChainFinishReason | None = (
            "cancelled" if reason == "cancelled" else "error" if reason == "error" else None
        )
        self._owner.ended(self, failed, answer)

    def failed(self, error: BaseException | str, error_type: str = "") -> None:
        """There is no answer, or it broke off: the engine failed, or the way to it. `error_type` is for an error that is text."""
        if self.done:
            return
        self.done = True
        for other in self._others.values():
            other.failed(error, error_type)
        self._check_ids()
        self.talk.writer.trajectory.error = str(error)
        self.talk.writer.error(error, "backend", goes_on=True, error_type=error_type)
        self.generation.end("error")
        self._owner.ended(self, "error", None)

    def cancelled(self) -> None:
        """Whoever asked has left before the answer was whole."""
        if self.done:
            return
        self.done = True
        for other in self._others.values():
            other.cancelled()
        self._check_ids()
        self.generation.end("cancelled")
        self._owner.ended(self, "cancelled", None)

    def mark_after(self, keys: list[bytes], *, answered: bool) -> tuple[Mark, bool]:
        """What the next request of this chain begins with, and whether the answer is part of it. Without an answer it is the same."""
        request, talk = self.request, self.talk
        if request.messages:
            return trail_of_messages(keys).mark, True
        if request.prompt_token_ids is not None:
            if answered and talk.ids is not None:
                return trail_of_ids(talk.ids).mark, True
            return trail_of_ids(request.prompt_token_ids).mark, not answered
        if answered:
            talk.text += self.generation.turn.text
        return trail_of_text(talk.text).mark, True

    def _chunk(self, piece: Piece) -> None:
        text, ids, logprobs = piece.text, piece.token_ids, piece.logprobs
        if self.request.kind == "generate" and piece.raw is not None and "meta_info" in piece.raw:
            text, ids, logprobs = self._new_of(piece)
        if ids:
            self._has_ids = True
            if logprobs is None or len(logprobs) != len(ids):
                logprobs, self._lacks_logprobs = None, True
        else:
            self._lacks_ids = self._lacks_ids or (ids is None and bool(text or piece.reasoning))
            logprobs = None
        version = None
        if spans := piece.weight_versions:
            if len(spans) == 1 and spans[0].end is None and not spans[0].start:
                version = int(spans[0].version) if spans[0].version.isdecimal() else None
            else:
                self._spans = spans
        if piece.reasoning:
            self._reasoning.append(piece.reasoning)
            self.generation.chunk(text, ids or None, logprobs, version, reasoning=piece.reasoning)
        else:
            self.generation.chunk(text, ids or None, logprobs, version)

    def _new_of(self, piece: Piece) -> tuple[str, list[int] | None, list[float] | None]:
        """What is new in a piece of SGLang's own route, which has all so far unless the server was told otherwise."""
        turn, text, ids = self.generation.turn, piece.text, piece.token_ids
        tokens = piece.count("completion_tokens")
        so_far = tokens == len(ids) if ids is not None and tokens is not None else text.startswith(turn.text)
        if not so_far:
            return text, ids, piece.logprobs
        known = len(turn.token_ids)
        logprobs = None if piece.logprobs is None else piece.logprobs[known:]
        return text[len(turn.text) :], None if ids is None else ids[known:], logprobs

    def _other(self, piece: Piece) -> None:
        """A piece of another choice, which is a chain of its own."""
        other = self._others.get(piece.index)
        if other is None:
            other = self._others[piece.index] = self._owner.beside(self)
        index, usage = piece.index, piece.usage
        piece.index, piece.usage = 0, None
        other.piece(piece)
        piece.index, piece.usage = index, usage
        if usage is not None:
            self._usage = piece

    def _prompt_came(self, ids: list[int]) -> None:
        """The engine says which ids the prompt had."""
        turn, talk = self.generation.turn, self.talk
        if turn.prompt_ids or self.request.prompt_token_ids is not None:
            return
        forks = turn.fresh
        new, fresh = new_ids(talk, ids, fork=forks)
        with talk.writer.lock:
            turn.prompt_ids, turn.prompt_tokens = new or [], len(ids)
            if fresh and not forks and turn.step > 1:
                turn.fresh = True
                talk.writer.depth = self.generation.depth = 1

    def _check_ids(self) -> None:
        """Keep only what is complete: ids of each token, a log-probability and a version of each id; then note the whole sequence."""
        turn, talk = self.generation.turn, self.talk
        with talk.writer.lock:
            counted = (
                self._usage.count("completion_tokens")
                if self._usage is not None and not self._others
                else None
            )
            if self._has_ids and (
                self._lacks_ids or (counted is not None and counted != len(turn.token_ids))
            ):
                turn.completion_tokens = counted if counted is not None else turn.completion_tokens
                turn.token_ids, turn.logprobs, turn.policy_versions = [], [], []
            if self._lacks_logprobs:
                turn.logprobs = []
            if self._spans:
                turn.policy_versions = _spread(self._spans, len(turn.token_ids))
            if len(turn.policy_versions) != len(turn.token_ids):
                turn.policy_versions = []
        if talk.ids is not None:
            known = bool(turn.token_ids) or not (turn.chars or turn.completion_tokens)
            talk.ids = talk.ids + turn.token_ids if known and talk.ids else None

    def _answer(self, text: str) -> dict[str, Any]:
        """The answer as a message."""
        answer: dict[str, Any] = {"role": "assistant", "content": text}
        if self._reasoning:
            answer["reasoning_content"] = "".join(self._reasoning)
        if self._parts.calls:
            answer["content"] = text or None
            answer["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.text},
                }
                for call in self._parts.calls
            ]
        return answer


def new_ids(talk: Talk, prompt: list[int] | None, *, fork: bool) -> tuple[list[int] | None, bool]:
    """The ids of a prompt that are new to its chain, and whether the prompt does not go on from what is known; notes the prompt's."""
    if prompt is None:
        talk.ids = [] if fork or not talk.writer.trajectory.turns else talk.ids
        return None, fork
    known = talk.ids
    goes_on = not fork and known is not None and prompt[: len(known)] == known
    talk.ids = list(prompt)
    return (prompt[len(known) :] if goes_on and known is not None else list(prompt)), not goes_on


def _spread(spans: list[VersionSpan], tokens: int) -> list[int]:
    """The version of each token; empty if some token has none, or a version is not a number."""
    versions: list[int | None] = [None] * tokens
    for span in spans:
        if span.version.isdecimal():
            for at in range(max(span.start, 0), min(tokens if span.end is None else span.end, tokens)):
                versions[at] = int(span.version)
    return [] if None in versions else versions  # type: ignore[return-value]  # checked
