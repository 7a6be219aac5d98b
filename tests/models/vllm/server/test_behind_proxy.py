"""A watched proxy before vLLM's own server: the caller gets the same answers, but for `id` and `created`."""

import json
import re

import aiohttp
import pytest

from rollcast.proxy import Proxy, ProxySettings
from rollcast.proxy.probe import probe
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events

pytestmark = pytest.mark.timeout(600)
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]
PROMPT = [1, 2, 3, 4, 5, 6, 7]
FIELDS = [
    {},
    {"return_token_ids": True},
    {"logprobs": 0},
    {"return_token_ids": True, "logprobs": 0},
    {"return_token_ids": True, "logprobs": 2, "top_k": -1, "repetition_penalty": 1.1, "n": 1},
    {"stop": ["e"], "include_stop_str_in_output": True},
    {"n": 2, "seed": 3, "temperature": 1.0},
    {"echo": True},
    {"prompt_logprobs": 1},
]  # fmt: skip
MASKED = re.compile(rb'"(id|created)":("[^"]*"|\d+)')


async def post(session, url, path, body):
    async with session.post(url + path, json=body) as answer:
        names = [name for name in answer.headers if name.lower() not in ("content-length", "date")]
        return answer.status, names, MASKED.sub(rb'"\1":0', await answer.read())


def joined(stream):
    """What the chunks of a stream add up to, by choice: how vLLM cuts an answer into chunks depends on the moment."""
    choices = {}
    for line in stream.split(b"\n\n"):
        if not line or line == b"data: [DONE]":
            continue
        for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
            whole = choices.setdefault(
                choice["index"], {"text": "", "names": set(), "token_ids": [], "logprobs": [], "reason": None}
            )
            whole["text"] += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            whole["names"] |= set(choice)
            whole["token_ids"] += choice.get("token_ids") or []
            whole["reason"] = choice["finish_reason"] or whole["reason"]
            logprobs = choice.get("logprobs") or {}
            whole["logprobs"] += logprobs.get("token_logprobs") or [
                each["logprob"] for each in logprobs.get("content") or ()
            ]
    return choices


def same(direct, passed, *, stream):
    """Whether a caller got the same."""
    if not stream or direct[0] != 200:
        return direct == passed
    return direct[:2] == passed[:2] and joined(direct[2]) == joined(passed[2])


def asked(server, path, fields, *, stream):
    """A greedy request, so that each answer to it is the same."""
    fields = {
        "model": str(server.model),
        "temperature": 0.0,
        "max_tokens": 12,
        "stream": stream,
        "seed": 1,
    } | fields
    if "chat" not in path:
        return {"prompt": PROMPT} | fields
    if "logprobs" in fields:
        fields = fields | {"top_logprobs": fields["logprobs"], "logprobs": True}
    return {"messages": MESSAGES} | fields


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_vllm_s_answers_are_the_same(server, path):
    """For greedy calls of every kind, streaming or not, status, headers and body are those that vLLM gives without a proxy; streams may be cut elsewhere."""
    manager = StreamingManager()
    unequal = []
    with capture_events(manager) as capture:
        async with (
            Proxy(ProxySettings(upstream=server.url), manager=manager) as proxy,
            aiohttp.ClientSession() as session,
        ):
            for fields in FIELDS:
                for stream in (False, True, False, False):
                    body = asked(server, path, fields, stream=stream)
                    direct = await post(session, server.url, path, body)
                    passed = await post(session, proxy.url, path, body)
                    if not same(direct, passed, stream=stream):
                        unequal.append((fields, stream, direct, passed))
            assert proxy.counts.faults == 0
            assert proxy.counts.turned >= 10
        await manager.drain()
    capture.check()
    assert not unequal, "\n".join(map(str, unequal))
    ends = capture.of("llm_generation_end")
    assert all(end.data["completion_tokens"] for end in ends if end.data["finish_reason"] != "error")


async def test_a_turned_call_is_seen_with_its_ids(server):
    """What did not stream is seen token by token, with ids and processed log-probabilities."""
    manager = StreamingManager()
    with capture_events(manager) as capture:
        async with (
            Proxy(ProxySettings(upstream=server.url), manager=manager) as proxy,
            aiohttp.ClientSession() as session,
        ):
            said = await probe(proxy.settings, proxy.watching.traits)
            body = asked(server, "/v1/completions", {"top_k": 1}, stream=False)
            status, _, answer = await post(session, proxy.url, "/v1/completions", body)
            assert (status, proxy.counts.turned) == (200, 1)
        await manager.drain()
    assert "token ids, log-probabilities (processed" in said[0]
    chunks = capture.of("llm_generation_chunk")
    assert len(chunks) > 1
    assert all(len(chunk.data["token_ids"]) == len(chunk.data["logprobs"]) for chunk in chunks)
    assert (
        sum(len(chunk.data["token_ids"]) for chunk in chunks)
        == json.loads(answer)["usage"]["completion_tokens"]
    )
