"""Which producers have which runs and chains open, and what is said for one that will not end them itself. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from rollcast.fleet.holes import gap
from rollcast.fleet.sources import Process, Run, Source
from rollcast.records import StreamEvent, StreamEventType
from rollcast.serve.publishing import ProducerLink

__all__ = ["OpenRuns"]

T = StreamEventType
_WITHIN_A_CHAIN = frozenset(T) - {T.RUN_START, T.RUN_END, T.CHAIN_START, T.CHAIN_END, T.GAP}
MOST_ENDED = 65_536  # runs that are remembered as ended


class OpenRuns:
    """The runs that producers have open. A run may have several sources, each with a part of it.

    Args:
        recorded: after a restart of the hub, the last `seq` that its record has of each run and source; None: none.

    Attributes:
        ended: the parts that ended lately: by run and source, the epoch of the process that had the part; empty if it is not known.
    """

    def __init__(self, recorded: Mapping[tuple[str, str], int] | None = None) -> None:
        self._recorded = recorded or {}
        self.ended: dict[tuple[str, str], str] = {}
        self._sources: dict[str, dict[str, Source]] = {}  # by run, and by name: those that told of it

    def note(self, source: Source, process: Process, event: StreamEvent) -> None:
        """Remember which runs and chains the event leaves open."""
        run_id, kind = event.run_id, event.event_type
        if not run_id:
            return
        run = process.runs.get(run_id)
        if run is not None and kind in _WITHIN_A_CHAIN and event.chain_id in run.chains:  # like most events
            run.last_seq = max(run.last_seq, event.seq)
            return
        if run is None:
            run = process.runs[run_id] = Run()
            self._sources.setdefault(run_id, {})[source.name] = source
        run.last_seq = max(run.last_seq, event.seq)
        if kind is T.RUN_START:
            run.leader = event.data.get("leader")
        elif kind is T.CHAIN_END:
            run.chains.discard(event.chain_id)
        elif kind is T.RUN_END or (kind is T.GAP and "run_status" in event.data):
            self._end(source, run_id)
        elif event.chain_id:
            run.chains.add(sys.intern(event.chain_id))

    def give_up(
        self, source: Source, process: Process, reason: str, status: str = "unknown"
    ) -> Iterator[StreamEvent]:
        """Give up a process, which no longer comes back.

        Args:
            source: whose process it is.
            process: whose open runs end.
            reason: what happened to it, as the `gap` says it.
            status: of its part of its runs.

        Returns:
            A `gap` for each run that it had open, which stands for all that it would have told of the run.
        """
        process.lost_at = None
        for run_id, run in list(process.runs.items()):
            yield self.lost_end(run_id, source.name, run.last_seq, reason, status)
            self._leave(source, run_id)

    def lost_end(
        self, run_id: str, source: str, last_seq: int, reason: str, status: str = "unknown"
    ) -> StreamEvent:
        """A `gap` for the end of a source's part of a run, of which this `seq`, or what is recorded, came last."""
        first = max(last_seq, self._recorded.get((run_id, source), -1)) + 1
        return gap(source, run_id, first, first, {}, reason, run_status=status)

    def _end(self, source: Source, run_id: str) -> None:
        """The source has ended its part of a run, and with it the parts that it led."""
        self._leave(source, run_id)
        for led in list(self._sources.get(run_id, {}).values()):
            if any(e.runs[run_id].leader == source.name for e in led.epochs.values() if run_id in e.runs):
                self._leave(led, run_id)

    def _leave(self, source: Source, run_id: str) -> None:
        """The source says nothing more of the run."""
        owner = next((name for name, each in source.epochs.items() if run_id in each.runs), "")
        self.ended[run_id, source.name] = owner
        if len(self.ended) > MOST_ENDED:
            del self.ended[next(iter(self.ended))]
        for process in source.epochs.values():
            process.runs.pop(run_id, None)
        sources = self._sources.get(run_id, {})
        sources.pop(source.name, None)
        if not sources:
            self._sources.pop(run_id, None)

    def is_open(self, run_id: str) -> bool:
        """Whether a producer has told of this run, and it has not ended."""
        return run_id in self._sources

    def has_ended(self, run_id: str, source: str) -> bool:
        """Whether this producer has ended its part of a run, as far back as that is remembered."""
        return (run_id, source) in self.ended

    def sources_of(self, run_id: str) -> list[Source]:
        """The producers that have this run open, connected or not."""
        return list(self._sources.get(run_id, {}).values())

    def links_of(self, run_id: str) -> dict[str, ProducerLink]:
        """The connections of the producers that have this run open, by source."""
        return {each.name: each.link for each in self.sources_of(run_id) if each.link is not None}
