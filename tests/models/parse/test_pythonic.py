"""Facts about lists of calls in Python's syntax."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.models.parse import PythonParser
from rollcast.models.parse.pythonic import LIST_LIMIT
from rollcast.records import ToolCall

python = PythonParser()


def test_calls_are_parsed():
    """Each call of the list has its name and its arguments."""
    assert python.parse('[get_weather(city="Paris", days=3), add(a=1, b=-2.5), ping()]') == [
        ToolCall("call_0", "get_weather", {"city": "Paris", "days": 3}),
        ToolCall("call_1", "add", {"a": 1, "b": -2.5}),
        ToolCall("call_2", "ping", {}),
    ]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("True", True),
        ("None", None),
        ("true", True),
        ("null", None),
        ("[1, (2, 'x')]", [1, [2, "x"]]),
        ("{'a': {'b': []}}", {"a": {"b": []}}),
        ("'it''s'", "its"),
        (r"'\'] \d'", "'] \\d"),
        ("'''a\n'b' ]'''", "a\n'b' ]"),
        ('"""a "quoted"" """', 'a "quoted"" '),
        ("r'\\d'", "\\d"),
        ("123456789012345678901234567890", 123456789012345678901234567890),
    ],
)
def test_literals_are_values(argument, value):
    """Python's literals that JSON has, and JSON's own names."""
    assert python.parse(f"[f(a={argument})]") == [ToolCall("call_0", "f", {"a": value})]


@pytest.mark.parametrize(
    ("call", "name", "error"),
    [
        ("f(a=b)", "f", "error: arguments must be literals"),
        ("f(a=g())", "f", "error: arguments must be literals"),
        ("f(a=1 + 1)", "f", "error: arguments must be literals"),
        ("f(a=b'x')", "f", "error: arguments must be literals"),
        ("f(a=1j)", "f", "error: arguments must be literals"),
        ("f(a=1e999)", "f", "error: arguments must be literals"),
        ("f(a=f'{x}')", "f", "error: arguments must be literals"),
        ("f(a={1: 2})", "f", "error: arguments must be literals"),
        ("f(a={**b})", "f", "error: arguments must be literals"),
        ("f(a='\\ud800')", "f", "error: arguments must be literals"),
        ("f(1, 2)", "f", "error: give arguments by name"),
        ("f(1, b=2)", "f", "error: give arguments by name"),
        ("f({'a': 1})", "f", "error: give arguments by name"),
        ("f(**{'a': 1})", "f", "error: give arguments by name"),
        ("f(a=1, a=2)", "f", "error: repeated argument"),
        ("f(a=1)(b=2)", "", "error: a call is name(argument=value)"),
    ],
)
def test_a_malformed_call_says_why(call, name, error):
    """One malformed call has an error and its text; the others of the list are calls all the same."""
    good, bad = python.parse(f"[ok(a=1), {call}]")
    assert good == ToolCall("call_0", "ok", {"a": 1})
    assert bad == ToolCall("call_1", name, call, error)


@pytest.mark.parametrize(
    "text", ["[f(a=)]", "[f(a=1 b=2)]", "[f(a=1))", "[f(a='\n')]", "[f(a=" + "(" * 300 + ")" * 300 + ")]"]
)
def test_bad_python_is_one_call(text):
    """A list that is not Python is one malformed call, under the name of the first."""
    assert python.parse(text) == [ToolCall("call_0", "f", text, "error: bad python")]


def test_an_unclosed_list_is_one_call():
    """So is a list that the text leaves open."""
    assert python.parse("[f(a='") == [ToolCall("call_0", "f", "[f(a='", "error: unclosed call")]


@pytest.mark.parametrize(("argument", "text"), [("'2 + 2'", '"2 + 2"'), ("[1, 2]", "[1, 2]"), ("3", "3")])
def test_one_positional_argument_is_kept_as_json(argument, text):
    """For a tool that takes one argument, which has a name that the parser does not know."""
    assert python.parse(f"[f({argument})]") == [ToolCall("call_0", "f", text)]


def test_the_list_ends_the_turn():
    """The closing bracket does, and the text after it is dropped; tags of Llama 4 are left out."""
    turn = python.incremental()
    turn.feed("\n<|python_start|>[math.sqrt(x=2")
    assert not turn.finished
    assert turn.feed(")]<|python_end|> and so on") == [ToolCall("call_0", "math.sqrt", {"x": 2})]
    assert (turn.finished, turn.content) == (True, "\n")


@pytest.mark.parametrize(
    "text", ["I call [f(a=1)]", "[f]", "[f (a=1)]", "[]", "['f(a=1)']", "<|python_start|>f(a=1)"]
)
def test_other_text_is_no_call(text):
    """Only a turn that begins with the list is calls."""
    assert python.parse(text) == []


def test_a_long_list_keeps_little_text():
    """Each malformed call of a long list has the beginning of the list only."""
    calls = python.parse("[f(a=1), " + "1, " * (LIST_LIMIT // 4) + "]")
    assert sum(len(call.arguments) for call in calls[1:]) <= 200 * len(calls)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}_", fullmatch=True), st.integers() | st.text() | st.booleans() | st.none()
    )
)
def test_what_repr_writes_is_what_the_call_has(arguments):
    """Python's own literals survive, and so does JSON in their place."""
    for write in (repr, json.dumps):
        words = ", ".join(f"{name}={write(value)}" for name, value in arguments.items())
        (call,) = python.parse(f"[f({words})]")
        assert call == ToolCall("call_0", "f", arguments)
