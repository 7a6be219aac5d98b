"""Turns the model's arguments into checked Python values."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

from rollcast.errors import InputError
from rollcast.records.jsonable import JSON_ERRORS
from rollcast.text import one_line, well_formed
from rollcast.tools.context import Injected

__all__ = ["Arguments", "ArgumentsError"]


class ArgumentsError(Exception):
    """The model's arguments do not fit; the message says so in one line for the model."""


@dataclass(frozen=True)
class Arguments:
    """The parameters of one function.

    Attributes:
        schema: JSON Schema of an object with one property per parameter.
        summary: the text of the docstring before its sections.
        injected: parameters that the rollout fills, with their classes.
        model: the pydantic model that validates; its fields are `p0 …` with the parameters' names as aliases, so that any
            name will do.
        names: the parameter of each field.
        optional: parameters that have a default, which the function itself fills in.
        given: the schema as it was given, if it was not made from the function.
    """

    schema: dict[str, Any]
    summary: str
    injected: Mapping[str, type[Injected]]
    model: type[BaseModel]
    names: Mapping[str, str]
    optional: frozenset[str]
    given: Mapping[str, Any] | None = None

    def bind(self, tool: str, given: Mapping[str, Any] | str, context: Injected | None) -> dict[str, Any]:
        """Make keyword arguments for the function.

        Args:
            tool: its name, for messages.
            given: what the model wrote: an object, its JSON, or the bare value of the only argument.
            context: fills the injected parameters.

        Raises:
            ArgumentsError: the model's arguments are wrong.
            InputError: the context is not of the class that the function needs.
        """
        if isinstance(given, str):
            given = self._object(given)
        if not isinstance(given, Mapping):
            raise ArgumentsError(f"error: the arguments of {tool} are not an object")
        try:
            checked = self._checked(given)
        except ValidationError as error:
            raise ArgumentsError(self._in_words(tool, error)) from None
        except Exception as error:  # a validator of the tool's own types may raise anything
            raise ArgumentsError(
                f"error: {tool} cannot read its arguments: {type(error).__name__}"
            ) from error
        keywords = {
            name: getattr(checked, field)
            for field, name in self.names.items()
            if field in checked.model_fields_set or name not in self.optional
        }
        keywords |= self._extra(tool, checked)
        for name, kind in self.injected.items():
            if isinstance(context, kind):
                keywords[name] = context
            elif name not in self.optional:
                raise InputError(
                    f"tool {tool!r} takes a {kind.__name__} as its parameter {name!r}, and the call came with "
                    f"{'none' if context is None else type(context).__name__}"
                )
        return keywords

    def _object(self, text: str) -> Any:
        """Read the text: JSON; or the bare value of the only argument, since some formats have no names."""
        takes_text = self.only is not None and _takes_text(self.schema["properties"][self.only])
        try:
            value = _decoded(text)
        except ArgumentsError:
            meant_as_json = text.lstrip().startswith("{" if takes_text else ("{", "["))
            if self.only is None or meant_as_json:
                raise
            return {self.only: text}
        if self.only is None or isinstance(value, Mapping):
            return value
        if takes_text:
            return {self.only: value if isinstance(value, str) else text}
        takes_list = self.schema["properties"][self.only].get("type") == "array"
        return {self.only: value} if takes_list or not isinstance(value, list) else value

    @property
    def only(self) -> str | None:
        """The one required parameter, or the one parameter that exists."""
        required = self.schema["required"] or list(self.schema["properties"])
        return required[0] if len(required) == 1 else None

    def _extra(self, tool: str, checked: BaseModel) -> dict[str, Any]:
        """The arguments for the function's `**kwargs`."""
        extra = checked.model_extra or {}
        hidden = next((name for name in self.injected if name in extra), None)
        if hidden is not None:  # only the rollout gives it
            raise ArgumentsError(f"error: {tool} has no argument {hidden!r}")
        return {well_formed(name): value for name, value in extra.items()}

    def _checked(self, given: Mapping[str, Any]) -> BaseModel:
        """Read texts by their parameters' types, since formats without types write every value as text.

        A text that a parameter does not take as it is, is read as JSON; for a union, by its first member other than `str`.
        """
        fields = {name: self.model.model_fields[field].annotation for field, name in self.names.items()}
        given = {
            name: _of_union(value, fields[name]) if isinstance(value, str) and name in fields else value
            for name, value in given.items()
        }
        try:
            return self.model.model_validate(given)
        except ValidationError as error:
            wrong = {str(problem["loc"][0]) for problem in error.errors(include_url=False) if problem["loc"]}
            values = {
                name: _json_value(given[name])
                for name in wrong & given.keys()
                if isinstance(given[name], str)
            }
            changed = {name: value for name, value in values.items() if not isinstance(value, str)}
            if not changed:
                raise
            try:
                return self.model.model_validate({**given, **changed})
            except ValidationError:
                if any(_takes_text(self.schema["properties"].get(name, {})) for name in changed):
                    raise error from None  # the text itself does not fit: its pattern, its length
                raise

    def _in_words(self, tool: str, error: ValidationError) -> str:
        problems = error.errors(include_url=False, include_context=False)
        extra = [p for p in problems if p["type"] == "extra_forbidden" and len(p["loc"]) == 1]
        problem = extra[0] if extra else problems[0]
        if not problem["loc"]:
            return one_line(f"error: the arguments of {tool}: {problem['msg'].removeprefix('Value error, ')}")
        where = one_line(well_formed(".".join(map(str, problem["loc"]))), 60)
        if extra:
            known = ", ".join(f"{name} ({self._kind(name)})" for name in self.names.values())
            its = f"its arguments: {known}" if known else "it takes none"
            return one_line(f"error: {tool} has no argument {where!r}; {its}", 1000)
        if problem["type"] == "missing":
            kind = f" ({self._kind(where)})" if len(problem["loc"]) == 1 else ""
            return f"error: {tool} needs the argument {where!r}{kind}"
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        message = message.replace("Input should be", "should be", 1)
        found = "" if isinstance(problem["input"], Mapping) else f", found {_short(problem['input'])}"
        return one_line(f"error: the argument {where!r} of {tool}: {message}{found}")

    def _kind(self, name: str) -> str:
        return _kind(self.schema["properties"].get(name, {}))


def _decoded(text: str) -> Any:
    if not text.strip():
        return {}
    try:
        return msgspec.json.decode(text)
    except JSON_ERRORS:
        raise ArgumentsError("error: bad json") from None


def _json_value(text: str) -> Any:
    """Parse the text as JSON, or as `None`, which Qwen's template writes; else return the text itself."""
    if text.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[text.strip()]
    try:
        return msgspec.json.decode(text)
    except JSON_ERRORS:
        return text


_PYTHON_WORDS = {"None": None, "True": True, "False": False}


def _of_union(text: str, annotation: Any) -> Any:
    """Read a text for a parameter of several types: as None, or by the first type other than `str` that it fits."""
    members = _members(annotation)
    if len(members) < 2:
        return text
    if types.NoneType in members and text.strip() in {"null", "None"}:
        return None
    value = _json_value(text)
    written = [msgspec.json.encode(value)] if not isinstance(value, str) else []
    for member in members:
        if member in {str, types.NoneType, Any}:
            continue
        adapter = _adapter(member)
        for data in (*written, *_quoted(text)):
            try:
                return adapter.validate_json(data, strict=True)
            except (ValidationError, ValueError, TypeError):
                continue
    return text


def _members(annotation: Any) -> list[Any]:
    """The types of a union, including those inside its members."""
    origin = get_origin(annotation)
    if origin is Annotated and get_origin(get_args(annotation)[0]) in {Union, types.UnionType}:
        return _members(get_args(annotation)[0])
    if origin not in {Union, types.UnionType}:
        return [annotation]
    return [member for part in get_args(annotation) for member in _members(part)]


@functools.lru_cache(256)
def _adapter(member: Any) -> TypeAdapter[Any]:
    return TypeAdapter(member)


def _quoted(text: str) -> list[bytes]:
    try:
        return [msgspec.json.encode(text)]
    except UnicodeEncodeError:
        return []


def _takes_text(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "string" or any(map(_takes_text, schema.get("anyOf", ())))


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(map(_short, schema["enum"]))
    if "const" in schema:
        return _short(schema["const"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema["anyOf"])))
    kinds = schema.get("type", "object" if "$ref" in schema else "any")
    return " or ".join(kinds) if isinstance(kinds, list) else str(kinds)


def _short(value: Any) -> str:
    try:
        return one_line(repr(value), 40)
    except Exception:  # noqa: BLE001  (a value of the tool's own types may have a `__repr__` that raises)
        return type(value).__name__
