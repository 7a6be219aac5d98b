"""Rows of runs: what happened in each run, the same from a record and from what is in memory. Pure."""

from __future__ import annotations

from typing import Any

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.run_view import RunView

__all__ = ["RUN_EVENTS", "RunTally"]

T = StreamEventType
RUN_EVENTS = EventFilter(types=(T.RUN_START, T.RUN_END))
_TOLD = (
    "status", "parent_run_id", "name", "tags", "agent", "model", "backend", "seed", "split", "train_step", "policy_version",
    "expected_chains", "expected_groups", "started_at", "ended_at", "duration_s",
)  # fmt: skip


class _Counts:
    """The chains of one run."""

    def __init__(self) -> None:
        self.chains = self.open_chains = self.failed = self.completion_tokens = self.rewarded = 0
        self.reward_sum = 0.0
        self.started_at: float | None = None

    def add(self, row: dict[str, Any]) -> None:
        self.chains += 1
        self.open_chains += row.get("state") == "running"
        self.failed += row.get("finish_reason") == "error"
        tokens, reward, started_at = (row.get(name) for name in ("completion_tokens", "reward", "started_at"))
        if isinstance(tokens, int):
            self.completion_tokens += tokens
        if isinstance(reward, int | float):
            self.reward_sum += reward
            self.rewarded += 1
        if isinstance(started_at, int | float) and (self.started_at is None or started_at < self.started_at):
            self.started_at = started_at


class RunTally:
    """What the events of runs and the rows of their chains add up to."""

    def __init__(self) -> None:
        self._views: dict[str, RunView] = {}
        self._counts: dict[str, _Counts] = {}

    def event(self, event: StreamEvent) -> None:
        """Take an event that concerns a whole run."""
        if event.run_id and not event.chain_id:
            self._views.setdefault(event.run_id, RunView(event.run_id)).apply(event)

    def chain(self, row: dict[str, Any]) -> None:
        """Take the merged row of a chain, each chain once."""
        self._counts.setdefault(row["run_id"], _Counts()).add(row)

    def rows(self, *, over: bool) -> list[dict[str, Any]]:
        """A row for each run, the newest first.

        Args:
            over: whether no further events come, so that a run without an end has lost it.
        """
        latest_first = reversed(dict.fromkeys([*self._views, *self._counts]))
        rows = [self._row(name, over=over) for name in latest_first]
        return sorted(rows, key=lambda row: -(row["started_at"] or 0.0))

    def _row(self, run_id: str, *, over: bool) -> dict[str, Any]:
        view, counts = self._views.get(run_id, RunView(run_id)), self._counts.get(run_id, _Counts())
        row: dict[str, Any] = {"run_id": run_id} | {name: getattr(view, name) for name in _TOLD}
        if view.ended_at is None and view.status in ("unknown", "running"):
            row["status"] = "lost" if over else "running"
        if row["started_at"] is None:
            row["started_at"] = counts.started_at
        return row | {
            "chains": counts.chains,
            "open_chains": 0 if over else counts.open_chains,
            "failed": counts.failed,
            "mean_reward": counts.reward_sum / counts.rewarded if counts.rewarded else view.mean_reward_said,
            "completion_tokens": counts.completion_tokens or view.completion_tokens_said or 0,
        }
