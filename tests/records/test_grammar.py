"""The grammar checker."""

import msgspec
import pytest

from rollcast.errors import GrammarError
from rollcast.records import GrammarChecker, StreamEvent, StreamEventType, check_events

T = StreamEventType
GAP = {"from_seq": 0, "to_seq": 50, "dropped": {}, "reason": ""}


def stream(*events, chain="chain_0"):
    """Events from (type, data, step) triples, seq rising."""
    made = []
    for seq, (kind, data, *step) in enumerate(events):
        where = "" if kind in (T.RUN_START, T.RUN_END, T.GAP) else chain
        made.append(StreamEvent(kind, where, 0.0, data, *step, seq=seq, run_id="r"))
    return made


CHAIN = [
    (T.RUN_START, {}),
    (T.CHAIN_START, {}),
    (T.LLM_GENERATION_START, {}, 1),
    (T.LLM_GENERATION_CHUNK, {"content": "ab", "offset": 0, "token_ids": [1], "logprobs": [-1.0]}, 1),
    (T.LLM_GENERATION_CHUNK, {"content": "c", "offset": 2}, 1),
    (T.LLM_GENERATION_END, {"content": "abc"}, 1),
    (T.TOOL_CALL_START, {"call_id": "x"}, 1),
    (T.TOOL_CALL_START, {"call_id": "y"}, 1),
    (T.TOOL_OBSERVATION, {"call_id": "y", "partial": True}, 1),
    (T.TOOL_OBSERVATION, {"call_id": "x", "partial": False}, 1),
    (T.TOOL_CALL_END, {"call_id": "x"}, 1),
    (T.ERROR, {}, 1),
    (T.TOOL_OBSERVATION, {"call_id": "y", "partial": False}, 1),
    (T.TOOL_CALL_END, {"call_id": "y"}, 1),
    (T.LLM_GENERATION_START, {}, 2),
    (T.LLM_GENERATION_END, {"content": ""}, 2),
    (T.REWARD, {}, 2),
    (T.CHAIN_END, {}, 2),
    (T.RUN_END, {}),
]


def test_a_whole_run_passes():
    """Generations, parallel tool calls, an error, a reward."""
    check_events(stream(*CHAIN))
    assert len(CHAIN) == 19


@pytest.mark.parametrize("missing", [i for i in range(len(CHAIN)) if i not in (4, 8, 11, 16)])
def test_every_event_is_needed(missing):
    """Leaving out an opening, a closing or the first chunk is noticed."""
    with pytest.raises(GrammarError):
        check_events(stream(*CHAIN[:missing], *CHAIN[missing + 1 :]))


@pytest.mark.parametrize("twice", [i for i in range(len(CHAIN)) if i not in (8, 11)])
def test_nothing_stands_twice(twice):
    """Repeating an event is noticed."""
    with pytest.raises(GrammarError):
        check_events(stream(*CHAIN[: twice + 1], *CHAIN[twice:]))


def test_seq_rises():
    """An event out of order is noticed."""
    events = stream(*CHAIN)
    with pytest.raises(GrammarError, match="seq"):
        check_events([events[0], events[2], events[1]])


def test_merged_chunks_pass():
    """A merged chunk says from where, and its offset still fits."""
    events = stream(
        *CHAIN[:3], (T.LLM_GENERATION_CHUNK, {"content": "abc", "offset": 0, "from_seq": 3}, 1), *CHAIN[5:]
    )
    check_events(events)
    assert len(events) == 18


def test_an_offset_of_more_digits_than_python_writes_is_refused_in_words():
    """JSON may have 4,300 of them, and the text that follows there makes it one more."""
    far = {"content": "ab", "offset": 10**4300 - 1, "from_seq": 3}
    with pytest.raises(GrammarError, match="more than 2\\*\\*53 characters came before"):
        check_events(
            stream(
                *CHAIN[:3],
                (T.LLM_GENERATION_CHUNK, far, 1),
                (T.LLM_GENERATION_CHUNK, {"content": "c", "offset": 2}, 1),
            )
        )


def test_after_a_gap_snapshots_open_chains_again():
    """A gap forgets what was open; a snapshot opens it in the middle."""
    checker = GrammarChecker()
    snapshot = {"messages": [], "content": "ab", "tool_calls": [], "as_of": 50}
    for event in stream(*CHAIN[:3], (T.GAP, GAP), (T.CHAIN_SNAPSHOT, snapshot, 1)):
        checker.feed(event)
    chunk = {"content": "c", "offset": 2}
    checker.feed(StreamEvent(T.LLM_GENERATION_CHUNK, "chain_0", 0.0, chunk, 1, seq=51, run_id="r"))
    with pytest.raises(GrammarError, match="offset"):
        checker.feed(StreamEvent(T.LLM_GENERATION_CHUNK, "chain_0", 0.0, chunk, 1, seq=52, run_id="r"))


def test_one_who_joins_late_needs_no_openings():
    """With `late`, a tail is enough; what it opens must still be closed."""
    check_events(stream(*CHAIN[3:]), late=True)
    with pytest.raises(GrammarError):
        check_events(stream(*CHAIN[3:-2]), late=True)


def test_an_end_must_agree_with_its_chunks():
    """The whole text begins with what the chunks said."""
    with pytest.raises(GrammarError, match="not the text of its chunks"):
        check_events(stream(*CHAIN[:5], (T.LLM_GENERATION_END, {"content": "xyz"}, 1), *CHAIN[6:]))


def test_a_filter_that_leaves_out_types_is_checked_by_what_it_lets_through():
    """Chunks alone, of two steps: their generations' starts and ends cannot come."""
    chunks = stream(
        (T.LLM_GENERATION_CHUNK, {"content": "ab", "offset": 0}, 1),
        (T.LLM_GENERATION_CHUNK, {"content": "c", "offset": 0}, 2),
    )
    with pytest.raises(GrammarError, match="offset"):
        check_events(chunks, late=True)
    check_events(chunks, types=[T.LLM_GENERATION_CHUNK])
    with pytest.raises(GrammarError, match="came before"):
        check_events(chunks[::-1], types=[T.LLM_GENERATION_CHUNK])


def test_who_joins_late_without_a_snapshot_may_find_several_calls_open():
    """A filter of tool events alone gets none; a call still ends once."""
    call = {"tool_name": "t", "status": "success"}
    said = {"observation": "x", "partial": False}
    events = [
        (T.TOOL_OBSERVATION, {"call_id": "a", **call, **said}, 1),
        (T.TOOL_OBSERVATION, {"call_id": "b", **call, **said}, 1),
        (T.TOOL_CALL_END, {"call_id": "a", **call, "duration_s": 0.1}, 1),
        (T.TOOL_CALL_END, {"call_id": "b", **call, "duration_s": 0.1}, 1),
    ]
    tools = [T.TOOL_CALL_START, T.TOOL_OBSERVATION, T.TOOL_CALL_END]
    check_events(stream(*events), types=tools)
    with pytest.raises(GrammarError, match="not open"):
        check_events(stream(*events, events[-1]), types=tools)


@pytest.fixture
def few(monkeypatch):
    """So few runs are remembered."""
    monkeypatch.setattr("rollcast.records.grammar.MAX_ENDED", 10)
    monkeypatch.setattr("rollcast.records.grammar.MAX_JOINED", 10)


def of_run(run_id, *events):
    return [msgspec.structs.replace(event, run_id=run_id) for event in events]


@pytest.mark.parametrize("late", [False, True])
def test_who_checks_for_ever_does_not_grow(few, late):
    """A thousand runs later it remembers a few that ended, and still finds what comes after their end."""
    checker = GrammarChecker(late=late)
    for i in range(1000):
        for event in of_run(f"r{i}", *stream(*CHAIN)):
            checker.feed(event)
    assert len(checker._ended_runs) == 10
    assert not checker._runs
    with pytest.raises(GrammarError, match="its run has ended"):
        checker.feed(of_run("r995", stream(*CHAIN)[3])[0])
    if not late:  # of a run that it has forgotten: an error all the same
        with pytest.raises(GrammarError, match="its run has not started"):
            checker.feed(of_run("r5", stream(*CHAIN)[3])[0])


def test_a_filter_that_hides_ends_does_not_make_it_grow(few):
    """Runs that are forgotten may go on: they are joined again."""
    checker = GrammarChecker(late=True)
    chunks = [event for event in stream(*CHAIN) if event.chain_id]
    for event in chunks:
        for i in range(30):
            checker.feed(of_run(f"r{i}", event)[0])
    assert len(checker._runs) == 10


def test_an_open_run_is_never_forgotten_by_who_saw_it_start(few):
    """However many are open at once."""
    checker, most = GrammarChecker(), 0
    for event in stream(*CHAIN):
        for i in range(30):
            checker.feed(of_run(f"r{i}", event)[0])
            most = max(most, len(checker._runs))
    checker.close()
    assert most == 30


STEP_REWARD = (T.REWARD, {"reward": 0.5, "metrics": {}, "final": False}, 1)
FINAL_REWARD = (T.REWARD, {"reward": 1.0, "metrics": {}, "final": True}, 2)
MESSAGE = (T.MESSAGE, {"role": "user", "content": "Go on"}, 1)


@pytest.mark.parametrize("place", [2, 6, 14, 16])
def test_rewards_of_steps_and_messages_stand_between_turns(place):
    """As many as you like, in any order, up to the chain's own reward."""
    check_events(
        stream(*CHAIN[:place], STEP_REWARD, MESSAGE, STEP_REWARD, *CHAIN[place:16], FINAL_REWARD, *CHAIN[17:])
    )
    assert CHAIN[16][0] is T.REWARD


@pytest.mark.parametrize("given", [STEP_REWARD, MESSAGE])
@pytest.mark.parametrize("place", [3, 4, 7, 12, 17])
def test_they_stand_nowhere_else(given, place):
    """Not inside a generation or a tool call, and not after the chain's own reward."""
    with pytest.raises(
        GrammarError, match="a generation or a tool call is open, or the chain's own reward was given"
    ):
        check_events(stream(*CHAIN[:place], given, *CHAIN[place:]))


def test_a_reward_that_does_not_say_is_the_chains_own():
    """As in a log of 0.1, where it is the last."""
    with pytest.raises(GrammarError, match="own reward was given"):
        check_events(stream(*CHAIN[:17], FINAL_REWARD, *CHAIN[17:]))
    check_events(stream(*CHAIN))
