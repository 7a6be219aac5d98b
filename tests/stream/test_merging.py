"""Tokens that travel together: nothing of them is lost."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.records import StreamEvent, StreamEventType, decode
from rollcast.records.codec import encode_lines
from rollcast.records.view import ChainView
from rollcast.serve.history import encoded
from rollcast.stream import merging
from rollcast.stream.merging import tokens_together
from rollcast.stream.waiting import ChunkData, EncodableChunk, chunk_of_line, event_of, packed

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
RUN = "run_0"

texts = st.text(max_size=4)
logprobs = st.one_of(st.none(), st.floats(-30, 0), st.sampled_from([math.nan, math.inf, -math.inf]))
pieces = st.tuples(
    st.integers(0, 2),  # chain
    st.sampled_from(["token"] * 12 + ["none", "two", "reasoning", "tool", "gap", "step"]),
    texts,
    logprobs,
    st.floats(0, 0.01),  # seconds since the one before
    st.booleans(),  # whether it comes as an event
)


def made(drawn):
    """The events: `seq` and `offset` are filled in."""
    events, now, ends, steps = [], 1_796_000_000.0, [0, 0, 0], [1, 1, 1]
    for seq, (number, kind, text, logprob, wait, as_event) in enumerate(drawn, 1):
        now += wait
        chain, group = f"chain_{number}", "group_0"
        if kind == "gap":
            data = {"from_seq": seq, "to_seq": seq, "dropped": {}, "reason": "none"}
            events.append(StreamEvent(StreamEventType.GAP, "", now, data, seq=seq, run_id=RUN, source="one"))
            continue
        if kind == "tool":
            data = {"call_id": "c", "tool_name": "t", "arguments": {}}
            events.append(
                StreamEvent(
                    StreamEventType.TOOL_CALL_START,
                    chain,
                    now,
                    data,
                    steps[number],
                    None,
                    seq,
                    RUN,
                    group,
                    "one",
                )
            )
            continue
        if kind == "step":
            steps[number] += 1
            ends[number] = 0
        ids = {"none": None, "two": [1, 2]}.get(kind, [seq])
        logs = None if ids is None or logprob is None else [logprob] * len(ids)
        data = {"content": text, "offset": ends[number]}
        data |= {} if ids is None else {"token_ids": ids}
        data |= {} if logs is None else {"logprobs": logs}
        data |= {"reasoning": "hm"} if kind == "reasoning" else {}
        ends[number] += len(text)
        place = (chain, now), (steps[number], None, seq, RUN, group, "one")
        if as_event or kind == "reasoning":
            events.append(StreamEvent(CHUNK, *place[0], data, *place[1]))
        else:
            plain = ChunkData(text, data["offset"], packed(ids, int), packed(logs, float))
            events.append(EncodableChunk(CHUNK, *place[0], plain, *place[1]))
    return events


def told(event):
    """What the event tells, token for token if they were merged."""
    event = event_of(event)
    data = event.data
    if event.event_type is not CHUNK or "from_seq" not in data:
        return [(event.event_type, event.chain_id, repr(data))], [event.timestamp]
    rest, offset, tokens = data["content"], data["offset"], []
    for i, (token_id, length) in enumerate(zip(data["token_ids"], data["lengths"], strict=True)):
        text, rest = rest[:length], rest[length:]
        one = {"content": text, "offset": offset, "token_ids": [token_id]}
        one |= {"logprobs": [data["logprobs"][i]]} if "logprobs" in data else {}
        tokens.append((CHUNK, event.chain_id, repr(one)))
        offset += length
    assert rest == ""
    times = [event.timestamp]
    for apart in reversed(data["dt_ms"]):
        times.insert(0, times[0] - apart / 1000)
    return tokens, times


def of_chain(events, chain_id):
    """What the events tell of a chain, in order, and when it was."""
    pairs = [told(event) for event in events if event.chain_id in (chain_id, "")]
    return [each for tokens, _ in pairs for each in tokens], [time for _, times in pairs for time in times]


@given(st.lists(pieces, max_size=60).map(made))
def test_every_token_is_told_with_its_time(events):
    """In each chain they are the same, in the same order; `seq` still rises."""
    merged = tokens_together(events)
    for chain_id in ("chain_0", "chain_1", "chain_2"):
        (before, times), (after, times_after) = of_chain(events, chain_id), of_chain(merged, chain_id)
        assert after == before
        assert all(abs(a - b) < 1e-4 for a, b in zip(times, times_after, strict=True))
    assert [event.seq for event in merged] == sorted({event.seq for event in merged})
    assert {event.seq for event in merged} <= {event.seq for event in events}


@given(st.lists(pieces, max_size=60).map(made))
def test_what_is_merged_is_read_back_without_an_event(events):
    """The hub reads it as it reads a single token, and its JSON is that of the event."""
    for chunk in tokens_together(events):
        line = encode_lines([chunk])[:-1]
        if isinstance(chunk, EncodableChunk) and chunk.from_seq is not None:
            assert decode(line) == chunk.event()
            assert chunk_of_line(line).event() == chunk.event()


@given(st.lists(st.tuples(texts, st.floats(0, 0.01)), min_size=1, max_size=300))
def test_a_view_of_the_chain_is_the_same(tokens):
    """Whoever adds the events up does not see a difference."""
    drawn = [(0, "token", text, -1.0, wait, False) for text, wait in tokens]
    alone, merged = ChainView(), ChainView()
    events = made(drawn)
    start = {"prompt_tokens": 3, "model": "m", "policy_version": 0, "sampling": {}}
    begun = StreamEvent(
        StreamEventType.LLM_GENERATION_START, "chain_0", 1.0, start, 1, None, 0, RUN, "group_0", "one"
    )
    for view in (alone, merged):
        view.apply(begun)
    for event in events:
        alone.apply(event_of(event))
    for event in tokens_together(events):
        merged.apply(event_of(event))
    assert merged.content == alone.content
    assert merged.snapshot().data == alone.snapshot().data


def test_an_event_does_not_become_large():
    """However many tokens wait, and however long their texts are."""
    many = tokens_together(made([(0, "token", "ab", -1.0, 0.0, False)] * 1000))
    assert max(len(event.data.token_ids) for event in many) == merging.MOST_TOKENS
    assert len(many) == math.ceil(1000 / merging.MOST_TOKENS)
    long = tokens_together(made([(0, "token", "x" * 1000, -1.0, 0.0, False)] * 100))
    assert max(len(event.data.content) for event in long) <= merging.MOST_CHARS


def test_tokens_of_other_chains_come_between():
    """Each chain's are put together, in the place of its last; so eight events become two."""
    merged = tokens_together(made([(i % 2, "token", "a", None, 0.01, False) for i in range(8)]))
    assert [(event.chain_id, event.data.from_seq, event.seq) for event in merged] == [
        ("chain_0", 1, 7),
        ("chain_1", 2, 8),
    ]


def test_halves_of_a_character_stay_apart():
    """JSON has no halves: as one chunk they would be one character, and what follows would be at another place."""
    texts = ["so ", "\ud83d", "\ude00", "!"]
    events = made([(0, "token", text, -1.0, 0.01, True) for text in texts])
    lines = [encoded(event) for event in tokens_together(events)]
    assert [chunk_of_line(line).data.offset for line in lines] == [0, 3, 4, 5]
    assert [len(chunk_of_line(line).data.content) for line in lines] == [3, 1, 1, 1]
    assert len(tokens_together(made([(0, "token", text, -1.0, 0.01, True) for text in "süß"]))) == 1


@pytest.mark.parametrize(
    "odd", [{"timestamp": None}, {"timestamp": "soon"}, {"data": None}, {"seq": None}, {"chain_id": []}]
)
def test_an_event_of_odd_types_costs_no_other_event(odd):
    """`StreamingManager.relay` does not look at every field."""
    events = made([(0, "token", "a", -1.0, 0.01, True)] * 3)
    events[1:] = [msgspec.structs.replace(event, **odd) for event in events[1:]]
    assert tokens_together(events) == events


def test_a_clock_that_was_set_back_keeps_tokens_apart():
    """The time between two tokens is never negative, and never a day."""
    events = made([(0, "token", "a", None, 0.01, True)] * 3)
    events[1] = msgspec.structs.replace(events[1], timestamp=events[1].timestamp - 3600)
    assert len(tokens_together(events)) == 3
