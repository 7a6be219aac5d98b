"""What a test may not leave running: threads of Rollcast, and child processes."""

import gc
import sys
import threading
import time
import traceback
from pathlib import Path

GRACE_S = 120.0  # what was told to end may take so long on a slow machine

# These wait for whoever needs them next, and end by themselves if nobody does.
END_WHEN_IDLE = (
    "rollcast-idle",  # of a tool or a reward that has returned
    "rollcast-watchdog",
    "rollcast-tiny",  # engines
    "rollcast-transformers",
)
# Python's own, which stay until the process ends.
OF_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


class Running:
    """What runs now, to compare with what runs after a test."""

    def __init__(self):
        self.threads = set(threading.enumerate())
        self.processes = child_processes().keys()

    def left(self):
        """A line about each thread and process that has come since, and does not end within the grace."""
        give_up = time.monotonic() + GRACE_S
        collect_at = 0.0
        while lines := self._new_threads() + self._new_processes():
            if time.monotonic() >= give_up:
                return lines
            if time.monotonic() >= collect_at:  # some end when nobody has what they serve
                gc.collect()
                collect_at = time.monotonic() + 1.0
            time.sleep(0.005)
        return []

    def _new_threads(self):
        new = set(threading.enumerate()) - self.threads
        ours = [
            thread
            for thread in new
            if thread.name.startswith("rollcast-") and thread.name not in END_WHEN_IDLE
        ]
        return [f"the thread {thread.name}, {_place_of(thread)}" for thread in ours]

    def _new_processes(self):
        return [
            f"the process {pid}: {command or 'which is only beginning'}"
            for pid, command in child_processes().items()
            if pid not in self.processes
        ]


def _place_of(thread):
    frame = sys._current_frames().get(thread.ident)
    if frame is None:
        return "which has ended"
    calls = [
        f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in traceback.extract_stack(frame)
    ]
    return f"in {' > '.join(calls[-6:])}"


def child_processes():
    """The command line of each child process that has not ended, by its pid; empty while it is only beginning.

    `Popen` returns a moment before the kernel has put the command line where others can read it. Systems without
    Linux's `/proc` do not tell.
    """
    found = {}
    threads = Path("/proc/self/task")
    for thread in threads.iterdir() if threads.exists() else ():
        for pid in _content_of(thread / "children").split():
            command = _content_of(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            if not _has_ended(pid) and not any(name in command for name in OF_PYTHON):
                found[int(pid)] = command
    return found


def _has_ended(pid):
    """Also if nobody has waited for it yet."""
    after_name = _content_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return not after_name or after_name[0] in "ZX"


def _content_of(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it has gone meanwhile
        return ""


def end_what_a_process_ends():
    """Do what the end of a process does: detach what is attached, and end the producers. The next test has its own."""
    attaching = sys.modules.get("rollcast.attaching.process")
    if attaching is not None and attaching.all_outlets():
        from rollcast.attaching.front import detach_all

        detach_all(timeout=60.0)
        if attaching._shared is not None:
            attaching._shared.manager.close()
            attaching._shared = None
    publishing = sys.modules.get("rollcast.serve.producer")
    if publishing is not None and publishing._producers:
        publishing._finish_all()
        publishing._producers.clear()
