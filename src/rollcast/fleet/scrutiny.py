"""Checks what a producer publishes: whether it is an event, whether this producer may publish it, and whether it may come now. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rollcast.errors import DecodeError, GrammarError
from rollcast.fleet.holes import Holes
from rollcast.fleet.reading import read_quickly
from rollcast.fleet.sources import Process, Run, Source, shown
from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.codec import checked_event, decode_unchecked
from rollcast.records.grammar import Part
from rollcast.stream.waiting import EncodableChunk, Relayed
from rollcast.text import printable_line

__all__ = ["MOST_CHAINS", "MOST_RUNS", "Read", "Scrutiny"]

Read = tuple[Relayed, bytes | None]  # an event with its JSON; None: it was made here

T = StreamEventType
CHAIN_END = T.CHAIN_END  # looked up for every event
MOST_CHAINS = 262_144  # open at a time, of one source
MOST_RUNS = 512  # open at a time, of one source
LONGEST_SENTENCE = 500
LONGEST_NAME = 256  # as in filters
MOST_SEQ = 1 << 53  # the largest number that pages can hold
WITHIN_A_RUN = frozenset(T) - {T.RUN_START, T.RUN_END, T.GAP}
_WITHIN_A_CHAIN = WITHIN_A_RUN - {T.CHAIN_START, T.CHAIN_SNAPSHOT}
OF_CHAINS = frozenset(T) - {T.RUN_START, T.RUN_END, T.TRAIN_STEP, T.ERROR, T.GAP}


class _RefusedEventError(Exception):
    """An event that a producer may not publish, for which nothing stands."""

    def __init__(self, cause: str, why: str) -> None:
        super().__init__(why)
        self.cause = cause


class _Lane(NamedTuple):
    """What the next event of a run is checked against.

    Attributes:
        run_id: the run's id.
        run: as the hub knows it.
        part: the same, as the grammar does.
        recorded: the last `seq` that is recorded.
    """

    run_id: str
    run: Run
    part: Part
    recorded: int


class Scrutiny:
    """Checks the events of one `publish`.

    Args:
        source, process: whose events they are.
        recorded: after a restart of the hub, the last `seq` that its record has of each run and source; otherwise empty.
        ended: see `OpenRuns.ended`.

    Attributes:
        holes: the events that were left out.
        refused: what was not taken, a sentence for each cause.
    """

    def __init__(
        self,
        source: Source,
        process: Process,
        recorded: Mapping[tuple[str, str], int],
        ended: Mapping[tuple[str, str], str],
    ) -> None:
        self.holes = Holes(source.name)
        self.refused: dict[str, str] = {}
        self._source = source
        self._process = process
        self._recorded = recorded
        self._ended = ended
        self._lanes: dict[str, _Lane] = {}  # by run; empty again after an event that may begin or end one

    def take_usual(self, lines: Sequence[bytes], at: int, into: list[Read]) -> int:
        """Take the lines from `at` on that are each the next event of a chain that is open, as most events are.

        It does what `accepted` and `OpenRuns.note` do, in a third of the time.

        Args:
            lines: the JSON of events.
            at: the index of the first line to look at.
            into: gets each event with its line.

        Returns:
            The index of the first line that was not taken, which is for `accepted`.
        """
        if self.holes.waiting:
            return at
        name, lane, end = self._source.name, None, len(lines)
        while at < end:
            line = lines[at]
            event = read_quickly(line)
            if event is None or event.source != name:
                break
            if lane is None or event.run_id != lane.run_id:
                lane = self._lanes.get(event.run_id) or self._lane_of(event.run_id)
                if lane is None or lane.run.leapt:
                    break
            run, seq = lane.run, event.seq
            chain_id = sys.intern(event.chain_id)
            if chain_id not in run.chains or not lane.recorded < seq <= MOST_SEQ:
                break
            if event.__class__ is EncodableChunk:
                if not _next_chunk(lane.part, chain_id, event):
                    break
            elif not lane.part.next_event(event):
                break
            elif event.event_type is CHAIN_END:
                run.chains.discard(chain_id)
            if seq > run.last_seq:  # noqa: PLR1730  (a third of what `max` takes)
                run.last_seq = seq
            event.chain_id, event.run_id, event.source = chain_id, lane.run_id, name  # the one copy of each
            into.append((event, line))
            at += 1
        return at

    def _lane_of(self, run_id: str) -> _Lane | None:
        run, part = self._process.runs.get(run_id), self._process.grammar.part_of(self._source.name, run_id)
        if run is None or part is None:
            return None
        recorded = self._recorded.get((run_id, self._source.name), -1) if self._process.before else -1
        lane = self._lanes[run_id] = _Lane(run_id, run, part, recorded)
        return lane

    def accepted(self, number: int, line: bytes) -> StreamEvent | None:
        """The event; None if it is refused, or if the hub has it already."""
        event: StreamEvent | None = None
        try:
            event = decode_unchecked(line)
            if (lane := self._lane_within(event)) is not None:  # like most events
                checked_event(event)
                self._process.grammar.feed_within(lane.part, event)
                return event
            run = self._process.runs.get(event.run_id)
            if run is None or event.event_type not in WITHIN_A_RUN:
                self._lanes.clear()
            # The names of a chain that is known were checked before.
            is_new = run is None or event.chain_id not in run.chains or event.event_type is T.GAP
            if is_new or event.source != self._source.name or not 0 <= event.seq <= MOST_SEQ:
                self._check_place(event)
            if self._is_recorded(event):
                self._source.duplicates += 1
                return None
            checked_event(event)
            if is_new:
                self._check_room(event)
            self._check_order(run, event)
        except _RefusedEventError as refused:
            self._refuse(refused.cause, f"event {number} was not taken: {refused}")
        except (DecodeError, GrammarError) as error:
            cause = "not an event" if isinstance(error, DecodeError) else "breaks the grammar"
            self._refuse(cause, f"event {number} was not taken: {error}")
            if event is not None:
                self._leave_out(event)
        else:
            return event
        return None

    def _lane_within(self, event: StreamEvent) -> _Lane | None:
        """The lane of an event of an open chain, of which nothing but its data and its order is to be checked; None for any other."""
        if event.event_type not in _WITHIN_A_CHAIN or event.source != self._source.name:
            return None
        lane = self._lanes.get(event.run_id) or self._lane_of(event.run_id)
        if lane is None or lane.run.leapt or event.chain_id not in lane.run.chains:
            return None
        return lane if lane.recorded < event.seq <= MOST_SEQ else None

    def _is_recorded(self, event: StreamEvent) -> bool:
        """Whether the record of a hub that was restarted has it.

        A snapshot has the `seq` of the event before it. So the record has it only if it has a later event too: otherwise it may have text
        that nobody watched while the hub was away.
        """
        if not self._process.before:
            return False
        last = self._recorded.get((event.run_id, event.source), -1)
        return event.seq < last if event.event_type is T.CHAIN_SNAPSHOT else event.seq <= last

    def _refuse(self, cause: str, sentence: str) -> None:
        self._source.refused[cause] += 1
        self.refused.setdefault(cause, printable_line(sentence, LONGEST_SENTENCE))

    def _leave_out(self, event: StreamEvent) -> None:
        """Let a `gap` stand for an event that is not taken."""
        run = self._process.runs.get(event.run_id)
        if run is None:
            return
        hole = self.holes.add(event, run.last_seq, f"the hub did not take a {event.event_type}")
        run.last_seq = max(run.last_seq, hole.data["to_seq"])
        self._process.grammar.feed(hole)

    def _check_place(self, event: StreamEvent) -> None:
        """Raise if the event is not one that this producer may name.

        Raises:
            _RefusedEventError: it is not.
        """
        if event.source != self._source.name:
            raise _RefusedEventError(
                "forged source",
                f"its source is {shown(event.source)}, and the producer's {shown(self._source.name)}",
            )
        if not 0 <= event.seq <= MOST_SEQ or (
            event.event_type is T.GAP and not _is_small(event.data.get("to_seq"))
        ):
            raise _RefusedEventError("not an event", f"its seq is {event.seq}; expected one from 0 to 2**53")
        if max(len(event.run_id), len(event.chain_id), len(event.group_id or "")) > LONGEST_NAME:
            raise _RefusedEventError(
                "not an event", f"the name of its run, chain or group has more than {LONGEST_NAME} characters"
            )
        if not event.chain_id and event.event_type in OF_CHAINS:
            raise _RefusedEventError("not an event", f"it is a {event.event_type} without a chain_id")
        owner = self._owner_of(event.run_id)
        if owner is not None:
            raise _RefusedEventError(
                "run of another process",
                f"the run {shown(event.run_id)} was begun by another process of {shown(self._source.name)}; one that begins it again "
                "needs a ROLLCAST_SOURCE of its own, or another run id",
            )

    def _owner_of(self, run_id: str) -> str | None:
        """The other process of this source that told of the run; None if this one may."""
        source, process = self._source, self._process
        if not run_id or run_id in process.runs:
            return None
        ended = self._ended.get((run_id, source.name))
        if ended is not None:
            return None if source.epochs.get(ended) is process else ended
        others = (name for name, each in source.epochs.items() if each is not process and run_id in each.runs)
        known = next(others, None)
        if known is None and not process.before and (run_id, source.name) in self._recorded:
            return "?"  # of the hub's last life
        return known

    def _check_room(self, event: StreamEvent) -> None:
        """Raise if the event opens one run, or one chain, too many.

        Raises:
            _RefusedEventError: it does.
        """
        process = self._process
        run = process.runs.get(event.run_id)
        if run is None and event.run_id and len(process.runs) >= MOST_RUNS:
            raise _RefusedEventError(
                "too many", f"the producer has {MOST_RUNS} open runs; there may be no more"
            )
        opens = bool(event.chain_id) and (run is None or event.chain_id not in run.chains)
        if opens and sum(len(each.chains) for each in process.runs.values()) >= MOST_CHAINS:
            raise _RefusedEventError(
                "too many", f"the producer has {MOST_CHAINS:,} open chains; there may be no more"
            )

    def _check_order(self, run: Run | None, event: StreamEvent) -> None:
        """Raise if the event may not come now: viewers stop at the first event that breaks the grammar.

        Raises:
            GrammarError: it may not.
        """
        if run is not None and run.leapt:
            run.leapt = False
            if event.seq > run.last_seq + 1:
                self._process.grammar.feed(
                    self.holes.span(event, run.last_seq + 1, "the producer left out events")
                )
        if run is not None and event.event_type is T.RUN_END and self._process.grammar.has_open_chains(event):
            self._process.grammar.feed(
                self.holes.add(event, run.last_seq, "the run ended before these chains did", at=run.last_seq)
            )
        self._process.grammar.feed(event)


def _next_chunk(part: Part, chain_id: str, chunk: EncodableChunk) -> bool:
    """See `Part.next_chunk`."""
    data = chunk.data
    if data.logprobs is not None and len(data.logprobs) != len(data.token_ids or ()):
        return False
    return part.next_chunk(chain_id, chunk.seq, data.offset, data.content)


def _is_small(value: object) -> bool:
    return value is None or (isinstance(value, int) and 0 <= value <= MOST_SEQ)
