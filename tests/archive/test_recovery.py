"""What a writer that died left is made whole, whatever it left."""

import asyncio
import json
import os
import shutil

import msgspec
import pytest

from growing_records import copy_while_written
from rollcast import StreamEventType
from rollcast.archive import format as fmt
from rollcast.archive.line_log import LineLog
from rollcast.archive.reader import Archive
from rollcast.archive.recovery import recover
from rollcast.archive.segments import segments_in
from rollcast.errors import ArchiveError
from rollcast.records import GrammarChecker, encode
from rollcast.records.view import ChainView

T = StreamEventType


@pytest.fixture
async def crashed(stage, talk, say, tmp_path):
    """A copy of a record of which the writer died: one chain has ended, one waits, one is in a long generation."""
    stage.observe(level="turns")
    copy = tmp_path / "copy"
    async with stage.manager.run(chains=3, run_id="r") as run:
        talk(run, 0)
        with (
            run.chain([{"role": "user", "content": "a"}]) as waiting,
            run.chain([{"role": "user", "content": "b"}]) as busy,
        ):
            say(waiting, "one two")
            with busy.generation() as generation:
                generation.chunk("a long ")
                generation.chunk("thought")
                await stage.recorded()
                await asyncio.to_thread(stage.observer._recorder.beat)
                await asyncio.to_thread(copy_while_written, stage.path, copy)
    die(copy)
    return copy


def die(path, **changes):
    """Have the record look as if its writer had been killed."""
    facts = json.loads((path / "run.json").read_bytes())
    facts |= {"status": "running", "ended_at": None, **changes}
    facts["writer"]["started"] += 1
    (path / "run.json").write_text(json.dumps(facts))


def content_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_before_recovery_it_is_crashed_and_can_be_read(crashed):
    """Nobody has to recover anything to see what was recorded: chains without an end are lost."""
    archive = Archive.open(crashed)
    assert archive.state == "crashed"
    assert {row["chain_id"]: row["state"] for row in archive.chains().rows} == {
        "chain_0": "ended", "chain_1": "lost", "chain_2": "lost",
    }  # fmt: skip
    assert len(list(archive.events())) > 10


def test_recovery_says_what_is_missing_and_invents_no_end(crashed):
    """A `gap` for the open run, the text of the open generation, and no `chain_end` or `run_end`."""
    before = list(Archive.open(crashed).events())
    result = recover(crashed)
    archive = Archive.open(crashed)
    events = list(archive.events())
    assert events[: len(before)] == before
    gap, snapshot = events[len(before) :]
    assert (gap.event_type, gap.run_id, gap.data["reason"]) == ("gap", "r", "crashed")
    assert gap.data["from_seq"] == before[-1].seq + 1
    assert gap.data["dropped"] == {}
    assert (snapshot.event_type, snapshot.chain_id, snapshot.data["content"]) == (
        "chain_snapshot", "chain_2", "a long thought",
    )  # fmt: skip
    assert (result.needed, result.gaps, result.lost_chains, result.events) == (True, 1, 2, len(events))
    assert (archive.state, archive.facts.status) == ("crashed", "crashed")
    assert archive.facts.recovered_at
    assert {row["chain_id"]: row["state"] for row in archive.chains().rows}["chain_2"] == "lost"
    checker = GrammarChecker()
    for event in events:
        checker.feed(event)


def test_a_view_of_the_recovered_chain_has_the_text_of_its_open_generation(crashed):
    """Whoever reads the events gets what was known: the conversation, and how far the generation was."""
    recover(crashed)
    view = ChainView()
    for event in Archive.open(crashed).events_of("chain_2", "r"):
        view.apply(event)
    assert (view.content, view.gaps, view.messages[0]["content"]) == ("a long thought", 1, "b")


def test_recovery_seals_and_tidies(crashed):
    """Segments are compressed and indexed, nothing half-made is left, and the totals are counted anew."""
    (crashed / "events" / "000000000000.jsonl.zst.tmp").write_bytes(b"x")
    (crashed / "run.json.tmp").write_bytes(b"x")
    recover(crashed)
    names = content_of(crashed)
    assert not [name for name in names if name.endswith((".jsonl", ".tmp")) and "/" in name]
    assert "open.jsonl" not in names
    totals = Archive.open(crashed).facts.totals
    assert (totals.runs, totals.chains, totals.open_chains, totals.rewarded) == (1, 3, 2, 1)


def test_doing_it_twice_changes_nothing_more(crashed):
    """Not a byte, and it says that nothing was needed."""
    recover(crashed)
    before = content_of(crashed)
    result = recover(crashed)
    assert not result.needed
    assert content_of(crashed) == before


@pytest.mark.parametrize("step", ["rows", "seal", "run.json"])
def test_recovery_that_is_killed_itself_goes_on(crashed, monkeypatch, step):
    """Wherever it stops, doing it again gives what doing it once gives."""
    once = crashed.with_name("once")
    shutil.copytree(crashed, once)
    recover(once)

    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    name = {"rows": "_append_rows", "seal": "_seal_all", "run.json": "replace_file"}[step]
    with monkeypatch.context() as patch:
        patch.setattr(f"rollcast.archive.recovery.{name}", killed)
        with pytest.raises(Killed):
            recover(crashed)
    recover(crashed)
    assert list(Archive.open(crashed).events()) == list(Archive.open(once).events())
    assert Archive.open(crashed).chains() == Archive.open(once).chains()


@pytest.mark.parametrize("name", ["events/000000000000.jsonl", "chains.jsonl"])
def test_every_cut_of_the_last_block_is_recovered(crashed, name):
    """Every whole line is there, and what was torn is named."""
    whole = (crashed / name).read_bytes()
    for cut in range(len(whole) - 700, len(whole), 41):
        copy = crashed.with_name("cut")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(crashed, copy)
        (copy / name).write_bytes(whole[:cut])
        result = recover(copy)
        torn = len(whole[:cut]) - (whole[:cut].rfind(b"\n") + 1)
        assert any("torn line" in damage for damage in result.damage) == bool(torn)
        events = list(Archive.open(copy).events())
        if name != "chains.jsonl":
            assert [encode(e) for e in events if e.event_type not in ("gap", "chain_snapshot")] == whole[
                :cut
            ].splitlines()[: whole[:cut].count(b"\n")]
        ended = {e.chain_id for e in events if e.event_type == "chain_end"}
        rows = Archive.open(copy).chains().rows
        assert {row["chain_id"] for row in rows if row["state"] == "ended"} == ended
        assert {row["chain_id"] for row in rows} == {
            e.chain_id for e in events if e.event_type == "chain_start"
        }


def test_rows_that_were_not_written_are_made_from_events(crashed):
    """Without `chains.jsonl` every chain has its row, as the writer would have written it."""
    expected = Archive.open(crashed).chains().rows
    (crashed / "chains.jsonl").unlink()
    recover(crashed)
    assert Archive.open(crashed).chains().rows == expected
    assert Archive.open(crashed).trajectory("chain_0").chain_id == "chain_0"


@pytest.mark.parametrize("what", ["deleted", "torn", "of another segment"])
async def test_an_index_that_is_damaged_is_made_anew(stage, what):
    """From the frames of its segment, the same as before."""
    stage.observe()
    await stage.run(3)
    await stage.close()
    (segment,) = segments_in(stage.path / "events")
    before = segment.index_path.read_bytes()
    if what == "deleted":
        segment.index_path.unlink()
    else:
        segment.index_path.write_bytes(
            before[:50]
            if what == "torn"
            else b'{"format":1,"first":9,"last":9,"compression":"none","size":1}'
        )
    die(stage.path)
    await asyncio.to_thread(recover, stage.path)
    assert segment.index_path.read_bytes() == before


async def test_a_damaged_segment_is_named_and_the_rest_is_recovered(stage):
    """What its whole frames hold can be read; the damage stands in `run.json`."""
    stage.observe()
    await stage.run(150)
    events = list((await stage.close()).events())
    (segment,) = segments_in(stage.path / "events")
    data = bytearray(segment.path.read_bytes())
    data[200] ^= 1
    segment.path.write_bytes(bytes(data))
    die(stage.path)
    result = await asyncio.to_thread(recover, stage.path)
    assert any("positions 0 to 999" in damage for damage in result.damage)
    archive = Archive.open(stage.path)
    assert archive.facts.damage == result.damage
    assert [e for e in archive.events(1000) if e.event_type != "gap"] == events[1000:]


def test_a_lost_run_file_is_made_anew(crashed):
    """The events are there all the same; what only `run.json` said is named as lost."""
    (crashed / "run.json").write_bytes(b'{"format":1,"na')
    result = recover(crashed)
    assert any("what it said of the run is lost" in damage for damage in result.damage)
    archive = Archive.open(crashed)
    assert (archive.facts.name, archive.state) == ("copy", "crashed")
    assert archive.facts.started_at > 0
    (crashed / "run.json").unlink()
    assert recover(crashed).needed


def test_fields_of_a_later_version_stay_in_the_run_file(crashed):
    """Recovery changes what it knows, and leaves the rest."""
    die(crashed, mood="good")
    recover(crashed)
    assert json.loads((crashed / "run.json").read_bytes())["mood"] == "good"


async def test_what_is_still_written_is_not_touched(stage):
    """Its process lives, or holds the lock whatever `run.json` says."""
    stage.observe()
    await stage.run(1)
    before = content_of(stage.path)
    with pytest.raises(ArchiveError, match=f"still being written, by process {os.getpid()}"):
        await asyncio.to_thread(recover, stage.path)
    die(stage.path)
    with pytest.raises(ArchiveError, match="one writer a folder"):
        await asyncio.to_thread(recover, stage.path)
    after = content_of(stage.path)
    assert {k: v for k, v in after.items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }


def test_a_record_of_another_host_is_recovered_only_if_somebody_says_so(crashed):
    """Whether its writer lives cannot be seen from here."""
    facts = msgspec.json.decode((crashed / "run.json").read_bytes(), type=fmt.RunFile)
    facts.writer.host, facts.writer.heartbeat = "elsewhere", 1.0
    (crashed / "run.json").write_bytes(msgspec.json.encode(facts))
    with pytest.raises(ArchiveError, match="was written on elsewhere, which has said nothing for"):
        recover(crashed)
    assert recover(crashed, force=True).needed


async def test_a_record_that_ended_needs_nothing(stage):
    """Not a byte of it changes."""
    stage.observe()
    await stage.run(1)
    await stage.close()
    before = content_of(stage.path)
    assert not (await asyncio.to_thread(recover, stage.path)).needed
    assert content_of(stage.path) == before


def test_a_writer_that_died_while_it_sealed(crashed):
    """The segment is there plain and compressed: one of them goes, whole lines stay."""
    folder = crashed / "events"
    plain = (folder / "000000000000.jsonl").read_bytes()
    lines = plain.count(b"\n")
    other = crashed.parent / "other"
    log = LineLog(other)
    log.append(plain, lines)
    log.close()
    sealed = (other / "000000000000.jsonl.zst").read_bytes()
    for damaged in (False, True):
        copy = crashed.with_name(f"copy-{damaged}")
        shutil.copytree(crashed, copy)
        (copy / "events" / "000000000000.jsonl.zst").write_bytes(sealed[:-9] if damaged else sealed)
        recover(copy)
        found = [
            encode(e) for e in Archive.open(copy).events() if e.event_type not in ("gap", "chain_snapshot")
        ]
        assert found == plain.splitlines()
