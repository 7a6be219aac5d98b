"""When the next event of a replay is due."""

import math

import pytest

from rollcast.archive.pace import Pace


def test_events_are_due_as_they_came_divided_by_the_speed():
    """From the first one on, which is due at once."""
    pace = Pace(2.0)
    for timestamp, left_s in ((1000.0, 0.0), (1001.0, 0.5), (1001.5, 0.75)):
        pace.take(timestamp, now=50.0)
        assert pace.left_s(50.0) == left_s
    assert pace.left_s(50.5) == 0.25
    assert pace.left_s(60.0) == 0.0


def test_a_clock_that_jumped_and_a_long_night_do_not_stop_a_replay():
    """What is older than something before it is due at once; no pause is longer than ten seconds."""
    pace = Pace(1.0)
    pace.take(1000.0, now=0.0)
    pace.take(400.0, now=0.0)
    assert pace.left_s(0.0) == 0.0
    pace.take(90_000.0, now=0.0)
    assert pace.left_s(0.0) == 10.0


def test_a_replay_that_was_held_up_does_not_hurry_for_more_than_ten_seconds_of_it():
    """Whoever reads slowly is not given an hour at once."""
    pace = Pace(1.0)
    pace.take(1000.0, now=0.0)
    pace.take(1001.0, now=3600.0)
    pace.take(1012.0, now=3600.0)
    assert pace.left_s(3600.0) == pytest.approx(0.0)
    pace.take(1013.0, now=3600.0)
    assert pace.left_s(3600.0) == pytest.approx(1.0)


def test_the_speed_changes_what_is_left():
    """And 0 stops the time until it changes again."""
    pace = Pace(1.0)
    pace.take(1000.0, now=0.0)
    pace.take(1008.0, now=0.0)
    pace.change(4.0, now=4.0)
    assert pace.left_s(4.0) == 1.0
    pace.change(0, now=4.5)
    assert pace.left_s(1000.0) == math.inf
    pace.change(1.0, now=2000.0)
    assert pace.left_s(2000.0) == 2.0
    pace.change(math.inf, now=2000.5)
    assert pace.left_s(2000.5) == 0.0


def test_a_replay_that_begins_paused_is_due_when_it_has_a_speed():
    """Its first event at once."""
    pace = Pace(0)
    pace.take(1000.0, now=0.0)
    assert pace.left_s(5.0) == math.inf
    pace.change(1.0, now=5.0)
    assert pace.left_s(5.0) == 0.0
