"""The producers of a hub: each source with its processes, and what each of those has open. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rollcast.records import GrammarChecker
from rollcast.serve.publishing import ProducerLink
from rollcast.text import printable_line

__all__ = ["Key", "Process", "Run", "Source", "shown"]

SHOWN = 80  # characters of a name in a sentence

Key = tuple[str, str]  # source and epoch


class Run:
    """A run, as far as one epoch of one source told of it."""

    __slots__ = ("chains", "last_seq", "leader", "leapt")

    def __init__(self) -> None:
        self.last_seq = -1
        self.chains: set[str] = set()  # those that are open
        self.leader: str | None = None  # the source that it ends with
        self.leapt = False  # numbers were left out since its last event


class Process:
    """One process of a source.

    Attributes:
        last: the number of the last event that was taken; None: none was, and the next number may be any.
        acked: the number of the last event that is safe.
        runs: those that are open.
        before: whether the hub knew it before a restart, and may have recorded events of it that were not acknowledged.
        lost_at: the monotonic time in seconds at which its open chains are given up; None: it may come back.
    """

    def __init__(self, acked: int | None) -> None:
        self.last: int | None = acked or None
        self.acked = acked or 0
        self.runs: dict[str, Run] = {}
        self.before = acked is not None
        self.lost_at: float | None = None
        self.grammar = GrammarChecker(late=True)


class Source:
    """A producer, with the counts that `Producers.rows` tells.

    Attributes:
        epoch: of the process that connected last.
        link: its connection; None if it has none.
        connected_at, heard_at: monotonic times in seconds.
        clock_s: how many seconds the producer's clock is ahead of the hub's; None if it did not tell its time.
        events, duplicates, missing: how many were taken, came again, or were left out by the producer.
        refused: how many were not taken, by cause.
        epochs: its processes.
    """

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
        self.epochs: dict[str, Process] = {}

    def row(self, now: float) -> dict[str, Any]:
        """What is told of it: see `sources` in docs/server.md."""
        process = self.epochs.get(self.epoch)
        runs = [run for each in self.epochs.values() for run in each.runs.values()]
        return {
            "source": self.name,
            "host": self.host,
            "epoch": self.epoch,
            "connected": self.link is not None,
            "connected_s": None if self.connected_at is None else round(now - self.connected_at, 3),
            "silent_s": round(now - self.heard_at, 3),
            "clock_s": None if self.clock_s is None else round(self.clock_s, 3),
            "events": self.events,
            "duplicates": self.duplicates,
            "missing": self.missing,
            "refused": dict(self.refused),
            "unacknowledged": 0 if process is None or process.last is None else process.last - process.acked,
            "open_runs": len(runs),
            "open_chains": sum(len(run.chains) for run in runs),
        }


def shown(name: str) -> str:
    """A name that somebody chose, as a sentence shows it."""
    return repr(printable_line(name, SHOWN))
