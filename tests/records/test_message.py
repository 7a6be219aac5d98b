"""Messages."""

import pytest

from rollcast.errors import MessagesError
from rollcast.records import validated_messages


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
