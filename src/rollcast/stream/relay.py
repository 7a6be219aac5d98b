"""Passes on the events of runs that are produced elsewhere, with the hooks that a local run would call."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.codec import encode_described
from rollcast.records.event import OpenToolCall
from rollcast.records.lanes import RunSources
from rollcast.stream.fanout import Fanout, OpenPart, Route, Targets
from rollcast.stream.folding import FoldedChain
from rollcast.stream.queue import Control, event_size
from rollcast.stream.shared_run import SharedRun
from rollcast.stream.waiting import EncodableChunk, EncodableEvent, Relayed, event_of

__all__ = ["Relay", "relayable"]

T = StreamEventType
# Looked up for every event: as attributes of their class they take ten times as long.
CHUNK, CHAIN_START, CHAIN_END, RUN_START, GAP = (
    T.LLM_GENERATION_CHUNK,
    T.CHAIN_START,
    T.CHAIN_END,
    T.RUN_START,
    T.GAP,
)
_KINDS = (
    ("event_type", str),
    ("chain_id", str),
    ("run_id", str),
    ("source", str),
    ("data", dict),
    ("seq", int),
)
_OPENING_OR_ENDING = frozenset((T.RUN_START, T.RUN_END, T.GAP))  # a source's part of a run
EVENT_BYTES, BYTES_OF_ONE = (
    400,
    3,
)  # about the memory of an event, beside what its JSON takes and for each byte of it
RUNS_LIMIT = 512  # open at once, unless somebody knows which producers are there


def relayable(event: StreamEvent) -> StreamEvent:
    """The event; if its type is given by its name, with the type itself.

    Raises:
        InputError: it is not a StreamEvent, or a field that `Relay` reads has the wrong type.
    """
    if not isinstance(event, StreamEvent):
        raise InputError(
            f"relay got {type(event).__name__}; expected a StreamEvent, as rollcast.records.decode gives"
        )
    for name, kind in _KINDS:
        if not isinstance(value := getattr(event, name), kind):
            raise InputError(
                f"relay got an event whose {name} is {type(value).__name__}; expected {kind.__name__}, "
                "as in what rollcast.records.decode gives"
            )
    if type(event.event_type) is StreamEventType:
        return event
    return msgspec.structs.replace(event, event_type=StreamEventType.of(str.__str__(event.event_type)))


class Relay:
    """Passes on events that already have their `seq` to one fanout.

    A run opens with its first event and closes with its `run_end`, or with a `gap` that stands for it; one of several sources
    closes when each of them has ended. While it is open, observers that join get a snapshot of each of its chains, as far as the
    relayed events show them.

    Attributes:
        runs_limit: how many runs may be open at once; with more, the oldest counts as closed, since its producer may be gone.
    """

    def __init__(self, fanout: Fanout) -> None:
        self.runs_limit = RUNS_LIMIT
        self._fanout = fanout
        self._runs: dict[str, _RelayedRun] = {}

    def pass_on_locked(self, event: StreamEvent) -> None:
        """Queue the event for every reader that wants it, and the hooks around it."""
        self.pass_all_on_locked([(event, None)])

    def pass_all_on_locked(self, read: Iterable[tuple[Relayed, bytes | None]]) -> None:
        """Do `pass_on_locked` for each event, given with its JSON if somebody has it. Those for the same readers are queued together."""
        fanout, runs = self._fanout, self._runs
        stretch = _Stretch(fanout)
        version, of_tokens = fanout.version, fanout.targets_anywhere(CHUNK)
        try:
            for event, line in read:
                if event.__class__ is EncodableChunk and line is not None:
                    run = runs.get(event.run_id)
                    if run is not None and run.is_next_token(event):
                        targets = run.route(event).targets_locked(CHUNK) if of_tokens is None else of_tokens
                        if targets is not stretch.targets:
                            stretch.begin(targets)
                            of_tokens = fanout.targets_anywhere(CHUNK)
                        stretch.events.append(event)
                        stretch.lines.append(line)
                        continue
                elif isinstance(event, EncodableEvent):
                    run = runs.get(event.run_id)
                    if run is not None and run.note_within(event, line):
                        wanted = fanout.targets_anywhere(event.event_type)
                        targets = self._targets_of(event, run) if wanted is None else wanted
                        if targets is not stretch.targets:
                            stretch.begin(targets)
                        stretch.events.append(event)
                        stretch.lines.append(line)
                        if event.event_type is CHAIN_END:
                            self._close_chain(run, event.chain_id, stretch)
                        continue
                self._pass_on(event, line, stretch)
                if of_tokens is None or fanout.version != version:
                    version, of_tokens = fanout.version, fanout.targets_anywhere(CHUNK)
        finally:
            stretch.queue()

    def _pass_on(self, relayed: Relayed, line: bytes | None, stretch: _Stretch) -> None:
        event = relayed if isinstance(relayed, EncodableEvent) else event_of(relayed)
        run_id = event.run_id
        run = self._runs.get(run_id)
        if run is None and run_id:
            stretch.queue()
            run = self._part_of_own(run_id) if run_id in self._fanout.runs else self._open(run_id)
        if targets := self._targets_of(event, run):
            if targets is not stretch.targets:
                stretch.begin(targets)
            stretch.events.append(event)
            stretch.lines.append(line)
        if run is None:
            return
        ended = run.note(event, line)
        kind = event.event_type
        if kind is CHAIN_END:
            self._close_chain(run, event.chain_id, stretch)
        for source in ended:
            for chain_id in run.chains_of(source):  # their ends were lost
                self._close_chain(run, chain_id, stretch)
        if kind is CHAIN_START:
            self._fanout.runs[run_id].announced.pop(event.chain_id, None)
        elif ended and run.sources.over and run_id in self._runs:
            self._close(run, stretch)

    def _targets_of(self, event: StreamEvent | EncodableEvent, run: _RelayedRun | None) -> Targets:
        fanout, kind = self._fanout, event.event_type
        if kind is GAP:  # it may stand for any event of its run
            return tuple(d for d in fanout.deliveries if d.filter.wants_gap(event.run_id, event.source))
        if (known := fanout.targets_anywhere(kind)) is not None:
            return known
        if run is None or fanout.same_for_all_chains or not kind.known:
            # A route would remember each name of a type for ever, and takes memory for each chain.
            return fanout.interested(kind, event.chain_id, event.group_id, event.run_id, event.source)
        return run.route(event).targets_locked(kind)

    def close_locked(self) -> None:
        """Close every run: nothing more will come."""
        stretch = _Stretch(self._fanout)
        for run in list(self._runs.values()):
            self._close(run, stretch)

    def _part_of_own(self, run_id: str) -> _RelayedRun:
        """What is relayed of a run that this process has open itself; it closes with that."""
        own = self._fanout.runs[run_id]
        if isinstance(own, SharedRun):
            assert isinstance(own.elsewhere, _RelayedRun)
            return own.elsewhere
        run = _RelayedRun(self._fanout, run_id)
        self._fanout.runs[run_id] = SharedRun(own, run)
        return run

    def _open(self, run_id: str) -> _RelayedRun:
        if len(self._runs) >= self.runs_limit:
            self._close(next(iter(self._runs.values())), _Stretch(self._fanout))
        run = self._runs[run_id] = self._fanout.runs[run_id] = _RelayedRun(self._fanout, run_id)
        self._fanout.broadcast_locked(Control("run_opened", run_id))
        return run

    def _close_chain(self, run: _RelayedRun, chain_id: str, stretch: _Stretch) -> None:
        run.forget(chain_id)
        if self._fanout.follows_chains:
            stretch.queue()
            self._fanout.broadcast_locked(Control("chain_closed", run.run_id, chain_id))

    def _close(self, run: _RelayedRun, stretch: _Stretch) -> None:
        for chain_id in list(run.chains):
            self._close_chain(run, chain_id, stretch)
        stretch.queue()
        del self._runs[run.run_id], self._fanout.runs[run.run_id]
        self._fanout.broadcast_locked(Control("run_closed", run.run_id))


class _Stretch:
    """Relayed events that follow each other and are not queued yet, all for the same deliveries.

    Attributes:
        targets: the deliveries.
        events: the events.
        lines: the JSON of each; None: it was made here.
    """

    __slots__ = ("_fanout", "events", "lines", "targets")

    def __init__(self, fanout: Fanout) -> None:
        self.targets: Targets = ()
        self.events: list[Relayed] = []
        self.lines: list[bytes | None] = []
        self._fanout = fanout

    def begin(self, targets: Targets) -> None:
        """Queue what was put in, and begin anew for these deliveries."""
        self.queue()
        self.targets = targets

    def queue(self) -> None:
        """Queue what was put in."""
        if self.events:
            self._fanout.publish_relayed_locked(self.events, self.lines, self.targets, self._size())
            self.events, self.lines = [], []

    def _size(self) -> int:
        """About how much memory they take."""
        if None not in self.lines:  # mostly
            return EVENT_BYTES * len(self.lines) + BYTES_OF_ONE * sum(map(len, self.lines))  # type: ignore[arg-type]
        read = [line for line in self.lines if line is not None]
        made = [event for event, line in zip(self.events, self.lines, strict=True) if line is None]
        return EVENT_BYTES * len(read) + BYTES_OF_ONE * sum(map(len, read)) + sum(map(event_size, made))


class _RelayedRun:
    """See `OpenRun`."""

    def __init__(self, fanout: Fanout, run_id: str) -> None:
        self._fanout = fanout
        self.run_id = run_id
        self.sources = RunSources()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.parent_run_id: str | None = None
        self.expected_chains = 0  # of all sources
        self.on_cancel: Callable[[str | None], object] | None = None
        self.announced: dict[str, str | None] = {}
        self.chains: dict[str, FoldedChain] = {}
        self._ended: dict[str | None, int] = {}  # how many chains have ended, by group
        self._routes: dict[str, Route] = {}
        self._expected: dict[str, int] = {}  # by source
        self._as_of: dict[str, int] = {}

    def route(self, event: Relayed) -> Route:
        """The route of the event's chain."""
        route = self._routes.get(event.chain_id)
        if route is None or route.place.source != event.source:
            route = Route(self._fanout, self.run_id, event.chain_id, event.group_id, event.source)
            self._routes[event.chain_id] = route
        return route

    def is_next_token(self, chunk: EncodableChunk) -> bool:
        """Whether the chunk continues what came of its chain. If so, it is noted, as by `note`."""
        chain, seq, source = self.chains.get(chunk.chain_id), chunk.seq, chunk.source
        if chain is None or source != chain.source or self._as_of.get(source, seq) >= seq:
            return False
        if not chain.is_next_token(chunk):
            return False
        self._as_of[source] = seq
        return True

    def note_within(self, event: EncodableEvent, line: bytes | None) -> bool:
        """Do the same as `note` for an event of an open chain. Returns whether it is one."""
        chain, seq, source = self.chains.get(event.chain_id), event.seq, event.source
        if chain is None or self._as_of.get(source, seq) >= seq:
            return False
        self._as_of[source] = seq
        chain.note(event, line)
        return True

    def note(self, event: StreamEvent | EncodableEvent, line: bytes | None) -> list[str]:
        """Remember what a late observer must know; returns the sources whose part of the run ends with the event."""
        source = event.source
        known = self._as_of.get(source)
        if known is None or event.seq > known:
            self._as_of[source] = event.seq
        if known is not None and event.event_type not in _OPENING_OR_ENDING:
            ended = []
        else:
            ended = self.sources.note(event_of(event))
        if isinstance(event, StreamEvent) and event.event_type is RUN_START:
            self.parent_run_id = event.data.get("parent_run_id")
            self._expected[source] = event.data.get("chains", 0)
            self.expected_chains = sum(self._expected.values())
        elif event.chain_id:
            chain = self.chains.get(event.chain_id)
            if chain is None:
                chain = self.chains[sys.intern(event.chain_id)] = FoldedChain(event)
                self._fanout.make_room_locked(len(self.chains))
            chain.note(event, line)
        elif event.event_type is GAP:
            line = encode_described(event_of(event)) if line is None else line
            for chain in self.chains.values():
                chain.note(event, line)
        return ended

    def forget(self, chain_id: str) -> None:
        """Forget a chain that has ended."""
        chain = self.chains.pop(chain_id, None)
        self._routes.pop(chain_id, None)
        if chain is not None:
            self._ended[chain.group_id] = self._ended.get(chain.group_id, 0) + 1

    def chains_of(self, source: str) -> list[str]:
        """The open chains of one source."""
        return [name for name, chain in self.chains.items() if chain.source == source]

    def as_of(self) -> Mapping[str, int]:
        """See `OpenRun.as_of`."""
        return self._as_of

    def next_seq(self, source: str) -> int | None:
        """See `OpenRun.next_seq`."""
        if source not in self._as_of:
            return None
        self._as_of[source] += 1
        return self._as_of[source]

    def has_chain(self, chain_id: str) -> bool:
        """See `OpenRun.has_chain`."""
        return chain_id in self.chains

    def tell_all(self, chain_id: str) -> None:
        """See `OpenRun.tell_all`: relayed chains cannot be asked, so all of their events are given anyway."""

    def place_in(self, chain_id: str) -> tuple[int, int] | None:
        """See `OpenRun.place_in`."""
        chain = self.chains.get(chain_id)
        if chain is None:
            return None
        view = chain.view()
        return view.step or 0, 0 if view.generation is None else view.generation.end

    def chain_ids(self, group_id: str | None = None) -> list[str]:
        """See `OpenRun.chain_ids`."""
        return [name for name, chain in self.chains.items() if group_id in (None, chain.group_id)]

    def count_ended(self, group_id: str | None = None) -> int:
        """See `OpenRun.count_ended`."""
        return sum(self._ended.values()) if group_id is None else self._ended.get(group_id, 0)

    def open_part(self, chain_id: str) -> OpenPart | None:
        """See `OpenRun.open_part`."""
        chain = self.chains.get(chain_id)
        if chain is None or not chain.has_part:
            return None
        view = chain.view()
        if view.content is None and not view.tool_calls:
            return None
        calls = [
            OpenToolCall(
                call_id=call.call_id,
                tool_name=call.tool_name,
                arguments=call.arguments or {},
                observation=call.output.text,
            )
            for call in view.tool_calls.values()
        ]
        return OpenPart(
            self.run_id, chain_id, view.group_id, view.step, view.depth, self._as_of.get(view.source, -1), view.content, view.content_omitted, calls
        )  # fmt: skip

    def standing(self) -> tuple[int, int]:
        """See `OpenRun.standing`. The run's tokens were sampled elsewhere and are not counted here."""
        return len(self.chains), 0

    def snapshots(self, filter: EventFilter, besides: EventFilter | None) -> Iterator[StreamEvent]:
        """See `OpenRun.snapshots`."""
        for chain_id, chain in self.chains.items():
            place = (chain_id, chain.group_id, self.run_id, chain.source)
            if filter.wants_snapshot(*place) and not (besides and besides.wants_snapshot(*place)):
                yield chain.view().snapshot()
