import asyncio
import errno
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from doubles import Reporting
from rollcast.errors import FilterError, InputError
from rollcast.observers import JSONStreamObserver
from rollcast.records import StreamEvent, check_events, decode


def read(path):
    return [decode(line) for line in path.read_bytes().splitlines()]


async def test_each_event_is_one_line_that_decodes_to_it(events, path):
    """In order, and the file ends with a newline."""
    batch = [
        events.run_start(1),
        events.start("chain_0", "é\n\x1b日"),
        events.end("chain_0"),
        events.run_end(),
    ]
    observer = JSONStreamObserver(path)
    await observer.on_batch(batch)
    await observer.aclose()
    assert read(path) == batch
    assert path.read_bytes().endswith(b"\n")


async def test_folders_are_made_and_lines_appended(events, tmp_path):
    """A second observer adds to what the first wrote; with append=False it begins anew."""
    path = tmp_path / "a" / "b" / "events.jsonl"
    for options, count in [({}, 1), ({}, 2), ({"append": False}, 1)]:
        observer = JSONStreamObserver(path, **options)
        await observer.on_batch([events.start("chain_0")])
        await observer.aclose()
        assert len(read(path)) == count


async def test_an_observer_may_be_used_again_after_it_was_closed(events, path):
    """It opens the file again, and empties it only the first time."""
    observer = JSONStreamObserver(path, append=False)
    for count in (1, 2):
        await observer.on_batch([events.start("chain_0")])
        await observer.aclose()
        assert len(read(path)) == count


async def test_what_waits_is_written_after_the_interval(events, path, eventually):
    """Without a further event."""
    observer = JSONStreamObserver(path, flush_interval=0.01)
    await observer.on_batch([events.start("chain_0")])
    await eventually(lambda: path.exists() and len(read(path)) == 1)
    await observer.aclose()
    assert [e.chain_id for e in read(path)] == ["chain_0"]  # and closing writes it no second time


async def test_what_waits_is_written_when_it_is_large_or_the_run_closes(events, path):
    """Whatever the interval."""
    observer = JSONStreamObserver(path, flush_interval=3600, flush_bytes=2000)
    await observer.on_batch([events.start("chain_0")])
    assert not path.exists()
    await observer.on_batch([events.start("chain_0", "x" * 2000)])
    assert len(read(path)) == 2
    await observer.on_batch([events.end("chain_0")])
    assert len(read(path)) == 2
    await observer.on_run_closed(events.run_id)
    assert len(read(path)) == 3
    await observer.aclose()


async def test_a_torn_last_line_is_left_and_gone_on_with_on_a_new_line(events, path):
    """As a writer that was killed leaves it."""
    path.write_bytes(b'{"event_type": "chain_st')
    observer = JSONStreamObserver(path)
    await observer.on_batch([events.start("chain_0")])
    await observer.aclose()
    torn, whole = path.read_bytes().splitlines()
    assert torn == b'{"event_type": "chain_st'
    assert decode(whole).chain_id == "chain_0"


async def test_a_full_disk_drops_counts_and_reports_once(events, path, disk):
    """Nothing is raised; the gap stands where the events would have stood, once there is room."""
    observer = Reporting(path, flush_interval=0)
    opening = [events.run_start(1), events.start("chain_0"), events.generation_start("chain_0")]
    await observer.on_batch(opening)
    disk.room = 0
    lost = [events.chunk("chain_0", str(i)) for i in range(3)]
    await observer.on_batch(lost[:2])
    await observer.on_batch(lost[2:])
    assert [error.errno for error in observer.reported] == [errno.ENOSPC]
    disk.room = None
    rest = [events.generation_end("chain_0", "012"), events.end("chain_0"), events.run_end()]
    await observer.on_batch(rest)
    await observer.aclose()
    got = read(path)
    assert got[:3] == opening
    assert got[4:] == rest
    gap = got[3]
    assert (gap.event_type, gap.run_id) == ("gap", events.run_id)
    assert gap.data == {
        "from_seq": lost[0].seq,
        "to_seq": lost[-1].seq,
        "dropped": {"llm_generation_chunk": 3},
        "reason": "the file could not be written: No space left on device",
    }
    check_events(got, late=True)


@pytest.mark.parametrize("room", [1, 100, 300, 700])
async def test_lines_stay_whole_when_the_disk_fills_in_the_middle_of_one(events, path, disk, room):
    """What was written of it is taken back; the gap begins with it."""
    observer = Reporting(path, flush_interval=0)
    batch = [events.start("chain_0", f"question {i}") for i in range(5)]
    disk.room = room
    await observer.on_batch(batch)
    kept = read(path)
    assert kept == batch[: len(kept)]
    disk.room = None
    await observer.on_batch([events.end("chain_0")])
    await observer.aclose()
    *_, gap, end = read(path)
    assert gap.data["from_seq"] == batch[len(kept)].seq
    assert gap.data["dropped"] == {"chain_start": 5 - len(kept)}
    assert end.event_type == "chain_end"


async def test_where_a_piece_cannot_be_taken_back_the_next_line_begins_anew(events, path, disk, monkeypatch):
    """A file system that refuses to shorten files."""

    def refuse(fd, size):
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "ftruncate", refuse)
    observer = Reporting(path, flush_interval=0)
    disk.room = 10
    await observer.on_batch([events.start("chain_0")])
    disk.room = None
    await observer.on_batch([events.end("chain_0")])
    await observer.aclose()
    torn, gap, end = path.read_bytes().splitlines()
    assert len(torn) == 10
    assert decode(gap).event_type == "gap"
    assert decode(end).event_type == "chain_end"


async def test_each_run_has_its_own_gap_and_each_outage_its_own_report(events, other_run, path, disk):
    """Counted by run; a second outage is reported again."""
    observer = Reporting(path, flush_interval=0)
    for _ in range(2):
        disk.room = 0
        await observer.on_batch(
            [events.start("chain_0"), other_run.start("chain_0"), other_run.start("chain_1")]
        )
        disk.room = None
        await observer.on_batch([events.end("chain_0")])
    await observer.aclose()
    gaps = [(e.run_id, e.data["dropped"]) for e in read(path) if e.event_type == "gap"]
    assert gaps == [("run-0001", {"chain_start": 1}), ("run-0002", {"chain_start": 2})] * 2
    assert len(observer.reported) == 2


async def test_the_gap_is_written_at_the_end_where_no_event_follows(events, path, disk):
    """Merged chunks and gaps that are lost count as what they stand for."""
    observer = Reporting(path, flush_interval=0)
    disk.room = 0
    merged = StreamEvent(
        "llm_generation_chunk", "chain_0", 0.0, {"content": "a", "from_seq": 3}, seq=7, run_id="r"
    )
    dropped = {"llm_generation_chunk": 5}
    gap = StreamEvent(
        "gap", "", 0.0, {"from_seq": 8, "to_seq": 12, "dropped": dropped, "reason": "x"}, run_id="r"
    )
    await observer.on_batch([merged, gap])
    disk.room = None
    await observer.aclose()
    (event,) = read(path)
    assert (event.data["from_seq"], event.data["to_seq"]) == (3, 12)
    assert event.data["dropped"] == {"llm_generation_chunk": 6}


async def test_a_disk_that_stays_full_is_said_at_the_end(events, path, disk, caplog):
    """What could not be written is counted in a warning."""
    observer = Reporting(path, flush_interval=0)
    disk.room = 0
    await observer.on_batch([events.start("chain_0")])
    await observer.aclose()
    assert "1 events could not be written: {'chain_start': 1}" in caplog.text
    observer._lines._lost.clear()


async def test_a_folder_that_goes_away_is_no_more_than_that(events, tmp_path):
    """Opening fails as writing does: counted, reported, and made good."""
    folder = tmp_path / "gone"
    observer = Reporting(folder / "events.jsonl", flush_interval=0)
    folder.write_text("a file stands in the way")
    await observer.on_batch([events.start("chain_0")])
    assert len(observer.reported) == 1
    folder.unlink()
    await observer.on_batch([events.end("chain_0")])
    await observer.aclose()
    assert [e.event_type for e in read(folder / "events.jsonl")] == ["gap", "chain_end"]


@pytest.mark.parametrize(
    ("value", "said"), [(object(), "<object>"), ("\ud800", "\ufffd"), ({3: object()}, {"3": "<object>"})]
)
async def test_what_json_cannot_hold_is_described_and_the_others_are_written(events, path, value, said):
    """The event stands in its place, with its seq."""
    bad = events("reward", "chain_0", reward=1.0, metrics={"m": value})
    before, after = events.start("chain_0"), events.end("chain_0")
    observer = JSONStreamObserver(path)
    await observer.on_batch([before, bad, StreamEvent("reward", "\ud800", 0.0, bad.data), after])
    await observer.aclose()
    first, told, other, last = read(path)
    assert (first, last) == (before, after)
    assert (told.event_type, told.seq, told.chain_id) == ("reward", bad.seq, "chain_0")
    assert told.data == other.data == {"reward": 1.0, "metrics": {"m": said}}
    assert other.chain_id == "\ufffd"


async def test_two_observers_of_one_path_keep_their_lines_whole(events, path):
    """Each in a thread of its own; what both want stands there twice."""
    batch = [events.start("chain_0", "x" * 500) for _ in range(200)]

    async def write(observer):
        for event in batch:
            await observer.on_event(event)
        await observer.aclose()

    observers = [JSONStreamObserver(path, flush_interval=0) for _ in range(2)]
    await asyncio.gather(*[asyncio.to_thread(asyncio.run, write(observer)) for observer in observers])
    assert sorted(e.seq for e in read(path)) == sorted([e.seq for e in batch] * 2)


async def test_without_a_path_lines_go_to_the_standard_output(events, capsys):
    """What a terminal would obey is a JSON escape in them, and means the same."""
    observer = JSONStreamObserver()
    event = events.start("chain_0", "\x9b31m \u202e 日")
    await observer.on_batch([event])
    await observer.aclose()
    out = capsys.readouterr().out
    assert decode(out) == event
    assert "\x9b" not in out
    assert "\u202e" not in out
    assert "日" in out


async def test_a_closed_pipe_and_a_missing_output_are_silent(events, monkeypatch):
    """Nobody reads: nothing is raised or reported."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    observer = Reporting(flush_interval=0)
    for stream in (Closed(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        await observer.on_batch([events.start("chain_0")])
    await observer.aclose()
    assert observer.reported == []


def test_what_waits_is_written_at_exit(path):
    """Where nobody called aclose."""
    code = f"""
import asyncio
from rollcast.records import StreamEvent
from rollcast.observers import JSONStreamObserver
observer = JSONStreamObserver({str(path)!r}, flush_interval=3600)
asyncio.run(observer.on_batch([StreamEvent.now("chain_start", "chain_0", messages=[])]))
"""
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
    assert json.loads(path.read_bytes())["event_type"] == "chain_start"


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="os.fork does not exist on Windows, and this is about its child"
)
def test_a_forked_child_does_not_write_its_parents_lines_again(path):
    """What waited at the fork is the parent's; the child opens the file for itself."""
    code = f"""
import asyncio, os, sys
from rollcast.records import StreamEvent
from rollcast.observers import JSONStreamObserver
observer = JSONStreamObserver({str(path)!r}, flush_interval=3600)
def write(name):
    asyncio.run(observer.on_batch([StreamEvent.now("chain_start", name, messages=[])]))
write("before")
child = os.fork()
if child == 0:
    write("child")
    sys.exit()
os.waitpid(child, 0)
write("parent")
"""
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
    names = [json.loads(line)["chain_id"] for line in path.read_bytes().splitlines()]
    assert names == ["child", "before", "parent"]


@pytest.mark.parametrize("kind", ["folder", "below a file", "forbidden"])
def test_a_path_that_cannot_be_written_is_refused_in_one_sentence(tmp_path, monkeypatch, kind):
    """Before a chain starts."""
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "below a file":
        path.write_text("")
        path /= "events.jsonl"
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="; give "):
        JSONStreamObserver(path)


@pytest.mark.parametrize("options", [{"mode": "fast"}, {"flush_interval": -1}, {"flush_bytes": 0}])
def test_options_out_of_range_are_refused_in_one_sentence(options):
    """The sentence names the option and what was expected."""
    with pytest.raises(InputError, match=rf"{next(iter(options))} is .*; expected"):
        JSONStreamObserver(**options)


def test_a_wrong_filter_is_refused():
    """As by every observer."""
    with pytest.raises(FilterError):
        JSONStreamObserver(chain_filter=3)


def test_a_killed_writer_leaves_whole_lines_but_perhaps_the_last(path):
    """Whatever was flushed is there and decodes."""
    code = f"""
import asyncio, os, signal
from rollcast.records import StreamEvent
from rollcast.observers import JSONStreamObserver
observer = JSONStreamObserver({str(path)!r}, flush_interval=0)
async def main():
    for i in range(100):
        await observer.on_batch([StreamEvent.now("reward", "chain_0", reward=i, metrics={{}})])
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    process = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert [e.data["reward"] for e in read(path)] == list(range(100))


def test_the_json_and_the_callback_observer_do_not_load_rich():
    """The console alone needs it."""
    code = """
import sys
from rollcast.observers import CallbackStreamObserver, JSONStreamObserver
before = "rich" in sys.modules
from rollcast.terminal import ConsoleStreamObserver
print(before, "rich" in sys.modules)
"""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == "False True\n"
