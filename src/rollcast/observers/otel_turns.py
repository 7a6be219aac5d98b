"""The spans inside a chain, for `otel.py`: its generations and its tool calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rollcast.observers.otel_spans import (
    OTHER,
    OpenChain,
    OpenRun,
    Spans,
    as_json,
    clean,
    messages_attribute,
    nanoseconds,
    said_by,
    set_known,
    text_part,
    tool_message,
)
from rollcast.records import StreamEvent, StreamEventType

__all__ = ["TurnSpans"]

T = StreamEventType
IN_PROCESS = frozenset(
    ("scripted", "tiny", "transformers", "vllm")
)  # backends; the spans of other backends are CLIENT
NAME_LIMIT = 256  # characters in a tool's name, since models invent names


class TurnSpans:
    """Opens, changes and ends the spans of a chain's generations and tool calls.

    Args:
        spans: opens and ends spans.
        content: whether to record prompts, generated text, tool arguments and results.

    Attributes:
        handlers: what to call with the run, the chain and the event, by the event's type.
        opening: the types that open a span, so that their chain must be open.
    """

    opening = frozenset((T.LLM_GENERATION_START, T.TOOL_CALL_START))

    def __init__(self, spans: Spans, *, content: bool) -> None:
        self._spans = spans
        self._content = content
        self.handlers: dict[StreamEventType, Callable[[OpenRun, OpenChain, StreamEvent], None]] = {
            T.LLM_GENERATION_START: self._generation_start,
            T.LLM_GENERATION_END: self._generation_end,
            T.TOOL_CALL_START: self._tool_call_start,
            T.TOOL_CALL_END: self._tool_call_end,
        }
        if content:
            self.handlers[T.TOOL_OBSERVATION] = self._observation
            self.handlers[T.MESSAGE] = self._message

    def _generation_start(self, run: OpenRun, chain: OpenChain, event: StreamEvent) -> None:
        data, sampling = event.data, event.data["sampling"]
        self.open_generation(
            run,
            chain,
            event,
            {
                "gen_ai.request.model": data["model"] or None,
                "gen_ai.request.temperature": sampling.get("temperature"),
                "gen_ai.request.top_p": sampling.get("top_p"),
                "gen_ai.request.top_k": sampling.get("top_k") or None,  # 0 keeps all tokens
                "gen_ai.request.max_tokens": sampling.get("max_tokens"),
                "gen_ai.request.stop_sequences": list(sampling.get("stop") or ()) or None,
                "rollcast.policy_version": data["policy_version"],
            },
        )

    def open_generation(
        self, run: OpenRun, chain: OpenChain, event: StreamEvent, attributes: dict[str, Any]
    ) -> None:
        """Open the span of a generation, with these attributes besides those that all have."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415  (an extra)

        self._spans.close_children(chain, "unseen", nanoseconds(event))
        if self._content:
            _list_results(chain)
        model = attributes.get("gen_ai.request.model") or run.model
        chain.generation, _ = self._spans.open(
            f"chat {model}".rstrip(),
            chain.context,
            event,
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": run.provider,
                "gen_ai.request.model": model or None,
                "gen_ai.request.stream": True,
                **attributes,
                **({"gen_ai.input.messages": as_json(chain.history)} if self._content else {}),
            },
            SpanKind.INTERNAL if run.backend in IN_PROCESS else SpanKind.CLIENT,
        )

    def _message(self, _: OpenRun, chain: OpenChain, event: StreamEvent) -> None:
        """Add a message from outside to the conversation, after the results of the calls before it."""
        _list_results(chain)
        chain.history.append(said_by(event.data))

    def _generation_end(self, _: OpenRun, chain: OpenChain, event: StreamEvent) -> None:
        span, data = chain.generation, event.data
        if span is None:
            return
        chain.generation = None
        said = {"role": "assistant", "parts": [text_part(data["content"])]}
        answer = {**said, "finish_reason": data["finish_reason"]}
        set_known(
            span,
            {
                "gen_ai.response.finish_reasons": [data["finish_reason"]],
                "gen_ai.response.time_to_first_chunk": data["ttft_s"],
                "gen_ai.usage.input_tokens": data["prompt_tokens"],
                "gen_ai.usage.output_tokens": data["completion_tokens"],
                **(messages_attribute("gen_ai.output.messages", [answer]) if self._content else {}),
            },
        )
        if self._content:
            chain.history.append(said)
        if data["finish_reason"] == "error":
            chain.failed = (span, nanoseconds(event))
        else:
            span.end(nanoseconds(event))

    def _tool_call_start(self, run: OpenRun, chain: OpenChain, event: StreamEvent) -> None:
        self.open_tool(run, chain, event, event.data, {})

    def open_tool(
        self,
        run: OpenRun,
        chain: OpenChain,
        event: StreamEvent,
        call: dict[str, Any],
        attributes: dict[str, Any],
    ) -> None:
        """Open the span of a tool call, with these attributes besides those that all have."""
        self._spans.settle(chain, OTHER)
        name, call_id = call["tool_name"], call["call_id"]
        # A span's name should have few values, so a tool that the model invented is named only in the attribute.
        known = name in run.tools
        again = chain.tools.pop(call_id, None)
        if again is not None:
            again.end(nanoseconds(event))
        chain.tools[call_id], _ = self._spans.open(
            f"execute_tool {name}" if known else "execute_tool",
            chain.context,
            event,
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": clean(name[:NAME_LIMIT]),
                "gen_ai.tool.call.id": clean(call_id),
                "gen_ai.tool.type": "function",
                **attributes,
                **({"gen_ai.tool.call.arguments": as_json(call["arguments"])} if self._content else {}),
            },
        )
        if self._content:
            chain.results[call_id] = ""

    def _observation(self, _: OpenRun, chain: OpenChain, event: StreamEvent) -> None:
        data = event.data
        if data["partial"]:
            return
        chain.results[data["call_id"]] = data["observation"]
        span = chain.tools.get(data["call_id"])
        if span is not None:
            span.set_attribute("gen_ai.tool.call.result", clean(data["observation"]))

    def _tool_call_end(self, _: OpenRun, chain: OpenChain, event: StreamEvent) -> None:
        data = event.data
        span = chain.tools.pop(data["call_id"], None)
        if span is not None:
            error_type = {"error": "tool_error", "timeout": "timeout"}.get(data["status"])
            self._spans.end(span, nanoseconds(event), {"rollcast.tool.status": data["status"]}, error_type)


def _list_results(chain: OpenChain) -> None:
    """Add the results of the ended calls to the conversation."""
    chain.history += [tool_message(call_id, text) for call_id, text in chain.results.items()]
    chain.results.clear()
