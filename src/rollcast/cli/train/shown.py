"""Chooses which chains of a training are shown: few, and not in every step, so that they can be read.

The others cost nothing: their tokens never become events.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from rollcast.records import EventFilter, StreamEventType
from rollcast.stream import StreamingManager
from rollcast.terminal import ConsoleStreamObserver

__all__ = ["ShownChains"]

_EVERY_S = 3.0
_NOTHING = EventFilter(chains=())


class ShownChains:
    """Shows the first chains of a rollout, at most one rollout every three seconds.

    Args:
        manager: the manager of the agent that is trained.
        how_many: how many chains to show; all are of one question, if a question has as many.
        stream: where to print them.
        color: True or False; None: decided by the stream and the environment.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        manager: StreamingManager,
        how_many: int,
        stream: TextIO,
        *,
        color: bool | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.chains = [f"chain_{i}" for i in range(how_many)]
        self._manager = manager
        self._clock = clock
        self._began_at = clock()
        self._shown = EventFilter(chains=self.chains) | EventFilter(types=StreamEventType.RUN_START)
        self._console = ConsoleStreamObserver(False, self._shown, file=stream, color=color)
        if how_many:
            manager.add_observer(self._console)

    def next_step(self) -> None:
        """Decide whether to show the next rollout. Called between two rollouts."""
        if not self.chains:
            return
        now = self._clock()
        wanted = self._shown if now - self._began_at >= _EVERY_S else _NOTHING
        if wanted is self._shown:
            self._began_at = now
        if self._console.filter is not wanted:
            self._console.filter = wanted
            self._manager.refresh(self._console)
