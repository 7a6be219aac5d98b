"""Rewrites tools for chat templates that write a schema field by field, so that they find everything in the field itself.

Such a template reads `type`, `description`, `enum`, `properties` and `items` of each field. A field of a nested model is a
`$ref`, and an `Optional` field is an `anyOf`: there it finds nothing to write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rollcast.errors import MessagesError

__all__ = [
    "shows_descriptions",
    "shows_numbers_of_enums",
    "shows_schemas_whole",
    "undescribed_fields",
    "with_described_fields",
    "with_described_values",
    "with_plain_fields",
    "without_defaults",
]

Render = Callable[[list[dict[str, Any]], Any], str]
Path = tuple[str, ...]

_MOST_SCHEMAS = (
    2000  # in one tool, after references are resolved; what goes beyond is reduced to name and type
)

_JSON_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)

_FIELD = "field8c5b32"


def with_plain_fields(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool with each field of its parameters described in the field's own place.

    References are replaced by what they refer to (a recursive one, by the name of its target), `allOf` is merged, and
    `anyOf` and `oneOf` become one description: types as a list, the fields of all objects, the values of all
    enumerations, and `nullable` for a null. `const` becomes an `enum` of one value. A plain schema stays as it is.
    """
    function = tool.get("function", tool)
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    if not isinstance(parameters, Mapping):
        return dict(tool)
    plain = {**function, "parameters": _Resolver(parameters).root()}
    return {**tool, "function": plain} if "function" in tool else plain


def without_defaults(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool without the default values of its fields, for templates that add them to text whatever their type."""
    return _changed(tool, lambda schema: {key: value for key, value in schema.items() if key != "default"})


def with_described_values(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool with the values of an enumeration in its description unless they are strings."""
    return _changed(tool, _describe_values)


def _describe_values(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    values = schema.get("enum")
    if not isinstance(values, list) or schema.get("type") == "string":
        return schema
    told = f"one of {', '.join(map(json.dumps, values))}"
    return {
        **schema,
        "description": f"{schema['description']} ({told})" if schema.get("description") else told,
    }


def with_described_fields(tool: Mapping[str, Any], hidden: Sequence[Path]) -> dict[str, Any]:
    """The tool with the JSON schema of a parameter in its description if some of its fields are among the hidden."""
    function = tool.get("function", tool)
    name, parameters = function.get("name"), function.get("parameters")
    partly = {path[1] for path in hidden if path[0] == name and len(path) > 2}
    if not partly:
        return dict(tool)
    fields = {
        field: _describe_fields(schema) if field in partly else schema
        for field, schema in parameters["properties"].items()
    }
    plain = {**function, "parameters": {**parameters, "properties": fields}}
    return {**tool, "function": plain} if "function" in tool else plain


def _describe_fields(schema: Mapping[str, Any]) -> dict[str, Any]:
    written = json.dumps(
        {key: value for key, value in schema.items() if key != "description"}, ensure_ascii=False
    )
    before = f"{schema['description']} " if schema.get("description") else ""
    return {**schema, "description": f"{before}(JSON Schema: {written})"}


def _changed(
    tool: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """The tool with each schema of its parameters changed."""

    def changed(schema: Any) -> Any:
        if not isinstance(schema, Mapping):
            return schema
        return {
            key: {name: changed(field) for name, field in value.items()}
            if key == "properties" and isinstance(value, Mapping)
            else changed(value)
            if key in ("items", "additionalProperties")
            else value
            for key, value in change(schema).items()
        }

    function = tool.get("function", tool)
    if not isinstance(function.get("parameters"), Mapping):
        return dict(tool)
    plain = {**function, "parameters": changed(function["parameters"])}
    return {**tool, "function": plain} if "function" in tool else plain


class _Resolver:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = _MOST_SCHEMAS

    def root(self) -> dict[str, Any]:
        schema = self.plain(self._root, ())
        return {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}

    def plain(self, schema: Any, inside: tuple[str, ...]) -> Any:
        """The schema with its fields described in place; `inside` are the references that led here."""
        if not isinstance(schema, Mapping):
            return schema
        self._left -= 1
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self._referred(schema, reference, inside)
        plain: dict[str, Any] = {}
        for key, value in schema.items():
            if key == "properties" and isinstance(value, Mapping):
                plain[key] = {name: self.plain(field, inside) for name, field in value.items()}
            elif key in ("items", "additionalProperties"):
                plain[key] = self.plain(value, inside)
            elif key not in ("allOf", "anyOf", "oneOf", "const", "prefixItems"):
                plain[key] = value
        if "const" in schema:
            plain["enum"] = [schema["const"]]
        every: dict[str, Any] = {}
        for each in _schemas(schema.get("allOf")):
            every = _merged(every, self.plain(each, inside))
        for key in ("anyOf", "oneOf"):
            if members := _schemas(schema.get(key)):
                every = _merged(every, _union([self.plain(each, inside) for each in members]))
        plain = _merged(every, plain)
        if "items" not in plain and (members := _schemas(schema.get("prefixItems"))):
            plain["items"] = _union([self.plain(each, inside) for each in members])
        return _typed(plain)

    def _referred(self, schema: Mapping[str, Any], reference: str, inside: tuple[str, ...]) -> Any:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        target = self._target(reference)
        if target is None:
            return dict(schema)
        if reference in inside or self._left <= 0:
            name = target.get("title") or reference.rpartition("/")[2].strip("#") or "the whole"
            again = {"type": target.get("type", "object"), "description": f"again {name}, as described above"}
            return {**again, **beside}
        found = self.plain(target, (*inside, reference))
        return _merged(found, self.plain(beside, inside)) if beside else found

    def _target(self, reference: str) -> Mapping[str, Any] | None:
        """What a reference inside of this schema names; None if it names nothing there."""
        if not reference.startswith("#"):
            return None
        found: Any = self._root
        for step in reference[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping):
                found = found.get(key)
            elif isinstance(found, Sequence) and not isinstance(found, str) and key.isdecimal():
                found = found[int(key)] if int(key) < len(found) else None
            else:
                return None
        return found if isinstance(found, Mapping) else None


def _schemas(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list | tuple) else []


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two descriptions of one value; the second wins if they differ."""
    merged = {**first, **second}
    if isinstance(first.get("properties"), Mapping) and isinstance(second.get("properties"), Mapping):
        merged["properties"] = {**first["properties"], **second["properties"]}
    if isinstance(first.get("required"), list) and isinstance(second.get("required"), list):
        merged["required"] = list(dict.fromkeys([*first["required"], *second["required"]]))
    return merged


def _union(members: list[Any]) -> dict[str, Any]:
    """One description of a value that is any of these."""
    some = [each for each in members if isinstance(each, Mapping) and each.get("type") != "null"]
    nullable = len(some) < len(members) or any(each.get("nullable") for each in some)
    union: dict[str, Any] = {}
    for each in reversed(some):
        union |= {key: value for key, value in each.items() if key != "nullable"}
    if len(some) > 1:
        types = list(dict.fromkeys(kind for each in some for kind in _types(each)))
        objects = [each for each in some if isinstance(each.get("properties"), Mapping)]
        union["type"] = "object" if objects else types[0] if len(types) == 1 else types
        descriptions = list(dict.fromkeys(each["description"] for each in some if each.get("description")))
        if objects:
            union["properties"] = _fields_of(objects)
            every = [set(each.get("required", ())) for each in some]
            union["required"] = [name for name in union["properties"] if all(name in each for each in every)]
            if others := [kind for kind in types if kind != "object"]:
                descriptions.append(f"or {' or '.join(others)}")
        if descriptions:
            union["description"] = "; ".join(descriptions)
        if all("enum" in each for each in some):
            union["enum"] = [value for each in some for value in each["enum"]]
        else:
            union.pop("enum", None)
    if nullable:
        union["nullable"] = True
    return union


def _fields_of(objects: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of all objects; one that several have may be any of theirs, as for a tag such as `kind`."""
    found: dict[str, list[Any]] = {}
    for each in objects:
        for name, field in each["properties"].items():
            if field not in found.setdefault(name, []):
                found[name].append(field)
    return {name: fields[0] if len(fields) == 1 else _union(fields) for name, fields in found.items()}


def _types(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type")
    return [kind] if isinstance(kind, str) else list(kind) if isinstance(kind, list | tuple) else []


def _typed(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the type if the values, the fields or the items tell it; `nullable` stands for null, also as a default."""
    kinds = _types(schema)
    if "null" in kinds and len(kinds) > 1:
        rest = [kind for kind in kinds if kind != "null"]
        schema |= {"type": rest[0] if len(rest) == 1 else rest, "nullable": True}
    if isinstance(schema.get("enum"), list) and None in schema["enum"] and len(schema["enum"]) > 1:
        schema |= {"enum": [value for value in schema["enum"] if value is not None], "nullable": True}
    if "type" not in schema:
        if isinstance(schema.get("enum"), list):
            kinds = list(dict.fromkeys(map(_json_type, schema["enum"])))
            schema["type"] = kinds[0] if len(kinds) == 1 else kinds
        elif "properties" in schema:
            schema["type"] = "object"
        elif "items" in schema:
            schema["type"] = "array"
    if schema.get("nullable") and schema.get("default", "") is None:
        del schema["default"]
    if schema.get("type") == "object" and "properties" not in schema:
        # Gemma's templates take other keys there for the object's fields.
        schema = {key: value for key, value in schema.items() if key not in ("default", "title")}
    return schema


def _json_type(value: Any) -> str:
    return next((name for kind, name in _JSON_TYPES if isinstance(value, kind)), "null")


# -- what a template shows ---------------------------------------------------------------------------------------------


def shows_schemas_whole(render: Render, question: dict[str, Any]) -> bool:
    """Whether the template writes what is under `$defs` and `anyOf`, as templates that write tools as JSON do."""
    item = {"type": "object", "properties": {_FIELD: {"type": "string"}}}

    def text(kind: str) -> str:
        optional = {"anyOf": [{"type": kind}, {"type": "null"}]}
        return _text_of(
            render, question, {"item": {"$ref": "#/$defs/Item"}, "count": optional}, {"Item": item}
        )

    first = text("integer")
    return _FIELD in first and first != text("boolean")


def shows_numbers_of_enums(render: Render, question: dict[str, Any]) -> bool:
    """Whether the template writes the values of an enumeration of numbers."""
    return "735182" in _text_of(render, question, {"level": {"type": "integer", "enum": [735181, 735182]}})


def shows_descriptions(render: Render, question: dict[str, Any]) -> bool:
    """Whether the template writes the description of a parameter, even of one with fields of its own."""
    fields = {"inner": {"type": "string"}}
    item = {"type": "object", "description": _FIELD, "properties": fields}
    return _FIELD in _text_of(render, question, {"item": item})


def _text_of(render: Render, question: dict[str, Any], fields: dict[str, Any], defs: Any = None) -> str:
    """What the template writes for a tool with these fields; empty if it refuses it."""
    parameters = {"type": "object", "properties": fields, "required": list(fields)[:1]}
    if defs is not None:
        parameters["$defs"] = defs
    function = {"name": "probe", "description": "Probe.", "parameters": parameters}
    try:
        return render([question], [{"type": "function", "function": function}])
    except MessagesError:
        return ""


def undescribed_fields(render: Render, question: dict[str, Any], tools: Sequence[Any]) -> list[Path]:
    """The fields of the tools' parameters that the template leaves out: the tool's name and the path to the field."""
    words: dict[str, Path] = {}
    worded = [_worded(tool, words) for tool in tools]
    try:
        text = render([question], worded).lower()
    except MessagesError:
        return []
    return [path for word, path in words.items() if word not in text]


def _worded(tool: Mapping[str, Any], words: dict[str, Path]) -> dict[str, Any]:
    """The tool with a word to look for in place of each field's name."""
    function = tool.get("function", tool)
    parameters = _worded_fields(function.get("parameters"), (str(function.get("name")),), words)
    plain = {**function, "parameters": parameters}
    return {**tool, "function": plain} if "function" in tool else plain


def _worded_fields(schema: Any, path: Path, words: dict[str, Path]) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    renamed: dict[str, str] = {}
    copied = dict(schema)
    if isinstance(fields := schema.get("properties"), Mapping):
        copied["properties"] = {}
        for name, field in fields.items():
            word = renamed[name] = f"field{len(words):05d}q"
            words[word] = (*path, name)
            copied["properties"][word] = _worded_fields(field, (*path, name), words)
    if isinstance(schema.get("required"), list):
        copied["required"] = [renamed[name] for name in schema["required"] if name in renamed]
    for key in ("items", "additionalProperties"):
        if key in schema:
            copied[key] = _worded_fields(schema[key], path, words)
    return copied
