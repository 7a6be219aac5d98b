"""What a hub takes of what producers send, without sockets or disks."""

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet.by_hand import chain, chain_end, chunk, end, event, start
from rollcast.fleet.intake import Intake
from rollcast.fleet.scrutiny import MOST_RUNS
from rollcast.records import check_events, decode
from rollcast.serve.protocol import CloseCode, Hello, Publish
from rollcast.serve.publishing import Refused
from rollcast.stream.waiting import event_of

RUN = [start(0), chain(1, "chain_0"), chain_end(2, "chain_0"), end(3)]


class Link:
    """A connection that remembers with which code it was closed."""

    closed = None

    def send(self, frame):
        """Nothing is sent here."""

    def close(self, code, message):
        """It is closed."""
        self.closed = code


class Play:
    """An intake, its clock, and producers."""

    def __init__(self, **options):
        self.now = 1000.0
        self.intake = Intake(
            clock=lambda: self.now, epoch=lambda: self.now, silent_s=30, lost_after_s=60, **options
        )

    def connect(self, source="w", epoch="e1", **hello):
        """A connection, and the answer."""
        link = Link()
        hello = Hello(role="producer", source=source, epoch=epoch, host=hello.pop("host", "there"), **hello)
        return link, self.intake.connect(hello, link)

    def take(self, link, seq, *events, **fields):
        """What becomes of a publish."""
        return self.intake.take(
            link, Publish(seq, [msgspec.Raw(msgspec.json.encode(e)) for e in events], **fields)
        )

    def row(self, source="w"):
        """The row of a source."""
        return next(row for row in self.intake.producers.rows() if row["source"] == source)


def told(taken):
    """The types and numbers of what is relayed."""
    return [(str(e.event_type), e.seq) for e, _ in taken.events]


ALL = [("run_start", 0), ("chain_start", 1), ("chain_end", 2), ("run_end", 3)]


def test_events_are_passed_on_with_the_bytes_that_came():
    """In order, and nothing stays open."""
    play = Play()
    link, acked = play.connect()
    taken = play.take(link, 1, *RUN)
    assert (acked, told(taken), taken.refused) == (0, ALL, [])
    assert [line for _, line in taken.events] == [msgspec.json.encode(each) for each in RUN]
    assert (play.row()["open_runs"], play.row()["open_chains"]) == (0, 0)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=12))
@settings(deadline=None)
def test_whatever_is_sent_again_is_taken_once(pieces):
    """Any pieces in any order, as long as they begin no later than what is missing."""
    play = Play()
    link, _ = play.connect()
    found = []
    for first, count in [*pieces, (1, 4)]:
        if first <= len(found) + 1:
            found += told(play.take(link, first, *RUN[first - 1 : first - 1 + count]))
    assert found == ALL


def test_numbers_count_for_one_process():
    """Another process of the same source begins at 1 again."""
    play = Play()
    link, _ = play.connect()
    play.take(link, 1, *RUN)
    play.intake.disconnect(link)
    link, acked = play.connect(epoch="e2")
    assert acked == 0
    assert told(play.take(link, 1, *[each | {"run_id": "s"} for each in RUN])) == ALL


def test_what_is_safe_is_acknowledged():
    """To the latest connection, up to the number that was taken when the record was asked."""
    play = Play()
    link, _ = play.connect()
    play.take(link, 1, *RUN[:2])
    (mark,) = play.intake.marks()
    play.take(link, 3, *RUN[2:])
    assert (mark.number, mark.own, play.intake.safe(mark)) == (2, True, True)
    assert play.row()["unacknowledged"] == 2
    (mark,) = play.intake.marks()
    play.intake.disconnect(link)
    assert play.intake.safe(mark) is False  # nobody need be told
    assert play.intake.marks() == []
    assert play.connect()[1] == 4


def test_a_newer_connection_of_one_process_replaces_the_older():
    """The older may hang for long before anybody notices."""
    play = Play()
    old, _ = play.connect()
    _, acked = play.connect()
    assert (old.closed, acked) == (CloseCode.SOURCE_IN_USE, 0)


def test_another_process_replaces_one_that_is_silent():
    """And is refused before."""
    play = Play()
    old, _ = play.connect()
    _, answer = play.connect(epoch="e2")
    assert isinstance(answer, Refused)
    assert (answer.code, old.closed) == (CloseCode.SOURCE_IN_USE, None)
    play.now += 31
    assert play.connect(epoch="e2")[1] == 0
    assert old.closed == CloseCode.SOURCE_IN_USE


def test_a_process_that_has_a_successor_is_given_up_after_a_while():
    """What it left open is told as lost, once."""
    play = Play()
    link, _ = play.connect()
    play.take(link, 1, *RUN[:2])
    play.intake.disconnect(link)
    play.now += 3600
    assert play.intake.due() == []  # it may come back
    play.connect(epoch="e2")
    play.now += 61
    (gap,) = play.intake.due()
    assert (gap.run_id, gap.source, gap.data["run_status"], gap.data["from_seq"]) == ("r", "w", "unknown", 2)
    assert play.intake.due() == []
    assert play.row()["open_chains"] == 0


def test_a_record_that_is_handed_over():
    """Its events are the other process's, and `last` ends what that left open."""
    play = Play()
    link, _ = play.connect()
    play.take(link, 1, *RUN[:1])
    play.intake.disconnect(link)
    heir, _ = play.connect("v")
    taken = play.take(heir, 2, *RUN[1:2], source="w", epoch="e1", last=True)
    assert told(taken) == [("chain_start", 1), ("gap", 2)]
    (mark,) = play.intake.marks()
    assert (mark.source, mark.epoch, mark.number, mark.own) == ("w", "e1", 2, False)


@pytest.mark.parametrize(("host", "connected"), [("there", True), ("elsewhere", False)])
def test_a_record_that_is_not_handed_over(host, connected):
    """That of a producer which is there itself, and that of another host."""
    play = Play()
    link, _ = play.connect()
    if not connected:
        play.intake.disconnect(link)
    thief, _ = play.connect("v", host=host)
    taken = play.take(thief, 1, *RUN, source="w", epoch="e1")
    assert (taken.events, len(taken.refused)) == ([], 1)


def test_more_of_a_record_that_was_refused():
    """Nothing of it is taken until it begins again, since the rest would be acknowledged with a hole in it."""
    play = Play()
    victim, _ = play.connect()
    heir, _ = play.connect("v")
    assert play.take(heir, 1, *RUN[:2], source="w", epoch="e1").handover_refused
    play.intake.disconnect(victim)
    later = play.take(heir, 3, *RUN[2:], source="w", epoch="e1")
    assert later.handover_refused
    assert "from number 1 on" in later.refused[0]
    assert told(play.take(heir, 1, *RUN, source="w", epoch="e1")) == ALL
    assert not play.take(heir, 5, source="w", epoch="e1", last=True).handover_refused


def test_numbers_that_are_left_out_are_a_gap_before_the_next_event():
    """From the last `seq` of its run to that event."""
    play = Play()
    link, _ = play.connect()
    play.take(link, 1, *RUN[:2])
    gap, *rest = [e for e, _ in play.take(link, 10, chain_end(7, "chain_0"), end(8)).events]
    assert (gap.data["from_seq"], gap.data["to_seq"], gap.source) == (2, 6, "w")
    assert [e.seq for e in rest] == [7, 8]
    assert play.row()["missing"] == 7


def test_an_event_that_is_refused_leaves_a_gap():
    """It is named, and what follows it is taken."""
    play = Play()
    link, _ = play.connect()
    wrong = chain_end(2, "chain_0") | {"data": {}}
    taken = play.take(link, 1, *RUN[:2], wrong, end(3))
    assert told(taken) == [("run_start", 0), ("chain_start", 1), ("gap", 2), ("run_end", 3)]
    assert "event 3 was not taken: the data of this chain_end event is wrong" in taken.refused[0]
    assert play.row()["refused"] == {"not an event": 1}


def test_a_run_that_ends_before_its_chains():
    """A gap stands for their ends, as viewers need it."""
    play = Play()
    link, _ = play.connect()
    taken = play.take(link, 1, *RUN[:2], end(2))
    assert told(taken) == [("run_start", 0), ("chain_start", 1), ("gap", 1), ("run_end", 2)]


def test_one_run_too_many():
    """The others go on."""
    play = Play()
    link, _ = play.connect()
    taken = play.take(link, 1, *[start(0, run=f"r{n}") for n in range(MOST_RUNS + 5)])
    assert len(taken.events) == MOST_RUNS
    assert play.row()["refused"] == {"too many": 5}
    assert "512 open runs" in taken.refused[0]


def test_a_run_that_another_process_of_the_source_began():
    """It is refused and named: viewers could not tell the two apart."""
    play = Play()
    link, _ = play.connect()
    play.take(link, 1, *RUN)
    play.intake.disconnect(link)
    link, _ = play.connect(epoch="e2")
    taken = play.take(link, 1, *RUN)
    assert taken.events == []
    assert play.row()["refused"] == {"run of another process": 4}


def test_after_a_restart_the_record_tells_what_was_taken():
    """Of processes that were known; of others the run is another process's."""
    play = Play(recorded={("r", "w"): 1}, acked={("w", "e1"): 1})
    link, acked = play.connect()
    assert acked == 1
    assert told(play.take(link, 2, *RUN[1:])) == ALL[2:]
    assert play.row()["duplicates"] == 1
    other = Play(recorded={("r", "w"): 1})
    link, _ = other.connect()
    assert other.take(link, 1, *RUN).events == []


def snapshot_of(seq):
    """A snapshot of the chain that `RUN` begins."""
    return event("chain_snapshot", seq, "chain_0", messages=[], content="text", tool_calls=[], as_of=seq)


def test_after_a_restart_a_snapshot_is_not_taken_for_what_the_record_has():
    """It has the text that nobody watched while the hub was away, although its `seq` is one that is recorded (seed 143)."""
    play = Play(recorded={("r", "w"): 1}, acked={("w", "e1"): 1})
    link, _ = play.connect()
    (kept,) = told(play.take(link, 2, snapshot_of(1)))
    assert kept[0] == "chain_snapshot"


def test_after_a_restart_a_snapshot_before_what_the_record_has_opens_nothing_again():
    """The run has ended in the record, but was not acknowledged: its chain would be open for ever (seeds 169, 171)."""
    play = Play(recorded={("r", "w"): 3}, acked={("w", "e1"): 2})
    link, _ = play.connect()
    assert told(play.take(link, 3, snapshot_of(1), *RUN[2:])) == []
    assert not play.intake.runs.is_open("r")
    assert play.row()["duplicates"] == 3


def test_after_a_restart_a_snapshot_does_not_bring_back_a_chain_that_ended_in_an_open_run():
    """Its end is recorded, and would not come again."""
    play = Play(recorded={("r", "w"): 2}, acked={("w", "e1"): 2})
    restored(play, RUN[0])
    link, _ = play.connect()
    assert told(play.take(link, 3, snapshot_of(1), *RUN[2:])) == [("run_end", 3)]
    assert not play.intake.runs.is_open("r")


def restored(play, *events):
    """What was open when the hub was restarted."""
    play.intake.restore([decode(msgspec.json.encode(each)) for each in events])


def test_what_was_open_at_a_restart_is_given_up_if_its_producer_does_not_come_back():
    """After a while, once, with a number that the record does not have."""
    play = Play(recorded={("r", "w"): 7}, acked={("w", "e1"): 8})
    restored(play, *RUN[:2])
    play.now += 599
    assert play.row()["silent_s"] == 599
    assert play.intake.due() == []
    play.now += 2
    (gap,) = play.intake.due()
    assert (gap.run_id, gap.source, gap.data["run_status"], gap.data["from_seq"]) == ("r", "w", "unknown", 8)
    assert "did not come back after the hub was started again" in gap.data["reason"]
    assert play.intake.due() == []
    assert not play.intake.runs.is_open("r")


def test_a_producer_that_comes_back_after_a_restart_keeps_what_it_has_open():
    """However long it takes then, and though it goes again."""
    play = Play(recorded={("r", "w"): 1}, acked={("w", "e1"): 2})
    restored(play, *RUN[:2])
    play.now += 599
    link, _ = play.connect()
    play.now += 3600
    assert play.intake.due() == []
    play.intake.disconnect(link)
    play.now += 3600
    assert play.intake.due() == []


def test_a_producer_that_comes_back_too_late_goes_on():
    """What it sends then is taken."""
    play = Play(recorded={("r", "w"): 1}, acked={("w", "e1"): 2})
    restored(play, *RUN[:2])
    play.now += 601
    assert len(play.intake.due()) == 1
    link, _ = play.connect()
    taken = play.take(link, 3, *RUN[2:])
    assert told(taken)[-1] == ("run_end", 3)
    assert taken.refused == []


def test_a_restored_process_whose_successor_comes_is_given_up_as_any_other():
    """It has no longer than without the restart."""
    play = Play(recorded={("r", "w"): 1}, acked={("w", "e1"): 2})
    restored(play, *RUN[:2])
    play.connect(epoch="e2")
    play.now += 61
    (gap,) = play.intake.due()
    assert "was replaced by another" in gap.data["reason"]


def test_a_restored_run_of_which_no_process_is_known_is_given_up():
    """Nobody could go on with it."""
    play = Play(recorded={("r", "w"): 4})
    restored(play, *RUN[:2])
    assert play.intake.due() == []
    play.now += 601
    (gap,) = play.intake.due()
    assert (gap.run_id, gap.source, gap.data["run_status"], gap.data["from_seq"]) == ("r", "w", "unknown", 5)
    assert play.intake.due() == []


def test_a_source_that_ends_with_its_leader():
    """Its part of the run is over, too."""
    play = Play()
    leader, _ = play.connect("d")
    link, _ = play.connect()
    play.take(leader, 1, start(0, source="d"))
    play.take(link, 1, start(0, leader="d"), chain(1, "chain_0"))
    assert sorted(play.intake.runs.links_of("r")) == ["d", "w"]
    play.take(leader, 2, end(1, source="d"))
    assert not play.intake.runs.is_open("r")


def test_a_producer_that_is_dead_for_certain():
    """Ends at once."""
    play = Play()
    link, _ = play.connect()
    play.take(link, 1, *RUN[:2])
    (gap,) = play.intake.lose("w")
    assert gap.data["run_status"] == "unknown"
    assert play.intake.lose("nobody") == []


KINDS = [
    start(0),
    end(0),
    chain(0, "chain_0"),
    chain_end(0, "chain_0"),
    chain(0, "chain_1"),
    chain_end(0, "chain_1"),
    chunk(0, "chain_0", "x", 0, step=1),
    event(
        "llm_generation_start",
        0,
        "chain_0",
        step=1,
        prompt_tokens=1,
        model="m",
        policy_version=0,
        sampling={},
    ),
    event("gap", 0, from_seq=0, to_seq=3, dropped={}, reason="?"),
    event("from_the_future", 0, "chain_0"),
    {"no": "event"},
    start(0) | {"source": "x"},
]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(-1, 12), st.integers(1, 3)), max_size=40))
@example(
    [(KINDS[7], 0, 1), (KINDS[6], 1, 1)]
)  # a chunk that continues its generation is relayed without an event
@settings(deadline=None, max_examples=300)
def test_nothing_that_is_relayed_breaks_the_grammar(said):
    """Whatever a producer says: viewers stop for good at an event that breaks it."""
    play = Play()
    link, _ = play.connect()
    relayed, number = [], 1
    for kind, seq, leap in said:
        taken = play.take(link, number, kind | {"seq": seq} if "seq" in kind else kind)
        relayed += [event_of(each) for each, _ in taken.events]
        number += leap
    checker_of = [event_of(each) for each in relayed if each.run_id]
    try:
        check_events(checker_of, late=True)
    except Exception as error:
        if "the events end, but run" not in str(error):
            raise
    assert play.row()["events"] == len(relayed)
