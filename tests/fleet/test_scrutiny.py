"""The quick way of a token through a hub's checks: it takes and refuses what the usual way does."""

import msgspec
import pytest

from fleet.by_hand import GENERATION, chain, chunk, end, event, start
from fleet.test_intake import Play
from rollcast.fleet.scrutiny import Scrutiny
from rollcast.records.codec import encode
from rollcast.serve.protocol import Publish
from rollcast.stream.waiting import EncodableChunk, chunk_of_line, event_of

FIELDS = {
    "chain_id": ["a", "b", "", "c", 5],
    "source": ["w", "v", ""],
    "run_id": ["r", "s", ""],
    "seq": [-1, 1 << 53, (1 << 53) + 1, 1 << 70, None, "3"],
    "timestamp": [5, None, "now"],
    "step": [2, None, "1", 1.0],
    "group_id": ["g" * 300, None, 3],
    "further": [1, [[]]],
    "event_type": ["llm_generation_end", "from_the_future"],
}
DATA = {
    "content": ["", "x", "\n\u2028\x00", 'a "quote"', 3, None],
    "offset": [0, 1, 7, -1, None, "0", 1 << 70],
    "token_ids": [[1], [], [1, 2], None, ["1"], [1 << 70], 5],
    "logprobs": [[-0.5], [], [-0.5, 1], None, [None]],
    "from_seq": [0, 3],
    "reasoning": ["why"],
    "further": [{"deep": [1]}],
}


OPENING = [
    start(0),
    chain(1, "a"),
    event("llm_generation_start", 2, "a", step=1, **GENERATION),
    chain(3, "b"),
    event("llm_generation_start", 4, "b", step=1, **GENERATION),
]
ODD = {
    "a space": lambda line: line.replace(b"{", b"{ ", 1),
    "two types": lambda line: line[:-1] + b',"event_type":"error"}',
    "two numbers": lambda line: line.replace(b'"step":1', b'"step":1,"seq":2'),
    "cut": lambda line: line[:-3] + b"}",
    "no UTF-8": lambda line: line.replace(b"llo", b"\xff"),
    "half a character": lambda line: line.replace(b"llo", b"\\ud800"),
    "an escape": lambda line: line.replace(b"llo", b"\\u006c\\/"),
}


def with_odd_one(where, field, value):
    """The lines of one `publish`: chunks of two chains, of which one has something else in it."""
    chunks = [
        chunk(5, "a", "he", 0, step=1, token_ids=[7], logprobs=[-0.5]),
        chunk(6, "b", "é", 0, step=1),
        chunk(7, "a", "llo", 2, step=1),
        chunk(8, "a", "!", 5, step=1),
        chunk(9, "b", "", 1, step=1),
        end(10),
    ]
    odd = chunks[2]
    if where == "data":
        odd = odd["data"]
    if where in ("data", "event"):
        odd[field] = value
    lines = [msgspec.json.encode(each) for each in [*OPENING, *chunks]]
    if where == "line":
        lines[7] = value(lines[7])
    return lines


CASES = [
    *(("event", field, value) for field, values in FIELDS.items() for value in values),
    *(("data", field, value) for field, values in DATA.items() for value in values),
    *(("line", name, change) for name, change in ODD.items()),
    ("none", "", None),
]


def outcome(given_lines, *, recorded, quick):
    """What becomes of the lines: what is relayed, as JSON, what is refused, and how the producer stands."""
    with pytest.MonkeyPatch.context() as patch:
        if not quick:
            patch.setattr(Scrutiny, "take_usual", lambda _self, _lines, at, _into: at)
        play = Play(recorded=recorded, acked={("w", "e1"): 0} if recorded else None)
        link, _ = play.connect()
        relayed, refused = [], []
        for first in range(0, len(given_lines), 50):
            taken = play.intake.take(link, _publish(first + 1, given_lines[first : first + 50]))
            relayed += [
                (msgspec.json.decode(encode(event_of(each))) | {"timestamp": 0}, line)
                for each, line in taken.events
            ]
            refused += taken.refused
        row = play.row()
        quickly = sum(isinstance(each, EncodableChunk) for each, _ in taken.events)
    return [
        relayed,
        refused,
        {n: row[n] for n in ("events", "duplicates", "refused", "open_runs", "open_chains")},
    ], quickly


def _publish(number, some):
    return Publish(number, [msgspec.Raw(line) for line in some])


@pytest.mark.parametrize("recorded", [None, {("r", "w"): 6}], ids=["", "recorded"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_token_is_taken_or_refused_the_same_by_both_ways(case, recorded):
    """Whatever is wrong with it, and also after a restart of the hub that has recorded some of them."""
    given = with_odd_one(*case)
    quick, _ = outcome(given, recorded=recorded, quick=True)
    assert quick == outcome(given, recorded=recorded, quick=False)[0]


def test_tokens_as_they_are_usually_take_the_quick_way():
    """Otherwise the test above would compare nothing."""
    made = [start(0), chain(1, "a"), event("llm_generation_start", 2, "a", step=1, **GENERATION)]
    made += [chunk(3, "a", "he", 0, step=1), chunk(4, "a", "llo", 2, step=1, token_ids=[7], logprobs=[-0.5])]
    assert outcome([msgspec.json.encode(each) for each in made], recorded=None, quick=True)[1] == 2


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"event_type":"llm_generation_chunk",', b'{"event_type":"reward"}', b'{"event_type":"llm_generation_chunk","data":\xff}']
)  # fmt: skip
def test_what_is_no_chunk_is_none(line):
    """Nothing is raised."""
    assert chunk_of_line(line) is None
