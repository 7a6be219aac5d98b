"""Log files that are taken away while they are written, or cannot be opened at all."""

import errno
import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from doubles import Reporting
from rollcast.errors import InputError
from rollcast.observers import JSONStreamObserver
from rollcast.observers.line_file import LineFile
from rollcast.records import check_events, decode


def read(path):
    return [decode(line) for line in path.read_bytes().splitlines()]


def copytruncate(path):
    shutil.copy(path, path.with_suffix(".1"))
    os.truncate(path, 0)


def replace(path):
    other = path.with_suffix(".new")
    other.write_bytes(b'{"what": "another program wrote"}\n')
    other.replace(path)


TAKEN = {
    "deleted": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_suffix(".1")),
    "folder deleted": lambda path: shutil.rmtree(path.parent),
    "folder moved": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
    "copied and emptied": copytruncate,
    "cut short": lambda path: os.truncate(path, 10),
    "replaced": replace,
    "made anew": lambda path: (path.unlink(), path.write_bytes(b"")),
}


@pytest.mark.parametrize("how", TAKEN)
async def test_a_log_that_is_taken_away_is_begun_anew_with_a_gap(events, tmp_path, how, caplog):
    """The gap says which events of the open run the file lacks now, and why; what comes after is all there."""
    path = tmp_path / "logs" / "events.jsonl"
    observer = JSONStreamObserver(path, flush_interval=0)
    before = [events.run_start(1), events.start("chain_0"), events.generation_start("chain_0")]
    await observer.on_batch(before[:2])
    await observer.on_batch(before[2:])
    assert observer.incomplete is None
    TAKEN[how](path)
    after = [events.chunk("chain_0", "4"), events.generation_end("chain_0", "4"), events.end("chain_0")]
    await observer.on_batch(after)
    await observer.on_batch([events.run_end()])
    await observer.aclose()
    lines = [line for line in path.read_bytes().splitlines() if b"event_type" in line and line.endswith(b"}")]
    gap, *rest = map(decode, lines)
    assert gap.event_type == "gap"
    assert gap.run_id == events.run_id
    assert (gap.data["from_seq"], gap.data["to_seq"]) == (before[0].seq, before[-1].seq)
    assert gap.data["dropped"] == {"run_start": 1, "chain_start": 1, "llm_generation_start": 1}
    assert "while it was written" in gap.data["reason"]
    assert [e.seq for e in rest] == [e.seq for e in after] + [after[-1].seq + 1]
    check_events([gap, *rest])
    assert "while it was written" in observer.incomplete
    assert caplog.text.count("it is begun anew") == 1


async def test_a_log_that_is_rotated_twice_says_both_times_all_that_it_lacks(events, path):
    """The third file lacks what the first and the second had."""
    observer = JSONStreamObserver(path, flush_interval=0)
    await observer.on_batch([first := events.run_start(1)])
    for i in (1, 2):
        path.rename(path.with_suffix(f".{i}"))
        await observer.on_batch([last := events.start(f"chain_{i}")])
    gap, _ = read(path)
    assert (gap.data["from_seq"], gap.data["to_seq"]) == (first.seq, last.seq - 1)
    assert gap.data["dropped"] == {"run_start": 1, "chain_start": 1}
    await observer.aclose()


async def test_runs_that_have_ended_leave_no_gap_in_the_next_file(events, other_run, path):
    """Their lines are in the file that was moved, whole."""
    observer = JSONStreamObserver(path, flush_interval=0)
    await observer.on_batch([events.run_start(0), events.run_end(0)])
    await observer.on_batch([other_run.start("chain_0")])
    await observer.on_run_closed(other_run.run_id)  # its run_end was filtered out
    path.rename(path.with_suffix(".1"))
    third = type(events)("run-0003")
    await observer.on_batch([third.run_start(0), third.run_end(0)])
    await observer.aclose()
    assert [e.event_type for e in read(path)] == ["run_start", "run_end"]


async def test_a_log_that_is_deleted_between_two_uses_of_the_observer_is_begun_anew(events, path):
    """It was closed meanwhile."""
    observer = JSONStreamObserver(path)
    await observer.on_batch([events.run_start(1)])
    await observer.aclose()
    path.unlink()
    await observer.on_batch([events.run_end()])
    await observer.aclose()
    assert [e.event_type for e in read(path)] == ["gap", "run_end"]


async def test_a_log_is_deleted_while_the_disk_is_full(events, path, disk):
    """One gap stands for what was written and what was not."""
    observer = Reporting(path, flush_interval=0)
    await observer.on_batch([first := events.run_start(1)])
    disk.room = 0
    await observer.on_batch([lost := events.start("chain_0")])
    path.unlink()
    await observer.on_batch([events.chunk("chain_0", "a")])
    disk.room = None
    await observer.on_batch([events.end("chain_0")])
    await observer.aclose()
    gap, end = read(path)
    assert (gap.data["from_seq"], gap.data["to_seq"]) == (first.seq, lost.seq + 1)
    assert gap.data["dropped"] == {"run_start": 1, "chain_start": 1, "llm_generation_chunk": 1}
    assert "deleted" in gap.data["reason"]
    assert "No space left" in gap.data["reason"]
    assert end.event_type == "chain_end"


async def test_a_path_that_cannot_be_looked_at_any_more_goes_on_being_written(events, path, monkeypatch):
    """Only a path that leads elsewhere, or nowhere, is a log that was taken away."""
    observer = JSONStreamObserver(path, flush_interval=0)
    await observer.on_batch([events.run_start(1)])

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        await observer.on_batch([events.run_end()])
    await observer.aclose()
    assert [e.event_type for e in read(path)] == ["run_start", "run_end"]


async def test_the_file_is_looked_at_once_a_write_and_not_once_an_event(events, path, monkeypatch):
    """A thousand events, one look."""
    observer = JSONStreamObserver(path, flush_interval=3600, flush_bytes=1 << 30)
    await observer.on_batch([events.run_start(1)])
    await observer.on_run_closed("")
    looks = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda *a, **k: (looks.append(a), stat(*a, **k))[1])
    for _ in range(1000):
        await observer.on_batch([events.start("chain_0")])
    await observer.on_run_closed("")
    assert looks == [(path,)]
    await observer.aclose()


@pytest.mark.parametrize("name", ["x" * 300, "a" * 300 + "/b", "x" * 5000, "nul\0"])
def test_a_name_that_the_system_does_not_take_is_refused_in_one_short_sentence(tmp_path, name):
    """A name of 5,000 characters is shown by its ends."""
    with pytest.raises(
        InputError, match=r"cannot be opened to write to it: .*; give another path"
    ) as refused:
        JSONStreamObserver(tmp_path / name)
    assert len(str(refused.value)) < 300


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc on this system")
def test_what_only_the_opening_shows_is_refused_by_open():
    """Root may write to /proc, as the system says; no file can be made there."""
    observer = JSONStreamObserver("/proc/x")
    with pytest.raises(
        InputError, match="'/proc/x' cannot be opened to write to it: No such file or directory"
    ):
        observer.open()


async def test_an_open_file_is_used_and_not_emptied_a_second_time(events, path):
    """`open` before the run, `append=False`."""
    path.write_text("old\n")
    observer = JSONStreamObserver(path, append=False)
    observer.open()
    assert path.read_text() == ""
    await observer.on_batch([events.start("chain_0")])
    await observer.aclose()
    assert [e.chain_id for e in read(path)] == ["chain_0"]
    JSONStreamObserver().open()  # the standard output is open


async def test_a_standard_output_that_cannot_be_written_is_told_of_once(events, monkeypatch, caplog):
    """As with `> /dev/full`: no event is said to be written that is not."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    observer = Reporting(flush_interval=0)
    for _ in range(3):
        await observer.on_batch([events.start("chain_0")])
    assert caplog.text.count("cannot write to the standard output") == 1
    assert observer.incomplete == "3 events could not be written: No space left on device"
    assert not observer.unread
    observer._lines._lost.clear()
    await observer.aclose()


def test_a_line_that_another_writer_ends_meanwhile_is_not_ended_a_second_time(path):
    """Who opens the file in the middle of the other's write sees half a line; an empty line would be no event."""
    path.write_bytes(b"half of a ")
    file = LineFile(path, append=True)
    file.open()
    with path.open("ab") as other:
        other.write(b"line\n")
    assert file.write(b"one\n", 1) == (1, None)
    file.close()
    assert path.read_bytes() == b"half of a line\none\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
@pytest.mark.parametrize("alone", [False, True], ids=["writes", "looks at the end"])
def test_a_line_that_another_process_is_writing_is_not_ended(path, alone):
    """As long as it has the lock its line may be half written, also if it is stopped there; nobody waits for it for long."""
    import fcntl

    path.write_bytes(b"half of a ")
    file = LineFile(path, append=True)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        assert file.write(b"one\n", 1) == (1, None)
        assert file.write(b"two\n", 1) == (1, None)
    assert path.read_bytes() == b"half of a one\ntwo\n"
    file.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_writer_has_the_lock_while_it_writes(path, monkeypatch):
    """So that nobody takes its line, half of which is there, for that of a process that died; and no longer."""
    import fcntl

    def can_be_had_alone():
        with path.open("rb") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    write, had = os.write, []
    monkeypatch.setattr(os, "write", lambda fd, data: (had.append(can_be_had_alone()), write(fd, data))[1])
    file = LineFile(path, append=True)
    file.write(b"one\n", 1)
    path.write_bytes(b"half of a ")
    file.close()
    file.write(b"two\n", 1)
    assert had == [False, False]
    assert can_be_had_alone()
    file.close()


def test_where_there_are_no_locks_lines_are_written_as_ever(path, monkeypatch):
    """As on some network file systems."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", refuse)
    path.write_bytes(b"half of a ")
    file = LineFile(path, append=True)
    assert file.write(b"one\n", 1) == (1, None)
    file.close()
    assert path.read_bytes() == b"half of a \none\n"


def test_a_torn_line_that_stays_torn_is_ended(path):
    """As a writer that died leaves it."""
    path.write_bytes(b"half of a ")
    file = LineFile(path, append=True)
    assert file.write(b"one\n", 1) == (1, None)
    file.close()
    assert path.read_bytes() == b"half of a \none\n"
