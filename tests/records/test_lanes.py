"""A run over several processes: what its sources emit is one run, which ends when each of them has ended."""

import random

import pytest

from doubles import interleaved, part_of_run
from rollcast.archive.run_rows import RunTally
from rollcast.archive.skeleton import Skeleton
from rollcast.records import EventFilter, GrammarChecker, StreamEvent, StreamEventType
from rollcast.records.lanes import Lane, RunSources, end_status, worst_status
from rollcast.records.run_view import RunView
from rollcast.serve.history import History
from rollcast.serve.ledger import RunLedger
from rollcast.serve.runs import KnownRuns

T = StreamEventType
STATUSES = ("completed", "completed", "cancelled", "failed")


def parts(dice):
    """What two to four sources emit of one run."""
    return [
        part_of_run("r", f"rank{rank}", [f"chain_{rank + 4 * i}" for i in range(dice.randint(0, 3))], dice.choice(STATUSES))
        for rank in range(dice.randint(2, 4))
    ]  # fmt: skip


def started_before_ended(streams, dice):
    """The events in a random order in which every source has begun before one ends."""
    events = list(interleaved(streams, dice))
    starts = [event for event in events if event.event_type is T.RUN_START]
    return starts + [event for event in events if event.event_type is not T.RUN_START]


@pytest.mark.parametrize("seed", range(40))
def test_a_run_is_open_until_its_last_source_has_ended(seed):
    """Its status is then the worst of theirs, whatever the order; every watcher says the same."""
    dice = random.Random(seed)
    streams = parts(dice)
    events = started_before_ended(streams, dice)
    sources, view, known = RunSources(), RunView(), KnownRuns()
    for event in events:
        sources.note(event)
        view.apply(event)
        if event.event_type in (T.RUN_START, T.RUN_END):
            known.note(event)
        last = event is events[-1]
        assert sources.over is last
        assert (view.ended_at is not None) is last
        assert (known.listed({})[0].status != "running") is last
    worst = worst_status(stream[-1].data["status"] for stream in streams)
    assert sources.status == view.status == known.listed({})[0].status == worst
    assert set(sources.names) == set(view.sources) == {stream[0].source for stream in streams}


@pytest.mark.parametrize("seed", range(20))
def test_what_sources_tell_of_a_run_is_added_up(seed):
    """Its chains, tokens and reward; and its row is one row that names the sources."""
    dice = random.Random(seed)
    streams = parts(dice)
    view, tally, skeleton, checker = RunView(), RunTally(), Skeleton(), GrammarChecker()
    for position, event in enumerate(started_before_ended(streams, dice)):
        view.apply(event)
        tally.event(event)
        checker.feed(event)
        skeleton.feed(event, position)
    checker.close()
    chains = sum(stream[0].data["chains"] for stream in streams)
    rows = [row for row in skeleton.take_rows() if row.row == "end"]
    assert [row.state for row in rows] == ["ended"] * chains
    assert (view.expected_chains, len(view.chains), skeleton.totals.chains) == (chains, chains, chains)
    assert view.tokens == skeleton.totals.completion_tokens == 2 * chains
    assert view.mean_reward == (1.0 if chains else None)
    assert skeleton.totals.runs == 1
    assert skeleton.outcome == view.status
    (row,) = tally.rows(over=True)
    assert row["sources"] == {stream[0].source: stream[-1].data["status"] for stream in streams}


def test_the_end_of_one_source_leaves_the_chains_of_the_others_open():
    """Only its own are lost if they have not ended."""
    one, other = part_of_run("r", "a", ["chain_0"]), part_of_run("r", "b", ["chain_1"])
    view, skeleton = RunView(), Skeleton(live=True)
    for event in [*one[:4], *other[:4], one[-1]]:
        view.apply(event)
        skeleton.feed(event, -1)
    assert (view.chains["chain_0"].state, view.chains["chain_1"].state) == ("lost", "generating")
    assert skeleton.open_chains() == [("r", "chain_1")]
    assert view.status == "running"


def test_a_gap_of_one_source_says_nothing_of_the_others():
    """Neither of their numbers nor of their chains."""
    one, other = part_of_run("r", "a", ["chain_0"]), part_of_run("r", "b", ["chain_1"])
    data = {"from_seq": 4, "to_seq": 500, "dropped": {}, "reason": "test", "run_status": "failed"}
    gap = StreamEvent(T.GAP, "", 1.0, data, None, None, 500, "r", None, "a")
    checker, view = GrammarChecker(), RunView()
    for event in [*one[:4], *other[:4], gap, *other[4:]]:
        checker.feed(event)
        view.apply(event)
    assert view.chains["chain_1"].state == "ended"
    assert (view.chains["chain_0"].state, view.status) == ("lost", "failed")


def test_a_gap_without_a_source_may_stand_for_the_ends_of_all():
    """Whoever made it did not know whose."""
    sources = RunSources()
    for name in ("a", "b"):
        sources.note(part_of_run("r", name)[0])
    data = {"from_seq": 0, "to_seq": 0, "dropped": {}, "reason": "", "run_status": "unknown"}
    sources.note(StreamEvent(T.GAP, "", 1.0, data, run_id="r"))
    assert (sources.over, sources.status) == (True, "unknown")


def test_a_source_that_begins_once_more_opens_the_run_again():
    """A worker that was replaced has the name of the one before it."""
    sources = RunSources()
    start, end = part_of_run("r", "a")
    for event in (start, end, start):
        sources.note(event)
    assert sources.status == "running"


def test_what_ends_nothing_has_no_status():
    """A gap ends a run only if it says so."""
    data = {"from_seq": 0, "to_seq": 0, "dropped": {}, "reason": ""}
    assert end_status(StreamEvent(T.GAP, "", 1.0, data)) is None
    assert end_status(part_of_run("r", "a")[0]) is None
    assert end_status(part_of_run("r", "a", status="failed")[-1]) == "failed"


def test_the_failure_of_somebody_who_watches_elsewhere_opens_no_part_of_the_run():
    """A hub's observer fails, and says so in the run that it watched."""
    one = part_of_run("r", "a", ["chain_0"])
    data = {"error": "x", "error_type": "X", "where": "observer:x"}
    failed = StreamEvent(T.ERROR, "", 1.0, data, None, None, 1, "r", None, "hub")
    checker, view, skeleton = GrammarChecker(), RunView(), Skeleton()
    for event in [*one[:3], failed, *one[3:]]:
        checker.feed(event)
        view.apply(event)
        skeleton.feed(event, -1)
    checker.close()
    assert (view.status, list(view.sources)) == ("completed", ["a"])
    assert not skeleton.runs


def test_a_filter_may_name_sources():
    """And joins and meets others as its other names do."""
    one, both = EventFilter(sources="a"), EventFilter(sources=["a", "b"], types="run_end")
    event = part_of_run("r", "a")[-1]
    assert one.matches(event)
    assert not EventFilter(sources="b").matches(event)
    assert (one & both) == EventFilter(sources="a", types="run_end")
    assert (EventFilter(sources="b") | both).matches(event)
    assert EventFilter.from_dict(both.to_dict()) == both
    assert not one.wants_snapshot("chain_0", None, "r", "b")
    assert one.wants_snapshot("chain_0", None, "r", "a")
    assert (one.wants_gap("r", "a"), one.wants_gap("r", "b"), one.wants_gap("r")) == (True, False, True)


def led_run(dice):
    """What a driver and two workers emit of one run: the driver tells what it is, the workers play its chains; one dies."""
    driver = part_of_run("r", "driver", status="completed")
    driver[0].data.update(chains=2, groups=2, agent="the agent")
    driver[-1].data.update(chains=2, completion_tokens=2, mean_reward=0.5, failed=1, duration_s=9.0)
    one, other = (part_of_run("r", f"worker{i}", [f"chain_{i}"]) for i in range(2))
    for worker in (one, other):
        worker[0].data.update(chains=0, groups=0, leader="driver", agent="worker")
    del other[dice.randrange(2, len(other) - 1) :]  # it dies in the middle of its chain
    return [driver[0], *interleaved([driver[1:-1], one, other], dice), driver[-1]]


@pytest.mark.parametrize("seed", range(30))
def test_the_leader_of_a_run_tells_what_it_is_and_ends_it(seed):
    """What its workers left open is lost, and their own sums are not added to the leader's."""
    events = led_run(random.Random(seed))
    sources, view, known, checker = RunSources(), RunView(), KnownRuns(), GrammarChecker()
    skeleton, ledger, history = Skeleton(), RunLedger(), History(1 << 20)
    for event in events:
        assert not sources.over
        ended = sources.note(event)
        view.apply(event)
        checker.feed(event)
        skeleton.feed(event, -1)
        ledger.note([event], [history.append(event)], history.head - 1)
        if event.event_type in (T.RUN_START, T.RUN_END):
            known.note(event)
    checker.close()
    assert set(ended) == {"driver", "worker1"}
    assert sources.over
    assert (sources.status, view.status, known.listed({})[0].status) == ("completed",) * 3
    assert (view.agent, view.expected_chains, view.mean_reward, view.completion_tokens_said) == (
        "the agent",
        2,
        0.5,
        2,
    )
    assert (view.chains["chain_0"].state, view.chains["chain_1"].state) == ("ended", "lost")
    assert known.listed({})[0].chains == 2
    assert (skeleton.runs, skeleton.open_chains(), skeleton.outcome) == ({}, [], "completed")
    assert ledger.run(Lane("r", "worker1")).status == "completed"


def test_a_source_cannot_lead_itself():
    """It would be nobody's part then."""
    start, end = part_of_run("r", "a")
    start.data["leader"] = "a"
    view, sources = RunView(), RunSources()
    for event in (start, end):
        view.apply(event)
        sources.note(event)
    assert (view.status, sources.status, view.agent) == ("completed", "completed", "a")


def test_an_evaluation_over_several_sources_has_one_row():
    """With the sums of their parts, when the last has ended."""
    skeleton = Skeleton()
    one, other = part_of_run("r", "a", ["chain_0"]), part_of_run("r", "b", ["chain_1", "chain_2"])
    for part in (one, other):
        part[0].data.update(split="eval", train_step=3)
    one[-1].data["mean_reward"] = 0.25
    for event in [one[0], other[0], *one[1:], *other[1:-1]]:
        skeleton.feed(event, -1)
    assert skeleton.take_train_rows() == []
    skeleton.feed(other[-1], -1)
    (row,) = skeleton.take_train_rows()
    assert (row["row"], row["train_step"], row["chains"], row["mean_reward"]) == ("evaluation", 3, 3, 0.75)
