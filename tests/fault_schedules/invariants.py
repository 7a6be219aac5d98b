"""What must hold after a fault schedule, whatever went wrong in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fault_schedules.injectors import FaultyObserver, Stint
from rollcast.errors import GrammarError
from rollcast.records import EventFilter, GrammarChecker, StreamEvent, StreamEventType, check_events
from rollcast.rollout import RunResult

__all__ = ["Outcome", "Reading", "RunOutcome", "Subscriber", "check_invariants"]

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK
MARKS = (T.GAP, T.CHAIN_SNAPSHOT)  # made for one observer, and not emitted


@dataclass
class RunOutcome:
    """How one run went.

    Attributes:
        began: its first event was emitted. A task that is cancelled before its first step never begins.
        expected: chain id -> digest of its trajectory in a run without faults.
        returned_with: how many events the steady observer had when the run returned; None if it raised.
    """

    result: RunResult
    began: bool = False
    expected: dict[str, str] = field(default_factory=dict)
    returned_with: int | None = None
    raised: BaseException | None = None


@dataclass
class Reading:
    """What somebody read from an async generator of events.

    Attributes:
        filter: what it let through.
        joined: how many events had been emitted when its observer was added.
        to_the_end: the generator ended by itself while its observer was still there.
    """

    name: str
    filter: EventFilter
    joined: int
    events: list[StreamEvent] = field(default_factory=list)
    to_the_end: bool = False


@dataclass
class Subscriber:
    """What somebody got that had `subscribe`d."""

    name: str
    stint: Stint
    hangs: bool = False


@dataclass
class Outcome:
    """What came of one schedule.

    Attributes:
        seed: of the schedule.
        story: what was planned and what happened, in lines.
        reference: what a steady lossless observer of everything got.
        emitted: how many events were emitted.
        touched: (run id, chain id) -> why the chain may differ from one without faults.
        problems: what is wrong already: a hang, something left running, an exception that nobody took.
    """

    seed: int
    story: list[str] = field(default_factory=list)
    reference: list[StreamEvent] = field(default_factory=list)
    emitted: int = 0
    runs: list[RunOutcome] = field(default_factory=list)
    observers: list[FaultyObserver] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    subscribers: list[Subscriber] = field(default_factory=list)
    touched: dict[tuple[str, str], str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    steady_drain: bool = True  # nobody hangs, so that a run's end waits for everybody


def check_invariants(outcome: Outcome) -> None:
    """Check everything.

    Raises:
        AssertionError: something does not hold; the message has the seed, what is wrong and the story.
    """
    wrong = list(outcome.problems)
    if not wrong:  # what hangs explains the rest
        wrong += _steady(outcome)
        wrong += _chains(outcome)
    if not wrong:  # the others are compared with the steady one
        reference = _Reference(outcome.reference)
        for observer in outcome.observers:
            if observer.overlaps:
                wrong.append(
                    f"{observer.name} was called {observer.overlaps} times while a call was going on"
                )
            for stint in observer.stints:
                wrong += _stint(reference, observer, stint)
        for subscriber in outcome.subscribers:
            wrong += _stint(reference, subscriber, subscriber.stint)
        for reading in outcome.readings:
            wrong += _reading(reference, reading)
    if wrong:
        story = "\n".join(f"  {line}" for line in outcome.story)
        said = "\n".join(f"- {line}" for line in wrong)
        raise AssertionError(f"seed {outcome.seed}: {len(wrong)} broken\n{said}\nIts story:\n{story}")


def _steady(outcome: Outcome) -> Iterator[str]:
    """The steady observer has everything, in order, and it is grammatical."""
    if len(outcome.reference) != outcome.emitted:
        yield f"the steady observer has {len(outcome.reference)} of {outcome.emitted} events"
    try:
        check_events(outcome.reference)
    except GrammarError as error:
        yield f"the steady observer: {error}"
    for run in outcome.runs:
        ends = [i for i, e in enumerate(outcome.reference) if _is_run_end(e, run.result.run_id)]
        if run.began and len(ends) != 1:
            yield f"run {run.result.run_id} has {len(ends)} run_end"
        elif run.began and outcome.steady_drain and (run.returned_with or ends[0] + 1) <= ends[0]:
            yield f"run {run.result.run_id} returned before the steady observer had its run_end"


def _is_run_end(event: StreamEvent, run_id: str) -> bool:
    return event.run_id == run_id and event.event_type is T.RUN_END


def _chains(outcome: Outcome) -> Iterator[str]:
    """Chains without a fault are as they would have been; every one has ended, as its events say."""
    texts: dict[tuple[str, str, int | None], str] = defaultdict(str)
    ends: dict[tuple[str, str], str] = {}
    for event in outcome.reference:
        if event.event_type is CHUNK:
            texts[event.run_id, event.chain_id, event.step] += event.data["content"]
        elif event.event_type is T.CHAIN_END:
            ends[event.run_id, event.chain_id] = event.data["finish_reason"]
    for run in outcome.runs:
        run_id = run.result.run_id
        if run.raised is not None:
            yield f"run {run_id} raised {run.raised!r}"
        known = {t.chain_id: t for t in run.result}
        for chain_id, digest in run.expected.items():
            why = outcome.touched.get((run_id, chain_id))
            trajectory = known.get(chain_id)
            if trajectory is None:
                if run.began and why is None:
                    yield f"{chain_id} of {run_id} has no trajectory"
                continue
            end = ends.get((run_id, chain_id))
            if trajectory.finish_reason is None or end not in (None, trajectory.finish_reason):
                yield f"{chain_id} of {run_id} is {trajectory.finish_reason}, and its chain_end says {end}"
            if why is None and trajectory.digest() != digest:
                yield (
                    f"{chain_id} of {run_id} had no fault and is not what it is without faults: "
                    f"{trajectory.finish_reason}, {trajectory.error}, {trajectory.messages}"
                )
            for turn in trajectory.turns:
                if texts[run_id, chain_id, turn.step] != turn.text:
                    yield f"{chain_id} of {run_id}, step {turn.step}: its chunks are not its text"


class _Reference:
    """What was emitted, to be asked about."""

    def __init__(self, events: list[StreamEvent]) -> None:
        self.events = events
        self.place = {(e.run_id, e.seq): i for i, e in enumerate(events)}
        self.chunks: dict[tuple[Any, ...], list[StreamEvent]] = defaultdict(list)
        for event in events:
            if event.event_type is CHUNK:
                self.chunks[_generation(event)].append(event)

    def merged_wrongly(self, chunk: StreamEvent) -> str | None:
        """What is wrong with a chunk that was delivered."""
        first = chunk.data.get("from_seq", chunk.seq)
        parts = [e for e in self.chunks[_generation(chunk)] if first <= e.seq <= chunk.seq]
        if "".join(e.data["content"] for e in parts) != chunk.data["content"]:
            return "its text is not that of the chunks from which it was merged"
        if not parts or parts[0].data["offset"] != chunk.data["offset"] or parts[0].seq != first:
            return "it does not begin where the first of the chunks from which it was merged does"
        for name in ("token_ids", "logprobs"):
            if name in chunk.data and [v for e in parts for v in e.data.get(name, ())] != chunk.data[name]:
                return f"its {name} are not those of the chunks from which it was merged"
        return None


def _generation(event: StreamEvent) -> tuple[str, str, int | None]:
    return event.run_id, event.chain_id, event.step


def _stint(reference: _Reference, observer: FaultyObserver | Subscriber, stint: Stint) -> Iterator[str]:
    who = f"{observer.name} (joined after {stint.joined} events, left after {stint.left})"
    places = [reference.place.get((e.run_id, e.seq), -1) for e in stint.events if e.event_type not in MARKS]
    end = stint.left if stint.left is not None else len(reference.events)
    if stint.cut or observer.hangs:
        end = min(end, places[-1] + 1 if places else stint.joined)
    wanted = set()
    for i, (since, wish) in enumerate(stint.wishes):
        until = stint.wishes[i + 1][0] if i + 1 < len(stint.wishes) else end
        wanted |= {
            place
            for place in range(since, min(until, end))
            if wish.matches(reference.events[place])
            and reference.events[place].data.get("where") != f"observer:{observer.name}"
        }
    yield from _grammar(who, stint.events, [wish for _, wish in stint.wishes])
    cut = end if stint.cut or observer.hangs else None
    yield from _delivered(reference, who, stint.events, places, wanted, cut)
    if cut is None:
        yield from _gap_counts(reference, who, stint.events, wanted - set(places))


def _reading(reference: _Reference, reading: Reading) -> Iterator[str]:
    events = reading.events
    who = f"reader {reading.name} (joined after {reading.joined} events)"
    runs = {e.run_id for e in events}
    if len(runs) > 1:
        yield f"{who} got events of {len(runs)} runs"
    if not runs:
        return
    places = [reference.place.get((e.run_id, e.seq), -1) for e in events if e.event_type not in MARKS]
    (run_id,) = runs
    last = max(places, default=-1)
    if reading.to_the_end and all(part.chains is None for part in reading.filter.alternatives):
        last = len(reference.events) - 1
    wanted = {
        place
        for place in range(reading.joined, last + 1)
        if reference.events[place].run_id == run_id and reading.filter.matches(reference.events[place])
    }
    yield from _grammar(who, events, [reading.filter])
    yield from _delivered(reference, who, events, places, wanted, last + 1)


def _grammar(who: str, events: list[StreamEvent], wishes: list[EventFilter]) -> Iterator[str]:
    checker = GrammarChecker(late=True, types=_always(wishes))
    try:
        for event in events:
            checker.feed(event)
    except GrammarError as error:
        yield f"{who}: {error}"


def _always(wishes: Iterable[EventFilter]) -> frozenset[StreamEventType]:
    """The types that every part of every filter lets through."""
    types = frozenset(T)
    for wish in wishes:
        for part in wish.alternatives:
            types &= part.types if part.types is not None else types
    return types


def _delivered(
    reference: _Reference,
    who: str,
    events: list[StreamEvent],
    places: list[int],
    wanted: set[int],
    cut: int | None,
) -> Iterator[str]:
    """Nothing came twice, or out of order, or unasked; and nothing is missing in silence.

    Where it was cut off, the end of a generation may have waited, and made its chunks unnecessary.
    """
    if any(b <= a for a, b in pairwise(places)):
        yield f"{who} got events twice or out of order"
    unasked = [reference.events[p] if p >= 0 else None for p in sorted(set(places) - wanted)]
    if unasked:
        yield f"{who} got {len(unasked)} events that it should not have, the first: {unasked[0]}"
    covered = set(places)
    ended = {_generation(e) for e in events if e.event_type is T.LLM_GENERATION_END}
    if cut is not None:
        ended |= {_generation(e) for e in reference.events[cut:] if e.event_type is T.LLM_GENERATION_END}
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        if event.event_type is T.GAP:
            ranges[event.run_id].append((event.data["from_seq"], event.data["to_seq"]))
        elif event.event_type is CHUNK:
            if wrong := reference.merged_wrongly(event):
                yield f"{who}: {wrong}: {event}"
            first = event.data.get("from_seq", event.seq)
            parts = reference.chunks[_generation(event)]
            covered |= {reference.place[e.run_id, e.seq] for e in parts if first <= e.seq <= event.seq}
    lost = [
        e
        for e in (reference.events[place] for place in sorted(wanted - covered))
        if not any(first <= e.seq <= last for first, last in ranges[e.run_id])
        and not (e.event_type is CHUNK and _generation(e) in ended)
    ]
    if lost:
        yield f"{who} lost {len(lost)} events in silence, the first: {lost[0]}"


def _gap_counts(
    reference: _Reference, who: str, events: list[StreamEvent], missing: set[int]
) -> Iterator[str]:
    """What a gap counts is what is missing; chunks may have merged before they were dropped."""
    for gap in events:
        if gap.event_type is not T.GAP:
            continue
        first, last = gap.data["from_seq"], gap.data["to_seq"]
        inside = Counter(
            e.event_type.value
            for e in (reference.events[place] for place in missing)
            if e.run_id == gap.run_id and first <= e.seq <= last
        )
        said = Counter(gap.data["dropped"])
        chunks = inside.pop(CHUNK.value, 0), said.pop(CHUNK.value, 0)
        if inside != said or chunks[1] > chunks[0]:
            yield f"{who}: a gap {first}..{last} counts {dict(gap.data['dropped'])}; missing are {dict(inside)} and {chunks[0]} chunks"
