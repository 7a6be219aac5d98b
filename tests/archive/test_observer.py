"""What is recorded, at each level, and that a run never notices."""

import asyncio
import errno
import json
import logging
import os
import shutil
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast import (
    BaseAgent,
    EventFilter,
    InputError,
    StreamEvent,
    StreamEventType,
    StreamingManager,
)
from rollcast.archive import ArchiveObserver, worker, zstd
from rollcast.archive import format as fmt
from rollcast.archive.index import read_run_file, record_directory
from rollcast.archive.line_log import AppendedFile, LineLog
from rollcast.archive.reader import Archive
from rollcast.archive.segments import segments_in
from rollcast.archive.writer import _merged, _trajectory_line
from rollcast.records import Trajectory, Turn, check_events, decode, encode_lines
from rollcast.stream.queue import merged_chunks
from rollcast.stream.waiting import ChunkData, EncodableChunk, PackedValue, event_of
from rollcast.testing import ScriptedBackend, capture_events
from rollcast.text import grown_line

T = StreamEventType


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_a_run_leaves_a_folder(stage):
    """Its events in order, rows of its chains, their trajectories, and what it was."""
    stage.observe(name="guess", tags=["a"], about={"seed": 7, "settings": {"chains": 3}})
    with capture_events(stage.manager) as capture:
        run_id = await stage.run(3)
    archive = await stage.close()
    events = list(archive.events())
    check_events(events)
    assert [e.seq for e in events if e.event_type != "llm_generation_chunk"] == [
        e.seq for e in capture.events if e.event_type != "llm_generation_chunk"
    ]
    assert archive.state == "ended"
    facts = archive.facts
    assert (facts.status, facts.name, facts.tags, facts.seed) == ("completed", "guess", ["a"], 7)
    assert (facts.totals.chains, facts.totals.events, facts.totals.rewarded) == (3, len(events), 3)
    assert facts.totals.mean_reward == 1.0
    rows = archive.chains()
    assert [(row["chain_id"], row["state"], row["reward"]) for row in rows.rows] == [
        ("chain_0", "ended", 0.0), ("chain_1", "ended", 1.0), ("chain_2", "ended", 2.0),
    ]  # fmt: skip
    assert archive.trajectory("chain_1").run_id == run_id
    assert sorted(path.name for path in stage.path.iterdir()) == [
        "chains.jsonl", "events", "lock", "run.json", "trajectories",
    ]  # fmt: skip


async def test_the_folder_is_for_its_owner_and_not_for_git(stage):
    """Mode 0700 for the record and the directory around it, and a `.gitignore` that leaves everything out."""
    stage.observe()
    await stage.run()
    await stage.close()
    for path in (stage.path, stage.path.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (stage.path.parent / ".gitignore").read_text() == "*\n"


async def test_when_a_run_returns_it_is_recorded(stage):
    """Before the observer is closed: a reader of the growing folder finds the whole run, as plain lines."""
    stage.observe()
    await stage.run()
    archive = stage.open()
    assert archive.state == "running"
    assert archive.facts.status == "running"
    events = list(archive.events())
    assert events[-1].event_type == "run_end"
    (segment,) = segments_in(stage.path / "events")
    assert segment.path.name == "000000000000.jsonl"
    assert [decode(line) for line in segment.path.read_bytes().splitlines()] == events


@pytest.mark.parametrize(
    ("level", "types", "ids"),
    [
        ("auto", {"tool_observation", "reward", "llm_generation_end"}, True),
        ("turns", {"tool_observation", "reward", "llm_generation_end"}, True),
        ("tokens", {"tool_observation", "reward", "llm_generation_end", "llm_generation_chunk"}, True),
        ("summary", {"chain_start"}, False),
    ],
)
async def test_a_level_says_what_is_kept(stage, level, types, ids):
    """Tokens at `tokens` alone if nobody else watches; ids at the end of a generation; a summary has no turns."""
    stage.observe(level=level)
    await stage.run()
    archive = await stage.close()
    events = list(archive.events())
    kinds = {e.event_type.value for e in events}
    assert types <= kinds
    assert ("llm_generation_chunk" in kinds) == (level == "tokens")
    assert ("tool_observation" in kinds) == (level != "summary")
    assert any("token_ids" in e.data for e in events if e.event_type == "llm_generation_end") == ids
    assert (stage.path / "trajectories").exists() == ids
    emitted = stage.manager.totals().emitted
    assert ("llm_generation_chunk" in emitted) == (level == "tokens")


async def test_auto_has_the_tokens_that_somebody_watched(stage):
    """Those of the watched chain, whole, and no others."""
    stage.observe(level="auto")
    with capture_events(stage.manager, EventFilter(chains="chain_1")) as capture:
        await stage.run()
    archive = await stage.close()
    chunks = [e for e in archive.events() if e.event_type == "llm_generation_chunk"]
    assert {e.chain_id for e in chunks} == {"chain_1"}
    text = "".join(e.data["content"] for e in capture.events if e.event_type == "llm_generation_chunk")
    assert "".join(e.data["content"] for e in chunks) == text


async def test_tokens_that_came_together_are_one_chunk(stage):
    """At each flush the chunks of a generation are merged, and nothing of their text or ids is lost."""
    stage.observe(level="tokens")
    await stage.run(1)
    archive = await stage.close()
    events = list(archive.events())
    check_events(events)
    first, second = [e for e in events if e.event_type == "llm_generation_end"]
    merged = [e for e in events if e.event_type == "llm_generation_chunk"]
    assert "".join(e.data["content"] for e in merged) == first.data["content"] + second.data["content"]
    assert [i for e in merged for i in e.data["token_ids"]] == first.data["token_ids"] + second.data[
        "token_ids"
    ]
    assert len(merged) < 6


async def test_one_record_holds_a_training(stage, talk):
    """Rollouts, what was learned from their chains, and evaluations, each as a row."""
    stage.observe()
    async with stage.manager.run(chains=0, groups=0, run_id="train") as training:
        async with stage.manager.run(parent_run_id="train", split="train", run_id="r1") as rollout:
            talk(rollout, 0)
        learned = {"r1": {"chain_0": {"advantage": -0.5, "staleness": 1}}}
        data = {"train_step": 3, "policy_version": 4, "metrics": {"loss": 0.5}, "chains": learned}
        stage.manager.emit(StreamEvent(T.TRAIN_STEP, "", 1.0, data, run_id="train"))
        async with stage.manager.run(parent_run_id="train", split="eval", run_id="r2") as rollout:
            talk(rollout, 4)
    assert training.status == "completed"
    archive = await stage.close()
    row = archive.chain("chain_0", "r1")
    assert (row["advantage"], row["staleness"], row["train_step"], row["split"]) == (-0.5, 1, 3, "train")
    step, evaluation = archive.train_rows()
    assert (step["row"], step["train_step"], step["metrics"]) == ("train_step", 3, {"loss": 0.5})
    assert (evaluation["row"], evaluation["mean_reward"], evaluation["run_id"]) == ("evaluation", 4.0, "r2")
    assert (archive.facts.totals.runs, archive.facts.totals.train_steps) == (3, 3)
    assert archive.chain("chain_0")["run_id"] == "r2"


async def test_how_a_run_ended_is_how_its_record_ended(stage, talk):
    """A run that failed leaves a record that says so; rollouts of a training do not decide."""
    stage.observe()
    with suppress(RuntimeError):
        async with stage.manager.run() as run:
            talk(run)
            raise RuntimeError("no")
    assert (await stage.close()).facts.status == "failed"


async def test_a_row_tells_of_its_chain(stage):
    """Where it stands, what it did, how long it was in which state, and what came of it."""
    stage.observe()
    run_id = await stage.run(2)
    archive = await stage.close()
    row = archive.chain("chain_1")
    assert row["prompt_hash"] == fmt.prompt_hash([{"role": "user", "content": "question 1"}])
    assert (row["run_id"], row["group_id"], row["index"], row["reference"]) == (run_id, "group_1", 0, 1)
    assert (row["steps"], row["calls"], row["calls_failed"], row["truncated"]) == (2, 1, 0, 0)
    assert (row["finish_reason"], row["answer"], row["metrics"]) == ("answered", "it is 1 ", {"exact": 1.0})
    assert set(row["times"]) >= {"generating", "tool"}
    events = list(archive.events())
    assert events[row["first"]].event_type == "chain_start"
    assert events[row["last"]].event_type == "chain_end"
    assert {events[row["first"]].chain_id, events[row["last"]].chain_id} == {"chain_1"}


async def test_what_comes_after_a_chains_end_does_not_open_it_again(stage, talk):
    """An error that is told late, as a foreign log may have it, is recorded, and the chain's row stays as it is."""
    stage.observe()
    async with stage.manager.run(run_id="r") as run:
        talk(run, 0)
        late = {"error": "late", "error_type": "", "where": "agent"}
        stage.manager.emit(StreamEvent(T.ERROR, "chain_0", 1.0, late, run_id="r"))
    archive = await stage.close()
    assert [e.event_type.value for e in archive.events()][-2:] == ["error", "run_end"]
    assert archive.chain("chain_0")["state"] == "ended"
    assert archive.facts.totals.chains == 1


async def test_an_observer_that_is_added_again_goes_on(stage):
    """The record grows by a segment, and positions go on."""
    observer = stage.observe()
    await stage.run(1)
    stage.manager.remove_observer(observer)
    await stage.manager.drain()
    stage.manager.add_observer(observer)
    await stage.run(1)
    archive = await stage.close()
    events = list(archive.events())
    assert [e.event_type for e in events].count("run_end") == 2
    firsts = [segment.first for segment in segments_in(stage.path / "events")]
    assert firsts == [0, len(events) // 2]
    assert archive.facts.totals.events == len(events)


async def test_a_folder_that_holds_a_record_is_refused(stage):
    """Before anything runs, in a sentence: a record is never written over."""
    stage.observe()
    await stage.run()
    await stage.close()
    with pytest.raises(InputError, match="holds a record already"):
        ArchiveObserver(stage.path)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"level": "all"}, "no level 'all'"), ({"about": {"sede": 1}}, "about has a field 'sede'")],
)
def test_what_it_is_given_wrongly_is_refused(tmp_path, options, why):
    """At once, with what there is."""
    with pytest.raises(InputError, match=why):
        ArchiveObserver(tmp_path / "r", **options)


async def test_two_writers_do_not_share_a_folder(stage, caplog, tmp_path):
    """The second one records nothing, says so once, and its run goes on."""
    other = StreamingManager()
    second = ArchiveObserver(stage.path, masker=False)  # before the first has made the folder
    stage.observe()
    await stage.run(1)
    other.add_observer(second)
    with caplog.at_level(logging.WARNING):
        async with other.run() as run:
            run.error("x", "agent")
    await other.aclose()
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1
    archive = await stage.close()
    assert "error" not in {e.event_type.value for e in archive.events()}
    assert archive.facts.status == "completed"


async def test_records_in_a_directory_are_named_by_time_and_task(tmp_path, monkeypatch):
    """`within` takes the directory, or `ROLLCAST_RECORDS`, or `rollcast-runs`."""
    monkeypatch.setenv("ROLLCAST_RECORDS", str(tmp_path / "here"))
    observer = ArchiveObserver.within(name="guess")
    assert observer.path.parent == tmp_path / "here"
    assert "-guess-" in observer.path.name
    monkeypatch.delenv("ROLLCAST_RECORDS")
    monkeypatch.chdir(tmp_path)
    assert ArchiveObserver.within().path.parent == tmp_path / "rollcast-runs"
    assert not (tmp_path / "rollcast-runs").exists()


async def test_a_directory_may_be_named_from_the_home_folder(tmp_path, monkeypatch):
    """A `~` reaches Rollcast as it was typed in `--record-dir=~/runs` and in files of variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ArchiveObserver.within("~/here").path.parent == tmp_path / "here"
    monkeypatch.setenv("ROLLCAST_RECORDS", "~/there")
    assert ArchiveObserver.within().path.parent == tmp_path / "there"
    assert record_directory("~nobody-of-that-name/runs") == Path("~nobody-of-that-name/runs")


async def test_a_secret_in_the_name_is_not_in_the_name_of_the_folder(tmp_path, monkeypatch):
    """As little as in `run.json`."""
    monkeypatch.setenv("SOME_API_KEY", "hunter2hunter2")
    assert "hunter2" not in ArchiveObserver.within(tmp_path, name="try hunter2hunter2").path.name
    open_name = ArchiveObserver.within(tmp_path, name="try hunter2hunter2", masker=False).path.name
    assert "-try-hunter2hunter2-" in open_name


async def test_an_agents_run_is_recorded_with_its_trajectories(tmp_path):
    """What `run_async` returns stands in the record, ids, masks and log-probabilities included."""
    agent = BaseAgent(backend=ScriptedBackend("Four it is."))
    agent.streaming_manager.add_observer(observer := ArchiveObserver(tmp_path / "r"))
    question = [{"messages": [{"role": "user", "content": "2 + 2?"}]}]
    result = await agent.run_async(4, question, enable_streaming=True)
    await agent.streaming_manager.aclose()
    archive = Archive.open(observer.path)
    for trajectory in result.trajectories:
        kept = archive.trajectory(trajectory.chain_id)
        assert kept.digest() == trajectory.digest()
        assert kept.loss_mask == trajectory.loss_mask


async def test_without_zstd_sealed_segments_stay_plain(stage, monkeypatch):
    """They have their index all the same, and are read alike."""
    monkeypatch.setattr(zstd, "_library", lambda: None)
    stage.observe()
    await stage.run()
    archive = await stage.close()
    names = sorted(path.name for path in (stage.path / "events").iterdir())
    assert names == ["000000000000.idx.json", "000000000000.jsonl"]
    assert len(list(archive.events())) == archive.facts.totals.events == archive.length
    assert [e.event_type for e in archive.events(archive.length - 1)] == ["run_end"]
    assert archive.trajectory("chain_2").chain_id == "chain_2"


# -- what becomes of the disk --------------------------------------------------------------------------------------------


class Disk:
    """A disk that can be full."""

    def __init__(self, monkeypatch):
        self.full = False
        self.writes = 0
        write = os.write

        def guarded(fd, data):
            if threading.current_thread().name.startswith("rollcast-archive"):
                self.writes += 1
                if self.full and len(data) > 100:
                    write(fd, bytes(data)[:100])  # a piece of it still fits
                if self.full:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return write(fd, data)

        monkeypatch.setattr(os, "write", guarded)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


async def test_a_full_disk_costs_a_gap_and_not_the_run(stage, disk, talk, caplog):
    """One warning; what comes meanwhile is counted, and a `gap` stands for it when there is room again."""
    stage.observe()
    with caplog.at_level(logging.INFO):
        async with stage.manager.run(chains=3) as run:
            talk(run, 0)
            await stage.recorded()
            disk.full = True
            talk(run, 1)
            await stage.recorded()
            assert stage.observer.failing == "No space left on device"
            talk(run, 2)
            await stage.recorded()
            disk.full = False
    archive = await stage.close()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len([w for w in warnings if "No space left on device; the run goes on" in w]) == 1
    events = list(archive.events())
    (gap,) = [e for e in events if e.event_type == "gap"]
    assert gap.data["dropped"]["chain_end"] == 2
    assert "No space left on device" in gap.data["reason"]
    lost = range(gap.data["from_seq"], gap.data["to_seq"] + 1)
    assert [e.seq for e in events if e.event_type != "gap"] == [
        seq for seq in range(events[-1].seq + 1) if seq not in lost
    ]
    check_events(events)
    assert archive.facts.totals.lost == len(lost)
    assert archive.facts.status == "completed"
    # The rows waited: the skeleton has every chain.
    assert [row["state"] for row in archive.chains().rows] == ["ended"] * 3


async def test_a_disk_that_is_full_from_the_start_leaves_no_record(stage, disk, monkeypatch, caplog):
    """The run ends as it would; one warning tells."""
    monkeypatch.setattr("rollcast.archive.writer.replace_file", _no_space)
    stage.observe()
    await stage.run()
    await stage.manager.aclose()
    assert len([r for r in caplog.records if "the run goes on without its record" in r.getMessage()]) == 1


def _no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_disk_that_stays_full_does_not_hide_how_the_run_ended(stage, disk, monkeypatch, talk):
    """`run.json` is written where it stood: the record has ended, and says how much it lacks."""
    stage.observe()
    async with stage.manager.run(chains=2) as run:
        talk(run, 0)
        await stage.recorded()
        disk.full = True
        monkeypatch.setattr("rollcast.archive.writer.replace_file", _no_space)
        talk(run, 1)
    archive = await stage.close()
    assert (archive.state, archive.facts.status) == ("ended", "completed")
    events = list(archive.events())
    assert archive.facts.totals.events == len(events)
    assert archive.facts.totals.lost == 11


async def test_a_failure_that_cannot_be_told_is_counted_all_the_same(stage, disk, talk, caplog, monkeypatch):
    """The rows of the chains and the gap are there when there is room again."""
    stage.observe()
    monkeypatch.setattr(stage.observer, "report", lambda error: 1 // 0)
    async with stage.manager.run(chains=2) as run:
        talk(run, 0)
        await stage.recorded()
        disk.full = True
        talk(run, 1)
        await stage.recorded()
        disk.full = False
    archive = await stage.close()
    assert [row["state"] for row in archive.chains().rows] == ["ended", "ended"]
    assert archive.facts.totals.lost == 10
    assert len([r for r in caplog.records if "could not be told" in r.getMessage()]) == 1


@pytest.mark.parametrize("how", ["deleted", "moved"])
async def test_a_folder_that_is_taken_away_is_begun_anew(stage, talk, how, caplog):
    """A `gap` stands for what it had of the run, chains that are open have their start again, and positions go on."""
    stage.observe()
    async with stage.manager.run(chains=2) as run:
        talk(run, 0)
        chain = run.chain([{"role": "user", "content": "?"}]).start()
        await stage.recorded()
        if how == "deleted":
            shutil.rmtree(stage.path)
        else:
            stage.path.rename(stage.path.with_name("moved"))
        talk(run, 1)
        chain.end("answered")
    archive = await stage.close()
    events = list(archive.events())
    assert events[0].event_type == "gap"
    assert "moved or deleted" in events[0].data["reason"]
    assert events[0].data["dropped"]["chain_start"] == 2
    assert events[-1].event_type == "run_end"
    assert {row["chain_id"]: row["state"] for row in archive.chains().rows} == {
        "chain_1": "ended", "chain_2": "ended",
    }  # fmt: skip
    assert "begun anew" in caplog.text


@pytest.mark.parametrize("name", ["chains.jsonl", "events/000000000000.jsonl", "lock", "trajectories"])
async def test_a_file_that_is_taken_away_is_begun_anew(stage, talk, name):
    """The record goes on in the same folder, and a `gap` says that something is missing."""
    stage.observe()
    async with stage.manager.run(chains=2) as run:
        talk(run, 0)
        await stage.recorded()
        path = stage.path / name
        await asyncio.to_thread(shutil.rmtree if path.is_dir() else os.unlink, path)
        talk(run, 1)
    archive = await stage.close()
    events = list(archive.events())
    assert "moved or deleted" in next(e for e in events if e.event_type == "gap").data["reason"]
    assert events[-1].event_type == "run_end"
    assert archive.chain("chain_1")["state"] == "ended"
    assert archive.trajectory("chain_1").chain_id == "chain_1"


async def test_a_write_that_hangs_keeps_neither_the_run_nor_the_close(stage, talk, monkeypatch, caplog):
    """The manager waits as long as for any observer, says who was late, and goes on."""
    hangs, go_on = threading.Event(), threading.Event()
    append = AppendedFile.append

    def blocked(self, data):
        hangs.set()
        go_on.wait(120)
        append(self, data)

    monkeypatch.setattr(AppendedFile, "append", blocked)
    stage.manager.fanout.drain_timeout = 0.2
    stage.observe()
    await stage.run()
    await stage.manager.aclose()
    assert await asyncio.to_thread(hangs.wait, 60)
    assert "ArchiveObserver" in caplog.text
    go_on.set()
    stage.observer._worker.stop().result(60)


async def test_events_wait_in_the_observers_queue_and_not_in_the_thread(stage, monkeypatch):
    """What the thread holds is bounded: the rest stays where it is merged, counted and, at last, told as a gap."""
    go_on = threading.Event()
    append = AppendedFile.append
    monkeypatch.setattr(AppendedFile, "append", lambda self, data: (go_on.wait(120), append(self, data))[1])
    monkeypatch.setattr(worker, "_FULL_EVENTS", 50)
    monkeypatch.setattr(worker, "_SOON", 50)
    stage.observe()
    stage.manager.fanout.drain_timeout = 0.2
    async with stage.manager.run() as run:
        for i in range(2000):
            run.error(f"e{i}", "agent")
            if i % 100 == 0:
                await asyncio.sleep(0.001)
    assert len(stage.observer._worker._events) < 700
    stage.manager.fanout.drain_timeout = 120.0
    go_on.set()
    await stage.manager.drain()
    archive = await stage.close()
    assert [e.data["error"] for e in archive.events() if e.event_type == "error"] == [
        f"e{i}" for i in range(2000)
    ]


async def test_what_json_cannot_hold_is_described(stage):
    """Hostile data of an event made by hand costs that event's value, never the record."""
    stage.observe()
    async with stage.manager.run() as run:
        data = {"error": "x", "error_type": "\ud800", "where": "agent", "more": object()}
        stage.manager.emit(StreamEvent(T.ERROR, "", 1.0, data, run_id=run.run_id))
    archive = await stage.close()
    assert [e.event_type.value for e in archive.events()] == ["run_start", "error", "run_end"]


async def test_a_folder_that_is_deleted_after_the_run_is_not_made_again(stage):
    """Only an event makes it again: whoever deletes the record of a run that is over finds it gone."""
    stage.observe()
    await stage.run(1)
    shutil.rmtree(stage.path)
    await asyncio.to_thread(_beat, stage.observer)
    assert not stage.path.exists()


async def test_trajectories_that_cannot_wait_are_counted(stage, monkeypatch, until):
    """Their memory is bounded while the disk is slow; the events are there all the same."""
    monkeypatch.setattr(worker, "_TRAJECTORY_BYTES", 4000)
    stage.observe()
    recorder, go_on = stage.observer._recorder, threading.Event()
    begin = recorder.open
    monkeypatch.setattr(recorder, "open", lambda: (go_on.wait(120), begin()))
    running = asyncio.create_task(stage.run(40))
    await until(lambda: stage.observer._worker._trajectories_lost)
    go_on.set()
    await running
    archive = await stage.close()
    kept = sum(row.get("trajectory") is not None for row in archive.chains().rows)
    assert 0 < kept < 40
    assert archive.facts.totals.trajectories_lost == 40 - kept


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text() | st.integers(), x, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "messages",
        "content",
        "offset",
        "token_ids",
        "from_seq",
        "chains",
        "train_step",
        "dropped",
        "to_seq",
        "call_id",
        "row",
    ]
)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(T)),
            st.sampled_from(["", "c"]),
            st.dictionaries(NAMES, HOSTILE),
            st.integers(-1, 9),
        ),
        max_size=12,
    )
)
def test_whatever_events_hold_the_record_has_them(events):
    """A line for each, whatever somebody puts into their data."""
    with tempfile.TemporaryDirectory() as folder:
        writes = ArchiveObserver(Path(folder) / "r", level="tokens")._worker
        writes.start()
        writes.put(
            [
                StreamEvent(kind, chain_id, 1.0, data, step, None, seq, "r")
                for seq, (kind, chain_id, data, step) in enumerate(events)
            ]
        )
        writes.stop().result(60)
        if events:
            path = Path(folder) / "r" / "events" / "000000000000.jsonl.zst"
            found = [json.loads(line) for line in zstd.decompress(path.read_bytes()).splitlines()]
            assert found[-1]["seq"] == len(events) - 1
            chunks = sum(kind is T.LLM_GENERATION_CHUNK for kind, *_ in events)
            assert len(events) - chunks <= len(found) <= len(events)


async def test_the_open_generations_are_kept_every_ten_seconds(stage, say):
    """What a crash at `turns` would lose: the text so far, replaced at each beat and gone at the end."""
    stage.observe(level="turns")
    async with stage.manager.run() as run:
        with run.chain([{"role": "user", "content": "?"}]) as chain:
            await stage.recorded()
            with chain.generation() as generation:
                generation.chunk("a long ")
                generation.chunk("thought")
                await asyncio.to_thread(_beat, stage.observer)
                (part,) = stage.open().open_parts()
                assert (part["chain_id"], part["step"], part["content"]) == ("chain_0", 1, "a long thought")
    archive = await stage.close()
    assert archive.open_parts() == []


def _beat(observer):
    observer._recorder.beat()


async def test_the_heartbeat_names_the_process(stage):
    """So that a reader can tell at once whether the writer lives."""
    stage.observe()
    await stage.run()
    writer = stage.open().facts.writer
    assert writer.pid == os.getpid()
    before = writer.heartbeat
    await asyncio.to_thread(_beat, stage.observer)
    assert read_run_file(stage.path).writer.heartbeat > before


async def test_a_run_that_has_just_begun_is_counted(stage, monkeypatch):
    """`run.json` is written soon, and then less and less often: who dies in the first ten seconds has figures too."""
    monkeypatch.setattr(worker, "FIRST_BEAT_S", 0.01)
    stage.observe()
    async with stage.manager.run(chains=2) as run:
        run.chain([{"role": "user", "content": "q"}]).start().end("answered")
        await stage.recorded()
        while await asyncio.to_thread(lambda: read_run_file(stage.path).totals.chains) == 0:
            await asyncio.sleep(0.01)
        assert (await asyncio.to_thread(read_run_file, stage.path)).status == "running"


async def test_the_first_events_are_written_at_once(stage, monkeypatch, until):
    """A program may be killed in its first moments, so the record waits less for more events then than it does later."""
    monkeypatch.setattr(worker, "FLUSH_S", 600.0)
    stage.observe()
    async with stage.manager.run(chains=1):
        written = lambda: b"".join(path.read_bytes() for path in stage.path.glob("events/*.jsonl"))  # noqa: E731
        await until(lambda: b"run_start" in written())
        assert b"run_end" not in written()


async def test_a_forked_child_leaves_the_record_alone(stage):
    """It neither writes nor closes what is its parent's."""
    stage.observe()
    await stage.run(1)
    before = (stage.path / "events" / "000000000000.jsonl").read_bytes()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            stage.observer._pid, real = stage.observer._pid, os.getpid()
            code = 0 if real != stage.observer._pid else 1
            asyncio.run(stage.observer.on_batch([decode(line) for line in before.splitlines()]))
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (stage.path / "events" / "000000000000.jsonl").read_bytes() == before


async def test_a_run_in_a_forked_child_does_not_claim_to_be_recorded(stage, caplog):
    """`result.record` is None there, and one warning says why."""
    stage.observe()
    await stage.run(1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for run_id in ("x", "y"):
                with suppress(StopIteration):
                    stage.observer.on_run_opened(run_id).send(None)
            told = sum("is the record of process" in record.getMessage() for record in caplog.records)
            code = 0 if (told, stage.observer.begun) == (1, False) else 2
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert stage.observer.begun


def odd():
    return Trajectory(
        "r", "c", None,
        row={"nan": float("nan"), "picture": object(), 3: "x", "lone": "\ud800"},
        messages=[{"role": "user", "content": "a\u2028b"}],
        turns=[Turn(step=1, prompt_ids=[1], token_ids=[2], logprobs=[-0.1], pieces=["a", "b"], finish_reason="stop")],
        metrics={"m": 1.0},
    )  # fmt: skip


def test_a_trajectory_is_written_as_to_dict_has_it():
    """By the quick way or the other, whatever its row holds."""
    for trajectory in (odd(), msgspec.structs.replace(odd(), final_response="\ud800")):
        line = _trajectory_line(trajectory, None)
        assert line.count(b"\n") == 1
        assert len(line.decode().splitlines()) == 1
        assert json.loads(line) == json.loads(msgspec.json.encode(trajectory.to_dict()))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["chunk", "chunk", "chunk", "error", "gap"]),
            st.integers(1, 2),
        ),
        max_size=30,
    )
)
def test_merging_keeps_every_text_and_the_order(made):
    """Chunks of one generation merge if no other event of their chain stands between them, and `seq` still rises."""
    events = []
    for seq, (chain, kind, step) in enumerate(made):
        data = {"content": f"{seq} ", "offset": 0, "token_ids": [seq]} if kind == "chunk" else {}
        name = "llm_generation_chunk" if kind == "chunk" else kind
        events.append(StreamEvent(T(name), chain, 1.0, data, step, None, seq, "r"))
    merged = _merged(events, {})
    assert [e.seq for e in merged] == sorted(e.seq for e in merged)
    for chain in "ab":

        def told(found, chain=chain):
            return "".join(
                e.data.get("content") or f"[{e.event_type}{e.seq}]"
                for e in found
                if e.chain_id == chain or e.event_type is T.GAP
            )

        assert told(merged) == told(events)
    assert sum(len(e.data.get("token_ids", ())) for e in merged) == sum(
        e.event_type is T.LLM_GENERATION_CHUNK for e in events
    )


def merged_one_by_one(events, lines):
    """What `_merged` is to give, chunk by chunk."""
    pieces, latest = [], {}
    for event in events:
        key = (event.run_id, event.chain_id)
        if event.event_type is not T.LLM_GENERATION_CHUNK:
            if event.event_type is T.GAP:
                latest.clear()
                for of_run in [each for each in lines if each[0] == event.run_id]:
                    del lines[of_run]
            else:
                latest.pop(key, None)
                lines.pop(key, None)
            pieces.append([event])
            continue
        piece = latest.get(key)
        if piece is None or piece[0].step != event.step:
            piece = []
        else:
            pieces.remove(piece)
        pieces.append(piece)  # a merged chunk stands where its last one stood
        piece.append(event)
        latest[key] = piece
        lines[key], full = grown_line(lines.get(key, 0), event_of(event).data["content"])
        text = event_of(event).data["content"]
        if "\n" in text or full or event_of(event).data["offset"] == 0:
            del latest[key]
    split = []  # text, and what has none after it
    for piece in pieces:
        text_end = max((i for i, e in enumerate(piece, 1) if event_of(e).data.get("content")), default=0)
        split += [part for part in (piece[:text_end], piece[text_end:]) if part]
    split.sort(key=lambda part: event_of(part[-1]).seq)
    return [
        event_of(p[0]) if len(p) == 1 else event_of(merged_chunks(p, timed=True, lengths=True)) for p in split
    ]


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["chunk"] * 9 + ["error", "gap", "end"]),
            st.sampled_from(["w", "w ", "", "\n", "a\nb", "x" * 1500]),
            st.booleans(),
        ),
        max_size=40,
    ),
    st.integers(1, 40),
    st.booleans(),
)
def test_merging_many_at_once_gives_what_one_by_one_gives(made, size, encodable):
    """Wherever lines, generations and blocks end."""
    events, offsets, steps = [], {}, {}
    for seq, (chain, kind, text, again) in enumerate(made):
        if kind == "chunk":
            if again and seq % 7 == 0:
                offsets[chain], steps[chain] = 0, steps.get(chain, 1) + 1
            offset = offsets.get(chain, 0)
            offsets[chain] = offset + len(text)
            step = steps.get(chain, 1)
            chunk = EncodableChunk(
                T.LLM_GENERATION_CHUNK, chain, seq / 8, ChunkData(text, offset, PackedValue(seq), [-0.5]), step, 1, seq, "r", None, ""
            )  # fmt: skip
            events.append(chunk if encodable or seq % 3 else event_of(chunk))
        else:
            name = {"error": T.ERROR, "gap": T.GAP, "end": T.LLM_GENERATION_END}[kind]
            events.append(
                StreamEvent(name, "" if kind == "gap" else chain, seq / 8, {}, None, None, seq, "r")
            )
    ours, theirs, lines, expected_lines = [], [], {}, {}
    for at in range(0, len(events), size):
        merged = _merged(events[at : at + size], lines)
        ours += map(event_of, merged)
        assert encode_lines(merged) == encode_lines(ours[len(theirs) :])
        theirs += merged_one_by_one(events[at : at + size], expected_lines)
        assert {k: v for k, v in lines.items() if v} == {k: v for k, v in expected_lines.items() if v}
    assert ours == theirs


def test_halves_of_a_character_stay_apart():
    """JSON has no halves, so what is merged of them would be shorter than its tokens say."""
    texts = ["I ", "\ud83d", "\ude00", " so"]
    events = [
        StreamEvent(T.LLM_GENERATION_CHUNK, "a", seq / 8, {"content": text, "offset": seq + 1, "token_ids": [seq]}, 1, None, seq, "r")
        for seq, text in enumerate(texts)
    ]  # fmt: skip
    assert [event.data["content"] for event in _merged(events, {})] == texts
    assert [event.data["content"] for event in _merged([events[0], events[3]], {})] == ["I  so"]


async def test_a_lossless_record_holds_the_run_up(tmp_path, monkeypatch, until, caplog):
    """While the disk is slow: it waits for the record, says so once, and then nothing is missing."""
    disk, append = threading.Event(), LineLog.append

    def slow(log, data, lines):
        disk.wait(30)
        append(log, data, lines)

    monkeypatch.setattr(LineLog, "append", slow)
    monkeypatch.setattr("rollcast.archive.worker._SOON", 16)  # otherwise it holds nobody up before
    monkeypatch.setattr("rollcast.archive.worker._FULL_EVENTS", 16)
    observer = ArchiveObserver(tmp_path / "r", level="tokens", lossless=True)
    observer.queue_limit_bytes = 0
    manager = StreamingManager(queue_limit=20_000)
    manager.add_observer(observer)
    agent = BaseAgent(backend=ScriptedBackend("word " * 500), streaming_manager=manager)
    with caplog.at_level(logging.WARNING):
        run = asyncio.create_task(agent.run_async(1, [{"role": "user", "content": "x"}], 2, True))
        try:
            await until(lambda: manager.congested)
            assert not run.done()
        finally:
            disk.set()
        result = await run
    await manager.aclose()
    assert sum("is lossless and has fallen behind" in line for line in caplog.messages) == 1
    events = list(Archive.open(tmp_path / "r").events())
    assert [event.seq for event in events if event.event_type is T.GAP] == []
    texts = "".join(e.data["content"] for e in events if e.event_type is T.LLM_GENERATION_CHUNK)
    assert len(texts) == sum(len(trajectory.final_response) for trajectory in result)
