"""Fork and exit."""

import os
import subprocess
import sys

import pytest

FORKS = """
import os, threading
from rollcast.lifetime import call_after_fork, register

class Owner:
    def __init__(self):
        self.lock, self.forked = threading.Lock(), False
    def after_fork(self):
        self.forked = self.lock.locked()
    def close(self):
        print("closed", self.forked, seen, flush=True)

seen, owner = [], Owner()
register(owner)
call_after_fork(lambda: seen.append("child"))
child = os.fork()
if child:
    os.waitpid(child, 0)
assert not owner.lock.locked()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_is_told_and_each_process_closes_what_it_has():
    """The lock is held meanwhile, and free again in both; the parent sees nothing of it."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["closed True ['child']", "closed False []"], done.stderr


def test_what_fails_to_close_at_exit_keeps_nobody_else_from_it():
    """It is logged."""
    code = """
from rollcast.lifetime import register

class Owner:
    lock = None
    def __init__(self, fails):
        self.fails = fails
    def after_fork(self):
        pass
    def close(self):
        if self.fails:
            raise OSError("no room")
        print("closed")

owners = [Owner(fails=True), Owner(fails=False), Owner(fails=True)]
for owner in owners:
    register(owner)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "closed\n"
    assert done.stderr.count("Owner could not be closed at exit") == 2
