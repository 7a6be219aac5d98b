"""OpenTelemetry: the tree of spans, their names, attributes and times, and that none is left open."""

import asyncio
import json
import sys

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rollcast import BaseAgent, OpenTelemetryStreamObserver, tool
from rollcast.errors import MissingExtraError
from rollcast.records import StreamEventType
from rollcast.stream import StreamingManager
from rollcast.testing import EventCapture, ScriptedBackend
from rollcast.tools import calculator

HELLO = [{"role": "user", "content": "What is 2 + 2?"}]
CALL = '<tool_call>\n{"name": "NAME", "arguments": {"expression": "2 + 2"}}\n</tool_call>'
SCRIPT = ["Let me see. " + CALL.replace("NAME", "calculator"), "It is 4."]


class Traces:
    """The spans that ended."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self):
        return list(self._exporter.get_finished_spans())

    def of(self, operation, chain_id=None):
        """Those of one operation, in the order of their beginnings."""
        found = [s for s in self.spans if s.attributes["gen_ai.operation.name"] == operation]
        chain = [s for s in found if chain_id in (None, s.attributes.get("rollcast.chain.id"))]
        return sorted(chain, key=lambda span: span.start_time)

    def one(self, operation, chain_id=None):
        (span,) = self.of(operation, chain_id)
        return span

    def children(self, parent):
        return [s for s in self.spans if s.parent is not None and s.parent.span_id == parent.context.span_id]


@pytest.fixture
def traces():
    return Traces()


@pytest.fixture
def observer(traces):
    return OpenTelemetryStreamObserver(traces.provider)


@pytest.fixture
def watched(observer):
    """A manager with the observer."""
    manager = StreamingManager()
    manager.add_observer(observer)
    return manager


def scripted(observer, script=SCRIPT, tools=(calculator,), **options):
    backend = options.pop("backend", None) or ScriptedBackend(script, model_name="tiny-1")
    agent = BaseAgent("tiny-1", tools=tools, backend=backend, name="solver", **options)
    agent.streaming_manager.add_observer(observer)
    return agent


def open_spans(observer):
    return sum(1 + len(run.chains) for run in observer._runs.values())


async def test_a_run_is_a_tree(observer, traces):
    """The run over its chains, a chain over its generations and tool calls, all of one trace."""
    agent = scripted(observer)
    await agent.run_async(5, HELLO, num_chains=2, enable_streaming=True)
    run = traces.one("invoke_workflow")
    assert run.name == "invoke_workflow solver"
    assert run.parent is None
    chains = traces.children(run)
    assert [chain.name for chain in chains] == ["invoke_agent solver"] * 2
    for chain in chains:
        assert sorted(child.name for child in traces.children(chain)) == [
            "chat tiny-1",
            "chat tiny-1",
            "execute_tool calculator",
        ]
    assert len({span.context.trace_id for span in traces.spans}) == 1
    assert len(traces.spans) == 1 + 2 * 4
    assert not observer._runs


async def test_attributes_are_those_of_the_conventions(observer, traces):
    """Model, provider, sampling, usage, finish reasons, tool and conversation."""
    agent = scripted(observer)
    result = await agent.run_async(5, HELLO, enable_streaming=True, sampling={"temperature": 0.5, "top_k": 7})
    first, _ = traces.of("chat")
    turn = result["chain_0"].turns[0]
    expected = {
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "tiny-1",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.max_tokens": 256,
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("tool_call",),
        "gen_ai.response.time_to_first_chunk": turn.ttft_s,
        "gen_ai.usage.input_tokens": turn.prompt_tokens,
        "gen_ai.usage.output_tokens": turn.completion_tokens,
        "gen_ai.conversation.id": f"{result.run_id}/chain_0",
        "rollcast.step": 1,
        "rollcast.group.id": "group_0",
    }
    assert {name: first.attributes.get(name) for name in expected} == expected
    call = traces.one("execute_tool")
    assert call.attributes["gen_ai.tool.name"] == "calculator"
    assert call.attributes["gen_ai.tool.call.id"] == "call_1_0"
    assert call.attributes["gen_ai.tool.type"] == "function"
    assert call.status.status_code is StatusCode.UNSET
    chain = traces.one("invoke_agent")
    assert chain.attributes["gen_ai.agent.name"] == "solver"
    assert chain.attributes["rollcast.chain.finish_reason"] == "answered"
    assert chain.attributes["gen_ai.usage.output_tokens"] == result["chain_0"].completion_tokens
    run = traces.one("invoke_workflow")
    assert run.attributes["gen_ai.workflow.name"] == "solver"
    assert run.attributes["rollcast.run.status"] == "completed"
    assert run.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.41.0"


@pytest.mark.parametrize(("backend", "kind"), [("tiny", SpanKind.INTERNAL), ("openai", SpanKind.CLIENT)])
async def test_a_model_elsewhere_is_a_client_call(observer, watched, traces, backend, kind):
    """One in this process is internal."""
    async with watched.run(backend=backend) as run:
        with run.chain(HELLO) as chain, chain.generation():
            pass
    assert traces.one("chat").kind is kind
    assert traces.one("chat").attributes["gen_ai.provider.name"] == backend
    assert traces.one("invoke_agent").kind is SpanKind.INTERNAL


async def test_spans_have_the_times_of_events(observer, traces):
    """To the microsecond, whenever the observer gets them."""
    agent = scripted(observer)
    capture = EventCapture()
    agent.streaming_manager.add_observer(capture)
    await agent.run_async(5, HELLO, enable_streaming=True)
    for operation, begins, ends in (
        ("invoke_workflow", "run_start", "run_end"),
        ("invoke_agent", "chain_start", "chain_end"),
        ("chat", "llm_generation_start", "llm_generation_end"),
        ("execute_tool", "tool_call_start", "tool_call_end"),
    ):
        times = [(s.start_time / 1e9, s.end_time / 1e9) for s in traces.of(operation)]
        seen = zip(capture.of(begins), capture.of(ends), strict=True)
        assert times == [pytest.approx((a.timestamp, b.timestamp), abs=1e-6) for a, b in seen]


async def test_no_content_by_default(observer, traces):
    """Neither prompts nor answers nor arguments nor results."""
    agent = scripted(observer)
    await agent.run_async(5, HELLO, enable_streaming=True)
    said = [str(dict(span.attributes)) for span in traces.spans]
    assert not [text for text in said if "2 + 2" in text or "It is 4" in text or "Let me see" in text]
    assert not observer.filter.wants(StreamEventType.LLM_GENERATION_CHUNK)
    assert not observer.filter.wants(StreamEventType.TOOL_OBSERVATION)


async def test_content_that_was_asked_for(traces):
    """In the conventions' shape: each generation has the whole conversation before it."""
    agent = scripted(OpenTelemetryStreamObserver(traces.provider, content=True))
    await agent.run_async(5, HELLO, enable_streaming=True)
    first, second = traces.of("chat")
    question = {"role": "user", "parts": [{"type": "text", "content": "What is 2 + 2?"}]}
    asked = {"role": "assistant", "parts": [{"type": "text", "content": SCRIPT[0]}]}
    told = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1_0", "response": "4"}]}
    assert json.loads(first.attributes["gen_ai.input.messages"]) == [question]
    assert json.loads(first.attributes["gen_ai.output.messages"]) == [{**asked, "finish_reason": "tool_call"}]
    assert json.loads(second.attributes["gen_ai.input.messages"]) == [question, asked, told]
    call = traces.one("execute_tool")
    assert json.loads(call.attributes["gen_ai.tool.call.arguments"]) == {"expression": "2 + 2"}
    assert call.attributes["gen_ai.tool.call.result"] == "4"
    chain = traces.one("invoke_agent")
    assert json.loads(chain.attributes["gen_ai.input.messages"]) == [question]
    (answer,) = json.loads(chain.attributes["gen_ai.output.messages"])
    assert answer["parts"] == [{"type": "text", "content": "It is 4."}]


async def test_results_stand_in_the_order_of_their_calls(traces, events):
    """Whichever tool is done first; and text that is no Unicode does not break an export."""
    observer = OpenTelemetryStreamObserver(traces.provider, content=True)
    for event in [
        events.start("chain_0"),
        events.generation_start("chain_0"),
        events.generation_end("chain_0", "\ud800"),
        events.call("chain_0", call_id="a"),
        events.call("chain_0", call_id="b"),
        events.observation("chain_0", "second", call_id="b"),
        events.call_end("chain_0", call_id="b"),
        events.observation("chain_0", "so far", call_id="a", partial=True),
        events.observation("chain_0", "first", call_id="a"),
        events.call_end("chain_0", call_id="a"),
        events.generation_start("chain_0"),
        events.generation_end("chain_0", "done"),
        events.end("chain_0"),
    ]:
        await observer.on_event(event)
    history = json.loads(traces.of("chat")[1].attributes["gen_ai.input.messages"])
    assert [m["parts"][0]["response"] for m in history if m["role"] == "tool"] == ["first", "second"]
    assert history[2]["parts"][0]["content"] == "?"
    await observer.aclose()


async def test_parallel_tool_calls_are_told_apart(watched, traces):
    """By their call ids; each has its own times and status."""
    async with watched.run() as run:
        with run.chain(HELLO, tools=["search"]) as chain:
            with chain.generation():
                pass
            one, other = (
                chain.tool_call("search", {}, "c1").start(),
                chain.tool_call("search", {}, "c2").start(),
            )
            other.observation("late", "timeout")
            other.end()
            one.observation("found")
            one.end()
    calls = {s.attributes["gen_ai.tool.call.id"]: s for s in traces.of("execute_tool")}
    assert calls["c1"].status.status_code is StatusCode.UNSET
    assert calls["c2"].status.status_code is StatusCode.ERROR
    assert calls["c2"].attributes["error.type"] == "timeout"
    assert calls["c1"].start_time <= calls["c2"].start_time <= calls["c2"].end_time <= calls["c1"].end_time
    assert {s.parent.span_id for s in calls.values()} == {traces.one("invoke_agent").context.span_id}


async def test_a_tool_that_fails_is_an_error(observer, traces):
    """Its chain goes on and is none."""

    @tool
    def breaks(expression: str) -> str:
        """Break."""
        raise ValueError(expression)

    agent = scripted(observer, [CALL.replace("NAME", "breaks"), "Well."], [breaks])
    await agent.run_async(5, HELLO, enable_streaming=True)
    call = traces.one("execute_tool")
    assert (call.status.status_code, call.attributes["error.type"]) == (StatusCode.ERROR, "tool_error")
    assert traces.one("invoke_agent").status.status_code is StatusCode.UNSET


async def test_an_invented_tool_is_named_in_the_attribute_alone(observer, traces):
    """The names of spans stay few."""
    agent = scripted(observer, [CALL.replace("NAME", "x" * 1000), "Well."])
    await agent.run_async(5, HELLO, enable_streaming=True)
    call = traces.one("execute_tool")
    assert call.name == "execute_tool"
    assert call.attributes["gen_ai.tool.name"] == "x" * 256


async def test_a_backend_that_fails_is_named_where_it_failed(observer, traces):
    """The generation and the chain end as errors of its type; the run is none."""
    agent = scripted(observer, backend=ScriptedBackend(fail_at=1))
    await agent.run_async(5, HELLO, enable_streaming=True)
    for span in (traces.one("chat"), traces.one("invoke_agent")):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "BackendError"
    (failure,) = traces.one("invoke_agent").events
    assert failure.name == "exception"
    assert failure.attributes["exception.type"] == "BackendError"
    assert failure.attributes["rollcast.error.where"] == "backend"
    assert traces.one("invoke_workflow").status.status_code is StatusCode.UNSET
    assert traces.one("chat").end_time <= failure.timestamp


async def test_a_failed_run_is_an_error(watched, traces):
    """Of a type that is not known better."""
    with pytest.raises(ZeroDivisionError):
        async with watched.run():
            raise ZeroDivisionError
    assert traces.one("invoke_workflow").status.status_code is StatusCode.ERROR
    assert traces.one("invoke_workflow").attributes["error.type"] == "_OTHER"


async def test_a_cancelled_chain_is_no_error(observer, traces):
    """Its spans end, and say that it was cancelled."""
    began = asyncio.Event()

    async def hang(request, index):
        began.set()
        await asyncio.Event().wait()

    agent = scripted(observer, backend=ScriptedBackend(before_token=hang))
    run = agent.prepare(5, HELLO, enable_streaming=True)
    going = asyncio.create_task(run.execute())
    await began.wait()
    run.cancel("chain_0")
    await going
    assert traces.one("chat").attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert traces.one("invoke_agent").attributes["rollcast.chain.finish_reason"] == "cancelled"
    assert {span.status.status_code for span in traces.spans} == {StatusCode.UNSET}
    assert not observer._runs


async def test_rewards_are_attributes_and_evaluations(observer, traces):
    """The reward on the chain's span, and an evaluation result for it and for each number beside it."""
    agent = scripted(observer, reward=lambda final_response: {"reward": 0.5, "length": len(final_response)})
    await agent.run_async(5, HELLO, enable_streaming=True)
    chain = traces.one("invoke_agent")
    assert chain.attributes["rollcast.reward"] == 0.5
    results = {e.attributes["gen_ai.evaluation.name"]: e for e in chain.events}
    assert results["reward"].name == "gen_ai.evaluation.result"
    assert {name: e.attributes["gen_ai.evaluation.score.value"] for name, e in results.items()} == {
        "reward": 0.5,
        "length": 8.0,
    }


async def test_overlapping_runs_are_two_traces(watched, observer, traces):
    """Chains of one name do not mix."""
    async with watched.run(agent="a") as one, watched.run(agent="b") as other:
        with one.chain(HELLO) as first, other.chain(HELLO) as second, first.generation(), second.generation():
            pass
    runs = {s.name: s for s in traces.of("invoke_workflow")}
    assert len(runs) == 2
    for agent, run_id in (("a", one.run_id), ("b", other.run_id)):
        run = runs[f"invoke_workflow {agent}"]
        (chain,) = traces.children(run)
        (generation,) = traces.children(chain)
        assert {s.attributes["rollcast.run.id"] for s in (run, chain, generation)} == {run_id}
        assert {s.context.trace_id for s in (chain, generation)} == {run.context.trace_id}
    assert not observer._runs


async def test_a_late_observer_opens_what_is_open(traces):
    """Run, chain, generation and tool calls, marked, from the moment at which it joins."""
    manager = StreamingManager()
    observer = OpenTelemetryStreamObserver(traces.provider)
    async with manager.run(agent="a") as run:
        with run.chain(HELLO) as chain:
            with chain.generation() as generation:
                generation.chunk("Let me see")
                manager.add_observer(observer)
            with run.chain(HELLO) as young, young.generation():
                pass
    for span in (
        traces.one("invoke_workflow"),
        traces.one("invoke_agent", "chain_0"),
        traces.one("chat", "chain_0"),
    ):
        assert span.attributes["rollcast.joined_late"] is True
        assert span.status.status_code is StatusCode.UNSET
    assert traces.one("chat", "chain_0").attributes["gen_ai.usage.output_tokens"] == 1
    assert "rollcast.joined_late" not in traces.one("invoke_agent", "chain_1").attributes
    assert len(traces.children(traces.one("invoke_workflow"))) == 2


async def test_a_late_observer_opens_tool_calls(traces):
    """Those that run while it joins."""
    manager = StreamingManager()
    async with manager.run() as run:
        with run.chain(HELLO, tools=["search"]) as chain:
            with chain.generation():
                pass
            with chain.tool_call("search", {}, "c1") as call:
                manager.add_observer(OpenTelemetryStreamObserver(traces.provider))
                call.observation("found")
    assert traces.one("execute_tool").attributes["rollcast.joined_late"] is True
    assert traces.one("execute_tool").attributes["rollcast.tool.status"] == "success"


async def test_a_gap_cuts_what_is_open(observer, traces, events):
    """The chains' spans end, marked; the run goes on, and what is open comes back as a snapshot."""
    for event in [
        events.run_start(1),
        events.start("chain_0"),
        events.generation_start("chain_0"),
        events(
            "gap", from_seq=3, to_seq=9, dropped={"tool_call_start": 2, "tool_call_end": 5}, reason="slow"
        ),
        events("chain_snapshot", "chain_0", messages=HELLO, content="Let", tool_calls=[], as_of=9),
        events.generation_end("chain_0", "Let me see"),
        events.end("chain_0"),
        events.run_end(),
    ]:
        await observer.on_event(event)
    for operation in ("chat", "invoke_agent"):
        cut, resumed = traces.of(operation)
        assert cut.attributes["rollcast.cut_short"] == "gap"
        assert resumed.attributes["rollcast.joined_late"] is True
        assert "rollcast.cut_short" not in resumed.attributes
    run = traces.one("invoke_workflow")
    assert [(e.name, e.attributes["rollcast.gap.dropped"]) for e in run.events] == [("rollcast.gap", 7)]
    assert run.attributes["rollcast.run.status"] == "completed"
    assert not observer._runs


def of_source(source, event):
    return msgspec.structs.replace(event, source=source)


async def test_a_run_of_two_sources_ends_with_the_last_of_them(observer, traces, events):
    """It is one span, with the figures of both parts; the first end cuts nothing of the other source."""
    for source, event in [
        ("a", events.run_start(1)),
        ("b", events.run_start(2)),
        ("a", events.start("chain_0")),
        ("b", events.start("chain_1")),
        ("a", events.end("chain_0")),
        ("a", events.run_end(1)),
    ]:
        await observer.on_event(of_source(source, event))
    assert not traces.of("invoke_workflow")
    assert open_spans(observer) == 2
    for event in (events.end("chain_1"), events.run_end(2, failed=1)):
        await observer.on_event(of_source("b", event))
    run = traces.one("invoke_workflow")
    assert {child.attributes["rollcast.chain.id"] for child in traces.children(run)} == {"chain_0", "chain_1"}
    assert not any("rollcast.cut_short" in span.attributes for span in traces.spans)
    assert run.attributes["rollcast.run.chains"] == 3
    assert run.attributes["rollcast.run.failed_chains"] == 1
    assert not observer._runs


async def test_a_source_that_is_lost_ends_its_part_of_a_run(observer, traces, events):
    """Its chains are cut; the run ends with the other source, and its figures are unknown."""
    for source, event in [
        ("a", events.run_start(1)),
        ("b", events.run_start(1)),
        ("a", events.start("chain_0")),
        ("b", events.start("chain_1")),
        ("a", events("gap", from_seq=9, to_seq=9, dropped={}, reason="died", run_status="unknown")),
        ("b", events.end("chain_1")),
        ("b", events.run_end()),
    ]:
        await observer.on_event(of_source(source, event))
    assert traces.one("invoke_agent", "chain_0").attributes["rollcast.cut_short"] == "gap"
    assert "rollcast.cut_short" not in traces.one("invoke_agent", "chain_1").attributes
    run = traces.one("invoke_workflow")
    assert run.attributes["rollcast.run.status"] == "unknown"
    assert "rollcast.run.completion_tokens" not in run.attributes
    assert not observer._runs


async def test_the_leader_of_a_run_tells_how_it_ended(observer, traces, events):
    """A worker's end leaves the run open, and adds nothing to what its driver counts."""
    worker = events.run_start(0)
    worker.data["leader"] = "driver"
    done = events.run_end(0)
    done.data["leader"] = "driver"
    for source, event in [
        ("driver", events.run_start(2)),
        ("worker", worker),
        ("worker", done),
    ]:
        await observer.on_event(of_source(source, event))
    assert not traces.spans
    await observer.on_event(of_source("driver", events.run_end(2)))
    run = traces.one("invoke_workflow")
    assert run.attributes["rollcast.run.chains"] == 2
    assert run.attributes["rollcast.run.status"] == "completed"
    assert not observer._runs


async def test_what_the_end_of_a_chain_finds_open_is_ended(observer, traces, events):
    """A generation and a tool call whose ends never came."""
    for event in [
        events.start("chain_0"),
        events.generation_start("chain_0"),
        events.call("chain_0"),
        events.end("chain_0"),
    ]:
        await observer.on_event(event)
    for operation in ("chat", "execute_tool"):
        assert traces.one(operation).attributes["rollcast.cut_short"] == "unseen"
    await observer.aclose()
    assert traces.one("invoke_workflow").attributes["rollcast.cut_short"] == "removed"
    assert not observer._runs


async def test_hooks_end_what_no_event_ends(observer, traces, events):
    """A filter or a gap may hide the ends of chains and runs."""
    await observer.on_event(events.run_start(2))
    for name in ("chain_0", "chain_1"):
        await observer.on_event(events.start(name))
    await observer.on_chain_closed(events.run_id, "chain_0")
    assert open_spans(observer) == 2
    await observer.on_run_closed(events.run_id)
    assert len(traces.spans) == 3
    assert {s.attributes["rollcast.cut_short"] for s in traces.spans} == {"unseen"}
    assert not observer._runs


async def test_an_observer_that_is_removed_ends_its_spans(watched, observer, traces):
    """And makes new ones when it is added again."""
    async with watched.run() as run:
        with run.chain(HELLO):
            watched.remove_observer(observer)
            watched.add_observer(observer)
    assert [s.attributes.get("rollcast.cut_short") for s in traces.of("invoke_agent")] == ["removed", None]
    assert not observer._runs


async def test_runs_that_never_end_are_bounded(observer, traces, monkeypatch, events, other_run):
    """The oldest is cut short."""
    monkeypatch.setattr("rollcast.observers.otel.OPEN_RUNS", 1)
    await observer.on_event(events.start("chain_0"))
    await observer.on_event(other_run.start("chain_0"))
    assert list(observer._runs) == [other_run.run_id]
    assert traces.one("invoke_workflow").attributes["rollcast.cut_short"] == "unseen"
    await observer.aclose()


async def test_ends_of_what_was_never_seen_are_ignored(observer, traces, events):
    """They open nothing."""
    for event in [
        events.generation_end("chain_0", "x"),
        events.call_end("chain_0"),
        events("reward", "chain_0", reward=1.0, metrics={}),
        events("error", error="x", error_type="E", where="observer:x"),
        events.end("chain_0"),
        events.run_end(),
    ]:
        await observer.on_event(event)
    assert not traces.spans
    assert not observer._runs


def test_a_missing_package_is_named(monkeypatch):
    """With the command that installs it, when the observer is made."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rollcast\[otel\]'"):
        OpenTelemetryStreamObserver()


async def test_a_late_observer_knows_the_tools_and_errors_of_a_chain(traces):
    """A snapshot tells of both, so a call's span has its tool's name, and a failed chain the type of its error."""
    manager = StreamingManager()
    async with manager.run() as run:
        with run.chain(HELLO, tools=["search"]) as chain:
            with chain.generation() as generation:
                generation.chunk("Let me see")
            chain.error(KeyError("x"), "agent")
            observer = OpenTelemetryStreamObserver(traces.provider)
            manager.add_observer(observer)
            with chain.tool_call("search", {}) as call:
                call.observation("found")
            chain.end("error")
    manager.remove_observer(observer)
    await manager.drain()
    assert traces.one("execute_tool").name == "execute_tool search"
    assert traces.one("invoke_agent").attributes["error.type"] == "KeyError"


async def test_messages_from_outside_and_rewards_of_steps(traces):
    """The next generation's prompt has the message, after the result before it; a step's reward has a name of its own."""
    manager = StreamingManager()
    manager.add_observer(OpenTelemetryStreamObserver(traces.provider, content=True))
    async with manager.run() as run:
        with run.chain(HELLO) as chain:
            with chain.generation() as generation:
                generation.chunk("I look.")
            with chain.tool_call("look", {}) as call:
                call.observation("nothing")
            chain.step_reward(0.25)
            chain.message({"role": "user", "content": "Hurry!"}, from_outside=True)
            with chain.generation() as generation:
                generation.chunk("4")
            chain.reward(1)
    _, second = traces.of("chat")
    prompt = json.loads(second.attributes["gen_ai.input.messages"])
    assert [m["role"] for m in prompt] == ["user", "assistant", "tool", "user"]
    assert prompt[-1]["parts"][0]["content"] == "Hurry!"
    scores = [
        (e.attributes["gen_ai.evaluation.name"], e.attributes["gen_ai.evaluation.score.value"])
        for e in traces.one("invoke_agent").events
    ]
    assert scores == [("step_reward", 0.25), ("reward", 1.0)]
