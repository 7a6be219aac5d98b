"""Turns any value into JSON: the one place where a row's, a tool's or a user's objects become JSON.

A value that is JSON already is returned as it is, the same object. Numbers and text of other libraries become plain ones.
What JSON cannot hold is described by its type and size, `<ndarray float32 (3, 224, 224)>`: a picture's pixels do not belong
in a log, and a log without the event would be worse.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from types import NoneType
from typing import Any
from uuid import UUID

import msgspec

from rollcast.text import looks_secret, well_formed

__all__ = [
    "JSON_ERRORS",
    "as_json",
    "bounded_fields",
    "bounded_json",
    "bounded_row",
    "described",
    "detached",
    "may_nest_deeply",
    "nests_deeply",
    "object_or_text",
    "plain_scalar",
    "plain_scalars",
    "shown_arguments",
    "without_named_secrets",
]

JSON_ERRORS = (
    msgspec.DecodeError,
    UnicodeError,
    RecursionError,
)  # what `msgspec.json.decode` raises for bytes or text
DEPTH_LIMIT = 64  # less than JSON readers can take
SHALLOW_BYTES = 400  # an event with less JSON cannot nest deeply; most tokens have less
QUICK_DEPTH = 3  # how deep the quick check looks: an event's data, a list of messages, a message
QUICK_LENGTH = 32  # so that the quick check stays quick for lists that contain each other many times over
CONTAINERS_LIMIT = 100_000  # in one value: lists that contain each other many times over grow without end
MASKED_BY_NAME = "[masked:name]"  # in place of a text that looks secret by its field's name
VALUE_LIMIT = 64 << 10  # characters of JSON that one field of a row may take in an event
_SHORT = 64  # characters of a row's field that is always shown
_INT_LIMIT = 1 << 4096  # Python writes at most 4,300 digits
_AS_TEXT = (timedelta, UUID, Decimal, Fraction, PurePath, complex)
_UNSEEN: Any = object()
_CONTAINERS = frozenset((dict, list))


def as_json(value: Any) -> Any:
    """Return the value as JSON: None, bool, int, finite float, str, list and dict with text as keys.

    If it is JSON already, the same object is returned, and so is each part of it. `NaN`, `Infinity` and `-Infinity` become
    these words. Enums become their values; sets, tuples and the like lists; dataclasses, pydantic models, attrs classes and
    structs dicts; dates, UUIDs, decimals, fractions and paths text; the rest is `described`. It never raises, whatever the
    value's own code does.
    """
    if _is_json(value, QUICK_DEPTH):
        return value
    try:
        return _Conversion().of(value, DEPTH_LIMIT)
    except RecursionError:  # the caller is deep in its own recursion
        return described(value)


def detached(value: Any) -> Any:
    """The same JSON with dicts and lists of its own, so that changing them changes nothing else. Text is not copied.

    `value` is what `as_json` returned.
    """
    kind = type(value)
    if kind is dict:
        copy = value.copy()
        for name, item in value.items():
            if type(item) is dict or type(item) is list:
                copy[name] = detached(item)
        return copy
    if kind is not list:
        return value
    if _CONTAINERS.isdisjoint(map(type, value)):  # such as token ids
        return value[:]
    return [detached(item) for item in value]


def may_nest_deeply(data: bytes) -> bool:
    """Whether `nests_deeply` may be true of an event with this JSON; most have too little of it."""
    return len(data) >= SHALLOW_BYTES and data.count(b"[") + data.count(b"{") > DEPTH_LIMIT


def nests_deeply(value: Any) -> bool:
    """Whether lists and dicts nest more deeply in it than `as_json` leaves them, so that some reader may not take its JSON."""
    level: list[Any] = [[value]]
    for _ in range(DEPTH_LIMIT + 1):
        inner = {}
        for each in level:
            for item in each.values() if type(each) is dict else each:
                if type(item) is list or type(item) is dict:
                    inner[id(item)] = item
        if not inner:
            return False
        level = [*inner.values()]
    return True


def bounded_json(value: Any, limit: int = VALUE_LIMIT) -> Any:
    """Do what `as_json` does; text of more than `limit` characters of JSON is cut, and other values are described."""
    value = as_json(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) <= limit else f"{value[:limit]}… <str ({len(value)})>"
    return value if len(msgspec.json.encode(value)) <= limit else described(value)


def bounded_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A dict of the fields, each bounded."""
    return {name: bounded_json(value) for name, value in fields.items()}


def bounded_row(fields: Mapping[Any, Any], limit: int = VALUE_LIMIT) -> dict[str, Any]:
    """A dict of the fields, which together take about `limit` characters of JSON.

    Those for which no room is left are described, except short ones. Text that looks secret by its field's name is masked.
    """
    shown: dict[str, Any] = as_json({name: bounded_json(value, limit) for name, value in fields.items()})
    left = limit
    for name, value in shown.items():
        if isinstance(value, str) and looks_secret(name, value):
            value = shown[name] = MASKED_BY_NAME  # noqa: PLW2901  (it is what is shown)
        size = len(name) + len(msgspec.json.encode(value))
        if size <= max(left, _SHORT):
            left -= size
        else:
            shown[name] = described(value)
    return shown


def without_named_secrets(value: Any) -> Any:
    """JSON, as `as_json` makes it, without the texts that look secret by the names of their fields, at any depth; the same object if there are none."""
    if isinstance(value, dict):
        shown = {
            name: MASKED_BY_NAME
            if isinstance(item, str) and isinstance(name, str) and looks_secret(name, item)
            else without_named_secrets(item)
            for name, item in value.items()
        }
        return shown if any(shown[name] is not value[name] for name in value) else value
    if isinstance(value, list):
        items = [without_named_secrets(item) for item in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


def shown_arguments(value: Any) -> dict[str, Any] | str:
    """The arguments of a call as they are shown: an object or text, without texts that look secret by the names of their fields."""
    shown: dict[str, Any] | str = without_named_secrets(object_or_text(value))
    return shown


def object_or_text(value: Any) -> dict[str, Any] | str:
    """The arguments of a call as JSON: an object or text; anything else becomes its JSON as text."""
    value = as_json(value)
    return value if isinstance(value, dict | str) else msgspec.json.encode(value).decode()


def plain_scalar(value: Any) -> Any:
    """The value as a plain Python number or text; the value itself if it is neither.

    It is for NumPy's and torch's scalars, and for subclasses of `str`, `int`, `float` and `bool`.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return plain_scalar(value.value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if (
        getattr(value, "shape", None) == ()
        and hasattr(value, "dtype")
        and callable(getattr(value, "item", None))
    ):
        item = value.item()
        return item if isinstance(item, bool | int | float | str) else value
    return value


def plain_scalars(value: Any, depth: int = DEPTH_LIMIT) -> Any:
    """Make the numbers and text in lists and dicts plain; anything else is left as it is, for a check to refuse."""
    if depth and isinstance(value, Mapping):
        return {plain_scalar(name): plain_scalars(item, depth - 1) for name, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [plain_scalars(item, depth - 1) for item in value]
    return plain_scalar(value)


def described(value: Any) -> str:
    """Describe a value that JSON cannot hold: its type, and its size if it has one."""
    try:
        return f"<{well_formed(_description(value))}>"
    except Exception:  # noqa: BLE001  (the value's own code runs here and may raise anything)
        return f"<{type(value).__name__}>"


def _description(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, type):
        return f"class {value.__name__}"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{kind} ({len(value)})"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):  # arrays, tensors, tables
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        return " ".join(filter(None, (kind, dtype, str(tuple(map(plain_scalar, shape))))))
    size, mode = getattr(value, "size", None), getattr(value, "mode", None)
    if isinstance(size, tuple) and isinstance(mode, str):  # pictures
        return f"{kind} {mode} {size}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{kind} {value.__qualname__}"
    if hasattr(type(value), "__len__"):
        return f"{kind} ({len(value)})"
    return kind


def _is_json(value: Any, depth: int) -> bool:
    """Whether it is JSON already, like most events; False leaves what is deep, long or not ASCII to `_Conversion`."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii())
    if kind is int:
        return bool(-_INT_LIMIT < value < _INT_LIMIT)
    if kind is float:
        return math.isfinite(value)
    if kind is bool or kind is NoneType:
        return True
    if depth == 0 or (kind is not dict and kind is not list) or len(value) > QUICK_LENGTH:
        return False
    if kind is dict:
        for name, item in value.items():
            if type(name) is not str or not name.isascii():
                return False
            of = type(
                item
            )  # what most items are is checked here too: a call for each would cost twice as much
            if of is str:
                if not item.isascii():
                    return False
            elif of is float:
                if not math.isfinite(item):
                    return False
            elif of is int:
                if not -_INT_LIMIT < item < _INT_LIMIT:
                    return False
            elif not (of is bool or of is NoneType or _is_json(item, depth - 1)):
                return False
        return True
    return all(_is_json(item, depth - 1) for item in value) if value else True


class _Conversion:
    """Converts one value to JSON."""

    def __init__(self) -> None:
        self.path: set[int] = set()  # the containers around the part that is converted now
        self.containers = 0

    def of(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return value if value.isascii() else well_formed(value)
        if kind is bool or kind is NoneType:
            return value
        if kind is int:
            return value if -_INT_LIMIT < value < _INT_LIMIT else f"<int of {value.bit_length()} bits>"
        if kind is float:
            return value if math.isfinite(value) else _WORDS[str(value)]
        self.containers += 1
        if depth == 0 or id(value) in self.path or self.containers > CONTAINERS_LIMIT:
            return described(value)
        self.path.add(id(value))
        try:
            if kind is list:
                return self._list(value, depth - 1)
            if kind is dict:
                return self._dict(value, depth - 1)
            return self._other(value, kind, depth)
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001  (the value's own code runs here and may raise anything)
            return described(value)
        finally:
            self.path.discard(id(value))

    def _list(self, items: list[Any], depth: int) -> list[Any]:
        kinds = {*map(type, items)}
        if kinds == {float} and all(map(math.isfinite, items)):  # as log-probabilities are
            return items
        if kinds == {int} and min(items) > -_INT_LIMIT and max(items) < _INT_LIMIT:  # as token ids are
            return items
        changed: list[Any] | None = None
        for i, item in enumerate(items):
            converted = self.of(item, depth)
            if changed is None and converted is not item:
                changed = items[:i]
            if changed is not None:
                changed.append(converted)
        return items if changed is None else changed

    def _dict(self, items: dict[Any, Any], depth: int) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        same = True
        for name, item in items.items():
            value = self.of(item, depth)
            key = name if type(name) is str and well_formed(name) is name else self._key(name, depth)
            same = same and key is name and value is item
            while key in converted and not same:
                key += "'"  # 1 and "1" are two keys in Python
            converted[key] = value
        return items if same else converted

    def _key(self, name: Any, depth: int) -> str:
        key = self.of(name, depth)
        return key if isinstance(key, str) else msgspec.json.encode(key).decode()

    def _other(self, value: Any, kind: type, depth: int) -> Any:
        scalar = plain_scalar(value)
        if scalar is not value:
            return self.of(scalar, depth)
        if isinstance(value, date | time):
            return value.isoformat()
        if isinstance(value, _AS_TEXT):
            return well_formed(str(value))
        if getattr(value, "shape", None) == () and callable(
            getattr(value, "item", None)
        ):  # such as datetime64
            item = value.item()
            return described(value) if type(item) is kind else self.of(item, depth - 1)
        if isinstance(value, Mapping):
            return self._dict(dict(value.items()), depth - 1)
        if isinstance(value, Set):
            return self._list(_in_order(value), depth - 1)
        if isinstance(value, tuple | list | deque | range):
            if len(value) > CONTAINERS_LIMIT and isinstance(value, range):
                return described(value)
            return self._list(list(value), depth - 1)
        fields = _fields(value)
        return described(value) if fields is None else self._dict(fields, depth - 1)


_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _in_order(values: Iterable[Any]) -> list[Any]:
    """The members of a set, in an order that is the same in every process."""
    members = list(values)
    try:
        return sorted(members)
    except TypeError:
        return sorted(members, key=repr)


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of another library's record, by name."""
    if isinstance(value, type):
        return None
    names: Sequence[str]
    if is_dataclass(value):
        names = list(value.__dataclass_fields__)
    elif isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif isinstance(getattr(type(value), "model_fields", None), dict):  # pydantic
        names = list(type(value).model_fields)
    elif isinstance(getattr(type(value), "__attrs_attrs__", None), tuple):
        names = [attribute.name for attribute in type(value).__attrs_attrs__]
    else:
        return None
    found = {name: getattr(value, name, _UNSEEN) for name in names}
    return {name: part for name, part in found.items() if part is not _UNSEEN}
