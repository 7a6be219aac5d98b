"""Facts about arguments that a format writes as text: the tool's types read them."""

import datetime as dt
import enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel

from rollcast.tools import tool


class Colour(enum.Enum):
    RED = "red"


class Point(BaseModel):
    x: int


async def received(kind, text):
    got = []

    def f(x):
        got.append(x)
        return "ok"

    f.__annotations__ = {"x": kind, "return": str}
    result = await tool(f).invoke({"x": text})
    return got[0] if got else result.observation


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int | None, "null", None),
        (int | None, "None", None),
        (int | None, "5", 5),
        (str | None, "null", None),
        (str | None, "None", None),
        (str | None, "x", "x"),
        (Annotated[int | None, "how many"], "null", None),
        (int | str, "5", 5),
        (str | int, "5", 5),
        (int | str, "x", "x"),
        (int | str, "5.5", "5.5"),
        (int | float | str, "5.5", 5.5),
        (bool | str, "true", True),
        (bool | str, "1", "1"),
        (list[int] | str, "[1, 2]", [1, 2]),
        (list[int] | str, "[a]", "[a]"),
        (list[int], "[1, 2]", [1, 2]),
        (list[int | None], "[1, null]", [1, None]),
        (list[str] | None, '["null"]', ["null"]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Point, '{"x": 1}', Point(x=1)),
        (Point | None, "None", None),
        (Point | str, '{"x": 1}', Point(x=1)),
        (Literal["a", "b"], "a", "a"),
        (Literal[1, 2], "2", 2),
        (Literal["a"] | int, "3", 3),
        (Colour, "red", Colour.RED),
        (Colour | None, "red", Colour.RED),
        (dt.date | str, "2024-01-02", dt.date(2024, 1, 2)),
        (bool, "True", True),
        (bool | None, "False", False),
        (str, "null", "null"),
        (str, "5", "5"),
        (Any, "5", "5"),
    ],
)
async def test_a_text_is_read_by_its_type(kind, text, value):
    """None if the type allows it; in a union the first member other than str that it fits; else as JSON, or as it is."""
    got = await received(kind, text)
    assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize(
    ("kind", "text"), [(int, "null"), (Literal["a"], "c"), (list[int], "[a]"), (bool, "x")]
)
async def test_what_no_type_takes_is_an_error(kind, text):
    """It names the argument."""
    assert (await received(kind, text)).startswith("error: the argument 'x' of f")
