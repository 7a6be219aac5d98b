"""Turns a function's parameters into a JSON Schema for the model."""

from __future__ import annotations

import functools
import inspect
import logging
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired, Required, Union, Unpack, get_args, get_origin, get_type_hints

import typing_extensions
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from rollcast.errors import ToolDefinitionError
from rollcast.text import one_line
from rollcast.tools.arguments import Arguments
from rollcast.tools.context import Injected
from rollcast.tools.docstring import Docstring, read_docstring
from rollcast.tools.fields import ToolSchema, annotated_text

__all__ = ["arguments_of", "injected_class", "type_hints_of"]

logger = logging.getLogger("rollcast.tools")


def arguments_of(function: Callable[..., Any], tool: str) -> Arguments:
    """The parameters of the function that becomes this tool.

    Raises:
        ToolDefinitionError: one of them cannot be described to a model.
    """
    parameters, hints = _unpacked(_parameters(function, tool), type_hints_of(function, tool))
    said = _docstring(function, parameters, tool)
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    injected: dict[str, type[Injected]] = {}
    extra: tuple[str, Any] | None = None
    for parameter in parameters:
        name = parameter.name
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = name, hints.get(name, Any)
            continue
        if name not in hints:
            raise ToolDefinitionError(_untyped(tool, name))
        kind = injected_class(hints[name])
        if kind is not None:
            injected[name] = kind
            continue
        field = f"p{len(fields)}"
        names[field] = name
        fields[field] = (hints[name], _field(parameter, hints[name], said.texts.get(name)))
    model, schema = _model(fields, names, tool, extra)
    if extra is not None:
        _describe_extra(schema, extra[0], said, _all_parameters(function))
    optional = frozenset(
        p.name for p in parameters if p.default is not p.empty and not isinstance(p.default, FieldInfo)
    )
    return Arguments(schema, said.description, injected, model, names, optional)


def _parameters(function: Callable[..., Any], tool: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ToolDefinitionError(
            f"tool {tool!r} has no signature that can be read; wrap it in a function with typed parameters"
        ) from None
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            raise ToolDefinitionError(
                f"tool {tool!r} takes *{p.name}, which cannot be described to a model; take a list instead, as in "
                f"{p.name}: list[str]"
            )
        if p.kind is p.POSITIONAL_ONLY:
            raise ToolDefinitionError(
                f"tool {tool!r} has the positional-only parameter {p.name!r}; a model gives arguments by name, so "
                "let it be given by name"
            )
    return parameters


def type_hints_of(function: Callable[..., Any], tool: str) -> dict[str, Any]:
    """The annotations of the function, of what a partial calls, or of an object's `__call__`.

    Raises:
        ToolDefinitionError: one of them names something that cannot be found.
    """
    function = _without_partial(function)
    if not (inspect.isroutine(function) or hasattr(function, "__wrapped__")):
        function = type(function).__call__
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ToolDefinitionError(
            f"the types of tool {tool!r} cannot be resolved: {error}; import them at the top of its module"
        ) from None


def _without_partial(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _unpacked(
    parameters: list[inspect.Parameter], hints: dict[str, Any]
) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """The parameters and their types; `**options: Unpack[Options]` gives a parameter for each key of the TypedDict."""
    last = parameters[-1] if parameters else None
    if last is None or last.kind is not last.VAR_KEYWORD or get_origin(hints.get(last.name)) not in _UNPACK:
        return parameters, hints
    (kind,) = get_args(hints[last.name])
    keys = {
        name: get_args(hint)[0] if get_origin(hint) in {Required, NotRequired} else hint
        for name, hint in get_type_hints(kind, include_extras=True).items()
    }
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=last.empty if required else _ABSENT)
        for name in keys
        for required in [name in kind.__required_keys__]
    ]
    return [*parameters[:-1], *more], {**hints, **keys}


_UNPACK = (Unpack, typing_extensions.Unpack)  # they are not the same in Python 3.11
_ABSENT = object()  # the default of a key that need not be given


def _untyped(tool: str, name: str) -> str:
    if name in {"self", "cls"}:
        return (
            f"tool {tool!r} is a method without its object (it has the parameter {name!r}); make a tool of the "
            "bound method: tool(thing.method)"
        )
    return f"tool {tool!r} has the parameter {name!r} without a type; annotate it, as in {name}: str"


def injected_class(annotation: Any) -> type[Injected] | None:
    """The class that the rollout fills in, if the annotation names one."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Injected) else None
    origin = get_origin(annotation)
    inner = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    if origin not in {Annotated, Union, types.UnionType}:
        return None
    return next((kind for kind in map(injected_class, inner) if kind is not None), None)


def _field(parameter: inspect.Parameter, annotation: Any, text: str | None) -> FieldInfo:
    """The field with the parameter's alias and default, and its description if `Annotated` has none."""
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    described = any(isinstance(e, FieldInfo) and e.description for e in extras)
    own = annotated_text(annotation)
    settings: dict[str, Any] = {"alias": parameter.name}
    if not described and (own or text):
        settings["description"] = own or text
    if isinstance(parameter.default, FieldInfo):
        return FieldInfo.merge_field_infos(Field(**settings), parameter.default, alias=parameter.name)
    if parameter.default is not parameter.empty:
        settings["default"] = parameter.default
    field: FieldInfo = Field(**settings)
    return field


def _model(
    fields: dict[str, Any], names: Mapping[str, str], tool: str, extra: tuple[str, Any] | None
) -> tuple[type[BaseModel], dict[str, Any]]:
    """The validating model and its schema; `extra` is the name and the type of `**kwargs`, None if there are none."""
    try:
        if extra is None:
            model = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)
        else:
            model = create_model("Arguments", __base__=_with_extra(extra[1]), **fields)
        schema = model.model_json_schema(schema_generator=ToolSchema)
    except (PydanticUserError, TypeError, NameError) as error:
        raise ToolDefinitionError(_indescribable(fields, names, tool, error)) from None
    head = {
        "type": "object",
        "properties": schema.get("properties", {}),
        "required": schema.get("required", []),
    }
    return model, head | {key: value for key, value in schema.items() if key not in {*head, "title"}}


def _describe_extra(schema: dict[str, Any], name: str, said: Docstring, bound: set[str]) -> None:
    """Add to the schema the docstring's text about `**kwargs`, and about the names that may be given in it."""
    texts = {each: text for each, text in said.unknown.items() if text and each not in bound}
    schema["properties"] |= {each: {"description": text} for each, text in texts.items()}
    if text := said.texts.get(name):
        extra = schema["additionalProperties"]
        schema["additionalProperties"] = {"description": text} | (extra if isinstance(extra, dict) else {})


def _with_extra(kind: Any) -> type[BaseModel]:
    """The base of a model that takes any further fields, of one type."""
    body = {
        "__annotations__": {"__pydantic_extra__": dict[str, kind]},
        "__module__": __name__,
        "model_config": ConfigDict(extra="allow"),
    }
    return type("Extra", (BaseModel,), body)


def _indescribable(fields: dict[str, Any], names: Mapping[str, str], tool: str, error: Exception) -> str:
    for field, (annotation, _) in fields.items():
        try:
            TypeAdapter(annotation).json_schema(schema_generator=ToolSchema)
        except (PydanticUserError, TypeError, NameError) as cause:
            kind = getattr(annotation, "__name__", str(annotation))
            return (
                f"tool {tool!r} has the parameter {names[field]!r} of type {kind}, which has no JSON Schema "
                f"({one_line(str(cause), 120)}); use types that JSON has, or a pydantic model"
            )
    return f"the parameters of tool {tool!r} cannot be described: {one_line(str(error), 200)}; use types that JSON has"


def _docstring(function: Callable[..., Any], parameters: list[inspect.Parameter], tool: str) -> Docstring:
    """Read the function's docstring, or those of an object's class and of its `__call__`."""
    names = [p.name for p in parameters]
    function = _without_partial(function)
    if inspect.isroutine(function) or hasattr(function, "__wrapped__"):
        said = read_docstring(inspect.getdoc(function), names)
    else:
        own = read_docstring(type(function).__call__.__doc__, names)
        of_class = read_docstring(vars(type(function)).get("__doc__"), names)
        said = Docstring(own.description or of_class.description, of_class.texts | own.texts, own.unknown)
    unknown = said.unknown.keys() - _all_parameters(function)
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        logger.warning(
            "tool %r: its docstring describes %s, but it has no such parameter; the model does not see it",
            tool,
            ", ".join(map(repr, sorted(unknown))),
        )
    return said


def _all_parameters(function: Callable[..., Any]) -> set[str]:
    """Names that a docstring may describe, including those that a partial has bound, and `self`."""
    function = _without_partial(function)
    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    taken = set() if code is None else set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    return taken | {"self", "cls"}
