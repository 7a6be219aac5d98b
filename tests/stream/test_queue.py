"""What a queue does for a reader who falls behind: nothing is lost in silence, and nothing is told wrongly."""

from rollcast.records import StreamEvent, StreamEventType
from rollcast.stream.queue import Control, EventQueue, compact, event_size

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
