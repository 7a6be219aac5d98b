"""Facts about tools that are described by a JSON Schema."""

import json
from typing import Any

import pytest

from rollcast import BaseAgent
from rollcast.errors import InputError, ToolDefinitionError
from rollcast.rollout.context import ChainContext
from rollcast.testing import ScriptedBackend
from rollcast.tools import Tool, tool_set

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where"},
        "days": {"type": ["integer", "null"], "minimum": 1},
        "near": {"$ref": "#/$defs/Place"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["city"],
    "$defs": {"Place": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}},
}


def weather(**arguments):
    return arguments


async def test_a_schema_is_a_tool():
    """The model is told the schema as it is, and the call gets what the model gave, by name."""
    made = Tool.from_schema("weather", "Get the weather.", SCHEMA, weather)
    assert made.schema["function"]["parameters"] == SCHEMA
    assert made.description == "Get the weather."
    given = {"city": "Oslo", "days": 2, "near": {"lat": 1}, "tags": ["a"], "more": [1]}
    assert json.loads((await made.invoke(given)).observation) == given
    assert (await made.invoke('{"city": "Oslo"}')).observation == '{"city": "Oslo"}'
    assert (await made.invoke("Oslo")).observation == '{"city": "Oslo"}'


@pytest.mark.parametrize(
    ("given", "observation"),
    [
        ({}, "error: weather needs the argument 'city' (string)"),
        ({"city": 3}, "error: the argument 'city' of weather: 3 is not of type 'string', found 3"),
        (
            {"city": "x", "days": 0},
            "error: the argument 'days' of weather: 0 is less than the minimum of 1, found 0",
        ),
        ({"city": "x", "near": {}}, "error: the argument 'near' of weather: 'lat' is a required property"),
        (
            {"city": "x", "tags": ["a", "c"]},
            "error: the argument 'tags' of weather: at 1: 'c' is not one of ['a', 'b'], found ['a', 'c']",
        ),
        ("{", "error: bad json"),
    ],
)
async def test_wrong_arguments_are_one_line(given, observation):
    """What the schema does not allow is told in a line, and the call is not made."""
    made = Tool.from_schema("weather", "", SCHEMA, lambda **_: pytest.fail("it was called"))
    result = await made.invoke(given)
    assert (result.observation, result.status) == (observation, "error")


async def test_text_is_read_by_the_schema():
    """Formats without types write every value as text; it is read as JSON if the schema takes no text."""
    made = Tool.from_schema("weather", "", SCHEMA, weather)
    given = {"city": "3", "days": "2", "near": '{"lat": 1}', "tags": '["a"]'}
    assert json.loads((await made.invoke(given)).observation) == {
        "city": "3", "days": 2, "near": {"lat": 1}, "tags": ["a"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "given", "words"),
    [
        ({"additionalProperties": False}, {"a": 1, "x": 1}, "has no argument 'x'; its arguments: a (any)"),
        ({"additionalProperties": {"type": "integer"}}, {"x": "y"}, "at x: 'y' is not of type 'integer'"),
        ({"maxProperties": 1}, {"a": 1, "x": 1}, "has too many properties"),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, "'b' is a dependency of 'a'"),
        (
            {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            {},
            "is not valid under any of the given schemas",
        ),
        ({"required": ["z"]}, {}, "'z' is a required property"),
        (
            {"patternProperties": {"^n_": {"type": "number"}}},
            {"n_1": "x"},
            "at n_1: 'x' is not of type 'number'",
        ),
        ({"if": {"required": ["a"]}, "then": {"required": ["c"]}}, {"a": 1}, "'c' is a required property"),
        ({"propertyNames": {"maxLength": 2}}, {"abc": 1}, "'abc' is too long"),
    ],
)
async def test_every_keyword_is_checked(more, given, words):
    """What concerns several arguments, or others than the named ones, is checked too."""
    made = Tool.from_schema("f", "", {"properties": {"a": {}}, **more}, weather)
    result = await made.invoke(given)
    assert result.status == "error"
    assert words in result.observation
    assert "\n" not in result.observation


async def test_a_call_may_be_async_or_give_a_coroutine():
    """An async function, a generator and a lambda that gives a coroutine are calls."""

    async def asynchronous(**arguments):
        return arguments

    def pieces(a):
        yield a
        yield a

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for call, observation in [
        (asynchronous, '{"a": 1}'),
        (lambda **arguments: asynchronous(**arguments), '{"a": 1}'),
        (pieces, "11"),
    ]:
        assert (await Tool.from_schema("f", "", schema, call).invoke({"a": 1})).observation == observation


async def test_the_call_gets_the_context():
    """A parameter annotated with ChainContext is filled in, and not shown."""

    def call(ctx: ChainContext, **arguments: Any) -> Any:
        return [ctx.chain_id, arguments]

    made = Tool.from_schema("f", "", {"properties": {"a": {}}}, call)
    assert (
        await made.invoke({"a": 1}, ChainContext(chain_id="chain_3"))
    ).observation == '["chain_3", {"a": 1}]'
    assert "'ctx'" in (await made.invoke({"ctx": 1}, ChainContext())).observation


async def test_names_may_be_no_names_of_python():
    """`user-id` and `class` are arguments."""
    made = Tool.from_schema("f", "", {"properties": {"user-id": {"type": "integer"}, "class": {}}}, weather)
    assert (await made.invoke({"user-id": 1, "class": 2})).observation == '{"user-id": 1, "class": 2}'


async def test_a_call_without_kwargs_takes_its_names_only():
    """What the schema would allow beyond the call's parameters is an error for the model."""

    def call(a: int, b: int = 2) -> int:
        return a + b

    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}
    made = Tool.from_schema("f", "", schema, call)
    assert (await made.invoke({"a": 1})).observation == "3"
    assert "has no argument 'c'" in (await made.invoke({"a": 1, "c": 1})).observation


async def test_no_parameters_are_an_empty_object():
    """OpenAI's and MCP's tools without arguments have none."""
    made = Tool.from_schema("now", None, None, lambda: "noon")
    assert made.schema["function"] == {
        "name": "now",
        "description": "",
        "parameters": {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
    }
    assert (await made.invoke({})).observation == "noon"
    assert (await made.invoke({"a": 1})).observation == "error: now has no argument 'a'; it takes none"


async def test_a_recursive_schema_is_resolved():
    """A schema that is a reference at its top, as pydantic gives of a recursive model, is one of an object."""
    schema = {
        "$defs": {"Node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}},
        "$ref": "#/$defs/Node",
    }  # fmt: skip
    made = Tool.from_schema("f", "", schema, weather)
    assert list(made.parameters["properties"]) == ["next"]
    assert (await made.invoke({"next": {"next": None}})).status == "success"
    assert (await made.invoke({"next": {"next": 3}})).status == "error"


def test_the_schema_is_a_copy():
    """Changing the given schema afterwards changes nothing."""
    given = {"type": "object", "properties": {"a": {"type": "integer"}}}
    made = Tool.from_schema("f", "", given, weather)
    given["properties"]["a"]["type"] = "string"
    assert made.parameters["properties"]["a"] == {"type": "integer"}


def needs(a, b):
    return a


def takes(a=1):
    return a


@pytest.mark.parametrize(
    ("parameters", "call", "words"),
    [
        ([], weather, "are list; expected a JSON Schema of an object"),
        ({"type": "array"}, weather, "have the type 'array'; expected a JSON Schema of an object"),
        ({"properties": {"a": {"type": "int"}}}, weather, "not a JSON Schema: at properties.a.type: 'int' is not valid"),
        ({"properties": 3}, weather, "not a JSON Schema: at properties: 3 is not of type 'object'"),
        ({"properties": {"a": {"pattern": "("}}}, weather, "not a JSON Schema: at properties.a.pattern: '(' is not a 'regex'"),
        ({"properties": {"a": {"$ref": "#/$defs/B"}}}, weather, "refer to '#/$defs/B', which is not in the schema"),
        ({"properties": {"a": {"$ref": "https://a.invalid/b"}}}, weather, "refer to 'https://a.invalid/b'"),
        ({"properties": {"a": {"default": float("nan")}}}, weather, "are not JSON"),
        ({"properties": {"a": {"default": object()}}}, weather, "are not JSON"),
        ({"properties": {"a": {}}, "required": ["a"]}, needs, "needs 'b', which its schema does not require"),
        ({"properties": {"a": {}}}, needs, "needs 'a', which its schema does not require"),
        ({"properties": {"b": {}}}, takes, "does not take 'b', which its schema has"),
        ({}, "weather", "expected a function that takes the arguments by name"),
        ({}, dict, "expected a function that takes the arguments by name"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(parameters, call, words):
    """A schema that is none, and a call that does not fit it, are refused in one sentence."""
    with pytest.raises(ToolDefinitionError) as told:
        Tool.from_schema("f", "F.", parameters, call)
    assert words in str(told.value)
    assert "'f'" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_description_of_a_tool_in_a_list_is_told_what_it_lacks():
    """OpenAI's dict describes a tool and calls nothing: the sentence says how to make one of it."""
    with pytest.raises(ToolDefinitionError, match="from_schema"):
        tool_set([{"type": "function", "function": {"name": "f", "parameters": {}}}])


def test_an_agent_has_tools_from_schemas():
    """In a chain such a tool is one like all others."""
    made = Tool.from_schema("weather", "Get the weather.", SCHEMA, weather)
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    agent = BaseAgent("m", tools=[made], backend=ScriptedBackend([call, "done"]))
    (chain,) = agent.run(2, [{"role": "user", "content": "go"}])
    assert chain.tool_calls[0].observation == '{"city": "Oslo"}'


async def test_a_call_that_needs_a_context_is_not_made_without():
    """A missing context is the caller's mistake, as with any tool."""

    def call(ctx: ChainContext) -> str:
        return ctx.chain_id

    with pytest.raises(InputError, match="takes a ChainContext as its parameter 'ctx'"):
        await Tool.from_schema("f", "", None, call).invoke({})


@pytest.mark.parametrize("pattern", ["^(a+)+$", r"^(\w*\s*)*$", "(x|xx)+y", "^(?:a|a)*$"])
async def test_a_pattern_takes_linear_time(pattern):
    """A server's pattern and a model's text cannot stop the event loop between them."""
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string", "pattern": pattern}},
        "required": ["text"],
    }
    tool = Tool.from_schema("find", "Find.", schema, lambda text: text)
    found = await tool.invoke({"text": "a" * 5000 + "x" * 5000 + "!"})
    assert found.observation.startswith("error: the argument 'text' of find: ")


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^\p{Lu}\p{L}+$", "Århus", "århus"),
        (r"^(?<year>\d{4})$", "2024", "24"),
        (r"^(?!\.)[\w.]+$", "a.b", ".a"),
        (r"^(?<year>\d)(?=a)", "1a", "1b"),
        (r"b", "abc", "ac"),
    ],
)
async def test_a_pattern_may_be_of_javascript(pattern, good, bad):
    """Schemas come from servers that are written in it."""
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string", "pattern": pattern}},
        "required": ["text"],
    }
    tool = Tool.from_schema("find", "Find.", schema, lambda text: text)
    assert (await tool.invoke({"text": good})).observation == good
    assert "does not match" in (await tool.invoke({"text": bad})).observation


async def test_a_name_may_match_a_pattern_only():
    """Of `patternProperties`, though `additionalProperties` is false."""
    schema = {
        "type": "object",
        "patternProperties": {"^x_": {"type": "integer"}},
        "additionalProperties": False,
    }
    tool = Tool.from_schema("find", "Find.", schema, lambda **given: given)
    assert (await tool.invoke({"x_a": 5})).observation == '{"x_a": 5}'
    assert (await tool.invoke({"x_a": "b"})).status == "error"
    assert (await tool.invoke({"y": 5})).status == "error"


async def test_a_schema_may_be_of_an_old_draft():
    """Draft 4 has no empty list of required names."""
    schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "properties": {"days": {"type": "integer", "minimum": 0, "exclusiveMinimum": True}},
    }
    tool = Tool.from_schema("find", "Find.", schema, lambda days=1: days)
    assert (await tool.invoke({"days": 2})).observation == "2"
    assert (await tool.invoke({"days": 0})).status == "error"


async def test_keywords_that_are_none_are_absent():
    """As rows of `datasets` have them; a default of None is one."""
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Oslo"], "items": None, "default": None},
            "days": None,
        },
        "required": None,
    }
    tool = Tool.from_schema("find", "Find.", schema, lambda city="": city)
    assert tool.parameters["properties"] == {"city": {"type": "string", "enum": ["Oslo"], "default": None}}
    assert (await tool.invoke({"city": "Oslo"})).observation == "Oslo"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$schema": 5, "type": "object"}, "cannot be read as a JSON Schema"),
        ({"type": "object", "properties": {"a": {"$dynamicRef": "#no"}}}, "refer to '#no', which is not in the schema"),
        ({"type": "object", "properties": {"a": {"$id": "urn:x", "$ref": "#/$defs/b"}}, "$defs": {"b": {}}}, "refer to '#/$defs/b'"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "is not a 'regex'"),
    ],
)  # fmt: skip
def test_what_no_call_could_be_checked_against_is_refused(schema, words):
    """When the tool is made, in one sentence, not when a model calls it."""
    with pytest.raises(ToolDefinitionError) as told:
        Tool.from_schema("find", "Find.", schema, lambda **given: given)
    assert words in str(told.value)
