"""One run over several processes: what each source emits of it, and when it is over. Pure.

Each source opens the run with a `run_start` of its own, numbers its own events, and ends its part with its own `run_end`, or a `gap`
stands for that. The run is over when every source that opened it has ended; its status is then the worst of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from rollcast.records.event import StreamEvent, StreamEventType

__all__ = ["Lane", "RunSources", "end_status", "worst_status"]

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


def worst_status(statuses: Iterable[str]) -> str:
    """What a run is, given how its sources ended: `failed` before `unknown`, `cancelled` and `completed`."""
    known = set(statuses)
    return next((status for status in _WORST_FIRST if status in known), "completed")


class RunSources:
    """The sources of one run, and how each of those that have ended did."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        self._ended: dict[str, str | None] = {}

    def note(self, event: StreamEvent) -> None:
        """Take an event of the run. A source opens the run with its first event, and once more if it begins after its end."""
        source = event.source
        if event.event_type is T.LLM_GENERATION_CHUNK and source in self._ended:
            return
        status = end_status(event)
        if status is None:
            if source not in self._ended or event.event_type is T.RUN_START:
                self._ended[source] = None
        elif source in self._ended or source:
            self._ended[source] = status
        else:  # an end that does not say whose
            self._ended = dict.fromkeys(self._ended or ("",), status)

    @property
    def names(self) -> list[str]:
        """The sources, in the order in which they came."""
        return list(self._ended)

    @property
    def over(self) -> bool:
        """Whether every source that opened the run has ended."""
        return bool(self._ended) and None not in self._ended.values()

    @property
    def status(self) -> str:
        """`running`, or the worst status once the run is over."""
        ended = [status for status in self._ended.values() if status is not None]
        return worst_status(ended) if self.over else "running"
