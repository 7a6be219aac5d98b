"""What a rollout's rewards tell, for all trainers."""

from __future__ import annotations

from collections.abc import Sequence

from rollcast.errors import BackendError, RewardError
from rollcast.records import Trajectory
from rollcast.rollout import RunResult

__all__ = ["cancelled_by_watcher", "check_scored", "success"]


def cancelled_by_watcher(result: RunResult, where: str) -> str | None:
    """A sentence that says what a watcher cancelled, if nothing can be learned from the rollout; None if the training goes on.

    Args:
        result: the rollout's result.
        where: a place such as `step 3`.
    """
    if result.status == "cancelled":
        return f"a watcher cancelled the rollout of {where}, and the training ends with it"
    if result.trajectories and all(t.finish_reason == "cancelled" for t in result.trajectories):
        count = len(result.trajectories)
        chains = "the only chain" if count == 1 else f"all {count} chains"
        return f"a watcher cancelled {chains} of {where}, and the training ends with {'it' if count == 1 else 'them'}"
    return None


def check_scored(trajectories: Sequence[Trajectory], where: str) -> None:
    """Raise if no chain was scored; the next step would not fare better.

    Args:
        trajectories: a rollout's trajectories.
        where: a place such as `step 3`, for the message.

    Raises:
        BackendError: every chain failed.
        RewardError: no chain has a reward.
    """
    if all(t.finish_reason == "error" for t in trajectories):
        raise BackendError(
            f"all {len(trajectories)} chains of {where} failed; the first says: {trajectories[0].error}"
        )
    if all(t.reward is None for t in trajectories):
        why = next((f"the first says: {t.error}" for t in trajectories if t.error), None)
        raise RewardError(
            f"none of the {len(trajectories)} chains of {where} has a reward; "
            + (why or f"the first one's finish reason is {trajectories[0].finish_reason}")
        )


def success(trajectories: Sequence[Trajectory]) -> float:
    """The share of chains with a reward of 1 or more."""
    return sum(t.reward is not None and t.reward >= 1 for t in trajectories) / len(trajectories)
