"""Which chains of a training are shown: few, and not those of every step, so that they can be read.

What is not shown is not built: the others' tokens never become events.
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
    """Shows the first chains of a rollout, of one at most every three seconds.

    Args:
        manager: of the agent that is trained.
        how_many: chains; they are tries at one question, where a question has as many.
        stream: where to.
        color: True or False; None decides by the stream and the environment.
        clock: in seconds, monotonic.
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
        """Decide about the next rollout. Called between two."""
        if not self.chains:
            return
        now = self._clock()
        wanted = self._shown if now - self._began_at >= _EVERY_S else _NOTHING
        if wanted is self._shown:
            self._began_at = now
        if self._console.filter is not wanted:
            self._console.filter = wanted
            self._manager.refresh(self._console)
