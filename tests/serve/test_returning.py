"""What a client that comes back has already, when a hub's record has snapshots among its events."""

import pytest

from rollcast.records import GrammarChecker, StreamEvent, StreamEventType
from rollcast.serve.returning import Repetitions

T = StreamEventType
KEY = ("w", "r")
GENERATION = {"prompt_tokens": 1, "model": "m", "policy_version": 0, "sampling": {}}


def event(kind, seq, chain="chain_0", step=1, **data):
    return StreamEvent(kind, chain, 1.0, data, step, step, seq, "r", None, "w")


def snapshot(as_of, content, step=1):
    return event(T.CHAIN_SNAPSHOT, as_of, step=step, messages=[], content=content, tool_calls=[], as_of=as_of)


def chunk(seq, content, offset, step=1):
    return event(T.LLM_GENERATION_CHUNK, seq, step=step, content=content, offset=offset)


BEGUN = [
    event(T.RUN_START, 0, "", None),
    event(T.CHAIN_START, 1, step=None, messages=[], tools=[], index=0, policy_version=0),
    event(T.LLM_GENERATION_START, 2, **GENERATION),
]


def come_back(first, again, last):
    """What a client gets that had `first`, whose last `seq` was this one, and is then sent `again`; the grammar holds."""
    repetitions, checker = Repetitions(), GrammarChecker(late=True)
    got = repetitions.new(first)
    repetitions.returned({KEY: last}, lambda _: False)
    more = repetitions.new(again)
    for each in [*got, *more]:
        checker.feed(each)
    return more


@pytest.mark.parametrize("last", [6, 2])
def test_a_snapshot_of_text_that_nobody_watched_is_not_a_repetition(last):
    """The client was away, so no tokens were made; the snapshot has them, although its `seq` is one that the client has."""
    again = [snapshot(6, "a text that "), chunk(7, "goes on", 12)]
    assert come_back(BEGUN, again, last) == again


def test_a_snapshot_that_tells_nothing_new_is_a_repetition():
    """The client has its text, and more."""
    had = [*BEGUN, chunk(3, "a text ", 0), chunk(4, "that ", 7)]
    more = chunk(5, "goes on", 12)
    assert come_back(had, [snapshot(3, "a text "), more], 4) == [more]


def test_a_snapshot_of_a_generation_that_has_ended_is_a_repetition():
    """The client has its end."""
    end = {
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "ttft_s": None,
        "duration_s": 1.0,
    }
    had = [*BEGUN, event(T.LLM_GENERATION_END, 4, content="a text", **end)]
    assert come_back(had, [snapshot(3, "a text")], 4) == []


MERGED = {"token_ids": [4, 5, 6, 7], "logprobs": [-1.0, -2.0, -3.0, -4.0], "dt_ms": [1.0, 2.0, 3.0], "lengths": [2, 3, 0, 1]}  # fmt: skip


def test_the_rest_of_merged_tokens_has_their_lists():
    """What the client has ends where a token does."""
    had = [*BEGUN, chunk(3, "ab", 0)]
    again = event(T.LLM_GENERATION_CHUNK, 6, content="abcdef", offset=0, from_seq=3, **MERGED)
    (rest,) = come_back(had, [again], 3)
    assert rest.data == {
        "content": "cdef", "offset": 2, "from_seq": 4,
        "token_ids": [5, 6, 7], "logprobs": [-2.0, -3.0, -4.0], "dt_ms": [2.0, 3.0], "lengths": [3, 0, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    "lists",
    [
        {},
        MERGED | {"lengths": [3, 2, 0, 1]},
        MERGED | {"lengths": [2, 3, 0, 2]},
        MERGED | {"lengths": [2, 4]},
        MERGED | {"lengths": ["ab", "cdef"]},
        {"token_ids": [4, 5], "reasoning": "Hm."},
    ],
)
def test_the_rest_of_tokens_whose_texts_are_not_known_has_no_lists(lists):
    """They would belong to other text."""
    had = [*BEGUN, chunk(3, "ab", 0)]
    again = event(T.LLM_GENERATION_CHUNK, 6, content="abcdef", offset=0, from_seq=3, **lists)
    (rest,) = come_back(had, [again], 3)
    assert rest.data == {"content": "cdef", "offset": 2, "from_seq": 4}
