"""Says the same thing about the same producer once in a while, however often it happens. Pure."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Repeated"]

EVERY_S = 60.0
MOST = 4096


class Repeated:
    """When what was last said, and how often it has happened since.

    Args:
        clock: a monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def held(self, what: tuple[str, str]) -> int | None:
        """How often it happened unsaid since it was last said, if it is to be said now; None if it is not."""
        now = self._clock()
        at, count = self._said.pop(what, (None, 0))
        if at is not None and now - at < EVERY_S:
            self._said[what] = (at, count + 1)
            return None
        self._said[what] = (now, 0)
        if len(self._said) > MOST:
            del self._said[next(iter(self._said))]
        return count
