"""Secrets in what comes from outside leave no server, whichever way a client asks; what was sampled does."""

import asyncio
import json

import pytest
from websockets.asyncio.client import connect

from rollcast import InputError
from rollcast.records import StreamEvent, StreamEventType, decode
from rollcast.serve import Masker, ServerSettings, WebSocketStreamingServer
from rollcast.serve.history import History
from rollcast.testing import capture_events

T = StreamEventType

# Made up for this test; none is anybody's.
SECRET = "sk-" + "proj-" + "a1B2c3D4e5F6g7H8i9J0k1L2"
MASKED = "[masked:openai-key]"


def begin(run):
    """A chain with a secret in each place that text from outside has, and its open generation."""
    chain = run.chain(
        [{"role": "user", "content": f"use {SECRET}"}], row={"key": SECRET}, reference=SECRET
    ).start()
    with chain.generation(prompt_ids=[1]) as generation:
        generation.chunk(f"I use {SECRET}", [2], [-0.5])
    with chain.tool_call("get", {"key": SECRET}) as call:
        call.observation(f"refused {SECRET}")
    chain.error(f"401 for {SECRET}", "agent")
    generation = chain.generation(prompt_ids=[1]).start()
    generation.chunk(f"still {SECRET}", [3], [-0.5])
    return chain, generation


def sampled(event):
    """Whether everything in the event was sampled, but for its ids."""
    return event.event_type in (T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END)


def check(events, *, snapshot=False):
    """No secret is in what came from outside, and each is in what was sampled."""
    for event in events:
        text = json.dumps(event.to_dict())
        if sampled(event):
            assert MASKED not in text
        elif event.event_type is T.CHAIN_SNAPSHOT:
            assert event.data["content"] == f"still {SECRET}"
            assert f'"content": "I use {SECRET}"' in text
            assert text.count(SECRET) == 2  # both were sampled
            assert text.count(MASKED) >= 5
        else:
            assert SECRET not in text
    kinds = {event.event_type for event in events if MASKED in json.dumps(event.to_dict())}
    assert kinds >= (
        {T.CHAIN_SNAPSHOT} if snapshot else {T.CHAIN_START, T.TOOL_CALL_START, T.TOOL_OBSERVATION, T.ERROR}
    )


async def plainly(socket, until):
    events = []
    async with asyncio.timeout(60):
        async for message in socket:
            events.append(decode(message))
            if events[-1].event_type == until:
                break
    return events


@pytest.mark.parametrize("history", [64 << 20, 0])
async def test_no_client_is_sent_a_secret(stage, read, until, history):
    """Neither by frames nor by the plain feed, live, from the start or in a snapshot; observers in the process get everything."""
    server = await stage.serve(masker=Masker(environ={}), history_bytes=history)
    async with stage.client() as live, connect(server.url, proxy=None) as plain:
        reading = asyncio.create_task(read(live))
        await until(lambda: server.statistics().subscriptions == 2)
        with capture_events(stage.manager) as capture:
            async with stage.manager.run() as run:
                chain, generation = begin(run)
                async with stage.client() as late:
                    snapshots = await read(late, "chain_snapshot")
                generation.chunk(f"again {SECRET}", [3], [-0.5])
                generation.end("stop")
                chain.end("answered")
        check(await reading)
        check(await plainly(plain, "run_end"))
    check(snapshots[-1:], snapshot=True)
    assert json.dumps([e.to_dict() for e in capture.events]).count(SECRET) >= 8
    assert set(server.statistics().masked) == {"openai-key"}
    assert server.statistics().masked["openai-key"] >= 6
    if history:
        async with stage.client(since="start") as again:
            check(await read(again))


async def test_own_patterns_and_functions_are_settings_of_a_server(stage, read):
    """Beside the known shapes."""
    masker = Masker(
        ["ACME-[0-9]+"], [lambda text: text.replace("Bob", "…")], environ={"MY_TOKEN": "correct horse"}
    )
    await stage.serve(masker=masker)
    async with stage.client(since="start") as client:
        async with stage.manager.run() as run:
            run.error("ACME-12 of Bob, correct horse", "agent")
        (error,) = [e for e in await read(client) if e.event_type == "error"]
    assert error.data["error"] == "[masked:pattern] of …, [masked:environment]"


async def test_a_server_can_be_told_to_mask_nothing(stage, read):
    """`masker=False`, as for a record."""
    server = await stage.serve(masker=False)
    async with stage.client(since="start") as client:
        async with stage.manager.run() as run:
            run.error(SECRET, "agent")
        (error,) = [e for e in await read(client) if e.event_type == "error"]
    assert error.data["error"] == SECRET
    assert server.statistics().masked == {}


def test_the_values_of_secret_variables_are_masked_by_default(monkeypatch):
    """A server that is given no masker has the usual one."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    server = WebSocketStreamingServer(port=0)
    event = StreamEvent(
        T.ERROR,
        "",
        1.0,
        {"error": "correct-horse-battery", "error_type": "", "where": ""},
        None,
        None,
        0,
        "r",
    )
    server.get_observer()._broadcaster.take([event])
    (entry,) = server._broadcaster.history.window(0, 1)
    assert decode(entry.data).data["error"] == "[masked:environment]"


def test_a_masker_that_is_none_is_refused():
    """In one sentence, when the server is made."""
    with pytest.raises(
        InputError, match="masker is 'all'; expected a Masker, None for the usual one, or False"
    ):
        WebSocketStreamingServer(port=0, settings=ServerSettings(masker="all"))


def test_a_token_is_not_looked_at():
    """Sampled text passes as it is, without a look at it."""

    class Blind(Masker):
        def may_hold(self, data):
            raise AssertionError(data)

    history = History(1 << 20, Blind(environ={}))
    chunk = StreamEvent(T.LLM_GENERATION_CHUNK, "c", 1.0, {"content": SECRET, "offset": 0}, 1, 1, 0, "r")
    end = StreamEvent(T.LLM_GENERATION_END, "c", 1.0, {"content": SECRET}, 1, 1, 1, "r")
    history.extend([chunk, end])
    assert [SECRET.encode() in entry.data for entry in history.window(0, 2)] == [True, True]


@pytest.mark.parametrize(
    "event",
    [
        StreamEvent(T.ERROR, 7, "noon", {"error": SECRET, "more": object()}, None, None, 0, "r"),
        StreamEvent(StreamEventType.of("later"), "c", 1.0, {"x": [SECRET]}, None, None, 0, "r"),
        StreamEvent(T.TOOL_OBSERVATION, "c", 1.0, {"observation": (SECRET, {1: SECRET})}, None, None, 0, "r"),
    ],
)
def test_events_that_somebody_made_by_hand_are_masked(event):
    """Whatever they hold, also if no client could read them."""
    history = History(1 << 20, Masker(environ={}))
    history.extend([event])
    (entry,) = history.window(0, 1)
    assert SECRET.encode() not in entry.data
    assert MASKED.encode() in entry.data
