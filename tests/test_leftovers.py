"""The guard that names a test which leaves something running: see `nothing_left_running` in conftest.py."""

import os
import subprocess
import sys
import threading

import pytest

import leftovers


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """What stays is not waited for."""
    monkeypatch.setattr(leftovers, "GRACE_S", 0.1)


def test_a_thread_that_is_left_is_named():
    """With the place where it is; those of others are theirs."""
    before, end = leftovers.Running(), threading.Event()
    theirs, ours = (threading.Thread(target=end.wait, name=name) for name in ("theirs", "rollcast-left"))
    theirs.start()
    ours.start()
    (line,) = before.left()
    assert line.startswith("the thread rollcast-left, in ")
    assert "threading.py" in line
    assert leftovers.Running().left() == []
    end.set()
    ours.join()
    assert before.left() == []


def test_a_thread_that_ends_soon_is_waited_for(monkeypatch):
    """It was told to end, and the machine is slow."""
    monkeypatch.setattr(leftovers, "GRACE_S", 60.0)
    before, end = leftovers.Running(), threading.Event()
    threading.Thread(target=end.wait, name="rollcast-ends-soon").start()
    looks = []
    monkeypatch.setattr(leftovers.gc, "collect", lambda: (looks.append(0), end.set()))
    assert before.left() == []
    assert looks == [0]


@pytest.mark.skipif(sys.platform != "linux", reason="child processes are found in /proc")
def test_a_process_that_is_left_is_named(monkeypatch):
    """Until it has ended, also if nobody has waited for it."""
    before = leftovers.Running()
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()  # is left"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()  # it runs, so its command line can be read
        (line,) = before.left()
        assert line.startswith(f"the process {process.pid}: ")
        assert "# is left" in line
        assert leftovers.Running().left() == []
        monkeypatch.setattr(leftovers, "GRACE_S", 60.0)
        process.stdin.close()
        assert before.left() == []


@pytest.mark.skipif(sys.platform != "linux", reason="child processes are found in /proc")
def test_a_process_that_is_only_beginning_is_no_ended_one(monkeypatch):
    """Its command line cannot be read yet: it counts, as new or as one that was there."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        content_of = leftovers._content_of
        monkeypatch.setattr(
            leftovers, "_content_of", lambda path: "" if "cmdline" in str(path) else content_of(path)
        )
        assert leftovers.child_processes()[process.pid] == ""
        assert leftovers.Running().left() == []
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it ends, and nobody has waited for it
        assert process.pid not in leftovers.child_processes()
