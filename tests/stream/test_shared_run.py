"""A run of this process of which other processes run chains."""

import pytest

from rollcast.errors import InputError
from rollcast.records import EventFilter
from rollcast.stream import StreamingManager
from rollcast.testing import EventCapture, capture_events

HELLO = [{"role": "user", "content": "hello"}]


async def part_elsewhere(run_id):
    """The events of a runner that plays one chain of the run."""
    manager = StreamingManager(source="runner")
    with capture_events(manager) as capture:
        async with manager.run(run_id=run_id, chains=0, groups=0, leader="") as run:
            with (
                run.chain(HELLO, chain_id="chain_0", group_id="group_0") as chain,
                chain.generation() as generation,
            ):
                generation.chunk("Hel")
                generation.chunk("lo")
    return capture.events


@pytest.fixture
async def shared():
    """A manager, its open run that announced two chains, and the events of the first elsewhere up to its first token."""
    manager, asked = StreamingManager(), []
    run = manager.run(chains=2, on_cancel=asked.append).open()
    for i in range(2):
        run.announce(f"chain_{i}", "group_0")
    events = await part_elsewhere(run.run_id)
    for event in events[:4]:
        manager.relay(event)
    yield manager, run, events, asked
    run.close()
    await manager.aclose()


async def test_who_joins_late_gets_a_snapshot_of_the_chain_elsewhere(shared):
    """And then what it goes on with; the run opens and closes once."""
    manager, run, events, _ = shared
    late = EventCapture()
    manager.add_observer(late)
    for event in events[4:]:
        manager.relay(event)
    assert not run.status
    run.close()
    await manager.drain()
    (snapshot,) = [event for event in late.events if event.event_type == "chain_snapshot"]
    assert (snapshot.chain_id, snapshot.data["content"], snapshot.source) == ("chain_0", "Hel", "runner")
    assert late.events[-1].event_type == "run_end"
    assert late.closed_chains == ["chain_0"]
    assert late.closed_runs == [run.run_id]
    assert not manager.fanout.runs


async def test_a_watcher_cancels_the_chain_elsewhere_as_one_of_this_process(shared):
    """It is open, the other one has not begun; the run's own `on_cancel` is asked."""
    manager, run, _, asked = shared
    assert manager.cancel(run.run_id, group_id="group_0") == ["chain_0"]
    assert asked == ["chain_1", "chain_0"]
    with pytest.raises(InputError, match="no open chain 'chain_7'"):
        manager.cancel(run.run_id, "chain_7")


async def test_each_source_has_its_own_numbers(shared):
    """Those of this process go on, whatever is relayed."""
    manager, run, events, _ = shared
    cut = manager.fanout.cut(EventFilter())
    assert {lane.source: seq for lane, seq in cut.as_of.items()} == {"": run.seq, "runner": events[3].seq}


async def test_the_totals_count_the_chains_of_both(shared):
    """Open chains, and where each is."""
    manager, run, _, _ = shared
    with run.chain(HELLO, chain_id="chain_1") as chain, chain.generation() as generation:
        generation.chunk("one")
        assert manager.totals().open_chains == 2
        there = manager.fanout.runs[run.run_id]
        assert there.place_in("chain_0") == (1, 3)
        assert there.place_in("chain_1") == (1, 3)
        assert there.open_part("chain_0").content == "Hel"
        assert there.chain_ids() == ["chain_1", "chain_0"]


async def test_chains_that_ran_elsewhere_are_in_the_totals_of_the_end():
    """Once their trajectories are back."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        async with manager.run(chains=1) as run:
            run.announce("chain_0")
            other = StreamingManager().run().open()
            with other.chain(HELLO, chain_id="chain_0.2") as chain, chain.generation() as generation:
                generation.chunk("one")
            run.count_elsewhere(chain.trajectory, "chain_0")
            assert not run.announced
    end = capture.events[-1].data
    assert (end["chains"], end["completion_tokens"]) == (1, 1)
