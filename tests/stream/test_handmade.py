"""Facts about events that somebody makes by hand: accepted as the specification shows them, or told once why not."""

import asyncio
import dataclasses
import datetime as dt
import io
import json
import logging
import math
import re
import time
import uuid

import numpy as np
import pytest

from rollcast import (
    ConsoleStreamObserver,
    JSONStreamObserver,
    StreamEvent,
    StreamEventType,
    StreamingManager,
    WebSocketStreamingClient,
    WebSocketStreamingServer,
)
from rollcast.records import check_events, decode, encode
from rollcast.testing import capture_events

T = StreamEventType
CHAIN = "uuid-123"


def nine_events(chain_id=CHAIN, run_id=""):
    """The nine types of the specification, each with what its examples have and no more."""
    said = [
        ("chain_start", {}),
        ("llm_generation_start", {}),
        ("llm_generation_chunk", {"content": "def fac"}),
        ("llm_generation_chunk", {"content": "torial"}),
        ("llm_generation_end", {}),
        ("tool_call_start", {"tool_name": "code_interpreter"}),
        ("tool_observation", {"tool_name": "code_interpreter", "observation": "120", "status": "success"}),
        ("tool_call_end", {"tool_name": "code_interpreter"}),
        ("error", {"error": "out of luck"}),
        ("chain_end", {}),
    ]
    now = time.time()
    return [
        StreamEvent(StreamEventType(kind), chain_id, now + i / 10, data, run_id=run_id)
        for i, (kind, data) in enumerate(said)
    ]


async def emitted(*events, manager=None):
    """What an observer got of them."""
    manager = manager or StreamingManager()
    with capture_events(manager) as capture:
        for event in events:
            manager.emit(event)
        await manager.drain()
    return capture.events


async def test_the_nine_events_of_the_specification_are_completed():
    """What is left out is what the chain said before; each event reads back from its JSON."""
    events = await emitted(*nine_events())
    assert [decode(encode(event)) for event in events] == events
    check_events(events)
    data = [event.data for event in events]
    assert [d["offset"] for d in data[2:4]] == [0, 7]
    assert (data[4]["content"], data[4]["completion_tokens"], data[4]["finish_reason"]) == (
        "def factorial",
        2,
        "stop",
    )
    assert data[4]["duration_s"] == pytest.approx(0.3)
    assert data[5]["call_id"] == data[6]["call_id"] == data[7]["call_id"] == "call_0"
    assert (data[6]["partial"], data[7]["status"]) == (False, "success")
    assert data[7]["duration_s"] == pytest.approx(0.2)
    end = data[-1]
    assert (end["finish_reason"], end["final_response"], end["steps"]) == ("unknown", "def factorial", 1)
    assert [event.step for event in events[1:5]] == [1, 1, 1, 1]


async def test_the_nine_events_are_shown_logged_and_served(tmp_path):
    """The console prints the text as text, the log is JSON lines, and a WebSocket client gets the same events."""
    manager, shown, log = StreamingManager(), io.StringIO(), tmp_path / "log.jsonl"
    manager.add_observer(ConsoleStreamObserver(file=shown, show_timestamps=False))
    manager.add_observer(JSONStreamObserver(log))
    async with WebSocketStreamingServer(port=0) as server:
        manager.add_observer(server.get_observer())
        async with WebSocketStreamingClient(server.url) as client:
            got = []
            events = nine_events()
            stream = aiter(client)
            first = asyncio.ensure_future(anext(stream))
            while not first.done():  # until it listens
                manager.emit(StreamEvent("train_step", "", None, {}))
                await asyncio.sleep(0.01)
            for event in events:
                manager.emit(event)
            async for event in stream:
                if event.chain_id:
                    got.append(event)
                if event.event_type is T.CHAIN_END:
                    break
        await manager.aclose()
    lines = [decode(line) for line in log.read_bytes().splitlines()]
    assert [event for event in lines if event.chain_id] == got
    assert [event.event_type for event in got] == [event.event_type for event in events]
    text = shown.getvalue()
    assert "def factorial" in text
    assert "120" in text
    assert "out of luck" in text
    assert "{" not in text.replace("({})", "")


async def test_a_chain_that_nobody_announced_is_followed():
    """Chunks alone have offsets that go on, and begin anew with another step or an end."""

    def chunk(content, step=None, chain_id="a"):
        return StreamEvent(T.LLM_GENERATION_CHUNK, chain_id, 0.0, {"content": content}, step)

    events = await emitted(
        chunk("ab", 1), chunk("cd", 1), chunk("x", 1, "b"), chunk("ef", 2), chunk("g", 2),
        StreamEvent(T.LLM_GENERATION_END, "a", 0.0, {}, 2), chunk("h", 3),
    )  # fmt: skip
    assert [e.data.get("offset") for e in events] == [0, 2, 0, 0, 2, None, 0]
    assert events[5].data["content"] == "efg"


async def test_a_chunk_of_a_runs_open_generation_has_its_offset():
    """The manager knows what a run of its own wrote so far."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        async with manager.run() as run:
            with run.chain() as chain, chain.generation() as generation:
                generation.chunk("four")
                manager.emit(
                    StreamEvent(T.LLM_GENERATION_CHUNK, "chain_0", 0.0, {"content": "!"}, run_id=run.run_id)
                )
    assert [(e.data["offset"], e.step) for e in capture.of("llm_generation_chunk")] == [(0, 1), (4, 1)]


async def test_parallel_calls_of_one_tool_are_told_apart():
    """Without ids an end is of the oldest open call of its tool; a given id stands."""
    said = [
        (T.TOOL_CALL_START, {"tool_name": "a"}),
        (T.TOOL_CALL_START, {"tool_name": "a"}),
        (T.TOOL_CALL_START, {"tool_name": "b", "call_id": "mine"}),
        (T.TOOL_OBSERVATION, {"tool_name": "b", "observation": {"x": 1}, "status": "error"}),
        (T.TOOL_CALL_END, {"tool_name": "b"}),
        (T.TOOL_CALL_END, {"tool_name": "a"}),
        (T.TOOL_CALL_END, {}),
    ]
    events = await emitted(*(StreamEvent(kind, "c", 0.0, data) for kind, data in said))
    assert [e.data["call_id"] for e in events] == [
        "call_0",
        "call_1",
        "mine",
        "mine",
        "mine",
        "call_0",
        "call_1",
    ]
    assert events[3].data["observation"] == '{"x":1}'
    assert events[4].data["status"] == "error"
    assert events[6].data["tool_name"] == "a"


class Sub(StreamEvent):
    extra: int = 0


class Words(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("event", "shows"),
    [
        (Sub(T.TRAIN_STEP, "", 0.0, {"train_step": 3}, extra=4), {"train_step": 3}),
        (StreamEvent(Words("train_step"), Words(""), 0, {"train_step": np.int64(3)}), {"train_step": 3}),
        (StreamEvent(T.REWARD, uuid.UUID(int=7), np.float64(1), {"reward": np.float32(0.5)}), {"reward": 0.5}),
        (StreamEvent(T.REWARD, 7, dt.datetime.now(dt.UTC), {"reward": 1, "metrics": None}, np.int64(1)), {"metrics": {}}),
        (StreamEvent(T.CHAIN_START, "c", None, None, group_id=3), {"messages": []}),
        (StreamEvent(T.CHAIN_START, "c", 0.0, {"seed": np.int64(2**62), "row": {"a": b"1"}}), {"seed": 2**62, "row": {"a": "<bytes (1)>"}}),
        (StreamEvent(T.MESSAGE, "c", 0.0, {"role": "user", "content": "And?"}), {"role": "user", "content": "And?"}),
        (StreamEvent(T.REWARD, "c", 0.0, {"reward": 1, "final": False}), {"final": False}),
        (
            StreamEvent(T.RUN_END, "", 0.0, {"status": "completed", "chains": 1, "failed": 0, "mean_reward": None, "completion_tokens": 0, "duration_s": 1}),
            {"mean_reward": None},
        ),
        (
            StreamEvent(T.CHAIN_SNAPSHOT, "c", 0.0, {"messages": [], "content": None, "tool_calls": [], "as_of": 0}),
            {"content": None},
        ),
        (StreamEvent(T.ERROR, None, 0.0, {"error": ValueError("no")}, run_id=None), {"error": "no", "error_type": "ValueError"}),
        (StreamEvent(T.TRAIN_STEP, "", 0.0, {"metrics": {"loss": np.nan, 1: np.zeros(3)}}), {"train_step": 1}),
        (StreamEvent(T.TOOL_CALL_START, "c", 0.0, {"tool_name": "\ud800", "arguments": {1: {2}}}), {"arguments": {"1": [2]}}),
        (StreamEvent(T.LLM_GENERATION_CHUNK, "c", 0.0, {"content": "x" * 10**6, "token_ids": (1, 2)}), {"token_ids": [1, 2]}),
    ],
)  # fmt: skip
async def test_what_can_be_understood_is_accepted(event, shows):
    """Ids and times of other types, data of other libraries, a subclass: all become an event that reads back."""
    (got,) = await emitted(event)
    assert type(got) is StreamEvent
    assert decode(encode(got)) == got
    assert {name: got.data[name] for name in shows} == shows


class Hostile:
    def __getattribute__(self, name):
        if name == "__class__":
            return type(self)
        raise RuntimeError("no")

    def __repr__(self):
        raise RuntimeError("no")

    def __str__(self):
        raise RuntimeError("no")

    def __hash__(self):
        raise RuntimeError("no")


@dataclasses.dataclass
class Lookalike:
    event_type: object = T.TRAIN_STEP
    chain_id: str = ""
    data: object = None


RING = {}
RING["again"] = RING


def chunk(**data):
    return StreamEvent(T.LLM_GENERATION_CHUNK, "c", 0.0, data)


def other(**fields):
    given = {
        "event_type": T.TRAIN_STEP,
        "chain_id": "c",
        "timestamp": 0.0,
        "data": {"train_step": 1},
    } | fields
    return StreamEvent(**given)


@pytest.mark.parametrize(
    ("event", "names"),
    [
        (None, "it is <NoneType>"),
        ("text", r"it is <str \(4\)>"),
        ({"event_type": "error"}, r"it is <dict \(1\)>"),
        (Lookalike(), "it is <Lookalike>"),
        (Hostile(), "it is <Hostile>"),
        (StreamEvent, "it is <class StreamEvent>"),
        (other(event_type="nonsense"), "event_type is the unknown type 'nonsense'"),
        (other(event_type=None), "event_type is the unknown type"),
        (other(event_type=Hostile()), "it raised RuntimeError"),
        (other(group_id=[]), r"group_id is <list \(0\)>"),
        (other(group_id=Hostile()), "group_id is|it raised"),
        (other(run_id={}), "run_id is <dict"),
        (other(source=b"w"), "source is <bytes"),
        (other(chain_id=["c"]), "chain_id is <list"),
        (other(chain_id=True), "chain_id is <bool>"),
        (StreamEvent(T.CHAIN_END, None, 0.0, {}), "chain_id is <NoneType>"),
        (other(step="x"), r"step is <str \(1\)>"),
        (other(step=1.5), "step is <float>"),
        (other(depth=[]), "depth is <list"),
        (other(timestamp="yesterday"), "timestamp is <str"),
        (other(timestamp=math.nan), "timestamp is <float>"),
        (other(data=5), "data is <int>"),
        (other(data=[1]), "data is <list"),
        (other(data={"train_step": "one"}), "data.train_step is wrong: expected `int`, got `str`"),
        (chunk(), "data.content is missing"),
        (chunk(content=5), "data.content is wrong"),
        (chunk(content=None), "data.content is missing"),
        (chunk(content="x", token_ids=5), "data.token_ids is wrong: expected `array`, got `int`"),
        (chunk(content="x", token_ids=["a"]), r"data.token_ids\[0\] is wrong"),
        (chunk(content="x", token_ids=[1], logprobs=[]), "data.logprobs has 0 for 1 token ids"),
        (chunk(content="x", logprobs=[math.nan], token_ids=[1]), r"data.logprobs\[0\] is NaN; expected"),
        (chunk(content="x", offset="0"), "data.offset is wrong"),
        (chunk(content=RING), "data.content is wrong"),
        (
            StreamEvent(T.REWARD, "c", 0.0, {"reward": math.nan}),
            "data.reward is NaN; expected a finite number",
        ),
        (
            chunk(content="x", token_ids=[1], logprobs=[-math.inf]),
            r"data.logprobs\[0\] is -Infinity; expected a finite number",
        ),
        (StreamEvent(T.LLM_GENERATION_CHUNK, "", 0.0, {"content": "a"}), "chain_id is empty; expected"),
        (StreamEvent(T.TOOL_CALL_END, "c", 0.0, {}), "data.tool_name is missing"),
        (StreamEvent(T.CHAIN_END, "c", 0.0, {"finish_reason": "done"}), "data.finish_reason is wrong"),
        (StreamEvent(T.RUN_END, "", 0.0, None), "data.status is missing"),
        (StreamEvent(T.MESSAGE, "", 0.0, {"role": "user", "content": "x"}), "chain_id is empty; expected"),
        (StreamEvent(T.MESSAGE, "c", 0.0, {"content": "x"}), "data.role is missing"),
        (StreamEvent(T.MESSAGE, "c", 0.0, {"role": "user", "content": 5}), "data.content is wrong"),
        (StreamEvent(T.CHAIN_START, "c", 0.0, {"seed": "many"}), "data.seed is wrong"),
        (StreamEvent(T.GAP, "", 0.0, RING), "data.from_seq is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_accepted_is_told_once_with_its_field(event, names, caplog):
    """emit raises nothing, logs one warning however often it comes, and counts."""
    manager = StreamingManager()
    with caplog.at_level(logging.WARNING, "rollcast"):
        got = await emitted(*[event] * 50, manager=manager)
        assert got == []
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "is not a valid StreamEvent and is dropped: " in record.getMessage()
        assert list(manager.totals().refused.values()) == [50]
        await manager.aclose()
    assert len(caplog.records) == 2
    assert "50 events made by hand were dropped: " in caplog.records[1].getMessage()
    assert re.search(names, record.getMessage()), record.getMessage()


def test_emit_never_raises():
    """Not even for what raises when it is merely looked at."""

    class Worst:
        def __getattribute__(self, name):
            raise RuntimeError("no")

    manager = StreamingManager()
    for event in (
        Worst(),
        StreamEvent(Worst(), Worst(), Worst(), Worst(), Worst()),
        other(data={"x": Worst()}),
    ):
        manager.emit(event)
    assert sum(manager.totals().refused.values()) == 2
    manager.close()
    assert manager.totals().open_chains == 0


async def test_each_cause_is_told_and_they_are_bounded(caplog):
    """Two causes are two warnings; unknown types are one cause, however many names they have."""
    manager = StreamingManager()
    with caplog.at_level(logging.WARNING, "rollcast"):
        for i in range(500):
            manager.emit(other(event_type=f"mine_{i}"))
            manager.emit(chunk())
            manager.emit(type(f"Kind{i}", (), {})())
    assert len(manager.totals().refused) <= 101
    assert sum(manager.totals().refused.values()) == 1500
    assert manager.totals().refused["event_type is unknown"] == 500
    manager.close()


async def test_a_refused_event_leaves_the_others_alone():
    """The next chunk goes on where the chain stood."""
    events = await emitted(chunk(content="ab"), chunk(content="cd", token_ids=5), chunk(content="ef"))
    assert [e.data["offset"] for e in events] == [0, 2]


async def test_chains_by_hand_are_remembered_up_to_a_limit():
    """However many somebody makes."""
    manager = StreamingManager()
    with capture_events(manager):
        for i in range(5000):
            manager.emit(StreamEvent(T.LLM_GENERATION_CHUNK, f"c{i}", 0.0, {"content": "x"}))
        await manager.drain()
    assert len(manager._handmade._chains) <= 4096


async def test_an_events_own_data_is_not_changed():
    """What is filled in stands in a copy."""
    data = {"content": "x"}
    (got,) = await emitted(StreamEvent(T.LLM_GENERATION_CHUNK, "c", 0.0, data))
    assert data == {"content": "x"}
    assert json.loads(encode(got))["data"]["offset"] == 0


async def test_the_end_of_a_chain_has_its_own_reward():
    """Not that of a step, also if that came last."""
    got = await emitted(
        StreamEvent(T.REWARD, "c", 0.0, {"reward": 1.0, "metrics": {"exact": 1}}),
        StreamEvent(T.REWARD, "c", 0.0, {"reward": 0.25, "final": False}),
        StreamEvent(T.CHAIN_END, "c", 0.0, {}),
    )
    assert (got[-1].data["reward"], got[-1].data["metrics"]) == (1.0, {"exact": 1})
