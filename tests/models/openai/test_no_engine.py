"""What is said of a server that speaks HTTP, but not OpenAI."""

import asyncio

import pytest

from raw_engine import Engine, answer
from rollcast.errors import BackendError
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.openai import OpenAIBackend

MODELS = answer(b'{"data": [{"id": "m"}]}', "200 OK", "Content-Type: application/json")
PAGE = answer(b"<html>Welcome</html>", "200 OK", "Content-Type: text/html")


@pytest.fixture
async def engine():
    engine = await Engine().start()
    yield engine
    await engine.stop()


@pytest.mark.parametrize(
    ("played", "sentence"),
    [
        (PAGE, "not JSON; expected a server that speaks OpenAI: check base_url"),
        (answer(b"", "302 Found", "Location: /v1/models"), "redirects in a circle; check base_url"),
        (b"SSH-2.0-OpenSSH\r\n", "is not HTTP .*; check base_url"),
    ],
    ids=["page", "circle", "ssh"],
)
async def test_what_is_no_engine_is_said(engine, played, sentence):
    """The error is a sentence without another library's words."""
    engine.plays = lambda _: [played]
    with pytest.raises(BackendError, match=sentence) as caught:
        await asyncio.to_thread(OpenAIBackend, "m", base_url=engine.url)
    assert "message=" not in str(caught.value)


@pytest.mark.parametrize(
    ("played", "sentence"),
    [
        (PAGE, "answered a page .*Welcome"),
        (answer(b'{"ok": 1}', "200 OK", "Content-Type: application/json"), "has no choices"),
    ],
    ids=["page", "no choices"],
)
async def test_an_answer_that_is_none_is_not_asked_for_again(engine, played, sentence):
    """A chat route that answers a page, or JSON without choices, is named at once, with what it sent."""
    engine.plays = lambda asked: [MODELS if asked.path.endswith("/models") else played]
    backend = await asyncio.to_thread(OpenAIBackend, "m", base_url=engine.url)
    asked = len(engine.asked)
    request = GenerationRequest(
        "one", [{"role": "user", "content": "Hi"}], [], Sampling(max_tokens=4, seed=0)
    )
    with pytest.raises(BackendError, match=sentence):
        _ = [delta async for delta in backend.generate(request)]
    assert len(engine.asked) == asked + 1
    await backend.close()
