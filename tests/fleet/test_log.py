"""What a hub's log says of producers that go wrong again and again."""

import pytest

from rollcast.fleet import log
from rollcast.fleet.log import ProducerWarnings


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self):
        """The time."""
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_warning_that_comes_again_is_held_back_and_counted(clock, caplog):
    """The next one after a while says how many were held back."""
    warnings = ProducerWarnings(clock)
    assert [warnings.warn("w", "not taken", f"event {n} was not taken") for n in range(3)] == [
        True,
        False,
        False,
    ]
    clock.now += log.EVERY_S
    assert warnings.warn("w", "not taken", "event 3 was not taken")
    assert caplog.messages == [
        "w: event 0 was not taken",
        "w: event 3 was not taken (2 more like this since the last one)",
    ]


def test_warnings_of_other_producers_and_causes_are_not_held_back(clock, caplog):
    """Each is logged for itself."""
    warnings = ProducerWarnings(clock)
    assert warnings.warn("w", "not taken", "a")
    assert warnings.warn("v", "not taken", "b")
    assert warnings.warn("w", "clock", "c")
    assert caplog.messages == ["w: a", "v: b", "w: c"]


def test_the_oldest_warnings_are_forgotten(clock, monkeypatch):
    """However many producers there are, the memory for them is bounded."""
    monkeypatch.setattr(log, "MOST", 2)
    warnings = ProducerWarnings(clock)
    assert [warnings.warn(source, "clock", "?") for source in "abcbca"] == [
        True,
        True,
        True,
        False,
        False,
        True,
    ]
