"""Makes OpenTelemetry traces of runs (docs/metrics.md).

    invoke_workflow AGENT            the run
      invoke_agent AGENT             a chain
        chat MODEL                   a generation
        execute_tool NAME            a tool call

Names and attributes are those of the OpenTelemetry semantic conventions for generative AI, version 1.41.0 (status:
development), https://github.com/open-telemetry/semantic-conventions/blob/v1.41.0/docs/gen-ai/gen-ai-agent-spans.md and
gen-ai-spans.md beside it; errors follow docs/general/recording-errors.md there. Names that they lack begin with `rollcast.`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rollcast.errors import MissingExtraError
from rollcast.observers.otel_spans import (
    OTHER,
    OpenChain,
    OpenRun,
    Spans,
    as_json,
    clean,
    nanoseconds,
    said_by,
    set_known,
    text_part,
    tool_message,
)
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream.observer import StreamObserver
from rollcast.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["OpenTelemetryStreamObserver"]

T = StreamEventType
SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
IN_PROCESS = frozenset(
    ("scripted", "tiny", "transformers", "vllm")
)  # backends; the spans of other backends are CLIENT
OPEN_RUNS = 1024  # a run of events made by hand may never end; with more open runs, the oldest is cut short
NAME_LIMIT = 256  # characters in a tool's name, since models invent names


class OpenTelemetryStreamObserver(StreamObserver):
    """Makes a trace of each run, with the times of its events. The provider exports it.

    If the beginning of a span was not seen, the span starts when the observer joined and has `rollcast.joined_late`; if the
    end was not seen, `rollcast.cut_short` says why. No events are made of tokens for this observer.

    Args:
        tracer_provider: where the spans go; None: the global provider.
        content: True records prompts, generated text, tool arguments and results. They may be private, and they are large:
            each generation's span then has its whole prompt.

    Raises:
        MissingExtraError: `opentelemetry` is not installed.
    """

    threaded = True  # a span processor may export, and wait, when a span ends

    def __init__(self, tracer_provider: TracerProvider | None = None, *, content: bool = False) -> None:
        try:
            from opentelemetry import trace  # noqa: PLC0415  (an extra)
        except ModuleNotFoundError as error:
            raise MissingExtraError("OpenTelemetryStreamObserver", "otel") from error
        provider = trace.get_tracer_provider() if tracer_provider is None else tracer_provider
        self._spans = Spans(provider.get_tracer("rollcast", __version__, schema_url=SCHEMA))
        self._content = content
        self._runs: dict[str, OpenRun] = {}
        self._handlers: dict[StreamEventType, Callable[[StreamEvent], None]] = {
            T.RUN_START: self._run_start,
            T.RUN_END: self._run_end,
            T.CHAIN_START: self._chain_start,
            T.CHAIN_END: self._chain_end,
            T.CHAIN_SNAPSHOT: self._snapshot,
            T.LLM_GENERATION_START: self._generation_start,
            T.LLM_GENERATION_END: self._generation_end,
            T.TOOL_CALL_START: self._tool_call_start,
            T.TOOL_CALL_END: self._tool_call_end,
            T.REWARD: self._reward,
            T.ERROR: self._error,
            T.GAP: self._gap,
        }
        if content:
            self._handlers[T.TOOL_OBSERVATION] = self._observation
            self._handlers[T.MESSAGE] = self._message
        self.filter = EventFilter(types=self._handlers)

    async def on_event(self, event: StreamEvent) -> None:
        """Open, change or end the spans that the event is about."""
        handler = self._handlers.get(event.event_type)
        if handler is None:
            return
        chain = self._known(event)
        if chain is not None:
            chain.heard(event)
        handler(event)

    async def on_chain_closed(self, run_id: str, chain_id: str) -> None:
        """End the chain's spans if the end was not seen."""
        run = self._runs.get(run_id)
        chain = None if run is None else run.chains.pop(chain_id, None)
        if chain is not None:
            self._spans.cut(chain, "unseen", time.time_ns())

    async def on_run_closed(self, run_id: str) -> None:
        """End the run's spans if the end was not seen."""
        self._cut_run(run_id, "unseen")

    async def aclose(self) -> None:
        """End every open span. The provider's owner flushes it and shuts it down."""
        for run_id in list(self._runs):
            self._cut_run(run_id, "removed")

    def _cut_run(self, run_id: str, why: str) -> None:
        run, now = self._runs.pop(run_id, None), time.time_ns()
        if run is not None:
            for chain in run.chains.values():
                self._spans.cut(chain, why, now)
            run.span.set_attribute("rollcast.cut_short", why)
            run.span.end(now)

    # -- runs --------------------------------------------------------------------------------------------------------

    def _run_start(self, event: StreamEvent) -> None:
        self._open_run(event, event.data)

    def _open_run(self, event: StreamEvent, data: dict[str, Any] | None) -> OpenRun:
        """Open the run's span; `data` is None if the beginning was not seen."""
        about = data or {}
        agent = about.get("agent", "")
        span, context = self._spans.open(
            f"invoke_workflow {agent}".rstrip(),
            None,
            event,
            {
                "gen_ai.operation.name": "invoke_workflow",
                "gen_ai.workflow.name": agent or None,
                "rollcast.run.chains": about.get("chains"),
                "rollcast.run.groups": about.get("groups"),
                "rollcast.run.parent_id": about.get("parent_run_id"),
                "rollcast.run.split": about.get("split"),
                "rollcast.policy_version": about.get("policy_version"),
                "rollcast.joined_late": True if data is None else None,
            },
        )
        run = OpenRun(span, context, agent, about.get("model", ""), about.get("backend", ""))
        self._cut_run(event.run_id, "unseen")  # a second start, made by hand
        self._runs[event.run_id] = run
        if len(self._runs) > OPEN_RUNS:
            self._cut_run(next(iter(self._runs)), "unseen")
        return run

    def _run_end(self, event: StreamEvent) -> None:
        run = self._runs.pop(event.run_id, None)
        if run is None:
            return
        for chain in run.chains.values():
            self._spans.cut(chain, "unseen", nanoseconds(event))
        data = event.data
        attributes = {
            "rollcast.run.status": data["status"],
            "rollcast.run.failed_chains": data["failed"],
            "rollcast.run.completion_tokens": data["completion_tokens"],
            "rollcast.run.mean_reward": data["mean_reward"],
        }
        self._spans.end(
            run.span, nanoseconds(event), attributes, run.error_type if data["status"] == "failed" else None
        )

    # -- chains ------------------------------------------------------------------------------------------------------

    def _chain_start(self, event: StreamEvent) -> None:
        data = event.data
        chain = self._open_chain(
            event,
            {
                "rollcast.chain.index": data["index"],
                "rollcast.policy_version": data["policy_version"],
                **self._said("gen_ai.input.messages", data["messages"]),
            },
        )
        self._runs[event.run_id].tools.update(data["tools"])  # all of them; a view keeps only 128
        if self._content:
            chain.history = [said_by(m) for m in data["messages"]]

    def _snapshot(self, event: StreamEvent) -> None:
        """Open the spans of a chain that is open when the observer joins, or that comes back after a gap."""
        run = self._runs.get(event.run_id)
        if run is not None and event.chain_id in run.chains:
            return
        late = {"rollcast.joined_late": True}
        chain = self._open_chain(event, late)
        if self._content:
            chain.history = [said_by(m) for m in event.data["messages"]]
        if event.data["content"] is not None:
            self._open_generation(event, chain, late)
        for call in event.data["tool_calls"]:
            self._open_tool(event, chain, call, late)

    def _chain(self, event: StreamEvent) -> OpenChain:
        """The event's chain, opened late if its beginning was not seen."""
        run = self._runs.get(event.run_id)
        chain = None if run is None else run.chains.get(event.chain_id)
        return chain or self._open_chain(event, {"rollcast.joined_late": True})

    def _known(self, event: StreamEvent) -> OpenChain | None:
        run = self._runs.get(event.run_id)
        return None if run is None else run.chains.get(event.chain_id)

    def _open_chain(self, event: StreamEvent, attributes: dict[str, Any]) -> OpenChain:
        run = self._runs.get(event.run_id) or self._open_run(event, None)
        again = run.chains.pop(event.chain_id, None)
        if again is not None:
            self._spans.cut(again, "unseen", nanoseconds(event))
        span, context = self._spans.open(
            f"invoke_agent {run.agent}".rstrip(),
            run.context,
            event,
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": run.agent or None,
                "gen_ai.provider.name": run.provider,
                "gen_ai.request.model": run.model or None,
                **attributes,
            },
        )
        chain = run.chains[event.chain_id] = OpenChain(span, context)
        chain.heard(event)
        run.tools.update(chain.view.tools or ())
        return chain

    def _chain_end(self, event: StreamEvent) -> None:
        run = self._runs.get(event.run_id)
        chain = None if run is None else run.chains.pop(event.chain_id, None)
        if chain is None:
            return
        now, data = nanoseconds(event), event.data
        self._spans.close_children(chain, "unseen", now)
        answer = {
            "role": "assistant",
            "parts": [text_part(data["final_response"])],
            "finish_reason": data["finish_reason"],
        }
        attributes = {
            "gen_ai.usage.output_tokens": data["completion_tokens"],
            "rollcast.chain.finish_reason": data["finish_reason"],
            "rollcast.chain.steps": data["steps"],
            "rollcast.reward": data["reward"],
            **self._said("gen_ai.output.messages", [answer]),
        }
        self._spans.end(
            chain.span, now, attributes, chain.error_type if data["finish_reason"] == "error" else None
        )

    def _reward(self, event: StreamEvent) -> None:
        chain = self._known(event)
        if chain is None:
            return
        name = "step_reward" if event.data.get("final") is False else "reward"
        scores = {name: event.data["reward"], **event.data["metrics"]}
        for name, value in scores.items():
            if isinstance(value, int | float):
                attributes = {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": float(value)}
                chain.span.add_event("gen_ai.evaluation.result", attributes, nanoseconds(event))

    def _error(self, event: StreamEvent) -> None:
        """Add an event to the span of the chain or the run; the failed generation that it explains ends with its type."""
        run = self._runs.get(event.run_id)
        if run is None:
            return
        data = event.data
        error_type = data["error_type"] or OTHER
        chain = run.chains.get(event.chain_id)
        if chain is None and not data["where"].startswith("observer:"):  # not the run's failure
            run.error_type = error_type
        if chain is not None:
            self._spans.settle(chain, error_type if data["where"] == "backend" else OTHER)
        attributes = {
            "exception.type": error_type,
            "exception.message": clean(data["error"]),
            "rollcast.error.where": clean(data["where"]),
        }
        (run if chain is None else chain).span.add_event("exception", attributes, nanoseconds(event))

    def _gap(self, event: StreamEvent) -> None:
        """Cut all open chains of the run, since they may have ended in the gap. Those that have not come back as snapshots."""
        run = self._runs.get(event.run_id)
        if run is None:
            return
        for chain in run.chains.values():
            self._spans.cut(chain, "gap", nanoseconds(event))
        run.chains.clear()
        dropped = sum((event.data["dropped"] or {}).values())
        run.span.add_event("rollcast.gap", {"rollcast.gap.dropped": dropped}, nanoseconds(event))

    # -- generations and tool calls ----------------------------------------------------------------------------------

    def _generation_start(self, event: StreamEvent) -> None:
        chain, data = self._chain(event), event.data
        sampling = data["sampling"]
        self._open_generation(
            event,
            chain,
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

    def _open_generation(self, event: StreamEvent, chain: OpenChain, attributes: dict[str, Any]) -> None:
        from opentelemetry.trace import SpanKind  # noqa: PLC0415  (an extra)

        run = self._runs[event.run_id]
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

    def _message(self, event: StreamEvent) -> None:
        """Add a message from outside to the conversation, after the results of the calls before it."""
        chain = self._known(event)
        if chain is not None:
            _list_results(chain)
            chain.history.append(said_by(event.data))

    def _generation_end(self, event: StreamEvent) -> None:
        chain, data = self._known(event), event.data
        if chain is None or chain.generation is None:
            return
        span, chain.generation = chain.generation, None
        said = {"role": "assistant", "parts": [text_part(data["content"])]}
        set_known(
            span,
            {
                "gen_ai.response.finish_reasons": [data["finish_reason"]],
                "gen_ai.response.time_to_first_chunk": data["ttft_s"],
                "gen_ai.usage.input_tokens": data["prompt_tokens"],
                "gen_ai.usage.output_tokens": data["completion_tokens"],
                **self._said("gen_ai.output.messages", [{**said, "finish_reason": data["finish_reason"]}]),
            },
        )
        if self._content:
            chain.history.append(said)
        if data["finish_reason"] == "error":
            chain.failed = (span, nanoseconds(event))
        else:
            span.end(nanoseconds(event))

    def _tool_call_start(self, event: StreamEvent) -> None:
        self._open_tool(event, self._chain(event), event.data, {})

    def _open_tool(
        self, event: StreamEvent, chain: OpenChain, call: dict[str, Any], attributes: dict[str, Any]
    ) -> None:
        self._spans.settle(chain, OTHER)
        name, call_id = call["tool_name"], call["call_id"]
        # A span's name should have few values, so a tool that the model invented is named only in the attribute.
        known = name in self._runs[event.run_id].tools
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

    def _observation(self, event: StreamEvent) -> None:
        chain, data = self._known(event), event.data
        if chain is None or data["partial"]:
            return
        chain.results[data["call_id"]] = data["observation"]
        span = chain.tools.get(data["call_id"])
        if span is not None:
            span.set_attribute("gen_ai.tool.call.result", clean(data["observation"]))

    def _tool_call_end(self, event: StreamEvent) -> None:
        chain, data = self._known(event), event.data
        span = None if chain is None else chain.tools.pop(data["call_id"], None)
        if span is not None:
            error_type = {"error": "tool_error", "timeout": "timeout"}.get(data["status"])
            self._spans.end(span, nanoseconds(event), {"rollcast.tool.status": data["status"]}, error_type)

    def _said(self, name: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The attribute with these messages, if contents are wanted."""
        if not self._content:
            return {}
        return {name: as_json([m if "parts" in m else said_by(m) for m in messages])}


def _list_results(chain: OpenChain) -> None:
    """Add the results of the ended calls to the conversation."""
    chain.history += [tool_message(call_id, text) for call_id, text in chain.results.items()]
    chain.results.clear()
