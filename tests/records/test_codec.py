"""JSON of events as bytes: one line for every reader of lines."""

import io
import json

import pytest

from rollcast.records import StreamEvent, StreamEventType, decode
from rollcast.records.codec import encode, encode_described, encode_lines, one_line_json
from rollcast.serve.protocol import Cancel, Done, ErrorFrame, batch_frame, encode_frame

ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def event(text):
    told = {"error": text, "error_type": text, "where": text, text: [text]}
    return StreamEvent(StreamEventType.ERROR, text, 1.0, told, run_id=text, group_id=text, source=text)


@pytest.mark.parametrize(
    "text", [*ENDS, f"é{ENDS}😀", "\\u2028\u2028", "\\\u2028", '"\u2029"', "âÂ\u00c2\u00a8"]
)
def test_an_event_is_one_line_whoever_counts_them(text):
    """Python's splitlines, an io reader, and JavaScript, which took U+2028 for the end of a line; it means the same."""
    line = encode(event(text))
    assert decode(line) == event(text)
    assert json.loads(line)["chain_id"] == text
    assert len(line.decode().splitlines()) == 1
    assert len(encode_described(event(text)).decode().splitlines()) == 1
    lines = encode_lines([event(text), event("b")])
    assert [decode(each) for each in lines.decode().splitlines()] == [event(text), event("b")]
    assert len(io.StringIO(lines.decode(), newline=None).readlines()) == 2


def test_what_needs_no_escape_stays_as_it_is():
    """Other characters beyond ASCII are not touched, nor copied."""
    for data in (b'{"a":1}', '{"é":"😀€\u2027\u202a\u0086"}'.encode()):
        assert one_line_json(data) is data or one_line_json(data) == data


@pytest.mark.parametrize("end", ENDS)
def test_a_frame_is_one_line_too(end):
    """What a server repeats of a client's words included."""
    for frame in (ErrorFrame(404, end, end), Done(end, end, end), Cancel(end, end, end)):
        assert len(encode_frame(frame).decode().splitlines()) == 1
    batch = batch_frame(end, "h.1", encode(event(end)))
    assert len(batch.decode().splitlines()) == 1
    assert json.loads(batch)["id"] == end


def test_a_log_has_a_line_for_each_event(tmp_path):
    """As `JSONStreamObserver` writes it, and as any reader of lines reads it."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(encode_lines([event(f"a{ENDS}b")] * 3))
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3
