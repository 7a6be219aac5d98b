"""The ring of events and the places in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.records import EventFilter, StreamEvent, StreamEventType, decode
from rollcast.records.secrets import Masker
from rollcast.serve.history import ENTRY_BYTES, History, Place, Selector

T = StreamEventType


def event(seq, kind="reward", chain="chain_0", run="r", **data):
    data = data or {"reward": 1.0, "metrics": {}}
    return StreamEvent.from_dict(
        {"event_type": kind, "chain_id": chain, "timestamp": 1.0, "data": data, "seq": seq, "run_id": run}
    )


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(300, 3000))
def test_it_holds_the_latest_that_fit(sizes, limit):
    """Positions go on counting; what is held is contiguous, bounded, and what was put in."""
    history = History(limit)
    put = []
    for i, size in enumerate(sizes):
        put.append(event(i, "reward", reward=1.0, metrics={"x": "y" * size}))
        history.append(put[-1])
        assert history.head == i + 1
        held = history.window(history.tail, history.head)
        assert [decode(entry.data) for entry in held] == put[history.tail :]
        weight = sum(len(entry.data) + ENTRY_BYTES for entry in held)
        assert history.bytes == weight
        assert weight <= limit or len(held) == 1
        for position in range(history.tail, history.head + 1):
            assert history.position(history.cursor(position)) == position
        if history.tail:
            assert history.position(history.cursor(history.tail - 1)) is None


@pytest.mark.parametrize(("said", "taken"), [(3, 3), (0, 0), (9, 9), (-1, 9), (10, 9), (1 << 60, 9)])
def test_a_first_seq_that_cannot_be_right_is_its_own(said, taken):
    """A producer may say anything; gaps and snapshots of others' runs do not look at it."""
    history = History(10_000)
    assert (
        history.append(event(9, "llm_generation_chunk", content="a", offset=0, from_seq=said)).from_seq
        == taken
    )


def nested(depth):
    """A list in a list in a list …, and a text."""
    value = "x" * 500
    for _ in range(depth):
        value = [value]
    return value


def deeper(frames, call):
    """What the call returns with so many more frames on the stack."""
    return call() if frames == 0 else deeper(frames - 1, call)


@pytest.mark.parametrize("field", ["data", "beyond"])
@pytest.mark.parametrize("depth", [10, 60, 62, 63, 64, 65, 100, 700, 900, 2000])
@pytest.mark.parametrize("together", [1, 3])
def test_what_nests_too_deeply_for_readers_is_described(field, depth, together):
    """A relayed event may nest as deeply as this process can decode; a reader with a fuller stack could not."""
    deep = event(0, "reward", reward=1.0, metrics={"m": nested(depth)} if field == "data" else {})
    if field == "beyond":
        deep = StreamEvent.from_dict(deep.to_dict() | {"later": {"m": nested(depth)}})
    history = History(1 << 20)
    entries = history.extend([deep] * together)
    assert len(entries) == together
    for entry in entries:
        read = deeper(300, lambda entry=entry: decode(entry.data))
        assert (read.seq, read.data["reward"]) == (0, 1.0)
        kept = read.data["metrics"] if field == "data" else read.beyond["later"]
        assert (kept == {"m": nested(depth)}) is (depth < 63)


@pytest.mark.parametrize(
    "cursor",
    ["", ".", "x.1", "{name}.2", "{name}.-1", "{name}.²", "{name}.1.1", "{name}." + "9" * 30, "{name}"],
)
def test_a_foreign_or_impossible_cursor_is_no_place(cursor):
    """Of another history, beyond the head, or no cursor at all."""
    history = History(1000)
    history.append(event(0))
    name = history.cursor(0).partition(".")[0]
    assert history.position(cursor.format(name=name)) is None


def test_old_entries_can_be_forgotten():
    """All up to a place, and no further than the head."""
    history = History(10_000)
    for i in range(5):
        history.append(event(i))
    history.forget_before(3)
    assert [e.seq for e in history.window(3, 9)] == [3, 4]
    history.forget_before(2)
    history.forget_before(99)
    assert history.bytes == 0
    assert history.window(history.head, 9) == []


def test_data_that_json_cannot_hold_is_described():
    """The event stands in its place, with its seq; the others go on."""
    history = History(10_000)
    described = [
        (object(), "<object>"),
        ("\ud800", "\ufffd"),
        (float("nan"), "NaN"),
        ({(1, 2): 3}, {"[1,2]": 3}),
    ]
    for value, said in described:
        data = {"reward": 1.0, "metrics": {"x": value}}
        bad = StreamEvent(event(0).event_type, "chain_\ud800", 1.0, data, seq=7, run_id="r")
        told = decode(history.append(bad).data)
        assert (told.event_type, told.seq) == (event(0).event_type, 7)
        assert told.data["metrics"] == {"x": said}


def test_a_gap_passes_every_filter_of_its_run():
    """Nothing is lost silently; a snapshot passes where tokens do."""
    narrow = Selector(EventFilter(runs="r", chains="chain_0", types="llm_generation_chunk"))
    assert narrow.wants(Place(StreamEventType("gap"), "", None, "r"))
    assert not narrow.wants(Place(StreamEventType("gap"), "", None, "other"))
    assert narrow.wants(Place(StreamEventType("chain_snapshot"), "chain_0", None, "r"))
    assert not narrow.wants(Place(StreamEventType("chain_snapshot"), "chain_1", None, "r"))
    assert not narrow.wants(Place(StreamEventType("reward"), "chain_0", None, "r"))
    assert not Selector(EventFilter(types="reward")).wants(
        Place(StreamEventType("chain_snapshot"), "chain_0", None, "r")
    )


@given(
    st.lists(
        st.sampled_from([T.RUN_START, T.CHAIN_START, T.GAP, T.CHAIN_SNAPSHOT, T.of("later")]), max_size=12
    ),
    st.sets(st.sampled_from([T.RUN_START, T.RUN_END, T.CHAIN_SNAPSHOT, T.LLM_GENERATION_CHUNK]), max_size=3),
    st.sampled_from([None, "run_1"]),
    st.integers(1, 4),
)
def test_what_is_passed_over_at_once_holds_nothing_that_is_wanted(kinds, types, run, size):
    """Whether a filter wants something from a position on is known without a look at each event; it may be said too often."""
    history, selector = History(1 << 20), Selector(EventFilter(types=types, runs=run))
    events = [StreamEvent(kind, "chain_0", 1.0, {}, run_id="run_1") for kind in kinds]
    for at in range(0, len(events), size):
        history.extend(events[at : at + size])
    for position in range(len(events)):
        wanted = any(selector.wants(entry.place) for entry in history.window(position, 99))
        assert history.has_wanted(selector, position) or not wanted
    if run is None and not types:
        assert history.has_wanted(selector, 0) == bool({T.GAP, T.of("later")} & set(kinds))


READ = b'{"event_type":"reward","chain_id":"c","timestamp":1.5,"data":{"reward":1.0,"metrics":{"m":"%b"}},"step":null,"depth":null,"seq":3,"run_id":"r","group_id":null,"source":"w"}'


@pytest.mark.parametrize(
    "line",
    [
        READ % b"x",
        READ.replace(b'"seq":3', b'"seq": 3') % b"x",
        READ.replace(b'"step":null,', b"") % b"x",
        READ % "größer – \u4e16\u754c".encode(),
        READ % rb"a \" and a \n",
        READ.replace(b'"seq"', b'"later":[1],"seq"') % b"x",
    ],
    ids=["ours", "spaced", "short", "wide", "escaped", "later"],
)
def test_what_was_read_is_kept_as_it_was_written(line):
    """Whatever the order of its fields, and with those that this version does not know."""
    (entry,) = History(1 << 20).extend([decode(line)], [line])
    assert entry.data == line
    assert (entry.seq, entry.place) == (3, Place(T.REWARD, "c", None, "r", "w"))


@pytest.mark.parametrize(
    "line",
    [
        READ.replace(b",", b",\n") % b"x",
        READ.replace(b",", b"\r,") % b"x",
        READ % "a\u2028b".encode(),
        READ % rb"\u0073ecret",
        READ % rb"a\/b",
        READ % (b"x" * 500 + b'","n":' + b"[" * 100 + b"]" * 100 + b',"o":"'),
    ],
    ids=["newline", "return", "separator", "letter", "slash", "nested"],
)
@pytest.mark.parametrize("together", [1, 3])
def test_what_was_read_is_written_anew_if_a_reader_could_take_it_amiss(line, together):
    """One that reads lines, one whose stack is nearly full, and the masker, which looks for secrets as they are usually written."""
    kept, known = History(1 << 20), History(1 << 20)
    entries = kept.extend([decode(line)] * together, [line] * together)
    assert [entry.data for entry in entries] == [known.append(decode(line)).data] * together
    assert b"\n" not in entries[0].data


def test_a_secret_is_masked_in_what_was_read_also_if_a_field_is_there_twice():
    """A reader takes the last of two fields of one name, and so does the masker."""
    secret = b"sk-" + b"a1B2" * 12
    observed = b'{"event_type":"tool_observation","chain_id":"c","timestamp":1.5,"data":{%b"call_id":"1","tool_name":"t","observation":"%b","status":"success","partial":false},"seq":3,"run_id":"r"}'
    history = History(1 << 20, Masker(environ={}))
    for line in (observed % (b"", secret), observed % (b'"observation":"%b",' % secret, b"nothing")):
        (entry,) = history.extend([decode(line)], [line])
        assert secret not in entry.data
        assert decode(entry.data).seq == 3


def test_events_that_were_read_and_events_that_were_made_stand_side_by_side():
    """An event without a line is encoded."""
    line = READ % b"x"
    entries = History(1 << 20).extend([event(1), decode(line), event(5)], [None, line, None])
    assert [decode(entry.data).seq for entry in entries] == [1, 3, 5]
    assert entries[1].data == line
    assert [entry.before for entry in entries] == [
        sum(len(each.data) + ENTRY_BYTES for each in entries[:i]) for i in range(3)
    ]
