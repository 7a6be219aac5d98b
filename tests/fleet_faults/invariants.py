"""What must hold after a schedule. Pure.

Everything is compared with what the producers say that they emitted, by run and source. Chunks are not in there, since a token that
nobody watches is never an event; what is asked of them is that they come once, in order, and make up the text of their generation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from rollcast.errors import GrammarError
from rollcast.records import EventFilter, GrammarChecker, StreamEvent, StreamEventType

__all__ = ["Emitted", "Seen", "Truth", "breaks_of_the_grammar", "broken_promises", "in_one"]

T = StreamEventType
MARKS = (T.GAP, T.CHAIN_SNAPSHOT)
Stream = tuple[str, str]  # run_id, source


@dataclass(frozen=True)
class Emitted:
    """An event as its producer says."""

    run_id: str
    source: str
    seq: int
    kind: str
    chain_id: str


@dataclass
class Truth:
    """What the producers emitted.

    Attributes:
        events: by run and source, in order.
        cut_off: those streams whose process was killed: of what it emitted last, some may never have left it.
        lossy: those streams whose process had no room for a record: where the hub was away, a gap may stand for what it emitted.
    """

    events: dict[Stream, list[Emitted]] = field(default_factory=lambda: defaultdict(list))
    cut_off: set[Stream] = field(default_factory=set)
    lossy: set[Stream] = field(default_factory=set)


@dataclass
class Seen:
    """What somebody got, in order.

    Attributes:
        who: for messages.
        filter: what they wanted.
        events: what they got.
        from_the_start: whether they wanted everything since the beginning.
        whole: whether they were there until the end.
    """

    who: str
    events: list[StreamEvent]
    filter: EventFilter = field(default_factory=EventFilter)
    from_the_start: bool = True
    whole: bool = True


def broken_promises(truth: Truth, seen: Seen, *, grammar: bool = True) -> Iterator[str]:
    """What is wrong with what somebody got; `grammar`: of that, too."""
    streams: dict[Stream, list[StreamEvent]] = defaultdict(list)
    for event in seen.events:
        streams[event.run_id, event.source].append(event)
    for stream in streams.keys() - truth.events.keys():
        real = [e for e in streams[stream] if e.event_type is not T.GAP]
        if real and stream[0] and stream not in truth.cut_off:
            yield f"{seen.who} got {len(real)} events of {stream}, which nobody emitted, the first: {_short(real[0])}"
    for stream, emitted in truth.events.items():
        yield from _of_stream(truth, seen, stream, emitted, streams.get(stream, []))
    if grammar:
        yield from breaks_of_the_grammar(seen)


def in_one(records: Iterable[list[StreamEvent]]) -> Iterator[StreamEvent]:
    """The events of a hub's records, one after the other, as if it had never been restarted.

    A record begins with the starts of the runs and chains that were open at the end of the one before, and that of a hub that was killed ends with
    gaps, in which nothing is missing.
    """
    last: dict[Stream, int] = {}
    for events in records:
        before = dict(last)
        for event in events:
            place = (event.run_id, event.source)
            said_again = event.event_type in (T.RUN_START, T.CHAIN_START) and event.seq <= before.get(
                place, -1
            )
            if said_again or (event.event_type is T.GAP and event.data.get("run_status") == "unknown"):
                continue
            if event.event_type not in MARKS:
                last[place] = max(event.seq, last.get(place, -1))
            yield event


def _of_stream(
    truth: Truth, seen: Seen, stream: Stream, emitted: list[Emitted], got: list[StreamEvent]
) -> Iterator[str]:
    who = f"{seen.who}, {stream[0][-6:]} of {stream[1]}"
    events = [e for e in got if e.event_type not in MARKS]
    if repeated := [b for a, b in pairwise(events) if b.seq <= a.seq]:
        yield f"{who}: {len(repeated)} events came twice or out of order, the first: {_short(repeated[0])}"
    said = {e.seq: e for e in emitted}
    last = emitted[-1].seq if emitted else -1
    for event in events:
        if event.event_type is T.LLM_GENERATION_CHUNK:
            continue
        there = said.get(event.seq)
        if there is None and not (event.seq > last and stream in truth.cut_off):
            yield f"{who}: nobody emitted {_short(event)}"
        elif there is not None and (there.kind, there.chain_id) != (event.event_type.value, event.chain_id):
            yield f"{who}: {_short(event)} was emitted as {there}"
    yield from _of_what_is_missing(truth, seen, stream, emitted, got)


def _of_what_is_missing(
    truth: Truth, seen: Seen, stream: Stream, emitted: list[Emitted], got: list[StreamEvent]
) -> Iterator[str]:
    who = f"{seen.who}, {stream[0][-6:]} of {stream[1]}"
    came = {e.seq for e in got if e.event_type not in MARKS}
    gaps = [e for e in got if e.event_type is T.GAP]
    wanted = [e for e in emitted if _wants(seen.filter, e)]
    if not seen.from_the_start:
        wanted = [e for e in wanted if e.seq >= _since(got, e.chain_id)]
    missing = [e for e in wanted if e.seq not in came]
    if not seen.whole and came:
        missing = [e for e in missing if e.seq < max(came)]
    elif not seen.whole:
        return
    silent = [e for e in missing if not any(_covers(gap, e.seq) for gap in gaps)]
    if stream in truth.cut_off:
        beyond = max(came, default=-1)
        silent = [e for e in silent if e.seq < beyond]
    if silent:
        yield f"{who}: {len(silent)} events are missing in silence, the first: {silent[0]}"
    if len(missing) > len(silent) and stream not in truth.cut_off | truth.lossy:
        yield f"{who}: gaps stand for {len(missing) - len(silent)} events, though nothing had to be lost: {[g.data for g in gaps]}"


def _since(got: list[StreamEvent], chain_id: str) -> int:
    """The first `seq` that who came late is owed of a chain, or of the run itself: what a snapshot tells of came before it."""
    told = [e.data["as_of"] + 1 for e in got if e.event_type is T.CHAIN_SNAPSHOT and e.chain_id == chain_id]
    came = [e.seq for e in got if e.event_type not in (*MARKS, T.RUN_START)]
    return min(told or came, default=1 << 60)


def _covers(gap: StreamEvent, seq: int) -> bool:
    first, last = gap.data.get("from_seq"), gap.data.get("to_seq")
    return (first is None or first <= seq) and (last is None or seq <= last)


def _wants(wish: EventFilter, event: Emitted) -> bool:
    return wish.wants(StreamEventType.of(event.kind), event.chain_id, None, event.run_id)


def breaks_of_the_grammar(seen: Seen) -> Iterator[str]:
    """Whether the events break the grammar, as somebody sees who may have come late."""
    always = frozenset(T)
    for part in seen.filter.alternatives:
        always &= part.types if part.types is not None else always
    checker = GrammarChecker(late=True, types=None if always == frozenset(T) else always)
    for event in seen.events:
        try:
            checker.feed(event)
        except GrammarError as error:
            yield f"{seen.who}: the grammar: {error}"
            return


def _short(event: StreamEvent) -> str:
    return f"{event.event_type.value} seq {event.seq} of {event.chain_id or 'the run'} ({event.run_id[-6:]}, {event.source})"
