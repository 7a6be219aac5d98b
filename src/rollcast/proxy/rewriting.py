"""What the proxy changes in a request that somebody watches, and what it has learnt of the engine. Pure.

A request that does not stream is made a stream, so that its tokens are seen while they are sampled, and the answer is put together
again. What it also asks for, ids and log-probabilities, is left out again if the caller had not asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from rollcast.records.openai_wire import BodyShape, Piece, RequestKind, WireRequest

__all__ = ["Added", "EngineTraits", "Turned", "turned"]

Added = Literal["token_ids", "logprobs"]


@dataclass(frozen=True)
class Turned:
    """A request that was made a stream.

    Attributes:
        body: what is sent to the engine.
        added: what the caller had not asked for.
    """

    body: bytes
    added: tuple[Added, ...]


# Fields that choose what is sampled, and not which fields the answer has. Calls that differ in another are of different kinds.
_SAMPLING = frozenset(
    [
        "best_of", "frequency_penalty", "ignore_eos", "length_penalty", "logit_bias", "max_completion_tokens", "max_new_tokens",
        "max_tokens", "min_p", "min_tokens", "n", "parallel_tool_calls", "presence_penalty", "priority", "reasoning_effort",
        "repetition_penalty", "seed", "skip_special_tokens", "stop", "stop_token_ids", "temperature", "tool_choice", "top_k", "top_p",
        "truncate_prompt_tokens",
    ]
)  # fmt: skip
_MOST_KINDS = 256  # of calls that are told apart; those beyond are never made streams
_TAKEN_BACK: dict[str, Added] = {
    "token_ids": "token_ids",
    "logprobs": "logprobs",
}  # by what an engine says of a field


@dataclass
class CallTraits:
    """What the engine was seen to give to calls of one kind: of one route, with the same fields in the request.

    Attributes:
        shape: the fields of its whole answers.
        takes: what it may be asked for beside the stream; what it refuses is taken out.
        streams: whether such calls may be made streams.
        has_usage: whether a whole answer has its usage, which a stream must then have too.
        headers: the names of the headers of a whole answer, in lower case and in their order.
        content_type: the type of a whole answer, as the engine writes it.
    """

    shape: BodyShape
    takes: set[Added]
    streams: bool = True
    has_usage: bool = False
    headers: list[str] = field(default_factory=list)
    content_type: str = "application/json"

    def learn(self, body: dict[str, Any], headers: list[str], content_type: str) -> None:
        """Learn from a whole answer that went through untouched."""
        self.shape.learn(body)
        self.has_usage = self.has_usage or isinstance(body.get("usage"), dict)
        self.headers = headers
        self.content_type = content_type or "application/json"

    def in_order(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Headers in the order of a whole answer; those that such an answer did not have come last."""
        places = {name: place for place, name in enumerate(self.headers)}
        return sorted(headers, key=lambda header: places.get(header[0].lower(), len(places)))

    def was_refused(self, why: str) -> str:
        """The engine refused a call that was made a stream, and took the caller's own. What it is not asked for again, in a few words.

        Args:
            why: what the engine said.
        """
        named = {added for name, added in _TAKEN_BACK.items() if name in why and added in self.takes}
        gone = named or set(self.takes)
        self.takes -= gone
        if gone:
            return " and ".join(f"no {_WORDS[added]}" for added in sorted(gone, reverse=True))
        self.streams = False
        return "no streams"


_WORDS: dict[Added, str] = {"token_ids": "token ids", "logprobs": "log-probabilities"}


class EngineTraits:
    """What an engine was seen to give.

    Args:
        logprobs: whether to ask for log-probabilities that the caller did not ask for.
        tools: whether chat calls with tools are made streams too; engines parse the tool calls of a stream with other code.

    Attributes:
        wanted: by route, what new kinds of calls ask for beside the stream.
    """

    def __init__(self, *, logprobs: bool = True, tools: bool = False) -> None:
        wanted: set[Added] = {"token_ids", "logprobs"} if logprobs else {"token_ids"}
        kinds: tuple[RequestKind, ...] = ("chat", "completions", "generate")
        self.wanted = {kind: set(wanted) for kind in kinds}
        self._tools = tools
        self._calls: dict[tuple[RequestKind, frozenset[str], str], CallTraits] = {}
        self._seen: set[tuple[RequestKind, str]] = set()
        self._told: set[tuple[RequestKind, str]] = set()

    def of(self, request: WireRequest) -> CallTraits:
        """What is known of calls such as this one."""
        fields = {
            name for name, value in request.sampling.items() if value is not False and name not in _SAMPLING
        }
        # Answers of `generate` name their model, and their streams do not, so it is learnt for each one.
        model = request.model if request.kind == "generate" else ""
        key = request.kind, frozenset(fields | ({"tools"} if request.tools else set())), model
        known = self._calls.get(key)
        if known is None:
            known = CallTraits(BodyShape(request.kind), set(self.wanted[request.kind]))
            if len(self._calls) < _MOST_KINDS:
                self._calls[key] = known
        return known

    def may_turn(self, request: WireRequest) -> bool:
        """Whether a request that does not stream can be made a stream so that its answer is the same.

        The first whole answer to a kind of call goes through untouched: from it the fields of the others are known.
        """
        if request.stream or request.lacks is not None or (request.tools and not self._tools):
            return False
        call = self.of(request)
        return call.streams and call.shape.answers > 0

    def saw(self, kind: RequestKind, piece: Piece) -> None:
        """Note what a piece had."""
        if piece.token_ids is not None:
            self._seen.add((kind, "token_ids"))
        if piece.logprobs is not None:
            self._seen.add((kind, "logprobs"))

    def lacking(self, kind: RequestKind, asked: Iterable[Added]) -> list[str]:
        """What answers on a route did not have although they were asked for it, in words; each once."""
        lacks = [name for name in asked if (kind, name) not in self._seen and (kind, name) not in self._told]
        self._told.update((kind, name) for name in lacks)
        return [_WORDS[name] for name in lacks]


def turned(body: bytes, request: WireRequest, traits: EngineTraits) -> Turned:
    """Make the request a stream, and ask for what the watcher would like and the engine is not known to refuse.

    Args:
        body: the request as JSON.
        request: what was read of it.
        traits: of the engine.
    """
    fields: dict[str, Any] = json.loads(body)
    takes = traits.of(request).takes
    added: list[Added] = []
    fields["stream"] = True
    if not fields.get("stream_options"):
        fields["stream_options"] = {"include_usage": True}
    if request.kind == "generate":  # its chunks have ids anyway
        return Turned(_encoded(fields), ())
    if "token_ids" in takes and not fields.get("return_token_ids"):
        fields["return_token_ids"] = True
        added.append("token_ids")
    asked = fields.get("logprobs")
    if "logprobs" in takes and (asked is None or asked is False):  # 0 asks for those of the sampled tokens
        if request.kind == "chat":
            fields["logprobs"] = True
            fields.setdefault("top_logprobs", 0)
        else:
            fields["logprobs"] = 0
        added.append("logprobs")
    return Turned(_encoded(fields), tuple(added))


def _encoded(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
