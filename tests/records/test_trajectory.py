"""The trajectory's views."""

import json

import pytest

from rollcast.errors import InputError
from rollcast.records import ToolCall, ToolRecord, Trajectory, Turn


def example():
    first = Turn(1, prompt_ids=[1, 2])
    first.append("a", [3], [-0.5], 7)
    first.append("b", [4], [-0.25], 8)
    first.finish_reason = "tool_call"
    first.tools.append(
        ToolRecord(ToolCall("call_1_0", "calculator", {"expression": "1"}), "1", "success", 0.1)
    )
    second = Turn(2, prompt_ids=[5])
    second.append("c", [6], [-1.0], 8)
    return Trajectory("r", "chain_0", "group_0", turns=[first, second])


def test_the_arrays_are_aligned():
    """Ids, mask, log-probabilities and policy versions have one entry a token."""
    t = example()
    assert t.token_ids == [1, 2, 3, 4, 5, 6]
    assert t.loss_mask == [0, 0, 1, 1, 0, 1]
    assert t.logprobs == [0.0, 0.0, -0.5, -0.25, 0.0, -1.0]
    assert t.policy_versions == [-1, -1, 7, 8, -1, 8]
    assert t.completion_tokens == 3


def test_a_backend_without_ids_counts_deltas():
    """The arrays are empty, the count is not."""
    turn = Turn(1)
    turn.append("a", None, None, None)
    t = Trajectory("r", "chain_0", None, turns=[turn])
    assert (t.token_ids, t.loss_mask, t.completion_tokens) == ([], [], 1)


def test_a_delta_of_nothing_is_no_token():
    """Neither text nor ids: it only says that the generation is over. Ids count without text, and text without ids."""
    turn = Turn(1)
    turn.append("", None, None, None)
    turn.append("", [], None, 3)
    assert (turn.completion_tokens, turn.policy_versions) == (0, [])
    turn.append("", [7], None, None)
    turn.append("a b", None, None, None)
    assert turn.completion_tokens == 2


def test_reading_the_text_of_an_open_turn_changes_nothing():
    """Another thread may add a token to it at that moment, which must not be lost."""
    turn = Turn(1)
    turn.append("a", [1], None, None)
    turn.append("b", [2], None, None)
    pieces = turn.pieces
    assert turn.text == "ab"
    assert turn.pieces is pieces
    assert pieces == ["a", "b"]
    turn.finish_reason = "stop"
    assert turn.text == "ab"
    assert turn.pieces == ["ab"]


def forked():
    """As `example`, and then a turn whose prompt of three tokens was rendered afresh."""
    t = example()
    third = Turn(3, prompt_ids=[1, 2, 9], fresh=True)
    third.append("d", [7, 8], [-0.75, -0.5], 9)
    t.turns.append(third)
    return t


def test_one_segment_is_the_whole():
    """Where nothing was rendered afresh there is one segment, with the trajectory's own lists; before a turn, none."""
    t = example()
    (segment,) = t.segments
    assert not t.forked
    assert segment.turns == t.turns
    assert (segment.token_ids, segment.loss_mask) == (t.token_ids, t.loss_mask)
    assert (segment.logprobs, segment.policy_versions) == (t.logprobs, t.policy_versions)
    empty = Trajectory("r", "chain_0", None)
    assert (empty.segments, empty.token_ids) == ([], [])


def test_a_fresh_prompt_begins_a_segment():
    """Its prompt has mask 0 as a whole, earlier turns included; each sampled token has its 1 in one segment."""
    first, second = forked().segments
    assert [turn.step for turn in first.turns] == [1, 2]
    assert first.token_ids == example().token_ids
    assert second.token_ids == [1, 2, 9, 7, 8]
    assert second.loss_mask == [0, 0, 0, 1, 1]
    assert second.logprobs == [0.0, 0.0, 0.0, -0.75, -0.5]
    assert second.policy_versions == [-1, -1, -1, 9, 9]


@pytest.mark.parametrize("name", ["token_ids", "loss_mask", "logprobs", "policy_versions"])
def test_a_forked_trajectory_has_no_single_sequence(name):
    """Its four lists are refused, and the error points to the segments."""
    with pytest.raises(InputError, match=r"rendered afresh at step 3.*trajectory\.segments"):
        getattr(forked(), name)


def test_a_forked_trajectory_survives_its_dict():
    """The segments are there again; and a trajectory that did not fork has another digest."""
    t = forked()
    again = Trajectory.from_dict(json.loads(json.dumps(t.to_dict())))
    assert [s.token_ids for s in again.segments] == [s.token_ids for s in t.segments]
    assert again.digest() == t.digest()
    t.turns[2].fresh = False
    assert again.digest() != t.digest()


def test_further_fields_of_messages_survive_the_dict():
    """A message may have more than every API has: its reasoning, for one."""
    t = example()
    t.messages = [{"role": "assistant", "content": "a", "reasoning_content": "b"}]
    assert Trajectory.from_dict(t.to_dict()).messages == t.messages


def test_it_survives_its_dict():
    """to_dict and from_dict lose nothing."""
    t = example()
    assert Trajectory.from_dict(t.to_dict()).to_dict() == t.to_dict()


def test_the_digest_ignores_times_and_run():
    """Equal samples have equal digests; one different token has another."""
    a, b, c = example(), example(), example()
    b.run_id, b.duration_s, b.turns[0].ttft_s = "other", 3.0, 1.0
    c.turns[1].token_ids[0] = 9
    assert a.digest() == b.digest() != c.digest()


def test_what_is_open():
    """The last turn is open until it has a finish reason; a call until it has a status."""
    t = example()
    assert t.open_turn is t.turns[1]
    t.turns[1].finish_reason = "stop"
    assert t.open_turn is None
    t.turns[1].tools.append(ToolRecord(ToolCall("call_2_0", "search", "raw"), "so far"))
    assert [c["call_id"] for c in t.open_tool_calls] == ["call_2_0"]
