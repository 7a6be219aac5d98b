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
    clean,
    messages_attribute,
    nanoseconds,
    said_by,
    text_part,
)
from rollcast.observers.otel_turns import TurnSpans
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.lanes import summed_ends
from rollcast.stream.observer import StreamObserver
from rollcast.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["OpenTelemetryStreamObserver"]

T = StreamEventType
SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
LATE = {"rollcast.joined_late": True}  # of a span whose beginning was not seen
OPEN_RUNS = 1024  # a run of events made by hand may never end; with more open runs, the oldest is cut short


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
        self._turns = TurnSpans(self._spans, content=content)
        self._handlers: dict[StreamEventType, Callable[[StreamEvent], None]] = {
            T.RUN_START: self._run_start,
            T.RUN_END: self._run_end,
            T.CHAIN_START: self._chain_start,
            T.CHAIN_END: self._chain_end,
            T.CHAIN_SNAPSHOT: self._snapshot,
            T.REWARD: self._reward,
            T.ERROR: self._error,
            T.GAP: self._gap,
        }
        self.filter = EventFilter(types=[*self._handlers, *self._turns.handlers])

    async def on_event(self, event: StreamEvent) -> None:
        """Open, change or end the spans that the event is about."""
        kind = event.event_type
        about_turn, about_rest = self._turns.handlers.get(kind), self._handlers.get(kind)
        if about_turn is None and about_rest is None:
            return
        chain = self._known(event)
        if chain is not None:
            chain.heard(event)
        if about_rest is not None:
            about_rest(event)
        elif about_turn is not None:
            if chain is None and kind in TurnSpans.opening:
                chain = self._open_chain(event, LATE)
            if chain is not None:
                about_turn(self._runs[event.run_id], chain, event)
        run = self._runs.get(event.run_id)
        if run is not None:
            self._note_source(run, event)

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
        """Open the run's span, or let a further source join it: a part of a run has no span of its own."""
        run = self._runs.get(event.run_id)
        if run is None or event.source in run.sources.names:  # a second start of one source was made by hand
            self._open_run(event, event.data)
        elif "leader" not in event.data:
            run.expect(event.data)

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
                "rollcast.run.parent_id": about.get("parent_run_id"),
                "rollcast.run.split": about.get("split"),
                "rollcast.policy_version": about.get("policy_version"),
                "rollcast.joined_late": True if data is None else None,
            },
        )
        run = OpenRun(span, context, agent, about.get("model", ""), about.get("backend", ""))
        if data is not None:
            run.expect(data)
        self._cut_run(event.run_id, "unseen")  # a second start, made by hand
        self._runs[event.run_id] = run
        if len(self._runs) > OPEN_RUNS:
            self._cut_run(next(iter(self._runs)), "unseen")
        return run

    def _run_end(self, event: StreamEvent) -> None:
        run = self._runs.get(event.run_id)
        if run is not None and "leader" not in event.data:  # else its leader counts its chains
            run.ends.append(event.data)

    def _note_source(self, run: OpenRun, event: StreamEvent) -> None:
        """Cut the chains of the sources whose part ends with this event, and end the run once all parts have ended."""
        ended = run.sources.note(event)
        if not ended:
            return
        for chain_id, chain in list(run.chains.items()):
            if chain.view.source in ended:
                self._spans.cut(run.chains.pop(chain_id), "unseen", nanoseconds(event))
        if event.event_type is T.GAP and not run.sources.is_led(event.source):
            run.lost = True
        if run.sources.over and (run.ends or run.lost):
            self._end_run(event)

    def _end_run(self, event: StreamEvent) -> None:
        """End the run's span. If the end of a part was lost, its totals are unknown."""
        run = self._runs.pop(event.run_id)
        for chain in run.chains.values():
            self._spans.cut(chain, "unseen", nanoseconds(event))
        status = run.sources.status
        attributes: dict[str, Any] = {"rollcast.run.status": status}
        if run.lost:
            attributes["rollcast.cut_short"] = "gap"
        else:
            data = summed_ends(run.ends)
            attributes |= {
                "rollcast.run.failed_chains": data["failed"],
                "rollcast.run.completion_tokens": data["completion_tokens"],
                "rollcast.run.mean_reward": data["mean_reward"],
            }
        self._spans.end(
            run.span, nanoseconds(event), attributes, run.error_type if status == "failed" else None
        )

    # -- chains ------------------------------------------------------------------------------------------------------

    def _chain_start(self, event: StreamEvent) -> None:
        data = event.data
        chain = self._open_chain(
            event,
            {
                "rollcast.chain.index": data["index"],
                "rollcast.policy_version": data["policy_version"],
                **(messages_attribute("gen_ai.input.messages", data["messages"]) if self._content else {}),
            },
        )
        self._runs[event.run_id].tools.update(data["tools"])  # all of them; a view keeps only 128
        if self._content:
            chain.history = [said_by(m) for m in data["messages"]]

    def _snapshot(self, event: StreamEvent) -> None:
        """Open the spans of a chain that is open when the observer joins, or that comes back after a gap."""
        if self._known(event) is not None:
            return
        chain, run = self._open_chain(event, LATE), self._runs[event.run_id]
        if self._content:
            chain.history = [said_by(m) for m in event.data["messages"]]
        if event.data["content"] is not None:
            self._turns.open_generation(run, chain, event, LATE)
        for call in event.data["tool_calls"]:
            self._turns.open_tool(run, chain, event, call, LATE)

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
            **(messages_attribute("gen_ai.output.messages", [answer]) if self._content else {}),
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
        """Cut the source's open chains, since they may have ended in the gap. Those that have not come back as snapshots."""
        run = self._runs.get(event.run_id)
        if run is None:
            return
        for chain_id, chain in list(run.chains.items()):
            if event.source in ("", chain.view.source):
                self._spans.cut(run.chains.pop(chain_id), "gap", nanoseconds(event))
        dropped = sum((event.data["dropped"] or {}).values())
        run.span.add_event("rollcast.gap", {"rollcast.gap.dropped": dropped}, nanoseconds(event))
