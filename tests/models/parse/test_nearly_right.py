"""Facts about calls that are nearly right: read if there is one way to read them, else an error, and never cut short."""

import json

import pytest

from rollcast.models import resolve_parser
from rollcast.records import ToolCall

A = {"a": 1}


def hermes(body):
    (call,) = resolve_parser("hermes").parse(f"<tool_call>{body}</tool_call>")
    return call


def qwen(text):
    return [call.error or call.arguments for call in resolve_parser("qwen3_coder").parse(text)]


@pytest.mark.parametrize(
    "body",
    [
        *(
            {"name": "f", key: A}
            for key in ("arguments", "parameters", "args", "params", "input", "tool_input")
        ),
        {"name": "f", "parameters": '{"a": 1}'},
        {"name": "f", "a": 1},
        {"name": "f", "arguments": None, "a": 1},
        {"name": "f", "arguments": "", "args": A},
        {"name": "f", "arguments": A, "parameters": A},
        {"name": "f", "id": "call_1", "type": "function", "arguments": A},
        {"function": {"name": "f", "arguments": A}},
        {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"function": {"name": "f"}, "arguments": A},
        {"function": "f", "parameters": A},
    ],
    ids=json.dumps,
)
def test_there_is_one_way_to_read_it(body):
    """Arguments under another key or beside the name, and OpenAI's form, are the call that was meant."""
    assert hermes(json.dumps(body)) == ToolCall("call_0", "f", A)


@pytest.mark.parametrize("key", ["input", "args", "id", "type", "params"])
def test_a_value_that_is_no_object_is_an_argument_of_that_name(key):
    """A tool's parameter may have such a name."""
    assert hermes(json.dumps({"name": "f", key: 3})) == ToolCall("call_0", "f", {key: 3})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}', "error: arguments given twice"),
        ('{"name": "f", "arguments": {}, "args": {"a": 2}}', "error: arguments given twice"),
        ('{"name": "f", "arguments": {"a": 1}, "b": 2}', "error: argument outside of arguments"),
        ('{"name": "f", "parameters": {"a": 1}, "input": "x"}', "error: argument outside of arguments"),
        (
            '{"function": {"name": "f", "arguments": {"a": 1}}, "b": 2}',
            "error: argument outside of arguments",
        ),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "error: repeated argument"),
        ('{"name": "f", "arguments": {"x": [{"a": 1, "a": 2}]}}', "error: repeated argument"),
        ('{"name": "f", "arguments": {}, "arguments": {"a": 1}}', "error: repeated argument"),
        ('{"name": "f", "parameters": [1]}', "error: bad arguments"),
        ('{"name": "f", "arguments": {"a": 1}} {"b": 2}', "error: bad json"),
        ('{"name": "f", "arguments": {"a": 1}}, "b": 2}', "error: bad json"),
    ],
)
def test_what_has_two_readings_is_an_error(body, error):
    """The model reads what is wrong; nothing that it wrote is left out in silence."""
    call = hermes(body)
    assert (call.tool_name, call.error, call.arguments) == ("f", error, body)
    if "} {" not in body and '}}, "b"' not in body:
        (call,) = resolve_parser("llama3").parse(f"<|python_tag|>{body}")
        assert call.error == error


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<function=f><parameter=a>1<parameter=b>2</parameter></function>", ["error: unclosed parameter"]),
        (
            "<function=f><parameter=a>1\n<parameter=b>\n2\n</parameter></function>",
            ["error: unclosed parameter"],
        ),
        ("<function=f><parameter=a>1</function>", ["error: unclosed parameter"]),
        (
            "<tool_call><function=f><parameter=a>1</function><function=g><parameter=b>2</parameter></function></tool_call>",
            ["error: unclosed parameter"],
        ),
        ("<tool_call><function=f><parameter=a>1</parameter></tool_call>", ["error: unclosed function"]),
        ("<tool_call><parameter=a>1</parameter></tool_call>", ["error: no tool name"]),
        ("<parameter=a>1</parameter><function=f></function>", ["error: no tool name"]),
        (
            "<function=f></function>\n<parameter=a>1</parameter></function>",
            ["error: parameter outside of a function", "error: no tool name"],
        ),
        ("<tool_call><function=f></function><parameter=a>1</parameter></tool_call>", ["error: bad call"]),
        ("<tool_call><function=f><parameter=a>1</parameter>b=2</function></tool_call>", ["error: bad call"]),
        (
            "<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>",
            ["error: repeated parameter"],
        ),
        ("<function=f><parameter=a>1 < 2</parameter></function>\n", [{"a": "1 < 2"}]),
        ("<function=f>\n</function>\n<function=g>\n</function>", [{}, {}]),
    ],
)
def test_no_parameter_is_lost(text, found):
    """A parameter or function that is not closed, and a parameter that stands outside, are errors."""
    assert qwen(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[f(a=1, a=2)]", ["error: repeated argument", "error: bad python"]),
        ("[f(x={'a': 1, 'a': 2})]", ["error: repeated argument"]),
        ("[f(1, a=2)]", ["error: give arguments by name"]),
        ("[f(a=1) b=2]", ["error: bad python"]),
    ],
)
def test_no_argument_of_a_python_call_is_lost(text, found):
    """A name twice, and a position beside a name, are errors."""
    (call,) = resolve_parser("python").parse(text)
    assert call.error in found


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            'Action: f\nAction Input: {"a": 1}\nAction Input: {"b": 2}\nObservation:',
            "error: action input given twice",
        ),
        ('Action: f\nAction: g\nAction Input: {"a": 1}\n', "error: action given twice"),
    ],
)
def test_an_action_given_twice_is_an_error(text, error):
    """One of the two would be lost."""
    (call,) = resolve_parser("react").parse(text)
    assert (call.tool_name, call.error) == ("f", error)


@pytest.mark.parametrize("between", [";", ",", "\n", " , ", "; "])
def test_objects_in_a_row_are_all_calls(between):
    """Whatever a Llama writes between them."""
    text = between.join(json.dumps({"name": "f", "parameters": {"a": a}}) for a in (1, 2, 3))
    assert [call.arguments["a"] for call in resolve_parser("llama3").parse(text)] == [1, 2, 3]


@pytest.mark.parametrize("fields", [{"id": 5}, {"id": "42", "a": 1}, {"index": 3, "a": 1}, {"call_id": None}])
def test_an_id_beside_flat_arguments_is_one_of_them(fields):
    """A tool may take it; one that does not says so. An id of a call is none."""
    assert hermes(json.dumps({"name": "f", **fields})).arguments == fields
    assert hermes(json.dumps({"name": "f", "id": "call_1", "a": 1})).arguments == A


@pytest.mark.parametrize("value", [None, "", 0, [], "x"])
def test_an_empty_value_beside_the_arguments_is_not_dropped(value):
    """It may be meant: a tool's default is another."""
    call = hermes(json.dumps({"name": "f", "arguments": A, "b": value}))
    assert call.error == "error: argument outside of arguments"


def test_an_action_input_with_a_key_twice_is_an_error():
    """As in the other formats."""
    (call,) = resolve_parser("react").parse('Action: f\nAction Input: {"a": 1, "a": 2}')
    assert call.error == "error: repeated argument"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "args": {"a": 1}}',
        '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}',
        '{"function": "f", "parameters": {"a": 1}}',
    ],
)
def test_an_object_without_a_tag_may_be_nearly_right(text):
    """Llama's calls as well."""
    assert resolve_parser("llama3").parse(text) == [ToolCall("call_0", "f", A)]


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder"])
@pytest.mark.parametrize(
    "text",
    [
        "Use the <tool_call> tag.",
        "Between <tool_call> and </tool_call> it stands.",
        "Write `<tool_call>` first.",
        'In "<tool_call>"',
    ],
)
def test_a_tag_of_calls_that_an_answer_names_is_text(name, text):
    """In quotes, or with words around it; a call may follow."""
    call = {
        "hermes": '<tool_call>{"name": "f"}</tool_call>',
        "qwen3_coder": "<tool_call><function=f></function></tool_call>",
    }[name]
    turn = resolve_parser(name).incremental()
    turn.feed(text)
    assert turn.close() == []
    assert turn.content == text.replace(
        "</tool_call>" if name == "qwen3_coder" and "and" not in text else "\0", ""
    )
    assert [c.tool_name for c in resolve_parser(name).parse(f"{text} {call}")] == ["f"]
