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


@dataclass
class RouteTraits:
    """What one route of the engine was seen to give.

    Attributes:
        shape: the fields of its whole answers.
        takes: what it takes beside `stream`; what made it refuse a request is taken out.
        seen: which of them were seen in an answer that was asked for them.
        told: what was said about it already.
    """

    shape: BodyShape
    takes: set[str]
    streams: bool = True
    seen: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)


class EngineTraits:
    """What an engine was seen to give, by route.

    Args:
        logprobs: whether to ask for log-probabilities that the caller did not ask for.
        tools: whether chat calls with tools are made streams too; engines parse the tool calls of a stream with other code.
    """

    def __init__(self, *, logprobs: bool = True, tools: bool = False) -> None:
        wanted = ["token_ids", "usage", *(["logprobs"] if logprobs else [])]
        self._tools = tools
        kinds: tuple[RequestKind, ...] = ("chat", "completions", "generate")
        self.routes = {kind: RouteTraits(BodyShape(kind), set(wanted)) for kind in kinds}

    def may_turn(self, request: WireRequest) -> bool:
        """Whether a request that does not stream can be made a stream so that its answer is the same.

        The first whole answer of a route goes through untouched: from it the fields of the others are known.
        """
        route = self.routes[request.kind]
        return (
            not request.stream
            and request.lacks is None
            and route.streams
            and route.shape.answers > 0
            and (self._tools or not request.tools)
        )

    def learn_whole(self, kind: RequestKind, body: dict[str, Any]) -> None:
        """Learn from a whole answer that went through untouched."""
        self.routes[kind].shape.learn(body)

    def saw(self, kind: RequestKind, piece: Piece) -> None:
        """Note what a piece had."""
        seen = self.routes[kind].seen
        if piece.token_ids is not None:
            seen.add("token_ids")
        if piece.logprobs is not None:
            seen.add("logprobs")

    def was_refused(self, kind: RequestKind) -> str:
        """The engine refused a request that was made a stream. It is asked for less the next time; what that is, in a few words."""
        route = self.routes[kind]
        for name, words in (
            ("logprobs", "log-probabilities"),
            ("token_ids", "token ids"),
            ("usage", "the usage"),
        ):
            if name in route.takes:
                route.takes.discard(name)
                return f"no {words}"
        route.streams = False
        return "no streams"

    def lacking(self, kind: RequestKind, asked: Iterable[str]) -> list[str]:
        """What an answer with text did not have although it was asked for, each named once for a route."""
        route = self.routes[kind]
        lacks = [name for name in asked if name not in route.seen and name not in route.told]
        route.told.update(lacks)
        return lacks


def turned(body: bytes, request: WireRequest, traits: EngineTraits) -> Turned:
    """Make the request a stream, and ask for what the watcher would like and the engine is not known to refuse.

    Args:
        body: the request as JSON.
        request: what was read of it.
        traits: of the engine.
    """
    fields: dict[str, Any] = json.loads(body)
    takes = traits.routes[request.kind].takes
    added: list[Added] = []
    fields["stream"] = True
    if "usage" in takes and not fields.get("stream_options"):
        fields["stream_options"] = {"include_usage": True}
    if request.kind == "generate":  # its chunks have ids anyway
        return Turned(_encoded(fields), ())
    if "token_ids" in takes and not fields.get("return_token_ids"):
        fields["return_token_ids"] = True
        added.append("token_ids")
    if "logprobs" in takes and fields.get("logprobs") in (None, False):
        if request.kind == "chat":
            fields["logprobs"] = True
            fields.setdefault("top_logprobs", 0)
        else:
            fields["logprobs"] = 0
        added.append("logprobs")
    return Turned(_encoded(fields), tuple(added))


def _encoded(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
