"""What a client can say of what it missed, and what a server remembers for it; without sockets."""

import json

import pytest

from rollcast.errors import DecodeError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.lanes import Lane
from rollcast.serve import ledger as ledger_module
from rollcast.serve.client import ClientSession
from rollcast.serve.history import History, Selector
from rollcast.serve.ledger import RunLedger
from rollcast.serve.losses import MAX_LOST_BYTES, Return, losses, way_back
from rollcast.serve.protocol import (
    Batch,
    LostRun,
    RunInfo,
    Subscribed,
    Welcome,
    decode_server_frame,
    encode_frame,
)
from rollcast.serve.settings import SMALLEST_MESSAGE, Limits

T = StreamEventType
START = {"chains": 1, "groups": 1, "agent": "", "model": "", "backend": "", "policy_version": 0}
END = {
    "status": "completed", "chains": 1, "failed": 0, "mean_reward": None, "completion_tokens": 0, "duration_s": 0.1
}  # fmt: skip
ALL = Selector(EventFilter())


def event(kind, seq, run="r", chain="", **data):
    fields = {
        "event_type": kind,
        "chain_id": chain,
        "timestamp": 1.0,
        "data": data,
        "seq": seq,
        "run_id": run,
    }
    return StreamEvent.from_dict(json.loads(json.dumps(fields)))


def whole_run(run, **extra):
    return [event("run_start", 0, run, **START, **extra), event("run_end", 1, run, **END)]


# -- the client ----------------------------------------------------------------------------------------------------------


def welcomed(session, **runs):
    """It connects, to a server that knows these runs."""
    known = [RunInfo(run_id, None, status, 1) for run_id, status in runs.items()]
    session.receive(Welcome(1, known, 20.0, Limits(), ["read"]))


def watching(since="live", filter=None, **runs):
    """A client that has been told which runs there are, and has a cursor."""
    session = ClientSession(filter or EventFilter(), since)
    welcomed(session, **runs)
    session.receive(Subscribed("1", True, "x.0"))
    return session


def told(gaps):
    return [(g.run_id, g.data["from_seq"], g.data["to_seq"], g.data.get("run_status")) for g in gaps]


def test_of_a_server_of_0_1_the_list_of_runs_tells_which_passed():
    """A run that is new in it and has ended has a gap; one that ended before this client came has none."""
    session = watching(before="completed")
    welcomed(session, before="completed", passed="failed", going_on="running")
    _, gaps = session.receive(Subscribed("1", False, None))
    assert told(gaps) == [("passed", 0, 0, "failed")]
    assert "how many events are missing is not known" in gaps[0].data["reason"]


def test_of_a_run_that_the_client_saw_end_nothing_is_missing():
    """Whatever the list of a server of 0.1 says; told once, a run that passed is not told again either."""
    session = watching()
    session.receive(Batch("1", "x.2", whole_run("seen")))
    for expected in ([("passed", 0, 0, "completed")], []):
        welcomed(session, seen="completed", passed="completed")
        assert told(session.receive(Subscribed("1", False, None))[1]) == expected


def test_a_run_that_the_filter_does_not_name_is_not_told():
    """What it leaves out must not look like a gap."""
    session = watching(filter=EventFilter(runs="mine"))
    welcomed(session, mine="completed", other="completed")
    assert told(session.receive(Subscribed("1", False, None))[1]) == [("mine", 0, 0, "completed")]


def test_where_nothing_else_says_so_a_gap_of_no_run_opens_the_first_batch():
    """A server of 0.1 that lists nothing, or another server than before."""
    for answer in (Subscribed("1", False, None), Subscribed("1", False, None, [], 0, began_anew=True)):
        session = watching()
        welcomed(session)
        assert session.receive(answer)[1] == []
        _, first = session.receive(Batch("1", "y.1", []))
        _, second = session.receive(Batch("1", "y.2", []))
        assert told(first) == [("", 0, 0, None)]
        assert second == []


def test_a_run_that_the_filter_hides_the_end_of_is_missing_if_the_connection_is_cut_before_it_came():
    """That `welcome` lists it as ended does not mean that its events have come."""
    session = watching(filter=EventFilter(chains="c"))
    welcomed(session, r="completed")
    session.receive(Subscribed("1", True, "x.3"))
    welcomed(session, r="completed")
    lost = [LostRun("r", "", 0, 9, "completed")]
    assert told(session.receive(Subscribed("1", False, None, lost))[1]) == [("r", 0, 9, "completed")]


def test_a_run_that_began_unseen_and_is_open_has_a_gap_before_its_first_event():
    """Of a server that does not say what is lost."""
    session = watching()
    welcomed(session, new="running")
    session.receive(Subscribed("1", False, None))
    _, events = session.receive(Batch("1", "x.1", [event("reward", 5, "new", "c", reward=1.0, metrics={})]))
    assert told(events[:-1]) == [("new", 0, 4, None)]


def test_a_gap_of_no_run_stands_for_runs_of_which_nothing_more_may_come():
    """One run shows its gap at once; of another nobody knows whether it has one, and it may stay silent."""
    session = watching()
    session.receive(Batch("1", "x.1", [event("run_start", 0, run, **START) for run in ("a", "b")]))
    welcomed(session, a="running", b="running")
    session.receive(Subscribed("1", False, None))
    _, events = session.receive(Batch("1", "x.2", [event("reward", 5, "a", "c", reward=1.0, metrics={})]))
    assert told(e for e in events if e.event_type == "gap") == [("", 0, 0, None), ("a", 1, 4, None)]


def test_a_gap_that_the_server_sent_does_not_stand_for_what_is_owed():
    """It tells of something else."""
    session = watching()
    welcomed(session)
    session.receive(Subscribed("1", False, None))
    sent = event("gap", 7, "r", from_seq=3, to_seq=7, dropped={}, reason="other")
    _, events = session.receive(Batch("1", "x.2", [sent]))
    assert told(events) == [("", 0, 0, None), ("r", 3, 7, None)]


def test_what_a_later_server_says_is_passed_over():
    """A frame of another type, and an answer to what this client did not ask; what is no frame is not."""
    session = watching()
    for message in (
        b'{"type":"rows","id":"1","rows":[]}',
        encode_frame(Batch("2", "y.9", whole_run("other"))),
        encode_frame(Subscribed("2", False, "y.9")),
    ):
        assert session.receive_message(message) == ([], [])
    assert session.cursor == "x.0"
    assert session.recovered
    with pytest.raises(DecodeError):
        session.receive_message(b'{"type":"batch","id":"1"}')


def test_a_server_that_says_that_nothing_is_missing_is_believed():
    """No gap, now or with the first batch, though a run that was open has ended: the filter wants nothing of that."""
    session = watching(filter=EventFilter(types="reward"))
    session.receive(Batch("1", "x.1", [event("reward", 7, chain="c", reward=1.0, metrics={})]))
    welcomed(session)
    assert session.receive(Subscribed("1", False, None, []))[1] == []
    assert session.receive(Batch("1", "x.9", []))[1] == []


def test_what_is_lost_begins_after_the_last_event_that_came():
    """The server knows how far the run got, and the client how far it was."""
    session = watching()
    session.receive(Batch("1", "x.1", [event("run_start", 4, "known", **START)]))
    welcomed(session)
    lost = [LostRun("known", "", None, 9, "cancelled"), LostRun("new", "", 0, 5, "completed")]
    _, gaps = session.receive(Subscribed("1", False, None, lost))
    assert told(gaps) == [("known", 5, 9, "cancelled"), ("new", 0, 5, "completed")]


def test_a_server_may_tell_of_what_came_by_another_way():
    """Another server of the same runs does not know what its neighbour sent: only what is new is a gap."""
    session = watching()
    session.receive(Batch("1", "x.1", whole_run("ended")))
    session.receive(Batch("1", "x.1", [event("run_start", 4, "open", **START)]))
    welcomed(session, open="running")
    lost = [LostRun("ended", "", 0, 1, "completed"), LostRun("open", "", 0, 4, "running")]
    assert session.receive(Subscribed("1", False, None, lost, 0, began_anew=True))[1] == []


def test_a_snapshot_that_is_newer_than_the_answer_has_a_gap_for_the_rest():
    """Snapshots that had to be made again tell of a later moment."""
    session = watching()
    session.receive(Batch("1", "x.1", [event("run_start", 0, **START)]))
    welcomed(session, r="running")
    _, gaps = session.receive(Subscribed("1", False, None, [LostRun("r", "", None, 5, "running")]))
    snapshot = event("chain_snapshot", 8, chain="c", messages=[], content=None, tool_calls=[], as_of=8)
    _, came = session.receive(Batch("1", "x.9", [snapshot]))
    assert told(gaps) == [("r", 1, 5, None)]
    assert told(came[:-1]) == [("r", 6, 8, None)]


def test_a_connection_that_is_cut_before_the_first_batch_keeps_what_is_owed():
    """The run may have missed something; the next connection goes on, and the gap stands before its next event."""
    session = watching()
    session.receive(Batch("1", "x.1", [event("run_start", 0, **START)]))
    welcomed(session, r="running")
    session.receive(Subscribed("1", False, None))
    welcomed(session, r="running")
    session.receive(Subscribed("1", True, "x.3"))
    _, came = session.receive(Batch("1", "x.4", [event("run_end", 6, **END)]))
    assert told(came[:-1]) == [("r", 1, 5, None)]


def test_a_batch_with_a_wrong_event_does_not_use_up_the_gap_before_it():
    """The caller got neither; when the batch comes again, whole, the gap stands in it."""
    session = watching()
    session.receive(Batch("1", "x.1", [event("run_start", 0, **START)]))
    welcomed(session, r="running")
    session.receive(Subscribed("1", False, None))
    wrong = event("run_end", 6, **END)
    wrong.data.clear()
    with pytest.raises(DecodeError):
        session.receive(Batch("1", "x.4", [wrong]))
    _, came = session.receive(Batch("1", "x.4", [event("run_end", 6, **END)]))
    assert told(came[:-1]) == [("r", 1, 5, None)]


def test_an_old_client_reads_the_answer_of_a_new_server():
    """The new fields are left out if they say nothing, and ignored by who does not know them."""
    assert json.loads(encode_frame(Subscribed("1", True, None))) == {
        "type": "subscribed", "id": "1", "recovered": True, "cursor": None
    }  # fmt: skip
    full = Subscribed("1", False, None, [LostRun("r", "", None, 5, "running")], 3, began_anew=True)
    assert decode_server_frame(encode_frame(full)) == full


# -- the server ----------------------------------------------------------------------------------------------------------


class Kept:
    """A history with its ledger."""

    def __init__(self, limit=3000):
        self.history, self.ledger = History(limit), RunLedger()

    def take(self, *events):
        position = self.history.head
        self.ledger.note(events, [self.history.append(e) for e in events], position)

    def back(self, since, selector=ALL):
        return way_back(self.history, self.ledger, selector, since)

    def lost(self, since, selector=ALL, **as_of):
        of_lanes = {Lane(run_id, ""): seq for run_id, seq in as_of.items()}
        return losses(self.ledger, selector, self.back(since, selector), of_lanes)


def test_a_place_that_is_held_is_gone_on_from():
    """Also the head, and the start of a history that lost nothing."""
    kept = Kept()
    kept.take(*whole_run("a"))
    for since, position in (("start", 0), (kept.history.cursor(1), 1), (kept.history.cursor(2), 2)):
        assert kept.back(since) == Return(position)


@pytest.mark.parametrize(
    ("wanted", "position"),
    [
        (EventFilter(), None),
        (EventFilter(types="run_end"), None),
        (EventFilter(types="reward"), "tail"),
        (EventFilter(chains="c"), "tail"),
        (EventFilter(runs="late"), "tail"),
        (EventFilter(runs=["late", "early"]), None),
    ],
)
def test_a_place_that_is_gone_is_no_loss_to_who_wants_nothing_of_it(wanted, position):
    """It goes on at the oldest event that is held."""
    kept = Kept()
    for i in range(20):
        kept.take(*whole_run(f"run_{i}"))
    kept.take(
        *whole_run("early"), *(e for i in range(10) for e in whole_run(f"next_{i}")), *whole_run("late")
    )
    assert kept.history.tail > 42
    found = kept.back("start", Selector(wanted)).position
    assert found == (kept.history.tail if position == "tail" else None)


def test_events_on_their_way_to_the_history_are_missing_too():
    """Snapshots tell of a later moment than the history has."""
    kept = Kept()
    kept.take(event("run_start", 0, **START))
    for i in range(40):
        kept.take(*whole_run(f"run_{i}"))
    first = kept.history.cursor(1)
    lost = kept.lost(first, r=4, fresh=2).lost
    assert [(run.run_id, run.from_seq, run.to_seq) for run in lost[-2:]] == [("r", None, 4), ("fresh", 0, 2)]
    assert not [run for run in kept.lost(first, r=0).lost if run.run_id == "r"]


def test_the_answer_fits_in_the_smallest_message_whatever_runs_are_called():
    """Fewer runs are listed then; the rest is counted."""
    kept = Kept()
    for i in range(100):
        kept.take(*whole_run(f"{i}" + "\u2028\x00" * 200))
    lost, more, _ = kept.lost("start")
    assert 0 < len(lost) < 64
    assert len(lost) + more == 100
    frame = encode_frame(Subscribed("i" * 128, False, None, lost, more))
    assert MAX_LOST_BYTES // 2 < len(frame) < SMALLEST_MESSAGE


def test_what_is_remembered_of_runs_is_bounded_and_what_is_forgotten_is_counted(monkeypatch):
    """Open runs are kept longest; nothing that a client missed is left out of the sum."""
    for name, value in (("MAX_RUNS", 50), ("MAX_PLACES", 60), ("BOUND_EVERY", 10)):
        monkeypatch.setattr(ledger_module, name, value)
    kept = Kept()
    kept.take(event("run_start", 0, "open", **START))
    for i in range(300):
        kept.take(*whole_run(f"run_{i}"))
    lost, more, _ = kept.lost("start")
    assert len(kept.ledger._runs) <= 50 + 10
    assert len(kept.ledger._forgotten) <= 50
    assert sum(len(run.places or ()) for run in kept.ledger._runs.values()) <= 60 + 20
    assert kept.ledger.run(Lane("open", "")) is not None
    assert kept.ledger.forgotten(kept.history.head - 4) == 0
    assert more + len(lost) == 301


def test_a_run_of_which_only_the_sum_is_known_counts_as_missed():
    """Better a gap too many than one too few."""
    kept = Kept()
    kept.take(*whole_run("r"))
    kept.ledger.run(Lane("r", "")).places = None
    assert kept.ledger.passed(Selector(EventFilter(types="reward")), 1)
    assert not kept.ledger.passed(Selector(EventFilter(types="reward")), 2)
    assert not kept.ledger.passed(Selector(EventFilter(runs="other")), 0)
