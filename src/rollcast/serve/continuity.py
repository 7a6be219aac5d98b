"""Keeps track of a client's runs over any number of connections, and makes a `gap` for what it missed. Pure.

    welcome ─▶ subscribed ─▶ gaps that are known at once
               batch      ─▶ its events, each after the gap that it shows

A server says what is missing (`Subscribed.lost`). For one that cannot, such as those of 0.1, this is worked out from what was
known before: the runs that were open, and the runs that `welcome` lists.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.lanes import end_status
from rollcast.serve.protocol import LostRun, RunInfo, Subscribed

__all__ = ["MAX_ENDED_RUNS", "Continuity"]

T = StreamEventType
Key = tuple[str, str]  # source, run_id

MAX_ENDED_RUNS = 4096  # how many ended runs are remembered, the latest ones
GONE = "the server no longer had what came while the connection was down"
UNTOLD = f"{GONE}, and does not say what it was"
ANOTHER = "the server is another one than before, and does not know what came while the connection was down"
EVERYTHING = EventFilter()
UNKNOWN = "how many events are missing is not known"


class Continuity:
    """The runs of one subscription.

    Args:
        filter: which events are wanted.
        since: what was first asked for: `live`, `start` or a cursor.
        max_open: how many open runs are remembered, since a filter may hide that they end.
    """

    def __init__(self, filter: EventFilter, since: str, max_open: int) -> None:
        self.last: dict[Key, int] = {}  # seq of the last event of each open run
        self._filter = filter
        self._max_open = max_open
        self._holes: set[Key] = set()  # open runs of which something may be missing before their next event
        self._unheard: set[str] = set()  # open runs that began unseen, by id; the same of them
        # What ended: a run on one source, or on whichever it has, as (None, run_id). True: the end was seen, or a gap told of it;
        # False: the filter hides it, and `welcome` lists it.
        self._ended: OrderedDict[tuple[str | None, str], bool] = OrderedDict()
        self._listed: dict[str, str] = {}  # the status of each run that `welcome` lists
        self._first = True
        self._since = since
        self._why = GONE
        self._owed = False  # events are missing, and no gap has said so yet

    # -- what the server says of itself -----------------------------------------------------------------------------------

    def welcomed(self, runs: Iterable[RunInfo]) -> None:
        """Take the runs that the server knows."""
        self._listed = {run.run_id: run.status for run in runs}
        if self._first and self._since != "start":  # what ended before this client connected is not missing
            # After a cursor it may still come.
            self._remember_ended(self._listed_ended(), seen=self._since == "live")
        self._first = False

    def subscribed(self, answer: Subscribed) -> list[StreamEvent]:
        """Take the answer to `subscribe`; returns the gaps that are known at once."""
        self._owed = False
        self._unheard.clear()
        if answer.recovered:
            hidden = (run_id for run_id in self._listed_ended() if not self._hears_end(run_id))
            self._remember_ended(hidden, seen=False)  # nothing else will tell
            return []
        self._why = UNTOLD if answer.lost is None else ANOTHER if answer.began_anew else GONE
        whole = answer.lost is not None and not answer.began_anew and not answer.lost_more
        going_on = {run_id for run_id, status in self._listed.items() if status == "running"}
        self._holes = {key for key in self.last if key[1] in going_on}
        if answer.lost is None:
            known = {run_id for _, run_id in (*self.last, *self._ended)}
            self._unheard = going_on - known
        if whole and self._filter != EVERYTHING:  # else what the filter leaves out would look like a gap
            self._holes.clear()
        gaps = self._gaps_of_known(answer.lost or [], whole=whole)
        gaps += self._gaps_told(answer.lost or [])
        gaps += self._gaps_of_unheard(told=answer.lost is not None)
        if answer.lost_more:
            more = f"{answer.lost_more:,} further runs" if answer.lost_more > 1 else "another run"
            gaps.append(self._gap(("", ""), 0, 0, f"{self._why}: events of {more}; {UNKNOWN}"))
        self._owed = not whole and not gaps
        return gaps

    def _gaps_of_known(self, lost: list[LostRun], *, whole: bool) -> list[StreamEvent]:
        """Gaps for runs that were open and have ended, and that the server does not list; none if `lost` is complete."""
        told = {(run.source, run.run_id) for run in lost}
        gaps = []
        for key in [k for k in self.last if k not in told and self._listed.get(k[1]) != "running"]:
            last = self.last.pop(key)
            self._note_ended(key, seen=True)
            if not whole:
                reason = f"{self._why}; the run has ended meanwhile, and {UNKNOWN}"
                gaps.append(self._gap_at_end(key, last + 1, reason))
        return gaps

    def _gaps_told(self, lost: list[LostRun]) -> list[StreamEvent]:
        """Gaps for the runs that the server says lack events."""
        gaps = []
        for run in lost:
            key = (run.source, run.run_id)
            ended = None if run.status == "running" else run.status
            first = max(self.last.get(key, -1) + 1, run.from_seq or 0)
            if self.has_ended(key) or (run.to_seq < first and ended is None):
                continue  # it came by another way
            reason = self._why if ended is None else f"{self._why}; run {run.run_id} has ended ({ended})"
            gaps.append(self._gap(key, first, max(first, run.to_seq), reason, ended))
            self._heard(key, run.to_seq, ended=ended is not None)
            if ended is None and run.run_id:
                self._holes.add(key)  # its snapshots may be a little newer than this answer
        return gaps

    def _gaps_of_unheard(self, *, told: bool) -> list[StreamEvent]:
        """Gaps for runs that ended without any event having come, unless the server lists what is missing."""
        known = {run_id for _, run_id in self._ended}
        unheard = [run_id for run_id in self._listed_ended() if run_id not in known]
        self._remember_ended(unheard)
        return [
            self._gap_at_end(
                ("", run_id), 0, f"{self._why}; run {run_id} has passed meanwhile, and {UNKNOWN}"
            )
            for run_id in unheard
            if not told and self._filter.wants_gap(run_id)
        ]

    def _listed_ended(self) -> list[str]:
        return [run_id for run_id, status in self._listed.items() if status != "running"]

    def _hears_end(self, run_id: str) -> bool:
        """Whether the filter lets the end of this run pass, on some source."""
        return any(
            part.wants(T.RUN_END, "", None, run_id, source)
            for part in self._filter.alternatives
            for source in part.sources or ("",)
        )

    def has_ended(self, key: Key) -> bool:
        """Whether the end of this run on this source was seen, or a gap told of it."""
        return self._ended.get(key, False) or self._ended.get((None, key[1]), False)

    # -- what comes --------------------------------------------------------------------------------------------------------

    def arrived(self, events: list[StreamEvent]) -> list[StreamEvent]:
        """The events of a batch, each after a `gap` if events are missing before it."""
        out = [new for event in events for new in self._with_gap(event)]
        if self._owed:
            self._owed = False
            told = len(out) > len(events)  # a gap that the server sent tells of something else
            if not told or self._holes or self._unheard:  # of these runs nothing more may come
                out.insert(0, self._gap(("", ""), 0, 0, f"{self._why}; {UNKNOWN}"))
        return out

    def _with_gap(self, event: StreamEvent) -> list[StreamEvent]:
        key = (event.source, event.run_id)
        events = [event]
        if key in self._holes or event.run_id in self._unheard:
            self._holes.discard(key)
            self._unheard.discard(event.run_id)
            first = self.last.get(key, -1) + 1
            if event.event_type is T.CHAIN_SNAPSHOT:
                last = event.seq
            elif event.event_type is T.GAP:  # which says the rest itself
                said = event.data.get("from_seq")  # an unchecked client may be sent anything
                last = said - 1 if isinstance(said, int) else event.seq - 1
            else:
                last = event.seq - 1
            if last >= first:
                events.insert(0, self._gap(key, first, last, self._why))
        ended = end_status(event) is not None
        self._heard(key, event.seq, ended=ended)
        return events

    def _heard(self, key: Key, seq: int, *, ended: bool) -> None:
        """Note how far a run got. The latest run comes last in the dict."""
        last = self.last.pop(key, -1)
        if ended:
            self._holes.discard(key)
            self._note_ended(key, seen=True)
        elif key[1]:
            self.last[key] = max(last, seq)
            if len(self.last) > self._max_open:
                forgotten = next(iter(self.last))
                del self.last[forgotten]
                self._holes.discard(forgotten)

    def _remember_ended(self, run_ids: Iterable[str], *, seen: bool = True) -> None:
        """Note that these runs have ended on all their sources."""
        for run_id in run_ids:
            self._note_ended((None, run_id), seen=seen)

    def _note_ended(self, key: tuple[str | None, str], *, seen: bool) -> None:
        self._ended[key] = seen or self._ended.get(key, False)
        self._ended.move_to_end(key)
        while len(self._ended) > MAX_ENDED_RUNS:
            self._ended.popitem(last=False)

    # -- gaps --------------------------------------------------------------------------------------------------------------

    def _gap_at_end(self, key: Key, first: int, reason: str) -> StreamEvent:
        """A gap for a run that has ended; its last `seq` is not known."""
        status = self._listed.get(key[1], "unknown")
        return self._gap(key, first, first, reason, status)

    @staticmethod
    def _gap(key: Key, first: int, last: int, reason: str, run_status: str | None = None) -> StreamEvent:
        source, run_id = key
        data = {"from_seq": first, "to_seq": last, "dropped": {}, "reason": reason}
        if run_status is not None:
            data["run_status"] = run_status
        return StreamEvent(T.GAP, "", time.time(), data, seq=last, run_id=run_id, source=source)
