"""Whose tokens producers are asked for."""

from rollcast.fleet.interest import MOST_NAMES, interest_of
from rollcast.records import EventFilter
from rollcast.serve.protocol import FilterFrame


def test_nobody_watches():
    """No filter at all, and those that want no tokens."""
    assert interest_of([]) == []
    assert interest_of([EventFilter(types=("reward", "run_end"))]) == []


def test_chains_that_are_watched():
    """Filters that differ only in their chains are one."""
    filters = [EventFilter(runs="r", chains="b"), EventFilter(runs="r", chains="a"), EventFilter(groups="g")]
    assert interest_of(filters) == [FilterFrame(groups=["g"]), FilterFrame(["r"], ["a", "b"])]


def test_a_union_counts_for_each_of_its_parts():
    """Only the part that wants tokens."""
    wanted = EventFilter(chains="a") | EventFilter(types="run_start")
    assert interest_of([wanted]) == [FilterFrame(chains=["a"])]


def test_everything_leaves_nothing_to_say_of_the_rest():
    """One filter that lets all pass."""
    assert interest_of([EventFilter(), EventFilter(chains="a")]) == [FilterFrame()]
    assert interest_of([EventFilter(types="llm_generation_chunk"), EventFilter(chains="a")]) == [
        FilterFrame()
    ]


def test_no_list_is_longer_than_a_frame_may_have():
    """It is several filters; and with very many names everything is wanted."""
    names = [f"chain_{n}" for n in range(2500)]
    found = interest_of([EventFilter(chains=names)])
    assert sorted(name for each in found for name in each.chains) == sorted(names)
    assert max(len(each.chains) for each in found) == 1024
    assert interest_of([EventFilter(chains=[f"c{n}" for n in range(MOST_NAMES + 1)])]) == [FilterFrame()]
