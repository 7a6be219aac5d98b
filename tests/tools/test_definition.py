"""Facts about how a function becomes a tool."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from rollcast.errors import ToolDefinitionError
from rollcast.rollout.context import ChainContext
from rollcast.tools import Tool, tool, tool_set, unknown_tool


class Place(BaseModel):
    """A place on earth."""

    lat: float
    lon: float


@dataclass
class Unit:
    name: str


class Shop:
    def __init__(self, price: int) -> None:
        self.price = price

    def buy(self, count: int) -> int:
        """Buy things."""
        return count * self.price


def test_types_become_the_schema():
    """Hints, defaults, Literal, Optional, Annotated and models become one valid JSON Schema in parameter order."""

    @tool
    def search(
        query: str,
        *,
        near: Place,
        limit: Annotated[int, Field(ge=1, description="how many")] = 5,
        order: Literal["new", "best"] = "best",
        tag: str | None = None,
        json: Annotated[bool, "as JSON"] = False,
    ) -> str:
        return query

    schema = search.parameters
    jsonschema.Draft202012Validator.check_schema(schema)
    properties = schema["properties"]
    assert list(properties) == ["query", "near", "limit", "order", "tag", "json"]
    assert schema["required"] == ["query", "near"]
    assert schema["additionalProperties"] is False
    assert properties["query"] == {"type": "string"}
    assert properties["limit"] == {"default": 5, "description": "how many", "minimum": 1, "type": "integer"}
    assert properties["order"]["enum"] == ["new", "best"]
    assert properties["tag"]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert properties["json"]["description"] == "as JSON"
    assert schema["$defs"]["Place"]["required"] == ["lat", "lon"]


def test_schema_is_the_openai_shape():
    """`schema` wraps name, description and parameters as the OpenAI API expects."""

    @tool
    def ping() -> str:
        """Say pong."""
        return "pong"

    assert ping.schema == {
        "type": "function",
        "function": {
            "name": "ping",
            "description": "Say pong.",
            "parameters": {
                "type": "object",
                "properties": {},
                "required": [],
                "additionalProperties": False,
            },
        },
    }


def _google(city: str, days: int = 1) -> str:
    """Forecast the weather.

    It knows cities only.

    Args:
        city: where to look,
            in any spelling
        days: how far ahead

    Returns:
        A sentence.
    """


def _numpy(city: str, days: int = 1) -> str:
    """Forecast the weather.

    It knows cities only.

    Parameters
    ----------
    city : str
        where to look, in any spelling
    days
        how far ahead

    Returns
    -------
    str
        A sentence.
    """


def _sphinx(city: str, days: int = 1) -> str:
    """Forecast the weather.

    It knows cities only.

    :param city: where to look, in any spelling
    :param int days: how far ahead
    :returns: A sentence.
    """


@pytest.mark.parametrize("function", [_google, _numpy, _sphinx])
def test_docstrings_describe(function, caplog):
    """Google's, NumPy's and Sphinx's docstrings give the same descriptions, and no warnings."""
    made = tool(function, name="forecast")
    assert made.description == "Forecast the weather.\n\nIt knows cities only."
    assert made.parameters["properties"]["city"]["description"] == "where to look, in any spelling"
    assert made.parameters["properties"]["days"]["description"] == "how far ahead"
    assert not caplog.records


def test_annotated_text_goes_before_the_docstring():
    """A description in `Annotated` wins over the docstring's."""

    @tool
    def look(a: Annotated[str, "mine"], b: Annotated[str, Field(description="own")]) -> str:
        """Look.

        Args:
            a: other
            b: other
        """
        return a

    assert look.parameters["properties"]["a"]["description"] == "mine"
    assert look.parameters["properties"]["b"]["description"] == "own"


def test_a_field_as_default_is_a_default():
    """`x: int = Field(3, ge=0)` is understood: the default is the field's."""

    @tool
    def count(x: int = Field(3, ge=0)) -> int:
        return x

    assert count.parameters["properties"]["x"] == {"default": 3, "minimum": 0, "type": "integer"}
    assert count.arguments.bind("count", {}, None) == {"x": 3}


def test_options_and_plain_call():
    """Options are kept, and the tool is still the plain function."""

    @tool(name="sum-up", description="Add.", terminal=True, timeout=2, max_output=50)
    def add(a: int, b: int = 1) -> int:
        """Other."""
        return a + b

    assert isinstance(add, Tool)
    assert (add.name, add.description, add.terminal, add.timeout, add.max_output) == (
        "sum-up",
        "Add.",
        True,
        2,
        50,
    )
    assert add(1, b=2) == 3
    assert add.__name__ == "add"
    assert dataclasses.replace(add, name="plus").name == "plus"


def test_a_default_that_is_no_json_is_left_out():
    """A default that JSON cannot hold disappears from the schema, without a warning, and still applies."""
    missing = object()

    @tool
    def get(key: Any = missing) -> bool:
        return key is missing

    assert "default" not in get.parameters["properties"]["key"]
    assert get(**get.arguments.bind("get", {}, None)) is True


def test_context_is_not_in_the_schema():
    """A parameter annotated with an Injected class, bare, optional or Annotated, is left out of the schema."""

    @tool
    def peek(
        ctx: ChainContext,
        key: str,
        other: ChainContext | None = None,
        third: Annotated[ChainContext, "x"] = None,
    ) -> str:
        return key

    assert list(peek.parameters["properties"]) == ["key"]
    assert set(peek.arguments.injected) == {"ctx", "other", "third"}


def bare(a, b: int):
    return a


def stars(*args: int):
    return args


def positional(a: int, /):
    return a


def socket_taker(connection: pytest.Item):
    return connection


def lost(a: "Nowhere"):  # noqa: F821
    return a


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (bare, "'bare' has the parameter 'a' without a type"),
        (stars, "'stars' takes *args"),
        (positional, "'positional' has the positional-only parameter 'a'"),
        (socket_taker, "'socket_taker' has the parameter 'connection' of type Item"),
        (lost, "'lost' cannot be resolved"),
        (lambda a: a, "a lambda has neither types"),
        (Shop.buy, "make a tool of the bound method"),
        (Shop, "is not a function"),
        (3, "is not a function"),
        (functools.partial(_google, city="x"), "give one: tool(it, name=…)"),
        (len, "positional-only"),
    ],
)
def test_what_cannot_be_described_is_refused(function, words):
    """What has no usable schema is refused in one sentence that names the tool and the parameter."""
    with pytest.raises(ToolDefinitionError) as caught:
        tool(function)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "no spaces"}, "is named 'no spaces'"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"max_output": 0}, "max_output=0"),
    ],
)
def test_bad_options_are_refused(options, words):
    """An option out of range is refused in a sentence."""
    with pytest.raises(ToolDefinitionError, match=words.replace("'", ".")):
        tool(_google, **options)


def test_inline_means_nothing_for_an_async_tool():
    """An async function cannot be inline."""

    async def wait() -> None: ...

    with pytest.raises(ToolDefinitionError, match="is async"):
        tool(wait, inline=True)


def test_tool_set_takes_functions_and_bound_methods():
    """A set is made of tools, plain functions and bound methods, in order."""
    shop = Shop(3)
    tools = tool_set([tool(_google), shop.buy])
    assert list(tools) == ["_google", "buy"]
    assert tools["buy"](2) == 6
    assert tools["buy"].description == "Buy things."


def test_two_tools_of_one_name_are_refused():
    """Two tools of one name are refused in one sentence."""
    with pytest.raises(ToolDefinitionError, match="two tools are named 'buy'"):
        tool_set([Shop(1).buy, Shop(2).buy])


def test_one_tool_is_not_a_list():
    """A tool where a list of tools belongs is refused."""
    with pytest.raises(ToolDefinitionError, match=r"expected a list of tools"):
        tool_set(tool(_google))


def test_unknown_tool_names_what_there_is():
    """The observation for an unknown tool is one bounded line that names the tools."""
    assert unknown_tool("calc", ["calculator"]) == "error: there is no tool 'calc'; tools: calculator"
    assert unknown_tool("calc", []) == "error: there is no tool 'calc'; there are none"
    long = unknown_tool("x\ud800\n" * 10_000, [f"tool_{i}" for i in range(1000)])
    assert len(long) <= 1000
    assert "\n" not in long
    long.encode()


def test_a_partial_and_a_callable_object_become_tools_under_a_name():
    """functools.partial and objects with `__call__` become tools where they are given a name."""

    class Counter:
        def __call__(self, step: int) -> int:
            return step

    assert tool(Counter(), name="counter").parameters["required"] == ["step"]
    assert tool(functools.partial(_google, days=3), name="soon").parameters["required"] == ["city"]


def test_dataclass_arguments_arrive_as_instances():
    """A parameter of a dataclass or a pydantic model gets an instance."""

    @tool
    def show(unit: Unit, place: Place) -> str:
        return unit.name

    given = {"unit": {"name": "m"}, "place": {"lat": 1, "lon": 2}}
    assert show.arguments.bind("show", given, None) == {"unit": Unit("m"), "place": Place(lat=1, lon=2)}
