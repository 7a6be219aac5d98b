"""What a hub has taken of each producer: in order, once, and only what the producer may say. Pure.

    hello    ──connect──▶ Intake ──▶ a number: the last event that the hub has; or why the producer may not connect
    publish  ──take─────▶        ──▶ events to relay; what was refused, in sentences
    time     ──due──────▶        ──▶ what to say of the chains of producers that will not come back

Events are known by (source, epoch, number). A producer that sends an event again, since its connection broke before the `ack`, is
taken at its word about the number. A hub that was restarted has forgotten the numbers: of processes that it knew before, it drops
the events that its record has, by run, source and `seq`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from rollcast.errors import DecodeError
from rollcast.records import StreamEvent, StreamEventType, decode
from rollcast.serve.protocol import CloseCode, Hello, Publish
from rollcast.serve.publishing import ProducerLink, Refused
from rollcast.text import printable_line

__all__ = ["Intake", "Key", "Mark", "Taken"]

T = StreamEventType
MOST_SOURCES = 65_536
MOST_EPOCHS = 8  # of one source; with more, the oldest that has nothing open is forgotten
MOST_CHAINS = 262_144  # open at a time, of one source
MOST_RUNS = 512  # open at a time, of one source
MOST_ENDED = 65_536  # runs that are remembered as ended
CLOCK_S = 60.0  # a larger difference of clocks is worth a warning
SHOWN = 80

Key = tuple[str, str]  # source and epoch


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
        events: to be relayed, in order.
        refused: what was not taken, a sentence each; at most one for each cause.
        key: whose events they were.
    """

    events: list[StreamEvent]
    refused: list[str]
    key: Key


class _Run:
    """A run, as far as one epoch of one source told of it."""

    __slots__ = ("chains", "last_seq", "leader")

    def __init__(self) -> None:
        self.last_seq = -1
        self.chains: set[str] = set()  # those that are open
        self.leader: str | None = None  # the source that it ends with


class _Epoch:
    """One process of a source.

    Attributes:
        last: the number of the last event that was taken; None: none was, and the next number may be any.
        acked: the number of the last event that is safe.
        runs: those that are open.
        before: the hub knew it before it was restarted, and may have recorded events of it that were not acknowledged.
        lost_at: when its open chains are given up; None: it may come back.
    """

    def __init__(self, acked: int | None) -> None:
        self.last: int | None = acked or None
        self.acked = acked or 0
        self.runs: dict[str, _Run] = {}
        self.before = acked is not None
        self.lost_at: float | None = None


class _Source:
    """A producer, with the counts that `Intake.rows` tells."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.host = ""
        self.epoch = ""
        self.link: ProducerLink | None = None
        self.connected_at: float | None = None
        self.heard_at = 0.0
        self.clock_s: float | None = None
        self.events = self.duplicates = self.missing = 0
        self.refused: Counter[str] = Counter()
        self.epochs: dict[str, _Epoch] = {}


class Intake:
    """What a hub has of its producers. Its owner calls it in one event loop.

    Args:
        clock: a monotonic clock in seconds.
        epoch: gives the seconds since the epoch, to compare clocks.
        silent_s: a connection that has said nothing for as long may be replaced by one of another process.
        lost_after_s: how long after its successor came the open chains of a process are given up.
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
        recorded: Mapping[tuple[str, str], int] | None = None,
        acked: Mapping[Key, int] | None = None,
    ) -> None:
        self._clock = clock
        self._epoch_s = epoch
        self._silent_s = silent_s
        self._lost_after_s = lost_after_s
        self._recorded = dict(recorded or {})
        self._acked = dict(acked or {})  # of processes that have not come since the hub was started
        self._sources: dict[str, _Source] = {}
        self._links: dict[ProducerLink, _Source] = {}
        self._by_run: dict[str, set[str]] = {}  # the sources that told of an open run
        self._ended: dict[tuple[str, str], None] = {}  # the latest runs that ended, by source
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
            source = self._sources[hello.source] = _Source(hello.source)
        if source.link is not None and (refused := self._replace(source, hello)) is not None:
            return refused
        now = self._clock()
        for name, each in source.epochs.items():
            if name != hello.epoch and each.runs and each.lost_at is None:
                each.lost_at = now + self._lost_after_s
        source.link, source.host, source.epoch = link, hello.host, hello.epoch
        source.connected_at = source.heard_at = now
        source.clock_s = None if hello.time is None else hello.time - self._epoch_s()
        self._links[link] = source
        process = self._process(source, hello.epoch)
        process.lost_at = None
        return process.acked

    def _replace(self, source: _Source, hello: Hello) -> Refused | None:
        """Close the connection that a source has; or say why the new one may not take its place."""
        link = source.link
        assert link is not None
        silent_s = self._clock() - source.heard_at
        if source.epoch != hello.epoch and silent_s < self._silent_s:
            name, host = _shown(source.name), _shown(source.host or "?")
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
        return f"the clock of {_shown(source)} on host {_shown(known.host)} is {abs(known.clock_s):,.0f} s {way} the hub's"

    def _process(self, source: _Source, epoch: str) -> _Epoch:
        process = source.epochs.get(epoch)
        if process is None:
            process = source.epochs[epoch] = _Epoch(self._acked.pop((source.name, epoch), None))
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
        for event in open_events:
            epoch = latest.get(event.source)
            if epoch is None:
                continue
            source = self._sources.setdefault(event.source, _Source(event.source))
            source.epoch = epoch
            self._note(source, self._process(source, epoch), event)

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
            wrong = self._wrong_in_handover(sender, key)
            if wrong is not None:
                sender.refused["handover"] += 1
                return Taken([], [wrong], key)
            source = self._sources.setdefault(key[0], _Source(key[0]))
            source.host = source.host or sender.host
        process = self._process(source, key[1])
        if process.lost_at is not None:
            process.lost_at = self._clock() + self._lost_after_s  # its record is being handed over
        self._unsafe[key] = link
        events = [*self._skipped(source, process, frame)]
        refused: dict[str, str] = {}
        first = 0 if process.last is None else max(0, process.last + 1 - frame.seq)
        source.duplicates += min(first, len(frame.events))
        for number, raw in enumerate(frame.events[first:], frame.seq + first):
            event = self._event(source, process, number, raw, refused)
            if event is not None:
                if event.event_type is T.RUN_START:
                    events += self._superseded(source, process, event.run_id)
                events.append(event)
                self._note(source, process, event)
            process.last = number
        source.events += len(events)
        if frame.last:
            reason = f"the producer {_shown(source.name)} has ended without the rest of this run"
            events += self._closing(source, process, reason)
        return Taken(events, list(refused.values()), key)

    def _wrong_in_handover(self, sender: _Source, key: Key) -> str | None:
        """Why this producer may not hand over the record of another one; None if it may."""
        other = self._sources.get(key[0])
        name = _shown(key[0])
        if other is None:
            return None
        if other.link is not None and other.epoch == key[1]:
            return f"the record of source {name} is handed over, but that producer is connected itself"
        if other.host and sender.host and other.host != sender.host:
            return (
                f"the record of source {name} is handed over from host {_shown(sender.host)}, but it was written on "
                f"{_shown(other.host)}"
            )
        return None

    def _skipped(self, source: _Source, process: _Epoch, frame: Publish) -> Iterator[StreamEvent]:
        """A `gap` for each open run if numbers are left out, so that nothing is lost silently."""
        if process.last is None or frame.seq <= process.last + 1:
            return
        count = frame.seq - process.last - 1
        source.missing += count
        reason = f"the producer {_shown(source.name)} left out {count:,} events"
        for run_id, run in process.runs.items():
            yield _gap(source.name, run_id, run.last_seq + 1, reason)

    def _event(
        self, source: _Source, process: _Epoch, number: int, raw: msgspec.Raw, refused: dict[str, str]
    ) -> StreamEvent | None:
        """The event, if the hub takes it and does not have it."""
        try:
            event = decode(bytes(raw))
        except DecodeError as error:
            self._refuse(source, refused, "not an event", f"event {number} was not taken: {error}")
            return None
        if event.source != source.name:
            self._refuse(
                source, refused, "forged source",
                f"event {number} was not taken: its source is {_shown(event.source)}, and the producer's {_shown(source.name)}",
            )  # fmt: skip
            return None
        if process.before and event.seq <= self._recorded.get((event.run_id, event.source), -1):
            source.duplicates += 1
            return None
        crowded = self._crowded(source, process, event)
        if crowded is not None:
            self._refuse(source, refused, "too many", f"event {number} was not taken: {crowded}")
            return None
        return event

    def _refuse(self, source: _Source, refused: dict[str, str], cause: str, sentence: str) -> None:
        source.refused[cause] += 1
        refused.setdefault(cause, printable_line(sentence))

    def _crowded(self, source: _Source, process: _Epoch, event: StreamEvent) -> str | None:
        """Why an event that opens a run or a chain is one too many."""
        run = process.runs.get(event.run_id)
        if run is None and len(process.runs) >= MOST_RUNS:
            return f"the producer has {len(process.runs)} open runs; there may be no more"
        if (
            event.event_type is T.CHAIN_START
            and sum(len(r.chains) for r in process.runs.values()) >= MOST_CHAINS
        ):
            return f"the producer has {MOST_CHAINS:,} open chains; there may be no more"
        return None

    def _note(self, source: _Source, process: _Epoch, event: StreamEvent) -> None:
        """Remember which runs and chains are open."""
        run_id, kind = event.run_id, event.event_type
        if not run_id or (run_id, source.name) in self._ended:
            return
        run = process.runs.get(run_id)
        if run is None:
            run = process.runs[run_id] = _Run()
            self._by_run.setdefault(run_id, set()).add(source.name)
        run.last_seq = max(run.last_seq, event.seq)
        if kind is T.RUN_START:
            run.leader = event.data.get("leader")
        elif kind is T.CHAIN_END:
            run.chains.discard(event.chain_id)
        elif kind is T.RUN_END or (kind is T.GAP and "run_status" in event.data):
            self._end(source, run_id)
        elif event.chain_id:
            run.chains.add(event.chain_id)

    def _end(self, source: _Source, run_id: str) -> None:
        """The source has ended its part of a run, and with it those that it led."""
        self._leave(source, run_id)
        for name in list(self._by_run.get(run_id, ())):
            led = self._sources[name]
            if any(e.runs[run_id].leader == source.name for e in led.epochs.values() if run_id in e.runs):
                self._leave(led, run_id)

    def _leave(self, source: _Source, run_id: str) -> None:
        """The source says nothing more of the run."""
        self._ended[run_id, source.name] = None
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
        """What is to be said of chains whose process has a successor and did not come back in time."""
        now, events = self._clock(), list[StreamEvent]()
        for source in self._sources.values():
            for name, process in source.epochs.items():
                if process.lost_at is not None and process.lost_at <= now and name != source.epoch:
                    reason = (
                        f"the process of {_shown(source.name)} was replaced by another, and did not come back"
                    )
                    events += self._closing(source, process, reason)
        return events

    def _closing(self, source: _Source, process: _Epoch, reason: str) -> Iterator[StreamEvent]:
        """A `gap` that stands for the end of each run, as far as this process would have told of it."""
        process.lost_at = None
        for run_id, run in list(process.runs.items()):
            yield _gap(source.name, run_id, run.last_seq + 1, reason, run_status="unknown")
            self._leave(source, run_id)

    def _superseded(self, source: _Source, process: _Epoch, run_id: str) -> Iterator[StreamEvent]:
        """How the part of a run ends that an earlier process of the source began, now that this one begins it again."""
        for each in source.epochs.values():
            run = each.runs.get(run_id)
            if run is not None and each is not process:
                reason = f"another process of {_shown(source.name)} began this run again"
                yield _gap(source.name, run_id, run.last_seq + 1, reason, run_status="unknown")
                self._leave(source, run_id)
        self._ended.pop((run_id, source.name), None)

    def lose(self, name: str) -> list[StreamEvent]:
        """What is to be said now that a producer is known to be dead; nothing if it left nothing open."""
        source = self._sources.get(name)
        reason = f"the producer {_shown(name)} has died"
        processes = [] if source is None else list(source.epochs.values())
        return [event for each in processes for event in self._closing(self._sources[name], each, reason)]

    # -- what is told ----------------------------------------------------------------------------------------------------

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
        return f"the producer of this run, {_shown(last.name)}, is not connected: it has been silent for {silent:,.0f} s"

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
        return [self._row(source) for source in self._sources.values()]

    def _row(self, source: _Source) -> dict[str, Any]:
        now, process = self._clock(), source.epochs.get(source.epoch)
        runs = [run for each in source.epochs.values() for run in each.runs.values()]
        return {
            "source": source.name,
            "host": source.host,
            "epoch": source.epoch,
            "connected": source.link is not None,
            "connected_s": None if source.connected_at is None else round(now - source.connected_at, 3),
            "silent_s": round(now - source.heard_at, 3),
            "clock_s": None if source.clock_s is None else round(source.clock_s, 3),
            "events": source.events,
            "duplicates": source.duplicates,
            "missing": source.missing,
            "refused": dict(source.refused),
            "unacknowledged": 0 if process is None or process.last is None else process.last - process.acked,
            "open_runs": len(runs),
            "open_chains": sum(len(run.chains) for run in runs),
        }


def _shown(name: str) -> str:
    return repr(printable_line(name, SHOWN))


def _gap(source: str, run_id: str, seq: int, reason: str, **rest: str) -> StreamEvent:
    """A gap from this `seq` on, of which nobody knows how long it is."""
    event = StreamEvent.now(T.GAP, "", from_seq=seq, to_seq=seq, dropped={}, reason=reason, **rest)
    return msgspec.structs.replace(event, seq=seq, run_id=run_id, source=source)
