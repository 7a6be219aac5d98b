"""The runs that a server lists in `welcome`: the open ones and the latest ended ones. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.lanes import worst_status
from rollcast.serve.protocol import RunInfo

__all__ = ["KnownRuns", "fitting_names", "fitting_runs"]

TOLD_CHAINS, TOLD_BYTES = 1000, 8192  # of the chains in the answer to `cancel`
MAX_RUNS = 64  # how many runs are remembered, the latest ones
ENDED = ("completed", "cancelled", "failed")


class OpenRun(Protocol):
    """What is needed of a manager's open run."""

    @property
    def parent_run_id(self) -> str | None: ...
    @property
    def expected_chains(self) -> int: ...


class KnownRuns:
    """The runs in `run_start` and `run_end` events, and in gaps that stand for these. Its owner guards it with a lock.

    Attributes:
        complete: whether none was forgotten since there were too many.
    """

    def __init__(self) -> None:
        self.complete = True
        self._runs: OrderedDict[str, RunInfo] = OrderedDict()
        self._unheard: set[str] = set()  # whose end is not asked for
        # The start and the end of each, or the gap that stands for the end, by source and type.
        self._events: dict[str, dict[tuple[str, StreamEventType], StreamEvent]] = {}

    def note(self, event: StreamEvent) -> None:
        """Note that a source has started or ended its part of a run, or that its end was lost."""
        run_id, kind = event.run_id, event.event_type
        events = self._events.setdefault(run_id, {})
        if kind is StreamEventType.RUN_START:  # it may begin once more
            for ended in (StreamEventType.RUN_END, StreamEventType.GAP):
                events.pop((event.source, ended), None)
        events[event.source, kind] = event
        self._update(run_id)
        while len(self._runs) > MAX_RUNS:
            self.complete = False
            del self._events[self._runs.popitem(last=False)[0]]

    def _update(self, run_id: str) -> None:
        known = self._runs.pop(run_id, None)
        starts, ends, gaps = (
            {source: event.data for (source, kind), event in self._events[run_id].items() if kind is wanted}
            for wanted in (StreamEventType.RUN_START, StreamEventType.RUN_END, StreamEventType.GAP)
        )
        parent = known.parent_run_id if known else None
        for data in starts.values():
            parent = data.get("parent_run_id", parent)
        for source in [name for name, data in starts.items() if data.get("leader") in starts]:
            del starts[source]  # its leader tells what the run is
            ends.pop(source, None)
            gaps.pop(source, None)
        over = starts.keys() <= ends.keys() | gaps.keys()
        ended = [data.get("status", "completed") for data in ends.values()]
        lost = [data["run_status"] for source, data in gaps.items() if source not in ends]
        ended += [status if status in ENDED else "unknown" for status in lost]
        status: Any = worst_status(ended) if over else "running"
        chains = sum(data.get("chains", 0) for data in (starts | ends).values())
        self._runs[run_id] = RunInfo(run_id, parent, status, chains)

    def events(self) -> list[StreamEvent]:
        """The starts and the ends of the runs that are remembered, and the gaps that stand for ends."""
        return [event for run_id in self._runs for event in self._events[run_id].values()]

    def listen(self, open_runs: Iterable[str], hears: Callable[[str], bool]) -> None:
        """The ends of open runs are asked for, or no longer; of those that have ended, they are on their way or will never come."""
        for run_id in self._runs.keys() & set(open_runs):
            if hears(run_id):
                self._unheard.discard(run_id)
            else:
                self._unheard.add(run_id)
        self._unheard &= self._runs.keys()

    def gone(self, open_runs: Mapping[str, OpenRun]) -> set[str]:
        """The runs that have ended unheard."""
        return {
            run_id
            for run_id in self._unheard
            if run_id not in open_runs and run_id in self._runs and self._runs[run_id].status == "running"
        }

    def listed(self, open_runs: Mapping[str, OpenRun]) -> list[RunInfo]:
        """Those that ended, and then those that are open now, each in the order in which they were heard of.

        One that may have ended unheard is left out, and one that ended nobody knows how.
        """
        left_out = self.gone(open_runs) | open_runs.keys()
        left_out |= {run_id for run_id, run in self._runs.items() if run.status not in ("running", *ENDED)}
        others = [run for run_id, run in self._runs.items() if run_id not in left_out]
        running = [
            RunInfo(run_id, run.parent_run_id, "running", run.expected_chains)
            for run_id, run in open_runs.items()
        ]
        return others + running


def fitting_runs(runs: Sequence[RunInfo], room: int) -> list[RunInfo]:
    """As many runs as fit in `room` bytes of JSON, in their order; open runs are preferred, then the latest ones."""
    kept: set[int] = set()
    latest_first = sorted(range(len(runs)), key=lambda i: (runs[i].status != "running", -i))
    for i in latest_first:
        room -= len(msgspec.json.encode(runs[i])) + 1
        if room < 0:
            break
        kept.add(i)
    return [run for i, run in enumerate(runs) if i in kept]


def fitting_names(names: Sequence[str]) -> list[str]:
    """The first of the names, as many as fit in any client's message."""
    kept, size = [], 0
    for name in names[:TOLD_CHAINS]:
        size += len(name.encode()) + 3
        if size > TOLD_BYTES:
            break
        kept.append(name)
    return kept
