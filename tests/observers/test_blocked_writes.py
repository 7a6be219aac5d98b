"""A disk that is gone: what writes to it never returns, and neither a run nor a program waits for that."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from doubles import Reporting
from rollcast import BaseAgent
from rollcast.observers import JSONStreamObserver, jsonl, waiting_lines
from rollcast.records import check_events, decode
from rollcast.stream.calls import TURN
from rollcast.testing import ScriptedBackend

HELLO = [{"role": "user", "content": "go"}]


class Hold:
    """Calls of one function of `os` on the log's thread wait while this is closed, and soon count as blocked; not while it is open.

    Attributes:
        begun: how many have begun.
        open_fds: the descriptors that the log has, by what it opened and closed.
    """

    def __init__(self, name, monkeypatch):
        self._monkeypatch = monkeypatch
        self.gate = threading.Event()
        self.open()
        self.begun = 0
        self.waiting = threading.Event()
        real = getattr(os, name)

        def held(*arguments, **options):
            if threading.current_thread().name == "rollcast-write":
                self.begun += 1
                if not self.gate.is_set():
                    self.waiting.set()
                self.gate.wait()
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, held)

    def close(self):
        self._monkeypatch.setattr(waiting_lines, "BLOCKED_S", 0.05)
        self.waiting.clear()
        self.gate.clear()

    def open(self):
        self._monkeypatch.setattr(waiting_lines, "BLOCKED_S", 60.0)
        self.gate.set()


@pytest.fixture
def hold(request, monkeypatch):
    hold = Hold(getattr(request, "param", "write"), monkeypatch)
    yield hold
    hold.open()


def open_files():
    """Those of this process, if the system tells."""
    folder = Path("/proc/self/fd")
    return [str(each.resolve()) for each in folder.iterdir()] if folder.exists() else []


def read(path):
    return [decode(line) for line in path.read_bytes().splitlines()]


async def test_what_comes_behind_a_blocked_write_is_dropped_and_a_gap_stands_for_it(
    events, path, hold, eventually
):
    """Reported once, nothing twice; the gap comes by itself when the write returns."""
    observer = Reporting(path, flush_interval=0)
    first = [events.run_start(1), events.start("chain_0")]
    await observer.on_batch(first[:1])
    hold.close()
    await observer.on_batch(first[1:])
    lost = [events.chunk("chain_0", str(i)) for i in range(20)]
    for event in lost:
        await observer.on_batch([event])
    (error,) = observer.reported
    assert "a write has not returned for" in error.strerror
    assert "events could not be written: a write has not returned" in observer.incomplete
    hold.open()
    await eventually(lambda: len(read(path)) == 3)
    rest = [events.end("chain_0"), events.run_end()]
    await observer.on_batch(rest)
    await observer.aclose()
    got = read(path)
    assert got[:2] == first
    assert got[3:] == rest
    gap = got[2]
    assert (gap.data["from_seq"], gap.data["to_seq"]) == (lost[0].seq, lost[-1].seq)
    assert gap.data["dropped"] == {"llm_generation_chunk": 20}
    check_events(got, late=True)


async def test_batches_that_follow_each_other_gather_behind_a_write_up_to_a_bound(
    events, path, hold, eventually
):
    """The first two do not wait for it; the third does, and is the one that finds out that it is blocked."""
    observer = Reporting(path, flush_interval=3600, flush_bytes=60_000)
    hold.close()
    for _ in range(2):
        await observer.on_batch([events.chunk("chain_0", "x" * 100) for _ in range(TURN)])
        await eventually(hold.waiting.is_set)
        assert hold.begun == 1
        assert observer.reported == []
    await observer.on_batch([events.chunk("chain_0", "x" * 100) for _ in range(TURN)])
    assert len(observer.reported) == 1
    hold.open()
    await observer.aclose()
    *written, gap = read(path)
    assert len(written) == TURN
    assert gap.data["dropped"] == {"llm_generation_chunk": 2 * TURN}


async def test_a_write_that_fails_after_it_was_blocked_is_part_of_the_gap(
    events, path, hold, disk, eventually
):
    """Its lines are not in the file, and not lost silently."""
    hold = Hold("write", pytest.MonkeyPatch())  # around the disk
    try:
        observer = Reporting(path, flush_interval=0)
        hold.close()
        await observer.on_batch([in_flight := events.run_start(1)])
        await observer.on_batch([events.start("chain_0")])
        disk.room = 0
        hold.open()
        await eventually(lambda: not observer._lines._in_flight)
        disk.room = None
        await observer.on_batch([events.end("chain_0")])
        await observer.aclose()
    finally:
        hold.open()
    gap, end = read(path)
    assert gap.data["from_seq"] == in_flight.seq
    assert gap.data["dropped"] == {"run_start": 1, "chain_start": 1}
    assert end.event_type == "chain_end"
    assert len(observer.reported) == 1


@pytest.mark.parametrize("hold", ["write", "open", "close"], indirect=True)
async def test_closing_waits_no_longer_than_that(events, path, hold, caplog):
    """One warning names the file and how many events it lacks; the descriptor is not closed under a write."""
    observer = Reporting(path, flush_interval=3600)
    hold.close()
    await observer.on_batch([events.run_start(1), events.end("chain_0")])
    async with asyncio.timeout(60):
        await observer.aclose()
    lacks = "2 events could not be written: {'run_start': 1, 'chain_end': 1}, to "
    assert (f"{lacks}{path}" in caplog.text) == ((hold.begun == 1 and not path.exists()) or not read(path))
    hold.open()
    await asyncio.to_thread(observer._lines._thread.submit(lambda: None).result)
    async with asyncio.timeout(60):
        while not path.exists() or len(read(path)) < 2:
            await asyncio.sleep(0.005)
    assert [e.event_type for e in read(path)] == ["run_start", "chain_end"]
    assert str(path) not in open_files()


@pytest.mark.parametrize("hold", ["write", "open"], indirect=True)
def test_the_run_ends_and_its_trajectories_come_back(path, hold):
    """More events than the queue takes: the rollout waits for the disk once, and then goes on without it."""
    agent = BaseAgent(backend=ScriptedBackend("word " * 200))
    manager = agent.streaming_manager
    manager.drain_timeout = 0.2
    observer = JSONStreamObserver(path, flush_interval=0)
    manager.add_observer(observer)
    hold.close()
    result = agent.run(1, HELLO, 4, True, sampling={"max_tokens": 1000})
    assert [t.finish_reason for t in result] == ["answered"] * 4
    hold.open()
    manager.close()
    got = read(path)
    check_events(got, late=True)
    assert got[-1].event_type in ("run_end", "gap")
    seqs = [e.seq for e in got if e.event_type != "gap"]
    assert len(seqs) == len(set(seqs))
    told = sum(sum(e.data["dropped"].values()) for e in got if e.event_type == "gap")
    merged = sum(e.seq - e.data.get("from_seq", e.seq) for e in got if e.event_type != "gap")
    last = max(e.data["to_seq"] if e.event_type == "gap" else e.seq for e in got)
    assert len(seqs) + told + merged == last + 1


def test_a_cancelled_run_does_not_wait_for_the_disk(path, hold):
    """Cancelled while the rollout waits for its log."""
    agent = BaseAgent(backend=ScriptedBackend("word " * 200))
    manager = agent.streaming_manager
    manager.drain_timeout = 0.1
    manager.add_observer(JSONStreamObserver(path, flush_interval=0))
    hold.close()

    async def main():
        run = agent.prepare(1, HELLO, 4, True)
        task = asyncio.create_task(run.execute())
        while not hold.waiting.is_set():
            await asyncio.sleep(0.001)
        run.cancel()
        return await task

    result = asyncio.run(main())
    assert len(result) == 4
    hold.open()
    manager.close()


async def test_two_logs_of_one_path_do_not_wait_for_each_other_for_ever(events, path, hold):
    """The second one's lines wait for the first one's write, and count as blocked too."""
    one, other = Reporting(path, flush_interval=0), Reporting(path, flush_interval=0)
    hold.close()
    async with asyncio.timeout(60):
        await one.on_batch([events.start("chain_0")])
        await other.on_batch([events.start("chain_1")])
    assert len(one.reported) == len(other.reported) == 1
    hold.open()
    await one.aclose()
    await other.aclose()
    assert sorted(e.chain_id for e in read(path)) == ["chain_0", "chain_1"]


SCRIPT = """
import logging, os, sys, threading
logging.basicConfig(level=logging.WARNING)
from rollcast import BaseAgent
from rollcast.observers import JSONStreamObserver, jsonl
from rollcast.testing import ScriptedBackend
jsonl.EXIT_S = 0.2
path, how = sys.argv[1:]
if how == "fifo":
    os.mkfifo(path)
else:
    real = getattr(os, how)
    def blocks(*a, **k):
        if threading.current_thread().name == "rollcast-write":
            threading.Event().wait()
        return real(*a, **k)
    setattr(os, how, blocks)
agent = BaseAgent(backend=ScriptedBackend("a b c"))
agent.streaming_manager.drain_timeout = 0.2
agent.streaming_manager.add_observer(JSONStreamObserver(path))
result = agent.run(1, [{"role": "user", "content": "go"}], 2, True)
print([t.finish_reason for t in result])
"""


@pytest.mark.skipif(os.name != "posix", reason="makes a FIFO")
@pytest.mark.parametrize("how", ["write", "open", "fifo"])
def test_the_program_ends(path, how):
    """The trajectories came back, and one warning names the file and how many events it lacks."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), how],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['answered', 'answered']\n"
    lines = [
        line
        for line in done.stderr.splitlines()
        if str(path) in line and "events could not be written" in line
    ]
    assert len(lines) == 1, done.stderr


async def test_a_collector_does_not_wait_for_what_a_forgotten_log_writes(
    events, path, hold, monkeypatch, eventually
):
    """It may come in the midst of a run. The lines are written all the same, and the file is closed."""
    monkeypatch.setattr(jsonl, "EXIT_S", 3600.0)
    observer = JSONStreamObserver(path, flush_interval=3600)
    lines = id(observer._lines)
    await observer.on_batch([events.run_start(1)])
    hold.close()
    del observer
    gc.collect()
    await eventually(hold.waiting.is_set)
    assert lines in jsonl._unfinished
    hold.open()
    await eventually(lambda: lines not in jsonl._unfinished)
    assert len(read(path)) == 1
    assert str(path) not in open_files()


MANY = """
import asyncio, os, sys
from rollcast.observers import JSONStreamObserver, jsonl
from rollcast.records import StreamEvent, StreamEventType
jsonl.EXIT_S = 3.0
logs = []
for i in range(40):
    os.mkfifo(path := os.path.join(sys.argv[1], str(i)))
    logs.append(JSONStreamObserver(path, flush_interval=3600))
    asyncio.run(logs[-1].on_batch([StreamEvent.now(StreamEventType.TRAIN_STEP)]))
"""


@pytest.mark.skipif(os.name != "posix", reason="makes FIFOs")
def test_many_logs_that_hang_hold_up_the_exit_no_longer_than_one(tmp_path):
    """One after the other they would take two minutes. A warning names each."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("1 events could not be written") == 40


def writer_threads():
    return [thread for thread in threading.enumerate() if thread.name == "rollcast-write"]


async def test_a_log_whose_closing_is_cancelled_is_closed_when_its_write_returns(
    events, path, hold, monkeypatch, eventually
):
    """Its thread ends too."""
    before = writer_threads()
    observer = JSONStreamObserver(path, flush_interval=3600)
    hold.close()
    monkeypatch.setattr(waiting_lines, "BLOCKED_S", 3600.0)
    await observer.on_batch([events.run_start(1)])
    closing = asyncio.create_task(observer.aclose())
    await eventually(hold.waiting.is_set)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    hold.open()
    await eventually(lambda: set(writer_threads()) <= set(before))
    assert len(read(path)) == 1
    assert str(path) not in open_files()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell what is open")
@pytest.mark.parametrize("how", ["forgotten", "closed again"])
async def test_a_file_is_not_closed_under_a_write_that_hangs(events, path, hold, how, eventually):
    """The log was closed already, so that another thread would do it."""
    observer = Reporting(path, flush_interval=3600)
    hold.close()
    await observer.on_batch([events.run_start(1)])
    await observer.aclose()
    if how == "forgotten":
        del observer
        gc.collect()
    else:
        await observer.aclose()
    assert str(path) in open_files()
    hold.open()
    await eventually(lambda: str(path) not in open_files())
    assert len(read(path)) == 1
