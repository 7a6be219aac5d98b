"""One run over several processes: what each source emits of it, and when it is over. Pure.

Each source opens the run with a `run_start` of its own, numbers its own events, and ends its part with its own `run_end`, or a `gap`
stands for that. The run is over when every source that opened it has ended; its status is then the worst of theirs.

A source may name a `leader` in its `run_start`, as a worker does that was started for a driver: it ends with the leader at the latest,
and what the run is as a whole, the leader says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rollcast.records.event import StreamEvent, StreamEventType

__all__ = ["Lane", "RunSources", "end_status", "leader_of", "summed_ends", "worst_status"]

T = StreamEventType
_WORST_FIRST = ("failed", "unknown", "cancelled")


class Lane(NamedTuple):
    """What one source emits of one run: the events that one `seq` numbers."""

    run_id: str
    source: str


def end_status(event: StreamEvent) -> str | None:
    """The status with which this event ends its source's part of the run; None if it ends nothing.

    A `gap` stands for an end that was lost.
    """
    data: Any = event.data
    if event.event_type is T.RUN_END:
        return str(data.get("status", "completed"))
    if event.event_type is T.GAP and "run_status" in data:
        return str(data["run_status"])
    return None


def leader_of(start: StreamEvent) -> str | None:
    """The source that this `run_start` names as its leader."""
    data: Any = start.data
    leader = data.get("leader") if data.__class__ is dict else None
    return leader if isinstance(leader, str) and leader != start.source else None


def worst_status(statuses: Iterable[str]) -> str:
    """What a run is, given how its sources ended: `failed` before `unknown`, `cancelled` and `completed`."""
    known = set(statuses)
    return next((status for status in _WORST_FIRST if status in known), "completed")


def summed_ends(ends: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `data` of a `run_end` for a whole run, from those of its sources.

    `mean_reward` is that of all chains if none failed and every source with chains tells one; otherwise it cannot be known from
    the ends alone, and is None.
    """
    if len(ends) == 1:
        return ends[0]
    of_chains = [end for end in ends if end["chains"]]
    chains, failed = (sum(end[name] for end in ends) for name in ("chains", "failed"))
    rewards = [end["mean_reward"] for end in of_chains]
    known = chains and not failed and None not in rewards
    return {
        "status": worst_status(end["status"] for end in ends),
        "chains": chains,
        "failed": failed,
        "mean_reward": sum(end["mean_reward"] * end["chains"] for end in of_chains) / chains
        if known
        else None,
        "completion_tokens": sum(end["completion_tokens"] for end in ends),
        "duration_s": max(end["duration_s"] for end in ends),
    }


class RunSources:
    """The sources of one run, and how each of those that have ended did."""

    __slots__ = ("_ended", "_leaders")

    def __init__(self) -> None:
        self._ended: dict[str, str | None] = {}
        self._leaders: dict[str, str] = {}

    def note(self, event: StreamEvent) -> list[str]:
        """Take an event of the run; returns the sources whose part ends with it.

        A source opens the run with its first event, and once more if it begins after its end.
        """
        source, ended = event.source, self._ended
        if event.event_type is T.LLM_GENERATION_CHUNK and source in ended:
            return []
        status = end_status(event)
        if status is None:
            if event.event_type is T.RUN_START:
                ended[source] = None
                if (leader := leader_of(event)) is not None:
                    self._leaders[source] = leader
            elif source not in ended:
                ended[source] = None
            return []
        if not source and source not in ended:  # an end that does not say whose
            self._ended = dict.fromkeys(ended or ("",), status)
            return list(self._ended)
        led = [name for name, leader in self._leaders.items() if leader == source and ended.get(name) is None]
        for name in (source, *led):
            ended[name] = status
        return [source, *led]

    @property
    def names(self) -> list[str]:
        """The sources, in the order in which they came."""
        return list(self._ended)

    def is_led(self, source: str) -> bool:
        """Whether another source, which was seen, tells what the run is as a whole."""
        return self._leaders.get(source) in self._ended

    @property
    def over(self) -> bool:
        """Whether every source that opened the run has ended."""
        return bool(self._ended) and None not in self._ended.values()

    @property
    def status(self) -> str:
        """`running`, or the worst status once the run is over."""
        ended = [how for name, how in self._ended.items() if how is not None and not self.is_led(name)]
        return worst_status(ended) if self.over else "running"
