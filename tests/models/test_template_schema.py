"""Schemas for templates that write them field by field."""

import enum
import json
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field

from rollcast.models.template_schema import with_described_values, with_plain_fields, without_defaults
from rollcast.tools import tool as make_tool


def plain(parameters):
    given = json.dumps(parameters)
    made = with_plain_fields({"type": "function", "function": {"name": "f", "parameters": parameters}})
    assert json.dumps(parameters) == given, "it is a copy"
    return made["function"]["parameters"]


def field(schema, **defs):
    """What becomes of one field."""
    (made,) = plain({"type": "object", "properties": {"x": schema}, "$defs": defs})["properties"].values()
    return made


NULL, TEXT, NUMBER = {"type": "null"}, {"type": "string"}, {"type": "integer"}
ITEM = {"type": "object", "properties": {"name": TEXT}, "required": ["name"]}


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        (TEXT, TEXT),
        ({"type": "array", "items": TEXT, "default": []}, {"type": "array", "items": TEXT, "default": []}),
        ({"anyOf": [NUMBER, NULL], "default": None}, {"type": "integer", "nullable": True}),
        ({"anyOf": [NULL, NUMBER], "default": 3}, {"type": "integer", "nullable": True, "default": 3}),
        ({"oneOf": [NUMBER, TEXT]}, {"type": ["integer", "string"]}),
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        ({"const": "a"}, {"enum": ["a"], "type": "string"}),
        ({"enum": [1, 2]}, {"enum": [1, 2], "type": "integer"}),
        ({"enum": ["a", None]}, {"enum": ["a"], "type": "string", "nullable": True}),
        ({"anyOf": [{"const": "a"}, {"const": "b"}]}, {"enum": ["a", "b"], "type": "string"}),
        ({"anyOf": [{"const": "a"}, NUMBER]}, {"type": ["string", "integer"]}),
        ({"anyOf": [{**TEXT, "description": "A."}, {**TEXT, "description": "B."}]}, {**TEXT, "description": "A.; B."}),
        ({"allOf": [ITEM, {"properties": {"age": NUMBER}, "required": ["age"]}]},
         {"type": "object", "properties": {"name": TEXT, "age": NUMBER}, "required": ["name", "age"]}),
        ({"type": "array", "prefixItems": [NUMBER, TEXT]}, {"type": "array", "items": {"type": ["integer", "string"]}}),
        ({"$ref": "#/$defs/Item"}, ITEM),
        ({"$ref": "#/$defs/Item", "description": "One."}, {**ITEM, "description": "One."}),
        ({"anyOf": [{"$ref": "#/$defs/Item"}, NULL]}, {**ITEM, "nullable": True}),
        ({"type": "array", "items": {"$ref": "#/$defs/Item"}}, {"type": "array", "items": ITEM}),
        ({"type": "object", "additionalProperties": {"$ref": "#/$defs/Item"}, "default": {}},
         {"type": "object", "additionalProperties": ITEM}),
        ({"$ref": "#/$defs/Nested/properties/inner"}, NUMBER),
        ({"$ref": "#/$defs/a~1b"}, NUMBER),
        ({"$ref": "https://example.org/schema.json"}, {"$ref": "https://example.org/schema.json"}),
        ({"$ref": "#/$defs/Nothing"}, {"$ref": "#/$defs/Nothing"}),
        (True, True),
        ({}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_a_field_is_described_where_it_stands(schema, made):
    """A plain one stays as it is."""
    defs = {"Item": ITEM, "Nested": {"properties": {"inner": NUMBER}}, "a/b": NUMBER}
    assert field(schema, **defs) == made


def test_objects_of_a_union_are_told_as_one_with_all_fields():
    """What only some require is not required, and a field that tells them apart has the values of all."""
    other = {
        "type": "object",
        "properties": {"kind": {"const": "b"}, "size": NUMBER},
        "required": ["kind", "size"],
    }
    one = {"type": "object", "properties": {"kind": {"const": "a"}, "name": TEXT}, "required": ["kind"]}
    assert field({"anyOf": [one, other, TEXT, NULL], "description": "It."}) == {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"], "type": "string"}, "name": TEXT, "size": NUMBER},
        "required": [],
        "description": "It.",
        "nullable": True,
    }
    assert field({"oneOf": [one, other]})["required"] == ["kind"]
    assert field({"oneOf": [one, TEXT]})["description"] == "or string"


def test_a_schema_inside_of_itself_ends():
    """Through one name, two, or the whole; the second time it says what it is again."""
    tree = {
        "type": "object",
        "title": "Tree",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
    }
    made = field({"$ref": "#/$defs/Tree"}, Tree=tree)
    again = {"type": "object", "description": "again Tree, as described above"}
    assert made["properties"]["kids"]["items"] == again
    ping, pong = (
        {"properties": {"to": {"$ref": "#/$defs/Pong"}}},
        {"properties": {"to": {"$ref": "#/$defs/Ping"}}},
    )
    assert "again Ping" in json.dumps(field({"$ref": "#/$defs/Ping"}, Ping=ping, Pong=pong))
    assert "again the whole" in json.dumps(plain({"type": "object", "properties": {"me": {"$ref": "#"}}}))
    alone = {"$ref": "#/$defs/Alone"}
    assert "again Alone" in json.dumps(field(alone, Alone=alone))


def test_a_schema_that_would_unfold_without_end_is_cut():
    """Thirty models with two of the next each are a thousand million fields."""
    defs = {
        f"M{i}": {"type": "object", "properties": {x: {"$ref": f"#/$defs/M{i + 1}"} for x in "ab"}}
        for i in range(30)
    }
    made = json.dumps(field({"$ref": "#/$defs/M0"}, **defs, M30=TEXT))
    assert "as described above" in made
    assert len(made) < 1_000_000


class Shade(enum.Enum):
    dark = "dark"
    light = "light"


class Cat(BaseModel):
    kind: Literal["cat"]
    shade: Optional[Shade] = None  # noqa: UP045  (as people write it)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str] = []


@make_tool
def adopt(
    pet: Annotated[Cat | Dog, Field(discriminator="kind")],
    at: Optional[Cat] = None,  # noqa: UP045  (as people write it)
    what: Any = None,
) -> str:
    """Adopt a pet."""


def test_what_pydantic_makes_of_models_has_no_references_left():
    """Unions with a discriminator, enumerations, Optional and Any."""
    made = with_plain_fields(adopt.schema)["function"]["parameters"]
    fields = json.dumps(
        {name: {**field, "discriminator": None} for name, field in made["properties"].items()}
    )
    assert not any(word in fields for word in ("$ref", "anyOf", "oneOf", "const"))
    assert made["properties"]["pet"]["properties"]["kind"]["enum"] == ["cat", "dog"]
    shade = made["properties"]["at"]["properties"]["shade"]
    assert (shade["enum"], shade["type"], shade["nullable"]) == (["dark", "light"], "string", True)
    assert "$defs" not in made


@pytest.mark.parametrize(
    "given", [{}, {"parameters": None}, {"parameters": {}}, {"parameters": {"type": "object"}}]
)
def test_a_tool_without_parameters_stays_as_it_is(given):
    """In the API's form and in the flat one."""
    for tool in ({"type": "function", "function": {"name": "f", **given}}, {"name": "f", **given}):
        for change in (with_plain_fields, without_defaults, with_described_values):
            assert change(tool) == tool


def test_values_that_are_no_strings_are_told_in_the_description():
    """Gemma 4's template writes the values of strings alone. A default that is told in text is left out at any depth."""
    inner = {"type": "array", "items": {"type": "integer", "enum": [1, 2], "description": "How."}}
    given = {
        "name": "f",
        "parameters": {"properties": {"default": {"enum": [True], "default": True}, "x": inner}},
    }
    told = with_described_values(given)["parameters"]["properties"]
    assert told["default"]["description"] == "one of true"
    assert told["x"]["items"]["description"] == "How. (one of 1, 2)"
    assert without_defaults(given)["parameters"]["properties"]["default"] == {"enum": [True]}
