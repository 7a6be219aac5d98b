"""Facts about Hermes tool calls."""

import json

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from linear import assert_linear
from rollcast.models.parse import HermesParser, Parser
from rollcast.models.parse.hermes import CALL_LIMIT
from rollcast.records import ToolCall

hermes = HermesParser()
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1 + 2"}}\n</tool_call>'


def test_it_is_a_parser():
    """The parser fits the protocol, and needs no stop strings."""
    assert isinstance(hermes, Parser)
    assert (hermes.name, hermes.stop) == ("hermes", ())


def test_a_call_is_parsed():
    """A call has its name and its arguments."""
    assert hermes.parse(CALL) == [ToolCall("call_0", "calculator", {"expression": "1 + 2"})]


def test_text_without_calls_has_none():
    """Text alone is no call."""
    assert hermes.parse("The answer is 3.") == []
    assert hermes.parse("") == []


def test_several_calls_are_numbered():
    """Calls come in the order of the text, with ids of their own."""
    calls = hermes.parse(f"Let me see. {CALL}\n{CALL} and {CALL}")
    assert [call.call_id for call in calls] == ["call_0", "call_1", "call_2"]
    assert {call.tool_name for call in calls} == {"calculator"}


def test_content_is_the_text_without_the_calls():
    """The text outside the calls is available, while it arrives and afterwards."""
    turn = hermes.incremental()
    turn.feed(f"Let me see. {CALL} Done <tool")
    assert turn.content == "Let me see.  Done <tool"
    turn.feed("_call>{")
    assert turn.content == "Let me see.  Done "
    turn.close()
    assert turn.content == "Let me see.  Done "


@pytest.mark.parametrize(
    ("body", "name", "arguments"),
    [
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', "f", {"a": 1}),
        ('{"name": "f", "arguments": ""}', "f", {}),
        ('{"name": "f", "arguments": null}', "f", {}),
        ('{"name": "f"}', "f", {}),
        ('{"arguments": {"a": [1, {}]}, "name": "f", "id": 3}', "f", {"a": [1, {}]}),
        (
            '{"name": "f", "arguments": {"a": 123456789012345678901234567890}}',
            "f",
            {"a": 123456789012345678901234567890},
        ),
    ],
)
def test_arguments_may_be_an_object_its_json_or_nothing(body, name, arguments):
    """An object, the object as a JSON string, and nothing at all are well-formed arguments."""
    assert hermes.parse(f"<tool_call>{body}</tool_call>") == [ToolCall("call_0", name, arguments)]


@pytest.mark.parametrize(
    ("body", "name", "error"),
    [
        ('{"name": "calculator", "arguments": {"expression": "1 + 2\n', "calculator", "error: bad json"),
        ("", "", "error: bad json"),
        ("[]", "", "error: bad json"),
        ("{'name': 'f'}", "", "error: bad json"),
        ('{"name": "f", "arguments": {"x": NaN}}', "f", "error: bad json"),
        ('{"name": "f", "arguments": {"x": "\\ud800"}}', "f", "error: bad json"),
        ('{"name": "f", "arguments": ' + "[" * 100_000, "f", "error: bad json"),
        ('{"arguments": {}}', "", "error: no tool name"),
        ('{"name": 3, "arguments": {}}', "", "error: no tool name"),
        ('{"name": "", "arguments": {}}', "", "error: no tool name"),
        ('{"name": "f", "arguments": [1]}', "f", "error: bad arguments"),
        ('{"name": "f", "arguments": "{"}', "f", "error: bad arguments"),
        ('{"name": "f", "arguments": "3"}', "f", "error: bad arguments"),
    ],
)
def test_a_malformed_call_has_an_error_and_its_raw_text(body, name, error):
    """A malformed call is a call: with a short error, the text as written, and the name where it can be read."""
    assert hermes.parse(f"<tool_call>{body}</tool_call>") == [ToolCall("call_0", name, body, error)]


@pytest.mark.parametrize("end", ["", "<", "</tool_call"])
def test_an_unclosed_call_is_malformed(end):
    """A call that the text leaves open is reported at the end, with its text."""
    body = '{"name": "f", "arguments": {}}' + end
    turn = hermes.incremental()
    assert turn.feed(f"{CALL}<tool_call>{body}") == hermes.parse(CALL)
    calls = turn.close()
    assert calls[1:] == [ToolCall("call_1", "f", body, "error: unclosed call")]
    assert turn.close() == calls


def test_a_call_is_given_when_its_last_character_arrives():
    """`feed` gives each call once, as soon as it is complete."""
    turn = hermes.incremental()
    given = [turn.feed(character) for character in CALL]
    assert all(calls == [] for calls in given[:-1])
    assert given[-1] == hermes.parse(CALL)
    assert turn.feed(" ") == []


def test_the_turn_is_finished_when_other_text_follows_a_call():
    """After a call, whitespace and the beginning of another call leave the turn open; anything else finishes it."""
    turn = hermes.incremental()
    states = []
    for piece in ["text first ", CALL, "\n ", "<tool", "_call>{}", "</tool_call>", "<", "tool_", "r"]:
        turn.feed(piece)
        states.append(turn.finished)
    assert states == [False] * 8 + [True]


def test_a_malformed_call_counts_as_complete():
    """A closed call that is malformed finishes the turn as any other."""
    turn = hermes.incremental()
    turn.feed("<tool_call>{</tool_call>\n<tool_response>")
    assert turn.finished


_pieces = st.lists(
    st.sampled_from(
        [
            CALL,
            "<tool_call>",
            "</tool_call>",
            "<tool",
            "_call>",
            "</",
            "<",
            ">",
            '{"name": "f"}',
            '{"name": ',
            " ",
            "é\n",
        ]
    )
    | st.text(max_size=5),
    max_size=12,
)


@given(_pieces.map("".join), st.data())
def test_any_split_gives_the_same_calls(text, data):
    """However the text is cut, the calls, the content and the end are those of the whole."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    turn, whole = hermes.incremental(), hermes.incremental()
    given = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        was = turn.finished
        given += turn.feed(text[start:end])
        assert turn.finished or not was
    whole.feed(text)
    calls = turn.close()
    assert calls == whole.close() == hermes.parse(text)
    assert given == calls[: len(given)]
    assert len(calls) - len(given) == (bool(calls) and calls[-1].error == "error: unclosed call")
    assert (turn.content, turn.finished) == (whole.content, whole.finished)


@given(_pieces.map("".join))
def test_calls_can_be_encoded(text):
    """Whatever the model writes, well-formed arguments are JSON that can be encoded."""
    for call in hermes.parse(text):
        if call.error is None:
            assert isinstance(call.arguments, dict)
            msgspec.json.encode(call)
        else:
            assert isinstance(call.arguments, str)
            assert len(call.error) < 40


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_json_arguments_survive(arguments):
    """What json writes is what the call has, unless a string holds the closing tag."""
    body = json.dumps({"name": "f", "arguments": arguments})
    assume("</tool_call>" not in body)
    assert hermes.parse(f"<tool_call>{body}</tool_call>")[0].arguments == arguments


def test_a_huge_call_is_bounded():
    """A call beyond the limit is malformed, and its text is kept up to the limit."""
    turn = hermes.incremental()
    turn.feed('<tool_call>{"name": "f", "arguments": {"x": "')
    for _ in range(100):
        turn.feed("x" * 100_000)
    (call,) = turn.feed('"}}</tool_call>')
    assert call.error == "error: call too long"
    assert (call.tool_name, len(call.arguments)) == ("f", CALL_LIMIT)


def test_the_cost_is_linear():
    """A long text, fed in single characters, costs processor time in proportion to its length."""

    def work(length):
        turn = hermes.incremental()
        for _ in range(length):
            turn.feed("<")
        turn.feed("<tool_call>")
        for _ in range(length):
            turn.feed("<")
        turn.close()

    assert_linear(work, int)
