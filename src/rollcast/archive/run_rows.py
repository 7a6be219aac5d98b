"""Rows of runs: what happened in each run, the same from a record and from what is in memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.hints import Outcome, summary_of
from rollcast.records.run_view import RunView

__all__ = ["RUN_EVENTS", "RunTally"]

T = StreamEventType
RUN_EVENTS = EventFilter(types=(T.RUN_START, T.RUN_END))
_TOLD = (
    "status", "parent_run_id", "name", "tags", "agent", "model", "backend", "seed", "split", "train_step", "policy_version",
    "expected_chains", "expected_groups", "started_at", "ended_at", "duration_s",
)  # fmt: skip

MAX_OUTCOMES = 40_000  # of chains in the rollouts of trainings, kept to summarize them; those of the earliest rollouts go first
MAX_MODELS = 8  # of a run that are named
SUMMARY_IDS = 4  # chains that are named in a summary


class _Counts:
    """The chains of one run."""

    def __init__(self) -> None:
        self.chains = self.open_chains = self.failed = self.completion_tokens = self.rewarded = 0
        self.reward_sum = 0.0
        self.started_at: float | None = None
        self.models: dict[str, None] = {}  # that the chains named
        self.outcomes: list[Outcome] = []
        self.summarized = True  # whether `outcomes` has all of them

    def add(self, row: dict[str, Any]) -> None:
        self.chains += 1
        self.open_chains += row.get("state") == "running"
        self.failed += row.get("finish_reason") == "error"
        model = row.get("model")
        if isinstance(model, str) and model and len(self.models) <= MAX_MODELS:
            self.models[model] = None
        tokens, reward, started_at = (row.get(name) for name in ("completion_tokens", "reward", "started_at"))
        if isinstance(tokens, int):
            self.completion_tokens += tokens
        if isinstance(reward, int | float):
            self.reward_sum += reward
            self.rewarded += 1
        if isinstance(started_at, int | float) and (self.started_at is None or started_at < self.started_at):
            self.started_at = started_at

    def add_outcome(self, row: dict[str, Any]) -> bool:
        """Keep what a summary of a training step needs to know of the chain; False if it needs nothing."""
        reward = row.get("reward")
        if row.get("state") != "ended" or not isinstance(reward, int | float) or not self.summarized:
            return False
        question = row.get("group_id") or row["chain_id"]
        tokens = row.get("completion_tokens") or 0
        self.outcomes.append(Outcome(row["chain_id"], question, reward, row.get("answer") or "", tokens))
        return True

    def forget_outcomes(self) -> int:
        """Give up the summary, and drop the outcomes; returns how many there were."""
        kept, self.outcomes, self.summarized = len(self.outcomes), [], False
        return kept


class RunTally:
    """What the events of runs and the rows of their chains add up to."""

    def __init__(self) -> None:
        self._views: dict[str, RunView] = {}
        self._counts: dict[str, _Counts] = {}
        self._outcomes = 0

    def event(self, event: StreamEvent) -> None:
        """Take an event that concerns a whole run."""
        if event.run_id and not event.chain_id:
            self._views.setdefault(event.run_id, RunView(event.run_id)).apply(event)

    def chain(self, row: dict[str, Any]) -> None:
        """Take the merged row of a chain, each chain once."""
        counts = self._counts.setdefault(row["run_id"], _Counts())
        counts.add(row)
        if row.get("train_step") is not None and row.get("split") != "eval":
            self._outcomes += counts.add_outcome(row)
            if self._outcomes > MAX_OUTCOMES:
                self._outcomes -= next(
                    each for each in self._counts.values() if each.outcomes
                ).forget_outcomes()

    def rows(self, *, over: bool) -> list[dict[str, Any]]:
        """A row for each run, the newest first. The finished rollout of a training step has a `summary` (`StepSummary`).

        `model` is that of its `run_start`, then those that its chains named.

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
        row["model"] = _models(view.model, counts.models)
        row["sources"] = {
            source: part.status or ("lost" if over else "running") for source, part in view.sources.items()
        }
        if row["started_at"] is None:
            row["started_at"] = counts.started_at
        if counts.outcomes and row["status"] != "running" and counts.chains >= (view.expected_chains or 0):
            summary = summary_of(run_id, counts.outcomes)
            row["summary"] = msgspec.structs.asdict(summary) | {"ids": summary.ids[:SUMMARY_IDS]}
        return row | {
            "chains": counts.chains,
            "open_chains": 0 if over else counts.open_chains,
            "failed": counts.failed,
            "mean_reward": counts.reward_sum / counts.rewarded if counts.rewarded else view.mean_reward_said,
            "completion_tokens": counts.completion_tokens or view.completion_tokens_said or 0,
        }


def _models(told: str | None, named: Iterable[str]) -> str | None:
    """The models of a run in one text; None if none is known."""
    models = list(dict.fromkeys([*([told] if told else []), *named]))
    more = ["…"] if len(models) > MAX_MODELS else []
    return ", ".join([*models[:MAX_MODELS], *more]) or told
