"""Thousands of chains at once: what one turn of the event loop brings has to find room, and a reader."""

import asyncio
import contextvars
import gc
import weakref

from rollcast.observers import AsyncGeneratorStreamObserver
from rollcast.records import EventFilter, StreamEventType
from rollcast.stream import StreamingManager
from rollcast.stream.fanout import CROWD
from rollcast.testing import EventCapture, StallingObserver

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


def crowded_run(manager):
    """A run with so many open generations that tokens wait without their events."""
    run = manager.run(chains=CROWD + 1).open()
    return run, [run.chain(HELLO).start().generation().start() for _ in range(CROWD + 1)]


async def test_in_a_crowd_every_observer_gets_the_same_whole_event():
    """What waits without its event becomes one, once."""
    manager = StreamingManager()
    one, other = EventCapture(), EventCapture()
    manager.add_observer(one)
    manager.add_observer(other)
    run, (first, *_) = crowded_run(manager)
    first.chunk("a", [7], [-0.5])
    first.chunk("bc", [8, 9], [-1.0, -2.0])
    first.chunk("d")
    first.chunk("", [10])
    run.close()
    await manager.drain()
    chunks, same = one.of("llm_generation_chunk"), other.of("llm_generation_chunk")
    assert [e.data for e in chunks] == [
        {"content": "a", "offset": 0, "token_ids": [7], "logprobs": [-0.5]},
        {"content": "bc", "offset": 1, "token_ids": [8, 9], "logprobs": [-1.0, -2.0]},
        {"content": "d", "offset": 3},
        {"content": "", "offset": 4, "token_ids": [10]},
    ]
    assert all(a is b for a, b in zip(chunks, same, strict=True))
    assert {(e.run_id, e.chain_id, e.step, e.depth) for e in chunks} == {(run.run_id, "chain_0", 1, 1)}
    await manager.aclose()


async def test_in_a_crowd_a_subscription_and_a_generator_get_events():
    """They take from their queues themselves."""
    manager = StreamingManager()
    generator = AsyncGeneratorStreamObserver()
    manager.add_observer(generator)
    async with manager.subscribe(EventFilter(types=CHUNK)) as events:
        run, (first, *_) = crowded_run(manager)
        first.chunk("a", [7], [-0.5])
        assert (await anext(events)).data["token_ids"] == [7]
        run.close()
        chunks = [e async for e in generator if e.event_type is CHUNK]
    assert [e.data["logprobs"] for e in chunks] == [[-0.5]]
    await manager.aclose()


async def test_in_a_crowd_a_slow_observers_chunks_merge():
    """As they do elsewhere: text, ids and log-probabilities joined, and the first one's seq told."""
    manager = StreamingManager()
    slow = StallingObserver(after=1)
    manager.add_observer(slow)
    run, generations = crowded_run(manager)
    await slow.stalled.wait()
    for i in range(10):
        for generation in generations:
            generation.chunk(f"{i}", [i], [-float(i)])
    slow.release()
    run.close()
    await manager.drain()
    chunks = [e for e in slow.events if e.event_type is CHUNK and e.chain_id == "chain_0"]
    assert "".join(e.data["content"] for e in chunks) == "0123456789"
    assert [i for e in chunks for i in e.data["token_ids"]] == list(range(10))
    assert [x for e in chunks for x in e.data["logprobs"]] == [-float(i) for i in range(10)]
    assert chunks[0].data["from_seq"] == chunks[0].seq - (len(chunks[0].data["token_ids"]) - 1) * len(
        generations
    )
    assert manager.statistics()[0].merged > 0
    await manager.aclose()


async def test_in_a_crowd_a_token_that_waits_is_nothing_to_the_collector():
    """It would look through the dict and the lists of ten thousand events again and again."""
    manager = StreamingManager()
    manager.add_observer(StallingObserver())
    run, generations = crowded_run(manager)
    before = len(gc.get_objects())
    for generation in generations:
        generation.chunk("token", [7], [-0.5])
    assert len(gc.get_objects()) - before < len(generations) // 10
    run.close()


async def test_tokens_that_wait_do_not_keep_a_manager_alive():
    """The collector does not see into them, so nothing in them may lead back to a queue."""
    manager = StreamingManager()
    events = manager.subscribe()
    run, generations = contextvars.copy_context().run(crowded_run, manager)
    generations[0].chunk("token", [7], [-0.5])
    fanout = weakref.ref(manager.fanout)
    del manager, events, run, generations
    gc.collect()
    assert fanout() is None
