"""A watcher that changes what it is given changes nothing of the run: whatever an event has may be emptied."""

import copy

import msgspec
import pytest

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.jsonable import as_json, detached
from rollcast.stream import StreamingManager, StreamObserver

ROW = {"messages": [], "city": {"name": "Bern", "at": [46.9, 7.4]}}
ARGUMENTS = {"q": {"words": ["a", "b"]}}
SAMPLING = {"temperature": 1.0, "stop": ["x"]}
PROMPT = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "user", "content": [{"type": "image", "image": b"x"}, {"type": "text", "text": "there"}]},
]


def emptied(value):
    """Empty every dict and list in it."""
    if isinstance(value, dict):
        for item in value.values():
            emptied(item)
        value.clear()
    elif isinstance(value, list):
        for item in value:
            emptied(item)
        value.clear()


class Meddler(StreamObserver):
    """Empties the data of every event."""

    filter = EventFilter() | EventFilter(ids=True)

    def __init__(self):
        self.got = set()

    async def on_event(self, event):
        self.got.add(event.event_type)
        emptied(event.data)


async def one_run(manager, given, *, joining=None):
    """A run of one chain in which everything happens; returns what its trajectory is in the end."""
    async with manager.run(chains=1, model="m", tools=given["tools"], sampling=given["sampling"]) as run:
        with run.chain(given["prompt"], row=given["row"], tools=["search"]) as chain:
            with chain.generation(sampling=given["sampling"]) as generation:
                for token, text in enumerate(("Let", " me", " see")):
                    ids, logprobs = [token], [-0.5]
                    generation.chunk(text, ids, logprobs)
                    await manager.drain()
                    assert (ids, logprobs) == ([token], [-0.5])
            chain.message(
                {"role": "assistant", "content": "Let me see", "tool_calls": [{"id": "c", "x": [1]}]}
            )
            with chain.tool_call("search", given["arguments"], "c") as call:
                if joining is not None:
                    manager.add_observer(joining)
                await manager.drain()
                call.observation("found")
            chain.message({"role": "tool", "content": "found", "tool_call_id": "c"})
            chain.message({"role": "user", "content": [{"type": "text", "text": "go on"}]}, from_outside=True)
            chain.step_reward(0.5, {"parts": {"form": [1]}})
            chain.error("odd", "agent")
            await manager.drain()
            with chain.generation():
                pass
            chain.reward(1.0, {"parts": {"form": [1, 2]}})
            await manager.drain()
    await manager.aclose()
    whole = msgspec.to_builtins(chain.trajectory)
    return {name: value for name, value in whole.items() if name not in ("run_id", "duration_s", "turns")}, [
        (t.step, t.text, t.token_ids, t.logprobs, [msgspec.to_builtins(r.call) for r in t.tools])
        for t in chain.trajectory.turns
    ]


def what_is_given():
    return copy.deepcopy(
        {
            "prompt": PROMPT,
            "row": ROW,
            "arguments": ARGUMENTS,
            "sampling": SAMPLING,
            "tools": [{"name": "search", "parameters": {"type": "object"}}],
        }
    )


@pytest.mark.parametrize("joins_late", [False, True])
@pytest.mark.parametrize("crowd", [256, 0])
async def test_what_a_watcher_changes_is_not_the_runs(joins_late, crowd, monkeypatch):
    """Neither the trajectory, nor what the caller gave, nor what the next run is made of."""
    monkeypatch.setattr("rollcast.stream.fanout.CROWD", crowd)
    unwatched = await one_run(StreamingManager(), what_is_given())
    given, manager, meddler = what_is_given(), StreamingManager(), Meddler()
    if not joins_late:
        manager.add_observer(meddler)
    assert await one_run(manager, given, joining=meddler if joins_late else None) == unwatched
    assert given == what_is_given()
    first = StreamEventType.CHAIN_SNAPSHOT if joins_late else StreamEventType.CHAIN_START
    assert {
        first,
        StreamEventType.TOOL_OBSERVATION,
        StreamEventType.MESSAGE,
        StreamEventType.RUN_END,
    } <= meddler.got


async def test_an_event_made_by_hand_stays_its_makers():
    """Its data is what a foreign loop works with."""
    manager = StreamingManager()
    manager.add_observer(Meddler())
    event = StreamEvent(
        StreamEventType.CHAIN_START,
        "chain_0",
        1.0,
        {"messages": [{"role": "user", "content": "Hi"}]},
        run_id="r",
    )
    before = copy.deepcopy(event)
    manager.emit(event)
    await manager.aclose()
    assert event == before


def test_a_detached_value_is_equal_and_shares_text_alone():
    """However dicts and lists nest."""
    text = "ü" * 99
    value = as_json({"a": [1, 2.5, None, True, text], "b": [{"c": [[], {}]}], "d": {}, "e": text})
    other = detached(value)
    assert other == value
    assert other["e"] is text
    emptied(other)
    assert value["b"] == [{"c": [[], {}]}]
    assert detached(text) is text
