"""Reading a record: from any place, by any filter, while it grows, and if it is damaged."""

import asyncio
import importlib
import io
import json
import os
import shutil
import subprocess
import threading
import tracemalloc
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast import EventFilter, InputError, StreamEvent, StreamEventType
from rollcast.archive import format as fmt
from rollcast.archive import lines, reader, zstd
from rollcast.archive.budget import trim_records
from rollcast.archive.index import find_record, list_records, state_of
from rollcast.archive.line_log import LineLog
from rollcast.archive.owner import this_process
from rollcast.archive.reader import Archive
from rollcast.archive.segments import Segment, read_index, seal, segments_in
from rollcast.errors import ArchiveError, MissingExtraError
from rollcast.records import encode
from rollcast.records.codec import one_line_json

T = StreamEventType


def event(seq, chain="chain_0", kind=T.ERROR, run="r"):
    data = {"error": f"e{seq}", "error_type": "", "where": "agent"} if kind is T.ERROR else {}
    return StreamEvent(kind, chain, 1000.0 + seq, data, None, None, seq, run)


def written(folder, events, per_segment=None, run=None):
    """A record of these events, in segments of so many."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(msgspec.json.encode(run or fmt.RunFile(id="abc", status="completed")))
    log = LineLog(folder / "events")
    for begin in range(0, len(events), per_segment or len(events) or 1):
        part = events[begin : begin + (per_segment or len(events))]
        log.append(b"".join(encode(e) + b"\n" for e in part), len(part))
        log.close()
    return Archive.open(folder)


@pytest.fixture
def many(tmp_path):
    """5,000 events of 50 chains, in segments of 2,000."""
    events = [event(i, f"chain_{i % 50}") for i in range(5000)]
    return written(tmp_path / "r", events, 2000), events


def test_from_any_place(many):
    """A position or a cursor; the cursor of a reader goes on where it stopped, in another reader too."""
    archive, events = many
    assert archive.length == 5000
    for since in (0, 1, 999, 1000, 1999, 2000, 4321, 4999, 5000, 9999):
        assert list(archive.events(since)) == events[since:]
        assert list(archive.events(archive.cursor(since))) == events[since:]
    reader = archive.events(1234)
    for _ in range(100):
        next(reader)
    assert reader.position == 1334
    assert list(Archive.open(archive.path).events(reader.cursor)) == events[1334:]
    assert list(archive.events(10, until=13)) == events[10:13]


@pytest.mark.parametrize(
    "cursor", ["", "abc", "abc.", "abc.-1", "xyz.3", "abc.1.2", "abc.²", "abc." + "9" * 30]
)
def test_a_cursor_of_another_record_is_refused(many, cursor):
    """Or what is no cursor at all, in a sentence that names the record."""
    with pytest.raises(InputError, match="no cursor of the record r"):
        many[0].events(cursor)


def test_a_filter_reads_only_the_frames_that_it_wants(tmp_path, monkeypatch):
    """The index tells which; the position moves over what is left out."""
    events = [event(i, "early" if i < 1000 else f"chain_{i // 1000}") for i in range(10_000)]
    archive = written(tmp_path / "r", events)
    unpacked = []
    decompress = zstd.decompress
    monkeypatch.setattr(zstd, "decompress", lambda data: unpacked.append(1) or decompress(data))
    reader = archive.events(0, EventFilter(chains="chain_7"))
    assert list(reader) == events[7000:8000]
    assert len(unpacked) == 1
    assert reader.position == 10_000
    assert list(archive.events(0, EventFilter(types="reward"))) == []
    assert len(unpacked) == 1


def test_gaps_pass_every_filter_of_their_run(tmp_path):
    """What is lost is told whatever a filter says of types and chains."""
    gap = StreamEvent(T.GAP, "", 1.0, {"from_seq": 1, "to_seq": 2, "dropped": {}, "reason": "x"}, run_id="r")
    archive = written(tmp_path / "r", [event(0), gap, event(3)])
    assert list(archive.events(0, EventFilter(chains="other"))) == [gap]
    assert list(archive.events(0, EventFilter(runs="other"))) == []


def test_events_of_a_later_version_are_carried(tmp_path):
    """An unknown type and an unknown field come out as they went in."""
    line = (
        b'{"event_type":"thought","chain_id":"c","timestamp":1.0,"data":{"a":1},"step":null,"depth":null,"seq":1,'
        b'"run_id":"r","group_id":null,"source":"","tenant":"x"}'
    )
    folder = written(tmp_path / "r", [event(0)]).path
    log = LineLog(folder / "events", 1)
    log.append(line + b"\n", 1)
    log.close()
    (found,) = Archive.open(folder).events(1)
    assert (found.event_type.value, found.to_dict()["tenant"]) == ("thought", "x")
    assert encode(found) == encode(next(Archive.open(folder).events(1)))


@given(st.text("ab\n", max_size=40), st.sampled_from(["a", "ab", "bb"]), st.integers(1, 9))
def test_lines_are_found_from_the_end(text, needle, size):
    """Each whole line once, whatever is read at once."""
    lines = [line[:-1] for line in text.splitlines(keepends=True) if line.endswith("\n") and needle in line]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_BACKWARDS", size)
        found = reader._lines_backwards(io.BytesIO(text.encode()), needle.encode())
        assert list(found) == [line.encode() for line in reversed(lines)]


def test_rows_that_are_cut_off_while_they_are_searched(tmp_path, monkeypatch):
    """By a recovery in another process: what is gone is not found, and the process that reads goes on."""
    archive = written(tmp_path / "r", [])
    rows = archive.path / "chains.jsonl"
    ended = {"row": "end", "run_id": "r", "chain_id": "chain_0", "state": "ended", "answer": "x" * 3000}
    rows.write_bytes((json.dumps(ended, separators=(",", ":")) + "\n").encode() * 1000)
    known = reader._object

    def cut(line):
        os.truncate(rows, 5000)
        return known(line)

    monkeypatch.setattr(reader, "_object", cut)
    assert archive.chain("chain_0")["state"] == "ended"


def test_a_file_that_cannot_be_read_is_named(many):
    """A segment costs itself, and is told once however often it is tried; without the rows there is an ArchiveError."""
    archive, events = many
    (archive.path / "chains.jsonl").mkdir()
    segment = segments_in(archive.path / "events")[1]
    segment.path.unlink()
    segment.path.mkdir()
    found = archive.events()
    assert list(found) == events[:2000] + events[4000:]
    [damage] = found.damage
    assert (damage.path, damage.first, damage.last) == (segment.path, 2000, 3999)
    assert damage.why.startswith("it cannot be read: ")
    for read in (archive.chains, lambda: archive.chain("chain_0")):
        with pytest.raises(ArchiveError, match=r"chains\.jsonl cannot be read: "):
            read()


def test_a_field_of_another_type_costs_itself(tmp_path):
    """The row is there without it, and with the fields that this version does not know."""
    archive = written(tmp_path / "r", [])
    row = {
        "row": "end",
        "run_id": "r",
        "chain_id": "chain_0",
        "state": "ended",
        "reward": "1",
        "later": ["x"],
    }
    (archive.path / "chains.jsonl").write_text(json.dumps(row, separators=(",", ":")) + "\n")
    told = {"run_id": "r", "chain_id": "chain_0", "state": "ended", "later": ["x"]}
    assert archive.chains().rows == [told]
    assert archive.chain("chain_0") == told


# -- while it grows ------------------------------------------------------------------------------------------------------


async def test_a_reader_follows_to_the_end(stage, talk):
    """It sees each event once, in order, over flushes and sealed segments, and stops when the record has ended."""
    stage.observe()
    got = []

    def follow():
        got.extend(stage.open().follow(poll_s=0.001))

    async with stage.manager.run(chains=20) as run:
        talk(run, 0)
        await stage.recorded()
        thread = threading.Thread(target=follow)
        thread.start()
        for number in range(1, 20):
            talk(run, number)
            if number % 3 == 0:
                await stage.recorded()
                stage.observer._recorder._events._end_segment()
    archive = await stage.close()
    await asyncio.to_thread(thread.join, 10)
    assert got == list(archive.events())
    assert len(segments_in(stage.path / "events")) > 3


def test_a_follower_is_told_that_its_path_holds_another_record(tmp_path):
    """Not the end of the other one. What the same writer begins anew at the path goes on with the positions, and is followed."""
    path = tmp_path / "r"
    written(path, [event(i) for i in range(10)], run=running("abc"))
    following = Archive.open(path).follow(poll_s=0.001)
    assert [next(following).seq for _ in range(10)] == list(range(10))
    path.rename(tmp_path / "old")
    anew = written(path, [], run=running("def"))
    log = LineLog(anew.path / "events", 10)
    log.append(b"".join(encode(event(i)) + b"\n" for i in range(10, 15)), 5)
    log.close()
    assert [next(following).seq for _ in range(5)] == list(range(10, 15))
    assert following.cursor == "def.15"
    path.rename(tmp_path / "older")
    written(path, [event(i) for i in range(40)], run=running("ghi"))
    with pytest.raises(ArchiveError, match="holds another record now"):
        next(following)


def running(id):
    return fmt.RunFile(id=id, status="running", writer=this_process())


async def test_new_events_are_read_bit_by_bit(stage, talk):
    """A reader that never blocks asks again for what came since; a line that is half-written is not there yet."""
    stage.observe()
    async with stage.manager.run(chains=2) as run:
        await stage.recorded()
        reader = stage.open().events()
        assert [e.event_type for e in reader] == ["run_start"]
        talk(run, 0)
        await stage.recorded()
        more = list(reader.new_events())
        assert [e.event_type for e in more][:2] == ["chain_start", "llm_generation_start"]
        live = stage.path / "events" / "000000000000.jsonl"
        whole = live.read_bytes()
        live.write_bytes(whole + b'{"event_type":"chain_st')
        assert list(reader.new_events()) == []
        live.write_bytes(whole)


# -- chains --------------------------------------------------------------------------------------------------------------


async def test_chains_are_filtered_sorted_and_paged(stage, talk):
    """By fields, by code, in either direction; rows without the field come last."""
    stage.observe()
    async with stage.manager.run(chains=6) as run:
        for number, reward in enumerate([3.0, 1.0, 2.0, 0.0]):
            talk(run, number, reward=reward)
        run.chain([{"role": "user", "content": "open"}]).start()
        await stage.recorded()
        archive = stage.open()
        rows = archive.chains(sort="-reward", limit=2)
        assert [row["reward"] for row in rows.rows] == [3.0, 2.0]
        assert rows.total == 5
        assert [row["chain_id"] for row in archive.chains(sort="reward", offset=4).rows] == ["chain_4"]
        assert archive.chains(state="running").rows[0]["chain_id"] == "chain_4"
        assert archive.chains(where=lambda row: (row.get("reward") or 0) > 1).total == 2
    assert (await stage.close()).chains(finish_reason="cancelled").total == 1


async def test_a_chain_of_a_training_is_the_last_one_of_that_name(stage, talk):
    """Unless its run is named; what was learned later from an older run does not mislead."""
    stage.observe()
    for number, run_id in enumerate(["r1", "r2"]):
        async with stage.manager.run(run_id=run_id) as run:
            talk(run, number)
    chains = {"r1": {"chain_0": {"advantage": 1.0}}}
    data = {"train_step": 1, "policy_version": 1, "metrics": {}, "chains": chains}
    stage.manager.emit(StreamEvent(T.TRAIN_STEP, "", 1.0, data, run_id="t"))
    archive = await stage.close()
    assert archive.chain("chain_0")["run_id"] == "r2"
    assert archive.chain("chain_0", "r1")["advantage"] == 1.0
    assert archive.trajectory("chain_0").messages[0]["content"] == "question 1"
    assert archive.trajectory("chain_0", "r1").messages[0]["content"] == "question 0"
    story = list(archive.events_of("chain_0", "r1"))
    assert {e.run_id for e in story} == {"r1"}
    assert story[0].event_type == "chain_start"
    assert story[-1].event_type == "chain_end"
    with pytest.raises(ArchiveError, match="no chain 'chain_9'"):
        archive.chain("chain_9")


async def test_unknown_fields_of_rows_are_carried(stage):
    """What a later version writes into a row is in what a reader gives."""
    stage.observe()
    await stage.run(1)
    archive = await stage.close()
    with (stage.path / "chains.jsonl").open("ab") as file:
        run_id = archive.chain("chain_0")["run_id"]
        file.write(b'{"row":"judged","run_id":"%b","chain_id":"chain_0","judge":"j"}\n' % run_id.encode())
    assert archive.chain("chain_0")["judge"] == archive.chains().rows[0]["judge"] == "j"


# -- damage --------------------------------------------------------------------------------------------------------------


def flipped(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def test_chains_of_one_run_are_those_of_all_runs_that_it_has(tmp_path):
    """Rows of other runs are not decoded, and how many chains a run has is known without decoding any."""
    folder = tmp_path / "record"
    written(folder, [])
    rows = [
        fmt.ChainRow(row=kind, run_id=run, chain_id=f"chain_{n}", reward=None if kind == "start" else n)
        for run in ("r", 'r"\u2028é', "r2")
        for n in range(3)
        for kind in ("start", "end")
    ]
    (folder / "chains.jsonl").write_bytes(
        b"".join(one_line_json(msgspec.json.encode(row)) + b"\n" for row in rows)
    )
    archive = Archive.open(folder)
    for run in ("r", 'r"\u2028é', "r2"):
        found = archive.chains(run_id=run).rows
        assert found == [row for row in archive.chains().rows if row["run_id"] == run]
        assert [row["reward"] for row in found] == [0, 1, 2]
        assert archive.has_more_chains(2, run)
        assert not archive.has_more_chains(3, run)
    assert archive.chains(run_id="r3").rows == []


def test_a_flipped_bit_costs_its_frame(many):
    """The rest is read, each event at its place, and the damage says which positions are missing."""
    archive, events = many
    segment = segments_in(archive.path / "events")[1]
    frame = read_index(segment).frames[0]
    flipped(segment.path, frame.offset + frame.size // 2)
    reader = archive.events()
    assert list(reader) == events[:2000] + events[3000:]
    (damage,) = reader.damage
    assert (damage.first, damage.last) == (2000, 2999)


@pytest.mark.parametrize("where", ["the first frame", "the second frame"])
def test_a_flipped_bit_without_an_index(many, where):
    """Frames are found by the bytes that begin them; positions are counted back from the next segment."""
    archive, events = many
    segment = segments_in(archive.path / "events")[0]
    frame = read_index(segment).frames[where == "the second frame"]
    segment.index_path.unlink()
    flipped(segment.path, frame.offset + frame.size // 2)
    reader = archive.events()
    expected = events[1000:] if frame.first == 0 else events[:1000] + events[2000:]
    assert list(reader) == expected
    assert reader.damage
    assert next(archive.events(1500)) == (events[1500] if frame.first == 0 else events[2000])


@pytest.mark.parametrize("kept", [0, 3, 4, 100, 0.5, 0.99])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_segment_that_was_cut_gives_its_whole_frames(many, kept, indexed):
    """However much of it is left, and whether its index is there or not."""
    archive, events = many
    segment = segments_in(archive.path / "events")[2]
    whole = segment.path.read_bytes()
    frames = read_index(segment).frames
    size = kept if isinstance(kept, int) else int(len(whole) * kept)
    segment.path.write_bytes(whole[:size])
    if not indexed:
        segment.index_path.unlink()
    left = sum(frame.last - frame.first + 1 for frame in frames if frame.offset + frame.size <= size)
    assert list(archive.events()) == events[: 4000 + left]


def test_an_index_that_does_not_belong_is_not_believed(many):
    """One of another size, of another segment or no index at all: the segment is read without it."""
    archive, events = many
    one, two, _ = segments_in(archive.path / "events")
    for nonsense in (b"", b"{", b"[]", b"\xff", two.index_path.read_bytes()):
        one.index_path.write_bytes(nonsense)
        assert list(archive.events()) == events


def test_an_index_with_a_flipped_bit_is_not_believed(many):
    """Wherever it is: what is read by a filter is what was recorded."""
    archive, events = many
    one = segments_in(archive.path / "events")[0]
    whole = one.index_path.read_bytes()
    wanted = EventFilter(chains="chain_7", types="error")
    for at in range(0, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        one.index_path.write_bytes(bytes(data))
        assert [e.seq for e in archive.events(filter=wanted)] == [
            e.seq for e in events if e.chain_id == "chain_7"
        ]


def test_an_index_without_a_checksum_is_believed(many):
    """A version before it wrote none."""
    archive, _ = many
    one = segments_in(archive.path / "events")[0]
    index = read_index(one)
    one.index_path.write_bytes(msgspec.json.encode(index))
    assert read_index(one) == index
    one.index_path.write_bytes(msgspec.json.encode(msgspec.structs.replace(index, frames=index.frames[:1])))
    assert read_index(one) is None


def test_a_bad_line_costs_itself(tmp_path):
    """Those around it keep their positions."""
    archive = written(tmp_path / "r", [])
    (archive.path / "events").mkdir()
    lines_ = [encode(event(0)), b"{no", b"", b"\xff\xfe", b'{"event_type":"reward"}', encode(event(5))]
    (archive.path / "events" / "000000000000.jsonl").write_bytes(b"\n".join(lines_) + b"\n")
    reader = archive.events()
    assert list(reader) == [event(0), event(5)]
    assert [damage.first for damage in reader.damage] == [1, 2, 3, 4]
    assert list(archive.events(5)) == [event(5)]


def test_a_segment_that_is_sealed_while_it_is_read_is_read_on(many, monkeypatch):
    """Its file has another name, and its positions are the same."""
    archive, events = many
    folder = archive.path / "events"
    log = LineLog(folder, 5000)
    log.append(b"".join(encode(e) + b"\n" for e in events[:10]), 10)
    stale = segments_in(folder)
    log.close()
    listings = [stale]
    real = lines.segments_in
    monkeypatch.setattr(lines, "segments_in", lambda path: listings.pop() if listings else real(path))
    assert list(archive.events(4995)) == events[4995:] + events[:10]


def test_a_segment_that_is_there_twice_is_read_once(many):
    """A writer that died between two renames leaves it plain and compressed."""
    archive, events = many
    (archive.path / "events" / "000000002000.jsonl").write_bytes(
        b"".join(encode(e) + b"\n" for e in events[2000:2500])
    )
    assert list(archive.events()) == events


def test_a_compressed_record_needs_a_library(many, monkeypatch):
    """The message names the extra."""
    monkeypatch.setattr(zstd, "_library", lambda: None)
    with pytest.raises(MissingExtraError, match=r"rollcast\[archive\]"):
        list(many[0].events())


def test_frames_that_hold_the_bytes_of_a_beginning_are_read(tmp_path):
    """Those four bytes may stand inside a frame: a place is a frame's beginning only if a frame is there."""
    inner = zstd.compress(b"x" * 100)
    payload = b'"' + inner.hex().encode() + b'"\n'
    frame = zstd.compress(payload)
    assert list(lines._frame_bounds(frame + zstd.MAGIC + b"junk" + frame)) == [
        (0, len(frame)),
        (len(frame), len(frame) + 8),
        (len(frame) + 8, 2 * len(frame) + 8),
    ]


# -- which record --------------------------------------------------------------------------------------------------------


def test_what_is_no_record_is_refused_in_a_sentence(tmp_path):
    """No such folder, a folder without a `run.json`, a damaged one, and one of a later version."""
    for folder, content, why in [
        ("none", None, "is not there"),
        ("empty", b"", "damaged"),
        ("torn", b'{"format":1,"na', "damaged"),
        ("list", b"[]", "damaged"),
        ("old", b"{}", "format None"),
        ("new", b'{"format":2}', "pip install --upgrade"),
    ]:
        if content is not None:
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "run.json").write_bytes(content)
        with pytest.raises(ArchiveError, match=why):
            Archive.open(tmp_path / folder)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ArchiveError, match=r"no run\.json"):
        Archive.open(tmp_path / "bare")


@pytest.fixture
def directory(tmp_path):
    for number, (name, task) in enumerate(
        [
            ("20261127-0900-guess-aaaa", "guess"),
            ("20261128-0900-guess-bbbb", "guess"),
            ("20261128-1000-grid-cccc", "grid"),
        ]
    ):
        written(
            tmp_path / name,
            [],
            run=fmt.RunFile(id="x", name=task, status="completed", started_at=float(number)),
        )
    (tmp_path / "other").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("latest", "20261128-1000-grid-cccc"),
        ("20261127", "20261127-0900-guess-aaaa"),
        ("20261128-1000-grid-cccc", "20261128-1000-grid-cccc"),
        ("guess", "20261128-0900-guess-bbbb"),
    ],
)
def test_a_word_means_a_record(directory, word, found):
    """`latest`, a beginning, a whole name, or a task's name, of which the newest is meant; a path too."""
    assert find_record(directory, word).name == found
    assert find_record(directory / "nowhere", str(directory / found)) == directory / found


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("20261128", r"begins the names of 2 records: 20261128-1000-grid-cccc, 20261128-0900-guess-bbbb"),
        ("gues", "no record 'gues'; the nearest: .*guess"),
        ("cccd", "the nearest: 20261128-1000-grid-cccc"),
        ("", "no record ''"),
    ],
)
def test_a_word_that_means_none_or_several_is_refused(directory, word, why):
    """With the names that it may have meant."""
    with pytest.raises(ArchiveError, match=why):
        find_record(directory, word)


def test_a_directory_without_records_says_so(tmp_path):
    """Also one that does not exist."""
    for directory in (tmp_path, tmp_path / "none"):
        assert list_records(directory) == []
        with pytest.raises(ArchiveError, match="holds no records"):
            find_record(directory, "latest")


def test_a_damaged_record_is_listed(directory):
    """With what is wrong; the others are listed as they are."""
    (directory / "20261128-1000-grid-cccc" / "run.json").write_bytes(b"{")
    entries = list_records(directory)
    assert [(entry.state, entry.facts is None) for entry in entries] == [
        ("crashed", True), ("ended", False), ("ended", False),
    ]  # fmt: skip
    assert "damaged" in entries[0].damage


async def test_how_a_record_stands(stage):
    """Running while its process lives, ended when it closed, crashed when that process is gone, silent on another host."""
    stage.observe()
    await stage.run(1)
    facts = stage.open().facts
    assert state_of(facts)[0] == "running"
    gone = msgspec.structs.replace
    assert state_of(gone(facts, writer=gone(facts.writer, started=facts.writer.started + 1)))[0] == "crashed"
    assert state_of(gone(facts, writer=gone(facts.writer, pid=2**22 + 7)))[0] == "crashed"
    assert state_of(gone(facts, writer=gone(facts.writer, boot_id="another")))[0] == "crashed"
    elsewhere = gone(facts, writer=gone(facts.writer, host="elsewhere"))
    beat = facts.writer.heartbeat
    assert state_of(elsewhere, beat + 5)[0] == "running"
    assert state_of(elsewhere, beat + 60) == ("silent", 60.0)
    assert (await stage.close()).state == "ended"


# -- other readers -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("jq") is None or shutil.which("zstd") is None, reason="needs jq and zstd")
async def test_jq_reads_a_live_and_a_sealed_record(stage):
    """Lines of JSON while it grows; through zstd when it is sealed."""
    stage.observe()
    await stage.run(2)
    counting = "jq -s 'map(select(.event_type == \"chain_end\")) | length'"

    def shell(command):
        out = subprocess.run(command, shell=True, cwd=stage.path, capture_output=True, text=True, check=True)
        return json.loads(out.stdout)

    assert await asyncio.to_thread(shell, f"{counting} events/*.jsonl") == 2
    await stage.close()
    assert await asyncio.to_thread(shell, f"zstd -dc events/*.zst | {counting}") == 2
    rewards = "jq -s 'map(select(.row == \"end\") | .reward) | add' chains.jsonl"
    assert await asyncio.to_thread(shell, rewards) == 1


@pytest.mark.parametrize("sealed", [True, False])
async def test_pandas_reads_a_record(stage, sealed):
    """A sealed segment of several frames, and a live one."""
    pandas = pytest.importorskip("pandas")
    stage.observe()
    await stage.run(150)
    if sealed:
        await stage.close()
    (segment,) = segments_in(stage.path / "events")
    table = await asyncio.to_thread(pandas.read_json, segment.path, lines=True)
    assert (table.event_type == "chain_end").sum() == 150
    assert len(table) > 1000


@pytest.mark.parametrize("sealed", [True, False])
async def test_duckdb_reads_a_record(stage, sealed):
    """A sealed segment of several frames or a live one, and the rows of chains, by the queries of docs/archive.md."""
    duckdb = pytest.importorskip("duckdb")
    stage.observe()
    await stage.run(150)
    if sealed:
        await stage.close()
    name = "*.jsonl.zst" if sealed else "*.jsonl"

    def counts():
        with duckdb.connect() as connection:
            events = connection.execute(
                f"select event_type, count(*) from '{stage.path}/events/{name}' group by all"
            ).fetchall()
            (rows,) = connection.execute(
                f"select count(*), sum(reward) from '{stage.path}/chains.jsonl' where row = 'end'"
            ).fetchall()
            return dict(events), rows

    types, rows = await asyncio.to_thread(counts)
    assert (types["chain_start"], types["chain_end"], types["run_end"]) == (150, 150, 1)
    assert rows == (150, sum(range(150)))


@pytest.mark.parametrize("level", ["tokens", "turns"])
async def test_others_read_a_record_that_was_trimmed(stage, level):
    """The empty lines of what was taken out are none to jq, pandas and DuckDB."""
    stage.observe(level=level)
    await stage.run(60)
    archive = await stage.close()
    archive.add_note("x", author="ann", chain_id="chain_7")
    assert (await asyncio.to_thread(trim_records, stage.path.parent, 0)).records == [stage.path]
    (segment,) = segments_in(stage.path / "events")

    def counts():
        found = []
        if shutil.which("jq") and shutil.which("zstd"):
            shell = f"zstd -dc {segment.path} | jq -s 'map(select(.event_type == \"chain_end\")) | length'"
            found.append(
                int(subprocess.run(shell, shell=True, capture_output=True, text=True, check=True).stdout)
            )
        with suppress(ImportError):
            pandas = importlib.import_module("pandas")
            table = pandas.read_json(segment.path, lines=True)
            found.append(int((table.event_type == "chain_end").sum()))
        with suppress(ImportError):
            duckdb = importlib.import_module("duckdb")
            with duckdb.connect() as connection:
                query = f"select count(*) from '{segment.path}' where event_type = 'chain_end'"
                found.append(connection.execute(query).fetchall()[0][0])
        return found

    found = await asyncio.to_thread(counts)
    assert found
    assert set(found) == {1}


def test_sealing_leaves_nothing_half_made(tmp_path, monkeypatch):
    """If the disk is full, the plain segment stays and is sealed by the next try."""
    log = LineLog(tmp_path)
    log.append(b'{"seq":1}\n', 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rollcast.archive.segments.replace_file", full)
        log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["000000000000.jsonl"]
    seal(tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000000000.idx.json",
        "000000000000.jsonl.zst",
    ]
    segment = Segment(0, tmp_path / "000000000000.jsonl.zst", sealed=True)
    assert read_index(segment).last == 0


def test_memory_does_not_grow_with_a_record(tmp_path):
    """One frame is in memory at a time: ten times as many events take no more."""

    def peak(events):
        archive = Archive.open(events)
        tracemalloc.start()
        for _ in archive.events():
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small = written(tmp_path / "small", [event(i, f"chain_{i % 9}") for i in range(4000)], 2000)
    large = written(tmp_path / "large", [event(i, f"chain_{i % 9}") for i in range(40_000)], 2000)
    peak(small.path)
    assert peak(large.path) < 1.3 * peak(small.path)


def test_a_segment_that_is_full_is_sealed_after_the_next_has_begun(tmp_path, monkeypatch):
    """By lines or by bytes; what is written at that moment does not wait for it."""
    monkeypatch.setattr("rollcast.archive.format.SEGMENT_LINES", 10)
    monkeypatch.setattr("rollcast.archive.format.SEGMENT_BYTES", 1000)
    log = LineLog(tmp_path)
    for i in range(6):
        log.append(b'{"seq":%d}\n' % i * 4, 4)
    assert [s.path.name for s in segments_in(tmp_path)] == ["000000000000.jsonl.zst", "000000000012.jsonl"]
    log.append(b'{"seq":"%s"}\n' % (b"x" * 2000), 1)
    log.append(b'{"seq":1}\n', 1)
    assert [s.first for s in segments_in(tmp_path)] == [0, 12, 24, 25]
    assert [s.sealed for s in segments_in(tmp_path)] == [True, True, True, False]
