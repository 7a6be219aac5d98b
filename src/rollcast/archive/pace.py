"""When the next event of a replay is due. Pure."""

from __future__ import annotations

import math

__all__ = ["LONGEST_PAUSE_S", "Pace"]

LONGEST_PAUSE_S = 10.0  # of a replay: nobody waits for a night that a machine was off


class Pace:
    """Lets as much time pass between two events as passed between them when they were recorded, divided by the speed.

    Clocks jump: an event that is older than one before it is due at once, and no pause is longer than ten seconds.

    Args:
        speed: how many times as fast as it was, from 0 upward; 0: nothing is due. Infinite: everything is.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._latest: float | None = None  # timestamp
        self._due = 0.0  # on the monotonic clock
        self._left = 0.0  # recorded seconds until the next event is due, while the speed is 0

    def take(self, timestamp: float, now: float) -> None:
        """Take the next event.

        Args:
            timestamp: of the event.
            now: on a monotonic clock, in seconds.
        """
        if self._latest is None:
            self._latest, self._due = timestamp, now
        pause = max(timestamp - self._latest, 0.0)
        self._latest = max(self._latest, timestamp)
        if self.speed == 0:
            self._left += pause
        elif self.speed < math.inf:
            self._due = max(self._due + min(pause / self.speed, LONGEST_PAUSE_S), now - LONGEST_PAUSE_S)

    def left_s(self, now: float) -> float:
        """Seconds until the event that was taken last is due, from 0 upward; infinite if the speed is 0."""
        if self.speed == 0:
            return math.inf
        return 0.0 if self.speed == math.inf else max(self._due - now, 0.0)

    def change(self, speed: float, now: float) -> None:
        """Go on at another speed."""
        if self.speed == 0:
            left = self._left
        else:
            left = 0.0 if self.speed == math.inf else max(self._due - now, 0.0) * self.speed
        self.speed = speed
        if speed == 0:
            self._left = left
        else:
            self._due = now + min(left / speed, LONGEST_PAUSE_S)
