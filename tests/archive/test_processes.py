"""Whole processes: one that exits without closing anything, one whose disk hangs, one whose disk is full."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rollcast
from rollcast.archive.reader import Archive

pytestmark = pytest.mark.slow

RUN = """
import asyncio, os, sys, threading, time
from rollcast import StreamingManager
from rollcast.archive import ArchiveObserver

manager = StreamingManager(drain_timeout=DRAIN)
manager.add_observer(ArchiveObserver(sys.argv[1], masker=False))

async def main(chains=3):
    async with manager.run(chains=chains) as run:
        for number in range(chains):
            with run.chain([{"role": "user", "content": "?"}]) as chain:
                with chain.generation() as generation:
                    generation.chunk("so", [1], [-0.5])
                SLOWLY
"""


def python(code, *arguments, **replaced):
    for name, value in ({"DRAIN": "5.0", "SLOWLY": "pass"} | replaced).items():
        code = code.replace(name, value)
    environment = os.environ | {"PYTHONPATH": str(Path(rollcast.__file__).parent.parent)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


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
    began = time.monotonic()
    out = python(RUN + hang, tmp_path / "r", DRAIN="0.3")
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < 5
    assert "ArchiveObserver did not take its events" in out.stderr
    assert time.monotonic() - began < 20


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
    time.sleep(0.6)  # so that it is noticed: a flush comes each 0.2 s
"""
SLOWLY = """
                filler = Path(sys.argv[2])
                if number == 20:
                    time.sleep(0.6)
                    fill(filler)
                if 20 <= number < 200:
                    with chain.tool_call("f", {}) as call:
                        call.observation("y" * 500)
                if number == 200:
                    time.sleep(0.6)
                    filler.unlink()
                    time.sleep(0.6)
"""


def test_a_disk_that_is_full_in_the_middle_and_has_room_again(small_disk):
    """The run goes on and exits with 0; what came meanwhile is a `gap`, and what came after it is recorded."""
    out = python(
        RUN + FILLING + "asyncio.run(main(230))", small_disk / "r", small_disk / "filler", SLOWLY=SLOWLY
    )
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("No space left on device") == 1, out.stderr
    archive = Archive.open(small_disk / "r")
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
