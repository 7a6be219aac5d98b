"""Agents by format: the tool is called, the answer is final, and all that was said can be seen."""

import ast

import pytest

from rollcast import BaseAgent, CodeAgent, ReactAgent, ToolAgent, tool
from rollcast.errors import InputError
from rollcast.testing import ScriptedBackend, capture_events
from rollcast.tools import calculator

HELLO = [{"role": "user", "content": "What is 2 * 21?"}]


@tool
def python(code: str) -> str:
    """Run Python (here: one literal)."""
    return str(ast.literal_eval(code))


async def play(agent, messages=HELLO):
    """Run one chain, streamed; what must hold for every agent is checked."""
    with capture_events(agent.streaming_manager) as capture:
        (t,) = await agent.run_async(5, messages, enable_streaming=True)
    capture.check()
    for turn in t.turns:
        assert capture.text(t.chain_id, turn.step) == turn.text
    (end,) = capture.of("chain_end")
    assert end.data["final_response"] == t.final_response
    return t


HERMES = '<tool_call>{"name": "calculator", "arguments": {"expression": "2 * 21"}}</tool_call>'
REACT = 'Thought: I multiply.\nAction: calculator\nAction Input: {"expression": "2 * 21"}\nObservation: 41, I guess'
FORMATS = {
    "hermes": HERMES,
    "python": '[calculator(expression="2 * 21")]',
    "llama3": '{"name": "calculator", "parameters": {"expression": "2 * 21"}}<|eom_id|>',
    "qwen3_coder": "<tool_call>\n<function=calculator>\n<parameter=expression>\n2 * 21\n</parameter>\n</function>\n</tool_call>",
    "react": REACT,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("token_exact", [True, False])
async def test_every_format_calls_the_tool(format, token_exact):
    """A chain in each format: one call with its arguments, then the answer."""
    backend = ScriptedBackend([FORMATS[format], "It is 42."], token_exact=token_exact)
    t = await play(ToolAgent("scripted", tools=[calculator], backend=backend, parser=format))
    assert [(r.call.tool_name, r.call.arguments, r.observation) for r in t.tool_calls] == [
        ("calculator", {"expression": "2 * 21"}, "42")
    ]
    assert (t.finish_reason, t.final_response) == ("answered", "It is 42.")


async def test_a_tool_agent_adds_nothing():
    """It is a `BaseAgent` under another name: same messages, same tools for the template."""
    backend = ScriptedBackend([HERMES, "It is 42."])
    t = await play(ToolAgent("scripted", tools=[calculator], backend=backend))
    base = BaseAgent("scripted", tools=[calculator], backend=ScriptedBackend([HERMES, "It is 42."]))
    assert t.messages == (await play(base)).messages
    assert backend.requests[0].tools == [calculator.schema]


async def test_a_react_agent_thinks_acts_and_answers():
    """The tools stand in the prompt, made-up observations are cut, and the final answer is the response."""
    script = [REACT, "Thought: I know.\nFinal Answer: 42\n"]
    backend = ScriptedBackend(script)
    t = await play(ReactAgent("scripted", tools=[calculator], backend=backend, system_prompt="Be brief."))
    system, user, acted, observed, answered = t.messages
    assert system["content"].startswith("Be brief.\n\nYou can use these tools:\n\n- calculator: ")
    assert '"expression"' in system["content"]
    assert "one of calculator" in system["content"]
    assert user == HELLO[0]
    assert acted == {"role": "assistant", "content": REACT[: REACT.index("Observation:")]}
    assert observed == {"role": "user", "content": "Observation: 42"}
    assert answered["content"] == script[1]
    assert (t.finish_reason, t.final_response) == ("answered", "42")
    assert t.turns[0].text == REACT[: REACT.index(" 41")]  # the generation ended there
    assert backend.requests[0].tools == []
    assert backend.requests[0].sampling.stop == ("\nObservation:",)


async def test_a_bare_action_input_reaches_the_only_argument():
    """`Action Input: 2 * 21` is the calculator's expression."""
    script = ["Action: calculator\nAction Input: 2 * 21\nObservation:", "Final Answer: 42"]
    t = await play(ReactAgent("scripted", tools=[calculator], backend=ScriptedBackend(script)))
    assert t.tool_calls[0].call.arguments == "2 * 21"
    assert t.tool_calls[0].observation == "42"


async def test_malformed_actions_are_observed():
    """The model reads what was wrong and goes on."""
    script = ["Action: calc\nObservation:", "Action: calculator\nAction Input: {2}", "Final Answer: no"]
    t = await play(ReactAgent("scripted", tools=[calculator], backend=ScriptedBackend(script)))
    assert [m["content"] for m in t.messages if m["role"] == "user"][1:] == [
        "Observation: error: there is no tool 'calc'; tools: calculator",
        "Observation: error: bad json",
    ]


async def test_a_code_agent_runs_blocks_in_the_callers_tool():
    """Its blocks are one call; what the tool gave comes back as a block, and the text without code is the answer."""
    script = [
        "I compute.\n```python\n[1,\n```\nand\n```python\n2]\n```\n```output\n[1, 3]\n```",
        "It is [1, 2].",
    ]
    backend = ScriptedBackend(script)
    t = await play(CodeAgent("scripted", tools=[python, calculator], backend=backend))
    assert [(r.call.tool_name, r.call.arguments) for r in t.tool_calls] == [("python", {"code": "[1,\n\n2]"})]
    assert t.messages[2]["content"] == script[0][: script[0].index("```output")]
    assert t.messages[3] == {"role": "user", "content": "```output\n[1, 2]\n```"}
    assert (t.final_response, t.finish_reason) == ("It is [1, 2].", "answered")
    assert "- calculator: " in t.messages[0]["content"]
    assert backend.requests[0].tools == []


async def test_the_code_tool_can_have_another_name_and_argument():
    """The code goes to the tool's only required argument."""

    @tool
    def run(source: str, limit: int = 3) -> str:
        """Run."""
        return source[:limit]

    backend = ScriptedBackend(["```python\nabcdef\n```", "done"])
    t = await play(CodeAgent("scripted", tools=[run], backend=backend, tool_name="run"))
    assert (t.tool_calls[0].call.arguments, t.tool_calls[0].observation) == ({"source": "abcdef"}, "abc")


def run_two(code: str, language: str) -> str:
    """Run."""
    return code + language


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: CodeAgent("s", tools=[calculator], backend=ScriptedBackend()),
            r"CodeAgent has no tool 'python' to run code \(tools: calculator\); Rollcast does not execute code itself, so give one",
        ),
        (
            lambda: CodeAgent("s", tools=[run_two], backend=ScriptedBackend(), tool_name="run_two"),
            "tool 'run_two' has several required arguments",
        ),
        (
            lambda: ReactAgent("s", backend=ScriptedBackend(), prompt_template="Use tools."),
            r"prompt_template has no \{tools\}",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, says):
    """One sentence, before a chain starts."""
    with pytest.raises(InputError, match=says):
        make()


async def test_instructions_follow_the_conversations_own_system_message():
    """The format reaches the model whatever the conversation brings; the caller's messages stay as they were."""
    agent = ReactAgent("s", tools=[calculator], backend=ScriptedBackend("hi"), system_prompt="Mine.")
    messages = [{"role": "system", "content": "Yours."}, *HELLO]
    t = await play(agent, messages)
    assert t.messages[0]["content"] == f"Yours.\n\n{agent.instructions}"
    assert messages[0]["content"] == "Yours."
    parts = [{"role": "system", "content": [{"type": "text", "text": "Parts."}]}, *HELLO]
    t = await play(agent, parts)
    assert [part["text"] for part in t.messages[0]["content"]] == ["Parts.", agent.instructions]
    assert len(parts[0]["content"]) == 1
    t = await play(ReactAgent("s", tools=[calculator], backend=ScriptedBackend("hi")))
    assert t.messages[0]["role"] == "system"
    t = await play(ReactAgent("s", backend=ScriptedBackend("hi")))
    assert t.messages[0] == HELLO[0]


async def test_a_template_of_the_callers_own_is_used():
    """`{tools}` and `{tool_names}` are filled in; other braces stay."""
    agent = ReactAgent(
        "s",
        tools=[calculator],
        backend=ScriptedBackend("hi"),
        prompt_template='{tools} or {tool_names} {"a": {}}',
    )
    assert agent.instructions.endswith('} or calculator {"a": {}}')
