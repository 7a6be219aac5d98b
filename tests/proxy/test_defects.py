"""A defect in our own watching code never reaches a caller."""

import json

import pytest

from rollcast.testing import OpenAIServer
from rollcast.testing.openai_server import ServedAnswer

WATCHING = "rollcast.proxy.watching"
CALLS = "rollcast.stream.conversations.Conversations"
CALL = "rollcast.stream.conversation_call.Call"
# What of ours runs between a caller and its engine, by its place.
PLACES = [
    f"{WATCHING}.request_of",
    f"{WATCHING}.turned",
    f"{WATCHING}.pieces_of",
    f"{WATCHING}.chunk_pieces",
    f"{WATCHING}.whole_answer_pieces",
    f"{WATCHING}.SseReader.feed",
    f"{WATCHING}.Answer.add",
    f"{WATCHING}.Answer.body",
    f"{WATCHING}.EngineTraits.may_turn",
    f"{WATCHING}.EngineTraits.of",
    f"{WATCHING}.EngineTraits.saw",
    f"{WATCHING}.EngineTraits.lacking",
    f"{WATCHING}.StreamingManager.run",
    f"{CALLS}.begin",
    f"{CALL}.wants_tokens",
    f"{CALL}.piece",
    f"{CALL}.end",
    f"{CALL}.failed",
    f"{CALL}.cancelled",
]


class Broken(Exception):
    pass


def raises(*_, **__):
    raise Broken("a defect of ours")


def recurses(*args, **options):
    return recurses(*args, **options)


DEFECTS = {
    "raises": raises,
    "recurses": recurses,
    "gives None": lambda *_, **__: None,
    "gives another type": lambda *_, **__: 3.5,
    "gives text": lambda *_, **__: "text",
}


def chat(server, **fields):
    return {"model": server.model, "messages": [{"role": "user", "content": "What is 2 + 2?"}], **fields}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("place", PLACES)
async def test_no_caller_notices(stage, monkeypatch, place, defect):
    """Whatever our code does at any place, each caller gets the engine's bytes, and a trainer an answer to its reward."""
    script = ServedAnswer("Four, äöü.")
    async with OpenAIServer(script) as server:
        proxy = await stage.watch(server.url, reward_token="pay")
        await stage.post(proxy.url, chat(server))  # the fields of a whole answer are known from now on
        monkeypatch.setattr(place, DEFECTS[defect])
        for _ in range(2):
            for stream in (False, True):
                asked = chat(server, stream=stream)
                assert await stage.post(proxy.url, asked, X_Session_ID="a") == await stage.post(
                    server.url, asked
                )
        for path in ("/rollcast/reward", "/rollcast/end"):
            status, _, body = await stage.post(
                proxy.url,
                {"session": "a", "reward": 1.0} if "reward" in path else {"session": "a"},
                path,
                Authorization="Bearer pay",
            )
            assert (status, "seen" in json.loads(body)) == (200, True)
        monkeypatch.undo()
        assert await stage.post(proxy.url, chat(server)) == await stage.post(server.url, chat(server))
        await proxy.stop()


async def test_it_is_said_once(stage, monkeypatch, caplog):
    """After a fault the proxy says so once, with the traceback, and is a plain copy."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        monkeypatch.setattr(f"{CALL}.piece", raises)
        for _ in range(3):
            await stage.post(proxy.url, chat(server))
        said = [record for record in caplog.records if "steps aside" in record.message]
        assert len(said) == 1
        assert "a defect of ours" in caplog.text
        assert stage.watching.counts.faults == 1
        monkeypatch.undo()
        asked = json.dumps(chat(server), indent=1).encode()
        await stage.post(proxy.url, asked)
        assert server.generations[-1].body == asked


async def test_what_was_open_is_closed(stage, monkeypatch):
    """After a fault the run ends as failed, so that its watchers do not wait for more."""
    async with OpenAIServer("Four.") as server:
        proxy = await stage.watch(server.url)
        await stage.post(proxy.url, chat(server))
        monkeypatch.setattr(f"{CALL}.piece", raises)
        await stage.post(proxy.url, chat(server))
        (end,) = await stage.seen("run_end")
        assert end.data["status"] == "failed"
        stage.events.check()
