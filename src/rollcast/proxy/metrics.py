"""What a proxy counted, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rollcast.errors import MissingExtraError

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
except ImportError as missing:
    raise MissingExtraError("/rollcast/metrics", "metrics") from missing

from rollcast.proxy.counts import Counts

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["exposition"]

_COUNTS = {
    "unreachable": "Requests to which the engine gave no answer",
    "cut": "Answers that the engine broke off",
    "left": "Callers that left before their answer was whole",
    "refused": "Requests that the proxy refused itself",
    "watched": "Generations that somebody watched",
    "turned": "Watched generations that were made streams",
    "faults": "Faults of the proxy's own watching",
}


class _Collector:
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        requests = CounterMetricFamily("rollcast_proxy_requests", "Requests by kind of path", labels=["kind"])
        for kind, number in sorted(counts.requests.items()):
            requests.add_metric([kind], number)
        yield requests
        answers = CounterMetricFamily("rollcast_proxy_answers", "Answers by status", labels=["status"])
        for status, number in sorted(counts.answers.items()):
            answers.add_metric([str(status)], number)
        yield answers
        yield GaugeMetricFamily("rollcast_proxy_open", "Requests that are answered now", counts.open)
        for name, what in _COUNTS.items():
            yield CounterMetricFamily(f"rollcast_proxy_{name}", what, getattr(counts, name))


def exposition(counts: Counts) -> tuple[bytes, str]:
    """The metrics as text, and their content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counts))
    return generate_latest(registry), CONTENT_TYPE_LATEST
