"""Arguments that a JSON Schema describes, for a tool that is not a Python function, such as an MCP server's."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Self

from jsonschema import FormatChecker, SchemaError
from jsonschema.exceptions import ValidationError as SchemaMismatch
from jsonschema.exceptions import best_match
from jsonschema.validators import Draft202012Validator, extend, validator_for
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError, SchemaValidator
from pydantic_core import SchemaError as PydanticSchemaError
from pydantic_core import ValidationError as PydanticValidationError
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from rollcast.errors import ToolDefinitionError
from rollcast.text import one_line, well_formed
from rollcast.tools.arguments import Arguments
from rollcast.tools.context import Injected
from rollcast.tools.signature import injected_class, type_hints_of

__all__ = ["schema_arguments"]

_ANY: dict[bool, dict[str, Any]] = {
    True: {},
    False: {"not": {}},
}  # what the schemas true and false mean
_DATA = frozenset({"const", "default", "enum", "examples"})  # keywords whose values are not schemas


def schema_arguments(tool: str, parameters: Mapping[str, Any] | None, call: Callable[..., Any]) -> Arguments:
    """The arguments of a tool with a given schema; the model's arguments are checked against all of it.

    Args:
        tool: its name, for messages.
        parameters: JSON Schema of an object; None if the tool takes no arguments.
        call: gets the arguments by name, and a context in a parameter that is annotated with its class.

    Raises:
        ToolDefinitionError: it is not a JSON Schema of an object, or `call` cannot be called with what it allows.
    """
    given = _copied(tool, parameters)
    schema = _of_object(tool, given)
    try:
        validator = _validator(tool, given, schema)
    except (AttributeError, TypeError, RecursionError) as error:  # jsonschema reads it before it checks it
        raise ToolDefinitionError(
            f"the parameters of tool {tool!r} cannot be read as a JSON Schema ({type(error).__name__}: "
            f"{one_line(str(error), 120)}); correct the schema"
        ) from None
    properties: dict[str, Any] = schema["properties"]
    injected, defaults, takes = _parameters_of(tool, call, schema)
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, part in properties.items():
        field = f"p{len(fields)}"
        names[field] = name
        checked = Annotated[Any, AfterValidator(_check(validator.evolve(schema=part)))]
        settings: dict[str, Any] = {"alias": name} | ({} if name in schema["required"] else {"default": None})
        fields[field] = (checked, Field(**settings))
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    open_ended = takes is None and not closed
    model = create_model("Arguments", __base__=_base(open_ended, _check(validator), names), **fields)
    optional = frozenset(properties) - frozenset(schema["required"])
    return Arguments(schema, "", injected, model, names, optional | defaults, given)


def _copied(tool: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A private copy."""
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, Mapping):
        raise ToolDefinitionError(
            f"the parameters of tool {tool!r} are {type(parameters).__name__}; expected a JSON Schema of an object: "
            '{"type": "object", "properties": {…}}'
        )
    try:
        copied: dict[str, Any] = _without_none(json.loads(json.dumps(dict(parameters), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolDefinitionError(
            f"the parameters of tool {tool!r} are not JSON ({one_line(str(error), 120)}); expected a JSON Schema"
        ) from None
    return copied


def _without_none(part: Any) -> Any:
    """The schema without keywords whose value is None; rows of `datasets` are full of them."""
    if isinstance(part, list):
        return [_without_none(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        key: value if key in _DATA else _without_none(value)
        for key, value in part.items()
        if value is not None or key in _DATA
    }


def _of_object(tool: str, given: dict[str, Any]) -> dict[str, Any]:
    """The schema with the keys that chat templates read: type, properties, required."""
    if "type" not in given and "properties" not in given and isinstance(given.get("$ref"), str):
        given = _resolved(given)  # pydantic's schema for a recursive model
    if given.get("type", "object") != "object":
        raise ToolDefinitionError(
            f"the parameters of tool {tool!r} have the type {given['type']!r}; expected a JSON Schema of an object: "
            '{"type": "object", "properties": {…}}'
        )
    head = {
        "type": "object",
        "properties": given.get("properties", {}),
        "required": given.get("required", []),
    }
    return head | {key: value for key, value in given.items() if key not in head}


def _resolved(given: dict[str, Any]) -> dict[str, Any]:
    part: Any = given
    for step in given["$ref"].removeprefix("#/").split("/"):
        part = part.get(step) if isinstance(part, dict) else None
    if not isinstance(part, dict):
        return given
    return {key: value for key, value in given.items() if key != "$ref"} | part


def _validator(tool: str, given: dict[str, Any], schema: dict[str, Any]) -> Any:
    """A validator for the schema, by its own draft; it fetches nothing."""
    kind: Any = validator_for(given, default=Draft202012Validator)
    try:
        kind.check_schema(given, format_checker=_FORMATS)
    except SchemaError as error:
        where = ".".join(map(str, error.absolute_path)) or "the top"
        raise ToolDefinitionError(
            f"the parameters of tool {tool!r} are not a JSON Schema: at {where}: {one_line(error.message, 200)}; correct the schema"
        ) from None
    validator = extend(kind, {"pattern": _pattern})(schema, registry=Registry())
    resolver = validator._resolver  # noqa: SLF001  (there is no public way to ask whether a reference can be found)
    for reference, inner in _references(schema, resolver):
        try:
            inner.lookup(reference)
        except (Unresolvable, ValueError):
            raise ToolDefinitionError(
                f"the parameters of tool {tool!r} refer to {reference!r}, which is not in the schema; put it under $defs"
            ) from None
    return validator


def _references(part: Any, resolver: Any) -> Iterator[tuple[str, Any]]:
    """Each reference in a schema, and what resolves it: an `$id` inside changes what is referred to."""
    if isinstance(part, list):
        for each in part:
            yield from _references(each, resolver)
    elif isinstance(part, dict):
        if isinstance(part.get("$id"), str):
            resolver = resolver.in_subresource(Resource.from_contents(part, DRAFT202012))
        yield from (
            (part[word], resolver) for word in ("$ref", "$dynamicRef") if isinstance(part.get(word), str)
        )
        for key, value in part.items():
            if key not in _DATA:
                yield from _references(value, resolver)


@functools.lru_cache(maxsize=1024)
def _found_in(pattern: str) -> Callable[[str], bool]:
    """Make a function that tells whether the pattern is found in a text.

    JSON Schema's patterns are JavaScript's. Pydantic's engine takes more of them than Python's, and takes linear time
    whatever a model writes; Python's is used for what it lacks, such as look-ahead.

    Raises:
        ValueError: neither takes the pattern.
    """
    try:
        engine = SchemaValidator({"type": "str", "pattern": pattern, "regex_engine": "rust-regex"})
    except PydanticSchemaError:
        try:
            compiled = re.compile(re.sub(r"\(\?<(?=[A-Za-z])", "(?P<", pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(str(error)) from None
        return lambda text: compiled.search(text) is not None

    def found(text: str) -> bool:
        try:
            engine.validate_python(text)
        except PydanticValidationError:
            return False
        return True

    return found


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[SchemaMismatch]:  # noqa: ARG001  (jsonschema calls it so)
    if isinstance(value, str) and not _found_in(pattern)(well_formed(value)):
        yield SchemaMismatch(f"{value!r} does not match {pattern!r}")


def _is_pattern(value: object) -> bool:
    return not isinstance(value, str) or bool(_found_in(value))


_FORMATS = FormatChecker(())
_FORMATS.checks("regex", raises=ValueError)(_is_pattern)


def _check(validator: Any) -> Callable[[Any], Any]:
    """Make a function that refuses a value that the schema does not allow, in jsonschema's words."""

    def check(value: Any) -> Any:
        error = best_match(validator.iter_errors(value))
        if error is None:
            return value
        inner = ".".join(map(str, error.absolute_path))
        text = well_formed(f"at {inner}: {error.message}" if inner else error.message)
        raise PydanticCustomError("json_schema", "{text}", {"text": one_line(text, 200)})

    return check


def _base(open_ended: bool, check: Callable[[Any], Any], names: Mapping[str, str]) -> type[BaseModel]:
    """The base of the model: it checks the whole object after its parts, for rules about several of them."""

    class Whole(BaseModel):
        model_config = ConfigDict(extra="allow" if open_ended else "forbid")

        @model_validator(mode="after")
        def whole(self) -> Self:
            values = {names[field]: getattr(self, field) for field in self.model_fields_set if field in names}
            check(values | (self.model_extra or {}))
            return self

    return Whole


def _parameters_of(
    tool: str, call: Callable[..., Any], schema: dict[str, Any]
) -> tuple[dict[str, type[Injected]], frozenset[str], frozenset[str] | None]:
    """The parameters that the rollout fills in, those with a default, and the names that `call` takes; None if it takes any.

    Raises:
        ToolDefinitionError: it takes fewer names than the schema has, or needs more than the schema requires.
    """
    if isinstance(call, type) or not callable(call):
        raise ToolDefinitionError(
            f"the call of tool {tool!r} is {call!r}; expected a function that takes the arguments by name"
        )
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return {}, frozenset(), None
    hints = type_hints_of(call, tool)
    kinds = {p.name: injected_class(hints.get(p.name)) for p in parameters}
    injected = {name: kind for name, kind in kinds.items() if kind is not None}
    defaults = frozenset(p.name for p in parameters if p.name in injected and p.default is not p.empty)
    by_name = [
        p
        for p in parameters
        if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY} and p.name not in injected
    ]
    needed = {p.name for p in by_name if p.default is p.empty}
    needed |= {p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty}
    if missing := sorted(needed.difference(schema["required"])):
        raise ToolDefinitionError(
            f"the call of tool {tool!r} needs {missing[0]!r}, which its schema does not require; require it there, or "
            "give the parameter a default"
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return injected, defaults, None
    names = frozenset(p.name for p in by_name)
    if unknown := sorted(set(schema["properties"]) - names):
        raise ToolDefinitionError(
            f"the call of tool {tool!r} does not take {unknown[0]!r}, which its schema has; let it take that, or **arguments"
        )
    return injected, defaults, names
