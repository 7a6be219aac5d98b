"""Rows of chains, made by the quick way for usual events: the same as those that `ChainView` gives."""

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doubles import part_of_run
from rollcast import StreamEvent, StreamEventType
from rollcast.archive import Archive, ArchiveObserver, skeleton
from rollcast.archive.format import frames_of
from rollcast.archive.line_log import LineLog
from rollcast.archive.lines import rebuilt_index
from rollcast.archive.losses import Losses
from rollcast.archive.run_rows import RunTally
from rollcast.archive.segments import LiveFrames, indexed, plain_index, read_index, segments_in, whole_lines
from rollcast.archive.skeleton import Skeleton
from rollcast.archive.usual_events import apply_usual
from rollcast.fleet.reading import read_quickly
from rollcast.records.codec import decode_unchecked, encode, encode_lines
from rollcast.records.secrets import Masker
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events

T = StreamEventType
CASES = sorted(Path(__file__).parent.parent.glob("records/view_cases/*.json"))
LOGS = sorted(Path(__file__).parent.parent.glob("frozen/v0.1/*.jsonl"))


def rows_of(events, *, live, usual=True):
    """All that a skeleton tells of these events, as JSON; and how many events it took the quick way."""
    taken = 0

    def counting(view, event):
        nonlocal taken
        done = usual and apply_usual(view, event)
        taken += done
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skeleton, "apply_usual", counting)
        if not usual:
            patch.setattr(skeleton, "begun", lambda _event: None)
        made = Skeleton(live=live)
        told = []
        for position, event in enumerate(events):
            with suppress(Exception):  # as the recorder: an event without a number costs its row
                made.feed(event, position)
            if live:
                told += [made.row_so_far(*key) for key in made.open_chains()]
        told += [*made.rows, made.open_rows(), made.train_rows, made.totals, made.outcome]
    return repr(msgspec.to_builtins(told)), taken


def check(events):
    """The same rows by both ways, for a record and for a list of what is open; and of events as a hub reads them."""
    for live in (False, True):
        quick, taken = rows_of(events, live=live)
        assert quick == rows_of(events, live=live, usual=False)[0]
    read, relayed = [], []
    for event in events:
        try:
            line = encode(event)
        except Exception:  # made by hand of what JSON does not have
            line = b""
        quickly = read_quickly(line)
        read.append(event if quickly is None else decode_unchecked(line))
        relayed.append(event if quickly is None else quickly)
    masker = Masker()
    assert repr(masker.outside(relayed)) == repr(masker.outside(read))
    for live in (False, True):
        assert rows_of(relayed, live=live) == rows_of(read, live=live)
    return taken


def test_there_are_cases():
    """What the two tests below read is there."""
    assert len(CASES) > 5
    assert LOGS


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rows_of_recorded_cases_are_the_same(path):
    """The cases that views are tested with."""
    case = json.loads(path.read_bytes())
    check(
        [
            StreamEvent(**event | {"event_type": StreamEventType.of(event["event_type"])})
            for event in case["events"]
        ]
    )


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_rows_of_old_logs_are_the_same(path):
    """And most of their events are of the usual kind."""
    assert check([decode_unchecked(line) for line in path.read_bytes().splitlines()])


# -- anything ----------------------------------------------------------------------------------------------------------------

words = st.sampled_from(
    ["", "a", "b", "look", "stop", "length", "tool_call", "error", "answered", "é", "\ud800", "x" * 1100]
)
numbers = st.integers(-2, 5) | st.sampled_from([0.5, 1e12, float("nan"), 1 << 60, True, None, -0.0, "3", [1]])
FIELDS = {
    T.CHAIN_START: {"messages": st.just([{"role": "user", "content": "q"}]) | numbers, "index": numbers, "seed": numbers, "attempt": numbers, "reference": numbers | st.just({"a": [1]}), "prompt_hash": words, "policy_version": numbers, "parent_chain_id": words},
    T.LLM_GENERATION_START: {"policy_version": numbers, "prompt_tokens": numbers, "model": words},
    T.LLM_GENERATION_CHUNK: {"content": words, "offset": numbers, "token_ids": st.just([1, 2]) | numbers},
    T.LLM_GENERATION_END: {"finish_reason": words | numbers, "completion_tokens": numbers, "content": words},
    T.TOOL_CALL_START: {"call_id": words, "tool_name": words, "arguments": numbers},
    T.TOOL_OBSERVATION: {"call_id": words, "tool_name": words, "observation": words, "status": words, "partial": st.booleans()},
    T.TOOL_CALL_END: {"call_id": words, "tool_name": words, "status": words | numbers, "duration_s": numbers},
    T.REWARD: {"reward": numbers, "metrics": st.just({"m": 1}) | numbers, "final": st.booleans()},
    T.ERROR: {"error": words, "where": words},
    T.MESSAGE: {"role": words, "content": words},
    T.CHAIN_END: {"finish_reason": words, "final_response": words, "steps": numbers, "completion_tokens": numbers, "reward": numbers, "metrics": st.just({"m": 2}) | numbers, "duration_s": numbers},
    T.CHAIN_SNAPSHOT: {"state": st.sampled_from(["waiting", "ended", "tool", "x"]), "content": words, "as_of": numbers, "tool_calls": st.just([{"call_id": "a", "tool_name": "look"}]) | numbers},
    T.GAP: {"from_seq": numbers, "to_seq": numbers, "dropped": st.just({})},
    T.RUN_START: {"train_step": numbers, "split": words},
    T.TRAIN_STEP: {"train_step": numbers},
}  # fmt: skip


@st.composite
def events(draw):
    """A chain as it usually goes, in which some events are left out, repeated, moved or have other things in them."""
    kinds = [T.CHAIN_START]
    for _ in range(draw(st.integers(0, 3))):
        kinds += [T.LLM_GENERATION_START, T.LLM_GENERATION_END]
        kinds += draw(st.sampled_from([[], [T.TOOL_CALL_START, T.TOOL_OBSERVATION, T.TOOL_CALL_END]]))
    kinds += [T.REWARD, T.CHAIN_END]
    odd = draw(st.lists(st.tuples(st.integers(0, 14), st.sampled_from(sorted(FIELDS))), max_size=3))
    for at, kind in odd:
        kinds.insert(at, kind)
    if draw(st.booleans()):
        del kinds[draw(st.integers(0, len(kinds) - 1))]
    made, step = [], 0
    for seq, kind in enumerate(kinds):
        step += kind is T.LLM_GENERATION_START
        wanted = FIELDS[kind]
        usual = draw(st.integers(0, 3)) > 0
        data = {name: draw(values) for name, values in wanted.items() if usual or draw(st.booleans())}
        if usual:
            data |= {
                name: value for name, value in USUAL.items() if name in wanted and draw(st.integers(0, 3))
            }
        of_run = kind in (T.RUN_START, T.TRAIN_STEP, T.GAP)
        made.append(
            StreamEvent(
                kind,
                "" if of_run else draw(st.sampled_from(["chain_0"] * 9 + ["chain_1"])),
                draw(st.sampled_from([1e9 + seq] * 6 + [1e9 - seq, float("nan"), 5, 1e12, None])),
                data if draw(st.integers(0, 30)) else draw(numbers),
                draw(st.sampled_from([step or None] * 9 + [1, None, True, 1 << 60, "1"])),
                draw(st.sampled_from([step or None] * 6 + [1, None, True, 1 << 60])),
                draw(st.sampled_from([seq] * 12 + [seq - 2, -1, 1 << 55, None])),
                draw(st.sampled_from(["r"] * 20 + [""])),
                draw(st.sampled_from(["group_0", None])),
                draw(st.sampled_from([""] * 20 + ["other"])),
            )
        )
    return made


USUAL = {
    "call_id": "a",
    "tool_name": "look",
    "status": "success",
    "finish_reason": "stop",
    "completion_tokens": 3,
    "duration_s": 0.25,
}


@settings(max_examples=300, deadline=None)
@given(events())
def test_rows_of_any_events_are_the_same(given_events):
    """Whatever is lost, repeated, out of order or made by hand."""
    check(given_events)


async def test_all_of_a_healthy_run_is_usual(stage):
    """Otherwise nothing would be gained, and nobody would notice."""
    stage.observe()
    await stage.run(chains=3)
    of_chains = [event for event in (await stage.close()).events() if event.chain_id]
    _, taken = rows_of(of_chains, live=False)
    told_later = sum(event.event_type in (T.CHAIN_START, T.TOOL_OBSERVATION) for event in of_chains)
    assert taken == len(of_chains) - told_later > 0


async def test_an_index_that_was_noted_is_the_one_that_decoding_gives(stage, monkeypatch):
    """Of events and of trajectories, in several segments, whether they are compressed or not."""
    monkeypatch.setattr("rollcast.archive.format.SEGMENT_LINES", 40)
    monkeypatch.setattr("rollcast.archive.segments.FRAME_LINES", 7)
    monkeypatch.setattr("rollcast.archive.format.FRAME_LINES", 7)
    with monkeypatch.context() as patch:
        patch.setattr(
            "rollcast.archive.segments.plain_index", None
        )  # so that a segment cannot be decoded unnoticed
        patch.setattr("rollcast.archive.segments._IndexBuilder", None)
        stage.observe()
        for _ in range(3):
            await stage.run(chains=5)
            await stage.recorded()
        patch.setattr("rollcast.archive.zstd.available", lambda: False)
        await stage.run(chains=9)
        await stage.close()
    await asyncio.to_thread(check_indexes, stage.path)


def check_indexes(path):
    segments = [segment for folder in ("events", "trajectories") for segment in segments_in(path / folder)]
    assert {segment.compressed for segment in segments} == {True, False}
    for segment in segments:
        if segment.compressed:
            made_anew = rebuilt_index(segment)
        else:
            made_anew = plain_index(segment.first, whole_lines(segment.path))
        assert read_index(segment) == made_anew


@pytest.mark.parametrize(
    "odd", [{"timestamp": None}, {"timestamp": float("nan")}, {"run_id": "é"}, {"chain_id": 5}]
)
def test_lines_made_by_hand_are_decoded_for_their_index(tmp_path, odd):
    """Their JSON may tell something else than the event."""
    fine = StreamEvent(T.REWARD, "chain_0", 1e9, {"reward": 1.0}, run_id="r")
    events = [fine, msgspec.structs.replace(fine, **odd), fine]
    log = LineLog(tmp_path)
    data = encode_lines(events)
    log.append(data, 3)
    log.note(data, events)
    log.close()
    (segment,) = segments_in(tmp_path)
    assert read_index(segment) == rebuilt_index(segment)
    assert read_index(segment).last == 2


def test_lines_that_were_not_noted_are_decoded_for_their_index(tmp_path):
    """Those of a file that somebody else has begun, or added to."""
    fine = StreamEvent(T.REWARD, "chain_0", 1e9, {"reward": 1.0}, run_id="r")
    log = LineLog(tmp_path)
    data = encode_lines([fine])
    log.append(data, 1)
    log.note(data, [fine])
    log.append(encode_lines([msgspec.structs.replace(fine, chain_id="chain_1")]), 1)
    log.close()
    (segment,) = segments_in(tmp_path)
    assert [place.chain_id for place in read_index(segment).places] == ["chain_0", "chain_1"]
    assert read_index(segment) == rebuilt_index(segment)


SOME_EVENTS = st.lists(
    st.builds(
        lambda kind, chain, run, source, at, text, from_seq: StreamEvent(
            kind, "" if kind is T.GAP else chain, at, {"content": text} | from_seq, 1, 1, 0, run, None, source
        ),
        st.sampled_from([T.REWARD, T.LLM_GENERATION_CHUNK, T.CHAIN_SNAPSHOT, T.GAP]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["r", "s"]),
        st.sampled_from(["", "one"]),
        st.floats(0, 9) | st.just(1e308) | st.just(float("nan")),
        st.text("x", max_size=300),
        st.just({}) | st.builds(lambda seq: {"from_seq": seq, "to_seq": seq + 5, "dropped": {"reward": 2}}, st.integers(0, 90)),
    ),
    min_size=1,
    max_size=40,
)  # fmt: skip


@settings(deadline=None)
@given(SOME_EVENTS, st.integers(1, 40))
def test_an_index_is_the_same_however_large_the_blocks_are(events, size):
    """Whatever comes together, and wherever frames end: by lines, by bytes, or with one line that is longer than a frame."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("segments", "format"):
            patch.setattr(f"rollcast.archive.{module}.FRAME_LINES", 7)
            patch.setattr(f"rollcast.archive.{module}.FRAME_BYTES", 700)
        noted = LiveFrames(0)
        lines = []
        for at in range(0, len(events), size):
            block = encode_lines(events[at : at + size])
            noted.add(block, events[at : at + size])
            lines += block.splitlines(keepends=True)
        frames = [*frames_of(lines)]
        expected = plain_index(0, lines)
    sizes = [sum(map(len, frame)) for frame in frames]
    assert noted.complete or any(not 0 <= event.timestamp < 10 for event in events)
    if noted.complete:
        assert (noted.sizes, noted.index(sizes, "zstd").frames) == (sizes, noted.frames)
        assert [(f.first, f.last, f.t0, f.t1, f.types, f.places) for f in noted.frames] == [
            (f.first, f.last, f.t0, f.t1, f.types, f.places)
            for f in indexed(0, [(frame, 0) for frame in frames]).frames
        ]
        assert noted.index(sizes, "zstd").places == expected.places


@given(SOME_EVENTS, st.integers(1, 40), st.randoms(use_true_random=False))
def test_losses_are_the_same_however_large_the_blocks_are(events, size, dice):
    """What a `gap` will say of each run and source: from where to where, and how many of which types, in whatever order they came."""
    numbers = list(range(len(events)))
    dice.shuffle(numbers)
    events = [msgspec.structs.replace(event, seq=seq) for seq, event in zip(numbers, events, strict=True)]
    blocks = Losses()
    for at in range(0, len(events), size):
        blocks.add(events[at : at + size], "a reason")
    said = {(gap.source, gap.run_id): gap.data for gap in blocks.gaps()}
    expected = {}
    for event in events:
        span = expected.setdefault((event.source, event.run_id), [event.seq, event.seq, Counter()])
        first, last = event.seq, event.seq
        if event.event_type is T.GAP:
            first, last = event.data.get("from_seq", span[0]), max(last, event.data.get("to_seq", 0))
            span[2].update(event.data.get("dropped", {}))
        elif event.event_type is T.CHAIN_SNAPSHOT:
            first = span[0]
        else:
            span[2][event.event_type] += 1
            if event.event_type is T.LLM_GENERATION_CHUNK:
                first = event.data.get("from_seq", first)
        span[0], span[1] = min(span[0], first), max(span[1], last)
    assert {of: (gap["from_seq"], gap["to_seq"], gap["dropped"]) for of, gap in said.items()} == {
        of: (first, last, dict(types)) for of, (first, last, types) in expected.items()
    }
    assert blocks.count == sum(sum(types.values()) for _, _, types in expected.values())


@pytest.mark.parametrize("live", [False, True])
async def test_a_row_tells_the_metrics_of_rewards_of_steps(live):
    """If no other reward came; a record's row, and one of what is watched."""
    manager, made = StreamingManager(), Skeleton(live=live)
    with capture_events(manager) as capture:
        async with manager.run() as run:
            with run.chain([]) as chain:
                chain.step_reward(0.25, {"seen": 1})
                chain.step_reward(0.5, {"seen": 2})
    for position, event in enumerate(capture.events):
        made.feed(event, position)
    (row,) = [row for row in made.take_rows() if row.row == "end"]
    assert (row.reward, row.metrics) == (None, {"seen": 2})


@pytest.mark.parametrize("live", [False, True])
def test_the_reward_of_a_chain_that_is_lost(live):
    """Its end does not come to repeat it."""
    reward = StreamEvent(
        T.REWARD, "a", 1e9, {"reward": 0.5, "metrics": {"m": 1}, "final": True}, 1, 1, 2, "r", source="w"
    )
    told = Skeleton(live=live)
    for position, event in enumerate([*half_of_a_run("w", "a"), reward, lost_end("w", 3)]):
        told.feed(event, position)
    (row,) = [row for row in told.take_rows() if row.row == "end"]
    assert (row.state, row.reward, row.metrics) == ("lost", 0.5, {"m": 1})


# -- chains whose ends were lost ---------------------------------------------------------------------------------------------


def lost_end(source, seq):
    """The `gap` that a hub makes of a producer that does not come back."""
    data = {"from_seq": seq, "to_seq": seq, "dropped": {}, "reason": "it died", "run_status": "unknown"}
    return StreamEvent(T.GAP, "", 1e9, data, seq=seq, run_id="r", source=source)


def half_of_a_run(source, chain):
    """A source's start of a run, and of a chain in it."""
    return [event for event in part_of_run("r", source, [chain]) if event.seq < 2]


def test_a_chain_whose_source_is_lost_has_a_row_that_says_so():
    """The chains of other sources of the run are open as before, and a source that comes back after all opens its chains again."""
    told = Skeleton()
    for position, event in enumerate([*half_of_a_run("w", "a"), *half_of_a_run("v", "b"), lost_end("w", 2)]):
        told.feed(event, position)
    assert [(row.row, row.chain_id, row.state) for row in told.take_rows()] == [
        ("start", "a", "running"),
        ("start", "b", "running"),
        ("end", "a", "lost"),
    ]
    assert (told.open_chains(), told.totals.open_chains) == ([("r", "b")], 1)
    told.feed(
        StreamEvent(T.MESSAGE, "a", 1e9, {"role": "user", "content": "?"}, seq=3, run_id="r", source="w"), 5
    )
    assert [(row.row, row.state) for row in told.take_rows()] == [("start", "running")]


async def test_rows_of_a_growing_record_say_which_chains_are_lost(tmp_path):
    """As soon as the end of their source's part is lost, although the record goes on."""
    manager = StreamingManager(publish=False)
    manager.add_observer(ArchiveObserver(tmp_path / "record"))
    for event in [*half_of_a_run("w", "a"), *half_of_a_run("v", "b"), lost_end("w", 2)]:
        manager.relay(event)
    await manager.drain()  # the record is begun, and soon written

    def states():
        if not (tmp_path / "record" / "run.json").exists():
            return {}
        return {row["chain_id"]: row["state"] for row in Archive.open(tmp_path / "record").chains().rows}

    async with asyncio.timeout(60):
        while states() != {"a": "lost", "b": "running"}:
            await asyncio.sleep(0.02)
    await manager.aclose()
    assert states() == {"a": "lost", "b": "lost"}


async def _models_of(model, *called):
    """The `model` of each chain's row, and of the run's: chains that call these, one after the other, in a run of `model`."""
    manager, made, tally = StreamingManager(), Skeleton(), RunTally()
    with capture_events(manager) as capture:
        async with manager.run(model=model) as run:
            for names in called:
                with run.chain([{"role": "user", "content": "?"}]) as chain:
                    for name in names:
                        with chain.generation(model=name) as generation:
                            generation.chunk("yes")
    for position, event in enumerate(capture.events):
        made.feed(event, position)
        tally.event(event)
    rows = [msgspec.to_builtins(row) for row in made.take_rows() if row.row == "end"]
    for row in rows:
        tally.chain(row)
    (run_row,) = tally.rows(over=True)
    return [row.get("model") for row in rows], run_row["model"]


async def test_a_row_tells_the_model_if_the_run_does_not():
    """As in a run of an attached client, which names its model with each call."""
    assert await _models_of("", ["a"], ["b", "a"], ["c"]) == (["a", "a", "c"], "a, c")
    assert await _models_of("", [None]) == ([None], "")


async def test_models_that_are_not_the_runs_are_named_beside_it():
    """Such as that of a judge."""
    assert await _models_of("policy", [None, "policy"], ["judge"]) == ([None, "judge"], "policy, judge")


async def test_of_many_models_a_few_are_named():
    """A run's row stays small."""
    rows, told = await _models_of("", *([f"m{n}"] for n in range(20)))
    assert len(rows) == 20
    assert told == "m0, m1, m2, m3, m4, m5, m6, m7, …"


async def test_a_row_names_the_session_of_a_proxy_s_caller():
    """From its start on; a session that is no text is nobody's."""
    manager, made = StreamingManager(), Skeleton(live=True)
    with capture_events(manager) as capture:
        async with manager.run() as run:
            for row in ({"session": "a"}, {"session": 7}, None):
                with run.chain([{"role": "user", "content": "?"}], row=row) as chain:
                    chain.end("unknown")
    for position, event in enumerate(capture.events):
        made.feed(event, position)
    rows = made.take_rows()
    assert [row.session for row in rows if row.row == "start"] == ["a", None, None]
    assert [row.session for row in rows if row.row == "end"] == ["a", None, None]
