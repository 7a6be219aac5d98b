"""How many hints there are, by kind, for Prometheus. They are looked for at each scrape, on its thread."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rollcast.records import StreamEvent
from rollcast.records.hint_watch import HintWatch
from rollcast.records.hints import HINT_KINDS
from rollcast.records.view_parts import moment

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["CurrentHints"]

MAX_WAITING = 2_000  # events that wait for a scrape


class CurrentHints:
    """The hints of the open runs. `note` is called in the event loop of a run and never waits; `collect` on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the watch
        self._watch = HintWatch()
        self._waiting: deque[StreamEvent] = deque()
        self._latest: tuple[float, float] | None = None  # an event's timestamp, and when it came

    def note(self, event: StreamEvent) -> None:
        """Keep the event for the next scrape. If too many wait, they are taken now, without looking for hints."""
        self._waiting.append(event)
        at = moment(event.timestamp)  # an event made by hand may have any time
        if at is not None:
            self._latest = (at, time.monotonic())
        if len(self._waiting) >= MAX_WAITING and self._lock.acquire(blocking=False):
            try:
                while self._waiting:
                    self._watch.note(self._waiting.popleft())
                self._watch.end_runs()
            finally:
                self._lock.release()

    def describe(self) -> Iterator[Metric]:
        """The metric without values."""
        yield _family(Counter())

    def collect(self) -> Iterator[Metric]:
        """The metric with its values now."""
        with self._lock:
            for _ in range(len(self._waiting)):
                self._watch.take(self._waiting.popleft())
            if self._latest is not None:
                timestamp, came = self._latest
                self._watch.look(timestamp + max(time.monotonic() - came, 0.0))
            counts = Counter(hint.kind for hint in self._watch.showing())
        yield _family(Counter(counts))

    def forget(self) -> None:
        """Forget all runs."""
        with self._lock:
            self._waiting.clear()
            self._watch, self._latest = HintWatch(), None


def _family(counts: Counter[str]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415  (an extra)

    family = GaugeMetricFamily("rollcast_hints", "Hints in open runs, by kind", labels=("kind",))
    for kind in HINT_KINDS:
        family.add_metric((kind,), counts[kind])
    return family
