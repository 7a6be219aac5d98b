"""Observers that stand for others."""

import asyncio

import pytest

from rollcast import (
    ChainSpecificStreamObserver,
    EventFilter,
    MultiChainStreamObserver,
    StreamEventType,
    StreamingManager,
)
from rollcast.errors import InputError
from rollcast.testing import EventCapture, RaisingObserver

T = StreamEventType
HELLO = [{"role": "user", "content": "hello"}]


async def a_run(manager, chains=3):
    async with manager.run(chains=chains) as run:
        await asyncio.gather(*(chain(run, i) for i in range(chains)))


async def chain(run, i):
    with run.chain(HELLO) as chain, chain.generation() as generation:
        for word in ("this", " is", f" {i}"):
            generation.chunk(word)
            await asyncio.sleep(0)


async def test_each_child_sees_its_chain_alone():
    """As in the specification's example."""
    manager, multi = StreamingManager(), MultiChainStreamObserver()
    children = {f"chain_{i}": EventCapture() for i in range(3)}
    for chain_id, child in children.items():
        multi.add_chain_observer(chain_id, ChainSpecificStreamObserver(chain_id, child))
    everything = EventCapture()
    multi.add_global_observer(everything)
    manager.add_observer(multi)
    await a_run(manager)
    for i, (chain_id, child) in enumerate(children.items()):
        assert {e.chain_id for e in child.events} == {chain_id}
        assert child.text(chain_id) == f"this is {i}"
        assert child.types()[0] == "chain_start"
        assert child.types()[-1] == "chain_end"
    everything.check()
    assert manager.observers == [multi]


async def test_one_child_may_have_several_chains():
    """It is one observer that wants them all, called once an event."""
    manager, multi, child = StreamingManager(), MultiChainStreamObserver(), EventCapture()
    multi.add_chain_observer("chain_0", child)
    multi.add_chain_observer("chain_2", child)
    manager.add_observer(multi)
    await a_run(manager)
    assert {e.chain_id for e in child.events} == {"chain_0", "chain_2"}
    assert len({e.seq for e in child.events}) == len(child.events)


async def test_a_childs_own_filter_holds():
    """Both filters must let an event pass."""
    manager, child = StreamingManager(), EventCapture(EventFilter(types=[T.CHAIN_END]))
    manager.add_observer(ChainSpecificStreamObserver("chain_1", child))
    await a_run(manager)
    assert [(e.event_type, e.chain_id) for e in child.events] == [(T.CHAIN_END, "chain_1")]


async def test_a_raising_child_is_isolated_from_the_others():
    """The others see everything, its failure among it, and it is detached alone."""
    manager, multi = StreamingManager(), MultiChainStreamObserver()
    raising, good = RaisingObserver(), EventCapture()
    multi.add_chain_observer("chain_0", raising)
    multi.add_global_observer(good)
    manager.add_observer(multi)
    await a_run(manager)
    assert raising.calls == 5
    good.check()
    assert [e.data["where"] for e in good.of("error")] == ["observer:RaisingObserver"]
    assert [s.name for s in manager.statistics()] == ["EventCapture"]


async def test_children_come_and_go_while_chains_run():
    """A late child begins with a snapshot; a removed one gets no more."""
    manager, multi = StreamingManager(), MultiChainStreamObserver()
    early, late = EventCapture(), EventCapture()
    multi.add_chain_observer("chain_0", early)
    manager.add_observer(multi)
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            generation.chunk("one ")
            multi.add_chain_observer("chain_0", late)
            multi.remove_chain_observer("chain_0", early)
            generation.chunk("two")
    await manager.drain()
    assert early.text("chain_0") == "one "
    assert late.types()[0] == "chain_snapshot"
    assert late.text("chain_0") == "two"
    late.check(late=True)


async def test_a_child_that_takes_on_a_chain_gets_its_snapshot():
    """And no second one of the chain that it had."""
    manager, multi, child = StreamingManager(), MultiChainStreamObserver(), EventCapture()
    multi.add_chain_observer("chain_0", child)
    manager.add_observer(multi)
    async with manager.run(chains=2) as run:
        with run.chain(HELLO), run.chain(HELLO):
            multi.add_chain_observer("chain_1", child)
    snapshots = child.of("chain_snapshot")
    assert [e.chain_id for e in snapshots] == ["chain_1"]


async def test_they_nest():
    """A chain of a multi-chain observer."""
    manager, inner, child = StreamingManager(), MultiChainStreamObserver(), EventCapture()
    inner.add_global_observer(child)
    manager.add_observer(ChainSpecificStreamObserver("chain_1", inner))
    await a_run(manager)
    assert {e.chain_id for e in child.events} == {"chain_1"}


async def test_by_hand_it_dispatches_too():
    """Without a manager `on_event` gives the event to who wants it."""
    multi, mine, other = MultiChainStreamObserver(), EventCapture(), EventCapture()
    multi.add_chain_observer("chain_0", mine)
    multi.add_chain_observer("chain_1", other)
    with_manager = StreamingManager()
    capture = EventCapture()
    with_manager.add_observer(capture)
    await a_run(with_manager, chains=1)
    for event in capture.events:
        await multi.on_event(event)
    assert mine.text("chain_0") == "this is 0"
    assert other.events == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MultiChainStreamObserver().add_global_observer(print),
        lambda: MultiChainStreamObserver().add_chain_observer(0, EventCapture()),
        lambda: ChainSpecificStreamObserver("chain_0", print),
    ],
)
def test_wrong_arguments_are_refused(wrong):
    """One sentence."""
    with pytest.raises(InputError, match="expected"):
        wrong()
