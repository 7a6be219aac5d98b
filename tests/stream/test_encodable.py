"""Chunks whose events are never made, since all who get them only encode them."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.observers import JSONStreamObserver
from rollcast.records import EventFilter, StreamEvent, StreamEventType, encode_lines
from rollcast.stream import StreamingManager, chain, fanout
from rollcast.stream.queue import EventQueue, event_size, merged_chunks
from rollcast.stream.waiting import ChunkData, EncodableChunk, PackedValue, event_of, packed
from rollcast.testing import EventCapture

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
HELLO = [{"role": "user", "content": "hello"}]

ids = st.none() | st.lists(st.integers(0, 2**31), max_size=3)
logprobs = st.none() | st.lists(st.floats(-50, 0), max_size=3)


def encodable(content, offset, token_ids, logprobs, seq=7):
    data = ChunkData(content, offset, token_ids, logprobs)
    return EncodableChunk(CHUNK, "chain_3", 12.5, data, 2, 1, seq, "run", None, "w")


@given(st.text(), st.integers(0, 10**9), ids, logprobs, st.booleans())
def test_its_json_is_that_of_its_event(content, offset, token_ids, logprobs, pack):
    """Field by field and in the same order; also if a list of one number is packed."""
    data = {"content": content, "offset": offset}
    data |= {} if token_ids is None else {"token_ids": token_ids}
    data |= {} if logprobs is None else {"logprobs": logprobs}
    event = StreamEvent(CHUNK, "chain_3", 12.5, data, 2, 1, 7, "run", None, "w")
    if pack:
        token_ids, logprobs = packed(token_ids, int), packed(logprobs, float)
    chunk = encodable(content, offset, token_ids, logprobs)
    assert encode_lines([chunk]) == encode_lines([event])
    assert event_of(chunk) == event
    assert event_size(chunk) == event_size(event)


def test_it_has_the_fields_of_an_event():
    """A field that an event gets later must not be missing in a log."""
    assert EncodableChunk.__struct_fields__ == StreamEvent.__struct_fields__


@pytest.mark.parametrize("values", [None, [], [1, 2], [True], [1.0], (1,)])
def test_only_a_list_of_one_plain_number_is_packed(values):
    """Everything else keeps its JSON."""
    assert packed(values, int) is values
    assert packed([5], int) == PackedValue(5)


def test_neighbours_merge_into_an_event():
    """As their events do."""
    chunks = [encodable("ab", 0, [1], [-0.5], 3), encodable("c", 2, PackedValue(2), PackedValue(-1.0), 4)]
    assert merged_chunks(chunks) == merged_chunks([event_of(c) for c in chunks])


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        [("a", [1], [-0.5]), ("b", PackedValue(2), PackedValue(-1.0)), ("c", [3], [-2.0])],
        [("a", [1], [-0.5]), ("", [], []), ("c", [3], [-2.0])],
        [("a", [1, 2], [-0.5, -0.25]), ("b", [3], [-1.0])],
        [("a", [1], None), ("b", [2], None)],
        [("a", None, None), ("b", None, None)],
        [("a", [1], [-0.5]), ("b", None, None)],
        [("a", [1], [-0.5]), ("", None, None), ("c", [2], [-0.5])],
        [("a", [1], [-0.5]), ("b", [2], None)],
    ],
)
def test_neighbours_merge_as_their_events_do(parts, timed):
    """Whether or not all of them have ids and log-probabilities, and with the times between tokens if they are asked for."""
    chunks = [
        msgspec.structs.replace(encodable(text, i, ids, logprobs, i), timestamp=100 + i * i / 1000)
        for i, (text, ids, logprobs) in enumerate(parts)
    ]
    events = [event_of(chunk) for chunk in chunks]
    assert merged_chunks(chunks, timed=timed) == merged_chunks(events, timed=timed)


@pytest.mark.parametrize("at", [1.7e308, -1.7e308])
@pytest.mark.parametrize("whole", [True, False])
def test_a_time_that_is_none_costs_only_the_times(at, whole):
    """A producer may say anything. Times that JSON cannot hold would be null, which no reader takes."""
    chunks = [
        encodable("a", 0, packed([1], int), None, seq=7),
        encodable("b", 1, packed([2], int), None, seq=8),
    ]
    chunks[1] = msgspec.structs.replace(chunks[1], timestamp=at)
    merged = merged_chunks(chunks if whole else [chunk.event() for chunk in chunks], timed=True, lengths=True)
    assert merged.data.pop("dt_ms", [0.0]) == [0.0]
    assert merged.data == {
        "content": "ab",
        "offset": 0,
        "token_ids": [1, 2],
        "lengths": [1, 1],
        "from_seq": 7,
    }


def test_what_is_dropped_is_counted():
    """By type, from the first to the last."""
    queue = EventQueue("somebody", limit=10)
    for seq in (3, 4):
        chunk = encodable("x", 0, [1], None, seq)
        queue.put_nowait(chunk, event_size(chunk))
    (gap,) = queue.take_nowait(())
    assert gap.data["dropped"] == {"llm_generation_chunk": 2}
    assert (gap.data["from_seq"], gap.data["to_seq"]) == (3, 4)


async def run(manager, tokens=300):
    async with manager.run() as run:
        with run.chain(HELLO) as one, one.generation() as generation:
            for i in range(tokens):
                generation.chunk(f"é{i} ", [1000 + i], [-0.5])
                generation.chunk("", [2, 3], [-0.25, -1.5])


def lines(path):
    """The lines, without what differs from run to run."""
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in found:
        line["timestamp"] = line["run_id"] = line["data"]["ttft_s"] = line["data"]["duration_s"] = 0
    return found


@pytest.mark.parametrize("crowd", [0, 256])
async def test_a_log_has_the_same_lines_whoever_watches_with_it(tmp_path, monkeypatch, crowd):
    """Alone, it gets no events of tokens; beside another observer it gets the same events as that one."""
    monkeypatch.setattr(fanout, "CROWD", crowd)
    made = []

    def counted(kind, *fields):
        made.append(kind)
        return StreamEvent(kind, *fields)

    monkeypatch.setattr(chain, "StreamEvent", counted)
    monkeypatch.setattr("rollcast.stream.waiting.StreamEvent", counted)
    for name, others in [("alone", []), ("beside", [EventCapture()])]:
        manager = StreamingManager()
        for observer in [JSONStreamObserver(tmp_path / name), *others]:
            manager.add_observer(observer)
        await run(manager)
        await manager.aclose()
        assert (CHUNK in made) == bool(others)
    assert lines(tmp_path / "alone") == lines(tmp_path / "beside")
    assert len(lines(tmp_path / "alone")) > 600


async def test_a_subclass_that_overrides_the_hook_gets_events(tmp_path):
    """With a dict as their data, as every observer's."""
    got = []

    class Mine(JSONStreamObserver):
        async def on_batch(self, events):
            got.extend(events)
            await super().on_batch(events)

    manager = StreamingManager()
    manager.add_observer(Mine(tmp_path / "log"))
    await run(manager, 5)
    await manager.aclose()
    assert {type(event) for event in got} == {StreamEvent}
    assert sum(event.event_type == CHUNK for event in got) == 10
    assert len(lines(tmp_path / "log")) == len(got)


async def test_a_filter_of_the_users_own_gets_events(tmp_path):
    """It may look at their data."""

    class Short(EventFilter):
        def wants(self, event_type, chain_id="", group_id=None, run_id=""):
            return event_type == CHUNK

    manager = StreamingManager()
    manager.add_observer(JSONStreamObserver(tmp_path / "log", chain_filter=Short()))
    await run(manager, 3)
    await manager.aclose()
    assert [line["event_type"] for line in lines(tmp_path / "log")] == [CHUNK] * 6


async def test_a_log_that_coalesces_has_the_whole_text(tmp_path):
    """Merged chunks of those that were never made are events."""
    manager = StreamingManager()
    manager.add_observer(JSONStreamObserver(tmp_path / "log", mode="coalesce"))
    await run(manager, 3000)
    await manager.aclose()
    chunks = [line["data"] for line in lines(tmp_path / "log") if line["event_type"] == CHUNK]
    assert "".join(data["content"] for data in chunks) == "".join(f"é{i} " for i in range(3000))
    assert sum(len(data["token_ids"]) for data in chunks) == 9000


def test_it_is_no_work_for_the_collector():
    """It is what most of a busy log's memory consists of."""
    chunk = encodable("x", 0, packed([1], int), packed([-0.5], float))
    for part in (chunk, chunk.data, chunk.data.token_ids):
        assert not type(part).__struct_config__.gc
    assert msgspec.structs.astuple(chunk.data)[:4] == ("x", 0, PackedValue(1), PackedValue(-0.5))
