"""The event and its bytes."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rollcast.records
from rollcast.errors import DecodeError
from rollcast.records import PAYLOADS, StreamEvent, StreamEventType, decode, encode, encode_lines, json_schema

T = StreamEventType
SPECIFIED = ("event_type", "chain_id", "timestamp", "data", "step", "depth")


def chunk(**fields):
    return StreamEvent(T.LLM_GENERATION_CHUNK, "chain_0", 1.5, {"content": "hi", "offset": 0}, **fields)


def test_the_specified_six_fields_come_first():
    """They keep their names and order, in Python and in JSON."""
    assert StreamEvent.__struct_fields__[:6] == SPECIFIED
    assert tuple(json.loads(encode(chunk())))[:6] == SPECIFIED
    assert tuple(chunk().to_dict())[:6] == SPECIFIED


def test_every_type_has_a_payload():
    """Each event type has a described payload."""
    assert set(PAYLOADS) == set(StreamEventType)


def test_an_event_survives_its_bytes():
    """Encoding and decoding give the same event."""
    event = chunk(step=1, depth=1, seq=7, run_id="r", group_id="group_0", source="w1")
    assert decode(encode(event)) == event
    assert StreamEvent.from_dict(json.loads(encode(event))) == event
    assert encode_lines([event, event]).count(b"\n") == 2


def test_the_specified_json_is_enough():
    """An event with the six specified fields alone is complete."""
    event = decode(
        '{"event_type":"llm_generation_chunk","chain_id":"uuid-123","timestamp":1234567890.123,'
        '"data":{"content":"def factorial","offset":0},"step":1,"depth":1}'
    )
    assert (event.seq, event.run_id, event.group_id, event.source) == (-1, "", None, "")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'{"event_type":"gap","chain_id":"","timestamp":1,"data":{}}',
        b'{"event_type":"reward","chain_id":"","timestamp":"x","data":{}}',
        b'{"event_type":"reward","chain_id":"c","timestamp":1,"data":{"reward":"high","metrics":{}}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_is_no_event_is_refused_in_a_sentence(line):
    """Bad bytes raise DecodeError, whatever is wrong with them."""
    with pytest.raises(DecodeError, match=r"this is not an event|the data of this"):
        decode(line)


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_decode_raises_nothing_else(line):
    """Arbitrary input is an event or a DecodeError."""
    try:
        outcome = decode(line)
    except DecodeError as error:
        outcome = error
    assert isinstance(outcome, StreamEvent | DecodeError)


def test_events_cannot_be_changed():
    """Every observer gets the same object, so it is frozen."""
    with pytest.raises(AttributeError):
        chunk().step = 3


def test_the_schema_on_file_is_the_generated_one():
    """schema/event.schema.json is what json_schema() gives; regenerate it with `python -m rollcast.records.schema`."""
    path = Path(rollcast.records.__file__).parent / "schema" / "event.schema.json"
    assert json.loads(path.read_text()) == json_schema()


def test_the_schema_accepts_events_and_refuses_others():
    """It is a valid schema, and knows a good payload from a bad one."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = msgspec.to_builtins(chunk())
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "event_type": "nonsense"})
    assert not validator.is_valid({**good, "data": {"content": 3}})
