"""The ring of events and the places in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.records import EventFilter, StreamEvent, StreamEventType, decode
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
