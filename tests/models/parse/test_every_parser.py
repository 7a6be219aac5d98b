"""Facts that hold for every format of tool calls."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linear import assert_linear
from rollcast.errors import InputError
from rollcast.models import resolve_parser
from rollcast.models.parse import (
    CodeParser,
    HermesParser,
    Llama3Parser,
    Parser,
    PythonParser,
    Qwen3CoderParser,
    ReactParser,
)
from rollcast.models.parse.reader import CALL_LIMIT
from rollcast.records import ToolCall

PARSERS = [CodeParser(), HermesParser(), Llama3Parser(), PythonParser(), Qwen3CoderParser(), ReactParser()]
every = pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.name)

# One call of `add` with a = 1, in each format; the code parser's is a call of `python`.
CALL = {
    "code": "```python\nadd(1)\n```\n",
    "hermes": '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
    "llama3": '<|python_tag|>{"name": "add", "parameters": {"a": 1}}',
    "python": "[add(a=1)]",
    "qwen3_coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    "react": 'Action: add\nAction Input: {"a": 1}\nObservation:',
}
SHARDS = {
    "code": ["```", "`", "python\n", "py\n", "json\n", "output", "Observation", ":", "\n", "   ", "x = 1"],
    "hermes": ["<tool_call>", "</tool_call>", "<tool", "_call>", "</", "<", ">", '{"name": "f"}', '{"name": '],
    "llama3": [
        "<|python_tag|>", "<|eom_id|>", "<|eot", "_id|>", "<|", "{", "}", '"', "\\", ";", '{"name": "f", ',
        '"parameters": {}}', '{"a": 1}', '"name"', " ",
    ],
    "python": [
        "[", "]", "f(", ")", "a=", "b=", "1", ",", "'", '"', '"""', "'''", "\\", "{", "}", "<|python_start|>", "<|pyth",
        "None", "#", "[f(a=", " ",
    ],
    "qwen3_coder": [
        "<tool_call>", "</tool_call>", "<function=f>", "<function=", "</function>", "<parameter=a>", "<parameter=b>",
        "</parameter>", "</", "<", ">", "\n", "1",
    ],
    "react": [
        "Thought:", "Action:", "Action Input:", "Observation:", "Final Answer:", "**", "*", " 1", "Action", " Input", ":",
        "\n", "{}", '{"a": 1}', "```", "```json\n", "f", "obſervation:", "[1]",
    ],
}  # fmt: skip


TAGS = [
    "<think>",
    "</think>",
    "<thi",
    "nk>",
    "`",
    "[/THINK]",
    "<|channel>thought",
    "<channel|>",
    "```\n",
    '"',
]


def texts(parser, more=()):
    shards = st.sampled_from([*SHARDS[parser.name], CALL[parser.name], " ", "é\n", "and", *more])
    return st.lists(shards | st.text(max_size=5), max_size=14).map("".join)


@every
def test_it_is_a_parser_under_its_name(parser):
    """Each fits the protocol and is found under its name."""
    assert isinstance(parser, Parser)
    assert type(resolve_parser(parser.name)) is type(parser)
    assert resolve_parser(parser) is parser


def test_what_is_no_parser_is_refused():
    """A wrong name or object is one sentence with the names."""
    with pytest.raises(
        InputError, match="no parser 'xml'; parsers: code, hermes, llama3, python, qwen3_coder, react"
    ):
        resolve_parser("xml")
    with pytest.raises(InputError, match=r"parser is int; expected a name \(code"):
        resolve_parser(3)


@every
def test_a_call_is_a_call(parser):
    """The same call, in every format."""
    (call,) = parser.parse(CALL[parser.name])
    expected = {
        "code": ToolCall("call_0", "python", {"code": "add(1)"}),
        "qwen3_coder": ToolCall("call_0", "add", {"a": "1"}),
    }
    assert call == expected.get(parser.name, ToolCall("call_0", "add", {"a": 1}))


@every
def test_text_is_no_call(parser):
    """Prose, an empty text and JSON that is no call are content."""
    for text in ("The answer is 3.", "", "\n\n", '{"answer": 3}', "[1, 2, 3]", "[a](b) and [f] (x)"):
        turn = parser.incremental()
        turn.feed(text)
        assert turn.close() == []
        assert (turn.content, turn.finished) == (text, False)


@every
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_split_gives_the_same(parser, data):
    """However the text is cut, the calls, the content and the end are those of the whole."""
    text = data.draw(texts(parser))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    turn, whole = parser.incremental(), parser.incremental()
    given_calls = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        was = turn.finished
        given_calls += turn.feed(text[start:end])
        assert turn.finished or not was
    whole.feed(text)
    assert (turn.content, turn.finished) == (whole.content, whole.finished)
    calls = turn.close()
    assert calls == whole.close() == parser.parse(text) == turn.close()
    assert given_calls == calls[: len(given_calls)]
    assert len(calls) - len(given_calls) <= 1
    assert (turn.content, turn.finished) == (whole.content, whole.finished)


@every
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_split_of_reasoning_gives_the_same(parser, data):
    """The same with tags of reasoning, which may withdraw what was a call before."""
    text = data.draw(texts(parser, TAGS))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    turn, whole = parser.incremental(), parser.incremental()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        turn.feed(text[start:end])
    whole.feed(text)
    state = (whole.content, whole.reasoning, whole.over)
    assert (turn.content, turn.reasoning, turn.over) == state
    assert turn.close() == whole.close() == parser.parse(text) == turn.close()
    assert (turn.content, turn.output) == (whole.content, whole.output)


@every
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_single_characters_give_the_same(parser, data):
    """The finest cut, at every place: what has been said so far is that of the text so far."""
    text = data.draw(texts(parser))
    turn = parser.incremental()
    for end, character in enumerate(text, 1):
        turn.feed(character)
        whole = parser.incremental()
        whole.feed(text[:end])
        assert (turn.content, turn.finished) == (whole.content, whole.finished)
    assert turn.close() == parser.parse(text)


@every
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_calls_are_sound(parser, data):
    """Whatever the model writes: arguments can be encoded, a malformed call has one short line that begins `error: `."""
    for i, call in enumerate(parser.parse(data.draw(texts(parser)))):
        msgspec.json.encode(call)
        assert call.call_id == f"call_{i}"
        if call.error is None:
            assert isinstance(call.arguments, dict | str)
            assert call.tool_name
        else:
            assert isinstance(call.arguments, str)
            assert call.error.startswith("error: ")
            assert "\n" not in call.error
            assert len(call.error) < 60


ENDLESS = {
    "code": ["`", " ", "\n", "```python\n", "```python\n```\n", "```python\n" + "x" * 200, "x"],
    "hermes": ["<", "<tool_call>", "x", CALL["hermes"]],
    "llama3": ["{", '{"', '{"name": "\\', "<|", "<|python_tag|>", " ", ";", "<|python_tag|>{", CALL["llama3"] + ";"],
    "python": ["[", " ", "<|", "[f(", "[f('", "[f(a='\\", "[f(a='''", '[f(a="', "[f(a=1)]"],
    "qwen3_coder": ["<", "<tool_call>", "<function=", "<tool_call><function=f><parameter=a>", CALL["qwen3_coder"]],
    "react": [
        "Action", " ", "\n", "*", "Action: f\n", "Thought:\n", "Action: f\nAction Input: ```\n", "Final Answer: \n", "A\n",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ["hermes", "llama3", "python", "react"])
@pytest.mark.parametrize("depth", [60, 70, 300, 900])
def test_arguments_that_nest_more_deeply_than_a_prompt_can_show_make_a_call_malformed(name, depth):
    """The next prompt would fail, and events would show something else."""
    (parser,) = (parser for parser in PARSERS if parser.name == name)
    value = "[" * depth + "1" + "]" * depth
    (call,) = parser.parse(CALL[name].replace("1", value))
    if depth == 60:
        assert (call.tool_name, call.error) == ("add", None)
    else:
        assert call.tool_name == "add"
        assert call.error in ("error: nested too deeply", "error: bad json", "error: bad python")


@every
def test_the_cost_is_linear(parser):
    """Endless text of any kind, in single characters or at once, costs processor time in proportion to its length."""

    def work(text):
        turn = parser.incremental()
        for character in text:
            turn.feed(character)
        turn.close()
        parser.parse(text)

    for unit in ENDLESS[parser.name]:
        assert_linear(work, lambda length, unit=unit: (unit * length)[:length])
        assert_linear(work, lambda length, unit=unit: (unit + unit[-1] * length)[:length])


@every
def test_a_huge_call_is_bounded(parser):
    """A call beyond the limit is malformed, and its text is kept up to the limit."""
    opening = {
        "code": "```python\n",
        "hermes": '<tool_call>{"name": "f", "arguments": {"x": "',
        "llama3": '{"name": "f", "parameters": {"x": "',
        "python": "[f(x='",
        "qwen3_coder": "<tool_call><function=f><parameter=x>",
        "react": "Action: f\nAction Input: ",
    }[parser.name]
    turn = parser.incremental()
    turn.feed(opening)
    for _ in range(30):
        turn.feed("x" * 100_000)
    closing = {"code": "\n```\n", "python": "')]", "llama3": '"}}', "react": "\nObservation:"}
    turn.feed(closing.get(parser.name, "</tool_call>"))
    (call,) = turn.close()
    assert call.error == "error: call too long"
    assert call.tool_name == ("python" if parser.name == "code" else "f")
    assert len(call.arguments) <= CALL_LIMIT
