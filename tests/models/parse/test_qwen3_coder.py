"""Facts about Qwen3-Coder's calls."""

import pytest

from rollcast.models.parse import Qwen3CoderParser
from rollcast.records import ToolCall

qwen = Qwen3CoderParser()
CALL = "<tool_call>\n<function=write>\n<parameter=path>\na.py\n</parameter>\n<parameter=text>\n\n  x < 1\n\n</parameter>\n</function>\n</tool_call>"
WRITE = ToolCall("call_0", "write", {"path": "a.py", "text": "\n  x < 1\n"})


@pytest.mark.parametrize(
    "text", [CALL, CALL[len("<tool_call>\n") :], CALL[len("<tool_call>") : -len("</tool_call>")]]
)
def test_values_are_strings_as_they_are_written(text):
    """Without the line breaks next to the tags; a forgotten `<tool_call>` does no harm."""
    assert qwen.parse(text) == [WRITE]


def test_short_forms_are_calls():
    """Without line breaks, and without parameters."""
    assert qwen.parse("<tool_call><function=f><parameter=a>1</parameter></function></tool_call>") == [
        ToolCall("call_0", "f", {"a": "1"})
    ]
    assert qwen.parse("<tool_call>\n<function=f>\n</function>\n</tool_call>") == [ToolCall("call_0", "f", {})]


def test_several_calls_and_text():
    """Calls come in the order of the text; text after a call finishes the turn."""
    turn = qwen.incremental()
    turn.feed(f"I write.\n{CALL}\n{CALL}")
    assert not turn.finished
    turn.feed("\nDone")
    assert turn.finished
    assert [call.call_id for call in turn.close()] == ["call_0", "call_1"]
    assert turn.content == "I write.\n\n\nDone"


@pytest.mark.parametrize(
    ("body", "name", "error"),
    [
        ('{"name": "f"}', "", "error: no tool name"),
        ("<function=>", "", "error: no tool name"),
        ("<function=f><parameter=a>1</function>", "f", "error: unclosed parameter"),
        ("<function=f><parameter=a>1</parameter>", "f", "error: unclosed function"),
        (
            "<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>",
            "f",
            "error: repeated parameter",
        ),
        ("<function=f>text</function>", "f", "error: bad call"),
        ("<function=f></function>text", "f", "error: bad call"),
    ],
)
def test_a_malformed_call_says_why(body, name, error):
    """A malformed call has a short error and its text."""
    assert qwen.parse(f"<tool_call>{body}</tool_call>") == [ToolCall("call_0", name, body, error)]


def test_an_unclosed_call_is_malformed():
    """A call that the text leaves open is reported at the end."""
    (call,) = qwen.parse(CALL.removesuffix("</tool_call>"))
    assert (call.tool_name, call.error) == ("write", "error: unclosed call")
