"""Whatever callers and engines send, a watched caller gets what the engine gives. `make proxy-fuzz` plays a hundred thousand requests."""

import asyncio
import json
import os
import random

import aiohttp
import pytest

from raw_engine import Engine, answer, chunk, head

REQUESTS = int(os.environ.get("ROLLCAST_PROXY_FUZZ", "5000"))
AT_ONCE = 50

WORDS = [
    "",
    "four",
    "ä",
    "🦊",
    "\x00",
    "\\u0000",
    '"',
    "{",
    "data: ",
    "\n\n",
    "<think>",
    "x" * 3000,
    "\ud800",
]
PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/inference/v1/generate",
    "/chains/{}/v1/chat/completions",
    "/v1/models",
    "/v1/embeddings",
]


def any_json(rng, depth=0):
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [any_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(NAMES): any_json(rng, depth + 1) for _ in range(rng.randrange(5))}
    return [
        None,
        rng.choice([True, False]),
        rng.randrange(-5, 1 << rng.choice([3, 40, 80])),
        rng.random() * 100,
        rng.choice(WORDS),
        "text",
    ][kind]


NAMES = [
    "id", "object", "choices", "index", "delta", "message", "content", "role", "text", "token_ids", "prompt_token_ids", "logprobs", "finish_reason",
    "usage", "prompt_tokens", "completion_tokens", "tool_calls", "function", "name", "arguments", "reasoning", "error", "code", "weight_versions",
    "meta_info", "token_logprobs", "tokens", "top_logprobs", "logprob", "token",
]  # fmt: skip
FIELDS = [
    "model",
    "messages",
    "prompt",
    "tools",
    "stream",
    "n",
    "logprobs",
    "return_token_ids",
    "echo",
    "max_tokens",
    "stream_options",
    "token_ids",
]


def messages(rng):
    return [
        {"role": rng.choice(["user", "assistant", "tool", "system", "developer", 7]), "content": rng.choice([*WORDS, None, [{"type": "text", "text": "a"}]]),
         **({"tool_call_id": rng.choice(["call_1", 5])} if rng.random() < 0.2 else {}),
         **({"tool_calls": any_json(rng)} if rng.random() < 0.1 else {})}
        for _ in range(rng.randrange(4))
    ]  # fmt: skip


def request(rng):
    """A body: mostly a request as engines know it, sometimes with anything in it, sometimes no JSON."""
    if rng.random() < 0.1:
        return rng.choice([b"", b"{", b"[]", b"null", b"\xff", b'{"stream": true', b"1e999", b"[" * 5000])
    body = (
        {"model": "m", "messages": messages(rng)}
        if rng.random() < 0.6
        else {"prompt": rng.choice(["a", [1, 2], [], ["a", "b"], [[1]], 7])}
    )
    if rng.random() < 0.3:
        body["stream"] = rng.choice([True, False, None, "yes"])
    for _ in range(rng.randrange(3)):
        body[rng.choice(FIELDS)] = any_json(rng)
    return json.dumps(body).encode()


def well_made(rng, chat, stream):
    """An answer as engines give it."""
    words = [rng.choice(WORDS[:-1]) for _ in range(rng.randrange(4))]
    top = {"id": "1", "object": "chat.completion" if chat else "text_completion", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 1, "total_tokens": 1 + len(words), "completion_tokens": len(words)}
    if not stream:
        text = "".join(words)
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        body = top | {
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": "stop"}],
            "usage": usage,
        }
        return [answer(compact(body), "200 OK", "Content-Type: application/json")]
    if chat:
        top["object"] = "chat.completion.chunk"
    said = [({"delta": {"content": word}} if chat else {"text": word}) for word in words]
    parts = [
        top | {"choices": [{"index": 0, **each, "logprobs": None, "finish_reason": None}]} for each in said
    ]
    end = {"delta": {"content": ""}} if chat else {"text": ""}
    parts.append(top | {"choices": [{"index": 0, **end, "logprobs": None, "finish_reason": "stop"}]})
    parts.append(top | {"choices": [], "usage": usage})
    payloads = [b"data: " + compact(part) + b"\n\n" for part in parts] + [b"data: [DONE]\n\n"]
    return [head("Content-Type: text/event-stream"), *map(chunk, payloads), chunk(b"")]


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def odd(rng):
    """An answer that no engine should give."""
    kind = rng.choice(
        ["text/event-stream", "text/event-stream; charset=utf-8", "application/json", "text/plain"]
    )
    body = b"".join(
        rng.choice([b"data: ", b"", b": ", b"event: x\n"]) + (json.dumps(any_json(rng)).encode() if rng.random() < 0.8 else rng.randbytes(20)) + rng.choice([b"\n\n", b"\r\n\r\n", b"\n", b""])
        for _ in range(rng.randrange(6))
    )  # fmt: skip
    status = rng.choice(["200 OK", "200 OK", "200 OK", "400 Bad Request", "500 Oops", "204 No Content"])
    if status.startswith("204"):
        return [b"HTTP/1.1 204 No Content\r\n\r\n"]
    if rng.random() < 0.5:
        return [answer(body, status, f"Content-Type: {kind}")]
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    return [head(f"Content-Type: {kind}", status=status), *(chunk(piece) for piece in pieces), chunk(b"")]


def play(asked):
    """The answer to a request: its number, its route and whether it streams decide, so that it is the same with and without the proxy."""
    rng = random.Random(int(asked.header("X-Fuzz")))
    try:
        stream = json.loads(asked.body).get("stream") is True
    except (ValueError, AttributeError, RecursionError):
        stream = False
    if rng.random() < 0.4 or asked.path not in PATHS[:2]:
        return odd(rng)
    return well_made(rng, "chat" in asked.path, stream)


async def fetch(session, url, path, body, seed):
    headers = {"X-Fuzz": str(seed), "Content-Type": "application/json"}
    if seed % 3 == 0:
        headers["X-Session-ID"] = f"s{seed % 17}"
    async with session.post(url + path, data=body, headers=headers) as got:
        return (
            got.status,
            sorted(name for name in got.headers if name not in ("Transfer-Encoding", "Content-Length")),
            await got.read(),
        )


@pytest.mark.timeout(3600)
async def test_whatever_is_sent(stage):
    """Thousands of drawn requests, some of them nonsense: each caller gets the engine's bytes, and our watching never fails."""
    engine = await Engine().start()
    engine.plays = play
    proxy = await stage.watch(engine.url)
    base = int(os.environ.get("ROLLCAST_PROXY_FUZZ_SEED", "0"))

    async def one(number):
        seed = base + number
        rng = random.Random(-seed - 1)
        path = rng.choice(PATHS).format(seed % 23)
        body = request(rng)
        passed = await fetch(stage.session, proxy.url, path, body, seed)
        changed = any(asked.body != body for asked in engine.asked if asked.header("X-Fuzz") == str(seed))
        direct = await fetch(stage.session, engine.url, path.removeprefix(f"/chains/{seed % 23}"), body, seed)
        # Nonsense in a stream that the proxy asked for has no whole answer to compare with.
        if not (changed and random.Random(seed).random() < 0.4):
            assert passed == direct, (seed, path, body)

    async with aiohttp.ClientSession():
        for start in range(0, REQUESTS, AT_ONCE):
            await asyncio.gather(*(one(number) for number in range(start, min(start + AT_ONCE, REQUESTS))))
            assert stage.watching.counts.faults == 0
            engine.asked.clear()
            if start % 1000 == 0:
                stage.events.events.clear()
    assert stage.watching.counts.turned > REQUESTS // 100
    assert stage.watching.counts.watched > REQUESTS // 3
    await proxy.stop()
    await engine.stop()
