"""What a seed draws: producers, viewers, and what goes wrong when. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Fault", "FaultKind", "Plan", "ViewerManner", "ViewerPlan", "WorkerPlan", "draw"]

WorkerKind = Literal["handmade", "agent"]
ViewerManner = Literal["all", "late", "one_chain", "no_tokens", "leaves_and_returns", "deaf"]
FaultKind = Literal[
    "kill_worker",  # kill -9; another one of that name begins
    "kill_hub",  # kill -9; it begins again with the same record folder
    "stop_hub",  # SIGTERM, the same otherwise
    "freeze_hub",  # SIGSTOP; SIGCONT later
    "freeze_worker",
    "cut_worker",  # the network between a worker and the hub is cut
    "cut_all",  # between the hub and everybody
    "cut_viewer",
    "cut_in_frame",  # after so many bytes, wherever that is
    "stall_worker",
    "vanish_worker",  # a half-open connection
    "vanish_viewer",
]
CLOCK_S = 600.0  # how far apart clocks are
SLOW = (0.2, 0.05, 0.2)  # seconds of delay, share of lost segments, seconds until they are sent again


@dataclass(frozen=True)
class WorkerPlan:
    """A process that produces.

    Attributes:
        source: its name in the fleet.
        host: which folder of records it has.
        kind: runs made by hand, or an agent's.
        runs, chains, turns, tokens: how much it does; a run has so many chains, each of up to so many turns.
        pause_s: the pause between two tokens, at most.
        clock_s: how far its clock is ahead.
        file_limit: no file of its grows beyond so many bytes, as on a full disk; None: its disk has room.
        shares_run: it takes part in the run that several processes share.
        slow: its network has delay and loss; so has that of the others on its host.
        memory: so many bytes of events may wait in memory for the hub, and the others go to the local record; None: as usual.
        drain_s: how long it waits for the hub at its end.
        sweeps: it stays until nothing is left to hand over on its host.
    """

    source: str
    host: int
    kind: WorkerKind
    runs: int
    chains: int
    turns: int
    tokens: int
    pause_s: float
    clock_s: float = 0.0
    file_limit: int | None = None
    shares_run: bool = False
    slow: bool = False
    memory: int | None = None
    drain_s: float = 1.5
    sweeps: bool = False


@dataclass(frozen=True)
class ViewerPlan:
    """A client of the hub; `comes_at`: after so many events in all; `slow`: its network has delay and loss."""

    manner: ViewerManner
    comes_at: int = 0
    slow: bool = False


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        at: after so many events of all producers in all.
        kind: what.
        whom: the number of the worker or viewer, if it is one's.
        until: mended after so many events in all; None: only when every worker has ended, or waits for the hub.
        after_bytes: for `cut_in_frame`.
    """

    at: int
    kind: FaultKind
    whom: int = 0
    until: int | None = None
    after_bytes: int = 0


@dataclass
class Plan:
    """A schedule."""

    seed: int
    workers: list[WorkerPlan]
    viewers: list[ViewerPlan]
    faults: list[Fault]
    hub_clock_s: float = 0.0
    hosts: int = 1
    expected: int = 0  # about how many events the workers emit in all
    notes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The plan, to be read by people."""
        yield f"seed {self.seed}: {len(self.workers)} workers on {self.hosts} hosts, about {self.expected} events"
        if self.hub_clock_s:
            yield f"the hub's clock is {self.hub_clock_s:+.0f} s off"
        for worker in self.workers:
            yield f"{worker}"
        for viewer in self.viewers:
            yield f"{viewer}"
        for fault in self.faults:
            yield f"{fault}"


def draw(seed: int) -> Plan:
    """The plan of this seed, the same every time."""
    rng = random.Random(f"fleet {seed}")
    count = rng.choice((1, 1, 2, 2, 3, 4))
    hosts = rng.choice((1, 1, 2)) if count > 1 else 1
    shares = count > 1 and rng.random() < 0.3
    workers = [_worker(rng, i, count, hosts, shares=shares) for i in range(count)]
    expected = sum(w.runs * (2 + w.chains * (2 + round(w.turns * 0.6) * 5)) for w in workers)
    viewers = [ViewerPlan("all", slow=rng.random() < 0.2)]
    for _ in range(rng.choice((0, 0, 1, 2))):
        manner: ViewerManner = rng.choice(("late", "one_chain", "no_tokens", "leaves_and_returns", "deaf"))
        viewers.append(ViewerPlan(manner, rng.randrange(expected), rng.random() < 0.2))
    faults = sorted(_faults(rng, workers, viewers, expected), key=lambda fault: fault.at)
    hub_clock = rng.choice((0, 0, 0, -CLOCK_S, CLOCK_S))
    return Plan(seed, workers, viewers, faults, hub_clock, hosts, expected)


def _worker(rng: random.Random, number: int, count: int, hosts: int, *, shares: bool) -> WorkerPlan:
    return WorkerPlan(
        source=f"w{number}",
        host=number % hosts,
        kind="handmade" if shares else rng.choice(("handmade", "handmade", "agent")),
        runs=1 if shares else rng.randint(1, 3),
        chains=rng.randint(1, 4 if count > 2 else 8),
        turns=rng.randint(1, 4),
        tokens=rng.randint(2, 30),
        pause_s=rng.choice((0.001, 0.004, 0.01)),
        clock_s=rng.choice((0, 0, 0, CLOCK_S, -CLOCK_S)),
        file_limit=rng.choice((None, None, None, None, 0, 3000)),
        shares_run=shares,
        slow=rng.random() < 0.2,
        memory=rng.choice((None, None, 0, 2000)),
    )


def _faults(
    rng: random.Random, workers: list[WorkerPlan], viewers: list[ViewerPlan], expected: int
) -> Iterator[Fault]:
    kinds: list[FaultKind] = [
        "kill_worker", "kill_hub", "kill_hub", "stop_hub", "freeze_hub", "freeze_worker", "cut_worker", "cut_worker", "cut_all",
        "cut_viewer", "cut_in_frame", "stall_worker", "vanish_worker", "vanish_viewer",
    ]  # fmt: skip
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        kind = rng.choice(kinds)
        at = rng.randrange(expected)
        until = None if rng.random() < 0.15 else at + rng.randrange(1, max(2, expected // 2))
        whom = rng.randrange(len(viewers if kind.endswith("_viewer") else workers))
        if kind.startswith("freeze"):
            until = at + rng.randrange(1, 20)
        yield Fault(at, kind, whom, until, rng.randrange(20_000))
