"""Facts about ReAct in plain text."""

import pytest

from rollcast.models.parse import ReactParser
from rollcast.records import ToolCall

react = ReactParser()
CALL = 'Thought: I add.\nAction: add\nAction Input: {"a": 1}\n'


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        (CALL, "add", {"a": 1}),
        (CALL + "\nObservation:", "add", {"a": 1}),
        ("action : add\nACTION INPUT:{}", "add", {}),
        ("Action 2: add\nAction Input 2: {}", "add", {}),
        ("**Thought:** hm\n**Action:** `add`\n**Action Input:** {}", "add", {}),
        ("**Action**: add\n**Action Input**: {}", "add", {}),
        ('Action: add\nAction Input:\n```json\n{\n  "a": 1\n}\n```\n', "add", {"a": 1}),
        ("Action: search\nAction Input: who is\nthe king?\n", "search", "who is\nthe king?"),
        ('Action: search\nAction Input: "king"', "search", '"king"'),
        ("Action: total\nAction Input: [1, 2]", "total", "[1, 2]"),
        ("Action: ping\nObservation:", "ping", {}),
        ("Action: ping\nAction Input:\nObservation:", "ping", {}),
    ],
)
def test_an_action_is_a_call(text, name, arguments):
    """Labels in any case, numbered or bold; an object is decoded, other text is kept, none is no arguments."""
    assert react.parse(text) == [ToolCall("call_0", name, arguments)]


@pytest.mark.parametrize(
    ("text", "name", "error"),
    [
        ('Action: add\nAction Input: {"a": ', "add", "error: bad json"),
        ('Action: add\nAction Input: {"a": 1}\nand so on', "add", "error: bad json"),
        ("Action:\nAction Input: {}", "", "error: no tool name"),
        ("Action Input: {}", "", "error: no tool name"),
        ('Action: add\n{"a": 1}', "add", "error: no action input"),
        ("Action: " + "x" * 300, "x" * 64, "error: bad tool name"),
    ],
)
def test_a_malformed_action_says_why(text, name, error):
    """What cannot be read is a call with a short error."""
    (call,) = react.parse(text)
    assert (call.tool_name, call.error) == (name, error)


@pytest.mark.parametrize("after", ["Observation: 2\nAction: b", "Thought: b", "Final Answer: 2", "Action: b"])
def test_only_the_first_action_counts(after):
    """What the model makes up after its action is neither content nor a call."""
    turn = react.incremental()
    turn.feed(CALL)
    assert not turn.finished
    (call,) = turn.feed(after)
    assert turn.finished
    assert turn.close() == [call] == [ToolCall("call_0", "add", {"a": 1})]
    assert turn.content == "Thought: I add.\n"
    assert turn.ended_at == len(CALL)


def test_a_final_answer_is_no_call():
    """Its text is known, and a label after it ends the turn."""
    turn = react.read("Thought: easy.\nFinal Answer: it is\n42\nThought: or is it?\nAction: add")
    assert (turn.calls, turn.answer, turn.finished) == ([], "it is\n42", True)
    assert turn.content == "Thought: easy.\nFinal Answer: it is\n42\n"
    assert react.read("**Final Answer:** 4").answer == "4"
    assert react.read("just so").answer is None


def test_labels_in_the_middle_of_a_line_are_text():
    """Only a line's beginning has a label."""
    text = "Thought: the Action: and the Observation: are words"
    turn = react.read(text)
    assert (turn.calls, turn.content, turn.finished) == ([], text, False)


def test_it_stops_before_an_observation_of_its_own():
    """The stop string begins a line."""
    assert react.stop == ("\nObservation:",)
