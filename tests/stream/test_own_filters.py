"""A filter of a class of the user's own is asked where its reader is called, and nowhere else."""

import asyncio
import threading

import pytest

from rollcast.errors import InputError
from rollcast.observers import AsyncGeneratorStreamObserver, MultiChainStreamObserver
from rollcast.records import EventFilter
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.stream.own_filter import guarded
from rollcast.testing import EventCapture


def one_run(manager, chains=2):
    with manager.run(chains=chains) as run:
        for _ in range(chains):
            with run.chain([{"role": "user", "content": "Hi"}]) as chain, chain.generation() as generation:
                generation.chunk("Hello")


class OddChains(EventFilter):
    """Wants the chains with odd numbers."""

    def wants(self, event_type, chain_id="", group_id=None, run_id=""):
        return chain_id.endswith(("1", "3"))

    def wants_snapshot(self, chain_id, group_id, run_id):
        return chain_id.endswith(("1", "3"))


class Watcher(StreamObserver):
    def __init__(self, wanted, threaded=False):
        self.filter, self.threaded, self.chains = wanted, threaded, []

    async def on_event(self, event):
        self.chains.append(event.chain_id)


class Batches(Watcher):
    async def on_batch(self, events):
        assert events
        self.chains += [event.chain_id for event in events]


@pytest.mark.parametrize("threaded", [False, True])
def test_a_filter_that_never_returns_holds_up_no_run(threaded):
    """Nor, if its observer has a thread of its own, anybody else."""
    released = threading.Event()

    class Blocks(EventFilter):
        def wants(self, *place):
            released.wait()
            return True

    manager, capture = StreamingManager(drain_timeout=0.2), EventCapture()
    watcher = Watcher(Blocks(), threaded)
    manager.add_observer(watcher)
    manager.add_observer(capture)
    one_run(manager)
    assert watcher.chains == []
    if threaded:
        manager.drain_sync()
        assert len(capture.of("run_end")) == 1
    released.set()
    manager.close()
    assert len(capture.of("run_end")) == 1


@pytest.mark.parametrize("kind", [Watcher, Batches])
def test_it_lets_pass_what_it_wants(kind):
    """One event at a time or many; only those count as delivered."""
    manager, watcher = StreamingManager(), kind(OddChains())
    manager.add_observer(watcher)
    one_run(manager, 4)
    manager.drain_sync()
    assert manager.statistics()[0].delivered == len(watcher.chains) == 10
    manager.close()
    assert set(watcher.chains) == {"chain_1", "chain_3"}


def test_it_is_asked_of_a_child_of_one_chain():
    """Beside the chain that the parent names."""
    manager, watcher = StreamingManager(), Watcher(OddChains())
    parent = MultiChainStreamObserver()
    for chain_id in ("chain_0", "chain_1"):
        parent.add_chain_observer(chain_id, watcher)
    manager.add_observer(parent)
    one_run(manager, 4)
    manager.close()
    assert set(watcher.chains) == {"chain_1"}


async def test_it_is_asked_of_those_that_take_their_events_themselves():
    """A subscription and a generator."""
    manager = StreamingManager()
    subscription, generator = manager.subscribe(OddChains()), AsyncGeneratorStreamObserver(OddChains())
    manager.add_observer(generator)
    await asyncio.to_thread(one_run, manager, 4)
    subscription.close()
    pulled = [event.chain_id async for event in subscription]
    assert pulled == [event.chain_id async for event in generator.events()]
    assert set(pulled) == {"chain_1", "chain_3"}
    await manager.aclose()


async def test_one_that_raises_lets_nothing_pass_to_a_subscription(caplog):
    """That is said once; a run that is relayed does not notice either."""

    class Raises(EventFilter):
        def wants(self, *place):
            raise OSError("no")

        wants_snapshot = wants_gap = wants

    manager = StreamingManager()
    subscription = manager.subscribe(Raises())
    await asyncio.to_thread(one_run, manager)
    subscription.close()
    assert [event async for event in subscription] == []
    assert caplog.text.count("the filter of subscription failed: no") == 1
    await manager.aclose()


@pytest.mark.parametrize("wanted", ["chain_0", 5, ["chain_0"], ""])
async def test_what_is_no_filter_is_refused_by_subscribe(wanted):
    """In a sentence, and nobody else notices."""
    manager, capture = StreamingManager(), EventCapture()
    with pytest.raises(InputError, match="expected an EventFilter"):
        manager.subscribe(wanted)
    manager.add_observer(capture)
    await asyncio.to_thread(one_run, manager)
    await manager.aclose()
    assert len(capture.of("run_end")) == 1


async def test_chains_that_come_into_view_begin_with_a_snapshot():
    """Also if both filters are of own classes."""

    class Nothing(OddChains):
        def wants(self, *place):
            return False

        wants_snapshot = wants

    manager, capture = StreamingManager(), EventCapture()
    capture.filter = Nothing()
    manager.add_observer(capture)
    with manager.run(chains=2) as run:
        for _ in range(2):
            chain = run.chain([{"role": "user", "content": "Hi"}]).start()
        with chain.generation() as generation:
            generation.chunk("Hel")
            await manager.drain()
            capture.filter = OddChains()
            manager.refresh(capture)
            generation.chunk("lo")
    await manager.aclose()
    kinds = [(e.event_type.value, e.chain_id) for e in capture.events]
    assert kinds[:2] == [("chain_snapshot", "chain_1"), ("llm_generation_chunk", "chain_1")]
    assert {chain for _, chain in kinds} == {"chain_1"}


class WithIds(EventFilter):
    """Decides itself of which chains it wants the ids, and fails."""

    def wants_ids(self, *place):
        raise OSError("no")


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        (OddChains(ids=True), {"chain_1": True}),
        (OddChains(), {"chain_1": False}),
        (WithIds(), {"chain_0": True, "chain_1": True}),
        (guarded(OddChains()) | EventFilter(chains="chain_0", ids=True), {"chain_0": True, "chain_1": False}),
        (guarded(OddChains()) & EventFilter(chains="chain_1", ids=True), {"chain_1": True}),
    ],
)
def test_it_gets_ids_if_it_may_want_them(wanted, given):
    """Its `wants_ids` is not asked on the producer's path, so a class that has one of its own gets them always."""
    manager, capture = StreamingManager(), EventCapture()
    watcher = EventCapture(wanted)
    manager.add_observer(watcher)
    manager.add_observer(capture)
    with manager.run(chains=2) as run:
        for _ in range(2):
            with run.chain([{"role": "user", "content": "Hi"}]) as chain, chain.generation() as generation:
                generation.chunk("Hello", [1])
    manager.close()
    ends = watcher.of("llm_generation_end")
    assert {end.chain_id: "token_ids" in end.data for end in ends} == given
    assert not any("token_ids" in end.data for end in capture.of("llm_generation_end"))
