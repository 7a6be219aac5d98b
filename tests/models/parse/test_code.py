"""Facts about code blocks as calls."""

import pytest

from rollcast.models.parse import CodeParser
from rollcast.records import ToolCall

code = CodeParser()


def test_blocks_are_one_call():
    """In their order, with an empty line between; the text around them is content."""
    turn = code.read("First.\n```python\na = 1\n```\nThen\n```py\nprint(a)\n```\nDone.")
    assert turn.calls == [ToolCall("call_0", "python", {"code": "a = 1\n\nprint(a)"})]
    assert turn.content == "First.\n\nThen\n\nDone."
    assert not turn.finished


def test_the_tool_can_be_another():
    """Name and argument are the caller's."""
    parser = CodeParser("run", "source")
    assert parser.parse("```python\n1\n```") == [ToolCall("call_0", "run", {"source": "1"})]


def test_other_blocks_are_text():
    """Blocks of other languages are content, and what stands in them opens nothing."""
    text = "```json\n{}\n```\n```\n```python\n```\nin `code` and ```inline``` too"
    turn = code.read(text)
    assert (turn.calls, turn.content) == ([], text)


@pytest.mark.parametrize("end", ["```output\n2\n```", "Observation: 2"])
def test_a_made_up_output_ends_the_turn(end):
    """What the model says that its code prints is neither content nor a call."""
    turn = code.read(f"```python\n1 + 1\n```\n{end}\nSo it is 2.\n```python\n3\n```")
    assert turn.calls == [ToolCall("call_0", "python", {"code": "1 + 1"})]
    assert (turn.content, turn.finished) == ("\n", True)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nprint(", "error: unclosed code block"),
        ("```python\n1\n```\n```python\n2", "error: unclosed code block"),
        ("```python\n\n```", "error: empty code block"),
    ],
)
def test_malformed_code_says_why(text, error):
    """An open or empty block is a call with an error."""
    (call,) = code.parse(text)
    assert (call.tool_name, call.error) == ("python", error)


def test_backticks_inside_a_line_of_code_stay():
    """Only a line that begins with a fence ends the block."""
    assert code.parse("```python\ns = '```'\n```")[0].arguments == {"code": "s = '```'"}
