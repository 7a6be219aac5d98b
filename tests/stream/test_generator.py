"""`events()` gives one run's events and always ends."""

import asyncio

import pytest

from rollcast import AsyncGeneratorStreamObserver, EventFilter, StreamEventType, StreamingManager
from rollcast.errors import FilterError
from rollcast.records import check_events
from rollcast.testing import capture_events

T = StreamEventType
HELLO = [{"role": "user", "content": "hello"}]


async def chain(run, tokens=3):
    with run.chain(HELLO) as chain, chain.generation() as generation:
        for i in range(tokens):
            generation.chunk(f"t{i} ")
            await asyncio.sleep(0)


async def a_run(manager, chains=2, tokens=3):
    async with manager.run(chains=chains) as run:
        await asyncio.gather(*(chain(run, tokens) for _ in range(chains)))
    return run


async def read(observer):
    async with asyncio.timeout(60):
        return [event async for event in observer.events()]


def added(chain_filter=None):
    manager, observer = StreamingManager(), AsyncGeneratorStreamObserver(chain_filter)
    manager.add_observer(observer)
    return manager, observer


@pytest.mark.parametrize("when", ["before", "during", "after"])
async def test_unfiltered_it_ends_with_the_run(when):
    """Whether the reader starts before, during or after the run, it has every event."""
    manager, observer = added()
    with capture_events(manager) as capture:
        if when == "before":
            task = asyncio.create_task(read(observer))
            await asyncio.sleep(0)
            await a_run(manager)
            events = await task
        elif when == "during":
            events, _ = await asyncio.gather(read(observer), a_run(manager))
        else:
            await a_run(manager)
            events = await read(observer)
    assert events == capture.events
    assert events[-1].event_type is T.RUN_END


async def test_with_a_chain_it_ends_at_that_chains_end_and_no_others():
    """A short chain's reader is done while a long one goes on; the long one's reader is not."""
    manager = StreamingManager()
    observers = {name: AsyncGeneratorStreamObserver(name) for name in ("chain_0", "chain_1")}
    for observer in observers.values():
        manager.add_observer(observer)
    short_read = asyncio.Event()

    async def read_short():
        events = await read(observers["chain_0"])
        short_read.set()
        return events

    async def run():
        async with manager.run(chains=2) as run:
            with run.chain(HELLO) as long, long.generation() as generation:
                pass
            with run.chain(HELLO) as long, long.generation() as generation:
                generation.chunk("waiting ")
                await short_read.wait()
                generation.chunk("done")

    short, long, _ = await asyncio.gather(read_short(), read(observers["chain_1"]), run())
    assert {e.chain_id for e in short} == {"chain_0"}
    assert {e.chain_id for e in long} == {"chain_1"}
    assert short[-1].event_type is long[-1].event_type is T.CHAIN_END
    assert (
        "".join(e.data["content"] for e in long if e.event_type is T.LLM_GENERATION_CHUNK) == "waiting done"
    )


@pytest.mark.parametrize(
    "wanted",
    [
        EventFilter(types=[T.LLM_GENERATION_CHUNK]),
        EventFilter(chains="chain_0", types=[T.LLM_GENERATION_CHUNK]),
        EventFilter(chains="chain_99"),
        EventFilter(groups="group_7"),
        EventFilter(chains=["chain_0", "chain_1", "chain_99"]),
        EventFilter(types=[T.TRAIN_STEP]),
    ],
)
async def test_it_ends_whatever_the_filter_leaves_out(wanted):
    """No end events, no such chain, no event at all."""
    manager, observer = added(wanted)
    events, _ = await asyncio.gather(read(observer), a_run(manager))
    assert all(wanted.matches(e) for e in events)
    late = AsyncGeneratorStreamObserver(wanted)
    manager.add_observer(late)
    await a_run(manager)
    assert len(await read(late)) == len(events)


@pytest.mark.parametrize("error", [RuntimeError("broken"), asyncio.CancelledError()])
async def test_it_ends_when_the_run_fails_or_is_cancelled(error):
    """The last event is the run's end."""
    manager, observer = added()
    named = AsyncGeneratorStreamObserver("chain_0")
    manager.add_observer(named)

    async def broken():
        async with manager.run() as run:
            with run.chain(HELLO), run.chain(HELLO):
                raise error

    reader, other = asyncio.create_task(read(observer)), asyncio.create_task(read(named))
    with pytest.raises(type(error)):
        await broken()
    events = await reader
    check_events(events)
    assert events[-1].data["status"] in ("failed", "cancelled")
    assert (await other)[-1].event_type is T.CHAIN_END


async def test_a_second_reading_serves_the_next_run():
    """One run each, in order, also where both runs are over."""
    manager, observer = added()
    first = await a_run(manager)
    assert {e.run_id for e in await read(observer)} == {first.run_id}
    second, events = (await asyncio.gather(a_run(manager), read(observer)))[:2]
    assert {e.run_id for e in events} == {second.run_id}
    check_events(events)


async def test_overlapping_runs_do_not_mix():
    """Two readers of one observer have one run each."""
    manager, observer = added()
    one, other, a, b = await asyncio.gather(read(observer), read(observer), a_run(manager), a_run(manager))
    assert len({e.run_id for e in one}) == len({e.run_id for e in other}) == 1
    assert {one[0].run_id, other[0].run_id} == {a.run_id, b.run_id}
    check_events(one)
    check_events(other)


async def test_leaving_early_and_coming_back_misses_nothing():
    """While the run lasts, the next reading goes on where the last one stopped."""
    manager, observer = added()
    with capture_events(manager) as capture:
        async with manager.run() as run:
            await chain(run)
            await manager.drain()
            head = []
            events = observer.events()
            async for event in events:
                head.append(event)
                if len(head) == 3:
                    break
            await events.aclose()
        # The run has ended while nobody read: what was left behind is done with.
        second, tail = await asyncio.gather(a_run(manager), read(observer))
    assert head == capture.events[:3]
    assert {e.run_id for e in tail} == {second.run_id}


async def test_coming_back_while_the_run_lasts():
    """The rest of the same run."""
    manager, observer = added()
    with capture_events(manager) as capture:
        async with manager.run() as run:
            await chain(run)
            await manager.drain()
            events = observer.events()
            head = [await anext(events), await anext(events)]
            await events.aclose()
            rest = asyncio.create_task(read(observer))
            await chain(run)
        tail = await rest
    assert head + tail == capture.events


async def test_removal_ends_it():
    """Also where no run ever began."""
    manager, observer = added()
    waiting = asyncio.create_task(read(observer))
    await asyncio.sleep(0)
    manager.remove_observer(observer)
    assert await waiting == []
    manager.add_observer(observer)
    async with manager.run() as run:
        with run.chain(HELLO):
            waiting = asyncio.create_task(read(observer))
            await manager.drain()
            manager.remove_observer(observer)
            assert [e.event_type for e in await waiting] == [T.RUN_START, T.CHAIN_START]


async def test_a_slow_reader_never_slows_the_rollout_and_never_fills_memory():
    """Beyond what may wait, chunks merge and then a gap stands; the text that came is in order."""
    manager = StreamingManager(queue_limit=500_000, drain_timeout=30)
    observer = AsyncGeneratorStreamObserver(EventFilter(types=[T.LLM_GENERATION_CHUNK]))
    manager.add_observer(observer)
    got = []
    behind = asyncio.Event()

    async def slow():
        async for event in observer.events():
            got.append(event)
            await behind.wait()

    reader = asyncio.create_task(slow())
    async with manager.run() as run:
        with run.chain(HELLO) as chain, chain.generation() as generation:
            for _ in range(4000):
                generation.chunk("x" * 1000)
                await asyncio.sleep(0)
            assert manager.statistics()[0].queued_bytes < 2_000_000
            behind.set()
    await reader
    check_events(got, late=True)
    assert any(e.event_type is T.GAP for e in got)


async def test_unread_runs_wait_for_a_reader_who_comes_late():
    """Twelve short runs are read one after the other, whole."""
    manager, observer = added()
    runs = [await a_run(manager) for _ in range(12)]
    for run in runs:
        events = await read(observer)
        assert {e.run_id for e in events} == {run.run_id}
        assert events[-1].event_type is T.RUN_END
        check_events(events)
    assert manager.statistics()[0].dropped == 0


async def test_runs_that_nobody_reads_are_bounded_and_counted():
    """Of the oldest a gap is left, in the place of its events; the newest is whole."""
    manager = StreamingManager(queue_limit=50_000)
    observer = AsyncGeneratorStreamObserver()
    manager.add_observer(observer)
    with capture_events(manager) as capture:
        runs = [await a_run(manager, tokens=30) for _ in range(40)]
    (statistics, *_) = manager.statistics()
    assert statistics.queued_bytes <= 100_000
    assert statistics.dropped > 0
    read_again = [await read(observer) for _ in runs]
    gaps = [e for events in read_again for e in events if e.event_type is T.GAP]
    assert sum(sum(gap.data["dropped"].values()) for gap in gaps) == statistics.dropped
    assert [events[0].run_id for events in read_again] == [run.run_id for run in runs]
    whole = [e for e in capture.events if e.run_id == runs[-1].run_id]
    assert read_again[-1] == whole


def test_it_works_across_event_loops():
    """Run in one loop, read in the next."""
    manager, observer = added()
    asyncio.run(a_run(manager))
    assert asyncio.run(read(observer))[-1].event_type is T.RUN_END
    manager.close()


async def test_a_bad_filter_is_refused():
    """At construction."""
    with pytest.raises(FilterError):
        AsyncGeneratorStreamObserver(chain_filter=3)
