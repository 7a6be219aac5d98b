"""What a queue does for a reader who falls behind: nothing is lost in silence, and nothing is told wrongly."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast.records import StreamEvent, StreamEventType
from rollcast.stream.queue import Control, EventQueue, compact, event_size, merged_chunks

T = StreamEventType


def event(kind, seq, step=1, chain="chain_0", **data):
    return StreamEvent(kind, chain, 0.0, data, step, step, seq, "r", "group_0")


def chunk(seq, content, offset=0, **kw):
    return event(T.LLM_GENERATION_CHUNK, seq, content=content, offset=offset, **kw)


def end(seq, content, **kw):
    return event(T.LLM_GENERATION_END, seq, content=content, **kw)


def gap(first, last, **dropped):
    return event(T.GAP, last, None, "", from_seq=first, to_seq=last, dropped=dropped, reason="")


def put(queue, *events):
    for e in events:
        queue.put_nowait(e, event_size(e))


def given_up(*events, limit=2_000):
    """A queue that has dropped these, and one more that was too much."""
    queue = EventQueue("somebody", limit)
    put(queue, *events, event(T.ERROR, 90, error="x" * 5_000, error_type="", where=""))
    return queue


def test_chunks_of_two_generations_stay_two():
    """Where a filter leaves out what stands between them, too."""
    items, saved, _ = compact(
        [chunk(1, "a"), chunk(2, "b", 1), chunk(9, "c", step=2), chunk(10, "d", 1, step=2)]
    )
    assert [(e.step, e.data["content"]) for e in items] == [(1, "ab"), (2, "cd")]
    assert saved == 2


def test_chunks_do_not_merge_across_a_gap():
    """Their offsets would not fit, nor their place."""
    items, *_ = compact([chunk(1, "a"), gap(2, 5), chunk(6, "c", 9)])
    assert [e.seq for e in items] == [1, 5, 6]


def test_chunks_do_not_merge_across_a_barrier():
    """Somebody has snapshots of what stands before it, and is to get what stands after it."""
    items, *_ = compact(
        [chunk(1, "a"), chunk(2, "b", 1), Control("barrier"), chunk(3, "c", 2), chunk(4, "d", 3)]
    )
    assert [i.kind if isinstance(i, Control) else i.data["content"] for i in items] == ["ab", "barrier", "cd"]


def test_a_gap_covers_chunks_that_went_because_an_end_had_their_text():
    """The end that waited was dropped later, and their text with it."""
    queue = EventQueue("somebody", 6_000)
    put(queue, *(chunk(i, "x" * 900, 900 * i) for i in range(3)), end(3, "x" * 2_700))
    assert [e.event_type for e in queue.waiting] == [T.LLM_GENERATION_END]
    put(queue, event(T.ERROR, 4, error="x" * 9_000, error_type="", where=""))
    (told,) = queue.take_nowait(())
    assert (told.data["from_seq"], told.data["to_seq"]) == (0, 4)
    assert sum(told.data["dropped"].values()) == queue.dropped
    assert queue.merged + queue.dropped == 5


def test_a_run_is_opened_before_its_gap_comes():
    """Who sorts events by run would not know what the gap belongs to."""
    queue = EventQueue("somebody", 2_000)
    queue.put_uncounted([Control("run_opened", "r")])
    put(queue, event(T.ERROR, 1, error="x" * 5_000, error_type="", where=""))
    queue.put_uncounted([Control("run_closed", "r")])
    opened, told, closed = queue.take_nowait(())
    assert (opened.kind, told.event_type, closed.kind) == ("run_opened", T.GAP, "run_closed")


def test_no_snapshot_comes_that_is_older_than_those_after_the_gap():
    """One that a change of filter asked for meanwhile says less than they do."""
    queue = given_up()
    queue.put_uncounted([event(T.CHAIN_SNAPSHOT, 5, messages=[], content="old", tool_calls=[], as_of=5)])
    fresh = event(T.CHAIN_SNAPSHOT, 90, messages=[], content="new", tool_calls=[], as_of=90)
    assert queue.take_nowait([fresh])[1:] == [fresh]


def test_what_is_put_back_behind_a_gap_is_in_the_gap():
    """It would come after what is newer."""
    queue = EventQueue("somebody", 2_000)
    put(queue, chunk(1, "a"), chunk(2, "b", 1))
    taken = queue.take_nowait(())
    put(queue, event(T.ERROR, 3, error="x" * 5_000, error_type="", where=""))
    queue.put_back([gap(0, 0, reward=1), *taken[1:]])
    (told,) = queue.take_nowait(())
    assert (told.data["from_seq"], told.data["to_seq"]) == (0, 3)
    assert told.data["dropped"] == {"reward": 1, "llm_generation_chunk": 1, "error": 1}


def run_end(seq):
    return event(T.RUN_END, seq, None, "", status="completed")


def test_the_end_of_a_run_comes_after_the_gap():
    """Nothing else would tell that it ended: whether it was the last to be queued, or came later, or was put back."""
    error = event(T.ERROR, 3, error="x" * 5_000, error_type="", where="")
    for events in ([chunk(1, "a"), error, run_end(4)], [chunk(1, "a"), run_end(4), error]):
        queue = EventQueue("somebody", 2_000)
        put(queue, *events)
        told, ended = queue.take_nowait(())
        assert told.event_type is T.GAP
        assert ended == run_end(4)
        assert T.RUN_END not in told.data["dropped"]
    queue = EventQueue("somebody", 2_000)
    put(queue, chunk(1, "a"), run_end(4))
    taken = queue.take_nowait(())
    put(queue, error)
    queue.put_back(taken)
    assert [e.event_type for e in queue.take_nowait(())] == [T.GAP, T.RUN_END]


def test_ends_of_runs_are_bounded_as_all_else():
    """A flood of runs without a reader: what does not fit is in the gap, and none is lost in silence."""
    queue = EventQueue("somebody", 50_000)
    put(queue, event(T.ERROR, 0, error="x" * 90_000, error_type="", where=""))
    put(queue, *(run_end(i) for i in range(1, 2_001)))
    assert queue.bytes <= queue.limit
    told, *ended = queue.take_nowait(())
    assert 0 < len(ended) < 2_000
    assert told.data["dropped"]["run_end"] + len(ended) == 2_000


def at(seconds, one):
    """The event at another time."""
    return msgspec.structs.replace(one, timestamp=seconds)


def merged(*chunks):
    """The data of the one chunk that these become."""
    items, *_ = compact(list(chunks))
    (only,) = items
    return only.data


def test_reasoning_of_merged_chunks_is_appended():
    """As their text is; a chunk that has none adds none."""
    data = merged(chunk(1, "", reasoning="Let "), chunk(2, "", reasoning="me"), chunk(3, "So"))
    assert (data["content"], data["reasoning"]) == ("So", "Let me")


def test_chunks_without_reasoning_get_none():
    """What no chunk tells, the merged one does not tell."""
    assert not {"reasoning", "dt_ms", "token_ids"} & set(merged(chunk(1, "a"), chunk(2, "b", 1)))


def test_ids_stay_if_a_chunk_has_reasoning_alone():
    """It has no text that ids would be missing of."""
    data = merged(chunk(1, "", reasoning="Hm"), chunk(2, "a", token_ids=[7], logprobs=[-1.0]))
    assert (data["token_ids"], data["logprobs"]) == ([7], [-1.0])


def test_ids_go_if_a_chunk_has_text_without_them():
    """Ids of half of a text would be taken for all of it."""
    assert "token_ids" not in merged(chunk(1, "a"), chunk(2, "b", 1, token_ids=[7]))


def test_who_asks_for_ids_gets_the_times_of_merged_tokens():
    """Of chunks with one token each, which have no times of their own; ids that are not known have none."""
    ones = [at(10.0 + i / 4, chunk(i, "a", i, token_ids=[i])) for i in range(3)]
    ((told,), *_) = compact(list(ones), timed=True)
    ((bare,), *_) = compact(list(ones))
    assert (told.data["dt_ms"], told.data["token_ids"]) == ([250.0, 250.0], [0, 1, 2])
    assert "dt_ms" not in bare.data
    ((unknown,), *_) = compact([ones[0], at(11.0, chunk(1, "b", 1))], timed=True)
    assert not {"dt_ms", "token_ids"} & unknown.data.keys()
    ((several,), *_) = compact([ones[0], at(11.0, chunk(1, "bc", 1, token_ids=[5, 6]))], timed=True)
    assert "dt_ms" not in several.data


def test_between_merged_chunks_stands_the_time_that_passed():
    """A chunk's timestamp is that of its last token, so the first of the next came `sum(dt_ms)` before its own."""
    first = at(10.0, chunk(1, "ab", token_ids=[1, 2], dt_ms=[5.0]))
    second = at(10.1, chunk(2, "cde", 2, token_ids=[3, 4, 5], dt_ms=[20.0, 30.0]))
    assert merged(first, second)["dt_ms"] == [5.0, 50.0, 20.0, 30.0]


def test_a_chunk_of_one_token_has_no_times_of_its_own():
    """It may leave `dt_ms` out; the time since the token before it counts."""
    first = at(10.0, chunk(1, "ab", token_ids=[1, 2], dt_ms=[5.0]))
    assert merged(first, at(10.25, chunk(2, "c", 2, token_ids=[3])))["dt_ms"] == [5.0, 250.0]


def test_times_go_if_a_chunk_does_not_tell_its_own():
    """Several tokens without `dt_ms` came nobody knows when."""
    first = at(10.0, chunk(1, "ab", token_ids=[1, 2], dt_ms=[5.0]))
    assert "dt_ms" not in merged(first, at(10.25, chunk(2, "cd", 2, token_ids=[3, 4])))


def test_a_clock_that_was_set_back_gives_no_negative_time():
    """The time between two chunks is at least 0."""
    first = at(10.0, chunk(1, "a", token_ids=[1], dt_ms=[]))
    assert merged(first, at(9.0, chunk(2, "b", 1, token_ids=[2], dt_ms=[])))["dt_ms"] == [0.0]


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0, 0.5)), min_size=2, max_size=8), st.data())
def test_merging_in_steps_gives_the_same_times(made, data):
    """Chunks that were merged already merge with later ones as each alone would."""
    chunks, now = [], 1000.0
    for i, (count, pause) in enumerate(made):
        now += pause
        times = [pause * 400] * (count - 1)
        chunks.append(at(now, chunk(i, "x", i, token_ids=[7] * count, dt_ms=times)))
    cut = data.draw(st.integers(1, len(chunks) - 1))
    (left, *_), (right, *_) = compact(chunks[:cut]), compact(chunks[cut:])
    whole, stepwise = merged(*chunks), merged(*left, *right)
    assert stepwise["dt_ms"] == pytest.approx(whole["dt_ms"], abs=0.01)
    assert len(whole["dt_ms"]) == len(whole["token_ids"]) - 1


def test_fields_that_a_merger_does_not_know_are_carried():
    """A later version may add some; the latest of each stays."""
    data = merged(chunk(1, "a", new_field=1, other=[0]), chunk(2, "b", 1, new_field=2))
    assert (data["new_field"], data["other"]) == (2, [0])


def test_reasoning_counts_against_the_limit():
    """A queue is bounded by what its events keep alive, text of every kind included."""
    assert event_size(chunk(1, "", reasoning="x" * 10_000)) > 10_000


def test_merged_chunks_say_how_many_characters_each_token_gave_if_that_is_asked_for():
    """For chunks of one token, and for those that say it themselves; otherwise it is left out."""
    ones = [chunk(1, "añb", token_ids=[1]), chunk(2, "", 3, token_ids=[2]), chunk(3, "𝄞x", 3, token_ids=[3])]
    whole = merged_chunks(ones, lengths=True)
    assert (whole.data["content"], whole.data["lengths"]) == ("añb𝄞x", [3, 0, 2])
    assert "lengths" not in merged_chunks(ones).data
    more = merged_chunks([whole, chunk(4, "yz", 5, token_ids=[4])], lengths=True)
    assert more.data["lengths"] == [3, 0, 2, 2]
    assert merged_chunks([whole, chunk(4, "yz", 5, token_ids=[4])]).data["lengths"] == [3, 0, 2, 2]
    several = [chunk(1, "ab", token_ids=[1, 2]), chunk(2, "c", 2, token_ids=[3])]
    assert "lengths" not in merged_chunks(several, lengths=True).data
    assert "lengths" not in merged_chunks([whole, chunk(4, "yz", 5, token_ids=[4, 5])]).data
    assert "lengths" not in merged_chunks([chunk(1, "a"), chunk(2, "b", 1)], lengths=True).data


def test_what_is_lost_of_a_run_is_told_for_each_source():
    """Their numbers have nothing to do with each other."""
    queue = EventQueue("somebody", 2_000)
    for source, seq in (("a", 3), ("b", 90), ("a", 4)):
        put(
            queue,
            msgspec.structs.replace(
                event(T.ERROR, seq, error="x" * 3_000, error_type="", where=""), source=source
            ),
        )
    gaps = [e for e in queue.take_nowait(()) if e.event_type is T.GAP]
    assert [(g.source, g.data["from_seq"], g.data["to_seq"]) for g in gaps] == [("a", 3, 4), ("b", 90, 90)]
