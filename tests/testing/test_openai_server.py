"""The server that speaks OpenAI in tests."""

import asyncio
import json

import aiohttp
import pytest

from rollcast.models.tiny.backend import TinyBackend
from rollcast.testing import OpenAIServer, ServedAnswer, ServedCall


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(trust_env=False) as session:
        yield session


async def post(http, server, path="/v1/chat/completions", **body):
    async with http.post(server.url + path, json=body) as response:
        return response.status, response.headers, await response.read()


def events(data):
    lines = [line.removeprefix(b"data: ") for line in data.split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


HELLO = [{"role": "user", "content": "hello"}]


async def test_a_chat_streams_word_by_word(http):
    """The chunks' texts join to the script, and the last names the finish reason."""
    async with OpenAIServer("one two") as server:
        status, _, data = await post(http, server, messages=HELLO, stream=True)
    chunks = [event["choices"][0] for event in events(data)]
    assert status == 200
    assert [chunk["delta"]["content"] for chunk in chunks] == ["", "one", " two"]
    assert chunks[-1]["finish_reason"] == "stop"


async def test_completions_have_ids_and_logprobs_if_asked(http):
    """A stream of the completions route carries the prompt's ids once, and ids and log-probabilities in each chunk."""
    async with OpenAIServer("one two") as server:
        _, _, data = await post(
            http, server, "/v1/completions", prompt=[5, 6], stream=True, return_token_ids=True, logprobs=0
        )
        _, _, whole = await post(
            http, server, "/v1/completions", prompt=[5, 6], return_token_ids=True, logprobs=0
        )
    first, second = [event["choices"][0] for event in events(data)]
    whole = json.loads(whole)["choices"][0]
    assert first["prompt_token_ids"] == whole["prompt_token_ids"] == [5, 6]
    assert first["token_ids"] + second["token_ids"] == whole["token_ids"]
    assert [first["logprobs"]["token_logprobs"][0], second["logprobs"]["token_logprobs"][0]] == whole[
        "logprobs"
    ]["token_logprobs"]


async def test_calls_and_reasoning_stream(http):
    """A call's id stands in its first delta only, and its arguments come in pieces."""
    answer = ServedAnswer(
        "", reasoning="hm", calls=[ServedCall("add", '{"a": 1, "b": 2}')], finish_reason="tool_calls"
    )
    async with OpenAIServer(answer) as server:
        _, _, data = await post(http, server, messages=HELLO, stream=True)
    deltas = [event["choices"][0]["delta"] for event in events(data)]
    assert deltas[1] == {"reasoning": "hm"}
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [call.get("id") for call in calls] == ["call_0", None, None]
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": 1, "b": 2}'


async def test_faults_are_played_in_order(http):
    """A list gives one answer to each generation, and the last one repeats."""
    faults = [
        ServedAnswer(status=429, headers={"Retry-After": "3"}),
        ServedAnswer(status=500, body=b"oh"),
        "fine",
    ]
    async with OpenAIServer(faults) as server:
        seen = [await post(http, server, messages=HELLO) for _ in range(4)]
    assert [status for status, _, _ in seen] == [429, 500, 200, 200]
    assert seen[0][1]["Retry-After"] == "3"
    assert seen[1][2] == b"oh"


async def test_a_cut_answer_ends_early(http):
    """`cut_at` closes the connection after that many bytes of the body."""
    got = bytearray()

    async def read(url):
        async with http.post(url, json={"prompt": [1], "stream": True}) as response:
            async for data in response.content.iter_any():
                got.extend(data)

    async with OpenAIServer(ServedAnswer(cut_at=100)) as server:
        with pytest.raises(aiohttp.ClientPayloadError):
            await read(server.url + "/v1/completions")
    assert len(got) == 100


async def test_split_writes_are_the_same_body(http):
    """A body that is written byte by byte is the same body."""
    bodies = []
    for split in (None, 1):
        async with OpenAIServer(ServedAnswer("12 €", split=split)) as server:
            bodies.append((await post(http, server, messages=HELLO, stream=True))[2])
    assert bodies[0] == bodies[1]


async def test_an_error_inside_the_stream(http):
    """`error_at` puts an error into a stream whose status was 200."""
    async with OpenAIServer(ServedAnswer(error_at=1)) as server:
        status, _, data = await post(http, server, "/v1/completions", prompt=[1], stream=True)
    assert status == 200
    assert "error" in events(data)[1]


async def test_a_stalled_answer_goes_on_when_it_is_resumed(http):
    """`stall_at` holds the stream until `resume`."""
    async with OpenAIServer(ServedAnswer("a b", stall_at=1)) as server:
        pending = asyncio.ensure_future(post(http, server, "/v1/completions", prompt=[1], stream=True))
        while not server.running:
            await asyncio.sleep(0.001)
        assert not pending.done()
        server.resume()
        assert len(events((await pending)[2])) == 2


async def test_a_caller_that_leaves_is_noticed(http):
    """The request's state says that its caller disconnected."""
    async with OpenAIServer(ServedAnswer(stall_at=1)) as server:
        response = await http.post(server.url + "/v1/completions", json={"prompt": [1], "stream": True})
        await response.content.readany()
        response.close()
        while server.requests[0].state == "running":
            await asyncio.sleep(0.001)
        assert server.requests[0].state == "disconnected"


async def test_it_can_start_late_and_come_back(http):
    """Callers are refused until it starts, and after `stop`; the port stays the same."""
    server = OpenAIServer()
    url = server.reserve()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(url + "/health")
    for _ in range(2):
        await server.start()
        async with http.get(url + "/health") as response:
            assert response.status == 200
        await server.stop()
        with pytest.raises(aiohttp.ClientError):
            await http.get(url + "/health")


async def test_a_wrong_key_is_refused(http):
    """With `api_key`, others get 401."""
    async with OpenAIServer(api_key="secret") as server:
        assert (await post(http, server, messages=HELLO))[0] == 401


async def test_a_backend_can_be_served(http):
    """The tokens of a real model go over the wire, sampled as the request says."""
    backend = TinyBackend()
    prompt = backend.renderer.render([{"role": "user", "content": "What is 1 + 1?"}], [])
    async with OpenAIServer(backend) as server:
        _, _, data = await post(
            http,
            server,
            "/v1/completions",
            prompt=prompt,
            max_tokens=3,
            temperature=0,
            stream=True,
            return_token_ids=True,
        )
    await backend.close()
    assert sum(len(event["choices"][0]["token_ids"]) for event in events(data)) == 3


def test_it_runs_beside_code_that_blocks():
    """`with` runs it on a thread, which has ended afterwards."""
    import threading
    import urllib.request

    before = set(threading.enumerate())
    with OpenAIServer() as server, urllib.request.urlopen(server.url + "/v1/models") as response:
        assert json.load(response)["data"][0]["id"] == "scripted"
        (thread,) = [each for each in set(threading.enumerate()) - before if "openai-server" in each.name]
    assert not thread.is_alive()


async def test_generate_takes_and_gives_ids(http):
    """vLLM's `/inference/v1/generate` has the model and the time only in whole answers, and ids without text in both forms."""
    asked = {"token_ids": [5, 6], "sampling_params": {"logprobs": 1, "max_tokens": 8}}
    async with OpenAIServer("one two") as server:
        path = "/inference/v1/generate"
        _, _, whole = await post(http, server, path, **asked)
        _, _, data = await post(
            http, server, path, **asked, stream=True, stream_options={"include_usage": True}
        )
        no_ids = await post(http, server, path, sampling_params={})
    whole, (first, second, last) = json.loads(whole), events(data)
    assert {"model", "created"} <= whole.keys()
    assert {"model", "created"}.isdisjoint(first)
    assert last["choices"] == []
    assert last["usage"].items() <= whole["usage"].items()
    (choice,) = whole["choices"]
    assert first["choices"][0]["token_ids"] + second["choices"][0]["token_ids"] == choice["token_ids"]
    assert [each["token_id"] for each in choice["logprobs"]["content"]] == choice["token_ids"]
    assert choice["finish_reason"] == second["choices"][0]["finish_reason"] == "stop"
    assert (no_ids[0], "token_ids" in json.loads(no_ids[2])["error"]["message"]) == (400, True)
