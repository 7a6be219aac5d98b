"""Which producers a hub knows, and which of them are connected. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rollcast.fleet.sources import Key, Process, Source, shown
from rollcast.serve.protocol import CloseCode, Hello
from rollcast.serve.publishing import ProducerLink, Refused

__all__ = ["Producers"]

MOST_SOURCES = 65_536
MOST_EPOCHS = 8  # of one source; with more, the oldest that has nothing open is forgotten
CLOCK_S = 60.0  # a larger difference of clocks is worth a warning


class Producers:
    """The sources of a hub, by name and by connection.

    Args:
        clock: a monotonic clock in seconds.
        epoch: a clock that gives the seconds since 1970, to compare with those of producers.
        silent_s: a connection that was silent for this many seconds may be replaced by one of another process.
        lost_after_s: how many seconds after its successor came the open chains of a process are given up.
        acked: after a restart of the hub, the processes that it knew, each with the number of its last event that was safe.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        epoch: Callable[[], float],
        silent_s: float,
        lost_after_s: float,
        acked: Mapping[Key, int],
    ) -> None:
        self._clock = clock
        self._epoch_s = epoch
        self._silent_s = silent_s
        self._lost_after_s = lost_after_s
        self._acked = dict(acked)  # of processes that have not come since the hub was started
        self._sources: dict[str, Source] = {}
        self._links: dict[ProducerLink, Source] = {}

    # -- connections -------------------------------------------------------------------------------------------------

    def connect(self, hello: Hello, link: ProducerLink) -> Refused | int:
        """Take a connection. An older one of the same process is closed; of another process only if it is silent.

        Returns:
            The number of the last event that the hub has of this process; 0 if it has none, or has forgotten the process.
        """
        source = self._sources.get(hello.source)
        if source is None:
            if len(self._sources) >= MOST_SOURCES and not self._forget_one():
                return Refused(CloseCode.LIMIT, f"{MOST_SOURCES:,} producers are known; there may be no more")
            source = self.source(hello.source)
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
        process = self.process(source, hello.epoch)
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

    def _forget_one(self) -> bool:
        """Forget the producer that was silent longest, is not connected and has nothing open."""
        gone = [
            s for s in self._sources.values() if s.link is None and not any(e.runs for e in s.epochs.values())
        ]
        if gone:
            del self._sources[min(gone, key=lambda s: s.heard_at).name]
        return bool(gone)

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

    def sender(self, link: ProducerLink) -> Source | None:
        """The source that has this connection; None if the connection was replaced, or has ended."""
        return self._links.get(link)

    @property
    def links(self) -> list[ProducerLink]:
        """The connections of all producers."""
        return list(self._links)

    # -- sources and their processes -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources.values())

    def known(self, name: str) -> Source | None:
        """The source of this name; None if the hub does not know it."""
        return self._sources.get(name)

    def source(self, name: str) -> Source:
        """The source of this name, which the hub knows from now on. If it is new, it counts as heard now."""
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = Source(name)
            source.heard_at = self._clock()
        return source

    def process(self, source: Source, epoch: str) -> Process:
        """The process of a source, which the hub knows from now on; an old one with nothing open may be forgotten for it."""
        process = source.epochs.get(epoch)
        if process is None:
            process = source.epochs[epoch] = Process(self._acked.pop((source.name, epoch), None))
            idle = [name for name, each in source.epochs.items() if not each.runs and name != epoch]
            for name in idle[: max(0, len(source.epochs) - MOST_EPOCHS)]:
                del source.epochs[name]
        return process

    def known_process(self, key: Key) -> Process | None:
        """The process of this source and epoch, if it has come since the hub was started."""
        source = self._sources.get(key[0])
        return None if source is None else source.epochs.get(key[1])

    def acked(self, key: Key) -> int:
        """The number of the last event of this process that is safe; 0 if none is, or the hub does not know the process."""
        process = self.known_process(key)
        return self._acked.get(key, 0) if process is None else process.acked

    def latest_before_restart(self) -> dict[str, str]:
        """For each source, the epoch of the process that came last before the hub was restarted, unless it has come again."""
        return dict(self._acked.keys())

    def postpone_loss(self, process: Process) -> None:
        """Begin the wait anew after which the process is given up, if it is to be given up."""
        if process.lost_at is not None:
            process.lost_at = max(process.lost_at, self._clock() + self._lost_after_s)

    # -- what is told --------------------------------------------------------------------------------------------------

    def is_connected(self, name: str) -> bool:
        """Whether this producer has a connection."""
        return name in self._sources and self._sources[name].link is not None

    def clock_warning(self, source: str) -> str | None:
        """A sentence if the clock of this producer, which is known, is far from the hub's."""
        known = self._sources[source]
        if known.clock_s is None or abs(known.clock_s) <= CLOCK_S:
            return None
        way = "ahead of" if known.clock_s > 0 else "behind"
        return f"the clock of {shown(source)} on host {shown(known.host)} is {abs(known.clock_s):,.0f} s {way} the hub's"

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
