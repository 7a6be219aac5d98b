"""How the snapshots of one moment and the events that came since are joined: without sockets and managers."""

from rollcast.records import EventFilter, StreamEvent, decode
from rollcast.records import StreamEventType as T
from rollcast.records.lanes import Lane
from rollcast.serve.history import History, Selector
from rollcast.serve.opening import Opening

LANE = Lane("run_0", "one")


def chunk(chain, seq, text, from_seq=None, source="one"):
    data = {"content": text, "offset": 0} | ({} if from_seq is None else {"from_seq": from_seq})
    return StreamEvent(T.LLM_GENERATION_CHUNK, chain, 1.0, data, 1, 1, seq, "run_0", None, source)


def joined(events, as_of, before=None):
    """What a viewer gets behind the snapshots."""
    history = History(1 << 20)
    history.extend(events)
    opening = Opening(Selector(EventFilter()), before, 0, 0)
    opening.renew((), as_of)
    opening.arrive(history.window(0, len(events)))
    assert opening.position == len(events)
    return [decode(line) for line in opening.part(0, None).events], opening.first


def test_a_chunk_that_a_producer_merged_comes_whole_or_not_at_all():
    """It may begin before the latest event of another chain that the snapshots cover: its own chain's last event is before it."""
    events = [
        chunk("chain_0", 7, "ab", 1),
        chunk("chain_1", 8, "cd", 2),  # the snapshots are as of this one, in the middle of what came together
        chunk("chain_2", 9, "ef", 3),
        chunk("chain_3", 10, "gh", 4),
    ]
    given, first = joined(events, {LANE: 8})
    assert given == events[2:]
    assert first == {LANE: 3}


def test_a_producer_that_says_nonsense_harms_no_viewer():
    """Each chunk says that it begins with the run's first event."""
    events = [chunk("chain_0", seq, "a", 0) for seq in range(1, 9)]
    assert joined(events, {LANE: 4})[0] == events[4:]
    assert joined(events, {})[0] == events
    other = [chunk("chain_0", seq, "a", 0, source="two") for seq in range(1, 9)]
    assert joined(other, {LANE: 4})[0] == other


def test_what_a_client_had_before_is_given_again_only_if_it_came_since():
    """It changed its filter: of what it wanted already, it gets all that came."""
    events = [chunk("chain_0", seq, "a", 1) for seq in (2, 3)] + [
        chunk("chain_1", seq, "b") for seq in (4, 5)
    ]
    given, _ = joined(events, {LANE: 4}, Selector(EventFilter(chains=["chain_0"])))
    assert given == [*events[:2], events[3]]
