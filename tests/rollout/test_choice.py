"""Facts about rows that choose their tools."""

import pytest

from rollcast import BaseAgent, ReactAgent, tool
from rollcast.errors import MessagesError
from rollcast.testing import ScriptedBackend, capture_events

HELLO = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "add", "arguments": {"x": 2}}</tool_call>'


@tool
def add(x: int) -> int:
    """Add."""
    return x + 1


@tool
def drop(x: int) -> int:
    """Drop."""
    return x


def agent_of(kind=BaseAgent, **options):
    return kind("m", tools=[add, drop], backend=ScriptedBackend([CALL, "done"]), **options)


async def test_a_row_has_the_tools_that_it_names():
    """The model is told of the row's tools, a call of another does not exist, and `chain_start` names them."""
    agent = agent_of()
    rows = [
        {"messages": HELLO, "tools": ["drop"]},
        {"messages": HELLO, "tools": ["drop", "add"]},
        {"messages": HELLO, "tools": None},
        {"messages": HELLO},
        {"messages": HELLO, "tools": []},
    ]
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(2, rows, enable_streaming=True)
    capture.check()
    named = [["drop"], ["drop", "add"], ["add", "drop"], ["add", "drop"], []]
    assert [event.data["tools"] for event in capture.of("chain_start")] == named
    told = {
        r.request_id.split("/")[1]: [t["function"]["name"] for t in r.tools] for r in agent.backend.requests
    }
    assert [told[f"chain_{i}"] for i in range(5)] == named
    assert result["chain_0"].tool_calls[0].observation == "error: there is no tool 'add'; tools: drop"
    assert [result[f"chain_{i}"].tool_calls[0].observation for i in (1, 2, 3)] == ["3"] * 3
    assert result["chain_4"].tool_calls == []
    assert result["chain_4"].finish_reason == "answered"
    assert result["chain_0"].row["tools"] == ["drop"]


@pytest.mark.parametrize(
    "tools",
    [
        ("drop",),
        [{"type": "function", "function": {"name": "drop", "description": "x"}}],
        [{"name": "drop"}],
        '[{"type": "function", "function": {"name": "drop"}}]',
    ],
)
async def test_tools_are_named_as_data_sets_do(tools):
    """Names, OpenAI's descriptions and their JSON name tools."""
    agent = agent_of()
    await agent.run_async(1, [{"messages": HELLO, "tools": tools}])
    assert [t["function"]["name"] for t in agent.backend.requests[0].tools] == ["drop"]


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (["drop", "find"], r"start_messages\[1\]\['tools'\] names 'find', but the agent has no such tool \(its tools: add, drop\)"),
        ("drop", r"is 'drop'; expected a list of names"),
        (3, r"is int; expected a list of names"),
        ([3], r"has 3 in it; expected a list of names"),
        ({"drop": 1}, r"is dict; expected a list of names"),
        ([{"type": "function"}], r"has {'type': 'function'} in it"),
    ],
)  # fmt: skip
def test_what_names_no_tool_is_refused_before_the_run(tools, words):
    """A name that the agent does not have, and what is no list of names, is one sentence; no chain has started."""
    agent = agent_of()
    with pytest.raises(MessagesError, match=words):
        agent.prepare(1, [{"messages": HELLO}, {"messages": HELLO, "tools": tools}])
    assert agent.backend.requests == []


SYSTEM = {"role": "system", "content": "Be brief."}
PARTS = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}


@pytest.mark.parametrize(
    "messages", [HELLO, [SYSTEM, *HELLO], [PARTS, *HELLO]], ids=["none", "text", "parts"]
)
def test_instructions_tell_of_the_rows_tools(messages):
    """An agent that tells of its tools in the prompt tells each row of its own."""
    agent = agent_of(ReactAgent)
    fewer = ReactAgent("m", tools=[drop], backend=agent.backend)
    bare = ReactAgent("m", backend=agent.backend)
    rows = [
        {"messages": messages, "tools": ["drop"]},
        {"messages": messages},
        {"messages": messages, "tools": []},
    ]
    run = agent.prepare(1, rows)
    assert run.rows[0].messages == fewer.prepare(1, rows[1:2]).rows[0].messages
    assert run.rows[1].messages == agent.prepare(1, rows[1:2]).rows[0].messages
    assert run.rows[2].messages == bare.prepare(1, rows[1:2]).rows[0].messages
