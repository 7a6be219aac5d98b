"""Finds the descriptions of parameters, and of the fields of models, dataclasses and TypedDicts that they take."""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from rollcast.tools.docstring import read_docstring

__all__ = ["ToolSchema", "annotated_text"]


def annotated_text(annotation: Any) -> str | None:
    """The text in `Annotated[str, "text"]` or `Annotated[str, Doc("text")]`, also inside an Optional."""
    origin = get_origin(annotation)
    if origin in {Union, types.UnionType}:
        return next((text for text in map(annotated_text, get_args(annotation)) if text), None)
    if origin is not Annotated:
        inner = get_args(annotation) if getattr(origin, "__name__", "") in {"Required", "NotRequired"} else ()
        return annotated_text(inner[0]) if inner else None
    for extra in get_args(annotation)[1:]:
        text = extra if isinstance(extra, str) else getattr(extra, "documentation", None)
        if isinstance(text, str):
            return text
    return annotated_text(get_args(annotation)[0])


class ToolSchema(GenerateJsonSchema):
    """Leaves out titles, which repeat the names, and defaults that JSON cannot hold, without a warning.

    Fields get the descriptions in `Annotated` or in the sections of their class's docstring, and those sections are left
    out of the class's own description.
    """

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  (pydantic's own form)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        """With what the class says of its fields."""
        return _described(super().model_schema(schema), schema.get("cls"))

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        """With what the class says of its fields."""
        return _described(super().dataclass_schema(schema), schema.get("cls"))

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        """With what the class says of its fields."""
        return _described(super().typed_dict_schema(schema), schema.get("cls"))


def _described(shown: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The JSON Schema of a class, with the class's descriptions of its fields."""
    properties = shown.get("properties")
    if not isinstance(kind, type) or not properties:
        return shown
    names = {_alias(kind, name): name for name in _field_names(kind)}
    own = vars(kind).get("__doc__")
    if own and shown.get("description") == inspect.cleandoc(own):
        description = read_docstring(own, names.values()).description
        shown = {key: value for key, value in shown.items() if key != "description"}
        shown |= {"description": description} if description else {}
    texts: dict[str, str] | None = None
    for key, value in properties.items():
        if isinstance(value, dict) and "description" not in value:
            texts = _texts(kind, frozenset(names.values())) if texts is None else texts
            text = texts.get(names.get(key, key))
            if text:
                value["description"] = text
    return shown


def _field_names(kind: type) -> list[str]:
    names = [name for base in reversed(kind.__mro__) for name in vars(base).get("__annotations__", {})]
    return names + list(getattr(kind, "__annotations__", {}))


def _alias(kind: type, name: str) -> str:
    info = kind.model_fields.get(name) if issubclass(kind, BaseModel) else None
    alias = None if info is None else info.validation_alias or info.alias
    return alias if isinstance(alias, str) else name


def _texts(kind: type, names: frozenset[str]) -> dict[str, str]:
    """The descriptions of each field in the class and its bases; the class's own come first."""
    texts: dict[str, str] = {}
    bases = [
        *getattr(kind, "__orig_bases__", ()),
        *kind.__mro__[1:],
    ]  # a TypedDict's bases are not in its MRO
    for each in dict.fromkeys([kind, *bases]):
        if not isinstance(each, type) or each in {object, dict, BaseModel}:
            continue
        texts = read_docstring(vars(each).get("__doc__"), names).texts | texts
    try:
        hints = get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):  # pydantic resolved them in its own way
        hints = {}
    return texts | {name: text for name, hint in hints.items() if (text := annotated_text(hint))}
