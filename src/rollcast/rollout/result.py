"""The result of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from rollcast.records import Trajectory
from rollcast.records.event import RunStatus
from rollcast.rollout.workers import first_attempt

__all__ = ["RunResult"]


class RunResult(msgspec.Struct):
    """The trajectories of one run, in the order of their chain ids: rows in order, then repeats.

    Attributes:
        run_id: the run's id, which its events carry.
        status: `completed` (even if chains failed), `cancelled` or `failed`.
        seed: what to pass to get the same trajectories again.
        trajectories: one per chain.
        duration_s: how long the run took, in seconds.
        record: the folder of its record, if it was run with `record=`.
    """

    run_id: str
    seed: int
    status: RunStatus = "completed"
    trajectories: list[Trajectory] = []
    duration_s: float = 0.0
    record: Path | None = None

    def __repr__(self) -> str:
        mean = "" if self.mean_reward is None else f", mean reward {self.mean_reward:.3g}"
        return f"<RunResult {self.run_id}: {self.status}, {len(self)} chains{mean}, seed {self.seed}>"

    def __iter__(self) -> Iterator[Trajectory]:
        return iter(self.trajectories)

    def __len__(self) -> int:
        return len(self.trajectories)

    def __getitem__(self, chain_id: str) -> Trajectory:
        """The trajectory of a chain. One that ran again elsewhere, `chain_5.2`, is also found as `chain_5`.

        Raises:
            KeyError: there is no such chain.
        """
        for trajectory in self.trajectories:
            if chain_id in (trajectory.chain_id, first_attempt(trajectory.chain_id)):
                return trajectory
        raise KeyError(chain_id)

    @property
    def groups(self) -> dict[str, list[Trajectory]]:
        """The repeats of each row, by group id."""
        groups: dict[str, list[Trajectory]] = {}
        for trajectory in self.trajectories:
            groups.setdefault(trajectory.group_id or "", []).append(trajectory)
        return groups

    @property
    def rewards(self) -> list[float | None]:
        """One reward per chain; None if there is none or it failed."""
        return [t.reward for t in self.trajectories]

    @property
    def mean_reward(self) -> float | None:
        """The mean over the chains that have a reward; None if there are none."""
        rewards = [r for r in self.rewards if r is not None]
        return sum(rewards) / len(rewards) if rewards else None

    @property
    def failed(self) -> list[Trajectory]:
        """The chains that ended with an error."""
        return [t for t in self.trajectories if t.finish_reason == "error"]

    @property
    def unscored(self) -> list[Trajectory]:
        """The chains whose reward failed; `error` of each says why."""
        return [t for t in self.trajectories if t.error is not None and t.finish_reason != "error"]

    @property
    def completion_tokens(self) -> int:
        """Sampled tokens of all chains."""
        return sum(t.completion_tokens for t in self.trajectories)
