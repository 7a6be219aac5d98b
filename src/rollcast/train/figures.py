"""The figures of a training step's rollout, computed once for both trainers: ends, lengths, tools, and a reward's own metrics.

Each is a mean over the step's chains, so that means over several steps or processes are right too; those in `maxima` are not.
They stand in a `train_step` event's `metrics`, in TensorBoard and, under their own names, in Prometheus. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import get_args

from rollcast.records import Trajectory
from rollcast.records.event import ChainFinishReason
from rollcast.records.view_parts import FAILED

__all__ = ["UNKNOWN_TOOL", "chain_figures", "maxima", "means", "rollout_figures"]

UNKNOWN_TOOL = "unknown"  # all names that a model invents
MOST_METRICS = 64  # of a reward's own
_ENDS = [reason for reason in get_args(ChainFinishReason) if reason != "unknown"]


def chain_figures(trajectory: Trajectory, tools: Collection[str]) -> dict[str, float]:
    """The figures of one chain.

    `finish/REASON` is 1 for its finish reason and 0 for the others; `length/tokens` and `length/turns` are what it sampled,
    `length/cut_turns` how many turns ran out of tokens; `tool/NAME/calls` and `tool/NAME/failed` count the calls of each tool, and
    those with status `error` or `timeout`; `reward/steps` is the sum of its rewards of steps, if it has any; `metrics/NAME` are
    the numbers that its reward gave beside itself.

    Args:
        trajectory: the chain, which has ended.
        tools: the names of the agent's tools; calls of others count as those of `unknown`.
    """
    figures = {f"finish/{reason}": float(trajectory.finish_reason == reason) for reason in _ENDS}
    figures["length/tokens"] = float(trajectory.completion_tokens)
    figures["length/turns"] = float(len(trajectory.turns))
    figures["length/cut_turns"] = float(sum(turn.finish_reason == "length" for turn in trajectory.turns))
    for name in tools:
        figures[f"tool/{name}/calls"] = figures[f"tool/{name}/failed"] = 0.0
    for record in trajectory.tool_calls:
        name = record.call.tool_name if record.call.tool_name in tools else UNKNOWN_TOOL
        for what, count in (("calls", 1), ("failed", int(record.status in FAILED))):
            figures[f"tool/{name}/{what}"] = figures.get(f"tool/{name}/{what}", 0.0) + count
    if trajectory.step_rewards:
        figures["reward/steps"] = sum(each.reward for each in trajectory.step_rewards)
    for name, value in list(trajectory.metrics.items())[:MOST_METRICS]:
        if isinstance(value, int | float) and math.isfinite(value):
            figures[f"metrics/{name}"] = float(value)
    return figures


def means(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the chains that have it, in the order in which names first come."""
    values: dict[str, list[float]] = {}
    for of_chain in figures:
        for name, value in of_chain.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def maxima(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The longest of the chains, in tokens and in turns."""
    return {
        "length/tokens_max": float(max((t.completion_tokens for t in trajectories), default=0)),
        "length/turns_max": float(max((len(t.turns) for t in trajectories), default=0)),
    }


def rollout_figures(trajectories: Sequence[Trajectory], tools: Collection[str]) -> dict[str, float]:
    """The figures of a rollout: `means` over its chains, and `maxima`."""
    return means(chain_figures(t, tools) for t in trajectories) | maxima(trajectories)
