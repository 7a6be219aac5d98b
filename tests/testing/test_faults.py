"""Fault schedules: a seed repeats them, they break nothing, and what is broken is told."""

import logging
from typing import get_args

import pytest

from fault_schedules.faults import FaultSchedule, check_invariants, main
from fault_schedules.hostile import Manner
from fault_schedules.schedule import draw
from rollcast.records import StreamEventType
from rollcast.testing import EventCapture

NEVER_MERGED = {
    StreamEventType.CHAIN_END,
    StreamEventType.TOOL_CALL_START,
    StreamEventType.LLM_GENERATION_START,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """What observers and tools raise is logged with its traceback, and there is much of it."""
    monkeypatch.setattr(logging.getLogger("rollcast"), "level", logging.CRITICAL + 1)
    logging.getLogger("rollcast").manager._clear_cache()
    yield
    logging.getLogger("rollcast").manager._clear_cache()


@pytest.mark.parametrize("seed", range(50))
def test_whatever_goes_wrong_the_invariants_hold(seed):
    """`PYTHONPATH=tests python -m fault_schedules --verbose SEED` tells the story of one that fails here."""
    check_invariants(FaultSchedule(seed).play())


def test_a_seed_draws_the_same_again():
    """And another seed something else."""
    assert list(draw(3).lines()) == list(draw(3).lines())
    assert list(draw(3).lines()) != list(draw(4).lines())


def test_observers_of_yours_watch_from_the_beginning():
    """They get what the steady one gets, and are closed."""
    capture = EventCapture()
    outcome = FaultSchedule(0).play([capture])
    check_invariants(outcome)
    assert capture.events == outcome.reference
    assert capture.manager is None


def _broken(change):
    outcome = FaultSchedule(0).play()
    change(outcome)
    with pytest.raises(AssertionError, match="seed 0: ") as broken:
        check_invariants(outcome)
    assert "Its story:" in str(broken.value)
    return str(broken.value)


def _stint(outcome):
    return next(s for o in outcome.observers for s in o.stints if len(s.events) > 3 and not s.cut)


def test_a_missing_event_is_found():
    """Of the steady observer, and of one that came and went."""
    assert "the steady observer" in _broken(lambda outcome: outcome.reference.pop(5))

    def lose(outcome):
        stints = [s.events for o in outcome.observers for s in o.stints if not s.cut]
        events, lost = next((events, e) for events in stints for e in events if e.event_type in NEVER_MERGED)
        events.remove(lost)

    assert "in silence" in _broken(lose)


def test_a_repeated_event_is_found():
    """Nothing comes twice."""
    assert "twice or out of order" in _broken(lambda o: _stint(o).events.append(_stint(o).events[-1]))


def test_a_chain_that_a_neighbour_changed_is_found():
    """Its digest is not that of a run without faults."""

    def change(outcome):
        for run in outcome.runs:
            for t in run.result:
                if (run.result.run_id, t.chain_id) not in outcome.touched:
                    t.reward = -1.0
                    return

    assert "had no fault and is not what it is without faults" in _broken(change)


def test_the_command_says_which_seeds_break(capsys, monkeypatch):
    """It exits with 1 then, and with 0 where all hold."""
    assert main(["--seeds", "0:2,5"]) == 0
    assert "3 of 3 seeds hold" in capsys.readouterr().out
    play = FaultSchedule.play

    def broken(self, *observers):
        outcome = play(self, *observers)
        outcome.problems += ["it hangs"] if self.seed == 1 else []
        return outcome

    monkeypatch.setattr(FaultSchedule, "play", broken)
    assert main(["--seeds", "0:3"]) == 1
    printed = capsys.readouterr().out
    assert "seed 1: 1 broken\n- it hangs" in printed
    assert "broken: 1\n" in printed


def test_every_kind_of_hostile_watcher_is_drawn():
    """Within two hundred seeds, with large prompts, late readers and deaf clients among them."""
    plans = [draw(seed) for seed in range(200)]
    assert {each.manner for plan in plans for each in plan.hostile} == set(get_args(Manner))
    assert {plan.prompt_chars for plan in plans} == {0, 3_000, 300_000}
    assert {each.pause for plan in plans for each in plan.subscribers} == {None, 0, 1, 10}
    assert any(plan.deaf_client for plan in plans)


def test_a_subscriber_that_lost_something_is_found():
    """It has what it subscribed to, or a gap."""

    def lose(outcome):
        events = next(s.stint.events for s in outcome.subscribers if s.stint.events)
        events.remove(next(e for e in events if e.event_type in NEVER_MERGED))

    outcome = FaultSchedule(17).play()
    check_invariants(outcome)
    lose(outcome)
    with pytest.raises(AssertionError, match=r"subscriber_0.* in silence"):
        check_invariants(outcome)
