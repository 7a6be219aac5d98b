"""What a watcher knows of runs."""

import msgspec
import pytest

from rollcast.records import StreamEvent
from rollcast.records.run_view import (
    MAX_ALL_CHAINS,
    MAX_CHAINS,
    MAX_ENDED_WEIGHT,
    MAX_RUNS,
    MAX_STEPS,
    WHOLE_RUNS,
    RunView,
    RunViews,
)


def made(kind, data, chain="", seq=-1, run="r", **more):
    """An event, whatever it holds."""
    return StreamEvent(kind, chain, 1000.0 + max(seq, 0), data, seq=seq, run_id=run, **more)


def viewed(*events, view=None):
    """The view of these events."""
    view = RunView() if view is None else view
    for event in events:
        view.apply(event)
    return view


START = made(
    "run_start",
    {
        "chains": 2,
        "groups": 1,
        "agent": "A",
        "model": "m",
        "backend": "b",
        "policy_version": 0,
        "split": "train",
    },
    seq=0,
)
END = made(
    "run_end",
    {
        "status": "completed",
        "chains": 2,
        "failed": 1,
        "mean_reward": 0.75,
        "completion_tokens": 9,
        "duration_s": 3.0,
    },
    seq=99,
)


def ended(i, reward, reason="answered", tokens=3, seq=-1):
    """The start and the end of a chain."""
    data = {"finish_reason": reason, "completion_tokens": tokens, "reward": reward}
    return made("chain_start", {"messages": []}, f"chain_{i}", seq), made(
        "chain_end", data, f"chain_{i}", seq
    )


def test_a_run_knows_what_its_start_and_end_say():
    """Who runs, since when, and how it came out."""
    view = viewed(START, END)
    assert (view.status, view.agent, view.split, view.started_at, view.ended_at) == (
        "completed",
        "A",
        "train",
        1000.0,
        1099.0,
    )
    assert (view.expected_chains, view.mean_reward, view.tokens) == (2, 0.75, 9)


def test_chains_are_counted_by_state():
    """Running and ended chains, failed ones, and the mean of the rewards so far."""
    view = viewed(
        START, *ended(0, 1.0), *ended(1, None, "error"), made("chain_start", {}, "chain_2"), *ended(3, 0.0)
    )
    assert view.by_state == {"ended": 3, "waiting": 1}
    assert (view.status, view.failed, view.mean_reward, view.tokens) == ("running", 1, 0.5, 9)


def test_without_a_start_the_status_is_unknown():
    """One who joins late knows chains, and not what the run is."""
    view = viewed(
        made("chain_snapshot", {"messages": [], "content": "x", "tool_calls": [], "as_of": 5}, "chain_0", 5)
    )
    assert (view.status, view.by_state) == ("unknown", {"generating": 1})


def test_the_end_of_a_run_ends_what_is_open():
    """Chains whose end was not seen are lost."""
    assert viewed(START, made("chain_start", {}, "chain_0", 1), END).by_state == {"lost": 1}


@pytest.mark.parametrize("status", ["cancelled", "unknown"])
def test_a_gap_in_place_of_the_end_ends_the_run(status):
    """As far as it tells how; the chains whose end was not seen are lost."""
    lost = {"from_seq": 2, "to_seq": 9, "dropped": {}, "reason": "", "run_status": status}
    view = viewed(START, made("chain_start", {}, "chain_0", 1), made("gap", lost, seq=9))
    assert (view.status, view.by_state) == (status, {"lost": 1})
    assert view.ended_at is not None


def test_a_gap_concerns_every_chain():
    """What is open is not known after a gap; a gap that was seen is none."""
    gap = made("gap", {"from_seq": 3, "to_seq": 9, "dropped": {}, "reason": ""}, seq=9)
    view = viewed(START, made("chain_start", {}, "chain_0", 1), made("chain_start", {}, "chain_1", 2), gap)
    assert (view.gaps, view.by_state) == (1, {"unknown": 2})
    view.apply(made("error", {"error": "e"}, seq=10))
    view.apply(gap)
    assert (view.gaps, view.errors) == (1, 1)


def test_events_of_the_run_that_were_seen_change_nothing():
    """By seq, as with chains."""
    error = made("error", {"error": "no", "error_type": "E", "where": "agent"}, seq=5)
    view = viewed(START, error, error, made("error", {"error": "older"}, seq=3))
    assert (view.errors, view.error["error"]) == (1, "no")


def test_events_of_another_run_change_nothing():
    """A view is of one run."""
    view = viewed(START)
    before = view.to_dict()
    viewed(made("chain_start", {}, "chain_0", 1, run="q"), made("run_end", {}, seq=8, run="q"), view=view)
    assert view.to_dict() == before


def test_a_trainer_tells_the_chains_of_its_rollouts():
    """The advantage of a chain is in an event of the training's run."""
    views = RunViews()
    learned = {
        "train_step": 1,
        "policy_version": 1,
        "metrics": {"loss": 0.5},
        "chains": {"r": {"chain_0": {"advantage": 0.5}}},
    }
    for event in (START, *ended(0, 1.0), made("train_step", learned, run="training", seq=4)):
        views.apply(event)
    assert views.runs["r"].chains["chain_0"].advantage == 0.5
    assert [row["train_step"] for row in views.runs["training"].train_steps] == [1]
    assert views.runs["r"].train_steps == []


def test_chains_beyond_the_limit_are_let_go_and_stay_counted():
    """Of many chains those that ended first go first; totals keep them."""
    events = [
        event
        for i in range(MAX_CHAINS + 10)
        for event in ended(i, float(i < 10), "error" if i < 4 else "answered")
    ]
    view = viewed(made("chain_start", {}, "open"), *events)
    assert (len(view.chains), view.omitted) == (MAX_CHAINS, 11)
    assert "open" in view.chains
    assert view.by_state == {"ended": MAX_CHAINS + 10, "waiting": 1}
    assert (view.failed, view.tokens) == (4, 3 * (MAX_CHAINS + 10))
    assert abs(view.mean_reward - 10 / (MAX_CHAINS + 10)) < 1e-12


def test_runs_and_steps_beyond_the_limit_are_let_go():
    """The runs that ended first go first; of training steps the latest stay."""
    views = RunViews()
    for i in range(MAX_RUNS + 5):
        views.apply(made("run_start", {}, run=f"r{i}"))
        if i:
            views.apply(made("run_end", {}, run=f"r{i}"))
    assert (len(views.runs), views.omitted, "r0" in views.runs, "r1" in views.runs) == (
        MAX_RUNS,
        5,
        True,
        False,
    )
    run = viewed(*(made("train_step", {"train_step": i}) for i in range(MAX_STEPS + 5)))
    assert (len(run.train_steps), run.train_steps[-1]["train_step"]) == (MAX_STEPS, MAX_STEPS + 4)


def test_what_concerns_no_run_changes_nothing():
    """The failure of an observer between runs."""
    views = RunViews()
    views.apply(made("error", {"error": "x"}, run=""))
    assert views.runs == {}


def test_a_row_is_json():
    """What a list of runs shows, its chains counted."""
    row = viewed(START, *ended(0, 1.0), END).to_dict()
    assert msgspec.json.decode(msgspec.json.encode(row)) == row
    assert (row["run_id"], row["by_state"], row["status"]) == ("r", {"ended": 1}, "completed")


def test_conversations_that_ended_are_bounded():
    """The conversations of the chains that ended first are let go; their rows stay, with the end of their answers."""
    text = "x" * 200_000
    events = []
    for i in range(60):
        events.append(
            made(
                "chain_start", {"messages": [{"role": "user", "content": text}], "reference": i}, f"chain_{i}"
            )
        )
        events.append(
            made(
                "chain_end",
                {"finish_reason": "answered", "final_response": text, "reward": 1.0},
                f"chain_{i}",
            )
        )
    view = viewed(*events)
    kept = [chain for chain in view.chains.values() if chain.messages]
    assert len(kept) == MAX_ENDED_WEIGHT // 200_010
    assert kept[-1].chain_id == "chain_59"
    first = view.chains["chain_0"]
    assert (first.messages, first.conversation.omitted, first.reward, first.reference) == ([], 1, 1.0, 0)
    assert (len(first.final_response), first.final_response_omitted) == (4_096, 200_000 - 4_096)


def test_a_long_training_is_bounded():
    """Of many rollouts the latest keep their conversations, more keep their rows, and the earliest go."""
    views, n = RunViews(), 180
    for i in range(n):
        views.apply(made("run_start", {}, run=f"r{i}"))
        for k in range(100):
            views.apply(
                made(
                    "chain_start", {"messages": [{"role": "user", "content": "?"}]}, f"chain_{k}", run=f"r{i}"
                )
            )
            views.apply(made("chain_end", {"finish_reason": "answered"}, f"chain_{k}", run=f"r{i}"))
        views.apply(made("run_end", {}, run=f"r{i}", seq=5))
    assert views.chains == sum(len(run.chains) for run in views.runs.values())
    assert len(views.runs) == MAX_ALL_CHAINS // 100
    assert views.omitted == n - len(views.runs)
    whole = [name for name, run in views.runs.items() if any(chain.messages for chain in run.chains.values())]
    assert whole == [f"r{i}" for i in range(n - WHOLE_RUNS, n)]
