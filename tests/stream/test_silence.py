"""Chains whose tokens nobody wants share one note of that: whoever comes in the middle of a generation has its text from then on."""

import asyncio
import random
import threading

import pytest

from rollcast import EventFilter, StreamEventType, StreamingManager, StreamObserver
from rollcast.records import StreamEvent
from rollcast.records.view import ChainView

T = StreamEventType
TOKENS = [T.LLM_GENERATION_START, T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END, T.CHAIN_START, T.CHAIN_END]


class Reads(StreamObserver):
    """Knows the chains that its filter wants."""

    def __init__(self, filter):
        self.filter = filter
        self.views = {}

    async def on_event(self, event):
        if event.chain_id:
            self.views.setdefault(event.chain_id, ChainView()).apply(event)

    def text_of(self, chain_id):
        view = self.views.get(chain_id)
        return None if view is None or view.generation is None else view.generation.text


def a_filter(choose, chains):
    return choose(
        [
            EventFilter(),
            EventFilter(types=TOKENS),
            EventFilter(chains=[choose(chains)]),
            EventFilter(groups=["g1"]),
            EventFilter(types=[T.CHAIN_START, T.CHAIN_END]),
            EventFilter(chains=["nobody"]),
        ]
    )


def wants(filter, chain):
    about = chain.trajectory
    here = StreamEvent(T.LLM_GENERATION_CHUNK, about.chain_id, 0.0, {}, group_id=about.group_id, run_id="r")
    return filter.matches(here)


def go_on(choose, chain):
    """One more word of its generation, or the next generation."""
    if chain.generation_open is None:
        chain.generation().start()
    elif choose(range(8)) == 0:
        chain.generation_open.end()
    else:
        chain.generation_open.chunk(*choose([("a ", [1], [-0.1]), ("b ", None, None)]))


@pytest.mark.parametrize("seed", range(30))
async def test_who_comes_in_the_middle_of_a_generation_has_its_text(seed):
    """Whoever comes, goes, or changes his filter, and in whatever order."""
    choose = random.Random(seed).choice
    manager, readers = StreamingManager(), []
    names = [f"chain_{n}" for n in range(6)]
    async with manager.run(chains=6) as run:
        chains = [run.chain(chain_id=n, group_id=choose([None, "g1", "g2"])).start() for n in names]
        for _ in range(150):
            what = choose(range(12))
            if what == 0 and len(readers) < 5:
                readers.append(Reads(a_filter(choose, names)))
                manager.add_observer(readers[-1])
            elif what == 1 and readers:
                manager.remove_observer(readers.pop(choose(range(len(readers)))))
            elif what == 2 and readers:
                reader = choose(readers)
                reader.filter = a_filter(choose, names)
                manager.refresh(choose([reader, None]))
            elif what == 3:
                await manager.drain()
                for reader in readers:
                    for chain in chains:
                        if wants(reader.filter, chain):
                            open_now = chain.generation_open
                            assert reader.text_of(chain.trajectory.chain_id) == (
                                None if open_now is None else open_now.turn.text
                            )
            else:
                go_on(choose, choose(chains))
    await manager.aclose()


async def test_who_comes_while_threads_generate_has_the_whole_text():
    """At any moment between two tokens."""
    manager, ready, done = StreamingManager(), threading.Barrier(3), threading.Event()
    async with manager.run(chains=2) as run:
        chains = [run.chain(chain_id=f"chain_{n}").start() for n in range(2)]
        for chain in chains:
            chain.generation().start()

        def generate(chain):
            ready.wait()
            while not done.is_set():
                chain.generation_open.chunk("x", [1], [-0.1])

        threads = [threading.Thread(target=generate, args=(chain,)) for chain in chains]
        for thread in threads:
            thread.start()
        try:
            await asyncio.to_thread(ready.wait)
            for _ in range(20):
                reader = Reads(EventFilter(chains=["chain_0"]))
                manager.add_observer(reader)
                await asyncio.sleep(0)
                manager.remove_observer(reader)
                await asyncio.sleep(0)
            reader = Reads(EventFilter())
            manager.add_observer(reader)
        finally:
            done.set()
            for thread in threads:
                await asyncio.to_thread(thread.join)
        await manager.drain()
        for chain in chains:
            generation = reader.views[chain.trajectory.chain_id].generation
            assert generation.omitted + len(generation.text) == chain.generation_open.turn.chars
    await manager.aclose()
