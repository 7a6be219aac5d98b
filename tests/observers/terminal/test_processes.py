"""Several processes and one terminal, or one log: nothing is garbled."""

import json
import os
import pty
import subprocess
import sys

import pytest

from rollcast.observers import JSONStreamObserver
from rollcast.records import EventFilter
from rollcast.terminal import ConsoleStreamObserver
from rollcast.terminal.ownership import _locks, owns_terminal

APPENDS = """
import sys
from rollcast import StreamingManager
from rollcast.observers import JSONStreamObserver
manager = StreamingManager(source=sys.argv[2])
manager.add_observer(JSONStreamObserver(sys.argv[1], flush_interval=0))
with manager.run() as run:
    for _ in range(200):
        with run.chain([{"role": "user", "content": "q" * 9_000}]):
            pass
manager.close()
"""
OWNS = """
import sys
from rollcast.terminal.ownership import owns_terminal
print(owns_terminal(sys.stdout), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def as_rank(monkeypatch):
    """Makes this process one of two that torchrun started."""

    def become(rank):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")

    return become


def test_a_rank_that_is_not_the_first_prints_nothing_and_says_where_to_look(as_rank, caplog, monkeypatch):
    """No token is made for its console; one that is given a stream prints there."""
    monkeypatch.setenv("ROLLCAST_HUB", "ws://hub:8765")
    as_rank(0)
    assert ConsoleStreamObserver().filter == EventFilter()
    assert not caplog.records
    as_rank(1)
    assert ConsoleStreamObserver().filter.types == frozenset()
    assert caplog.messages == [
        "rank 1 prints no chains, since rank 0 prints here; to see them: rollcast watch ws://hub:8765"
    ]
    assert ConsoleStreamObserver(file=sys.stdout).filter == EventFilter()


def test_each_rank_has_a_log_of_its_own(as_rank, tmp_path):
    """Beside that of the first one; what is no file is the same for all."""
    as_rank(1)
    assert JSONStreamObserver(tmp_path / "events.jsonl").path == tmp_path / "events.rank1.jsonl"
    assert JSONStreamObserver(os.devnull).path == type(tmp_path)(os.devnull)
    as_rank(0)
    assert JSONStreamObserver(tmp_path / "events.jsonl").path == tmp_path / "events.jsonl"


def test_processes_that_append_to_one_log_leave_whole_lines(tmp_path):
    """And each line says whose it is."""
    log = tmp_path / "events.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", APPENDS, log, name]) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    events = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert len(events) == 2 * 402
    for name in ("a", "b"):
        assert [event["seq"] for event in events if event["source"] == name] == [*range(402)]


def told(terminal):
    """The next line that is printed there."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(terminal, 1)
    return line.strip()


def test_a_terminal_belongs_to_the_first_process_that_draws_there():
    """Until it ends; a second one prints whole lines, as into a pipe."""
    main, side = pty.openpty()
    try:
        with os.fdopen(side, "w") as stream:
            assert owns_terminal(stream)
            assert owns_terminal(stream)
            process = subprocess.Popen([sys.executable, "-c", OWNS], stdin=subprocess.PIPE, stdout=side)
            assert told(main) == b"False"
            process.communicate(b"\n", 60)
            os.close(_locks.pop(os.ttyname(side)))
            other = subprocess.Popen([sys.executable, "-c", OWNS], stdin=subprocess.PIPE, stdout=side)
            assert told(main) == b"True"
            assert not owns_terminal(stream)
            other.communicate(b"\n", 60)
            assert owns_terminal(stream)
            os.close(_locks.pop(os.ttyname(side)))
    finally:
        os.close(main)


def test_a_stream_without_a_device_belongs_to_nobody_else(tmp_path):
    """A file, or a terminal in memory."""
    with (tmp_path / "out").open("w") as stream:
        assert owns_terminal(stream)
