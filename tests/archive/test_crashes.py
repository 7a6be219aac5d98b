"""Real runs and trainings, killed at random moments. `make crashes` is the whole campaign."""

import pytest

from record_crashes.crashes import play

pytestmark = pytest.mark.slow

BOUND_S = 1.0  # it is 0.25 s on a machine that has time; one that is busy may come late to its flush


@pytest.mark.parametrize("seed", range(15))
def test_what_was_killed_is_recovered(tmp_path, seed):
    """Every promise of docs/archive.md holds, and only what came last is missing."""
    outcome = play(seed, tmp_path / "r")
    assert not outcome.broken
    assert outcome.lost_s < BOUND_S
