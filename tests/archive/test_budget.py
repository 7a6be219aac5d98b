"""Records are kept within so many bytes: the oldest tokens go first, and what must stay stays."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import rollcast
from rollcast import EventFilter, StreamingManager
from rollcast.archive import Archive, ArchiveObserver, zstd
from rollcast.archive.budget import bytes_of, trim_records
from rollcast.archive.index import list_records
from rollcast.archive.line_log import LineLog
from rollcast.archive.owner import FolderLock
from rollcast.errors import ArchiveError, InputError
from rollcast.records import GrammarChecker, StreamEventType
from rollcast.records.codec import decode_unchecked, encode
from rollcast.records.view import ChainView

T = StreamEventType
CHUNK, END = T.LLM_GENERATION_CHUNK, T.LLM_GENERATION_END


def speak(run, number, words=60):
    rng = random.Random(number)
    with run.chain(
        [{"role": "user", "content": f"question {number}"}], group_id=f"group_{number % 2}"
    ) as chain:
        with chain.generation(prompt_ids=[1, 2]) as generation:
            for _ in range(words):
                generation.chunk(f"{rng.random()} ", [rng.randrange(100_000)], [-rng.random()])
        with chain.tool_call("look", {"at": number}) as call:
            call.observation(f"saw {rng.random()}")
        chain.reward(float(number))


def record(path, at, chains=6, run_ids=("r1", "r2"), **options):
    """A record of two runs, which began at this second."""
    manager = StreamingManager()
    options = {"level": "tokens", "masker": False} | options
    manager.add_observer(ArchiveObserver(path, **options))
    for run_id in run_ids:
        with manager.run(chains=chains, groups=2, run_id=run_id) as run:
            for number in range(chains):
                speak(run, number)
                manager.drain_sync()
    manager.close()
    set_facts(path, started_at=float(at))
    return path


def set_facts(path, **changes):
    facts = json.loads((path / "run.json").read_bytes())
    writer = changes.pop("writer", {})
    facts |= changes
    facts["writer"] |= writer
    (path / "run.json").write_text(json.dumps(facts))


@pytest.fixture
def directory(tmp_path):
    for number, name in enumerate(("old", "middle", "new")):
        record(tmp_path / name, 1000 + number)
    return tmp_path


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def content_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def events_of(folder, filter=None):
    """The events, if nothing is damaged and they follow the grammar."""
    reader = Archive.open(folder).events(filter=filter)
    events = list(reader)
    assert not reader.damage
    checker = GrammarChecker()
    for event in events:
        if filter is None:
            checker.feed(event)
    return events


def without_tokens(events):
    found = []
    for event in events:
        if event.event_type is not CHUNK:
            value = event.to_dict()
            value["data"] = {
                n: v for n, v in value["data"].items() if n not in ("token_ids", "logprobs", "dt_ms")
            }
            found.append(value)
    return found


def trajectories_of(folder):
    archive = Archive.open(folder)
    found = {}
    for row in archive.chains().rows:
        try:
            found[row["run_id"], row["chain_id"]] = archive.trajectory(row["chain_id"], row["run_id"])
        except ArchiveError as error:
            if "taken out to keep a budget" not in str(error):
                raise
    return found


def test_what_fits_is_left_alone(directory):
    """Not a byte changes."""
    before = content_of(directory)
    result = trim_records(directory, size_of(directory))
    assert (result.over, result.records, result.kept) == (False, [], [])
    assert result.before == result.after == size_of(directory)
    assert content_of(directory) == before


def test_the_oldest_tokens_go_first(directory):
    """Of the oldest record, until the rest fits: its text, rows and totals stay, and newer records stay whole."""
    before = {name: content_of(directory / name) for name in ("middle", "new")}
    events, rows = events_of(directory / "old"), Archive.open(directory / "old").chains().rows
    result = trim_records(directory, size_of(directory) - 2000)
    assert not result.over
    assert result.after == size_of(directory) <= result.limit
    assert result.records == [directory / "old"]
    assert {name: content_of(directory / name) for name in before} == before
    assert without_tokens(events_of(directory / "old")) == without_tokens(events)
    archive = Archive.open(directory / "old")
    assert archive.chains().rows == rows
    assert archive.facts.trimmed_at is not None
    assert archive.state == "ended"


def test_all_tokens_go_before_any_event(directory):
    """Of every record, the newest too, before the first event of the oldest."""
    everything = {name: events_of(directory / name) for name in ("old", "middle", "new")}
    tokens = size_of(directory) - 1
    while True:  # down in steps, to where the first events go
        tokens = trim_records(directory, tokens - 3000).after
        if any(e.event_type is T.GAP for e in events_of(directory / "old")):
            break
        for name, events in everything.items():
            assert without_tokens(events_of(directory / name)) == without_tokens(events)
    for name in everything:
        events = events_of(directory / name)
        assert not trajectories_of(directory / name)
        assert not any(e.event_type is CHUNK for e in events)
        assert not any("token_ids" in e.data for e in events if e.event_type is END)


def test_the_skeleton_stays_whatever_the_limit_is(directory):
    """Rows, totals, notes, the events of runs; a gap stands for the events of chains, and `over` says that no more can go."""
    names = ("old", "middle", "new")
    rows = {name: Archive.open(directory / name).chains().rows for name in names}
    before = {name: events_of(directory / name) for name in names}
    heavy = sum(size_of(directory / name / part) for name in names for part in ("events", "trajectories"))
    result = trim_records(directory, 0)
    assert result.over
    assert result.after == size_of(directory)
    assert (
        sum(size_of(directory / name / part) for name in names for part in ("events", "trajectories"))
        < heavy / 5
    )
    assert result.records == [directory / name for name in names]
    for name in names:
        archive = Archive.open(directory / name)
        assert archive.chains().rows == rows[name]
        assert (archive.facts.trimmed, archive.facts.totals.chains) == (["tokens", "events"], 12)
        after = events_of(directory / name)
        assert {e.event_type.value for e in after} == {"run_start", "gap", "run_end"}
        gaps = [e for e in after if e.event_type is T.GAP]
        kept = [e for e in before[name] if e.chain_id and e.event_type is not CHUNK]
        assert sum(sum(gap.data["dropped"].values()) for gap in gaps) == len(kept)
        assert {gap.run_id for gap in gaps} == {"r1", "r2"}
        assert all("budget" in gap.data["reason"] for gap in gaps)
        for event in kept:
            assert any(
                g.run_id == event.run_id and g.data["from_seq"] <= event.seq <= g.data["to_seq"] for g in gaps
            )


def test_doing_it_again_changes_nothing_more(directory):
    """Not a byte, whatever the limit was."""
    for limit in (size_of(directory) - 2000, size_of(directory) // 2, 0):
        trim_records(directory, limit)
        before = content_of(directory)
        assert trim_records(directory, limit).records == []
        assert content_of(directory) == before


@pytest.mark.parametrize(
    ("about", "kept"),
    [
        ({"chain_id": "chain_1", "run_id": "r1"}, {("r1", "chain_1")}),
        ({"group_id": "group_1"}, {("r2", f"chain_{n}") for n in (1, 3, 5)}),
        ({"run_id": "r2"}, {("r2", f"chain_{n}") for n in range(6)}),
        ({}, {(run_id, f"chain_{n}") for run_id in ("r1", "r2") for n in range(6)}),
    ],
)
def test_what_a_note_is_about_stays_whole(directory, about, kept):
    """Its events with every token and its trajectory; the rest of the record goes."""
    archive = Archive.open(directory / "old")
    archive.add_note("look at this", author="ann", **about)
    before = events_of(directory / "old")
    trajectories = trajectories_of(directory / "old")
    trim_records(directory, 0)
    after = events_of(directory / "old")
    mine = [e for e in before if (e.run_id, e.chain_id) in kept]
    assert [e for e in after if e.chain_id] == mine
    assert trajectories_of(directory / "old") == {key: trajectories[key] for key in kept}
    for run_id, chain_id in kept:
        view, told = ChainView(), [e for e in mine if (e.run_id, e.chain_id) == (run_id, chain_id)]
        for event in archive.events_of(chain_id, run_id):
            view.apply(event)
        assert view.final_response == told[-1].data["final_response"]
    assert [note["text"] for note in Archive.open(directory / "old").notes()] == ["look at this"]


def test_positions_stay(directory):
    """Cursors and rows name the same events as before."""
    archive = Archive.open(directory / "old")
    before, length = list(archive.events()), archive.length
    archive.add_note("x", author="ann", chain_id="chain_4", run_id="r2")
    trim_records(directory, 0)
    assert archive.length == length
    row = archive.chain("chain_4", "r2")
    for position in (row["first"], row["last"]):
        assert next(archive.events(position)) == before[position]
    assert next(archive.events(archive.cursor(length - 1))) == before[-1]


def test_open_records_and_those_of_others_stay(directory):
    """One that is being written, one whose lock is held, one of another host and one of a later version; a sentence tells why."""
    shutil.copytree(directory / "middle", directory / "locked")
    shutil.copytree(directory / "middle", directory / "foreign")
    shutil.copytree(directory / "middle", directory / "later")
    set_facts(directory / "old", status="running", ended_at=None)  # of this process, which lives
    set_facts(directory / "foreign", writer={"host": "elsewhere"})
    set_facts(directory / "later", format=99)
    names = ("old", "foreign", "later", "locked")
    before = {name: content_of(directory / name) for name in names}
    lock = FolderLock(directory / "locked" / "lock")
    lock.take()
    try:
        result = trim_records(directory, 0)
    finally:
        lock.release()
    assert {name: content_of(directory / name) for name in names} == before
    assert set(result.records) == {directory / "middle", directory / "new"}
    told = "\n".join(result.kept)
    assert "old stays as it is: it is being written" in told
    assert "foreign stays as it is: it is a record of elsewhere" in told
    assert "later stays as it is: " in told
    assert "locked stays as it is: " in told
    assert len(result.kept) == 4


def test_a_record_whose_writer_died_is_recovered_first(directory):
    """Then its tokens go as those of any other; chunks of a chain that has no end stay, since nothing else has its text."""
    path = directory / "old"
    facts = json.loads((path / "run.json").read_bytes())
    segment = path / "events" / "000000000000.jsonl.zst"
    lines = zstd.decompress(segment.read_bytes()).splitlines(keepends=True)
    cut = [n for n, line in enumerate(lines) if b'"chain_end"' in line][-1]
    segment.unlink()
    (path / "events" / "000000000000.idx.json").unlink()
    (path / "events" / "000000000000.jsonl").write_bytes(b"".join(lines[:cut]))
    rows = (path / "chains.jsonl").read_bytes().splitlines(keepends=True)
    (path / "chains.jsonl").write_bytes(b"".join(rows[:-1]))
    set_facts(path, status="running", ended_at=None, writer={"started": facts["writer"]["started"] + 1})
    result = trim_records(directory, size_of(directory) - 15_000)
    assert path in result.records
    archive = Archive.open(path)
    assert archive.facts.recovered_at is not None
    events = events_of(path)
    assert {(e.run_id, e.chain_id) for e in events if e.event_type is CHUNK} == {("r2", "chain_5")}
    assert archive.chain("chain_5", "r2")["state"] == "lost"
    assert [e.data["reason"] for e in events if e.event_type is T.GAP] == ["crashed"]


def test_a_damaged_segment_stays_as_it_is(directory):
    """What could not be read is not written anew; the other records are trimmed."""
    segment = directory / "old" / "events" / "000000000000.jsonl.zst"
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(bytes(data))
    trim_records(directory, 0)
    assert segment.read_bytes() == bytes(data)
    assert {e.event_type.value for e in events_of(directory / "new")} == {"run_start", "gap", "run_end"}


def test_a_disk_that_is_full_costs_nothing(directory, monkeypatch):
    """A segment that cannot be written anew is as it was, and a sentence says why."""
    before = {name: without_tokens(events_of(directory / name)) for name in ("old", "middle", "new")}

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rollcast.archive.budget.os.fsync", full)
        result = trim_records(directory, 0)
    assert len(result.kept) == 3
    assert all("No space left" in each for each in result.kept)
    for name, events in before.items():
        assert without_tokens(events_of(directory / name)) == events
        assert not list((directory / name).rglob("*.tmp"))
    assert trim_records(directory, 0).kept == []


def test_without_zstd_sealed_segments_stay_plain_and_are_trimmed(tmp_path, monkeypatch):
    """Their lines go as those of compressed ones."""
    monkeypatch.setattr(zstd, "_library", lambda: None)
    record(tmp_path / "old", 1)
    archive = Archive.open(tmp_path / "old")
    archive.add_note("x", author="ann", chain_id="chain_2", run_id="r1")
    before = events_of(tmp_path / "old")
    result = trim_records(tmp_path, 0)
    assert result.after < result.before / 2
    assert [e for e in events_of(tmp_path / "old") if e.chain_id] == [
        e for e in before if (e.run_id, e.chain_id) == ("r1", "chain_2")
    ]


def test_a_reader_that_reads_meanwhile_reads_on(tmp_path, monkeypatch):
    """It had looked at the index of the old segment: it finds the new one, and no damage."""
    monkeypatch.setattr("rollcast.archive.line_log.is_full", lambda lines, size: lines >= 40)
    record(tmp_path / "old", 1)
    archive = Archive.open(tmp_path / "old")
    whole = list(archive.events())
    reader = archive.events()
    first = [next(reader) for _ in range(3)]
    trim_records(tmp_path, size_of(tmp_path) - 3000)
    rest = list(reader)
    assert not reader.damage
    assert without_tokens(first + rest) == without_tokens(whole)
    again = archive.events()
    trim_records(tmp_path, 0)
    assert [e.event_type.value for e in again if e.event_type is not T.GAP] == ["run_start", "run_end"] * 2
    assert not again.damage


def test_a_file_that_was_replaced_is_read_by_its_own_index(tmp_path):
    """Also by a reader that has kept the index of the old one."""
    record(tmp_path / "old", 1)
    archive = Archive.open(tmp_path / "old")
    wanted = EventFilter(types="chain_end")
    reader = archive.events(filter=wanted)
    assert next(reader).event_type is T.CHAIN_END
    trim_records(tmp_path, size_of(tmp_path) - 100)
    reader.position = 0
    assert len(list(reader.new_events())) == 12
    assert not reader.damage


def test_two_processes_trim_at_once(directory):
    """Each leaves alone what the other holds; the result is that of one."""
    alone = directory.parent / "alone"
    shutil.copytree(directory, alone)
    trim_records(alone, 0)
    threads = [threading.Thread(target=trim_records, args=(directory, 0)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trim_records(directory, 0)
    for name in ("old", "middle", "new"):
        assert timeless(events_of(directory / name)) == timeless(events_of(alone / name))
    shutil.rmtree(alone)


def timeless(events):
    """The events; a gap has the time at which it was made."""
    return [e.to_dict() | {"timestamp": 0.0 if e.event_type is T.GAP else e.timestamp} for e in events]


TRIM = """
import sys
from rollcast.archive.budget import trim_records
print("go", flush=True)
for limit in range(int(sys.argv[2]), 0, -400):
    trim_records(sys.argv[1], limit)
trim_records(sys.argv[1], 0)
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_what_kills_it_in_the_middle_leaves_every_record_readable(tmp_path, monkeypatch, seed):
    """kill -9 at random moments, again and again: no damage, nothing but what may go is missing, and it can be done again."""
    monkeypatch.setattr("rollcast.archive.line_log.is_full", lambda lines, size: lines >= 30)
    rng = random.Random(seed)
    names = ("old", "middle", "new")
    for number, name in enumerate(names):
        record(tmp_path / name, number, level=rng.choice(["tokens", "turns"]))
    Archive.open(tmp_path / "middle").add_note("x", author="ann", chain_id="chain_3", run_id="r1")
    whole = {name: events_of(tmp_path / name) for name in names}
    rows = {name: Archive.open(tmp_path / name).chains().rows for name in names}
    environment = os.environ | {"PYTHONPATH": str(Path(rollcast.__file__).parent.parent)}
    for _ in range(4):
        command = [sys.executable, "-c", TRIM, str(tmp_path), str(size_of(tmp_path))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout.readline() == b"go\n"
        time.sleep(rng.random() * rng.choice([0.02, 0.2, 1.0]))
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
        process.wait()
        process.stdout.close()
        for name in names:
            known = {(e.run_id, e.seq) for e in whole[name]}
            events = events_of(tmp_path / name)
            kept = [e for e in events if e.event_type is not T.GAP]
            assert {(e.run_id, e.seq) for e in kept} <= known
            assert Archive.open(tmp_path / name).chains().rows == rows[name]
            gaps = [e for e in events if e.event_type is T.GAP]
            missing = [e for e in without_tokens(whole[name]) if e not in without_tokens(kept)]
            assert sum(sum(g.data["dropped"].values()) for g in gaps) >= len(missing)
    mine = [e for e in whole["middle"] if (e.run_id, e.chain_id) == ("r1", "chain_3")]
    trim_records(tmp_path, 0)
    assert [e for e in events_of(tmp_path / "middle") if e.chain_id] == mine
    for name in ("old", "new"):
        assert {e.event_type.value for e in events_of(tmp_path / name)} == {"run_start", "gap", "run_end"}
        assert not list((tmp_path / name).rglob("*.tmp"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("20GB", 20 * 10**9),
        ("1.5 TiB", 3 * 2**39),
        ("500 mb", 5 * 10**8),
        ("4k", 4000),
        ("7B", 7),
        ("2KiB", 2048),
    ],
)
def test_sizes_are_written_as_people_write_them(text, size):
    """Powers of 1,000, and of 1,024 with an i."""
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "20 elephants", "1e9", "20iB", "nan"])
def test_what_is_no_size_is_refused(text):
    """With an example of one."""
    with pytest.raises(InputError, match="is not a size; expected one such as 20GB"):
        bytes_of(text)


def test_a_directory_without_records_is_within_every_limit(tmp_path):
    """Also one that is not there."""
    result = trim_records(tmp_path / "none", 0)
    assert (result.before, result.after, result.over) == (0, 0, False)


def test_lines_that_nobody_can_read_stay(tmp_path):
    """An event of a later version goes with its chain; a line that is no event stays."""
    record(tmp_path / "old", 1, run_ids=("r1",))
    folder = tmp_path / "old" / "events"
    log = LineLog(folder, Archive.open(tmp_path / "old").length)
    later = b'{"event_type":"later","chain_id":"chain_0","timestamp":1.0,"data":{"x":"%s"},"seq":9000,"run_id":"r1"}\n'
    later %= "".join(random.Random(1).choices("abcdefghijklmnop", k=2000)).encode()
    log.append(later + b"no event\n", 2)
    log.close()
    trim_records(tmp_path, 0)
    reader = Archive.open(tmp_path / "old").events()
    assert [e.event_type.value for e in reader].count("later") == 0
    assert [damage.why for damage in reader.damage] != []
    assert encode(decode_unchecked(later)) not in b"".join(path.read_bytes() for path in folder.iterdir())
    assert len(list_records(tmp_path)) == 1
