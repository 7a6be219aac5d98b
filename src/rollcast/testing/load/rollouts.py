"""The runs of a load: each takes so many chains, one after another, and closes when all of them have ended."""

from __future__ import annotations

from collections import Counter, deque
from functools import partial

from rollcast.records import StreamEventType
from rollcast.records.event import RunStatus
from rollcast.stream import RunWriter, StreamingManager
from rollcast.testing.load.plan import Load

__all__ = ["Rollout", "Rollouts", "Tally"]

T = StreamEventType


class Tally:
    """Counts events, other than chunks.

    Attributes:
        events: by type.
        total: of all types, since it was last set to 0.
    """

    def __init__(self) -> None:
        self.events: Counter[T] = Counter()
        self.total = 0

    def count(self, *kinds: T) -> None:
        """Add an event of each of these types."""
        self.total += len(kinds)
        for kind in kinds:
            self.events[kind] += 1


class Rollout:
    """A run, and how many chains it has yet to begin and to end."""

    def __init__(self, run: RunWriter, size: int) -> None:
        self.run = run
        self.to_begin = self.to_end = size


class Rollouts:
    """Opens and closes runs.

    Attributes:
        cancelled: what watchers have cancelled: a run, and a chain of it or None. It is added to from any thread.
        begun: how many runs there were.
    """

    def __init__(self, manager: StreamingManager, load: Load, tally: Tally, *, live: bool) -> None:
        self._manager = manager
        self._load = load
        self._tally = tally
        self._live = live
        self._open: list[Rollout] = []  # the last one is that in which the next chain begins
        self.cancelled: deque[tuple[Rollout, str | None]] = deque()
        self.begun = 0

    def begin_chain(self) -> Rollout:
        """The run in which the next chain begins, with one chain less to begin."""
        if not self._open or not self._open[-1].to_begin:
            self._open.append(self._next())
        rollout = self._open[-1]
        rollout.to_begin -= 1
        return rollout

    def _next(self) -> Rollout:
        load = self._load
        size = load.chains_per_run or load.chains
        groups = -(-size // load.group_size)
        run = self._manager.run(
            live=self._live, chains=size, groups=groups, agent="load", model="synthetic", seed=load.seed
        )
        rollout = Rollout(run, size)
        run.on_cancel = partial(self._note_cancelled, rollout)
        run.open()
        self.begun += 1
        self._tally.count(T.RUN_START)
        return rollout

    def _note_cancelled(self, rollout: Rollout, chain_id: str | None) -> None:
        self.cancelled.append((rollout, chain_id))

    def close_if_over(self, rollout: Rollout) -> None:
        """Close the run if it has had all its chains."""
        if not rollout.to_end:
            self.close(rollout, "completed")

    def close(self, rollout: Rollout, status: RunStatus) -> None:
        """Close the run if it is open."""
        if rollout in self._open:
            self._open.remove(rollout)
            rollout.run.close(status)
            self._tally.count(T.RUN_END)

    def close_all(self, status: RunStatus) -> None:
        """Close those that are open."""
        for rollout in list(self._open):
            self.close(rollout, status)
