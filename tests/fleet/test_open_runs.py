"""Which producers have a run open, without sockets or disks."""

import msgspec
import pytest

from fleet.by_hand import chain, end, start
from rollcast.fleet import open_runs
from rollcast.fleet.open_runs import OpenRuns
from rollcast.fleet.sources import Process, Source
from rollcast.records.codec import decode_unchecked


class Part:
    """A source with one process, which tells of runs."""

    def __init__(self, runs, name):
        self.runs = runs
        self.source = Source(name)
        self.process = self.source.epochs["e1"] = Process(None)

    def says(self, *events):
        """The runs are told of these events."""
        for each in events:
            event = decode_unchecked(msgspec.json.encode(each | {"source": self.source.name}))
            self.runs.note(self.source, self.process, event)


@pytest.fixture
def runs():
    return OpenRuns()


def test_a_run_is_open_until_each_of_its_sources_has_ended_its_part(runs):
    """And what has ended is known as ended."""
    first, second = Part(runs, "a"), Part(runs, "b")
    first.says(start(0))
    second.says(start(0))
    assert [each.name for each in runs.sources_of("r")] == ["a", "b"]
    first.says(end(1))
    assert (runs.is_open("r"), runs.has_ended("r", "a"), runs.has_ended("r", "b")) == (True, True, False)
    second.says(end(1))
    assert not runs.is_open("r")
    assert runs.ended == {("r", "a"): "e1", ("r", "b"): "e1"}


def test_a_process_that_is_given_up_has_ended_its_parts(runs):
    """A gap for each run says so, from the next `seq` on."""
    part = Part(runs, "a")
    part.says(start(0), chain(1, "chain_0"), start(0, run="s"))
    gaps = list(runs.give_up(part.source, part.process, "it died", "completed"))
    told = [(each.run_id, each.data["from_seq"], each.data["run_status"]) for each in gaps]
    assert told == [("r", 2, "completed"), ("s", 1, "completed")]
    assert runs.has_ended("s", "a")
    assert list(runs.give_up(part.source, part.process, "it died")) == []


def test_the_oldest_ends_are_forgotten(runs, monkeypatch):
    """However many runs there were, the memory for them is bounded."""
    monkeypatch.setattr(open_runs, "MOST_ENDED", 2)
    part = Part(runs, "a")
    for run in "xyz":
        part.says(start(0, run=run), end(1, run=run))
    assert [runs.has_ended(run, "a") for run in "xyz"] == [False, True, True]
