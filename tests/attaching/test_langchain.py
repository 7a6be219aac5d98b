"""What `rollcast.attach.langchain()` sees of LangChain and LangGraph."""

import asyncio
import copy
import logging
import operator
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypedDict

import pytest

pytest.importorskip("langgraph", reason="langgraph is not installed")

from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Send, interrupt

from attaching.defects import DEFECTS
from attaching.langchain_model import Both, Model, asks_then_answers, calls, repeats
from rollcast import InputError, StreamingManager
from rollcast.attaching.front import attach
from rollcast.testing import EventCapture, capture_events


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def fails(a: int, b: int) -> int:
    """Always fail."""
    raise ValueError("no such number")


def agent(model, *tools, checkpointer=None, name="agent"):
    """A ReAct agent as a graph."""
    graph = (
        StateGraph(MessagesState)
        .add_node("tools", ToolNode([*tools], handle_tool_errors=True))
        .add_edge("tools", "model")
    )
    graph.add_node("model", lambda state: {"messages": model.invoke(state["messages"])})
    graph.add_edge(START, "model").add_conditional_edges("model", tools_condition)
    return graph.compile(checkpointer=checkpointer, name=name)


QUESTION = {"messages": [HumanMessage("What is 12 * 34?")]}


class Answers(TypedDict):
    questions: list
    answers: Annotated[list, operator.add]


def fan_out(model):
    """A graph that sends each question to a node of its own; the nodes run in parallel."""

    async def node(state):
        return {"answers": [(await model.ainvoke(state["question"])).content]}

    graph = StateGraph(Answers).add_node("node", node)
    graph.add_conditional_edges(
        START, lambda state: [Send("node", {"question": q}) for q in state["questions"]]
    )
    return graph.compile()


class Seen:
    """The events of one attachment, sorted out."""

    def __init__(self, events):
        self.events = events
        self.chains = [event.chain_id for event in events if event.event_type == "chain_start"]

    def of(self, chain_id, *types):
        return [event for event in self.events if event.chain_id == chain_id and event.event_type in types]

    def types(self, chain_id):
        return [event.event_type.value for event in self.events if event.chain_id == chain_id]

    def start(self, chain_id):
        return self.of(chain_id, "chain_start")[0].data

    def end(self, chain_id):
        return self.of(chain_id, "chain_end")[0].data

    def texts(self, chain_id):
        return [event.data["content"] for event in self.of(chain_id, "llm_generation_end")]

    def parents(self):
        return {chain: self.start(chain).get("parent_chain_id") for chain in self.chains}

    def tool(self, chain_id):
        return [event.data for event in self.of(chain_id, "tool_call_start", "tool_observation")]


@pytest.fixture
def watched():
    """Run a function while LangChain is attached: what was seen of it. The events obey the grammar."""
    manager = StreamingManager()

    def watch(function, **options):
        with capture_events(manager) as capture:
            handle = attach.langchain(manager=manager, **options)
            try:
                function(handle) if function.__code__.co_argcount else function()
            finally:
                handle.detach()
        capture.check()
        return Seen(capture.events)

    yield watch
    manager.close()


def test_an_agent_is_one_chain(watched):
    """The turns of an agent, its tool calls and its answer are one chain, without a word of the call's arguments in a text."""
    seen = watched(
        lambda: agent(Model(say=asks_then_answers).bind_tools([multiply]), multiply).invoke(QUESTION)
    )
    assert seen.chains == ["chain_0"]
    assert seen.start("chain_0")["messages"] == [{"role": "user", "content": "What is 12 * 34?"}]
    assert seen.start("chain_0")["tools"] == ["multiply"]
    assert seen.start("chain_0")["row"] == {"name": "agent"}
    assert seen.texts("chain_0") == ["I will compute it.", "The answer is 408"]
    asked, answered = seen.tool("chain_0")
    assert (asked["tool_name"], asked["arguments"], asked["call_id"]) == (
        "multiply",
        {"a": 12, "b": 34},
        "call_7",
    )
    assert (answered["observation"], answered["status"]) == ("408", "success")
    assert seen.end("chain_0")["finish_reason"] == "answered"
    assert seen.end("chain_0")["final_response"] == "The answer is 408"


def test_an_answer_that_streams_is_seen_token_by_token(watched):
    """Each chunk of a model that streams is an event."""
    seen = watched(
        lambda: list(agent(Model(say=asks_then_answers), multiply).stream(QUESTION, stream_mode="messages"))
    )
    chunks = [event.data["content"] for event in seen.of("chain_0", "llm_generation_chunk")]
    assert chunks == ["I will ", "compute it.", "The answer is ", "408"]


def test_an_answer_that_does_not_stream_is_seen_whole(watched):
    """The text of a model that does not stream comes with its end."""
    seen = watched(lambda: Model(say=repeats, streams=False).invoke("ja"))
    assert [event.data["content"] for event in seen.of("chain_0", "llm_generation_chunk")] == ["ja ja ja "]


def test_two_async_nodes_in_parallel_are_apart(watched):
    """Two nodes that stream at once are a chain each, whose parent is the graph's, and their texts are not mixed.

    The example of 0.2, a `match` over `astream_events`, raised out of the program here, and showed "one one two two threethree".
    """

    async def run():
        model = Model(say=repeats, both=Both(2))
        state = {"questions": ["one", "two"], "answers": []}
        assert (await fan_out(model).ainvoke(state))["answers"] == ["one one one ", "two two two "]

    seen = watched(lambda: asyncio.run(run()))
    assert seen.parents() == {"chain_0": None, "chain_1": "chain_0", "chain_2": "chain_0"}
    assert [seen.texts(chain) for chain in seen.chains] == [[], ["one one one "], ["two two two "]]
    order = [event.chain_id for event in seen.events if event.event_type == "llm_generation_chunk"]
    assert order.index("chain_2") < len(order) - 1 - order[::-1].index("chain_1")  # they did run at once


def test_astream_events_beside_it_changes_nothing(watched):
    """A program that reads `astream_events` gets the same events as without us."""

    async def run():
        state = {"questions": ["one", "two"], "answers": []}
        model = Model(say=repeats, both=Both(2))
        return [event["event"] async for event in fan_out(model).astream_events(state, version="v2")]

    alone, both = asyncio.run(run()), []
    watched(lambda: both.extend(asyncio.run(run())))
    assert sorted(both) == sorted(alone)


@pytest.mark.parametrize("waits", [True, False])
def test_nodes_of_one_step_are_apart(watched, waits):
    """Of the nodes of one step, the first goes on with the graph's chain, and each other has its own, whether they overlap or not."""
    both = Both(2) if waits else None
    model = Model(say=repeats, both=both)

    def node(word):
        return lambda state: {"answers": [model.invoke(word).content]}

    def run():
        graph = StateGraph(Answers).add_node("a", node("one")).add_node("b", node("two"))
        graph.add_node("last", node("end")).add_edge(["a", "b"], "last")
        compiled = graph.add_edge(START, "a").add_edge(START, "b").compile()
        model.both = both
        threading.Thread(target=lambda: None).start()
        compiled.invoke({"answers": []})

    if waits:
        both.barrier = threading.Barrier(2, action=lambda: setattr(model, "both", None))
    seen = watched(run)
    assert sorted(seen.parents().items(), key=str) == [("chain_0", None), ("chain_1", "chain_0")]
    assert len(seen.texts("chain_0")) == 2
    assert seen.texts("chain_0")[-1] == "end end end "
    assert {seen.texts("chain_0")[0], *seen.texts("chain_1")} == {"one one one ", "two two two "}


def test_branches_of_a_runnable_parallel_are_apart(watched):
    """Each branch is a chain, which has the name of its key."""
    both = RunnableParallel(joke=Model(say=repeats), poem=Model(say=repeats))
    seen = watched(lambda: both.invoke("ja"))
    assert seen.parents() == {"chain_0": None, "chain_1": "chain_0", "chain_2": "chain_0"}
    assert {seen.start(chain)["row"]["name"] for chain in ("chain_1", "chain_2")} == {"joke", "poem"}


def test_a_graph_inside_a_graph_is_a_child(watched):
    """It is a chain of its own, whether it is a node or is called in one."""
    inner = agent(Model(say=asks_then_answers), multiply, name="inner")

    def run():
        outer = (
            StateGraph(MessagesState)
            .add_node("as_node", inner)
            .add_node("in_node", lambda state: inner.invoke(QUESTION))
        )
        outer.add_edge(START, "as_node").add_edge("as_node", "in_node").compile(name="outer").invoke(QUESTION)

    seen = watched(run)
    assert seen.parents() == {"chain_0": None, "chain_1": "chain_0", "chain_2": "chain_0"}
    assert [seen.start(chain)["row"]["name"] for chain in seen.chains] == ["outer", "inner", "inner"]
    assert seen.texts("chain_1") == seen.texts("chain_2") == ["I will compute it.", "The answer is 408"]
    assert seen.end("chain_0")["final_response"] == "The answer is 408"


def test_an_agent_that_is_a_tool_is_a_child(watched):
    """What a tool asks of a model is a chain of its own, while the tool's call is open."""
    inner = Model(say=lambda messages: ["four ", "hundred"])

    def multiply(a: int, b: int) -> str:
        """Multiply two numbers."""
        return inner.invoke("12 * 34?").content

    seen = watched(lambda: agent(Model(say=asks_then_answers), multiply).invoke(QUESTION))
    assert seen.parents() == {"chain_0": None, "chain_1": "chain_0"}
    assert seen.texts("chain_1") == ["four hundred"]
    assert seen.texts("chain_0") == ["I will compute it.", "The answer is four hundred"]


def test_each_input_of_a_batch_is_a_chain(watched):
    """`batch` has a chain for each input."""
    seen = watched(
        lambda: agent(Model(say=asks_then_answers), multiply).batch([QUESTION, QUESTION, QUESTION])
    )
    assert set(seen.parents().values()) == {None}
    assert [seen.texts(chain) for chain in seen.chains] == [["I will compute it.", "The answer is 408"]] * 3


def test_threads_are_apart(watched):
    """Agents on threads of their own are chains of their own, without any context that is handed on."""

    def run():
        one = agent(Model(say=asks_then_answers), multiply)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: one.invoke(QUESTION), range(8)))

    seen = watched(run)
    assert len(seen.chains) == 8
    assert all(seen.texts(chain) == ["I will compute it.", "The answer is 408"] for chain in seen.chains)


def test_a_loop_of_ones_own_is_one_chain(watched):
    """A model that is called by itself, with what its tools said, goes on with its chain."""

    def run():
        model, messages = (
            Model(say=asks_then_answers),
            [SystemMessage("Be brief."), HumanMessage("What is 12 * 34?")],
        )
        messages.append(model.invoke(messages))
        messages += [tool(multiply).invoke(call) for call in messages[-1].tool_calls]
        messages.append(model.invoke(messages))

    seen = watched(run)
    assert seen.chains == ["chain_0"]
    assert seen.texts("chain_0") == ["I will compute it.", "The answer is 408"]
    assert seen.tool("chain_0")[1]["observation"] == "408"
    assert seen.end("chain_0")["finish_reason"] == "answered"


def test_a_tool_that_is_called_without_langchain_is_seen_by_what_it_said(watched):
    """A loop that calls plain functions, and hands their results on as messages, has tool calls as well."""

    def run():
        model, messages = Model(say=asks_then_answers), [HumanMessage("What is 12 * 34?")]
        messages.append(model.invoke(messages))
        messages += [
            ToolMessage(str(multiply(**call["args"])), tool_call_id=call["id"])
            for call in messages[-1].tool_calls
        ]
        messages.append(model.invoke(messages))

    seen = watched(run)
    assert seen.chains == ["chain_0"]
    asked, answered = seen.tool("chain_0")
    assert (asked["tool_name"], asked["arguments"], answered["observation"]) == (
        "multiply",
        {"a": 12, "b": 34},
        "408",
    )
    assert not seen.of("chain_0", "message")


def test_a_call_that_nobody_makes_is_seen(watched):
    """If the program stops at the last answer, what it asked for is still shown, as cancelled."""
    seen = watched(lambda: Model(say=asks_then_answers).invoke([HumanMessage("What is 12 * 34?")]))
    asked, left = seen.tool("chain_0")
    assert (asked["tool_name"], asked["arguments"]) == ("multiply", {"a": 12, "b": 34})
    assert left["status"] == "cancelled"
    assert seen.end("chain_0")["finish_reason"] == "unknown"


def test_an_answer_in_the_form_of_a_call_is_an_answer(watched):
    """`with_structured_output` asks for a call that nobody makes: its chain ends."""
    person = {
        "title": "multiply",
        "description": "A product.",
        "type": "object",
        "properties": {"a": {"type": "integer"}},
    }

    class Structured(Model):
        def bind_tools(self, tools, **about):
            return self.bind(
                tools=tools, ls_structured_output_format=about.get("ls_structured_output_format")
            )

    def run():
        said = Structured(say=asks_then_answers).with_structured_output(person).invoke("12 * 34?")
        assert said == {"a": 12, "b": 34}

    assert watched(run).end("chain_0")["finish_reason"] == "answered"


def test_a_chain_that_nobody_goes_on_with_ends_as_unknown(watched):
    """A model that asked for a call which nobody made has a chain that ends when it is detached."""
    seen = watched(lambda: Model(say=asks_then_answers).invoke("What is 12 * 34?"))
    assert seen.end("chain_0")["finish_reason"] == "unknown"


def test_a_users_next_message_is_shown(watched):
    """What enters the conversation between two turns, other than what the tools said, is a message from outside."""

    def run():
        graph = StateGraph(MessagesState)
        model = Model(say=repeats)
        graph.add_node("one", lambda state: {"messages": model.invoke(state["messages"])})
        graph.add_node("person", lambda state: {"messages": HumanMessage("And then?")})
        graph.add_node("two", lambda state: {"messages": model.invoke(state["messages"])})
        graph.add_edge(START, "one").add_edge("one", "person").add_edge("person", "two").compile().invoke(
            QUESTION
        )

    seen = watched(run)
    assert [event.data for event in seen.of("chain_0", "message")] == [
        {"role": "user", "content": "And then?"}
    ]
    assert [event.depth for event in seen.of("chain_0", "llm_generation_end")] == [1, 2]


def test_a_prompt_that_is_written_anew_begins_afresh(watched):
    """A model with other instructions than the one before does not continue its conversation: the depth begins again."""

    def run():
        one, two = Model(say=repeats), Model(say=repeats)
        sequence = RunnableLambda(lambda text: one.invoke([SystemMessage("Plan."), HumanMessage(text)]))
        sequence |= RunnableLambda(
            lambda said: two.invoke([SystemMessage("Act."), HumanMessage(said.content)])
        )
        sequence.invoke("go")

    seen = watched(run)
    assert seen.chains == ["chain_0"]
    assert [event.depth for event in seen.of("chain_0", "llm_generation_end")] == [1, 1]
    assert [event.data["content"] for event in seen.of("chain_0", "message")] == ["Act.", "go go go "]


def test_a_call_that_is_tried_again_stays_in_its_chain(watched):
    """A model call that failed is a turn with the finish reason `error`; the next attempt is the next turn."""
    attempts = iter([["Let me", ConnectionError("the engine went away")], ["Four."]])
    model = Model(say=lambda messages: next(attempts)).with_retry(wait_exponential_jitter=False)
    seen = watched(lambda: model.invoke("2 + 2?"))
    assert seen.chains == ["chain_0"]
    ends = [
        (event.data["content"], event.data["finish_reason"])
        for event in seen.of("chain_0", "llm_generation_end")
    ]
    assert ends == [("Let me", "error"), ("Four.", "stop")]
    assert [event.data["where"] for event in seen.of("chain_0", "error")] == ["backend"]
    assert seen.end("chain_0")["finish_reason"] == "answered"


def test_an_exception_is_reported_once_and_reaches_the_caller(watched):
    """A failure goes through every run around the one that failed, and is one error event."""
    model = Model(say=lambda messages: ["Let me", ConnectionError("the engine went away")])

    def run():
        with pytest.raises(ConnectionError, match="the engine went away"):
            agent(model, multiply).invoke(QUESTION)

    seen = watched(run)
    assert [event.data["where"] for event in seen.of("chain_0", "error")] == ["backend"]
    assert seen.end("chain_0")["finish_reason"] == "error"


def test_a_failure_of_a_node_is_seen(watched):
    """A graph that fails before it asks any model has a chain with the error."""

    def node(state):
        raise KeyError("city")

    def run():
        with pytest.raises(KeyError):
            StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile().invoke(
                QUESTION
            )

    seen = watched(run)
    (error,) = seen.of("chain_0", "error")
    assert (error.data["error_type"], error.data["where"]) == ("KeyError", "agent")
    assert seen.start("chain_0")["messages"] == [{"role": "user", "content": "What is 12 * 34?"}]


def test_a_chain_without_a_model_is_not_shown(watched):
    """A runnable that asks no model and calls no tool has no chain."""
    assert watched(lambda: RunnableLambda(str.upper).invoke("a")).events == []


def test_a_tool_that_fails_is_an_error_of_the_tool(watched):
    """The model reads what the tool raised; the chain goes on."""

    def say(messages):
        asks = calls("fails", '{"a": 1, "b": 2}', "call_1")
        return ["It failed."] if messages[-1].type == "tool" else [asks]

    seen = watched(lambda: agent(Model(say=say), fails).invoke(QUESTION))
    assert seen.tool("chain_0")[1]["observation"] == "error: no such number"
    assert seen.tool("chain_0")[1]["status"] == "error"
    assert seen.end("chain_0")["finish_reason"] == "answered"


def test_an_interrupt_is_no_error_and_the_chain_goes_on(watched):
    """A graph that stops to ask somebody goes on in the same chain when it is resumed."""

    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        return a * b if interrupt("May I?") == "yes" else 0

    def run():
        one = agent(Model(say=asks_then_answers), multiply, checkpointer=InMemorySaver())
        thread = {"configurable": {"thread_id": "7"}}
        assert one.invoke(QUESTION, thread)["__interrupt__"][0].value == "May I?"
        assert one.invoke(Command(resume="yes"), thread)["messages"][-1].content == "The answer is 408"

    seen = watched(run)
    assert seen.chains == ["chain_0"]
    assert not seen.of("chain_0", "error")
    observations = [
        (data["observation"], data["status"]) for data in seen.tool("chain_0") if "observation" in data
    ]
    assert observations == [("interrupted: May I?", "cancelled"), ("408", "success")]
    assert seen.end("chain_0")["finish_reason"] == "answered"


def test_a_task_that_is_cancelled_ends_its_chain_as_cancelled(watched):
    """Cancellation reaches the caller, and everything that was open ends as cancelled."""

    async def run():
        both = Both(2)
        task = asyncio.create_task(
            fan_out(Model(say=repeats, both=both)).ainvoke({"questions": ["one"], "answers": []})
        )
        while not both.here:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    seen = watched(lambda: asyncio.run(run()))
    assert [seen.end(chain)["finish_reason"] for chain in seen.chains] == ["cancelled", "cancelled"]
    assert [event.data["finish_reason"] for event in seen.of("chain_1", "llm_generation_end")] == [
        "cancelled"
    ]


def test_a_stream_that_nobody_reads_on_is_cancelled(watched):
    """Whoever stops reading a stream cancels it."""

    def run():
        stream = Model(say=repeats).stream("ja")
        next(stream)
        stream.close()

    seen = watched(run)
    assert seen.end("chain_0")["finish_reason"] in {"cancelled", "unknown"}


def test_reasoning_is_kept_apart(watched):
    """Reasoning, in a block of its own or beside the content, is not in the text."""
    pieces = [
        AIMessageChunk([{"type": "reasoning", "reasoning": "Let me "}]),
        AIMessageChunk([{"type": "thinking", "thinking": "see."}]),
        AIMessageChunk("", additional_kwargs={"reasoning_content": " Yes."}),
        AIMessageChunk("Four."),
    ]
    seen = watched(lambda: list(Model(say=lambda messages: pieces).stream("2 + 2?")))
    chunks = [event.data for event in seen.of("chain_0", "llm_generation_chunk")]
    assert "".join(data.get("reasoning", "") for data in chunks) == "Let me see. Yes."
    assert seen.texts("chain_0") == ["Four."]


def test_ids_and_logprobs_are_kept_if_the_integration_has_them(watched):
    """A chunk whose `generation_info` has token ids, and as many log-probabilities, carries both."""
    info = {"token_ids": [5, 6], "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.0}]}}
    piece = ChatGenerationChunk(message=AIMessageChunk("Four."), generation_info=info)
    seen = watched(lambda: list(Model(say=lambda messages: [piece]).stream("2 + 2?")))
    (chunk,) = seen.of("chain_0", "llm_generation_chunk")
    assert (chunk.data["token_ids"], chunk.data["logprobs"]) == ([5, 6], [-0.5, -1.0])


def test_the_servers_count_of_tokens_is_taken(watched):
    """`usage_metadata` beats the count of chunks; a full context is `length`."""
    usage = {"input_tokens": 30, "output_tokens": 70, "total_tokens": 100}
    last = AIMessageChunk("r.", usage_metadata=usage, response_metadata={"finish_reason": "length"})
    seen = watched(lambda: Model(say=lambda messages: ["Fou", last]).invoke("2 + 2?"))
    (end,) = seen.of("chain_0", "llm_generation_end")
    assert (end.data["prompt_tokens"], end.data["completion_tokens"], end.data["finish_reason"]) == (
        30,
        70,
        "length",
    )


def test_sampling_is_shown_and_secrets_are_not(watched):
    """Of what the model is called with, the sampling parameters are shown, and nothing else."""
    seen = watched(lambda: Model(say=repeats).invoke("ja", stop=["."]))
    (start,) = seen.of("chain_0", "llm_generation_start")
    assert start.data["sampling"] == {"model": "test-1", "temperature": 0.5, "stop": ["."]}


def test_the_protocol_of_version_3_is_read(watched):
    """`stream_events(version="v3")` calls other hooks; its text is seen all the same."""
    if not hasattr(Model, "stream_events"):
        pytest.skip("langchain-core has it from 1.0 on")
    seen = watched(lambda: list(Model(say=repeats).stream_events("ja", version="v3")))
    assert [event.data["content"] for event in seen.of("chain_0", "llm_generation_chunk")] == ["ja "] * 3


def test_a_handle_can_be_given_to_one_program(watched):
    """With `everywhere=False` only what the handle is given to is watched."""

    def run(handle):
        agent(Model(say=asks_then_answers), multiply).invoke(QUESTION)
        agent(Model(say=asks_then_answers), multiply).invoke(QUESTION, {"callbacks": [handle]})
        Model(say=repeats, callbacks=[handle]).invoke("ja")

    seen = watched(run, everywhere=False)
    assert [seen.texts(chain) for chain in seen.chains] == [
        ["I will compute it.", "The answer is 408"],
        ["ja ja ja "],
    ]


def test_a_handle_that_is_given_as_well_sees_everything_once(watched):
    """Whoever attached everywhere may still pass the handle."""
    seen = watched(
        lambda handle: Model(say=repeats, callbacks=[handle]).invoke("ja", {"callbacks": [handle]})
    )
    assert seen.texts("chain_0") == ["ja ja ja "]
    assert seen.chains == ["chain_0"]


def test_a_handle_is_copied_with_a_configuration(watched):
    """A deep copy of a configuration has the same handle."""
    same = []
    watched(lambda handle: same.append(copy.deepcopy({"callbacks": [handle]})["callbacks"][0] is handle))
    assert same == [True]


@pytest.mark.parametrize(
    "make", [lambda: agent(Model(say=asks_then_answers), multiply), lambda: Model(say=asks_then_answers)]
)
def test_one_graph_or_model_can_be_attached(make):
    """`attach(x)` watches `x` alone; detached, it is as it was."""
    manager, capture = StreamingManager(), EventCapture()
    manager.add_observer(capture)
    one, other = make(), Model(say=repeats)
    before = getattr(one, "callbacks", None), getattr(one, "config", None)
    handle = attach(one, manager=manager)
    one.invoke(QUESTION["messages"] if isinstance(one, Model) else QUESTION)
    other.invoke("ja")
    handle.detach()
    manager.close()
    assert (getattr(one, "callbacks", None), getattr(one, "config", None)) == before
    assert {event.chain_id for event in capture.events if event.chain_id} == {"chain_0"}


def test_what_has_no_place_for_a_handler_is_refused():
    """The sentence says what to do instead."""
    with pytest.raises(InputError, match=r"call rollcast\.attach\.langchain\(\) without it"):
        attach(RunnableLambda(str.upper))


def test_nothing_is_left_when_it_is_detached(watched):
    """LangChain's list of hooks is as it was, and a handle that is still in somebody's configuration does nothing."""
    from langchain_core.tracers import context

    before = list(context._configure_hooks)
    handles = []
    watched(lambda handle: handles.append(handle))
    assert context._configure_hooks == before
    assert Model(say=repeats, callbacks=handles).invoke("ja").content == "ja ja ja "
    assert handles[0].ignore_llm
    assert not handles[0].attached


def test_it_can_be_detached_in_the_middle(watched):
    """What is open ends as unknown, and the program goes on."""

    def run(handle):
        stream = Model(say=repeats).stream("ja")
        said = [next(stream).content]
        handle.detach()
        assert "".join([*said, *(chunk.content for chunk in stream)]) == "ja ja ja "

    seen = watched(run)
    assert seen.end("chain_0")["finish_reason"] == "unknown"


def program():
    """What an agent's conversation came to."""
    messages = agent(Model(say=asks_then_answers), multiply).invoke(QUESTION)["messages"]
    return [(message.type, message.content) for message in messages]


def results_of(program):
    """What a program says, and how it fails."""
    try:
        return program()
    except Exception as error:
        return type(error), str(error)


WAYS = {
    "raise": lambda *args, **about: 1 / 0,
    "wrong_type": lambda *args, **about: object(),
}


@pytest.mark.parametrize("defect", WAYS)
@pytest.mark.parametrize(
    "where",
    [
        "rollcast.attaching.langchain._picked",
        "rollcast.attaching.langchain.piece_of",
        "rollcast.attaching.langchain.answer_of",
        "rollcast.attaching.langchain.as_messages",
        "rollcast.attaching.langchain.observation_of",
        "rollcast.attaching.langchain.RunTree.began",
        "rollcast.attaching.langchain.RunTree.model_began",
        "rollcast.attaching.langchain.RunTree.tool_began",
        "rollcast.attaching.langchain.RunTree.answered",
        "rollcast.stream.run.RunWriter.chain",
        "rollcast.stream.chain.GenerationWriter.chunk",
    ],
)
def test_a_defect_of_ours_does_not_reach_the_program(monkeypatch, caplog, where, defect):
    """Wherever our own code fails, the program's messages are equal to those without us, and at most one line says so."""
    alone = results_of(program)
    manager = StreamingManager()
    monkeypatch.setattr(where, WAYS[defect])
    with caplog.at_level(logging.ERROR, "rollcast.attach"):
        handle = attach.langchain(manager=manager)
        assert results_of(program) == alone
        handle.flush(5)
        handle.detach(5)
    monkeypatch.undo()
    manager.close()
    told = [record for record in caplog.records if "steps aside" in record.getMessage()]
    assert len(told) <= 1
    if defect == "raise":
        assert told


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_of_what_adapters_share_does_not_reach_the_program(defect):
    """Whatever breaks behind the hooks, and however, the program's messages are equal to those without us."""
    alone, manager = program(), StreamingManager()
    with defect.injected():
        handle = attach.langchain(manager=manager, record=None)
        assert program() == alone
        handle.detach(0.1)
    manager.close()


def test_a_hang_of_ours_does_not_reach_the_program(monkeypatch):
    """While our thread hangs, the program goes on."""
    alone, go = program(), threading.Event()
    manager = StreamingManager()
    monkeypatch.setattr("rollcast.attaching.langchain.RunTree.model_began", lambda *args: go.wait(60))
    handle = attach.langchain(manager=manager)
    assert program() == alone
    go.set()
    handle.detach()
    manager.close()


def test_messages_are_what_they_were_when_the_model_was_called(watched):
    """A program may change its list of messages right after the call."""

    def run():
        messages = [HumanMessage("one")]
        Model(say=repeats).invoke(messages)
        messages[:] = [HumanMessage("two"), AIMessage("three")]

    assert watched(run).start("chain_0")["messages"] == [{"role": "user", "content": "one"}]
