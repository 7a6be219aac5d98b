"""Readers that ask chains what they add up to, and are given only their starts and ends."""

import random

import msgspec
import pytest

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.view import ChainView
from rollcast.stream import StreamingManager
from rollcast.stream.asked import AskedChains
from stream.doings import do_something

T = StreamEventType


@pytest.fixture
def manager():
    return StreamingManager(queue_limit=1 << 30)


def reader(manager, *, asks, types=None):
    """A queue that nobody reads by itself."""
    delivery = manager.fanout.delivery("reader", EventFilter(types=types))
    delivery.pulled = True  # no run waits for it
    if asks:
        delivery.asked = AskedChains(manager.lock)
    manager.fanout.add(delivery)
    return delivery


def taken(delivery):
    with delivery.lock:
        return [item for item in delivery.take_locked() if isinstance(item, StreamEvent)]


def types_of(events):
    return [event.event_type for event in events]


def turn(chain, *, why="stop", calls=0):
    """A generation, and calls of a tool."""
    with chain.generation(policy_version=3) as generation:
        generation.chunk("word ", [1, 2], [-0.1, -0.2])
        generation.end(why)
    for number in range(calls):
        with chain.tool_call("look", {"at": number}) as call:
            call.observation("seen", "timeout" if number % 2 else "success")


def test_it_is_given_the_start_and_the_end_of_a_chain_and_asks_for_the_rest(manager):
    """Whatever the chain did between two questions, there is one answer."""
    asks = reader(manager, asks=True)
    with manager.run() as run, run.chain([]) as chain:
        assert types_of(taken(asks)) == [T.RUN_START, T.CHAIN_START]
        assert len(asks.asked) == 0
        turn(chain, calls=2)
        turn(chain)
        assert taken(asks) == []
        (changed,) = asks.asked.take()
        so_far = asks.asked.ask(changed)
        assert (changed.key, so_far.step, so_far.completion_tokens) == ((run.run_id, "chain_0"), 2, 4)
        assert msgspec.to_builtins(so_far.tool_use["look"]) | {"seconds": 0} == {
            "calls": 2,
            "failed": 1,
            "seconds": 0,
        }
        assert len(asks.asked) == 0
    assert types_of(taken(asks)) == [T.CHAIN_END, T.RUN_END]


def test_what_a_chain_added_up_to_stays_until_its_end_is_taken(manager):
    """A chain that has ended is not asked; its last answer is there once."""
    asks = reader(manager, asks=True)
    with manager.run() as run, run.chain([]) as chain:
        turn(chain)
        (changed,) = asks.asked.take()
        turn(chain)
    assert len(asks.asked) == 0
    assert asks.asked.ask(changed) is None
    asks.asked.ask_again(changed)
    assert len(asks.asked) == 0
    assert asks.asked.at_the_end(run.run_id, "chain_0").completion_tokens == 4
    assert asks.asked.at_the_end(run.run_id, "chain_0") is None


def test_an_end_that_was_dropped_leaves_nothing_behind(manager):
    """The ends up to the last `seq` of a gap do not come; those behind it do."""
    asks = reader(manager, asks=True)
    with manager.run(chains=2) as run:
        with run.chain([]):
            pass
        last = run.seq
        with run.chain([]):
            pass
        asks.asked.forget_ends(run.run_id, last)
        assert asks.asked.at_the_end(run.run_id, "chain_0") is None
        assert asks.asked.at_the_end(run.run_id, "chain_1") is not None
        with run.chain([]):
            pass
    asks.asked.forget_ends(run.run_id)
    assert asks.asked.at_the_end(run.run_id, "chain_2") is None


def test_a_chain_whose_start_has_not_come_is_asked_again(manager):
    """The reader puts it back."""
    asks = reader(manager, asks=True)
    with manager.run() as run, run.chain([]) as chain:
        turn(chain)
        (changed,) = asks.asked.take(5)
        assert asks.asked.take(5) == []
        asks.asked.ask_again(changed)
        assert asks.asked.take(5) == [changed]


def test_no_event_is_made_for_a_reader_that_asks(manager):
    """If nobody else watches, what the chain does in between has no `seq`, and nobody is said to want it."""
    reader(manager, asks=True)
    with manager.run() as run, run.chain([]) as chain:
        before = run.seq
        assert not chain.wants(T.TOOL_CALL_START)
        turn(chain, calls=3)
        assert run.seq == before


def test_others_are_given_every_event_beside_it(manager):
    """Also the ends of generations with ids."""
    reader(manager, asks=True)
    told = manager.fanout.delivery("told", EventFilter(types=[T.LLM_GENERATION_END], ids=True))
    told.pulled = True
    manager.fanout.add(told)
    asks = reader(manager, asks=True)
    with manager.run() as run, run.chain([]) as chain:
        turn(chain)
        assert [event.data["token_ids"] for event in taken(told)] == [[1, 2]]
        assert len(asks.asked.take()) == 1


def test_of_a_relayed_chain_it_is_given_every_event(manager):
    """Nobody here can be asked about it."""
    there = StreamingManager(queue_limit=1 << 30)
    sent = reader(there, asks=False)
    with there.run() as run, run.chain([]) as chain:
        turn(chain, calls=1)
    asks = reader(manager, asks=True)
    events = taken(sent)
    for event in events:
        manager.relay(event)
    assert types_of(taken(asks)) == types_of(events)
    assert len(asks.asked) == 0


def test_of_a_chain_with_events_made_by_hand_it_is_given_every_event(manager):
    """After a snapshot of what came before; the chain is no longer asked, for it does not know them."""
    asks = reader(manager, asks=True)
    with manager.run() as run, run.chain([]) as chain:
        turn(chain)
        taken(asks)
        by_hand = StreamEvent.now(T.ERROR, "chain_0", error="odd", error_type="", where="agent")
        manager.emit(msgspec.structs.replace(by_hand, run_id=run.run_id))
        assert len(asks.asked) == 0
        turn(chain)
        told = types_of(taken(asks))
        assert told[:2] == [T.CHAIN_SNAPSHOT, T.ERROR]
        assert T.LLM_GENERATION_END in told
        assert len(asks.asked) == 0
    assert asks.asked.at_the_end(run.run_id, "chain_0") is None


def test_events_made_by_hand_in_the_middle_of_a_generation_bring_its_next_token(manager):
    """Until then nobody wanted it, and the generation had not looked again."""
    asks = reader(manager, asks=True)
    with manager.run() as run, run.chain([]) as chain, chain.generation() as generation:
        generation.chunk("one", [1], [-0.1])
        generation.chunk("two", [2], [-0.2])
        taken(asks)
        by_hand = StreamEvent.now(T.ERROR, "chain_0", error="odd", error_type="", where="agent")
        manager.emit(msgspec.structs.replace(by_hand, run_id=run.run_id))
        generation.chunk("three", [3], [-0.3])
        assert types_of(taken(asks)) == [T.CHAIN_SNAPSHOT, T.ERROR, T.LLM_GENERATION_CHUNK]


def told(view):
    """What does not depend on the microsecond."""
    names = (
        "state",
        "step",
        "depth",
        "policy_version",
        "truncated",
        "completion_tokens",
        "reward",
        "metrics",
    )
    calls = sorted(
        (call.call_id, call.tool_name, call.step, call.status) for call in view.tool_calls.values()
    )
    use = {name: (use.calls, use.failed) for name, use in view.tool_use.items()}
    stays = {state: time.stays for state, time in view.times.items()}
    return [getattr(view, name) for name in names] + [calls, use, stays, view.errors, view.error]


@pytest.mark.parametrize("seed", range(40))
def test_a_chain_adds_up_to_what_its_events_do(seed, manager):
    """Whatever it does, and whenever it is asked: a view of all events says the same."""
    choose = random.Random(seed).choice
    all_events, asks = reader(manager, asks=False), reader(manager, asks=True)
    view, asked = ChainView(), ChainView()
    with manager.run(policy_version=2) as run:
        chain = run.chain([{"role": "user", "content": "q"}]).start()
        for event in taken(asks):
            asked.apply(event)
        for _ in range(60):
            do_something(choose, chain)
            if choose([True, False, False]):
                for event in taken(all_events):
                    view.apply(event)
                for changed in asks.asked.take():
                    asks.asked.ask(changed).give(asked)
                assert told(asked) == told(view)
                assert asked.last_event_at == pytest.approx(view.last_event_at, abs=0.5)
        chain.end("answered", "so")
        for event in taken(all_events):
            view.apply(event)
        asks.asked.at_the_end(*chain.key).give(asked)
        for event in taken(asks):
            asked.apply(event)
        assert told(asked) == told(view)
        assert (asked.ended_at, asked.duration_s) == (view.ended_at, view.duration_s)
