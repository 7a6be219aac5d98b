"""Which runs a server knows, for `welcome`: the open ones, and the latest of those that ended. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.serve.protocol import RunInfo

__all__ = ["KnownRuns", "fitting_runs"]

MAX_RUNS = 64  # that are remembered of those that ended, the latest ones


class OpenRun(Protocol):
    """A run as its manager has it."""

    @property
    def parent_run_id(self) -> str | None: ...
    @property
    def expected_chains(self) -> int: ...


class KnownRuns:
    """What `run_start` and `run_end` events told. Whoever owns it guards it."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, RunInfo] = OrderedDict()

    def note(self, event: StreamEvent) -> None:
        """A run has started or ended."""
        data = event.data
        known = self._runs.pop(event.run_id, None)
        if event.event_type is StreamEventType.RUN_START:
            info = RunInfo(event.run_id, data.get("parent_run_id"), "running", data.get("chains", 0))
        else:
            parent = known.parent_run_id if known else None
            info = RunInfo(event.run_id, parent, data.get("status", "completed"), data.get("chains", 0))
        self._runs[event.run_id] = info
        while len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)

    def forget(self, run_id: str) -> None:
        """It is not known how the run ended."""
        self._runs.pop(run_id, None)

    def listed(self, open_runs: Mapping[str, OpenRun]) -> list[RunInfo]:
        """Those that ended, and then those that are open now, each in the order in which they were heard of."""
        others = [info for run_id, info in self._runs.items() if run_id not in open_runs]
        running = [
            RunInfo(run_id, run.parent_run_id, "running", run.expected_chains)
            for run_id, run in open_runs.items()
        ]
        return others + running


def fitting_runs(runs: Sequence[RunInfo], room: int) -> list[RunInfo]:
    """As many of the runs as have their JSON in `room` bytes, in their order: those that run go first, then the latest."""
    kept: set[int] = set()
    latest_first = sorted(range(len(runs)), key=lambda i: (runs[i].status != "running", -i))
    for i in latest_first:
        room -= len(msgspec.json.encode(runs[i])) + 1
        if room < 0:
            break
        kept.add(i)
    return [run for i, run in enumerate(runs) if i in kept]
