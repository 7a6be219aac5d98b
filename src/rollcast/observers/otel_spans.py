"""Open spans, and messages in the shape of the semantic conventions, for `otel.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rollcast.records import StreamEvent
from rollcast.records.lanes import RunSources
from rollcast.records.view import ChainView

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

__all__ = [
    "OTHER",
    "OpenChain",
    "OpenRun",
    "Spans",
    "as_json",
    "clean",
    "messages_attribute",
    "nanoseconds",
    "said_by",
    "set_known",
    "text_part",
    "tool_message",
]

OTHER = "_OTHER"  # error.type if nothing better is known


@dataclass(eq=False)
class OpenChain:
    """A chain's open spans.

    Attributes:
        view: what is known about the chain, without its text.
        failed: the span of a failed generation, and when it failed (ns); it stays open for the error that says why.
        history: the whole conversation in the shape of the conventions, if contents are wanted.
        results: the results of the turn's tool calls, in the order of the calls.
    """

    span: Span
    context: Context
    generation: Span | None = None
    failed: tuple[Span, int] | None = None
    tools: dict[str, Span] = field(default_factory=dict)
    view: ChainView = field(default_factory=ChainView)
    history: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)

    @property
    def error_type(self) -> str:
        """The `error_type` of the chain's last error."""
        return (self.view.error or {}).get("error_type") or OTHER

    def heard(self, event: StreamEvent) -> None:
        """Note what an event says about the chain, without its text."""
        self.view.apply(event)
        self.view.forget_text()


@dataclass(eq=False)
class OpenRun:
    """A run's span, the values that its children repeat, and its open chains.

    Attributes:
        sources: the processes of the run, and which of them have ended their part.
        ends: the `data` of the `run_end`s of its parts, except of those that a leader counts.
        lost: the end of a part was lost, and no leader counts its chains; a `gap` stands for it.
    """

    span: Span
    context: Context
    agent: str = ""
    model: str = ""
    backend: str = ""
    tools: set[str] = field(default_factory=set)
    chains: dict[str, OpenChain] = field(default_factory=dict)
    error_type: str = OTHER
    sources: RunSources = field(default_factory=RunSources)
    ends: list[dict[str, Any]] = field(default_factory=list)
    lost: bool = False
    expected: dict[str, int] = field(default_factory=dict)  # `chains` and `groups` of its parts

    def expect(self, start: dict[str, Any]) -> None:
        """Add to its span how many chains and groups a part begins with, if its `run_start` says so."""
        for name in ("chains", "groups"):
            if start.get(name) is not None:
                self.expected[name] = self.expected.get(name, 0) + start[name]
                self.span.set_attribute(f"rollcast.run.{name}", self.expected[name])

    @property
    def provider(self) -> str:
        """The value of `gen_ai.provider.name`, which is required."""
        return self.backend or "rollcast"


class Spans:
    """Opens and ends spans at the times of events."""

    def __init__(self, tracer: Any) -> None:
        from opentelemetry.context import Context  # noqa: PLC0415  (an extra)
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context  # noqa: PLC0415

        self._tracer = tracer
        self._nowhere = Context()
        self._in_context = set_span_in_context
        self._internal = SpanKind.INTERNAL
        self._error = StatusCode.ERROR

    def open(
        self,
        name: str,
        parent: Context | None,
        event: StreamEvent,
        attributes: dict[str, Any],
        kind: Any = None,
    ) -> tuple[Span, Context]:
        """Open a span that begins with the event, a root span if there is no parent. Also returns its children's context."""
        place: dict[str, Any] = {
            "rollcast.run.id": event.run_id,
            "rollcast.source": event.source or None,
        }
        if event.chain_id and parent is not None:
            place |= {
                "gen_ai.conversation.id": f"{event.run_id}/{event.chain_id}",
                "rollcast.chain.id": event.chain_id,
                "rollcast.group.id": event.group_id,
                "rollcast.step": event.step,
            }
        span: Span = self._tracer.start_span(
            name,
            self._nowhere if parent is None else parent,
            kind or self._internal,
            {key: value for key, value in (place | attributes).items() if value is not None},
            start_time=nanoseconds(event),
        )
        return span, self._in_context(span, self._nowhere)

    def end(self, span: Span, at: int, attributes: dict[str, Any], error_type: str | None = None) -> None:
        """End a span, as an error if `error_type` is given."""
        set_known(span, attributes)
        if error_type is not None:
            span.set_attribute("error.type", error_type)
            span.set_status(self._error)
        span.end(at)

    def settle(self, chain: OpenChain, error_type: str) -> None:
        """End the generation that failed: its error has come by now or never will."""
        if chain.failed is not None:
            (span, at), chain.failed = chain.failed, None
            self.end(span, at, {}, error_type)

    def close_children(self, chain: OpenChain, why: str, at: int) -> None:
        """End the chain's open generation and tool calls."""
        self.settle(chain, OTHER)
        left = [*chain.tools.values(), *([chain.generation] if chain.generation is not None else [])]
        chain.tools.clear()
        chain.generation = None
        for span in left:
            self.end(span, at, {"rollcast.cut_short": why})

    def cut(self, chain: OpenChain, why: str, at: int) -> None:
        """End the chain's span and all open spans in it."""
        self.close_children(chain, why, at)
        self.end(chain.span, at, {"rollcast.cut_short": why})


def set_known(span: Span, attributes: dict[str, Any]) -> None:
    """Set the attributes that are not None."""
    for name, value in attributes.items():
        if value is not None:
            span.set_attribute(name, value)


def nanoseconds(event: StreamEvent) -> int:
    """The event's time in nanoseconds since the epoch."""
    return int(event.timestamp * 1e9)


# -- contents, in the shape of gen-ai-input-messages.json ------------------------------------------------------------


def text_part(content: Any) -> dict[str, Any]:
    """Text as one part of a message."""
    return {"type": "text", "content": content}


def tool_message(call_id: str, text: Any) -> dict[str, Any]:
    """A tool's result as a message."""
    return {"role": "tool", "parts": [{"type": "tool_call_response", "id": call_id, "response": text}]}


def said_by(message: dict[str, Any]) -> dict[str, Any]:
    """One of our messages in the shape of the conventions."""
    content = message.get("content")
    if message["role"] == "tool":
        return tool_message(message.get("tool_call_id", ""), content)
    parts = list(content) if isinstance(content, list) else [text_part(content)] if content else []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function["name"],
                "arguments": function["arguments"],
            }
        )
    return {"role": message["role"], "parts": parts}


def messages_attribute(name: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The attribute with these messages, each of ours or already in the shape of the conventions."""
    return {name: as_json([m if "parts" in m else said_by(m) for m in messages])}


def as_json(value: Any) -> str:
    """The value as JSON, since this SDK's spans have no structured attributes; a string stays as it is."""
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def clean(text: str) -> str:
    """The text without lone surrogates: with one in it, an exporter could not send the batch at all."""
    return text.encode("utf-8", "replace").decode()
