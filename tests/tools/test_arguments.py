"""Facts about arguments as formats without names or types write them."""

from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from rollcast.tools import tool


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    """A point."""

    x: float
    y: float = 0.0


class Shape(BaseModel):
    """A shape."""

    corners: Annotated[list[Point], Field(min_length=1)]
    colour: Colour = Colour.RED


def shown(value: Any) -> str:
    return repr(value)


@tool
def draw(
    shape: Shape,
    style: Literal["line", "fill"] = "line",
    width: Annotated[int, Field(ge=1, description="in pixels")] = 1,
    label: str | None = None,
) -> str:
    """Draw a shape.

    Args:
        shape: what to draw.
        style: how.
        width: not this text.
        label: written beside it.
    """
    return shown([len(shape.corners), shape.colour.value, style, width, label])


def test_nested_models_are_described():
    """Models in models, enumerations, literals, constraints, defaults and the docstring's texts are in the schema."""
    schema = draw.parameters
    assert set(schema["$defs"]) == {"Shape", "Point", "Colour"}
    assert schema["required"] == ["shape"]
    properties = schema["properties"]
    assert properties["shape"]["description"] == "what to draw."
    assert properties["style"] == {
        "default": "line", "description": "how.", "enum": ["line", "fill"], "type": "string",
    }  # fmt: skip
    assert properties["width"] == {"default": 1, "description": "in pixels", "minimum": 1, "type": "integer"}
    assert properties["label"]["description"] == "written beside it."


@pytest.mark.parametrize(
    ("arguments", "observation"),
    [
        ({"shape": {"corners": [{"x": 1}, {"x": "2"}]}}, "[2, 'red', 'line', 1, None]"),
        (
            {"shape": '{"corners": [{"x": 1}], "colour": "blue"}', "width": "3"},
            "[1, 'blue', 'line', 3, None]",
        ),
        ({"shape": {"corners": [{"x": 1}]}, "label": "null"}, "[1, 'red', 'line', 1, None]"),
        (
            {"shape": {"corners": [{"x": 1}], "colour": "green"}},
            "error: the argument 'shape.colour' of draw: should be 'red' or 'blue', found 'green'",
        ),
        (
            {"shape": {"corners": [{"y": 1}]}},
            "error: draw needs the argument 'shape.corners.0.x'",
        ),
        (
            {"shape": {"corners": [{"x": 1}]}, "style": "dots"},
            "error: the argument 'style' of draw: should be 'line' or 'fill', found 'dots'",
        ),
        (
            {"shape": {"corners": [{"x": 1}]}, "width": 0},
            "error: the argument 'width' of draw: should be greater than or equal to 1, found 0",
        ),
        ({"shape": "round"}, None),
    ],
)
async def test_nested_arguments_are_checked(arguments, observation):
    """Wherever it is wrong, one line says where; JSON in a string is read where no string is wanted."""
    result = await draw.invoke(arguments)
    if observation is not None:
        assert result.observation == observation
    else:
        assert result.observation.startswith("error: the argument 'shape' of draw: ")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "3", 3),
        (float, "2.5", 2.5),
        (bool, "true", True),
        (bool, "True", True),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (int | None, "null", None),
        (int | None, "None", None),
        (str, "[1, 2]", "[1, 2]"),
        (str | None, "null", None),
        (str | int, "3", 3),
        (str | int, "three", "three"),
        (Any, "3", "3"),
    ],
)
async def test_strings_are_read_as_the_parameter_wants(kind, text, value):
    """What Qwen3-Coder writes, all in strings, becomes what the tool's types say."""

    def take(other: int, value: kind) -> str:
        return shown(value)

    assert (await tool(take).invoke({"other": "1", "value": text})).observation == shown(value)


async def test_a_string_that_does_not_fit_is_named():
    """As the model wrote it, where it is no JSON."""

    @tool
    def take(value: list[int]) -> str:
        return shown(value)

    result = await take.invoke({"value": "one"})
    assert result.observation == "error: the argument 'value' of take: should be a valid list, found 'one'"
    result = await take.invoke({"value": '["one"]'})
    assert result.observation.startswith("error: the argument 'value.0' of take: should be a valid integer")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str, "2 + 2", "2 + 2"),
        (str, '"2 + 2"', "2 + 2"),
        (str, "42", "42"),
        (str, "[x] marks it", "[x] marks it"),
        (str, "[1, 2]", "[1, 2]"),
        (str | None, "42", "42"),
        (int, "42", 42),
        (list[int], "[1, 2]", [1, 2]),
        (str, '{"value": "x"}', "x"),
    ],
)
async def test_a_bare_value_is_the_only_argument(kind, text, value):
    """What ReAct writes without a name goes to the one parameter that has to be given."""

    def take(value: kind, more: int = 0) -> str:
        return shown(value)

    assert (await tool(take).invoke(text)).observation == shown(value)


async def test_a_bare_value_for_several_arguments_is_refused():
    """Nobody knows which one is meant."""

    @tool
    def add(a: int, b: int) -> int:
        return a + b

    assert (await add.invoke("3")).observation == "error: the arguments of add are not an object"
    assert (await add.invoke("three")).observation == "error: bad json"


async def test_a_broken_object_is_bad_json():
    """And no text for a tool that takes one."""

    @tool
    def say(text: str) -> str:
        return text

    assert (await say.invoke('{"text": "x')).observation == "error: bad json"


async def test_a_wrong_bare_value_is_named():
    """As any other argument."""

    @tool
    def square(number: int) -> int:
        return number**2

    result = await square.invoke("three")
    assert result.observation.startswith("error: the argument 'number' of square: should be a valid integer")


async def test_a_text_that_breaks_a_rule_is_told_as_text():
    """`24` for a text of four digits is too short; it is not a number in a wrong place."""

    @tool
    def find(year: Annotated[str, Field(min_length=4)]) -> str:
        """Find."""
        return year

    assert "at least 4 characters, found '24'" in (await find.invoke({"year": "24"})).observation
