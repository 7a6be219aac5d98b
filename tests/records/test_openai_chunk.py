"""The fast reader of chunks says what the thorough one says."""

import json
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.records.openai_chunk import chunk_pieces
from rollcast.records.openai_wire import pieces_of, request_of

IDS = st.lists(st.integers(0, 200_000) | st.sampled_from([1 << 63, (1 << 63) - 1, -1, 1 << 80]), max_size=3)
TEXT = st.text(max_size=8)
LOGPROB = st.floats(-20, 0) | st.sampled_from([-9999.0, 0, -1, None, -9999.5])


def maybe(strategy):
    return st.none() | strategy


TOKENS = st.lists(
    st.sampled_from(
        [
            "token_id:7",
            "token_id:x",
            " word",
            "token_id:12",
            "token_id:" + "9" * 5000,
            "token_id:9223372036854775808",
        ]
    ),
    max_size=3,
)
LOGPROBS = st.fixed_dictionaries(
    {},
    optional={
        "content": maybe(
            st.lists(
                st.fixed_dictionaries(
                    {"token": st.sampled_from(["a", "token_id:5"]), "logprob": LOGPROB},
                    optional={
                        "bytes": st.none(),
                        "top_logprobs": st.just([]),
                        "token_id": maybe(st.integers(0, 9)),
                    },
                ),
                max_size=3,
            )
        ),
        "token_logprobs": maybe(st.lists(LOGPROB, max_size=3)),
        "tokens": maybe(TOKENS),
        "text_offset": st.just([0]),
    },
)
DELTA = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": maybe(TEXT),
        "reasoning": maybe(TEXT),
        "reasoning_content": maybe(TEXT),
        "refusal": maybe(TEXT),
        "tool_calls": maybe(
            st.just([]) | st.just([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}])
        ),
    },
)
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2) | st.none() | st.just(True),
        "text": maybe(TEXT),
        "delta": maybe(DELTA),
        "logprobs": maybe(LOGPROBS),
        "token_ids": maybe(IDS),
        "prompt_token_ids": maybe(IDS),
        "finish_reason": maybe(st.sampled_from(["stop", "length", ""])),
        "stop_reason": st.none() | st.integers(),
        "weight_version": st.just("3"),
    },
)
CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXT,
        "object": st.sampled_from(["text_completion", "chat.completion.chunk", "error"]),
        "choices": st.lists(CHOICE, max_size=2),
        "usage": maybe(st.just({"prompt_tokens": 1, "completion_tokens": 2})),
        "prompt_token_ids": maybe(IDS),
        "error": maybe(st.just({"message": "no"}) | TEXT),
        "weight_version": st.just(4),
    },
)


def without_raw(pieces):
    return [msgspec.structs.replace(piece, raw=None) for piece in pieces]


@given(CHUNK)
def test_it_says_the_same(chunk):
    """For any chunk, all but the decoded chunk is the same."""
    payload = json.dumps(chunk).encode()
    assert without_raw(chunk_pieces(payload)) == without_raw(pieces_of(payload))


@given(st.binary(max_size=40) | st.sampled_from([b"[DONE]", b" [DONE]\n", b"{}", b"[]", b'{"choices": [1e999]}', b'{"choices":[{"token_ids":[1.0]}]}', b'{"choices":[{"logprobs":{"token_logprobs":[1e999]}}]}']))  # fmt: skip
def test_nonsense_is_left_to_the_thorough_one(payload):
    """What is no usual chunk is read by `pieces_of`."""
    assert without_raw(chunk_pieces(payload)) == without_raw(pieces_of(payload))


@pytest.mark.parametrize("seed", range(20))
def test_a_usual_chunk_is_read_fast(seed):
    """Chunks as vLLM writes them are not decoded twice, which shows in that there is no decoded chunk."""
    rng = random.Random(seed)
    choice = {"index": 0, "text": " word", "logprobs": {"text_offset": [0], "token_logprobs": [-rng.random()], "tokens": ["token_id:7"], "top_logprobs": [{"token_id:7": -0.1}]}, "finish_reason": None, "stop_reason": None, "token_ids": [7]}  # fmt: skip
    (piece,) = chunk_pieces(json.dumps({"id": "a", "choices": [choice]}).encode())
    assert (piece.raw, piece.text, piece.token_ids) == (None, " word", [7])


def test_ids_that_no_engine_has_are_none():
    """An integer that does not fit into 64 bits is no token id, in a request and in an answer."""
    assert request_of("completions", {"prompt": [1, 1 << 63]}).prompt_token_ids is None
    assert (
        pieces_of({"choices": [{"token_ids": [1 << 64], "prompt_token_ids": [1, -(1 << 70)]}]})[0].token_ids
        is None
    )
    assert request_of("completions", {"prompt": [1, (1 << 63) - 1]}).prompt_token_ids == [1, (1 << 63) - 1]
