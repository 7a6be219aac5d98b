"""A streamed answer of vLLM's own server, put together, is the one that it sends whole."""

import json
import urllib.request

import pytest

from rollcast.records.openai_wire import Answer, BodyShape, SseReader, pieces_of

pytestmark = pytest.mark.timeout(600)

ASK = [{"role": "user", "content": "Count: 1, 2,"}]
BODIES = {
    "completions": ("completions", {"prompt": "Count: 1, 2,"}),
    "ids": ("completions", {"prompt": [5, 6, 7], "return_token_ids": True, "logprobs": 0}),
    "top logprobs": ("completions", {"prompt": "Count:", "logprobs": 2}),
    "a stop": ("completions", {"prompt": "Count:", "stop": ["e", "a", "o"]}),
    "chat": ("chat", {"messages": ASK}),
    "chat with ids": (
        "chat",
        {"messages": ASK, "return_token_ids": True, "logprobs": True, "top_logprobs": 1},
    ),
}
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def post(server, path, body):
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read()


def masked(body):
    """The body without what differs from call to call; the order of its fields stays."""
    fields = json.loads(body)
    return json.dumps(fields | {"id": "x", "created": 0})


def streamed(server, kind, body, shape):
    answer, reader = Answer(kind, shape), SseReader()
    sent = body | {"stream": True, "stream_options": {"include_usage": True}}
    for payload in reader.feed(post(server, PATHS[kind], sent)):
        for piece in pieces_of(payload):
            answer.add(piece)
    assert answer.ended
    return answer


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_a_streamed_answer_is_put_together_exactly(server, name, learnt):
    """Fields, nulls and their order are those of a whole answer, whether the engine's shape was learnt or is the built-in one."""
    kind, asked = BODIES[name]
    body = {"model": str(server.model), "max_tokens": 12, "temperature": 0, "seed": 7, **asked}
    whole = post(server, PATHS[kind], body)
    shape = BodyShape(kind)
    if learnt:
        shape.learn(json.loads(post(server, PATHS[kind], body | {"max_tokens": 2})))
    assert masked(streamed(server, kind, body, shape).body()) == masked(whole)


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_what_was_added_is_taken_out(server, kind):
    """Ids and log-probabilities that only the watcher asked for are not in the caller's answer."""
    _, asked = BODIES[kind]
    body = {"model": str(server.model), "max_tokens": 12, "temperature": 0, "seed": 7, **asked}
    more = {"return_token_ids": True} | (
        {"logprobs": 0} if kind == "completions" else {"logprobs": True, "top_logprobs": 0}
    )
    answer = streamed(server, kind, body | more, BodyShape(kind))
    assert masked(answer.body(without=("token_ids", "logprobs"))) == masked(post(server, PATHS[kind], body))
