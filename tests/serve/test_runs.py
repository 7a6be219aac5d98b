"""The runs that a server remembers: which of them it lists, and what becomes of those whose end was lost."""

import pytest

from doubles import part_of_run
from rollcast import StreamEvent, StreamEventType
from rollcast.archive.run_rows import RunTally
from rollcast.serve.runs import KnownRuns

T = StreamEventType


def lost(source, seq=9, status="unknown", run="r"):
    """The `gap` that stands for the end of a source's part of a run."""
    data = {"from_seq": seq, "to_seq": seq, "dropped": {}, "reason": "it died", "run_status": status}
    return StreamEvent(T.GAP, "", 1e9, data, seq=seq, run_id=run, source=source)


def known_of(*events):
    """What is remembered after these events."""
    known = KnownRuns()
    for event in events:
        known.note(event)
    return known


def rows_of(known):
    """The status of each run's row, and of each of its sources."""
    tally = RunTally()
    for event in known.events():
        tally.event(event)
    return [(row["status"], row["sources"]) for row in tally.rows(over=False)]


def test_a_run_whose_end_was_lost_is_not_listed_and_its_row_says_so():
    """A client reads only the statuses of a `run_end` in the list; the row says that nobody knows."""
    known = known_of(part_of_run("r", "w")[0], lost("w"))
    assert known.listed({}) == []
    assert rows_of(known) == [("unknown", {"w": "unknown"})]


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed"])
def test_a_gap_may_say_how_a_run_ended(status):
    """Then the run is listed like any other."""
    known = known_of(part_of_run("r", "w")[0], lost("w", status=status))
    assert [(run.run_id, run.status) for run in known.listed({})] == [("r", status)]
    assert rows_of(known) == [(status, {"w": status})]


def test_a_run_goes_on_if_one_of_its_sources_is_lost():
    """It is over when the others have ended too, and nobody knows how all of it went."""
    one, other = part_of_run("r", "w"), part_of_run("r", "v")
    known = known_of(one[0], other[0], lost("w"))
    assert [(run.status) for run in known.listed({})] == ["running"]
    known.note(other[-1])
    assert known.listed({}) == []
    assert rows_of(known) == [("unknown", {"w": "unknown", "v": "completed"})]


def test_a_source_that_was_given_up_may_end_its_part_after_all():
    """Its own end counts, and so does a second beginning."""
    begin, end = part_of_run("r", "w")
    known = known_of(begin, lost("w"), end)
    assert [run.status for run in known.listed({})] == ["completed"]
    known = known_of(begin, lost("w"), begin)
    assert [run.status for run in known.listed({})] == ["running"]
