"""Who gets tokens: observers that want them, those that take them if somebody else does, and those that want ids at the end."""

import asyncio
import sys
import threading
from itertools import islice

import pytest

from rollcast import EventFilter, InputError, StreamEventType, StreamingManager, StreamObserver
from rollcast.records import Turn
from rollcast.records.filter import EventFilter as Filter

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
END = StreamEventType.LLM_GENERATION_END
SNAPSHOT = StreamEventType.CHAIN_SNAPSHOT


class Collect(StreamObserver):
    def __init__(self, filter=None, tokens="wanted", queue_limit=0):
        self.filter = filter or EventFilter()
        self.chunk_interest = tokens
        self.queue_limit_bytes = queue_limit
        self.got = []

    async def on_event(self, event):
        self.got.append(event)

    def of(self, kind):
        return [event for event in self.got if event.event_type is kind]


def say(chain, *words, logprobs=True):
    with chain.generation(prompt_ids=[1]) as generation:
        for i, word in enumerate(words):
            generation.chunk(word, [i], [-0.5] if logprobs else None)


async def one_run(manager):
    async with manager.run(chains=2) as run:
        for _ in range(2):
            with run.chain() as chain:
                say(chain, "a", "b")


async def test_a_token_that_only_shared_observers_would_take_is_not_made():
    """It costs nothing: no event is made of it, and the observer gets everything else."""
    manager, shared, never = StreamingManager(), Collect(tokens="shared"), Collect(tokens="never")
    manager.add_observer(shared)
    manager.add_observer(never)
    assert not manager.wants(CHUNK, "chain_0")
    await one_run(manager)
    assert "llm_generation_chunk" not in manager.totals().emitted
    assert [e.data["content"] for e in shared.of(END)] == ["ab", "ab"]
    assert shared.got == never.got
    await manager.aclose()


async def test_a_shared_observer_gets_the_tokens_that_another_one_wants():
    """Those of the chain that is watched, and of no other; one that never takes tokens gets none."""
    manager, shared, never = StreamingManager(), Collect(tokens="shared"), Collect(tokens="never")
    watcher = Collect(EventFilter(chains="chain_1", types=[CHUNK]))
    for observer in (shared, never, watcher):
        manager.add_observer(observer)
    await one_run(manager)
    assert shared.of(CHUNK) == watcher.got != []
    assert never.of(CHUNK) == []
    await manager.aclose()


async def test_with_many_chains_tokens_wait_and_reach_shared_observers_as_events():
    """More chains are open than make events at once: a shared observer gets the same events as the one that wants them."""
    manager, shared, never = StreamingManager(), Collect(tokens="shared"), Collect(tokens="never")
    watcher = Collect(EventFilter(chains=["chain_3", "chain_299"], types=[CHUNK]))
    for observer in (shared, never, watcher):
        manager.add_observer(observer)
    async with manager.run(chains=300) as run:
        chains = [run.chain().start() for _ in range(300)]
        assert manager.fanout.crowded
        for chain in chains:
            say(chain, "a", "b")
        for chain in chains:
            chain.end("answered")
    assert [(e.chain_id, e.data["content"], e.data["token_ids"]) for e in watcher.got] == [
        (chain_id, word, [i]) for chain_id in ("chain_3", "chain_299") for i, word in enumerate("ab")
    ]
    assert shared.of(CHUNK) == watcher.got
    assert never.of(CHUNK) == []
    assert manager.totals().emitted["llm_generation_chunk"] == 4
    await manager.aclose()


async def test_tokens_stop_when_their_watcher_leaves():
    """Interest is looked at again whenever an observer comes or goes."""
    manager, shared, watcher = StreamingManager(), Collect(tokens="shared"), Collect()
    manager.add_observer(shared)
    manager.add_observer(watcher)
    async with manager.run() as run, Chain(run) as chain:
        say(chain, "a")
        manager.remove_observer(watcher)
        say(chain, "b")
        manager.add_observer(again := Collect())
        say(chain, "c")
    await manager.drain()
    assert [e.data["content"] for e in shared.of(CHUNK)] == ["a", "c"]
    assert [e.data["content"] for e in again.of(CHUNK)] == ["c"]
    await manager.aclose()


@pytest.mark.parametrize("chains", [2, 300])
async def test_a_watcher_that_comes_in_the_middle_of_a_generation_gets_its_next_token(chains):
    """Chains whose tokens nobody wants share one silence, which ends when any filter changes."""
    manager, watcher = StreamingManager(), Collect(EventFilter(types=[END]))
    manager.add_observer(watcher)
    async with manager.run(chains=chains) as run:
        generations = [run.chain().start().generation().start() for _ in range(chains)]
        for generation in generations:
            generation.chunk("a", [0], [-0.5])
        (silence,) = {generation.silence for generation in generations}
        assert silence.lasts
        watcher.filter = EventFilter(chains="chain_1", types=[CHUNK])
        manager.refresh(watcher)
        assert not silence.lasts
        for word in ("b", "c"):
            for generation in generations:
                generation.chunk(word, [1], [-0.5])
        assert [generation.silence is manager.fanout.silence for generation in generations[:2]] == [
            True,
            False,
        ]
        watcher.filter = EventFilter(chains="chain_0", types=[CHUNK])
        manager.refresh(watcher)
        for generation in generations:
            generation.chunk("d", [2], [-0.5])
            generation.chain.end("answered")
    assert [(e.chain_id, e.data["content"], e.data["offset"]) for e in watcher.of(CHUNK)] == [
        ("chain_1", "b", 1),
        ("chain_1", "c", 2),
        ("chain_0", "d", 3),
    ]
    await manager.aclose()


def text_seen(events):
    """What a viewer has of the open generation after these events; it fails if a token is missing or comes twice."""
    text = None
    for event in events:
        if event.event_type is SNAPSHOT:
            text = event.data["content"]
        elif event.event_type is CHUNK:
            assert event.data["offset"] == len(text)
            text += event.data["content"]
    return text


@pytest.mark.parametrize("moment", ["before", "in the middle", "after"])
async def test_a_watcher_that_comes_while_a_token_is_added_has_it_once(moment, monkeypatch):
    """The lock is not held then, so its first snapshot may be without that token."""
    manager = StreamingManager()
    shared, watcher = Collect(tokens="shared"), Collect(EventFilter(chains="chain_0", types=[CHUNK]))
    manager.add_observer(shared)
    append = Turn.append

    def interrupted(turn, text, ids, logprobs, version):
        if text != "b":
            return append(turn, text, ids, logprobs, version)
        if moment == "before":
            manager.add_observer(watcher)
        append(turn, text, ids, logprobs, version)
        if moment == "in the middle":
            turn.logprobs.pop()
            manager.add_observer(watcher)
            turn.logprobs.append(-0.5)
        elif moment == "after":
            manager.add_observer(watcher)
        return None

    monkeypatch.setattr(Turn, "append", interrupted)
    async with manager.run() as run:
        with run.chain() as chain:
            say(chain, "a", "A", "b", "c", "d")
    assert text_seen(watcher.got) == "aAbcd"
    assert [e.data["content"] for e in watcher.of(CHUNK)] == ["c", "d"]
    assert shared.of(SNAPSHOT) == []
    (turn,) = chain.trajectory.turns
    assert (turn.text, turn.token_ids, turn.logprobs) == ("aAbcd", [0, 1, 2, 3, 4], [-0.5] * 5)
    await manager.aclose()


async def test_watchers_that_come_at_any_moment_in_another_thread_miss_no_token():
    """Whenever one comes, its snapshot and the tokens after it add up, and the chain keeps all of them."""
    manager, turns = StreamingManager(), threading.Semaphore(0)
    watchers = [Collect(EventFilter(chains="chain_0", types=[CHUNK])) for _ in range(50)]
    came, words = [], iter(range(10_000))

    def come():
        for watcher in watchers:
            turns.acquire()
            manager.add_observer(watcher)
            came.append(watcher)

    def speak(generation):
        for i in islice(words, 10):
            generation.chunk(f"{i},", [i], [-0.5])

    before, thread = sys.getswitchinterval(), threading.Thread(target=come, daemon=True)
    sys.setswitchinterval(1e-6)
    try:
        async with manager.run() as run:
            with run.chain() as chain, chain.generation() as generation:
                thread.start()
                for watcher in watchers:
                    turns.release()
                    speak(generation)
                    while watcher not in came:
                        await asyncio.sleep(0)
                    speak(generation)
                    manager.remove_observer(watcher)
    finally:
        sys.setswitchinterval(before)
    await manager.aclose()
    (turn,) = chain.trajectory.turns
    assert turn.text == "".join(f"{i}," for i in range(1000))
    assert turn.token_ids == [*range(1000)]
    for i, watcher in enumerate(watchers, 1):
        assert text_seen(watcher.got) == "".join(f"{i}," for i in range(20 * i))


class Chain:
    def __init__(self, run):
        self.chain = run.chain()

    async def __aenter__(self):
        return self.chain.start()

    async def __aexit__(self, *_):
        self.chain.end("answered")


async def test_ids_come_with_the_end_for_whoever_asks():
    """One end, with one `seq`: with ids and log-probabilities for that observer, without for the others."""
    manager, plain, ids = StreamingManager(), Collect(), Collect(EventFilter(ids=True))
    manager.add_observer(plain)
    manager.add_observer(ids)
    await one_run(manager)
    for light, whole in zip(plain.of(END), ids.of(END), strict=True):
        assert "token_ids" not in light.data
        assert "dt_ms" not in light.data
        (between,) = whole.data["dt_ms"]
        assert between >= 0
        ids_alone = {"token_ids": [0, 1], "logprobs": [-0.5, -0.5], "dt_ms": [between]}
        assert whole.data == light.data | ids_alone
        assert (whole.seq, whole.step, whole.depth) == (light.seq, light.step, light.depth)
    assert [e.seq for e in plain.got] == [e.seq for e in ids.got] == list(range(len(plain.got)))
    assert manager.totals().emitted["llm_generation_end"] == 2
    await manager.aclose()


async def test_ids_of_named_chains_alone():
    """The filter says of which chains, as it does of events."""
    manager = StreamingManager()
    some = Collect(EventFilter(chains="chain_1", ids=True) | EventFilter())
    manager.add_observer(some)
    await one_run(manager)
    assert ["token_ids" in e.data for e in some.of(END)] == [False, True]
    await manager.aclose()


async def test_a_backend_without_ids_has_none_at_the_end():
    """There is no empty list in place of ids that nobody knows."""
    manager, ids = StreamingManager(), Collect(EventFilter(ids=True))
    manager.add_observer(ids)
    async with manager.run() as run:
        with run.chain() as chain, chain.generation() as generation:
            generation.chunk("hello")
    assert "token_ids" not in ids.of(END)[0].data
    await manager.aclose()


def test_filters_keep_ids_when_they_are_joined():
    """`&` asks for ids if either does, `|` for those of the chains that asked; they have no JSON form."""
    asks, plain = EventFilter(chains="a", ids=True), EventFilter(chains="b")
    assert (asks & EventFilter(runs="r")).ids
    assert (asks | plain).wants_ids("a", None, "")
    assert not (asks | plain).wants_ids("b", None, "")
    assert EventFilter(chains="a") != asks
    with pytest.raises(InputError, match="no JSON form"):
        asks.to_dict()
    with pytest.raises(InputError, match="no field 'ids'"):
        Filter.from_dict({"ids": True})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("chunk_interest", "some"), ("queue_limit_bytes", -1), ("queue_limit_bytes", "8 MiB")],
)
def test_what_an_observer_says_wrongly_is_refused_when_it_is_added(attribute, value):
    """The message names the attribute and what it may be."""
    observer = Collect()
    setattr(observer, attribute, value)
    with pytest.raises(InputError, match=attribute):
        StreamingManager().add_observer(observer)


async def test_an_observer_may_have_a_longer_queue():
    """It gets everything where another one of the same manager has a gap."""
    manager = StreamingManager(queue_limit=20_000)
    short, long = Collect(), Collect(queue_limit=1 << 20)
    manager.add_observer(short)
    manager.add_observer(long)
    async with manager.run() as run:
        with run.chain() as chain:
            say(chain, "x")
            for _ in range(100):
                chain.error("e" * 1000, "agent")
    assert len(long.of(StreamEventType.ERROR)) == 100
    assert not long.of(StreamEventType.GAP)
    assert short.of(StreamEventType.GAP)
    await manager.aclose()


async def test_what_is_open_is_told_chain_by_chain():
    """The text of each open generation and the open calls, with their place; a chain in which nothing is open is left out."""
    manager = StreamingManager()
    manager.add_observer(Collect(tokens="shared"))
    async with manager.run(chains=3) as run:
        with run.chain() as talking, run.chain() as calling, run.chain():
            say(calling, "x")
            with calling.tool_call("f", {"a": 1}) as call, talking.generation() as generation:
                call.observation("so far", partial=True)
                generation.chunk("hel")
                generation.chunk("lo")
                first, second = manager.fanout.open_parts()
                assert (first.chain_id, first.step, first.content, first.offset) == ("chain_0", 1, "hello", 0)
                assert first.seq == run.seq
                assert second.content is None
                assert second.tool_calls[0]["observation"] == "so far"
        assert list(manager.fanout.open_parts()) == []
    await manager.aclose()


async def test_ended_chains_are_told_with_their_trajectory():
    """Whoever asked is called once a chain, after its end, with all that it said."""
    manager = StreamingManager()
    manager.add_observer(Collect(tokens="never"))
    ended = []
    manager.fanout.chain_closings.append(ended.append)
    await one_run(manager)
    assert [(t.chain_id, t.finish_reason, t.token_ids) for t in ended] == [
        ("chain_0", "answered", [1, 0, 1]),
        ("chain_1", "answered", [1, 0, 1]),
    ]
    await manager.aclose()
