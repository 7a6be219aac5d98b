"""Facts about functions of every kind: what a model is told of them, and what they get."""

import functools
import json
import logging
from dataclasses import dataclass, field
from typing import Annotated, Any, Optional, Required

import pytest
from pydantic import BaseModel, Field, validate_call
from typing_extensions import Doc, TypedDict, Unpack

from rollcast.errors import ToolDefinitionError
from rollcast.rollout.context import ChainContext
from rollcast.tools import tool


class Place(BaseModel):
    """A place.

    Attributes:
        lat: how far north
        lon (float): how far east
    """

    lat: float
    lon: float
    name: str = Field("x", description="as on the map")
    height: Annotated[int, "in metres"] = 0


@dataclass
class Trip:
    """:param start: where it begins"""

    start: str
    end: Annotated[str, Doc("where it ends")] = ""
    stops: list[Place] = field(default_factory=list)


class Wishes(TypedDict, total=False):
    """Wishes.

    Args:
        seat: by the window or not
    """

    seat: str
    meal: Annotated[str, "what to eat"]


class Options(TypedDict, total=False):
    limit: Required[int]
    order: Annotated[str, "how to sort"]


def test_fields_of_models_have_their_descriptions():
    """Fields of pydantic models, dataclasses and TypedDicts are described; no section is dumped into a description."""

    @tool
    def book(trip: Trip, wishes: Wishes) -> str:
        return ""

    kinds = book.parameters["$defs"]
    told = {
        (kind, name): value.get("description")
        for kind, shown in kinds.items()
        for name, value in shown["properties"].items()
    }
    assert told == {
        ("Place", "lat"): "how far north",
        ("Place", "lon"): "how far east",
        ("Place", "name"): "as on the map",
        ("Place", "height"): "in metres",
        ("Trip", "start"): "where it begins",
        ("Trip", "end"): "where it ends",
        ("Trip", "stops"): None,
        ("Wishes", "seat"): "by the window or not",
        ("Wishes", "meal"): "what to eat",
    }
    assert kinds["Place"]["description"] == "A place."
    assert kinds["Wishes"]["description"] == "Wishes."
    assert "description" not in kinds["Trip"]


def test_annotated_text_is_found_in_an_optional():
    """`Optional[Annotated[int, "text"]]` and `Annotated[…, Doc("text")]` describe too."""

    @tool
    def look(a: Optional[Annotated[int, "one"]] = None, b: Annotated[int | None, Doc("two")] = None) -> str:  # noqa: UP045
        return ""

    assert [each["description"] for each in look.parameters["properties"].values()] == ["one", "two"]


async def test_further_arguments_go_into_kwargs():
    """A function with `**kwargs` gets whatever else the model gives, and the schema says that it may."""

    @tool
    def find(city: str, **kwargs: Any) -> Any:
        return [city, kwargs]

    assert find.parameters["additionalProperties"] is True
    assert find.parameters["required"] == ["city"]
    result = await find.invoke({"city": "Oslo", "units": "C", "p0": 1, "self": [2]})
    assert json.loads(result.observation) == ["Oslo", {"units": "C", "p0": 1, "self": [2]}]
    assert "needs the argument 'city'" in (await find.invoke({"units": "C"})).observation


async def test_kwargs_have_their_type():
    """`**kwargs: int` takes whole numbers only."""

    @tool
    def add(**numbers: int) -> int:
        return sum(numbers.values())

    assert add.parameters["additionalProperties"] == {"type": "integer"}
    assert (await add.invoke({"a": 1, "b": "2"})).observation == "3"
    assert (await add.invoke({"a": "x"})).status == "error"


async def test_unpacked_kwargs_are_parameters():
    """`**options: Unpack[TypedDict]` shows a parameter for each key, and gives only what the model gave."""

    @tool
    def find(**options: Unpack[Options]) -> Any:
        return options

    assert find.parameters["properties"] == {
        "limit": {"type": "integer"},
        "order": {"type": "string", "description": "how to sort"},
    }
    assert find.parameters["required"] == ["limit"]
    assert (await find.invoke({"limit": 3})).observation == '{"limit": 3}'
    assert "has no argument 'other'" in (await find.invoke({"limit": 3, "other": 1})).observation


async def test_the_model_cannot_give_the_context_by_kwargs():
    """A parameter that the rollout fills in stays the rollout's, also beside `**kwargs`."""

    @tool
    def peek(ctx: ChainContext | None = None, **kwargs: Any) -> Any:
        return [ctx is None, kwargs]

    assert (await peek.invoke({"ctx": {"row": {}}})).observation == "error: peek has no argument 'ctx'"
    assert (await peek.invoke({"a": 1})).observation == '[true, {"a": 1}]'


def test_what_the_docstring_says_of_kwargs_is_told():
    """The text of `**kwargs`, and of names that go into it, stands in the schema."""

    @tool
    def find(city: str, **kwargs: Any) -> str:
        """Find.

        Args:
            city: where
            units: C or F
            **kwargs: what the service takes
        """
        return city

    assert find.parameters["properties"]["units"] == {"description": "C or F"}
    assert find.parameters["additionalProperties"] == {"description": "what the service takes"}


def test_an_entry_for_no_parameter_is_one_warning(caplog):
    """A docstring that describes what the function does not take is told once, and changes nothing else."""
    with caplog.at_level(logging.WARNING, "rollcast.tools"):

        @tool
        def look(city: str) -> str:
            """Look.

            Args:
                self: it
                town: of old
                city: where
            """
            return city

    assert [record.getMessage() for record in caplog.records] == [
        "tool 'look': its docstring describes 'town', but it has no such parameter; the model does not see it"
    ]
    assert look.parameters["properties"]["city"]["description"] == "where"


class Counter:
    """Count."""

    def __call__(self, step: int) -> int:
        """Count on.

        Args:
            step: how far
        """
        return step

    @tool
    @staticmethod
    def double(x: int) -> int:
        """Double it."""
        return 2 * x

    @classmethod
    def name(cls, short: bool) -> str:
        """Tell the name."""
        return cls.__name__


class AsyncCounter:
    """Count without a docstring of the call.

    Args:
        step: how far
    """

    async def __call__(self, step: int) -> int:
        return step


def shift(x: int, by: int) -> int:
    """Shift.

    Args:
        x: from where
        by: how far
    """
    return x + by


@validate_call
def halve(x: int) -> int:
    """Halve.

    Args:
        x: what
    """
    return x // 2


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@logged
async def wait(x: int) -> int:
    """Wait.

    Args:
        x: what
    """
    return x


@pytest.mark.parametrize(
    ("made", "description", "texts", "given", "observation"),
    [
        (tool(Counter(), name="count"), "Count on.", {"step": "how far"}, {"step": 2}, "2"),
        (tool(AsyncCounter(), name="count"), "Count without a docstring of the call.", {"step": "how far"}, {"step": 2}, "2"),
        (Counter.double, "Double it.", {"x": None}, {"x": 2}, "4"),
        (tool(Counter.name), "Tell the name.", {"short": None}, {"short": True}, "Counter"),
        (tool(functools.partial(shift, 5), name="on"), "Shift.", {"by": "how far"}, {"by": 2}, "7"),
        (tool(functools.partial(shift, by=1), name="on"), "Shift.", {"x": "from where", "by": "how far"}, {"x": 2}, "3"),
        (tool(halve), "Halve.", {"x": "what"}, {"x": "4"}, "2"),
        (tool(wait), "Wait.", {"x": "what"}, {"x": 4}, "4"),
    ],
)  # fmt: skip
async def test_callables_of_every_kind_are_tools(made, description, texts, given, observation, caplog):
    """Objects, static and class methods, partials and decorated functions are described as what they call."""
    assert made.description == description
    shown = made.parameters["properties"]
    assert {name: each.get("description") for name, each in shown.items()} == texts
    assert (await made.invoke(given)).observation == observation
    assert not caplog.records


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (print, "takes *args"),
        (max, "no signature that can be read"),
        (str.upper, "positional-only parameter 'self'"),
        (Counter, "is not a function"),
        ({"type": "function"}, "is not a function"),
    ],
)
def test_what_is_no_tool_is_told_in_a_sentence(function, words):
    """Builtins without names, classes and values are refused."""
    with pytest.raises(ToolDefinitionError) as told:
        tool(function)
    assert words in str(told.value)
    assert "\n" not in str(told.value)
