"""Logs the same warning about the same producer once in a while, however often there is a reason for it."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["ProducerWarnings"]

logger = logging.getLogger("rollcast.fleet")

EVERY_S = 60.0
MOST = 4096  # warnings that are remembered, the latest ones


class ProducerWarnings:
    """Logs warnings about producers, and counts those that it holds back.

    Args:
        clock: a monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}  # when, and how many were held since

    def warn(self, source: str, cause: str, sentence: str) -> bool:
        """Log a warning about a source, unless one with this cause was logged lately. Returns whether it was logged."""
        held = self._take_held(source, cause)
        if held is None:
            return False
        more = f" ({held:,} more like this since the last one)" if held else ""
        logger.warning("%s: %s%s", source, sentence, more)
        return True

    def _take_held(self, source: str, cause: str) -> int | None:
        """How many were held back since the last one, if one is to be logged now; None if this one is held back too."""
        now = self._clock()
        at, held = self._logged.pop((source, cause), (None, 0))
        if at is not None and now - at < EVERY_S:
            self._logged[source, cause] = (at, held + 1)
            return None
        self._logged[source, cause] = (now, 0)
        if len(self._logged) > MOST:
            del self._logged[next(iter(self._logged))]
        return held
