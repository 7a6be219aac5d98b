"""Remembers, by run and source, which events passed through a server, after the history has dropped them. Pure.

So a client whose cursor is gone can be told what it missed, and a client whose filter wants none of it misses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.lanes import Lane, end_status, leader_of
from rollcast.serve.history import Entry, Place, Selector

__all__ = ["PassedRun", "RunLedger"]

_TELLING = frozenset({StreamEventType.RUN_START, StreamEventType.RUN_END, StreamEventType.GAP})
MAX_RUNS = 4096  # runs of several sources count once for each
MAX_PLACES = 32768  # in all runs; with more, the places of the runs that were silent longest are forgotten
BOUND_EVERY = 4096  # events; so many are put aside until they are looked at,
PUT_ASIDE_BYTES = 1 << 20  # or so many bytes of them


class PassedRun:
    """How far a run got on one source.

    Attributes:
        run_id, source: as in its events.
        first, last: the positions of its first and its latest event.
        last_seq: the `seq` of its latest event.
        status: the status in its `run_end`, or in a `gap` that stands for it; None if neither came.
        places: the places of its events, each with the position of its latest event; None: they may be any, up to `last`.
    """

    __slots__ = ("first", "last", "last_seq", "places", "run_id", "source", "status")

    def __init__(self, run_id: str, source: str, first: int) -> None:
        self.run_id = run_id
        self.source = source
        self.first = self.last = first
        self.last_seq = -1
        self.status: str | None = None
        self.places: dict[Place, int] | None = {}

    @property
    def lane(self) -> Lane:
        """The run and the source."""
        return Lane(self.run_id, self.source)

    def has_for(self, selector: Selector, since: int) -> bool:
        """Whether an event that the filter wants, or may want, came at this position or after it."""
        if self.last < since:
            return False
        if self.places is None:
            return selector.filter.wants_gap(self.run_id, self.source)
        return any(at >= since and selector.wants(place) for place, at in self.places.items())


class RunLedger:
    """The runs of a history, as far as they are remembered. Its owner guards it with a lock.

    What comes is only put aside, and looked at once there is much of it or somebody asks: of all the events of one place only the
    last counts.
    """

    def __init__(self) -> None:
        self._runs: dict[Lane, PassedRun] = {}
        self._led: dict[Lane, set[Lane]] = {}  # by leader, what ends with it
        self._new: list[Entry] = []  # not looked at yet
        self._new_from = 0  # the position of the first of them
        self._unbounded = 0  # events since the bounds were last checked
        self._telling: list[StreamEvent] = []  # those of them that tell what becomes of a run
        self._forgotten: list[int] = []  # the last positions of forgotten runs, the latest ones
        self._long_forgotten = (0, -1)  # how many more there are, and the latest of their positions

    def note(self, events: Sequence[StreamEvent], entries: list[Entry], position: int) -> None:
        """Note what came.

        Args:
            events: the events that came, perhaps without tokens.
            entries: as which all of them are kept.
            position: of the first of those.
        """
        new = self._new
        if position != self._new_from + len(new):
            self._look()
            self._new_from = position
        new += entries
        self._telling += [event for event in events if event.event_type in _TELLING]
        if self._unbounded + len(new) >= BOUND_EVERY:
            self._look()
            self._unbounded = 0
            self._bound()
        elif new and new[-1].before - new[0].before >= PUT_ASIDE_BYTES:
            self._look()

    def _look(self) -> None:
        """Take what was put aside."""
        entries, position = self._new, self._new_from
        if not entries:
            return
        runs, begun = self._runs, None
        # The last of each place. A place is kept once, so its `id` names it; its hash takes five times as long.
        last = {id(entry.place): at for at, entry in enumerate(entries)}
        run: PassedRun | None = None
        for at in sorted(last.values()):
            entry = entries[at]
            place = entry.place
            if run is None or place.run_id != run.run_id or place.source != run.source:
                run = runs.get((place.run_id, place.source))  # type: ignore[call-overload]  # as good as a Lane
                if run is None:
                    begun = begun or _firsts(entries)
                    lane = place.lane
                    run = runs[lane] = PassedRun(*lane, position + begun[lane])
            run.last = position + at
            if run.places is not None:
                run.places[place] = position + at
            run.last_seq = entry.seq
        telling, self._telling = self._telling, []
        for event in telling:
            self._note_status(runs[Lane(event.run_id, event.source)], event)
        self._new_from = position + len(entries)
        self._unbounded += len(entries)
        entries.clear()

    def _note_status(self, run: PassedRun, event: StreamEvent) -> None:
        if event.event_type is StreamEventType.RUN_START and (leader := leader_of(event)) is not None:
            self._led.setdefault(Lane(event.run_id, leader), set()).add(run.lane)
        if (status := end_status(event)) is not None:
            for ended in (run.lane, *self._led.pop(run.lane, ())):
                if ended in self._runs:
                    self._runs[ended].status = status

    def _bound(self) -> None:
        runs = sorted(self._runs.values(), key=lambda run: (run.status is None, run.last))
        for run in runs[: max(0, len(runs) - MAX_RUNS)]:
            del self._runs[run.lane]
            self._forgotten.append(run.last)
        self._led = {leader: led for leader, led in self._led.items() if leader in self._runs}
        self._forgotten.sort()
        older = self._forgotten[:-MAX_RUNS]
        if older:
            self._forgotten = self._forgotten[-MAX_RUNS:]
            self._long_forgotten = (self._long_forgotten[0] + len(older), older[-1])
        places = sum(len(run.places or ()) for run in runs)
        for run in runs:
            if places <= MAX_PLACES:
                break
            places -= len(run.places or ())
            run.places = None

    def run(self, lane: Lane) -> PassedRun | None:
        """What is remembered of a run on one source."""
        self._look()
        return self._runs.get(lane)

    def passed(self, selector: Selector, since: int) -> list[PassedRun]:
        """The runs with events that the filter wants at this position or after it; the earliest first."""
        self._look()
        return [run for run in self._runs.values() if run.has_for(selector, since)]

    def forgotten(self, since: int) -> int:
        """At most how many forgotten runs had events at this position or after it."""
        count, latest = self._long_forgotten
        return sum(last >= since for last in self._forgotten) + (count if latest >= since else 0)


def _firsts(entries: Sequence[Entry]) -> dict[Lane, int]:
    """By run and source, which of the entries is its first."""
    of_places = {id(entries[at].place): at for at in range(len(entries) - 1, -1, -1)}
    firsts: dict[Lane, int] = {}
    for at in sorted(of_places.values()):
        firsts.setdefault(entries[at].place.lane, at)
    return firsts
