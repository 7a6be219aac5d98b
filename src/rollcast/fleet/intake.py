"""What a hub has taken of each producer: in order, once, and only what the producer may say. Pure.

    hello    ──connect──▶ Intake ──▶ a number: the last event that the hub has; or why the producer may not connect
    publish  ──take─────▶        ──▶ events to relay; what was refused, in sentences
    time     ──due──────▶        ──▶ what to say of the chains of producers that will not come back

Events are known by (source, epoch, number). A producer that sends an event again, since its connection broke before the `ack`, is
taken at its word about the number. A hub that was restarted knows the numbers that were acknowledged (acks_file.py). What was recorded
after that, by processes that it knew before, it drops by run, source and `seq`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rollcast.fleet.holes import gap
from rollcast.fleet.scrutiny import Scrutiny
from rollcast.fleet.sources import Process, Run, Source, shown
from rollcast.records import StreamEvent, StreamEventType
from rollcast.serve.protocol import CloseCode, Hello, Publish
from rollcast.serve.publishing import ProducerLink, Refused

__all__ = ["Intake", "Key", "Mark", "Taken"]

T = StreamEventType
MOST_SOURCES = 65_536
MOST_EPOCHS = 8  # of one source; with more, the oldest that has nothing open is forgotten
MOST_ENDED = 65_536  # runs that are remembered as ended
CLOCK_S = 60.0  # a larger difference of clocks is worth a warning

Key = tuple[str, str]  # source and epoch
Read = tuple[StreamEvent, bytes | None]


class Mark(NamedTuple):
    """A number up to which events of a producer were taken.

    Attributes:
        source, epoch, number: whose events, and up to which.
        link: whom to tell when they are safe.
        own: it published them as its own, and did not hand over the record of another.
    """

    source: str
    epoch: str
    number: int
    link: ProducerLink
    own: bool


class Taken(NamedTuple):
    """What became of a `publish`.

    Attributes:
        events: to be relayed, in order, each with its JSON; None: it was made here.
        refused: what was not taken, a sentence each; at most one for each cause.
        key: whose events they were.
        handover_refused: nothing was taken, since the sender may not hand over that record now.
    """

    events: list[Read]
    refused: list[str]
    key: Key
    handover_refused: bool = False


class Intake:
    """What a hub has of its producers. Its owner calls it in one event loop.

    Its methods are more than twenty, since who is connected, what was taken, what is safe and what is lost depend on each other.

    Args:
        clock: a monotonic clock in seconds.
        epoch: gives the seconds since the epoch, to compare clocks.
        silent_s: a connection that has said nothing for as long may be replaced by one of another process.
        lost_after_s: how long after its successor came the open chains of a process are given up.
        return_s: how long after a restart of the hub a process may take to come back; then what it had left open is given up.
        recorded: of a hub that was restarted: the last `seq` that its record has of each run and source.
        acked: of a hub that was restarted: the processes that it knew, each with the number of the last event that was safe.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        epoch: Callable[[], float],
        silent_s: float = 30.0,
        lost_after_s: float = 60.0,
        return_s: float = 600.0,
        recorded: Mapping[tuple[str, str], int] | None = None,
        acked: Mapping[Key, int] | None = None,
    ) -> None:
        self._clock = clock
        self._epoch_s = epoch
        self._silent_s = silent_s
        self._lost_after_s = lost_after_s
        self._return_s = return_s
        self._return_by: float | None = (
            None  # for the runs that were restored, and whose process is not known
        )
        self._unclaimed: set[tuple[str, str]] = set()  # those, by run and source
        self._recorded = dict(recorded or {})
        self._acked = dict(acked or {})  # of processes that have not come since the hub was started
        self._sources: dict[str, Source] = {}
        self._links: dict[ProducerLink, Source] = {}
        self._by_run: dict[str, set[str]] = {}  # the sources that told of an open run
        self._ended: dict[
            tuple[str, str], str
        ] = {}  # the latest runs that ended, by source: of which process
        self._refused: dict[str, str] = {}  # of the publish that is being taken, by cause
        self._barred: dict[
            tuple[ProducerLink, Key], int
        ] = {}  # refused hand-overs, each with its first number
        self._unsafe: dict[Key, ProducerLink] = {}  # those with events that are not known to be safe

    # -- connections -------------------------------------------------------------------------------------------------

    def connect(self, hello: Hello, link: ProducerLink) -> Refused | int:
        """Take a connection. An older one of the same process is closed; of another process only if it is silent.

        Returns:
            The number of the last event that the hub has of this process; 0: it has none, or has forgotten.
        """
        source = self._sources.get(hello.source)
        if source is None:
            if len(self._sources) >= MOST_SOURCES and not self._forget_one():
                return Refused(CloseCode.LIMIT, f"{MOST_SOURCES:,} producers are known; there may be no more")
            source = self._sources[hello.source] = Source(hello.source)
        if source.link is not None and (refused := self._replace(source, hello)) is not None:
            return refused
        now = self._clock()
        for name, each in source.epochs.items():
            if name != hello.epoch and each.runs:
                given_up_at = now + self._lost_after_s
                each.lost_at = given_up_at if each.lost_at is None else min(each.lost_at, given_up_at)
        source.link, source.host, source.epoch = link, hello.host, hello.epoch
        source.connected_at = source.heard_at = now
        source.clock_s = None if hello.time is None else hello.time - self._epoch_s()
        self._links[link] = source
        process = self._process(source, hello.epoch)
        process.lost_at = None
        return process.acked

    def _replace(self, source: Source, hello: Hello) -> Refused | None:
        """Close the connection that a source has; or say why the new one may not take its place."""
        link = source.link
        assert link is not None
        silent_s = self._clock() - source.heard_at
        if source.epoch != hello.epoch and silent_s < self._silent_s:
            name, host = shown(source.name), shown(source.host or "?")
            return Refused(
                CloseCode.SOURCE_IN_USE,
                f"another process is connected as source {name}, from host {host}; give each process a ROLLCAST_SOURCE of its own",
            )
        self.disconnect(link)
        link.close(CloseCode.SOURCE_IN_USE, "a newer connection of this producer has taken its place")
        return None

    def disconnect(self, link: ProducerLink) -> None:
        """The connection has ended. What is open stays open, since the producer may come back."""
        source = self._links.pop(link, None)
        if source is not None and source.link is link:
            source.link = source.connected_at = None
            source.heard_at = self._clock()
        if source is not None:
            self._barred = {place: number for place, number in self._barred.items() if place[0] is not link}

    def heard(self, link: ProducerLink) -> None:
        """A message came."""
        source = self._links.get(link)
        if source is not None:
            source.heard_at = self._clock()

    def clock_warning(self, source: str) -> str | None:
        """A sentence if the producer's clock is far from the hub's."""
        known = self._sources[source]
        if known.clock_s is None or abs(known.clock_s) <= CLOCK_S:
            return None
        way = "ahead of" if known.clock_s > 0 else "behind"
        return f"the clock of {shown(source)} on host {shown(known.host)} is {abs(known.clock_s):,.0f} s {way} the hub's"

    def _must_begin_again(self, link: ProducerLink, key: Key, number: int) -> str | None:
        """What to say of more of a hand-over of which the beginning was refused: nothing of it may be taken for whole."""
        begin = self._barred.get((link, key))
        if begin is None or number <= begin:
            return None
        return f"the record of source {shown(key[0])} was refused from number {begin:,} on; hand it over from there"

    def _process(self, source: Source, epoch: str) -> Process:
        process = source.epochs.get(epoch)
        if process is None:
            process = source.epochs[epoch] = Process(self._acked.pop((source.name, epoch), None))
            idle = [name for name, each in source.epochs.items() if not each.runs and name != epoch]
            for name in idle[: max(0, len(source.epochs) - MOST_EPOCHS)]:
                del source.epochs[name]
        return process

    def _forget_one(self) -> bool:
        """Forget the producer that was silent longest, is not connected and has nothing open."""
        gone = [
            s for s in self._sources.values() if s.link is None and not any(e.runs for e in s.epochs.values())
        ]
        if gone:
            del self._sources[min(gone, key=lambda s: s.heard_at).name]
        return bool(gone)

    def restore(self, open_events: Iterable[StreamEvent]) -> None:
        """Take what was open in the hub's last life as open, of the latest known process of each source.

        Args:
            open_events: the start of each run, and a snapshot of each chain.
        """
        latest = dict(self._acked.keys())  # of several processes the one that came last
        self._return_by = self._clock() + self._return_s
        for event in open_events:
            epoch = latest.get(event.source)
            if epoch is None:
                self._unclaimed.add((event.run_id, event.source))
                continue
            source = self._source_named(event.source)
            source.epoch = epoch
            process = self._process(source, epoch)
            process.lost_at = self._return_by
            self._note(source, process, event)

    def _source_named(self, name: str) -> Source:
        """The source, which counts as heard now if it is new."""
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = Source(name)
            source.heard_at = self._clock()
        return source

    # -- events --------------------------------------------------------------------------------------------------------

    def key_of(self, link: ProducerLink, frame: Publish) -> Key | None:
        """Whose events these are; None if the connection was replaced, or has ended."""
        sender = self._links.get(link)
        if sender is None:
            return None
        return frame.source or sender.name, frame.epoch or sender.epoch

    def acked(self, key: Key) -> int:
        """The number of the last event of this process that is safe."""
        source = self._sources.get(key[0])
        process = None if source is None else source.epochs.get(key[1])
        return self._acked.get(key, 0) if process is None else process.acked

    def take(self, link: ProducerLink, frame: Publish) -> Taken:
        """Take the events that the hub does not have yet, and that the producer may publish."""
        sender = self._links[link]
        key = (frame.source or sender.name, frame.epoch or sender.epoch)
        sender.heard_at = self._clock()
        source = sender
        if key != (sender.name, sender.epoch):
            wrong = self._wrong_in_handover(sender, key) or self._must_begin_again(link, key, frame.seq)
            if wrong is not None:
                sender.refused["handover"] += 1
                self._barred.setdefault((link, key), frame.seq)
                return Taken([], [wrong], key, handover_refused=True)
            self._barred.pop((link, key), None)
            source = self._source_named(key[0])
            source.host = source.host or sender.host
        process = self._process(source, key[1])
        if process.lost_at is not None:
            # Its record is being handed over.
            process.lost_at = max(process.lost_at, self._clock() + self._lost_after_s)
        self._unsafe[key] = link
        events = self._new_events(source, process, frame)
        source.events += len(events)
        if frame.last:
            reason = f"the producer {shown(source.name)} has ended without the rest of this run"
            events += [(event, None) for event in self._closing(source, process, reason)]
        refused, self._refused = list(self._refused.values()), {}
        return Taken(events, refused, key)

    def _new_events(self, source: Source, process: Process, frame: Publish) -> list[Read]:
        """The events that the hub did not have, with a `gap` for what it does not take.

        1. Leave out what came before, by its number.
        2. Read each event, and see whether this producer may say it here.
        3. Tell of what was left out before the next event of its run, or at the end.
        """
        self._skip(source, process, frame.seq)
        first = 0 if process.last is None else max(0, process.last + 1 - frame.seq)
        source.duplicates += min(first, len(frame.events))
        scrutiny = Scrutiny(source, process, self._recorded, self._ended)
        events: list[Read] = []
        for number, raw in enumerate(frame.events[first:], frame.seq + first):
            process.last = number
            line = bytes(raw)
            event = scrutiny.accepted(number, line)
            if event is not None:
                events += [(hole, None) for hole in scrutiny.holes.before(event.run_id)]
                events.append((event, line))
                self._note(source, process, event)
        self._refused = scrutiny.refused
        return events + [(hole, None) for hole in scrutiny.holes.rest()]

    def _wrong_in_handover(self, sender: Source, key: Key) -> str | None:
        """Why this producer may not hand over the record of another one; None if it may."""
        other = self._sources.get(key[0])
        name = shown(key[0])
        if other is None:
            return None
        if other.link is not None and other.epoch == key[1]:
            return f"the record of source {name} is handed over, but that producer is connected itself"
        if other.host and sender.host and other.host != sender.host:
            return (
                f"the record of source {name} is handed over from host {shown(sender.host)}, but it was written on "
                f"{shown(other.host)}"
            )
        return None

    def _skip(self, source: Source, process: Process, number: int) -> None:
        """Note it if numbers are left out. The next event of each run tells which events of the run those were."""
        if process.last is None or number <= process.last + 1:
            return
        source.missing += number - process.last - 1
        for run in process.runs.values():
            run.leapt = True

    def _note(self, source: Source, process: Process, event: StreamEvent) -> None:
        """Remember which runs and chains are open."""
        run_id, kind = event.run_id, event.event_type
        if not run_id:
            return
        run = process.runs.get(run_id)
        if run is None:
            run = process.runs[run_id] = Run()
            self._by_run.setdefault(run_id, set()).add(source.name)
        run.last_seq = max(run.last_seq, event.seq)
        if kind is T.LLM_GENERATION_CHUNK and event.chain_id in run.chains:
            return
        if kind is T.RUN_START:
            run.leader = event.data.get("leader")
        elif kind is T.CHAIN_END:
            run.chains.discard(event.chain_id)
        elif kind is T.RUN_END or (kind is T.GAP and "run_status" in event.data):
            self._end(source, run_id)
        elif event.chain_id:
            run.chains.add(sys.intern(event.chain_id))

    def _end(self, source: Source, run_id: str) -> None:
        """The source has ended its part of a run, and with it those that it led."""
        self._leave(source, run_id)
        for name in list(self._by_run.get(run_id, ())):
            led = self._sources[name]
            if any(e.runs[run_id].leader == source.name for e in led.epochs.values() if run_id in e.runs):
                self._leave(led, run_id)

    def _leave(self, source: Source, run_id: str) -> None:
        """The source says nothing more of the run."""
        owner = next((name for name, each in source.epochs.items() if run_id in each.runs), "")
        self._ended[run_id, source.name] = owner
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        for process in source.epochs.values():
            process.runs.pop(run_id, None)
        sources = self._by_run.get(run_id, set())
        sources.discard(source.name)
        if not sources:
            self._by_run.pop(run_id, None)

    # -- what is safe ----------------------------------------------------------------------------------------------------

    def marks(self) -> list[Mark]:
        """How far each producer was taken of which not everything is safe yet."""
        marks = []
        for (name, epoch), link in self._unsafe.items():
            process = self._sources[name].epochs.get(epoch)
            if process is not None and process.last is not None:
                sender = self._links.get(link)
                own = sender is not None and (sender.name, sender.epoch) == (name, epoch)
                marks.append(Mark(name, epoch, process.last, link, own))
        return marks

    def safe(self, mark: Mark) -> bool:
        """Everything up to the mark is safe. False if its connection has ended, so that nobody need be told."""
        source = self._sources.get(mark.source)
        process = None if source is None else source.epochs.get(mark.epoch)
        if process is None:
            return False
        process.acked = max(process.acked, mark.number)
        link = self._unsafe.get((mark.source, mark.epoch))
        if link is mark.link and process.last == mark.number:
            del self._unsafe[mark.source, mark.epoch]
        return mark.link in self._links

    # -- producers that will not come back -----------------------------------------------------------------------------

    @property
    def due_s(self) -> float | None:
        """Seconds until `due` may have something; None: nothing is planned."""
        times = [
            e.lost_at for s in self._sources.values() for e in s.epochs.values() if e.lost_at is not None
        ]
        return max(0.0, min(times) - self._clock()) if times else None

    def due(self) -> list[StreamEvent]:
        """What is to be said of chains whose process did not come back in time: after its successor, or after the hub was restarted."""
        now, events = self._clock(), list[StreamEvent]()
        for source in self._sources.values():
            for name, process in source.epochs.items():
                if process.lost_at is None or process.lost_at > now:
                    continue
                if name != source.epoch:
                    reason = (
                        f"the process of {shown(source.name)} was replaced by another, and did not come back"
                    )
                else:
                    reason = _not_back(source.name)
                events += self._closing(source, process, reason)
        return events + self._unclaimed_ends(now)

    def _unclaimed_ends(self, now: float) -> list[StreamEvent]:
        """A `gap` for each run that was restored, and that no process can claim."""
        if self._return_by is None or self._return_by > now:
            return []
        unclaimed, self._unclaimed, self._return_by = self._unclaimed, set(), None
        return [
            self._end_of(run_id, name, -1, _not_back(name), "unknown")
            for run_id, name in sorted(unclaimed)
            if name not in self._by_run.get(run_id, ())
        ]

    def _end_of(self, run_id: str, name: str, last_seq: int, reason: str, status: str) -> StreamEvent:
        first = max(last_seq, self._recorded.get((run_id, name), -1)) + 1
        return gap(name, run_id, first, first, {}, reason, run_status=status)

    def _closing(
        self, source: Source, process: Process, reason: str, status: str = "unknown"
    ) -> Iterator[StreamEvent]:
        """A `gap` that stands for the end of each run, as far as this process would have told of it."""
        process.lost_at = None
        for run_id, run in list(process.runs.items()):
            yield self._end_of(run_id, source.name, run.last_seq, reason, status)
            self._leave(source, run_id)

    def lose(self, name: str, status: str = "unknown") -> list[StreamEvent]:
        """What is to be said now that a producer is known to be dead; nothing if it left nothing open.

        Args:
            name: the producer.
            status: what its part of its runs comes to: `completed` if others do its work again.
        """
        source = self._sources.get(name)
        reason = f"the producer {shown(name)} has died"
        processes = [] if source is None else list(source.epochs.values())
        return [
            event for each in processes for event in self._closing(self._sources[name], each, reason, status)
        ]

    # -- what is told ----------------------------------------------------------------------------------------------------

    def is_connected(self, name: str) -> bool:
        """Whether this producer has a connection."""
        return name in self._sources and self._sources[name].link is not None

    def has_ended(self, run_id: str, name: str) -> bool:
        """Whether this producer has ended its part of a run."""
        return (run_id, name) in self._ended

    def knows_run(self, run_id: str) -> bool:
        """Whether a producer has told of this run, and it has not ended."""
        return run_id in self._by_run

    def links_of(self, run_id: str) -> dict[str, ProducerLink]:
        """The connected producers of a run, by source."""
        sources = [self._sources[name] for name in self._by_run.get(run_id, ())]
        return {source.name: source.link for source in sources if source.link is not None}

    def why_unreachable(self, run_id: str) -> str:
        """A sentence about a run of which no producer is connected."""
        sources = [self._sources[name] for name in self._by_run.get(run_id, ())]
        last = max(sources, key=lambda s: s.heard_at)
        silent = self._clock() - last.heard_at
        return f"the producer of this run, {shown(last.name)}, is not connected: it has been silent for {silent:,.0f} s"

    @property
    def links(self) -> list[ProducerLink]:
        """The connected producers."""
        return list(self._links)

    def totals(self) -> dict[str, int]:
        """The sums over all producers: `sources`, `connected`, `events`, `duplicates`, `missing`, `refused`."""
        all_of = self._sources.values()
        return {
            "sources": len(all_of),
            "connected": len(self._links),
            "events": sum(s.events for s in all_of),
            "duplicates": sum(s.duplicates for s in all_of),
            "missing": sum(s.missing for s in all_of),
            "refused": sum(s.refused.total() for s in all_of),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row for each producer, in the order in which they first came: see `sources` in docs/server.md."""
        now = self._clock()
        return [source.row(now) for source in self._sources.values()]


def _not_back(source: str) -> str:
    return f"the producer {shown(source)} did not come back after the hub was started again"
