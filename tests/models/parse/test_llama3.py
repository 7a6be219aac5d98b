"""Facts about Llama 3's calls in JSON."""

import pytest

from rollcast.models.parse import Llama3Parser
from rollcast.records import ToolCall

llama = Llama3Parser()
ADD = ToolCall("call_0", "add", {"a": 1})


@pytest.mark.parametrize(
    "text",
    [
        '<|python_tag|>{"name": "add", "parameters": {"a": 1}}<|eom_id|>',
        '{"name": "add", "parameters": {"a": 1}}',
        '\n{"type": "function", "name": "add", "parameters": {"a": 1}}<|eot_id|>',
        '{"name": "add", "arguments": {"a": 1}}',
        '{"parameters": {"a": 1}, "name": "add"}',
        '<|python_tag|> {"name": "add", "parameters": "{\\"a\\": 1}"}',
    ],
)
def test_a_call_is_parsed(text):
    """With the tag or alone, with `parameters` or `arguments`, which may be JSON in a string."""
    assert llama.parse(text) == [ADD]


def test_several_calls_are_separated():
    """By semicolons, line breaks or tags."""
    one = '{"name": "f", "parameters": {"s": "};{\\"<|eom_id|>"}}'
    calls = llama.parse(f"{one}; {one}\n{one}<|python_tag|>{one}")
    assert [call.arguments for call in calls] == [{"s": '};{"<|eom_id|>'}] * 4
    assert [call.call_id for call in calls] == [f"call_{i}" for i in range(4)]


def test_text_may_come_before_the_tag():
    """It is the content."""
    turn = llama.incremental()
    turn.feed('I add. <|python_tag|>{"name": "add", "parameters": {"a": 1}}')
    assert (turn.close(), turn.content, turn.finished) == ([ADD], "I add. ", False)


@pytest.mark.parametrize("end", ["<|eom_id|>", "<|eot_id|>", "and"])
def test_the_turn_ends(end):
    """At a special token, or when other text follows."""
    turn = llama.incremental()
    turn.feed('{"name": "add", "parameters": {"a": 1}} ; ')
    assert not turn.finished
    turn.feed(end)
    turn.feed(' more {"name": "add", "parameters": {}}')
    assert turn.finished
    assert (turn.close(), turn.content) == ([ADD], "")


@pytest.mark.parametrize(
    "text", ['{"answer": 4}', '{"name": "Bob", "age": 3}', "{4} is a set", '{"a": "<|python', "{"]
)
def test_other_objects_are_the_answer(text):
    """An object without a tag and without name and parameters is content."""
    turn = llama.incremental()
    turn.feed(text)
    assert (turn.close(), turn.content) == ([], text)


@pytest.mark.parametrize(
    ("text", "name", "error"),
    [
        ('<|python_tag|>{"name": "add", "parameters": {a: 1}}', "add", "error: bad json"),
        ('{"name": "add", "parameters": {a: 1}}', "add", "error: bad json"),
        ('{"name": "add", "parameters": [1]}', "add", "error: bad arguments"),
        ('<|python_tag|>{"parameters": {}}', "", "error: no tool name"),
        ('<|python_tag|>search.call(query="x")<|eom_id|>', "", "error: bad json"),
        ('{"name": "add", "parameters": {"a": 1', "add", "error: unclosed call"),
        ("<|python_tag|>", "", "error: unclosed call"),
    ],
)
def test_a_malformed_call_says_why(text, name, error):
    """What cannot be read is a call with a short error."""
    (call,) = llama.parse(text)
    assert (call.tool_name, call.error) == (name, error)
