"""Messages."""

import hashlib
import json

import pytest

from rollcast.errors import MessagesError
from rollcast.records import prompt_hash, validated_messages


def nested(depth):
    """A list in a list in a list …"""
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "empty"),
        ("hi", "str"),
        (None, "NoneType"),
        ([3], r"\[0\] is int"),
        ([{"role": "robot", "content": "x"}], "'robot'.*system, user, assistant, tool"),
        ([{"role": "user"}], "content None"),
        ([{"role": "user", "content": 3}], "content 3"),
        ({"role": "user", "content": "x"}, "dict"),
        ([{"role": "user", "content": "x", "own": nested(70)}], r"\[0\] nests more than 64"),
        ([{"role": "user", "content": "x", "own": nested(900)}], r"\[0\] nests more than 64"),
    ],
)
def test_a_bad_message_is_refused_by_its_place(messages, says):
    """One sentence names where and what."""
    with pytest.raises(MessagesError, match=says):
        validated_messages(messages)


def test_good_messages_are_copied():
    """The caller's dicts are not the chain's."""
    mine = [{"role": "user", "content": "x"}]
    theirs = validated_messages(mine)
    assert theirs == mine
    assert theirs[0] is not mine[0]


def test_keys_of_none_are_absent():
    """A dataset gives every message, part and call the keys of all others; content and arguments stay as they are."""
    call = {
        "id": None,
        "type": "function",
        "function": {"name": "f", "arguments": {"x": None}, "strict": None},
    }
    given = [
        {"role": "developer", "content": "Be brief.", "name": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "hi", "image": None}], "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": None},
    ]
    written = json.dumps(given)
    assert validated_messages(given) == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": None}}}],
        },
    ]
    assert json.dumps(given) == written, "the row is only read"


def test_a_prompts_hash_is_that_of_its_canonical_json():
    """The order of keys does not matter; every message does."""
    text = '[{"content":"What is 2 + 2? \u2713","role":"user"}]'
    messages = [{"role": "user", "content": "What is 2 + 2? \u2713"}]
    assert prompt_hash(messages) == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert prompt_hash([dict(reversed(messages[0].items()))]) == prompt_hash(messages)
    assert prompt_hash(messages * 2) != prompt_hash(messages)
