"""Prometheus: what is counted, what is read at scrape time, and how labels stay bounded."""

import asyncio
import math
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from rollcast import BaseAgent, PrometheusStreamObserver, StreamEventType, tool
from rollcast.errors import InputError, MissingExtraError
from rollcast.records import EventFilter, StreamEvent
from rollcast.stream import StreamingManager
from rollcast.stream.queue import EventQueue
from rollcast.testing import EventCapture, RaisingObserver, ScriptedBackend, StallingObserver
from rollcast.tools import calculator

T = StreamEventType
HELLO = [{"role": "user", "content": "What is 2 + 2?"}]
CALL = '<tool_call>\n{"name": "NAME", "arguments": {"expression": "2 + 2"}}\n</tool_call>'


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def observer(registry):
    return PrometheusStreamObserver(registry)


@pytest.fixture
def value(registry):
    """The value of a sample, None where there is none."""
    return lambda name, /, **labels: registry.get_sample_value(f"rollcast_{name}", labels)


SCRIPT = ["Let me see. " + CALL.replace("NAME", "calculator"), "It is 4."]


def agent_with(observer, script=SCRIPT, **options):
    agent = BaseAgent("scripted", tools=[calculator], backend=ScriptedBackend(script), **options)
    agent.streaming_manager.add_observer(observer)
    return agent


async def test_a_run_is_counted(observer, value):
    """Chains, generations, tokens, tool calls and rewards of a whole run."""
    agent = agent_with(observer, reward=lambda final_response: float("4" in final_response))
    result = await agent.run_async(5, HELLO, num_chains=3, enable_streaming=True)
    tokens = sum(t.completion_tokens for t in result)
    assert value("runs_total", status="completed") == 1
    assert value("chains_total", finish_reason="answered") == 3
    assert value("generations_total", finish_reason="tool_call") == 3
    assert value("generations_total", finish_reason="stop") == 3
    assert value("generated_tokens_total") == tokens > 0
    assert value("prompt_tokens_total") > 0
    assert value("time_to_first_token_seconds_count") == 6
    assert value("generation_duration_seconds_count") == 6
    assert value("generation_tokens_per_second_count") == 6
    assert value("tool_duration_seconds_count", tool="calculator", status="success") == 3
    assert value("chain_duration_seconds_count") == 3
    assert value("reward_count") == 3
    assert value("mean_reward", split="") == 1.0
    assert value("events_total", type="chain_end") == 3


async def test_no_token_is_made_into_an_event_for_it(observer, value, monkeypatch):
    """It wants no chunk, and counts every token nevertheless."""
    agent = agent_with(observer)
    built = []
    put = EventQueue.put_in_each
    monkeypatch.setattr(
        EventQueue,
        "put_in_each",
        staticmethod(lambda queues, event, size: (built.append(event.event_type), put(queues, event, size))),
    )
    result = await agent.run_async(5, HELLO, enable_streaming=True)
    assert T.LLM_GENERATION_CHUNK not in built
    assert T.TOOL_OBSERVATION not in built
    assert value("events_total", type="llm_generation_chunk") is None
    assert value("generated_tokens_total") == result["chain_0"].completion_tokens


async def test_events_that_others_watch_are_counted(observer, value):
    """Chunks count where somebody wants them."""
    agent = agent_with(observer)
    capture = EventCapture()
    agent.streaming_manager.add_observer(capture)
    await agent.run_async(5, HELLO, enable_streaming=True)
    assert value("events_total", type="llm_generation_chunk") == len(capture.of("llm_generation_chunk")) > 0


async def test_tokens_of_an_open_generation_are_there_at_once(observer, value):
    """A scrape reads them from the trajectory: a counter that rises while the generation is open."""
    manager = StreamingManager()
    manager.add_observer(observer)
    async with manager.run() as run:
        assert (value("open_runs"), value("open_chains")) == (1, 0)
        with run.chain(HELLO) as chain:
            with chain.generation() as generation:
                generation.chunk("a b", [1, 2])
                assert value("generated_tokens_total") == 2
                generation.chunk(" c", [3])
                assert value("generated_tokens_total") == 3
            assert value("generated_tokens_total") == 3
            assert value("open_chains") == 1
    assert (value("open_runs"), value("open_chains")) == (0, 0)
    assert value("generated_tokens_total") == 3


async def test_tools_that_the_model_invents_are_one_series(observer, value, registry):
    """A name that no chain has among its tools is `unknown`."""
    agent = agent_with(observer, lambda request: CALL.replace("NAME", f"invented_{len(request.messages)}"))
    await agent.run_async(3, HELLO, num_chains=2, enable_streaming=True)
    assert value("tool_duration_seconds_count", tool="unknown", status="error") == 6
    assert b"invented" not in generate_latest(registry)


async def test_values_of_events_made_by_hand_are_bounded(observer, value, events):
    """A finish reason, status or place that is not documented is `other`."""
    await observer.on_event(events.end("chain_0", "bored"))
    await observer.on_event(events("error", error="?", error_type="E", where="tool:x"))
    await observer.on_event(events("error", error="?", error_type="E", where="moon:1"))
    assert value("chains_total", finish_reason="other") == 1
    assert value("errors_total", where="tool") == 1
    assert value("errors_total", where="other") == 1


async def test_tokens_of_foreign_runs_count_when_their_generations_end(observer, value, events):
    """Events that come from elsewhere have no trajectory here."""
    manager = StreamingManager()
    manager.add_observer(observer)
    for event in events.generation("chain_0", "4", "2"):
        manager.emit(event)
    await manager.drain()
    assert value("generated_tokens_total") == 3
    assert value("generations_total", finish_reason="stop") == 1


async def test_what_is_not_known_is_not_observed(observer, value, events):
    """A generation without a first token has no time to it."""
    data = {
        "content": "", "finish_reason": "error", "prompt_tokens": None, "completion_tokens": 0, "ttft_s": None,
        "duration_s": 0.0,
    }  # fmt: skip
    await observer.on_event(events("llm_generation_end", "chain_0", **data))
    assert value("generations_total", finish_reason="error") == 1
    assert value("time_to_first_token_seconds_count") == 0
    assert value("generation_tokens_per_second_count") == 0
    assert value("prompt_tokens_total") == 0


async def test_mean_rewards_are_kept_by_split(observer, value, events, other_run):
    """An evaluation between does not overwrite the training runs' mean."""
    about = {"chains": 1, "groups": 1, "agent": "a", "model": "m", "backend": "b", "policy_version": 0}
    end = {"status": "completed", "chains": 1, "failed": 0, "completion_tokens": 1, "duration_s": 1.0}
    for source, split, mean in ((events, "train", 0.25), (other_run, "eval", 0.75)):
        await observer.on_event(source("run_start", split=split, **about))
        await observer.on_event(source("run_end", mean_reward=mean, **end))
    assert value("mean_reward", split="train") == 0.25
    assert value("mean_reward", split="eval") == 0.75


async def test_queues_are_read_at_scrape_time(observer, value):
    """An observer that hangs shows in depth, bytes and lag."""
    manager = StreamingManager(drain_timeout=0)
    manager.add_observer(observer)
    stalled = StallingObserver()
    manager.add_observer(stalled)
    with_name = {"observer": "StallingObserver"}
    async with manager.run() as run:
        with run.chain(HELLO):
            await stalled.stalled.wait()
        assert value("observer_queued_events", **with_name) >= 2
        assert value("observer_queued_bytes", **with_name) > 0
        assert value("observer_lag_seconds", **with_name) >= 0
        assert value("observer_delivered_events_total", **with_name) == 0
        stalled.release()
    await manager.drain(10)
    assert value("observer_queued_events", **with_name) == 0
    assert value("observer_delivered_events_total", **with_name) == 4


async def test_failures_and_drops_are_counted(observer, value):
    """Per observer, with the error event that tells of it."""
    manager = StreamingManager(queue_limit=2000)
    manager.add_observer(observer)
    manager.add_observer(RaisingObserver(times=1))
    capture = StallingObserver(after=1)
    manager.add_observer(capture)
    async with manager.run() as run:
        await capture_stalled(capture, run)
        for i in range(20):
            with run.chain(HELLO, chain_id=f"c{i}"):
                pass
        capture.release()
    assert value("observer_failures_total", observer="RaisingObserver") == 1
    assert value("observer_dropped_events_total", observer="StallingObserver") > 0
    assert value("errors_total", where="observer") == 1


async def capture_stalled(stalling, run):
    with run.chain(HELLO, chain_id="first"):
        await stalling.stalled.wait()


async def test_observers_of_one_name_are_one_series_that_never_falls(observer, value):
    """Also where one of them leaves."""
    manager = StreamingManager()
    manager.add_observer(observer)
    one, other = EventCapture(), EventCapture()
    manager.add_observer(one)
    manager.add_observer(other)
    async with manager.run():
        pass
    assert value("observer_delivered_events_total", observer="EventCapture") == 4
    manager.remove_observer(other)
    assert value("observer_delivered_events_total", observer="EventCapture") == 4
    async with manager.run():
        pass
    assert value("observer_delivered_events_total", observer="EventCapture") == 6


async def test_counts_go_on_with_another_manager(observer, value):
    """What was counted stays when the observer is removed, unscraped, and added elsewhere."""
    for total in (2, 4):
        manager = StreamingManager()
        manager.add_observer(observer)
        async with manager.run() as run:
            with run.chain(HELLO) as chain, chain.generation() as generation:
                generation.chunk("a b", [1, 2])
        await manager.aclose()
        assert value("generated_tokens_total") == total
        assert value("runs_total", status="completed") == total / 2
        assert value("open_chains") == 0


async def test_nothing_of_a_run_is_kept(observer):
    """State does not grow with runs."""
    manager = StreamingManager()
    manager.add_observer(observer)
    for _ in range(3):
        async with manager.run(split="train") as run:
            with run.chain(HELLO):
                pass
    assert not observer._ours
    assert not observer._splits


async def test_errors_of_the_backend_are_counted(observer, value):
    """With where they came from."""
    agent = BaseAgent("scripted", backend=ScriptedBackend(fail_at=1))
    agent.streaming_manager.add_observer(observer)
    await agent.run_async(2, HELLO, enable_streaming=True)
    assert value("errors_total", where="backend") == 1
    assert value("chains_total", finish_reason="error") == 1
    assert value("generations_total", finish_reason="error") == 1


async def test_a_tool_that_times_out_has_its_status(observer, value):
    """The histogram tells timeouts from successes."""

    @tool(timeout=0.01)
    async def slow(expression: str) -> str:
        """Wait."""
        await asyncio.Event().wait()
        return expression

    agent = BaseAgent(
        "scripted", tools=[slow], backend=ScriptedBackend([CALL.replace("NAME", "slow"), "Well."])
    )
    agent.streaming_manager.add_observer(observer)
    await agent.run_async(2, HELLO, enable_streaming=True)
    assert value("tool_duration_seconds_count", tool="slow", status="timeout") == 1


def test_a_registry_takes_one(registry, observer):
    """A second one is refused whole, and can take the first one's place."""
    with pytest.raises(InputError, match="registry of its own"):
        PrometheusStreamObserver(registry)
    observer.unregister()
    observer.unregister()
    PrometheusStreamObserver(registry)


def test_buckets_must_rise(registry):
    """Wrong buckets are named, and nothing is registered."""
    with pytest.raises(InputError, match="reward_buckets"):
        PrometheusStreamObserver(registry, reward_buckets=(1, 0))
    PrometheusStreamObserver(registry, reward_buckets=(0, 10))


def test_names_follow_the_conventions(registry, observer):
    """Counters end in _total, every name has the prefix, and everything is documented."""
    for family in registry.collect():
        assert family.name.startswith("rollcast_")
        assert family.documentation
    text = generate_latest(registry).decode()
    assert "# TYPE rollcast_generated_tokens_total counter" in text
    assert "# TYPE rollcast_open_chains gauge" in text


def test_a_missing_package_is_named(monkeypatch):
    """With the command that installs it, when the observer is made."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rollcast\[metrics\]'"):
        PrometheusStreamObserver()


async def test_unknown_types_are_ignored(observer):
    """A wider filter does no harm."""
    observer.filter = EventFilter()
    before = [family.name for family in observer.collect()]
    await observer.on_event(StreamEvent.now(T.TRAIN_STEP, train_step=1, policy_version=1, metrics={}))
    assert [family.name for family in observer.collect()] == before


def train_step(events, step, version=None, **metrics):
    version = step if version is None else version
    return events("train_step", train_step=step, policy_version=version, metrics=metrics)


async def test_the_figures_of_a_training_are_there(observer, value, events):
    """Of the last step; tokens and steps are counted."""
    for step, loss in ((1, 0.5), (2, 0.25)):
        figures = {"mean_reward": 0.75, "success": 0.5, "entropy": 1.5, "kl": 0.01, "grad_norm": 2.0}
        event = train_step(
            events, step, loss=loss, tokens=100, tokens_per_s=900.0, clip_fraction=0.1, **figures
        )
        await observer.on_event(event)
    assert value("train_loss") == 0.25
    assert value("train_mean_reward") == 0.75
    assert value("train_success_ratio") == 0.5
    assert value("train_entropy_nats") == 1.5
    assert value("train_kl_nats") == 0.01
    assert value("train_gradient_norm") == 2.0
    assert value("train_clipped_ratio") == 0.1
    assert value("train_tokens_per_second") == 900.0
    assert value("train_step") == 2
    assert value("policy_version") == 2
    assert value("train_steps_total") == 2
    assert value("train_tokens_total") == 200


async def test_a_figure_that_nobody_gave_is_not_there(observer, value, events):
    """A loss of 0 would be a lie; what one event leaves out stays as it was."""
    assert value("train_loss") is None
    assert value("policy_version") is None
    await observer.on_event(events.run_start(1))
    assert value("policy_version") == 0
    await observer.on_event(train_step(events, 1, loss=0.5))
    await observer.on_event(train_step(events, 1, eval_loss=0.7))  # as TRL tells of an evaluation
    assert value("train_loss") == 0.5
    assert value("train_metric", name="eval_loss") == 0.7
    assert value("train_steps_total") == 1


async def test_the_figures_have_trls_names_too(observer, value, events):
    """`reward` instead of `mean_reward`; a user's own metrics are found by their names."""
    own = {"rollcast/metrics/letters": 3.0}
    await observer.on_event(train_step(events, 1, reward=0.5, loss=0.1, **own))
    assert value("train_mean_reward") == 0.5
    assert value("train_metric", name="rollcast/metrics/letters") == 3.0


async def test_tokens_a_second_are_measured_where_the_trainer_does_not_say(observer, value):
    """From the tokens that were sampled between two steps."""
    manager = StreamingManager()
    manager.add_observer(observer)
    async with manager.run() as run:
        manager.emit(
            StreamEvent("train_step", "", 100.0, {"train_step": 1, "policy_version": 1, "metrics": {}})
        )
        await manager.drain()
        assert value("train_tokens_per_second") is None
        with run.chain(HELLO) as chain, chain.generation() as generation:
            generation.chunk("a b", [1, 2, 3, 4])
        manager.emit(
            StreamEvent("train_step", "", 102.0, {"train_step": 2, "policy_version": 2, "metrics": {}})
        )
        await manager.drain()
        assert value("train_tokens_per_second") == 2.0


@pytest.mark.parametrize(
    "metrics",
    [None, 3, {}, {"loss": "low", "kl": None, 3: 4, "ok": True, "tokens": -5, "entropy": float("nan")}],
)
async def test_a_train_step_of_another_shape_is_no_failure(observer, value, events, metrics):
    """Made by hand: what is a number is shown, NaN too, and no counter falls."""
    await observer.on_event(events("train_step", train_step="x", policy_version=None, metrics=metrics))
    assert value("train_loss") is None
    assert value("train_step") is None
    assert value("train_tokens_total") == 0


async def test_a_loss_that_is_no_number_any_more_does_not_stay_what_it_was(observer, value, events):
    """NaN is null in JSON; a number that is too large for a float is infinite."""
    await observer.on_event(train_step(events, 1, loss=0.5, kl=0.1))
    await observer.on_event(train_step(events, 10**400, loss=None, grad_norm=10**400, entropy=-(10**400)))
    assert math.isnan(value("train_loss"))
    assert value("train_kl_nats") == 0.1
    assert value("train_gradient_norm") == value("train_step") == math.inf
    assert value("train_entropy_nats") == -math.inf


async def test_a_label_is_not_as_long_as_a_trainer_or_a_row_would_have_it(observer, events, registry):
    """A name of a megabyte would be in every scrape."""
    await observer.on_event(train_step(events, 1, **{"m" * 1_000_000: 1.0}))
    start = events.start("chain_0")
    start.data["tools"] = ["t" * 1_000_000]
    await observer.on_event(start)
    await observer.on_event(events.call_end("chain_0", name="t" * 1_000_000))
    assert max(map(len, generate_latest(registry).decode().splitlines())) < 500


async def test_names_of_metrics_tools_and_observers_are_bounded(observer, value, events, registry):
    """However many a trainer, rows and a program make up."""
    await observer.on_event(train_step(events, 1, **{f"metric_{i}": 1.0 for i in range(500)}))
    tools = [f"tool_{i}" for i in range(500)]
    start = events.start("chain_0")
    start.data["tools"] = tools
    await observer.on_event(start)
    for name in tools:
        await observer.on_event(events.call_end("chain_0", name=name))
    manager = StreamingManager()
    manager.add_observer(observer)
    for i in range(100):
        manager.add_observer(type(f"Observer{i}", (EventCapture,), {})())
    async with manager.run():
        pass
    text = generate_latest(registry).decode()
    assert text.count("rollcast_train_metric{") == 64
    assert text.count("rollcast_tool_duration_seconds_count{") == 201
    assert value("tool_duration_seconds_count", tool="unknown", status="success") == 300
    assert text.count("rollcast_observer_delivered_events_total{") == 65
    await manager.aclose()


async def test_names_follow_prometheus_conventions(observer, registry, events):
    """Counters end in `_total`, times are seconds, and every metric has its help."""
    await observer.on_event(train_step(events, 1, loss=1.0, rollout_s=1.0, update_s=1.0))
    for family in registry.collect():
        assert family.name.startswith("rollcast_")
        assert family.documentation
        assert not family.name.endswith(("_s", "_ms", "_percent"))
        if family.type == "counter":
            names = {sample.name for sample in family.samples if not sample.name.endswith("_created")}
            assert names <= {f"{family.name}_total"}


async def test_the_figures_of_a_rollout_have_families(observer, value, events, registry):
    """Ends, tools and a reward's own metrics each have one with a label; lengths have gauges."""
    figures = {
        "finish/answered": 0.75, "finish/error": 0.25, "tool/look/calls": 2.0, "tool/look/failed": 0.5, "metrics/exact": 0.5,
        "length/tokens": 10.0, "length/tokens_max": 30.0, "length/turns": 2.0, "length/turns_max": 4.0, "length/cut_turns": 0.5,
        "reward/steps": 1.5, "something": 1.0,
    }  # fmt: skip
    await observer.on_event(train_step(events, 1, **figures))
    assert value("train_finish_ratio", finish_reason="answered") == 0.75
    assert value("train_finish_ratio", finish_reason="error") == 0.25
    assert value("train_tool_calls", tool="look") == 2
    assert value("train_tool_failed_calls", tool="look") == 0.5
    assert value("train_reward_metric", name="exact") == 0.5
    assert (value("train_chain_tokens"), value("train_chain_tokens_max")) == (10, 30)
    assert (value("train_chain_turns"), value("train_chain_turns_max")) == (2, 4)
    assert (value("train_cut_turns"), value("train_step_rewards")) == (0.5, 1.5)
    assert generate_latest(registry).decode().count("rollcast_train_metric{") == 1
    await observer.on_event(train_step(events, 2, **{f"metrics/m{i}": 1.0 for i in range(500)}))
    assert generate_latest(registry).decode().count("rollcast_train_reward_metric{") == 200


async def test_rewards_of_steps_are_not_rewards_of_chains(observer, value):
    """The histogram has one reward for each chain."""
    manager = StreamingManager()
    manager.add_observer(observer)
    async with manager.run() as run:
        with run.chain(HELLO) as chain:
            chain.step_reward(0.25)
            chain.step_reward(0.25)
            chain.reward(1)
    assert value("reward_count") == 1
