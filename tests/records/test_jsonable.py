"""Facts about what becomes of a value that JSON cannot hold."""

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import pathlib
import uuid
from collections import UserDict, deque, namedtuple

import msgspec
import numpy as np
import pydantic
import pytest

from rollcast.records.jsonable import (
    as_json,
    bounded_json,
    bounded_row,
    described,
    plain_scalar,
    plain_scalars,
    shown_arguments,
)


class Words(str):
    """Text of a subclass."""

    __slots__ = ()

    def __str__(self):
        return "something else"


class Level(enum.IntEnum):
    HIGH = 3


class Color(enum.Enum):
    RED = "red"


class Whole(int):
    """A number of a subclass."""


class Model(pydantic.BaseModel):
    n: int = 1
    inner: object = None


@dataclasses.dataclass
class Record:
    n: object


class Struct(msgspec.Struct):
    n: object


Pair = namedtuple("Pair", "a b")


class Picture:
    """As PIL's are."""

    size = (640, 480)
    mode = "RGB"


class Hostile:
    """Its own code raises, whatever is asked of it."""

    def __getattribute__(self, name):
        if name == "__class__":
            return type(self)
        raise RuntimeError("no")

    def __len__(self):
        raise RuntimeError("no")

    def __repr__(self):
        raise RuntimeError("no")


class Row(list):
    """A list of a subclass."""


@pytest.mark.parametrize(
    ("value", "json_value"),
    [
        (np.float64(4), 4.0),
        (np.float32(0.5), 0.5),
        (np.int64(4), 4),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(3), 3),
        (np.datetime64("2024-05-06T07:08:09"), "2024-05-06T07:08:09"),
        (np.zeros((3, 224, 224), np.float32), "<ndarray float32 (3, 224, 224)>"),
        (np.zeros(2), "<ndarray float64 (2,)>"),
        (Words("x"), "x"),
        (Level.HIGH, 3),
        (Color.RED, "red"),
        (Whole(5), 5),
        (b"12345", "<bytes (5)>"),
        (bytearray(2), "<bytearray (2)>"),
        (decimal.Decimal("1.50"), "1.50"),
        (fractions.Fraction(1, 3), "1/3"),
        (2 + 3j, "(2+3j)"),
        (dt.date(2024, 5, 6), "2024-05-06"),
        (dt.datetime(2024, 5, 6, 7, tzinfo=dt.UTC), "2024-05-06T07:00:00+00:00"),
        (dt.timedelta(seconds=90), "0:01:30"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({1, "a"}, ["a", 1]),
        ((1, (2, 3)), [1, [2, 3]]),
        (deque([1]), [1]),
        (range(3), [0, 1, 2]),
        (range(10**9), "<range (1000000000)>"),
        (Pair(1, 2), [1, 2]),
        (Row([1]), [1]),
        (UserDict(a=1), {"a": 1}),
        (Record(np.int8(1)), {"n": 1}),
        (Struct({1}), {"n": [1]}),
        (Model(inner=Model()), {"n": 1, "inner": {"n": 1, "inner": None}}),
        (Model, "<class Model>"),
        (Picture(), "<Picture RGB (640, 480)>"),
        (object(), "<object>"),
        (json.dumps, "<function dumps>"),
        (Hostile(), "<Hostile>"),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        ([1.0, float("-inf")], [1.0, "-Infinity"]),
        (np.float64("nan"), "NaN"),
        (10**30, 10**30),
        (10**5000, "<int of 16610 bits>"),
        ([1, 10**5000], [1, "<int of 16610 bits>"]),
        ("\ud800", "\ufffd"),
        (
            {1: "a", "1": "b", None: "c", (1, 2): "d", "\ud800": "f"},
            {"1": "a", "1'": "b", "null": "c", "[1,2]": "d", "\ufffd": "f"},
        ),
        ({np.int64(7): Words("x")}, {"7": "x"}),
        ((part for part in "ab"), "<generator>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_value_has_its_json(value, json_value):
    """Numbers and text become plain, records become dicts, and the rest is described by type and size."""
    found = as_json({"x": value})["x"]
    assert found == json_value
    assert type(found) is type(json_value)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert msgspec.json.decode(msgspec.json.encode(found)) == found


def test_what_is_json_stays_the_same_object():
    """So that it costs a look and nothing is copied."""
    value = {"a": [1, 2], "b": {"c": [0.5, None, True, "x", {}]}, "d": [0.1, 0.2], "e": []}
    assert as_json(value) is value


def test_only_what_changes_is_made_anew():
    """The other parts are the caller's own objects, and the caller's are not changed."""
    good, bad = {"a": [1]}, [1, np.float64(2)]
    value = {"good": good, "bad": bad}
    found = as_json(value)
    assert found == {"good": {"a": [1]}, "bad": [1, 2.0]}
    assert found["good"] is good
    assert type(bad[1]) is np.float64


def test_what_holds_itself_ends():
    """Cycles, depth and lists that stand in each other many times over are described where they go too far."""
    ring = [1]
    ring.append({"again": ring})
    assert as_json(ring) == [1, {"again": "<list (2)>"}]
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert "<list (1)>" in json.dumps(as_json(deep))
    wide = []
    for _ in range(30):
        wide = [wide] * 10
    assert "<list (10)>" in json.dumps(as_json(wide))


def test_the_same_object_twice_is_no_cycle():
    """It stands in both places."""
    part = {"a": np.int64(1)}
    assert as_json([part, part]) == [{"a": 1}, {"a": 1}]


def test_large_values_are_bounded():
    """Of text the beginning stays; a large container is described; numbers and small values stay as they are."""
    assert bounded_json("x" * 100, 10) == "x" * 10 + "… <str (100)>"
    assert bounded_json(list(range(100)), 10) == "<list (100)>"
    assert bounded_json({"a": "x" * 100}, 10) == "<dict (1)>"
    assert bounded_json([1, np.int64(2)], 10) == [1, 2]
    assert bounded_json(np.float64(2), 1) == 2.0
    assert bounded_json(None, 1) is None


def test_messages_keep_what_is_not_json():
    """Only numbers and text become plain; the rest is left for somebody else to refuse."""
    picture = Picture()
    assert plain_scalars([np.int64(1), {Words("a"): (picture, "\ud800")}]) == [1, {"a": [picture, "\ud800"]}]


def test_plain_scalars():
    """Numbers and text of other libraries become plain; anything else is left alone."""
    array = np.zeros(3)
    assert plain_scalar(array) is array
    assert type(plain_scalar(Words("a"))) is str
    assert type(plain_scalar(np.float64(1))) is float
    assert described(array) == "<ndarray float64 (3,)>"


@pytest.mark.torch
def test_tensors():
    """A tensor of one number is that number, any other is described."""
    import torch

    assert as_json(torch.tensor(2.5)) == 2.5
    assert as_json(torch.zeros(3, 4, dtype=torch.bfloat16)) == "<Tensor bfloat16 (3, 4)>"
    assert as_json(torch.zeros((), device="meta")) == "<Tensor float32 ()>"


def test_pictures_of_pil_and_tables_of_pandas():
    """As rows of a dataset have them."""
    pil = pytest.importorskip("PIL.Image")
    pandas = pytest.importorskip("pandas")
    assert as_json(pil.new("RGB", (64, 48))) == "<Image RGB (64, 48)>"
    assert as_json(pandas.DataFrame({"a": [1, 2]})) == "<DataFrame (2, 1)>"
    assert as_json(pandas.Timestamp("2024-05-06")) == "2024-05-06T00:00:00"
    assert as_json(pandas.NA) == "<NAType>"


def test_the_fields_of_a_row_share_their_room():
    """Those that come first are kept; a long one that has no room left is described, and no name is lost."""
    row = {"small": 1, "large": "x" * 90, "list": list(range(40)), 7: b"123", "last": True}
    shown = row | {"7": "<bytes (3)>"}
    del shown[7]
    assert bounded_row(row) == shown
    assert bounded_row(row, 130) == shown | {"list": "<list (40)>"}
    assert bounded_row({}) == {}


def test_secrets_of_a_call_are_not_shown():
    """Neither deep in its arguments; the tool's own are not changed, and text that is no object is shown as it is."""
    arguments = {"query": "x", "login": [{"password": "correct horse", "user": "me"}], "max_tokens": 3}
    shown = shown_arguments(arguments)
    assert shown == arguments | {"login": [{"password": "[masked:name]", "user": "me"}]}
    assert arguments["login"][0]["password"] == "correct horse"
    assert shown_arguments({"query": "x"}) == {"query": "x"}
    assert shown_arguments('{"password": "correct horse"') == '{"password": "correct horse"'


def test_secrets_of_a_row_are_not_shown():
    """Only what its name gives away, and nothing that merely sounds like it."""
    row = {
        "api_key": "abcdefgh1234",
        "token": "word",
        "tokens": "one two three",
        "author": "somebody",
        "secret": 1234567890,
    }
    shown = bounded_row(row)
    assert shown == row | {"api_key": "[masked:name]"}
    assert row["api_key"] == "abcdefgh1234"
