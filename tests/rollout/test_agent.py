"""The agent: what a run does, and what it refuses before a chain starts."""

import asyncio
import json
import logging

import pytest

from rollcast import BaseAgent, Delta, EventFilter, Sampling, StreamingManager, reward, tool
from rollcast.errors import InputError, MessagesError, RewardDefinitionError, ToolDefinitionError
from rollcast.models import BaseBackend
from rollcast.testing import EventCapture, RaisingObserver, ScriptedBackend, StallingObserver, capture_events
from rollcast.tools import calculator

HELLO = [{"role": "user", "content": "What is 2 + 2?"}]
ROWS = [
    {"messages": HELLO, "answer": 4},
    {"messages": [{"role": "user", "content": "What is 3 + 3?"}], "answer": 6},
]
CALL = 'Let me see. <tool_call>\n{"name": "calculator", "arguments": {"expression": "2 + 2"}}\n</tool_call>'
SCRIPT = [CALL, "The answer is 4."]


def scripted(script=SCRIPT, tools=(calculator,), **options):
    backend = options.pop("backend", None) or ScriptedBackend(script)
    return BaseAgent("scripted", tools=tools, backend=backend, **options)


async def test_a_chain_calls_a_tool_and_answers():
    """Two generations with the tool between them; the trajectory has it all."""
    agent = scripted(reward=lambda final_response, answer: float(str(answer) in final_response))
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(5, ROWS[:1], enable_streaming=True)
    (t,) = result
    assert capture.types() == (
        ["run_start", "chain_start", "llm_generation_start"]
        + ["llm_generation_chunk"] * (len(t.turns[0].token_ids))
        + [
            "llm_generation_end",
            "tool_call_start",
            "tool_observation",
            "tool_call_end",
            "llm_generation_start",
        ]
        + ["llm_generation_chunk"] * (len(t.turns[1].token_ids))
        + ["llm_generation_end", "reward", "chain_end", "run_end"]
    )
    capture.check()
    assert t.finish_reason == "answered"
    assert t.final_response == "The answer is 4."
    assert t.reward == 1.0
    assert [m["role"] for m in t.messages] == ["user", "assistant", "tool", "assistant"]
    assert t.messages[1]["content"].strip() == "Let me see."
    assert t.messages[1]["tool_calls"][0]["function"] == {
        "name": "calculator",
        "arguments": {"expression": "2 + 2"},
    }
    assert t.messages[2]["content"] == "4"
    assert capture.text("chain_0", 1) == t.turns[0].text == CALL
    assert capture.of("llm_generation_end")[0].data["finish_reason"] == "tool_call"
    assert capture.of("chain_start")[0].data["reference"] == 4


async def test_the_observer_sees_what_is_trained_on():
    """Ids and log-probabilities of the chunks are the trajectory's."""
    agent = scripted()
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(5, ROWS, num_chains=3, enable_streaming=True)
    assert [t.chain_id for t in result] == [f"chain_{i}" for i in range(6)]
    assert [t.group_id for t in result] == ["group_0"] * 3 + ["group_1"] * 3
    for t in result:
        chunks = capture.of("llm_generation_chunk", t.chain_id)
        assert [i for c in chunks for i in c.data["token_ids"]] == [
            i for turn in t.turns for i in turn.token_ids
        ]
        assert len(t.token_ids) == len(t.loss_mask) == len(t.logprobs) == len(t.policy_versions)


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_same_seed_gives_the_same_trajectories(streaming):
    """Streaming on or off, with a stalled and a raising observer beside."""

    def backend():
        return ScriptedBackend(lambda r: f"seed {r.sampling.seed}")

    manager = StreamingManager(drain_timeout=0.01)
    observers = [EventCapture(), StallingObserver(), RaisingObserver()]
    for observer in observers:
        manager.add_observer(observer)
    agent = scripted(backend=backend(), streaming_manager=manager)
    a = await agent.run_async(3, ROWS, 4, enable_streaming=streaming, seed=11)
    b = await scripted(backend=backend()).run_async(3, ROWS, 4, seed=11)
    c = await scripted(backend=backend()).run_async(3, ROWS, 4, seed=12)
    assert [t.digest() for t in a] == [t.digest() for t in b]
    assert [t.digest() for t in a] != [t.digest() for t in c]
    assert a.seed == 11
    observers[1].release()
    await manager.aclose()


async def test_a_drawn_seed_is_told():
    """A run without a seed can be repeated with the one in its result."""
    agent = scripted(backend=ScriptedBackend(lambda r: f"seed {r.sampling.seed}"))
    first = await agent.run_async(1, HELLO)
    again = await agent.run_async(1, HELLO, seed=first.seed)
    assert [t.digest() for t in first] == [t.digest() for t in again]


async def test_siblings_share_their_prompt(monkeypatch):
    """The prompt of a row is rendered once, however many chains repeat it; each chain has ids of its own."""
    agent = scripted("hello")
    rendered = []
    render = agent.backend.renderer.render
    monkeypatch.setattr(
        agent.backend.renderer, "render", lambda *args: rendered.append(args) or render(*args)
    )
    result = await agent.run_async(1, ROWS, num_chains=3)
    assert len(rendered) == 2
    assert [t.turns[0].prompt_ids for t in result] == [
        render(r["messages"], []) for r in ROWS for _ in range(3)
    ]
    first, second, *_ = result
    first.turns[0].prompt_ids.clear()
    assert second.turns[0].prompt_ids


async def test_max_steps_counts_generations():
    """A chain that always calls a tool ends after that many."""
    agent = scripted(CALL)
    (t,) = await agent.run_async(3, HELLO)
    assert (t.finish_reason, len(t.turns), t.final_response) == ("max_steps", 3, "")
    assert len(t.tool_calls) == 3


async def test_out_of_tokens():
    """A generation that is cut by length ends its chain."""
    agent = scripted(backend=ScriptedBackend("one two three", finish_reason="length"))
    (t,) = await agent.run_async(3, HELLO)
    assert t.finish_reason == "max_tokens"
    assert t.turns[0].finish_reason == "length"


async def test_a_terminal_tool_ends_the_chain():
    """Its observation is the final response."""

    @tool(terminal=True)
    def submit(answer: int) -> int:
        """Hand in."""
        return answer

    text = '<tool_call>{"name": "submit", "arguments": {"answer": 7}}</tool_call>'
    (t,) = await scripted(text, tools=[submit]).run_async(9, HELLO)
    assert (t.finish_reason, t.final_response, len(t.turns)) == ("terminal_tool", "7", 1)


async def test_unknown_and_malformed_calls_are_observations():
    """The model is told, each call has its three events, and the chain goes on."""
    script = [
        '<tool_call>{"name": "calc", "arguments": {}}</tool_call><tool_call>{"name": </tool_call>',
        "The answer is 4.",
    ]
    agent = scripted(script)
    with capture_events(agent.streaming_manager) as capture:
        (t,) = await agent.run_async(5, HELLO, enable_streaming=True)
    capture.check()
    assert t.finish_reason == "answered"
    observations = [e.data for e in capture.of("tool_observation")]
    assert [o["status"] for o in observations] == ["error", "error"]
    assert "'calc'" in observations[0]["observation"]
    assert "calculator" in observations[0]["observation"]
    assert len(capture.of("tool_call_end")) == 2
    assert len({o["call_id"] for o in observations}) == 2


async def test_calls_of_one_turn_run_concurrently():
    """Each waits for the other to have begun."""
    met = asyncio.Barrier(2)

    @tool
    async def meet(name: str) -> str:
        """Wait for the other."""
        async with asyncio.timeout(60):
            await met.wait()
        return name

    text = "".join(f'<tool_call>{{"name": "meet", "arguments": {{"name": "{n}"}}}}</tool_call>' for n in "ab")
    (t,) = await scripted([text, "done"], tools=[meet]).run_async(3, HELLO)
    assert [r.observation for r in t.tool_calls] == ["a", "b"]
    assert [m["content"] for m in t.messages if m["role"] == "tool"] == ["a", "b"]


async def test_a_backend_that_dies_ends_its_chain_and_no_other():
    """The failure is an error event and a finish reason; siblings finish; the generation is closed."""
    from rollcast import BaseAgent as _  # noqa: F401

    async def die(request, i):
        if "/chain_1/" in request.request_id and i == 2:
            raise RuntimeError("the GPU fell out")

    agent = scripted("one two three four", backend=ScriptedBackend("one two three four", before_token=die))
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(2, HELLO, num_chains=3, enable_streaming=True)
    capture.check()
    assert [t.finish_reason for t in result] == ["answered", "error", "answered"]
    assert result.status == "completed"
    (error,) = capture.of("error")
    assert error.data == {"error": "the GPU fell out", "error_type": "RuntimeError", "where": "backend"}
    assert result["chain_1"].turns[0].text == "one two"
    assert capture.of("llm_generation_end", "chain_1")[0].data["finish_reason"] == "error"
    assert capture.of("run_end")[0].data["failed"] == 1


async def test_a_failed_reward_is_an_error_and_no_reward():
    """The chain has answered all the same."""

    @reward
    def broken(final_response):
        return float("nan")

    agent = scripted("hi", reward=broken)
    with capture_events(agent.streaming_manager) as capture:
        (t,) = await agent.run_async(1, HELLO, enable_streaming=True)
    capture.check()
    assert (t.finish_reason, t.reward) == ("answered", None)
    assert capture.of("error")[0].data["where"] == "reward"
    assert t.error == "reward 'broken' of chain_0 returned nan; expected a finite number"


async def test_context_reaches_tools_and_rewards():
    """Row, state, ids and a random generator of the chain's own."""
    from rollcast import ChainContext

    @tool
    def remember(word: str, ctx: ChainContext) -> str:
        """Keep a word."""
        ctx.state["word"] = word
        return f"{ctx.chain_id} {ctx.group_id} {ctx.row['answer']} {ctx.rng.random()}"

    def kept(ctx, trajectory):
        return {"reward": 1.0 if ctx.state["word"] == "x" else 0.0, "turns": len(trajectory.turns)}

    text = '<tool_call>{"name": "remember", "arguments": {"word": "x"}}</tool_call>'
    agent = scripted([text, "done"], tools=[remember], reward=kept)
    result = await agent.run_async(3, ROWS, num_chains=2, seed=5)
    again = await agent.run_async(3, ROWS, num_chains=2, seed=5)
    observations = [t.tool_calls[0].observation for t in result]
    assert observations[2].startswith("chain_2 group_1 6 ")
    assert len({o.rsplit(" ", 1)[1] for o in observations}) == 4
    assert observations == [t.tool_calls[0].observation for t in again]
    assert {(t.reward, t.metrics["turns"]) for t in result} == {(1.0, 2)}


async def test_at_most_so_many_chains_run_at_once():
    """`max_concurrent_chains` holds."""
    seen = []

    async def look(request, i):
        seen.append(len(backend.running))

    backend = ScriptedBackend("one two three", before_token=look)
    await scripted(backend=backend).run_async(1, HELLO, num_chains=10, max_concurrent_chains=3)
    assert max(seen) == 3


async def test_the_callback_gets_each_chunk():
    """Sync or async, text alone or with its event, for one chain or many."""
    texts, pairs = [], []

    async def takes_text(chunk):
        texts.append(chunk)

    agent = scripted("The answer is 4.", tools=())
    await agent.run_async(1, HELLO, enable_streaming=True, streaming_callback=takes_text)
    assert texts == ["The", " answer", " is", " 4."]
    await agent.run_async(
        1,
        HELLO,
        2,
        enable_streaming=True,
        streaming_callback=lambda text, event: pairs.append((event.chain_id, text)),
    )
    for chain_id in ("chain_0", "chain_1"):
        assert "".join(text for c, text in pairs if c == chain_id) == "The answer is 4."
    assert agent.streaming_manager.observers == []


async def test_two_runs_of_one_agent_overlap():
    """They share nothing but the agent."""
    agent = scripted()
    with capture_events(agent.streaming_manager) as capture:
        a, b = await asyncio.gather(
            agent.run_async(5, HELLO, 3, enable_streaming=True),
            agent.run_async(5, HELLO, 3, enable_streaming=True),
        )
    capture.check()
    assert a.run_id != b.run_id
    for result in (a, b):
        for t in result:
            text = "".join(
                e.data["content"]
                for e in capture.of("llm_generation_chunk", t.chain_id)
                if e.run_id == result.run_id and e.step == 1
            )
            assert text == t.turns[0].text


def test_run_works_where_there_is_no_loop():
    """And again, with the same agent."""
    agent = scripted()
    assert agent.run(5, HELLO).trajectories[0].finish_reason == "answered"
    assert agent.run(5, HELLO, num_chains=2, seed=3).seed == 3


async def test_run_inside_a_loop_says_what_to_use():
    """One sentence instead of a deadlock."""
    with pytest.raises(InputError, match=r"await agent\.run_async"):
        scripted().run(1, HELLO)


async def test_a_subclass_changes_generation_and_parsing():
    """Both seams are used."""

    class Shouting(BaseAgent):
        async def generate(self, request):
            async for delta in super().generate(request):
                yield delta

        def parse(self, text):
            from rollcast.records import ToolCall

            return [ToolCall("call_0", "calculator", {"expression": "1 + 1"})] if "please" in text else []

    agent = Shouting("scripted", tools=[calculator], backend=ScriptedBackend(["two, please", "2"]))
    (t,) = await agent.run_async(3, HELLO)
    assert t.tool_calls[0].observation == "2"
    assert t.final_response == "2"


async def test_a_backend_that_does_not_stream_is_named(caplog):
    """One warning; its chunk is whole."""
    backend = ScriptedBackend("hello", token_exact=False)
    backend.streams = False
    agent = scripted(backend=backend)
    await agent.run_async(1, HELLO, enable_streaming=True)
    assert caplog.text.count("does not stream") == 1


def two_calculators():
    return BaseAgent("s", tools=[calculator, calculator], backend=ScriptedBackend())


def untyped():
    def search(query):
        """Search."""

    return BaseAgent("s", tools=[search], backend=ScriptedBackend())


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (two_calculators, InputError, "calculator"),
        (untyped, ToolDefinitionError, "search.*query|query.*search"),
        (lambda: BaseAgent("s", backend="nonsense"), InputError, "no backend 'nonsense'; backends: tiny"),
        (lambda: BaseAgent("some/model"), InputError, "no backend was named for model 'some/model'"),
        (lambda: BaseAgent("s", backend=3), InputError, "backend is int"),
        (
            lambda: BaseAgent("s", backend=ScriptedBackend(), backend_options={"device": "cpu"}),
            InputError,
            "backend_options were given with a ScriptedBackend",
        ),
        (
            lambda: BaseAgent(backend="tiny", backend_options={"device": "cpu"}),
            InputError,
            "the backend .tiny. has no option .device.; it has none",
        ),
        (lambda: BaseAgent(backend="transformers"), InputError, "needs a model"),
        (
            lambda: BaseAgent("s", backend=ScriptedBackend(), parser="xml"),
            InputError,
            "no parser 'xml'.*hermes",
        ),
        (lambda: EventFilter(types="nonsense"), InputError, "no event type 'nonsense'"),
    ],
)
def test_a_bad_agent_is_refused(make, error, says):
    """One sentence, at the call."""
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        ({"max_steps": 0}, InputError, "max_steps is 0; expected a whole number from 1 upward"),
        ({"max_steps": True}, InputError, "max_steps is True"),
        ({"max_steps": 2.5}, InputError, "max_steps is 2.5"),
        ({"num_chains": 0}, InputError, "num_chains is 0"),
        ({"max_concurrent_chains": 0}, InputError, "max_concurrent_chains is 0"),
        ({"seed": -1}, InputError, "seed is -1"),
        ({"start_messages": []}, MessagesError, "start_messages is empty"),
        ({"start_messages": "hi"}, MessagesError, "start_messages is str"),
        (
            {"start_messages": [{"messages": []}]},
            MessagesError,
            r"start_messages\[0\]\['messages'\] is empty",
        ),
        (
            {"start_messages": [{"messages": HELLO}, {"role": "user"}]},
            MessagesError,
            r"start_messages\[1\] has no",
        ),
        ({"sampling": {"heat": 1}}, InputError, "sampling has no 'heat'"),
        ({"sampling": {"temperature": -1}}, InputError, "temperature is -1"),
        ({"sampling": {"temperature": "hot"}}, InputError, "sampling is wrong"),
        ({"streaming_callback": 3}, InputError, "callback"),
    ],
)
async def test_bad_arguments_are_refused_before_a_chain_starts(args, error, says):
    """One sentence: what was found, what was expected."""
    agent = scripted()
    with capture_events(agent.streaming_manager) as capture, pytest.raises(error, match=says):
        await agent.run_async(**{"max_steps": 1, "start_messages": HELLO, "enable_streaming": True} | args)
    assert capture.events == []
    assert agent.backend.requests == []


async def test_a_reward_that_asks_for_a_field_no_row_has_is_refused():
    """Before a chain starts, with the field's name."""
    agent = scripted(reward=lambda final_response, solution: 1.0)
    with pytest.raises(RewardDefinitionError, match="solution"):
        await agent.run_async(1, ROWS)
    assert agent.backend.requests == []


async def test_the_system_prompt_stands_first_where_there_is_none():
    """It does not replace one that is there."""
    agent = scripted("hi", system_prompt="Be brief.")
    (a,) = await agent.run_async(1, HELLO)
    (b,) = await agent.run_async(1, [{"role": "system", "content": "Be long."}, *HELLO])
    assert a.messages[0] == {"role": "system", "content": "Be brief."}
    assert b.messages[0]["content"] == "Be long."


async def test_a_developer_message_is_the_conversations_system_prompt():
    """Newer APIs call it so: an agent's own is not put before it, and what follows it is the same conversation."""
    agent = scripted("hi", system_prompt="Be brief.")
    (t,) = await agent.run_async(1, [{"role": "developer", "content": "Be long."}, *HELLO])
    assert [m["content"] for m in t.messages[:2]] == ["Be long.", HELLO[0]["content"]]


async def test_a_last_delta_of_nothing_is_no_token():
    """Backends that say that they are done in a delta of their own sampled nothing with it, and it is no event."""

    class Text(BaseBackend):
        async def generate(self, request):
            for text in ("", "Hel", "", "lo"):
                yield Delta(text)
            yield Delta("", finish_reason="stop")

    agent = BaseAgent(backend=Text())
    for streaming in (True, False):
        with capture_events(agent.streaming_manager) as capture:
            (t,) = await agent.run_async(1, HELLO, enable_streaming=streaming)
        assert (t.completion_tokens, t.final_response, t.finish_reason) == (2, "Hello", "answered")
        chunks = [event.data["content"] for event in capture.of("llm_generation_chunk")]
        assert chunks == (["Hel", "lo"] if streaming else [])


async def test_sampling_reaches_the_backend():
    """As a Sampling or a dict; each generation has a seed of its own."""
    agent = scripted()
    await agent.run_async(5, HELLO, sampling=Sampling(temperature=0.5, max_tokens=77), seed=1)
    await agent.run_async(5, HELLO, sampling={"temperature": 0.5, "max_tokens": 77}, seed=1)
    first, second = agent.backend.requests[:2], agent.backend.requests[2:]
    assert [r.sampling for r in first] == [r.sampling for r in second]
    assert first[0].sampling.temperature == 0.5
    assert first[0].sampling.seed != first[1].sampling.seed


async def test_a_tools_own_failure_is_an_error_event_too():
    """What the tool's code raised, or its time-out; not what it tells the model, nor wrong arguments."""
    from rollcast import ToolError

    @tool(timeout=0.01)
    async def work(how: str) -> str:
        """Work."""
        if how == "breaks":
            raise KeyError("inside")
        if how == "hangs":
            await asyncio.Event().wait()
        raise ToolError("no such city")

    def call(**arguments):
        return f"<tool_call>{json.dumps({'name': 'work', 'arguments': arguments})}</tool_call>"

    script = [call(how="breaks") + call(how="hangs") + call(how="tells") + call(wrong=1), "done"]
    agent = scripted(script, tools=[work])
    with capture_events(agent.streaming_manager) as capture:
        await agent.run_async(3, HELLO, enable_streaming=True)
    capture.check()
    errors = {e.data["error_type"]: e.data["where"] for e in capture.of("error")}
    assert errors == {"KeyError": "tool:work", "TimeoutError": "tool:work"}
    assert [e.data["status"] for e in capture.of("tool_observation")].count("timeout") == 1


async def test_a_turn_of_endless_calls_is_bounded():
    """128 run, one more tells the model."""
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "1"}}</tool_call>'
    (t,) = await scripted([call * 1000, "done"]).run_async(3, HELLO, sampling={"max_tokens": 10_000})
    assert len(t.tool_calls) == 129
    assert t.tool_calls[-1].observation == "error: too many calls in one turn (1000); at most 128"


async def test_a_tools_own_failure_tells_its_line_and_is_logged_once(caplog):
    """The error event ends with file and line; the traceback is in the log once, however many chains fail there."""

    def lookup(key: str) -> str:
        """Look up."""
        return {}[key]

    call = '<tool_call>{"name": "lookup", "arguments": {"key": "x"}}</tool_call>'
    agent = BaseAgent("m", tools=[lookup], backend=ScriptedBackend([call, "done"]))
    with capture_events(agent.streaming_manager) as capture, caplog.at_level(logging.WARNING, "rollcast"):
        result = await agent.run_async(2, HELLO, num_chains=3, enable_streaming=True)
    capture.check()
    place = f"test_agent.py:{lookup.__code__.co_firstlineno + 2}"
    assert {event.data["error"] for event in capture.of("error")} == {f"'x' ({place})"}
    assert len(capture.of("error")) == 3
    assert [t.tool_calls[0].observation for t in result] == ["error: KeyError: 'x'"] * 3
    (record,) = caplog.records
    assert f"tool:lookup failed at {place}: KeyError" in record.getMessage()
    assert record.exc_info is not None


async def test_a_chain_goes_on_after_a_tool_that_raises_keyboard_interrupt():
    """Code of the model's that raises KeyboardInterrupt in a worker thread is an observation, and the chain answers."""

    def python(code: str) -> str:
        """Run it."""
        exec(code)
        return ""

    call = '<tool_call>{"name": "python", "arguments": {"code": "raise KeyboardInterrupt"}}</tool_call>'
    agent = BaseAgent("m", tools=[python], backend=ScriptedBackend([call, "done"]))
    (chain,) = await agent.run_async(2, HELLO)
    assert chain.tool_calls[0].observation == "error: KeyboardInterrupt"
    assert (chain.finish_reason, chain.final_response) == ("answered", "done")
