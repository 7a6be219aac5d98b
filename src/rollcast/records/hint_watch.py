"""Tells when a hint appears and when it goes, from the events of runs. The console, alerts and metrics all use it.

It is pure: the same events give the same changes at the same places, since `take` reads the time from the events. A caller that
watches a live run may also call `look` with the time that it is, so that a run from which nothing comes is noticed.

A hint must hold for two seconds before it appears, and must be untrue for ten before it goes, so that none flickers; what is true
at the end of a run appears at once. The runs of a training follow each other quickly, and each knows little while it is young. There
a hint appears if three rollouts in a row end with it, or one shows it for 30 seconds, and it goes after three that end without it.
Hints about single groups are left out of trainings: every rollout has other groups.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable

import msgspec

from rollcast.records.event import StreamEvent, StreamEventType
from rollcast.records.hint import Hint
from rollcast.records.hint_index import HintIndex
from rollcast.records.hints import StepSummary, summary, trend_hints
from rollcast.records.run_view import CLOSED, RunView, RunViews
from rollcast.records.view_parts import moment

__all__ = ["HINT_EVENTS", "HintChange", "HintWatch"]

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK

# What hints are found from. Chunks only add that a generating chain is not quiet.
HINT_EVENTS = (
    T.RUN_START, T.RUN_END, T.CHAIN_START, T.CHAIN_END, T.LLM_GENERATION_START, T.LLM_GENERATION_END, T.TOOL_CALL_START,
    T.TOOL_OBSERVATION, T.TOOL_CALL_END, T.REWARD,
)  # fmt: skip

HOLD_S = 2.0  # a hint appears after this
GONE_S = 10.0  # and goes after this
HOLD_IN_ROLLOUT_S = 30.0  # in one rollout of a training
ROLLOUTS = 3  # in a row, to appear or to go

LOOK_S = 1.0  # between two looks at the open runs, on the clock of the events; longer with many chains
CHAINS_PER_LOOK_S = 1_000  # a look at 1,000 chains takes about 4 ms
CLOCK_BACK_S = 60.0  # a clock that went back by more was set
EVENTS_AFTER_CLOCK_BACK = 64  # so that clocks that disagree cannot ask for a look at each event

MAX_CHAINS = 16_000  # that are followed at once, in all runs; less than the number at which `RunViews` drops whole runs
MAX_STEPS = 300  # steps of a training that trends are found in, the latest
MAX_SCOPES = 512
MAX_ENDED = 4_096  # ids of runs that have ended


class HintChange(msgspec.Struct, frozen=True):
    """A hint that has appeared, or that has gone.

    Attributes:
        hint: the hint; of one that has gone, as it was last true.
        appeared: False: it has gone.
        at: when, in seconds since the epoch on the clock of the events.
        id: the same for a hint when it appears, when it goes and when it comes again; in a training also from one rollout to the
            next.
    """

    hint: Hint
    appeared: bool
    at: float
    id: str


class _Entry(msgspec.Struct):
    """What is known about one hint of a scope.

    Attributes:
        id: as in its changes.
        since: when it was first true without a break.
        seen: when it was last true.
        shown: whether it has appeared.
        rounds: how many rollouts in a row ended with it; `missed`: without it.
    """

    hint: Hint
    id: str
    since: float
    seen: float
    shown: bool = False
    rounds: int = 0
    missed: int = 0


class _Scope(msgspec.Struct):
    """What hints are compared over: one run, or all rollouts of one split in a training."""

    name: tuple[str, str]  # the run or the training, and the split
    training: bool
    entries: dict[tuple[str, str | None, str], _Entry] = {}
    steps: list[StepSummary] = []

    def take(self, found: Iterable[Hint], at: float, *, ended: bool) -> list[HintChange]:
        """Take the hints that are true now; `ended`: at the end of a run of this scope."""
        by_key = {
            (hint.kind, hint.group_id, hint.subject): hint
            for hint in found
            if not (self.training and hint.group_id is not None)
        }
        changes = [
            HintChange(entry.hint, True, at, entry.id)
            for key, hint in by_key.items()
            if (entry := self._held(key, hint, at, ended=ended)) is not None
        ]
        for key, entry in list(self.entries.items()):
            if key not in by_key and self._is_over(entry, at, ended=ended):
                del self.entries[key]
                if entry.shown:
                    changes.append(HintChange(entry.hint, False, at, entry.id))
        return changes

    def _held(self, key: tuple[str, str | None, str], hint: Hint, at: float, *, ended: bool) -> _Entry | None:
        """Note that the hint is true; the entry if it appears by that."""
        entry = self.entries.get(key)
        if entry is None:
            text = "\0".join((*self.name, key[0], key[1] or "", key[2]))
            digest = hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            entry = self.entries[key] = _Entry(hint, digest, at, at)
        entry.hint, entry.seen, entry.missed = hint, at, 0
        entry.since = min(entry.since, at)  # the clock may have been set back
        entry.rounds += ended
        if self._by_rollouts(entry):
            holds = entry.rounds >= ROLLOUTS or at - entry.since >= HOLD_IN_ROLLOUT_S
        else:
            holds = ended or at - entry.since >= HOLD_S
        if entry.shown or not holds:
            return None
        entry.shown = True
        return entry

    def _is_over(self, entry: _Entry, at: float, *, ended: bool) -> bool:
        """Note that the hint is not true; whether it is over by that."""
        if self._by_rollouts(entry):
            if not ended:
                entry.since = at  # a young rollout shows little, so nothing follows from that
                return False
            entry.rounds, entry.missed = 0, entry.missed + 1
            return not entry.shown or entry.missed >= ROLLOUTS
        if self.training and ended:
            return False  # a chain of another rollout may still be quiet
        return not entry.shown or ended or not entry.seen - CLOCK_BACK_S <= at < entry.seen + GONE_S

    def _by_rollouts(self, entry: _Entry) -> bool:
        return self.training and entry.hint.kind != "quiet"


class _Followed:
    """A run that is followed, with the hints of its chains.

    Args:
        run: the view of it.
    """

    def __init__(self, run: RunView) -> None:
        self.run = run
        self._index: HintIndex | None = None  # made at the first look: thousands of runs may be open
        self._numbers: dict[str, int] = {}  # of chains, in the order in which they were first seen
        self._next = 0
        self._changed: dict[str, None] = {}  # chains that changed since the latest look

    def note(self, chain_id: str) -> None:
        """Note that a chain has changed."""
        if chain_id not in self._numbers:
            self._numbers[chain_id] = self._next
            self._next += 1
        self._changed[chain_id] = None

    def note_all(self) -> None:
        """Note that every chain may have changed."""
        for chain_id in self.run.chains:
            self.note(chain_id)

    def note_time(self, chain_id: str, before: float | None, at: float) -> None:
        """Note that an event of a chain came that changed nothing else about it. This is called for every token.

        Args:
            chain_id: the chain's.
            before: the timestamp of the event before it.
            at: the timestamp of the event.
        """
        if (
            before is None
            or at < before
            or (self._index is not None and self._index.is_silent(self._numbers[chain_id]))
        ):
            self._changed[chain_id] = None

    def drop(self, chain_id: str) -> None:
        """Forget a chain that is not followed any more."""
        self._changed.pop(chain_id, None)
        number = self._numbers.pop(chain_id, None)
        if number is not None and self._index is not None:
            self._index.drop(number)

    def hints(self, now: float | None) -> list[Hint]:
        """The hints of the run that are true now; without `now`, none about quiet chains."""
        index = self._index
        if index is None:
            index = self._index = HintIndex()
        for chain_id in self._changed:
            index.put(self._numbers[chain_id], self.run.chains[chain_id])
        self._changed.clear()
        return index.hints(now)


class HintWatch:
    """Follows runs by their events, and tells which hints appear and go. It is not safe to call from two threads at once.

    It keeps what hints need of the chains and none of their text, of at most 16,000 chains. Those that ended first are dropped first; while
    16,000 are open, no others are followed.
    """

    def __init__(self) -> None:
        self._runs = RunViews(most_chains=MAX_CHAINS, keeps_conversations=False)
        self._followed: dict[str, _Followed] = {}
        self._closed: dict[str, deque[str]] = {}  # by run, the chains that ended, earliest first
        self._scopes: dict[tuple[str, str], _Scope] = {}
        self._ended: dict[str, None] = {}  # ids of runs that were looked at for the last time
        self._ending: dict[str, None] = {}  # ids of runs whose last look is next
        self._looked_at: float | None = None
        self._events = 0  # since then

    @property
    def chains(self) -> int:
        """How many chains of open runs are followed."""
        return self._runs.chains

    def showing(self) -> list[Hint]:
        """The hints that have appeared and not gone, in runs that are open."""
        return [
            entry.hint for scope in self._scopes.values() for entry in scope.entries.values() if entry.shown
        ]

    def note(self, event: StreamEvent) -> None:
        """Note the next event of any run, without looking for hints. Events of a run that has ended change nothing."""
        run_id = event.run_id
        if run_id.__class__ is not str or run_id in self._ended:
            return
        if event.event_type is CHUNK and self._goes_on(event):
            return
        self._events += 1
        if not self._has_room(event):
            return
        self._runs.apply(event)
        for dropped in self._runs.dropped:
            self._followed.pop(dropped, None)
            self._closed.pop(dropped, None)
        run = self._runs.runs.get(run_id)
        if run is None:
            return
        followed = self._followed.get(run_id)
        if followed is None or followed.run is not run:
            followed = self._follow(run)
        view = run.chains.get(event.chain_id) if event.chain_id.__class__ is str else None
        if view is None and event.event_type in (T.GAP, T.RUN_END):
            followed.note_all()
        if view is not None:
            view.forget_text()
            followed.note(event.chain_id)
            if event.event_type is T.CHAIN_END:
                self._closed.setdefault(run_id, deque()).append(event.chain_id)
        if run.ended_at is not None or run.status not in ("unknown", "running"):
            self._ending[run_id] = None

    def take(self, event: StreamEvent) -> list[HintChange]:
        """Take the next event; the changes that follow from it. The time is the event's, so a replay gives the same."""
        self.note(event)
        if event.event_type is CHUNK:
            return []
        changes = self.end_runs() if self._ending else []
        at = moment(event.timestamp)
        if at is not None and self._is_due(at):
            changes += self._look(at)
        return changes

    def look(self, now: float) -> list[HintChange]:
        """Look for changes now, if that is due: once a second, or less often with more than 1,000 chains.

        Args:
            now: seconds since the epoch on the clock of the events.
        """
        changes = self.end_runs()
        if self._looked_at is None:
            self._looked_at = -math.inf
        return changes + self._look(now) if self._is_due(now) else changes

    def end_run(self, run_id: str) -> list[HintChange]:
        """Take it that the run has ended, for a caller that hears so in another way than by its `run_end`."""
        if run_id not in self._runs.runs:
            return []
        self._ending[run_id] = None
        return self.end_runs()

    def end_runs(self) -> list[HintChange]:
        """Look at the runs that have ended for the last time, and forget them."""
        changes: list[HintChange] = []
        for run_id in list(self._ending):
            del self._ending[run_id]
            run = self._runs.runs.get(run_id)
            if run is not None:
                if run.chains:
                    changes += self._last_look(run)
                self._forget(run)
        return changes

    def _follow(self, run: RunView) -> _Followed:
        """Start to follow a run."""
        followed = self._followed[run.run_id] = _Followed(run)
        return followed

    # -- the views --------------------------------------------------------------------------------------------------------

    def _has_room(self, event: StreamEvent) -> bool:
        """Whether the event's chain is followed, or can be since another one is dropped that has ended."""
        if self._runs.chains < MAX_CHAINS or event.chain_id.__class__ is not str or not event.chain_id:
            return True
        run = self._runs.runs.get(event.run_id)
        if run is not None and event.chain_id in run.chains:
            return True
        for run_id, closed in list(self._closed.items()):
            while closed:
                chain_id = closed.popleft()
                ended = self._runs.runs.get(run_id)
                view = None if ended is None else ended.chains.get(chain_id)
                if view is not None and view.state in CLOSED:  # it has not begun again
                    self._runs.let_go(run_id, chain_id)
                    self._followed[run_id].drop(chain_id)
                    return True
            del self._closed[run_id]
        return False

    def _goes_on(self, chunk: StreamEvent) -> bool:
        """Note that a generation goes on that has begun to be heard; its text is not needed. On the path of every token."""
        run = self._runs.runs.get(chunk.run_id)
        view = None if run is None or chunk.chain_id.__class__ is not str else run.chains.get(chunk.chain_id)
        if view is None or view.state != "generating" or view.generation is None or not view.generation.end:
            return False
        if chunk.step != view.generation_step or chunk.source != view.source:
            return False
        at = moment(chunk.timestamp)
        if at is not None:
            self._followed[chunk.run_id].note_time(chunk.chain_id, view.last_event_at, at)
            view.last_event_at = at
        return True

    # -- looks ------------------------------------------------------------------------------------------------------------

    def _is_due(self, at: float) -> bool:
        before = self._looked_at
        if before is None:
            self._looked_at = at
            return False
        if at < before:
            return at < before - CLOCK_BACK_S and self._events >= EVENTS_AFTER_CLOCK_BACK
        return at - before >= LOOK_S * max(1.0, self._runs.chains / CHAINS_PER_LOOK_S)

    def _look(self, at: float) -> list[HintChange]:
        self._looked_at, self._events = at, 0
        found: dict[tuple[str, str], list[Hint]] = {}
        for run in self._runs.runs.values():
            if run.chains:
                found.setdefault(_scope_name(run), []).extend(self._followed[run.run_id].hints(at))
        changes: list[HintChange] = []
        for name, of_scope in found.items():
            changes += self._scope(name).take(of_scope, at, ended=False)
        return changes

    def _last_look(self, run: RunView) -> list[HintChange]:
        name = _scope_name(run)
        scope = self._scope(name)
        found = self._followed[run.run_id].hints(None)
        if scope.training and run.split != "eval":
            step = summary(run.chains.values())
            if step is not None:
                scope.steps = [*scope.steps[-MAX_STEPS + 1 :], step]
            found += trend_hints(scope.steps)
        changes = scope.take(found, run.last_event_at or 0.0, ended=True)
        if not scope.training:
            del self._scopes[name]
        return changes

    def _forget(self, run: RunView) -> None:
        self._runs.forget(run.run_id)
        self._followed.pop(run.run_id, None)
        self._closed.pop(run.run_id, None)
        for name in [name for name in self._scopes if name[0] == run.run_id]:  # it was a training
            del self._scopes[name]
        self._ended[run.run_id] = None
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def _scope(self, name: tuple[str, str]) -> _Scope:
        scope = self._scopes.get(name)
        if scope is None:
            if len(self._scopes) >= MAX_SCOPES:
                del self._scopes[next(iter(self._scopes))]
            scope = self._scopes[name] = _Scope(name, name[1] != "")
        return scope


def _scope_name(run: RunView) -> tuple[str, str]:
    """The run; or its training and its split, if it is a rollout of one."""
    return (run.run_id, "") if run.parent_run_id is None else (run.parent_run_id, run.split or "train")
