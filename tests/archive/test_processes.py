"""Whole processes: one that exits without closing anything, one whose disk hangs, one whose disk is full."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import rollcast
from rollcast.archive.index import find_record
from rollcast.archive.reader import Archive
from rollcast.records import check_events

pytestmark = pytest.mark.slow

PATIENCE_S = "60.0"  # more than a slow machine needs
RUN = """
import asyncio, os, sys, threading, time
from rollcast import StreamingManager
from rollcast.archive import ArchiveObserver, observer as archive_observer

archive_observer.EXIT_S = max(2.0, DRAIN)
manager = StreamingManager(drain_timeout=DRAIN)
observer = ArchiveObserver(sys.argv[1], masker=False)
manager.add_observer(observer)

def write():  # wait until all that was emitted is written, or could not be
    manager.drain_sync()
    observer._worker.flush().result()

async def main(chains=3):
    async with manager.run(chains=chains) as run:
        for number in range(chains):
            with run.chain([{"role": "user", "content": "?"}]) as chain:
                with chain.generation() as generation:
                    generation.chunk("so", [1], [-0.5])
                SLOWLY
"""


def python(code, *arguments, **replaced):
    for name, value in ({"DRAIN": PATIENCE_S, "SLOWLY": "pass"} | replaced).items():
        code = code.replace(name, value)
    environment = os.environ | {"PYTHONPATH": str(Path(rollcast.__file__).parent.parent)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("how", ["asyncio.run(main())", "asyncio.run(main()); sys.exit(3)"])
def test_a_process_that_just_exits_leaves_a_whole_record(tmp_path, how):
    """Nothing has to be closed: at exit what waits is written and the record is ended."""
    out = python(RUN + how, tmp_path / "r")
    assert out.stderr == ""
    archive = Archive.open(tmp_path / "r")
    assert (archive.state, archive.facts.status) == ("ended", "completed")
    assert [e.event_type.value for e in archive.events()][-1] == "run_end"
    assert archive.facts.totals.chains == 3


def test_a_process_that_fails_leaves_a_record_that_says_so(tmp_path):
    """An exception that nobody catches ends the run, and the record with it."""
    out = python(RUN + "asyncio.run(main())", tmp_path / "r", SLOWLY="raise ValueError('mine')")
    assert out.returncode == 1
    assert "mine" in out.stderr
    assert Archive.open(tmp_path / "r").facts.status == "failed"


def test_a_disk_that_hangs_keeps_neither_the_run_nor_the_exit(tmp_path):
    """The process ends with 0 after the manager's patience, with a warning that names the observer."""
    hang = (
        "from rollcast.archive.line_log import AppendedFile\n"
        "AppendedFile.append = lambda self, data: threading.Event().wait()\n"
        "began = time.monotonic(); asyncio.run(main()); print(time.monotonic() - began)"
    )
    out = python(RUN + hang, tmp_path / "r", DRAIN="0.3")
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < 30
    assert "ArchiveObserver did not take its events" in out.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, if this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(
            f"mounting a small disk needs root; an injected ENOSPC is tested everywhere: {mounted.stderr!r}"
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


FILLING = """
from pathlib import Path
def fill(path):
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
"""
SLOWLY = """
                filler = Path(sys.argv[2])
                if number == 20:
                    write()
                    fill(filler)
                if 20 <= number < 200:
                    with chain.tool_call("f", {}) as call:
                        call.observation("y" * 500)
                    write()
                if number == 200:
                    filler.unlink()
"""


def check_what_is_missing(path):
    """Every event is there or in a `gap`; the run's end and every chain's row are there."""
    archive = Archive.open(path)
    events = list(archive.events())
    gaps = [e for e in events if e.event_type == "gap"]
    assert gaps
    seen = {e.seq for e in events if e.event_type != "gap"}
    lost = {seq for gap in gaps for seq in range(gap.data["from_seq"], gap.data["to_seq"] + 1)}
    assert seen | lost >= set(range(max(seen) + 1))
    assert events[-1].event_type == "run_end"
    assert archive.facts.totals.lost == len(set(range(max(seen) + 1)) - seen)
    assert archive.facts.status == "completed"
    assert {row["state"] for row in archive.chains().rows} == {"ended"}


def test_a_disk_that_is_full_in_the_middle_and_has_room_again(small_disk):
    """The run goes on and exits with 0; what came meanwhile is a `gap`, and what came after it is recorded."""
    out = python(
        RUN + FILLING + "asyncio.run(main(230))", small_disk / "r", small_disk / "filler", SLOWLY=SLOWLY
    )
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("No space left on device") == 1, out.stderr
    check_what_is_missing(small_disk / "r")


VANISHES = """
                if number in (20, 40):
                    write()
                    os.system(sys.argv[2]) if number == 20 else None
"""


def test_a_disk_that_vanishes_in_the_middle(tmp_path):
    """The run goes on and exits with 0; the record is begun anew at its path, with a `gap` for what was on the disk."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk needs root; a folder that is deleted or moved is tested everywhere")
    try:
        code = RUN + "asyncio.run(main(60))"
        out = python(code, tmp_path / "r", f"umount -l {tmp_path}", SLOWLY=VANISHES)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], capture_output=True, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("was moved or deleted while it was written; it is begun anew") == 1, out.stderr
    archive = Archive.open(tmp_path / "r")
    events = list(archive.events())
    assert events[0].event_type == "gap"
    assert "moved or deleted" in events[0].data["reason"]
    assert events[-1].event_type == "run_end"
    assert archive.chain("chain_59")["state"] == "ended"
    assert archive.facts.status == "completed"


LIMITED = """
                import resource
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                if number == 20:
                    write()
                    size = max(path.stat().st_size for path in Path(sys.argv[1]).rglob("*") if path.is_file())
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1500, hard))
                if 20 <= number < 200:
                    with chain.tool_call("f", {}) as call:
                        call.observation("y" * 500)
                    write()
                if number == 200:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_a_file_that_may_not_grow_and_then_may_again(tmp_path):
    """As a full disk, and for every user: the system takes half of a block, then nothing; later it takes everything again."""
    code = RUN + "from pathlib import Path\n" + "asyncio.run(main(230))"
    out = python(code, tmp_path / "r", SLOWLY=LIMITED)
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("File too large") == 1, out.stderr
    check_what_is_missing(tmp_path / "r")


AS_NOBODY = """
import rollcast.archive.zstd, sysconfig
sysconfig.get_paths()  # what is imported later may lie where only root can read
from rollcast.archive import line_log
line_log.is_full = lambda lines, size: lines >= 50  # so that a new segment is begun meanwhile
rollcast.archive.zstd.available()
if os.geteuid() == 0:  # root may write into what is read-only
    os.setgid(65534)
    os.setuid(65534)
"""
READ_ONLY = """
                folders = [sys.argv[1], *(sys.argv[1] + name for name in ("/events", "/trajectories"))]
                if number in (20, 60):
                    write()
                    for folder in folders:
                        os.chmod(folder, 0o500 if number == 20 else 0o700)
                if 20 <= number < 60:
                    write()
"""


@pytest.fixture
def public():
    """A folder that every user may write into."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def test_a_folder_that_is_made_read_only_in_the_middle(public):
    """The run goes on and exits with 0, with one warning; when it can be written again, a `gap` says what is missing."""
    out = python(RUN + AS_NOBODY + "asyncio.run(main(100))", public / "r", SLOWLY=READ_ONLY)
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("Permission denied; the run goes on without its record") == 1, out.stderr
    check_what_is_missing(public / "r")


def test_a_folder_that_may_not_be_written_leaves_no_record(public):
    """The run goes on and exits with 0, with one warning that names the folder and why."""
    public.chmod(0o555)
    out = python(RUN + AS_NOBODY + "asyncio.run(main())", public / "r")
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("cannot be written: Permission denied") == 1, out.stderr
    assert str(public / "r") in out.stderr
    assert not (public / "r").exists()


JUMPS = """
                real = time.time if number == 0 else real
                if number == 3:
                    time.time = lambda: real() - 86400
                if number == 6:
                    time.time = lambda: real() + 3 * 365 * 86400
                if number == 8:
                    time.time = lambda: real() + random.uniform(-1e6, 1e6)
"""


def test_a_clock_that_jumps(tmp_path):
    """Back a day, on by years, and to and fro: every event is there in its order, and the record is read and listed as any other."""
    code = "import random\n" + RUN + "asyncio.run(main(12))"
    out = python(code, tmp_path / "r", SLOWLY=JUMPS)
    assert (out.returncode, out.stderr) == (0, "")
    archive = Archive.open(tmp_path / "r")
    reader = archive.events()
    events = list(reader)
    check_events(events)
    assert not reader.damage
    assert [e.seq for e in events] == sorted(e.seq for e in events)
    assert max(e.timestamp for e in events) - min(e.timestamp for e in events) > 3 * 365 * 86_400 - 2
    assert (archive.state, archive.facts.totals.lost) == ("ended", 0)
    rows = archive.chains()
    assert [row["chain_id"] for row in rows.rows] == [f"chain_{n}" for n in range(12)]
    assert all(row["state"] == "ended" and row["duration_s"] >= 0 for row in rows.rows)
    assert all(seconds >= 0 for row in rows.rows for seconds in row["times"].values())
    assert find_record(tmp_path, "latest") == tmp_path / "r"
    command = [sys.executable, "-m", "rollcast", "replay", "r", "--speed", "100000", "--record-dir", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(Path(rollcast.__file__).parent.parent)}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert "chain_11" in shown.stdout
    assert shown.stderr == ""


def test_two_processes_do_not_share_a_folder(tmp_path):
    """The second one records nothing, says so once, and its run goes on; the first one's record is whole."""
    wait = "\n                if number == 1: print('begun', flush=True); sys.stdin.read()"
    environment = os.environ | {"PYTHONPATH": str(Path(rollcast.__file__).parent.parent)}
    code = RUN.replace("DRAIN", PATIENCE_S).replace("SLOWLY", wait) + "\nasyncio.run(main())"
    # It decides to write there before there is anything.
    second = (
        RUN.replace("DRAIN", PATIENCE_S).replace("SLOWLY", "pass")
        + "\nprint('ready', flush=True); sys.stdin.read(); asyncio.run(main(9))"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", second, tmp_path / "r"], env=environment, **pipes)
    assert other.stdout.readline() == "ready\n"
    one = subprocess.Popen([sys.executable, "-c", code, tmp_path / "r"], env=environment, **pipes)
    assert one.stdout.readline() == "begun\n"
    deadline = time.monotonic() + 120
    while not (tmp_path / "r" / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    _, told = other.communicate(timeout=300)
    assert (other.returncode, told.count("one writer a folder")) == (0, 1), told
    _, told = one.communicate(timeout=300)
    assert (one.returncode, told) == (0, "")
    archive = Archive.open(tmp_path / "r")
    assert (archive.facts.status, archive.facts.totals.chains) == ("completed", 3)
