"""Seeded fault schedules: whatever goes wrong, the invariants hold; and they notice when something breaks them."""

import subprocess
import sys

import pytest

from rollcast.stream.queue import EventQueue
from rollcast.testing.faults import FaultSchedule, check_invariants


@pytest.mark.parametrize("seed", range(50))
def test_the_invariants_hold(seed):
    """Grammar, no silent loss, equal trajectories of those that survive, nothing left running."""
    outcome = FaultSchedule(seed).play()
    check_invariants(outcome)
    assert outcome.emitted > 0


def test_a_queue_that_loses_an_event_in_silence_is_noticed(monkeypatch):
    """Among a few seeds at least."""
    put, count = EventQueue.put, 0

    def lossy(queue, event, size):
        nonlocal count
        count += 1
        if count % 7:
            put(queue, event, size)

    monkeypatch.setattr(EventQueue, "put", lossy)
    outcomes = [FaultSchedule(seed).play() for seed in range(5)]
    with pytest.raises(AssertionError, match="seed"):
        _check_all(outcomes)


def _check_all(outcomes):
    for outcome in outcomes:
        check_invariants(outcome)


def test_seeds_can_be_played_from_the_command_line():
    """It says how many hold."""
    done = subprocess.run(
        [sys.executable, "-m", "rollcast.testing.faults", "--seeds", "0:3"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0
    assert "3 of 3 seeds hold" in done.stdout + done.stderr
