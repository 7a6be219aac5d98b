"""Facts about how results become text."""

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rollcast.tools import tool
from rollcast.tools.observation import CannotShow, as_text, bounded


@dataclass
class Point:
    x: int


class Model(BaseModel):
    x: int


class Colour(StrEnum):
    RED = "red"


class Loud(str):
    __slots__ = ()

    def __str__(self):
        raise ValueError("no")

    __repr__ = __str__


class Opaque:
    def __repr__(self):
        raise ValueError("no")

    __str__ = __repr__


class Trap:
    """Pretends to be an array."""

    def tolist(self):
        raise KeyError("trap")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as is\n", "as is\n"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (10**30, "1" + "0" * 30),
        (2.5, "2.5"),
        (math.nan, "NaN"),
        ([1, "ü", None], '[1, "ü", null]'),
        (
            {
                "a": {
                    1,
                }
            },
            '{"a": [1]}',
        ),
        ({1: math.inf}, '{"1": Infinity}'),
        (Point(1), '{"x": 1}'),
        (Model(x=1), '{"x": 1}'),
        ([Model(x=1)], '[{"x": 1}]'),
        (b"bytes", "bytes"),
        (Colour.RED, "red"),
        (Loud("loud"), "loud"),
        (Path("a"), '"a"'),
        (np.float32(0.5), "0.5"),
        (np.arange(3), "[0, 1, 2]"),
        ("\ud800!", "\ufffd!"),
        (["\ud83d\ude00", "\ud800"], '["😀", "\ufffd"]'),
    ],
)
def test_values_have_text(value, text):
    """Strings stay, bytes are UTF-8, all else is JSON; lone surrogates are replaced."""
    assert as_text(value) == text


def _cycle():
    cycle: list[object] = []
    cycle.append(cycle)
    return cycle


def _deep():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    "value",
    [
        Opaque(),
        [Opaque()],
        {Opaque(): 1},
        b"\xff",
        [b"\xff"],
        _cycle(),
        _deep(),
        10**5000,
        object(),
        Trap(),
        print,
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_cannot_be_shown_is_an_error(value):
    """A value without text is an error observation of one line."""
    with pytest.raises(CannotShow):
        as_text(value)

    @tool
    def give():
        return value

    result = await give.invoke({})
    assert result.status == "error"
    assert result.observation.startswith("error: the result ")
    assert "\n" not in result.observation
    assert len(result.observation) < 400


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(_json.filter(lambda value: not isinstance(value, str)))
def test_json_survives(value):
    """What is JSON can be read back."""
    assert json.loads(as_text(value)) == value


@given(st.text(), st.integers(1, 60))
def test_bounded_is_bounded(text, limit):
    """No text is longer than its limit, and one that fits is unchanged."""
    short = bounded(text, limit)
    assert len(short) <= limit
    if len(text) <= limit:
        assert short == text


class Unshowable:
    def __repr__(self) -> str:
        raise SystemExit

    def __getattr__(self, name: str) -> object:
        raise ValueError(name)


class Table:
    """As a data frame of another library."""

    def to_dict(self) -> dict:
        return {"a": {0: 1, 1: float("nan")}}


@pytest.mark.parametrize(
    ("value", "observation"),
    [
        (
            Unshowable(),
            "error: the result is or contains a value of type Unshowable, which is neither text nor JSON",
        ),
        (
            [Unshowable()],
            "error: the result is or contains a value of type Unshowable, which is neither text nor JSON",
        ),
        (MagicMock(), None),
        (Table(), '{"a": {"0": 1, "1": NaN}}'),
        (np.float32(0.5), "0.5"),
        ({"a": np.arange(3)}, '{"a": [0, 1, 2]}'),
        (10**5000, None),
        ((i for i in range(3)), "012"),
        (map(str, [1]), None),
        ("\ud800", "\ufffd"),
        (b"\xff", "error: the result is 1 bytes that are not UTF-8 text"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_whatever_a_tool_returns_is_one_observation(value, observation):
    """Objects that cannot be shown, values of other libraries and huge numbers are text that can be encoded."""

    @tool
    def give() -> object:
        return value

    result = await give.invoke({})
    if observation is not None:
        assert result.observation == observation
    assert len(result.observation.encode()) <= 11_000
