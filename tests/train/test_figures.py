"""The figures of a training step's rollout: computed in one place, for both trainers."""

import pytest

from rollcast.records import StepReward, ToolCall, ToolRecord, Trajectory, Turn
from rollcast.train.figures import chain_figures, maxima, means, rollout_figures


def turn(step, tokens, reason="stop", *calls):
    """A turn of so many tokens; calls are (tool, status)."""
    tools = [ToolRecord(ToolCall(f"c{i}", name, {}), status=status) for i, (name, status) in enumerate(calls)]
    return Turn(step, finish_reason=reason, completion_tokens=tokens, tools=tools)


def chain(*turns, **about):
    """A chain that has ended."""
    return Trajectory("r", "chain_0", "group_0", turns=list(turns), **({"finish_reason": "answered"} | about))


def test_of_one_chain():
    """How it ended, what it sampled, what each tool did, and what its reward gave."""
    calls = (("look", "success"), ("look", "timeout"), ("look", "cancelled"), ("made_up", "error"))
    figures = chain_figures(
        chain(
            turn(1, 5, "tool_call", *calls), turn(2, 7, "length"), finish_reason="max_tokens",
            metrics={"exact": True, "score": 0.5, "note": "text", "odd": float("nan")},
            step_rewards=[StepReward(1, 0.25), StepReward(2, 0.5)],
        ),
        ["look", "idle"],
    )  # fmt: skip
    ends = {name: value for name, value in figures.items() if name.startswith("finish/")}
    assert ends == {
        "finish/answered": 0, "finish/max_steps": 0, "finish/max_tokens": 1, "finish/terminal_tool": 0, "finish/cancelled": 0,
        "finish/error": 0,
    }  # fmt: skip
    assert {name: value for name, value in figures.items() if name not in ends} == {
        "length/tokens": 12, "length/turns": 2, "length/cut_turns": 1, "tool/look/calls": 3, "tool/look/failed": 1,
        "tool/idle/calls": 0, "tool/idle/failed": 0, "tool/unknown/calls": 1, "tool/unknown/failed": 1, "reward/steps": 0.75,
        "metrics/exact": 1, "metrics/score": 0.5,
    }  # fmt: skip
    assert {type(value) for value in figures.values()} == {float}


def test_of_a_rollout():
    """Means over the chains that have a figure, and the longest of them."""
    chains = [
        chain(turn(1, 4, "tool_call", ("look", "error")), turn(2, 2), metrics={"exact": 1}),
        chain(turn(1, 10), finish_reason="error"),
    ]
    figures = rollout_figures(chains, {"look"})
    assert (figures["finish/answered"], figures["finish/error"]) == (0.5, 0.5)
    assert (figures["length/tokens"], figures["length/tokens_max"]) == (8, 10)
    assert (figures["length/turns"], figures["length/turns_max"]) == (1.5, 2)
    assert (figures["tool/look/calls"], figures["tool/look/failed"]) == (0.5, 0.5)
    assert figures["metrics/exact"] == 1
    assert figures == means(chain_figures(t, {"look"}) for t in chains) | maxima(chains)


def test_a_chain_that_never_began_has_figures_too():
    """It was cancelled before its first turn."""
    figures = rollout_figures([chain(finish_reason="cancelled")], [])
    assert figures["finish/cancelled"] == 1
    assert figures["length/tokens_max"] == 0


def test_a_rewards_own_metrics_are_bounded():
    """However many names it makes up for one chain."""
    many = {f"m{i}": i for i in range(500)}
    figures = chain_figures(chain(turn(1, 1), metrics=many), [])
    assert sum(name.startswith("metrics/") for name in figures) == 64


@pytest.mark.parametrize("tools", [[], {"look": object()}, ("look",)])
def test_tools_may_be_any_collection_of_names(tools):
    """Such as an agent's own dict."""
    figures = chain_figures(chain(turn(1, 1, "tool_call", ("look", "success"))), tools)
    assert figures["tool/look/calls" if tools else "tool/unknown/calls"] == 1
