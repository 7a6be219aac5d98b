"""The quick way of an event through a hub's checks: it takes and refuses what the usual way does."""

import msgspec
import pytest

from fleet.by_hand import GENERATION, chain, chain_end, chunk, end, event, start
from fleet.test_intake import Play
from rollcast.fleet.reading import KINDS, read_quickly
from rollcast.fleet.scrutiny import Scrutiny
from rollcast.records import PAYLOADS, decode
from rollcast.records.codec import encode
from rollcast.serve.protocol import Publish
from rollcast.stream.waiting import EncodableChunk, EncodableEvent, chunk_of_line, event_of

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
        quickly = sum(isinstance(each, EncodableChunk | EncodableEvent) for each, _ in taken.events)
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
    assert outcome([msgspec.json.encode(each) for each in made], recorded=None, quick=True)[1] == 3


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"event_type":"llm_generation_chunk",', b'{"event_type":"reward"}', b'{"event_type":"llm_generation_chunk","data":\xff}']
)  # fmt: skip
def test_what_is_no_chunk_is_none(line):
    """Nothing is raised."""
    assert chunk_of_line(line) is None


SPOKEN = {"content": "hello", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
CALL = {"call_id": "c", "tool_name": "search"}
OF_A_CHAIN = [
    event("llm_generation_start", 2, "a", step=1, **GENERATION),
    chunk(3, "a", "hello", 0, step=1, token_ids=[7]),
    event("llm_generation_end", 4, "a", step=1, **SPOKEN, ttft_s=0.1, duration_s=0.2),
    event("tool_call_start", 5, "a", step=1, **CALL, arguments={"q": ["x"]}),
    event("tool_observation", 6, "a", step=1, **CALL, observation="so", status="success", partial=True),
    event("tool_observation", 7, "a", step=1, **CALL, observation="found", status="success", partial=False),
    event("tool_call_end", 8, "a", step=1, **CALL, status="success", duration_s=0.1),
    event("reward", 9, "a", reward=1.0, metrics={"exact": 1}, final=False),
    event("reward", 10, "a", reward=1.0, metrics={}),
    chain_end(11, "a"),
]
ODD_VALUES = [None, 3, -1.5, 1 << 70, "", "x", True, [], {}, {"deep": [[1]]}, ["x"]]
# What one of these events may have instead: a field of the event, or of its data, or another place among the others.
ODD_EVENTS = [
    *(
        (at, "event", field, value)
        for at in range(len(OF_A_CHAIN))
        for field, values in FIELDS.items()
        for value in values
    ),
    *(
        (at, "data", field, value)
        for at, told in enumerate(OF_A_CHAIN)
        for field in [*PAYLOADS[told["event_type"]].__annotations__, "further"]
        for value in ODD_VALUES
    ),
    *((at, "without", field, None) for at, told in enumerate(OF_A_CHAIN) for field in [*told["data"], "seq", "depth"]),
    *((at, "place", "", other) for at in range(len(OF_A_CHAIN)) for other in range(len(OF_A_CHAIN))),
    *((at, "line", name, change) for at in range(len(OF_A_CHAIN)) for name, change in ODD.items()),
]  # fmt: skip


def with_odd_event(at, where, field, value):
    """The lines of a chain of which one event is another, or comes elsewhere."""
    told = [each | {"data": dict(each["data"])} for each in OF_A_CHAIN]
    if where == "place":
        told.insert(value, told.pop(at))
        told = [each | {"seq": number} for number, each in enumerate(told, 2)]
    elif where == "without":
        told[at].pop(field, None)
        told[at]["data"].pop(field, None)
    elif where == "event":
        told[at][field] = value
    elif where == "data":
        told[at]["data"][field] = value
    lines = [msgspec.json.encode(each) for each in [start(0), chain(1, "a"), *told, end(12)]]
    if where == "line":
        lines[at + 2] = value(lines[at + 2])
    return lines


@pytest.mark.parametrize("at", range(len(OF_A_CHAIN)), ids=lambda at: f"{at}-{OF_A_CHAIN[at]['event_type']}")
def test_an_event_is_taken_or_refused_the_same_by_both_ways(at):
    """Whatever is odd about it: a value of another type, a field too many or too few, or its place."""
    for case in ODD_EVENTS:
        if case[0] == at:
            given = with_odd_event(*case)
            quick, _ = outcome(given, recorded=None, quick=True)
            assert quick == outcome(given, recorded=None, quick=False)[0], case


def test_all_events_of_a_usual_chain_take_the_quick_way():
    """But its start; and so do those with what the events of a chain may have besides."""
    lines = with_odd_event(0, "event", "step", 1)
    assert outcome(lines, recorded=None, quick=True)[1] == len(OF_A_CHAIN)
    more = OF_A_CHAIN[2]["data"] | {"token_ids": [7], "logprobs": [-0.5], "dt_ms": [], "reasoning": "why"}
    lines = with_odd_event(2, "event", "data", more)
    assert outcome(lines, recorded=None, quick=True)[1] == len(OF_A_CHAIN)


def test_what_is_read_quickly_is_the_whole_event():
    """As the usual way reads it; an event with a field that this version does not know is for the usual way, which carries it."""
    kinds = set()
    for told in OF_A_CHAIN:
        line = msgspec.json.encode(told)
        read = read_quickly(line)
        assert read.event() == decode(line)
        assert decode(msgspec.json.encode(read)) == decode(line)
        kinds.add(read.event_type)
        told = told | {"data": told["data"] | {"further": 1}}
        assert read_quickly(msgspec.json.encode(told)) is None
    assert kinds >= set(KINDS)


@pytest.mark.parametrize(
    "number", ["0", "-0", "1", "2.0", "9007199254740993", "1e3", "1" * 30, "-" + "1" * 30]
)
def test_a_number_stays_as_it_was_written(number):
    """Whoever is given the event, and writes it down, has what the usual way gives: a whole number stays whole in a field of any number."""
    fields = {"ttft_s": "TTFT", "duration_s": "TOOK", "logprobs": ["LOGPROB"], "dt_ms": ["DT"]}
    line = msgspec.json.encode(event("llm_generation_end", 4, "a", step=1, **SPOKEN, **fields))
    for field in (b"TTFT", b"TOOK", b"DT", b"LOGPROB"):
        line = line.replace(b'"%s"' % field, number.encode())
    event_read = event_of(read_quickly(line) or decode(line))
    assert repr(event_read.data) == repr(decode(line).data)


def nested(depth):
    """A reward whose metrics nest so deeply."""
    line = msgspec.json.encode(event("reward", 2, "a", reward=1.0, metrics={"odd": 0}))
    return line.replace(b'{"odd":0}', b'{"odd":' + b"[" * depth + b"]" * depth + b"}")


def called_deeply(calls, call):
    """What the call gives, within so many others."""
    return call() if calls == 0 else called_deeply(calls - 1, call)


def test_an_event_that_could_be_read_can_be_made_anywhere():
    """Also where so many calls are open that what nests as deeply as it does could not be copied."""
    depth = next(depth for depth in range(1000, 0, -10) if read_quickly(nested(depth)))
    read = read_quickly(nested(depth))
    assert called_deeply(50, read.event).data == read.event().data
