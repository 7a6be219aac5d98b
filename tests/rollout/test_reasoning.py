"""Facts about chains of models that reason before they speak."""

import re

import pytest

from rollcast import BaseAgent, CodeAgent, Delta, ReactAgent, Trajectory
from rollcast.models.backend import BaseBackend
from rollcast.models.reasoning import NONE
from rollcast.records import ToolCall
from rollcast.testing import ScriptedBackend

Q = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "f", "arguments": {"x": "real"}}</tool_call>'
DRAFT = CALL.replace("real", "draft")
REACT = 'Action: f\nAction Input: {"x": "real"}\nObservation:'
THOUGHT = f"<think>maybe {DRAFT} no,\n{REACT.replace('real', 'draft')} no</think>"


class Streams(BaseBackend):
    """Says a script in single characters, and honours stop strings, as engines do."""

    def __init__(self, script, *, thinking=None, limit=None):
        self.script, self.requests, self.limit = list(script), [], limit
        if thinking is not None:
            self.thinking = thinking

    async def generate(self, request):
        text = self.script[len(self.requests)]
        self.requests.append(request)
        said = ""
        for character in text[: self.limit]:
            said += character
            yield Delta(character)
            if any(said.endswith(stop) for stop in request.sampling.stop):
                break
        yield Delta("", finish_reason="length" if self.limit and len(text) > self.limit else "stop")


def f(x: str) -> str:
    """Give back x."""
    return f"got {x}"


async def play(agent, steps=3):
    (t,) = await agent.run_async(steps, Q, seed=1)
    assert t.error is None
    return t


@pytest.mark.parametrize("backend", [ScriptedBackend, Streams])
async def test_a_call_in_reasoning_is_not_carried_out(backend):
    """The call behind it is; both messages keep their reasoning apart."""
    t = await play(BaseAgent(tools=[f], backend=backend([THOUGHT + CALL, "<think>so</think>\n\ndone"])))
    assert [record.call.arguments for record in t.tool_calls] == [{"x": "real"}]
    _, called, _, answered = t.messages
    assert (called["content"], called["reasoning_content"]) == ("", THOUGHT[7:-8])
    assert answered == {"role": "assistant", "content": "done", "reasoning_content": "so"}
    assert (t.final_response, t.turns[1].text) == ("done", "<think>so</think>\n\ndone")
    assert not t.forked
    assert Trajectory.from_dict(t.to_dict()).messages == t.messages


async def test_text_before_a_lone_closing_tag_is_reasoning():
    """The generation is not ended at the draft, since the tag may still come."""
    for agent, call in ((BaseAgent, CALL), (ReactAgent, REACT)):
        script = [f"{DRAFT} and\n{REACT}\nno</think>\n{call}", "done"]
        t = await play(agent(tools=[f], backend=Streams(script)))
        assert [record.call.arguments for record in t.tool_calls] == [{"x": "real"}]
        assert t.turns[0].text.startswith(script[0][:-1])


@pytest.mark.parametrize("thinking", [None, NONE])
async def test_a_stop_string_ends_output_and_no_reasoning(thinking):
    """A model that may reason gets no stop strings of the format: the chain itself looks for them in the output."""
    opened = "<think>\nx\nObservation: y\n</think>\n" if thinking is None else ""
    backend = Streams([f"{opened}{REACT} made up", "Final Answer: 4"], thinking=thinking)
    t = await play(ReactAgent(tools=[f], backend=backend))
    assert backend.requests[0].sampling.stop == (() if thinking is None else ("\nObservation:",))
    assert t.turns[0].text == opened + REACT
    assert [record.observation for record in t.tool_calls] == ["got real"]
    assert t.final_response == "4"


async def test_a_turn_that_was_over_before_its_limit_counts():
    """Where its end could not be known to be one, the turn is read up to there, and the chain goes on."""
    backend = Streams([f"{REACT} {'made up ' * 20}", "Final Answer: 4"], limit=120)
    t = await play(ReactAgent(tools=[f], backend=backend))
    assert t.finish_reason == "answered"
    assert t.messages[2]["content"] == REACT.removesuffix("Observation:")
    backend = Streams([f"<think>{REACT} {'made up ' * 20}", "Final Answer: 4"], limit=120)
    t = await play(ReactAgent(tools=[f], backend=backend))
    assert (t.finish_reason, len(t.tool_calls)) == ("max_tokens", 0)


async def test_an_own_parse_sees_the_output_alone():
    """And its messages keep the reasoning apart, as others do."""
    seen = []

    class Own(BaseAgent):
        def parse(self, text):
            seen.append(text)
            return [ToolCall("", "f", {"x": m}) for m in re.findall(r"f\((\w+)\)", text)]

        def assistant_message(self, text, content, calls):
            return {"role": "assistant", "content": text}

    t = await play(Own(tools=[f], backend=ScriptedBackend(["<think>f(a)</think>f(b)", "f(a)</think>done"])))
    assert seen == ["f(b)", "done"]
    assert [m.get("reasoning_content") for m in t.messages] == [None, "f(a)", None, "f(a)"]
    assert t.final_response == "done"
    assert not t.forked


async def test_an_agent_may_forget_what_was_thought():
    """An empty `reasoning_content` does, and the next prompt is a fresh one."""

    class Forgets(BaseAgent):
        def assistant_message(self, text, content, calls):
            return {**super().assistant_message(text, content, calls), "reasoning_content": ""}

    t = await play(Forgets(tools=[f], backend=ScriptedBackend([THOUGHT + CALL, "done"])))
    assert [turn.fresh for turn in t.turns] == [False, True]


async def test_code_in_reasoning_is_not_run():
    """Neither is an output that it makes up."""

    def python(code: str) -> str:
        """Run."""
        return code

    said = "<think>```python\ndraft\n```\n```output\n1\n```</think>\n```python\nreal\n```"
    t = await play(CodeAgent(tools=[python], backend=ScriptedBackend([said, "<think>so</think>ok"])))
    assert [record.observation for record in t.tool_calls] == ["real"]
    assert t.final_response == "ok"


async def test_a_malformed_call_keeps_its_text_and_no_reasoning():
    """The model reads what it wrote."""
    bad = "<tool_call>{</tool_call>"
    t = await play(BaseAgent(tools=[f], backend=ScriptedBackend([f"<think>a</think>\n{bad}", "done"])))
    assert t.messages[1] == {"role": "assistant", "content": bad, "reasoning_content": "a"}


async def test_an_agent_without_tools_keeps_reasoning_apart():
    """Also with a backend that never reasons of its own accord, but was asked to write the tags."""
    for backend in (ScriptedBackend("<think>a</think>b"), Streams(["<think>a</think>b"], thinking=NONE)):
        t = await play(BaseAgent(backend=backend))
        assert t.messages[1] == {"role": "assistant", "content": "b", "reasoning_content": "a"}
