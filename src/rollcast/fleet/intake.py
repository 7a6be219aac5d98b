"""What a hub has taken of each producer: in order, once, and only what the producer may say. Pure.

    hello    ──connect──▶ Intake ──▶ a number: the last event that the hub has; or why the producer may not connect
    publish  ──take─────▶        ──▶ events to relay; what was refused, in sentences
    time     ──due──────▶        ──▶ a `gap` for each run of a producer that will not come back

Events are known by (source, epoch, number). A producer that sends an event again, since its connection broke before the `ack`, is
taken at its word about the number. A hub that was restarted knows the numbers that were acknowledged (acks_file.py). What was recorded
after that, by processes that it knew before, it drops by run, source and `seq`.

Who is known and connected is in producers.py, what each has open in open_runs.py, and whose record may be handed over in handovers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from rollcast.fleet.handovers import Handovers
from rollcast.fleet.open_runs import OpenRuns
from rollcast.fleet.producers import Producers
from rollcast.fleet.scrutiny import Read, Scrutiny
from rollcast.fleet.sources import Key, Process, Source, shown
from rollcast.records import StreamEvent
from rollcast.serve.protocol import Hello, Publish
from rollcast.serve.publishing import ProducerLink, Refused

__all__ = ["Intake", "Mark", "Taken"]


class Mark(NamedTuple):
    """A number up to which events of a producer were taken.

    Attributes:
        source, epoch, number: whose events, and up to which.
        link: whom to tell when they are safe.
        own: whether it published them as its own; otherwise it handed over the record of another producer.
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
        handover_refused: whether nothing was taken, since the sender may not hand over that record now.
    """

    events: list[Read]
    refused: list[str]
    key: Key
    handover_refused: bool = False


class Intake:
    """What a hub has of its producers. Its owner calls it in one event loop.

    Args:
        clock, epoch, silent_s, lost_after_s, acked: see `Producers`.
        return_s: how many seconds after a restart of the hub a process may take to come back; then what it had left open is given up.
        recorded: after a restart of the hub, the last `seq` that its record has of each run and source; otherwise empty.

    Attributes:
        producers: who is known, and who is connected.
        runs: what producers have open.
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
        self.producers = Producers(
            clock=clock, epoch=epoch, silent_s=silent_s, lost_after_s=lost_after_s, acked=acked or {}
        )
        self._recorded = dict(recorded or {})
        self.runs = OpenRuns(self._recorded)
        self._clock = clock
        self._return_s = return_s
        self._return_by: float | None = None  # for the restored runs whose process is not known
        self._unclaimed: set[tuple[str, str]] = set()  # those, by run and source
        self._handovers = Handovers()
        self._unsafe: dict[Key, ProducerLink] = {}  # those with events that are not known to be safe

    def connect(self, hello: Hello, link: ProducerLink) -> Refused | int:
        """See `Producers.connect`."""
        return self.producers.connect(hello, link)

    def disconnect(self, link: ProducerLink) -> None:
        """The connection has ended. What is open stays open, since the producer may come back."""
        self.producers.disconnect(link)
        self._handovers.forget(link)

    def restore(self, open_events: Iterable[StreamEvent]) -> None:
        """Take what was open in the hub's last life as open, of the latest known process of each source.

        Args:
            open_events: the start of each run, and a snapshot of each chain.
        """
        latest = self.producers.latest_before_restart()
        self._return_by = self._clock() + self._return_s
        for event in open_events:
            epoch = latest.get(event.source)
            if epoch is None:
                self._unclaimed.add((event.run_id, event.source))
                continue
            source = self.producers.source(event.source)
            source.epoch = epoch
            process = self.producers.process(source, epoch)
            process.lost_at = self._return_by
            self.runs.note(source, process, event)

    # -- events --------------------------------------------------------------------------------------------------------

    def key_of(self, link: ProducerLink, frame: Publish) -> Key | None:
        """Whose events these are; None if the connection was replaced, or has ended."""
        sender = self.producers.sender(link)
        return None if sender is None else _key(sender, frame)

    def take(self, link: ProducerLink, frame: Publish) -> Taken:
        """Take the events that the hub does not have yet, and that the producer may publish. `key_of` must not be None."""
        sender = self.producers.sender(link)
        assert sender is not None
        key = _key(sender, frame)
        self.producers.heard(link)
        source = sender
        if key != (sender.name, sender.epoch):
            owner = self.producers.known(key[0])
            wrong = self._handovers.why_not(link, sender, owner, key, frame.seq)
            if wrong is not None:
                sender.refused["handover"] += 1
                return Taken([], [wrong], key, handover_refused=True)
            source = self.producers.source(key[0])
            source.host = source.host or sender.host
        process = self.producers.process(source, key[1])
        self.producers.postpone_loss(process)  # its record is being handed over
        self._unsafe[key] = link
        scrutiny = Scrutiny(source, process, self._recorded, self.runs.ended)
        events = self._new_events(source, process, frame, scrutiny)
        source.events += len(events)
        if frame.last:
            reason = f"the producer {shown(source.name)} has ended without the rest of this run"
            events += [(event, None) for event in self.runs.give_up(source, process, reason)]
        return Taken(events, list(scrutiny.refused.values()), key)

    def _new_events(self, source: Source, process: Process, frame: Publish, scrutiny: Scrutiny) -> list[Read]:
        """The events that the hub did not have, with a `gap` for what it does not take.

        1. Leave out what came before, by its number.
        2. Read each event, and see whether this producer may say it here.
        3. Tell of what was left out before the next event of its run, or at the end.
        """
        _note_missing(source, process, frame.seq)
        first = 0 if process.last is None else max(0, process.last + 1 - frame.seq)
        source.duplicates += min(first, len(frame.events))
        events: list[Read] = []
        lines, at, number = _lines_of(frame.events[first:]), 0, frame.seq + first
        while (at := scrutiny.take_usual(lines, at, events)) < len(lines):
            event = scrutiny.accepted(number + at, lines[at])
            if event is not None:
                if scrutiny.holes.waiting:
                    events += [(hole, None) for hole in scrutiny.holes.before(event.run_id)]
                events.append((event, lines[at]))
                self.runs.note(source, process, event)
            at += 1
        if lines:
            process.last = number + len(lines) - 1
        return events + [(hole, None) for hole in scrutiny.holes.rest()]

    # -- what is safe --------------------------------------------------------------------------------------------------

    def marks(self) -> list[Mark]:
        """How far the events of each producer were taken, unless all of them are known to be safe."""
        marks = []
        for (name, epoch), link in self._unsafe.items():
            process = self.producers.known_process((name, epoch))
            if process is not None and process.last is not None:
                sender = self.producers.sender(link)
                own = sender is not None and (sender.name, sender.epoch) == (name, epoch)
                marks.append(Mark(name, epoch, process.last, link, own))
        return marks

    def safe(self, mark: Mark) -> bool:
        """Everything up to the mark is safe. False if its connection has ended, so that nobody needs to be told."""
        key = mark.source, mark.epoch
        process = self.producers.known_process(key)
        if process is None:
            return False
        process.acked = max(process.acked, mark.number)
        if self._unsafe.get(key) is mark.link and process.last == mark.number:
            del self._unsafe[key]
        return self.producers.sender(mark.link) is not None

    # -- producers that will not come back -----------------------------------------------------------------------------

    def due(self) -> list[StreamEvent]:
        """Give up each process that did not come back in time, after its successor came or the hub was restarted.

        Returns:
            A `gap` for each run that it had open.
        """
        now, events = self._clock(), list[StreamEvent]()
        for source in self.producers:
            for name, process in source.epochs.items():
                if process.lost_at is None or process.lost_at > now:
                    continue
                if name != source.epoch:
                    reason = (
                        f"the process of {shown(source.name)} was replaced by another, and did not come back"
                    )
                else:
                    reason = _not_back(source.name)
                events += self.runs.give_up(source, process, reason)
        return events + self._unclaimed_ends(now)

    def _unclaimed_ends(self, now: float) -> list[StreamEvent]:
        """A `gap` for each run that was restored, and that no process can claim."""
        if self._return_by is None or self._return_by > now:
            return []
        unclaimed, self._unclaimed, self._return_by = self._unclaimed, set(), None
        return [
            self.runs.lost_end(run_id, name, -1, _not_back(name))
            for run_id, name in sorted(unclaimed)
            if name not in {source.name for source in self.runs.sources_of(run_id)}
            and not self.runs.has_ended(run_id, name)
        ]

    def lose(self, name: str, status: str = "unknown") -> list[StreamEvent]:
        """Give up a producer that is known to be dead.

        Args:
            name: the producer.
            status: of its part of its runs: `completed` if others do its work again.

        Returns:
            A `gap` for each run that it had open.
        """
        source = self.producers.known(name)
        if source is None:
            return []
        reason = f"the producer {shown(name)} has died"
        processes = list(source.epochs.values())
        return [event for each in processes for event in self.runs.give_up(source, each, reason, status)]

    def why_unreachable(self, run_id: str) -> str:
        """A sentence about an open run of which no producer is connected."""
        last = max(self.runs.sources_of(run_id), key=lambda s: s.heard_at)
        silent = self._clock() - last.heard_at
        return f"the producer of this run, {shown(last.name)}, is not connected: it has been silent for {silent:,.0f} s"


def _not_back(source: str) -> str:
    return f"the producer {shown(source)} did not come back after the hub was started again"


def _key(sender: Source, frame: Publish) -> Key:
    """Whose events these are: the sender's own, unless the frame names another."""
    return frame.source or sender.name, frame.epoch or sender.epoch


def _lines_of(events: Sequence[msgspec.Raw]) -> list[bytes]:
    """The JSON of each event."""
    lines = b"\n".join(events).split(b"\n")  # a third of what it takes to copy each
    return lines if len(lines) == len(events) else [bytes(raw) for raw in events]


def _note_missing(source: Source, process: Process, number: int) -> None:
    """Note it if numbers are left out before this one. The next event of each run tells which events of the run those were."""
    if process.last is None or number <= process.last + 1:
        return
    source.missing += number - process.last - 1
    for run in process.runs.values():
        run.leapt = True
