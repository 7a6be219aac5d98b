"""A chain that is kept as the bytes that came stands as one that is kept as a view."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollcast.errors import DecodeError
from rollcast.records import StreamEvent, StreamEventType, decode, encode
from rollcast.records.view import ChainView
from rollcast.stream import StreamingManager
from rollcast.stream.folding import FOLD_BYTES, FoldedChain

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK


def event(kind, seq, data, step=None):
    return StreamEvent(kind, "chain_0", 100.0 + seq, data, step, step, seq, "r", "group_0", "w")


def told(view):
    """What a snapshot says."""
    return view.snapshot().to_dict()


def folded(events):
    """The chain after these events."""
    chain = FoldedChain(events[0])
    for each in events:
        chain.note(each, encode(each))
    return chain


def viewed(events):
    """The same as a view."""
    view = ChainView()
    for each in events:
        view.apply(each)
    return view


def life(turns=2, tokens=30):
    """The events of a chain that is not over."""
    seq, events = (
        0,
        [event(T.CHAIN_START, 0, {"messages": [], "tools": ["t"], "index": 0, "policy_version": 0})],
    )

    def add(kind, step, **data):
        nonlocal seq
        seq += 1
        events.append(event(kind, seq, data, step))

    for step in range(1, turns + 1):
        add(T.LLM_GENERATION_START, step, prompt_tokens=1, model="m", policy_version=0, sampling={})
        for n in range(tokens):
            add(CHUNK, step, content="ab", offset=2 * n, token_ids=[n])
        text = "ab" * tokens
        add(
            T.LLM_GENERATION_END, step,
            content=text, finish_reason="stop", prompt_tokens=1, completion_tokens=tokens, ttft_s=0.1, duration_s=1.0,
        )  # fmt: skip
        add(T.TOOL_CALL_START, step, call_id=f"c{step}", tool_name="t", arguments={"x": 1})
        add(
            T.TOOL_OBSERVATION,
            step,
            call_id=f"c{step}",
            tool_name="t",
            content="4",
            partial=True,
            status="success",
        )
        add(
            T.TOOL_OBSERVATION,
            step,
            call_id=f"c{step}",
            tool_name="t",
            content="42",
            partial=False,
            status="success",
        )
        add(T.TOOL_CALL_END, step, call_id=f"c{step}", tool_name="t", status="success", duration_s=0.1)
    return events


LIFE = life()


@given(st.integers(1, len(LIFE)))
@settings(deadline=None, max_examples=60)
def test_at_any_moment_it_stands_as_a_view_does(count):
    """Whatever is open then."""
    assert told(folded(LIFE[:count]).view()) == told(viewed(LIFE[:count]))


@given(st.sets(st.integers(0, len(LIFE) - 1)))
@example(
    {36, 37}
)  # a call's end and the next generation's start: its first token ends the call, although its end repeats the text
@settings(deadline=None, max_examples=60)
def test_also_if_events_are_missing(gone):
    """Tokens that leave a hole, ends without starts."""
    events = [each for number, each in enumerate(LIFE) if number not in gone]
    if events:
        assert told(folded(events).view()) == told(viewed(events))


@given(
    st.lists(st.integers(0, len(LIFE) - 1), min_size=1, max_size=12),
    st.lists(st.integers(0, len(LIFE) - 1), max_size=3),
)
@example([0, 32], [33])
@settings(deadline=None, max_examples=60)
def test_also_if_events_come_twice_or_in_another_order(cuts, looks):
    """As after a reconnection: the stretches between these places, one after the other."""
    events = [each for first, last in pairwise(cuts) for each in LIFE[first:last] or LIFE[last:first]]
    if events:
        chain = FoldedChain(events[0])
        for number, each in enumerate(events):
            chain.note(each, encode(each))
            if number in looks:
                chain.view()
        assert told(chain.view()) == told(viewed(events))


@pytest.mark.parametrize("lacks", ["content", "completion_tokens"])
def test_an_end_that_does_not_repeat_all(lacks):
    """Its tokens are not left out for it."""
    events = [
        event(
            each.event_type,
            each.seq,
            {name: value for name, value in each.data.items() if name != lacks},
            each.step,
        )
        if each.event_type is T.LLM_GENERATION_END
        else each
        for each in LIFE
    ]
    assert told(folded(events).view()) == told(viewed(events))


def test_looking_changes_nothing():
    """It is looked at after each event."""
    chain = FoldedChain(LIFE[0])
    for each in LIFE:
        chain.note(each, encode(each))
        chain.view()
    assert told(chain.view()) == told(viewed(LIFE))


def test_a_long_chain_is_folded():
    """More bytes than a few kilobytes become a view, and it still stands as one."""
    events = life(turns=60)
    assert sum(len(encode(each)) for each in events if each.event_type is not CHUNK) > FOLD_BYTES
    assert told(folded(events).view()) == told(viewed(events))


def called_deeply(calls, call):
    """What the call gives, within so many others."""
    return call() if calls == 0 else called_deeply(calls - 1, call)


@pytest.mark.parametrize("beside", [False, True])
def test_an_event_that_could_just_be_read_shuts_nobody_out(beside):
    """Who joins later, where more calls are open, is shown the chain although it nests so deeply; also in a field of a later version."""

    def reward(depth):
        line = encode(event(T.REWARD, 2, {"reward": 1.0, "metrics": {} if beside else {"odd": "?"}}))
        line = line[:-1] + b',"further":"?"}' if beside else line
        return line.replace(b'"?"', b"[" * depth + b"]" * depth)

    def readable(depth):
        try:
            return decode(reward(depth))
        except DecodeError:
            return None

    line = next(reward(depth) for depth in range(1000, 0, -10) if readable(depth))
    chain = FoldedChain(LIFE[0])
    chain.note(LIFE[0], encode(LIFE[0]))
    chain.note(decode(line), line)
    assert called_deeply(60, chain.view).reward == 1.0


def test_what_has_something_open():
    """A generation with tokens, a call with output; not one of which nothing is known but its start."""
    has = {}
    chain = FoldedChain(LIFE[0])
    for each in LIFE:
        chain.note(each, encode(each))
        has[each.event_type] = chain.has_part
    assert not has[T.LLM_GENERATION_START]
    assert has[CHUNK]
    assert not has[T.LLM_GENERATION_END]
    assert has[T.TOOL_OBSERVATION]


async def test_a_manager_takes_events_with_their_lines():
    """And shows who joins late how the chains stand."""
    manager = StreamingManager(publish=False)
    manager.relay_read([(each, encode(each)) for each in LIFE[:20]])
    async with asyncio.timeout(60):
        async for seen in manager.subscribe():
            assert seen.to_dict() == told(viewed(LIFE[:20]))
            break
    await manager.aclose()


@pytest.mark.parametrize("line", [True, False])
async def test_a_gap_reaches_every_chain(line):
    """With its bytes or without."""
    manager = StreamingManager(publish=False)
    manager.relay_read([(each, encode(each)) for each in LIFE[:3]])
    gap = StreamEvent(
        T.GAP,
        "",
        200.0,
        {"from_seq": 3, "to_seq": 9, "dropped": {}, "reason": "?"},
        seq=9,
        run_id="r",
        source="w",
    )
    manager.relay_read([(gap, encode(gap) if line else None)])
    (snapshot,) = manager.fanout.snapshots(manager.subscribe()._delivery.filter)
    assert snapshot.data["gaps"] == 1
    await manager.aclose()
