"""Where the history's places stand in a record, and what of the record a client has: without sockets and disks."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast import EventFilter
from rollcast.archive.writer import Written, _merged
from rollcast.records import GrammarChecker, StreamEvent
from rollcast.records import StreamEventType as T
from rollcast.records.codec import decode_unchecked, encode
from rollcast.records.lanes import Lane
from rollcast.serve.history import History
from rollcast.serve.ledger import RunLedger
from rollcast.serve.recorded import Checkpoint, Checkpoints, RecordPlace, keeps_all_of, place_named
from rollcast.serve.returning import Repetitions
from rollcast.serve.seen import Seen
from rollcast.stream.merging import tokens_together
from rollcast.stream.queue import compact
from rollcast.stream.waiting import event_of


def emitted(dice, length, most_runs=2):
    """Events of runs and chains that take turns, as a manager emits them."""
    runs, number = {}, 0

    def event(run, kind, data, chain="", step=None):
        run["seq"] += 1
        return StreamEvent(kind, chain, 1.0, data, step=step, seq=run["seq"], run_id=run["id"])

    events = []
    while len(events) < length:
        if not runs or (len(runs) < most_runs and dice.random() < 0.05):
            number += 1
            run = {"id": f"run_{number}", "seq": -1, "chains": {}, "next": 0}
            runs[run["id"]] = run
            events.append(event(run, T.RUN_START, {}))
        run = dice.choice(list(runs.values()))
        if len(run["chains"]) < 3 and dice.random() < 0.2:
            name = f"chain_{run['next']}"
            run["next"] += 1
            run["chains"][name] = [0, None]
            events.append(event(run, T.CHAIN_START, {}, name))
        elif run["chains"]:
            name = dice.choice(list(run["chains"]))
            chain = run["chains"][name]
            if chain[1] is None and dice.random() < 0.2:
                del run["chains"][name]
                events.append(event(run, T.CHAIN_END, {}, name))
            elif chain[1] is None:
                chain[0] += 1
                chain[1] = ""
                events.append(event(run, T.LLM_GENERATION_START, {}, name, chain[0]))
            elif dice.random() < 0.1:
                events.append(event(run, T.LLM_GENERATION_END, {"content": chain[1]}, name, chain[0]))
                chain[1] = None
            else:
                word = dice.choice(["a", "bc", "d\n", "efg"])
                data = {"content": word, "offset": len(chain[1]), "token_ids": [len(events)]}
                events.append(event(run, T.LLM_GENERATION_CHUNK, data, name, chain[0]))
                chain[1] += word
        elif dice.random() < 0.1:
            events.append(event(run, T.RUN_END, {"status": "completed"}))
            del runs[run["id"]]
    return events


def published(dice, events):
    """The same as a hub gets them from a producer, which puts tokens that wait together."""
    whole = []
    while events:
        count = dice.randint(1, 30)
        whole += map(event_of, tokens_together(events[:count]))
        events = events[count:]
    return whole


class Server:
    """A history and a record that are given the same events, each in its own time."""

    def __init__(self, limit):
        self.history = History(limit)
        self.ledger = RunLedger()
        self.checkpoints = Checkpoints(self.history, self.ledger)
        self.checkpoints.begin()
        self.history.recorded = self.place_of
        self.record = []
        self.lines = {}

    def place_of(self, position):
        place = self.checkpoints.place_of(position)
        return f".r{place}" if place else ""

    def take(self, events, *, overloaded, as_read=False):
        if overloaded:
            events, _, _ = compact(list(events))
        position = self.history.head
        lines = [*map(encode, events)] if as_read else None
        self.ledger.note(events, self.history.extend(events, lines), position)
        self.checkpoints.advance()

    def write(self, events):
        self.record += _merged(list(events), self.lines)
        as_of = {Lane(event.run_id, event.source): event.seq for event in events}
        self.checkpoints.written(Written(len(self.record), events[-1], as_of))

    def entries(self, since, until):
        return [decode_unchecked(e.data) for e in self.history.window(since, until - since)]

    def since(self, cursor):
        """What a client with this cursor is given; None if it is told that this is gone."""
        position = self.history.position(cursor)
        if position is not None:
            return self.entries(position, self.history.head)
        place, target = place_named(cursor), self.checkpoints.latest
        if place is None or target.position < self.history.tail:
            return None
        assert place.position <= target.recorded
        recorded = self.record[place.position : target.recorded]
        if place.seen is not None:
            recorded = [rest for event in recorded if (rest := rest_of(place.seen, event)) is not None]
        return recorded + self.entries(target.position, self.history.head)


def rest_of(seen, event):
    """As a feed gives it."""
    lane = Lane(event.run_id, event.source)
    first = event.data.get("from_seq", event.seq) if event.event_type is T.LLM_GENERATION_CHUNK else event.seq
    data = seen.rest_of(encode(event), event.event_type.value, lane, event.chain_id, event.seq, first)
    return None if data is None else decode_unchecked(data)


class Viewer:
    """A client, as `ClientSession` is one."""

    def __init__(self):
        self.events, self.last, self.ended = [], {}, set()
        self.repetitions = Repetitions()

    def take(self, events):
        for event in self.repetitions.new(events):
            self.events.append(event)
            key = (event.source, event.run_id)
            self.last[key] = max(event.seq, self.last.get(key, -1))
            if event.event_type is T.RUN_END:
                self.ended.add(key)
                del self.last[key]

    def come_back(self):
        self.repetitions.returned(self.last, self.ended.__contains__)


def check(events, everything):
    """Each event once and in order, or in a gap; each text whole, or with a gap where something of it is missing."""
    checker = GrammarChecker(late=True)
    for event in events:
        checker.feed(event)
    gaps = [(e.run_id, e.data["from_seq"], e.data["to_seq"]) for e in events if e.event_type is T.GAP]
    others = [(e.run_id, e.seq) for e in events if e.event_type not in (T.GAP, T.LLM_GENERATION_CHUNK)]
    assert others == [(e.run_id, e.seq) for e in everything if e.event_type is not T.LLM_GENERATION_CHUNK]
    texts = {}
    for event in events:
        if event.event_type is T.LLM_GENERATION_CHUNK:
            key = (event.run_id, event.chain_id, event.step)
            offset, content = event.data["offset"], event.data["content"]
            assert offset >= len(texts.get(key, "")), event
            texts[key] = texts.get(key, "").ljust(offset, "?") + content
    missing = [e for e in everything if e.event_type is T.LLM_GENERATION_CHUNK]
    for event in missing:
        text = texts.get((event.run_id, event.chain_id, event.step), "")
        offset, content = event.data["offset"], event.data["content"]
        if text[offset : offset + len(content)] != content:
            assert any(r == event.run_id and a <= event.seq <= b for r, a, b in gaps), event
    return gaps


@given(
    seed=st.integers(0, 10**9), length=st.integers(5, 120), limit=st.sampled_from([300, 1500, 6000, 10**6]),
    overloaded=st.sampled_from([0.0, 0.0, 0.3]), cuts=st.integers(1, 3), remembers=st.booleans(), at_hub=st.booleans(),
)  # fmt: skip
@settings(max_examples=300)
def test_wherever_a_client_is_cut_it_gets_every_event_once_or_in_a_gap(
    seed, length, limit, overloaded, cuts, remembers, at_hub
):
    """Whatever the size of the memory, and however far history and record are from each other.

    If the cursor says how far the client is, it need not know what it had.
    """
    dice = random.Random(seed)
    everything = emitted(dice, length, most_runs=2 if remembers else 1)
    if at_hub:
        everything = published(dice, everything)
    length = len(everything)
    server, viewer = Server(limit), Viewer()
    taken = written = 0
    position = 0  # of the viewer
    cursor = None  # while it is away
    while taken < length or written < length or cursor is not None:
        if taken < length and (written >= length or dice.random() < 0.6):
            count = dice.randint(1, 12)
            merges = dice.random() < overloaded
            as_read = at_hub and not overloaded  # a hub's own observer is lossless
            server.take(everything[taken : taken + count], overloaded=merges, as_read=as_read)
            taken += count
        elif written < length:
            count = dice.randint(1, 25)
            server.write(everything[written : written + count])
            written += count
        if cursor is not None and (dice.random() < 0.2 or (taken >= length and written >= length)):
            events = server.since(cursor)
            if events is None:
                return  # it is told so, and gets snapshots
            place = place_named(cursor)
            if remembers or place is None or place.seen is None:
                viewer.come_back()
            viewer.take(events)
            position, cursor = server.history.head, None
        elif cursor is None:
            if position < server.history.tail:
                cursor = server.history.cursor(position)  # it was too slow, and is closed
                continue
            upto = dice.randint(position, server.history.head)
            viewer.take(server.entries(position, upto))
            position = upto
            if cuts and dice.random() < 0.1:
                cuts -= 1
                cursor = server.history.cursor(position)
    viewer.take(server.entries(position, server.history.head))
    gaps = check(viewer.events, everything)
    if not overloaded:
        assert not gaps


def told(seq, text, from_seq=None, step=1, chain="chain_0", kind=T.LLM_GENERATION_CHUNK):
    data = {"content": text, "offset": 0} | ({} if from_seq is None else {"from_seq": from_seq})
    return StreamEvent(kind, chain, 1.0, data, step=step, seq=seq, run_id="run_1")


def test_a_cursor_tells_how_far_a_client_of_a_hub_is():
    """Tokens that their producer merged are one event there, and the next one may begin before the latest event that it has."""
    server = Server(10**6)
    server.take([told(9, "ab", 1), told(10, "cd", 2, chain="chain_1")], overloaded=False, as_read=True)
    seen = place_named(server.history.cursor(1)).seen
    assert rest_of(seen, told(9, "ab", 1)) is None
    assert rest_of(seen, told(10, "cd", 2, chain="chain_1")) == told(10, "cd", 2, chain="chain_1")
    server.write([told(9, "ab", 1)])
    assert server.checkpoints.latest == Checkpoint(1, 1)


def test_a_cursor_does_not_take_a_generation_for_the_next_one():
    """Its first token came before the latest event of another chain that the client has."""
    server = Server(10**6)
    end = told(2, "abc", kind=T.LLM_GENERATION_END)
    server.take([told(1, "abc"), end, told(4, "d", chain="chain_1")], overloaded=False, as_read=True)
    seen = place_named(server.history.cursor(3)).seen
    following = told(9, "efghij", 3, step=2)
    assert rest_of(seen, following) == following


def test_a_checkpoint_stands_after_the_last_event_that_was_written():
    """Not before the history has it, and not where it merged what was written with what came later."""
    dice = random.Random(3)
    events = emitted(dice, 60)
    server = Server(10**6)
    server.write(events[:20])
    assert server.checkpoints.latest == Checkpoint(0, 0)  # the history has nothing yet
    server.take(events[:30], overloaded=False)
    assert server.checkpoints.latest == Checkpoint(20, len(server.record))
    server.take(events[30:], overloaded=False)
    assert server.checkpoints.before(19) == Checkpoint(0, 0)
    assert server.checkpoints.before(25).position == 20
    server.write(events[20:45])
    assert server.checkpoints.latest.position == 45
    assert server.checkpoints.position_of(server.checkpoints.latest.recorded - 1) == 20


def test_a_record_that_was_begun_anew_has_no_old_places():
    """Its positions mean something else."""
    dice = random.Random(4)
    events = emitted(dice, 30)
    server = Server(10**6)
    server.take(events, overloaded=False)
    server.write(events[:20])
    server.checkpoints.written(Written(0, None, {}))
    assert server.checkpoints.latest is None
    assert server.history.cursor(25).count(".") == 1


@pytest.mark.parametrize(
    ("cursor", "place"),
    [
        ("0a1b2c.17", RecordPlace("0a1b2c", 17)),
        ("ffee00.5.my-record_1.42", RecordPlace("my-record_1", 42)),
        ("ffee00.5.within", None),
        ("start", None),
        ("", None),
        ("a.-1", None),
        ("a.1.b", None),
        ("a.1.b.2.0fe1-7-ab_9", RecordPlace("b", 2, Seen("0fe1", 7, {"ab": 9}))),
        ("b.2.0fe1-7", RecordPlace("b", 2, Seen("0fe1", 7, {}))),
        ("b.2.0fe1-7-ab", None),
        ("a.1.b.2.x", None),
        ("a.1.b.2.c.d", None),
        ("a.1.b c.2", None),
        ("a." + "9" * 30, None),
    ],
)
def test_a_cursor_names_a_place_in_a_record(cursor, place):
    """Behind the place in the history, if there is one; anything else names none."""
    assert place_named(cursor) == place


@pytest.mark.parametrize(
    ("level", "types", "kept"),
    [
        ("auto", None, True),
        ("tokens", None, True),
        ("turns", None, False),
        ("turns", ["llm_generation_end"], True),
        ("turns", ["llm_generation_end", "llm_generation_chunk"], False),
        ("summary", ["llm_generation_end"], False),
        ("summary", ["run_start", "run_end"], True),
    ],
)
def test_a_level_keeps_what_a_filter_wants_or_not(level, types, kept):
    """If not, the record does not lead to the live tail."""
    assert keeps_all_of(level, EventFilter(types=types)) is kept
