"""Thousands of chains at once: what one turn of the event loop brings has to find room, and a reader."""

import asyncio

from rollcast.observers import AsyncGeneratorStreamObserver
from rollcast.records import EventFilter, StreamEventType
from rollcast.stream import StreamingManager
from rollcast.testing import EventCapture

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
HELLO = [{"role": "user", "content": "hello"}]


async def many_chains(manager, chains, tokens):
    """A run whose chains all speak in every turn of the loop."""

    async def one(run):
        with run.chain(HELLO) as chain, chain.generation(sampling={"temperature": 1.0}) as generation:
            for i in range(tokens):
                generation.chunk(f"t{i} ", [1000 + i], [-0.5])
                await asyncio.sleep(0)

    async with manager.run(chains=chains) as run:
        await asyncio.gather(*[asyncio.create_task(one(run)) for _ in range(chains)])


async def test_nothing_is_dropped_where_thousands_begin_and_end_at_once():
    """Their starts alone are more than 8 MiB; the queue has room for each chain that is open."""
    manager = StreamingManager(drain_timeout=60)
    capture = EventCapture(mode="coalesce")
    manager.add_observer(capture)
    await many_chains(manager, chains=4000, tokens=2)
    (numbers,) = manager.statistics()
    assert manager.fanout.queue_limit > 8 << 20
    assert numbers.dropped == 0
    assert capture.types().count("chain_start") == capture.types().count("chain_end") == 4000
    assert "gap" not in capture.types()


async def test_an_observer_added_then_has_that_room_too():
    """The limit is the manager's, not that of the observers who were there."""
    manager = StreamingManager()
    async with manager.run(chains=2000) as run:
        for _ in range(2000):
            run.chain(HELLO).start()
        late = EventCapture(mode="coalesce")
        manager.add_observer(late)
        (delivery,) = manager.fanout.deliveries
        assert delivery.limit == manager.fanout.queue_limit == 2000 * 8192


async def test_a_limit_that_was_given_stays():
    """Whoever bounds the memory means it."""
    manager = StreamingManager(queue_limit=100_000, drain_timeout=60)
    manager.add_observer(EventCapture(mode="coalesce"))
    await many_chains(manager, chains=1000, tokens=1)
    assert manager.fanout.queue_limit == 100_000
    assert manager.statistics()[0].dropped > 0


async def test_an_observer_gets_as_much_time_as_the_chains():
    """With a thousand chains that speak in each turn of the loop, it sees tokens and not merged text."""
    manager = StreamingManager(drain_timeout=60)
    capture = EventCapture(EventFilter(types=[CHUNK]), mode="coalesce")
    manager.add_observer(capture)
    await many_chains(manager, chains=1000, tokens=20)
    assert len(capture.events) > 10_000
    assert sum(len(event.data["token_ids"]) for event in capture.events) == 20_000


async def test_a_reader_of_everything_keeps_up_with_a_thousand_chains():
    """Through the generator, whose buffer takes its share of the room."""
    manager = StreamingManager(drain_timeout=60)
    observer = AsyncGeneratorStreamObserver()
    manager.add_observer(observer)
    run = asyncio.create_task(many_chains(manager, chains=1000, tokens=20))
    events = [event async for event in observer.events()]
    await run
    chunks = [event for event in events if event.event_type is CHUNK]
    assert len(chunks) > 10_000
    assert sum(len(event.data["token_ids"]) for event in chunks) == 20_000
    assert [event for event in events if event.event_type == "gap"] == []


def test_producers_whose_loop_is_closed_are_forgotten():
    """Somebody waited for room in a loop that has ended since; waking the others does not fail."""
    manager = StreamingManager()
    loop = asyncio.new_event_loop()
    manager.fanout._tasks[loop] = [loop.create_future()]
    loop.close()
    with manager.lock:
        manager.fanout._wake_producers_locked()
    assert not manager.fanout._tasks
