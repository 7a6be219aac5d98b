"""What `/metrics` says about a hub's producers. Each figure is read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from rollcast.fleet.hub import Hub

__all__ = ["HubMetrics"]

_GAUGES = {
    "sources": "Producers that the hub knows",
    "connected": "Producers that are connected",
}
_COUNTERS = {
    "events": "Events that were taken from producers",
    "duplicates": "Events that came again, and were dropped",
    "missing": "Events that producers left out",
    "refused": "Events that were not taken",
}


class HubMetrics:
    """A collector of `prometheus_client`.

    Args:
        hub: whose producers are counted.
        registry: None: the default one.

    Raises:
        ModuleNotFoundError: `prometheus_client` is not installed.
    """

    def __init__(self, hub: Hub, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client  # noqa: PLC0415  (an extra)

        self._hub = hub
        self.registry = prometheus_client.REGISTRY if registry is None else registry
        self.registry.register(self)

    def collect(self) -> Iterator[Any]:
        """The metrics as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415  (an extra)

        totals = self._hub.intake.producers.totals()
        for name, help_text in _GAUGES.items():
            yield GaugeMetricFamily(f"rollcast_hub_{name}", help_text, value=totals[name])
        for name, help_text in _COUNTERS.items():
            yield CounterMetricFamily(f"rollcast_hub_{name}", help_text, value=totals[name])

    def unregister(self) -> None:
        """Take the metrics out of the registry."""
        self.registry.unregister(self)
