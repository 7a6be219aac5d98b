"""A function's parameters as a JSON Schema for the model, and the model's arguments as checked Python values."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import griffe
import msgspec
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from rollcast.errors import InputError, ToolDefinitionError
from rollcast.tools.context import Injected
from rollcast.tools.observation import one_line, safe_text

__all__ = ["Arguments", "ArgumentsError", "arguments_of"]


class ArgumentsError(Exception):
    """The model's arguments do not fit; the message says so in one line for the model."""


class _Schema(GenerateJsonSchema):
    """Without titles, which repeat the names; a default that JSON cannot hold is left out without a warning."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  (pydantic's own form)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@dataclass(frozen=True)
class Arguments:
    """The parameters of one function.

    Attributes:
        schema: JSON Schema of an object with one property per parameter.
        summary: the text of the docstring before its sections.
        injected: parameters that the rollout fills, with their classes.
        model: validates; its fields are `p0 …` with the parameters' names as aliases, so that any name will do.
        names: parameter by field.
        optional: parameters that have a default, which the function itself fills in.
    """

    schema: dict[str, Any]
    summary: str
    injected: Mapping[str, type[Injected]]
    model: type[BaseModel]
    names: Mapping[str, str]
    optional: frozenset[str]

    def bind(self, tool: str, given: Mapping[str, Any] | str, context: Injected | None) -> dict[str, Any]:
        """Keyword arguments for the function.

        Args:
            tool: its name, for messages.
            given: what the model wrote: an object, its JSON, or the bare value of the only argument.
            context: fills the injected parameters.

        Raises:
            ArgumentsError: the model's arguments are wrong.
            InputError: the context is not of the class that the function asks for.
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
        """What the text says: JSON; or the bare value of the only argument, since some formats have no names."""
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
        """The one parameter that has to be given, or the one that there is."""
        required = self.schema["required"] or list(self.schema["properties"])
        return required[0] if len(required) == 1 else None

    def _checked(self, given: Mapping[str, Any]) -> BaseModel:
        """Texts are read by their parameters' types: formats without types write every value as text.

        One that a parameter does not take as it is, is read as JSON; of a union, by its first member other than `str`.
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
            return self.model.model_validate({**given, **changed})

    def _in_words(self, tool: str, error: ValidationError) -> str:
        problems = error.errors(include_url=False, include_context=False)
        extra = [p for p in problems if p["type"] == "extra_forbidden" and len(p["loc"]) == 1]
        problem = extra[0] if extra else problems[0]
        where = one_line(safe_text(".".join(map(str, problem["loc"]))), 60)
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
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise ArgumentsError("error: bad json") from None


def _json_value(text: str) -> Any:
    """What the text says in JSON, `None` too, which Qwen's template writes; the text itself where it is no JSON."""
    if text.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[text.strip()]
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text


_PYTHON_WORDS = {"None": None, "True": True, "False": False}


def _of_union(text: str, annotation: Any) -> Any:
    """A text for a parameter of several types: None if it says so, else by the first type but `str` that it fits."""
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
    """The types of a union, those inside of its members too."""
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
    return str(schema.get("type", "object" if "$ref" in schema else "any"))


def _short(value: Any) -> str:
    try:
        return one_line(repr(value), 40)
    except Exception:  # noqa: BLE001  (a value of the tool's own types may have a `__repr__` that raises)
        return type(value).__name__


def arguments_of(function: Callable[..., Any], tool: str) -> Arguments:
    """The parameters of the function that becomes this tool.

    Raises:
        ToolDefinitionError: one of them cannot be described to a model.
    """
    parameters = _parameters(function, tool)
    hints = _hints(function, tool)
    summary, texts = _docstring(function)
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    injected: dict[str, type[Injected]] = {}
    for parameter in parameters:
        name = parameter.name
        if name not in hints:
            raise ToolDefinitionError(_untyped(tool, name))
        kind = _injected(hints[name])
        if kind is not None:
            injected[name] = kind
            continue
        field = f"p{len(fields)}"
        names[field] = name
        fields[field] = (hints[name], _field(parameter, hints[name], texts.get(name)))
    model, schema = _model(fields, names, tool)
    optional = frozenset(
        p.name for p in parameters if p.default is not p.empty and not isinstance(p.default, FieldInfo)
    )
    return Arguments(schema, summary, injected, model, names, optional)


def _parameters(function: Callable[..., Any], tool: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ToolDefinitionError(
            f"tool {tool!r} has no signature that can be read; wrap it in a function with typed parameters"
        ) from None
    for p in parameters:
        if p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD}:
            stars = "*" if p.kind is p.VAR_POSITIONAL else "**"
            raise ToolDefinitionError(
                f"tool {tool!r} takes {stars}{p.name}, which cannot be described to a model; name each parameter"
            )
        if p.kind is p.POSITIONAL_ONLY:
            raise ToolDefinitionError(
                f"tool {tool!r} has the positional-only parameter {p.name!r}; a model gives arguments by name, so "
                "let it be given by name"
            )
    return parameters


def _hints(function: Callable[..., Any], tool: str) -> dict[str, Any]:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    if not (inspect.isroutine(function) or hasattr(function, "__wrapped__")):
        function = type(function).__call__
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ToolDefinitionError(
            f"the types of tool {tool!r} cannot be resolved: {error}; import them at the top of its module"
        ) from None


def _untyped(tool: str, name: str) -> str:
    if name in {"self", "cls"}:
        return (
            f"tool {tool!r} is a method without its object (it has the parameter {name!r}); make a tool of the "
            "bound method: tool(thing.method)"
        )
    return f"tool {tool!r} has the parameter {name!r} without a type; annotate it, as in {name}: str"


def _injected(annotation: Any) -> type[Injected] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Injected) else None
    origin = get_origin(annotation)
    inner = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    if origin not in {Annotated, Union, types.UnionType}:
        return None
    return next((kind for kind in map(_injected, inner) if kind is not None), None)


def _field(parameter: inspect.Parameter, annotation: Any, text: str | None) -> FieldInfo:
    """The parameter's alias and default, and its description where `Annotated` has none."""
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    described = any(isinstance(e, FieldInfo) and e.description for e in extras)
    own = next((e for e in extras if isinstance(e, str)), None)
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
    fields: dict[str, Any], names: Mapping[str, str], tool: str
) -> tuple[type[BaseModel], dict[str, Any]]:
    try:
        model = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)
        schema = model.model_json_schema(schema_generator=_Schema)
    except (PydanticUserError, TypeError, NameError) as error:
        raise ToolDefinitionError(_indescribable(fields, names, tool, error)) from None
    head = {
        "type": "object",
        "properties": schema.get("properties", {}),
        "required": schema.get("required", []),
    }
    return model, head | {key: value for key, value in schema.items() if key not in {*head, "title"}}


def _indescribable(fields: dict[str, Any], names: Mapping[str, str], tool: str, error: Exception) -> str:
    for field, (annotation, _) in fields.items():
        try:
            TypeAdapter(annotation).json_schema(schema_generator=_Schema)
        except (PydanticUserError, TypeError, NameError) as cause:
            kind = getattr(annotation, "__name__", str(annotation))
            return (
                f"tool {tool!r} has the parameter {names[field]!r} of type {kind}, which has no JSON Schema "
                f"({one_line(str(cause), 120)}); use types that JSON has, or a pydantic model"
            )
    return f"the parameters of tool {tool!r} cannot be described: {one_line(str(error), 200)}; use types that JSON has"


_QUIET: Any = {style: {"warnings": False} for style in ("google", "numpy", "sphinx")}


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text before the sections, and the text of each parameter; Google's, NumPy's or Sphinx's style."""
    text = inspect.getdoc(function)
    if not text or not (inspect.isroutine(function) or hasattr(function, "__wrapped__")):
        return "", {}
    sections = griffe.Docstring(text, lineno=1).parse("auto", default="google", per_style_options=_QUIET)
    summary = next((str(s.value).strip() for s in sections if s.kind is griffe.DocstringSectionKind.text), "")
    texts = {
        parameter.name: " ".join(parameter.description.split())
        for section in sections
        if section.kind is griffe.DocstringSectionKind.parameters
        for parameter in section.value
    }
    return summary, texts
