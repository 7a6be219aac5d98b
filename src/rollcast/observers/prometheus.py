"""Counters and histograms for Prometheus (docs/metrics.md).

Everything except tokens is counted from events, so no events are made of tokens for this observer. The current state (open
chains, tokens so far, queues) is read from the manager at each scrape.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from rollcast.errors import InputError, MissingExtraError
from rollcast.observers.prometheus_hints import CurrentHints
from rollcast.observers.prometheus_train import NAME_CHARS, TrainingFigures
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.event import ChainFinishReason, GenerationFinishReason, RunStatus, ToolStatus
from rollcast.records.hint_watch import HINT_EVENTS
from rollcast.stream.observer import StreamObserver

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from rollcast.stream.manager import StreamingManager

__all__ = ["PrometheusStreamObserver"]

T = StreamEventType

FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
GENERATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOOL_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120)
CHAIN_S = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800)
TOKENS_PER_S = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
REWARD = (-1, -0.5, 0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)

PLACES = frozenset(("agent", "backend", "observer", "parser", "reward", "tool"))
SPLITS = frozenset(("train", "eval"))
MOST_TOOLS = 200  # how many names are shown, since rows may have their own tools
MOST_OBSERVERS = 64


class PrometheusStreamObserver(StreamObserver):
    """Counts events for Prometheus to scrape. It is a collector in the registry.

    Labels are bounded: a tool's name is shown if a `chain_start` lists the tool and is `unknown` otherwise, since models
    invent any number of names; any other value that is not documented is `other`. The first 200 tools, 64 observers and 64
    of a trainer's own metrics are shown, with names of at most 120 characters. Counts continue across runs, and when the
    observer is removed and added again.

    Args:
        registry: where the metrics are registered; None: `prometheus_client.REGISTRY`. It can have them only once: watch
            several agents through one shared `StreamingManager`, or give each its own registry.
        reward_buckets: the upper bounds of the histogram of rewards, rising.

    Raises:
        MissingExtraError: `prometheus_client` is not installed.
        InputError: the registry already has metrics with these names, or the buckets do not rise.
    """

    filter = EventFilter(
        types=(
            T.RUN_START,
            T.RUN_END,
            T.CHAIN_START,
            T.CHAIN_END,
            T.LLM_GENERATION_END,
            T.TOOL_CALL_END,
            T.REWARD,
            T.ERROR,
            T.TRAIN_STEP,
            *(kind for kind in HINT_EVENTS if kind is not T.TOOL_OBSERVATION),  # they are large
        )
    )

    def __init__(
        self, registry: CollectorRegistry | None = None, *, reward_buckets: Sequence[float] = REWARD
    ) -> None:
        try:
            import prometheus_client  # noqa: PLC0415  (an extra)
        except ModuleNotFoundError as error:
            raise MissingExtraError("PrometheusStreamObserver", "metrics") from error
        self._make_metrics(reward_buckets)
        self._readings = _Readings()
        self._training = TrainingFigures()
        self._hints = CurrentHints()
        self._trained_at: tuple[float, int] | None = None  # time and tokens of the last step
        self._tools: set[str] = set()
        self._splits: dict[str, str] = {}  # those of the open runs
        self._ours: set[str] = set()  # the open runs whose tokens the manager counts
        self._handlers: dict[StreamEventType, Callable[[StreamEvent], None]] = {
            T.RUN_START: self._run_start,
            T.RUN_END: self._run_end,
            T.CHAIN_START: self._chain_start,
            T.CHAIN_END: self._chain_end,
            T.LLM_GENERATION_END: self._generation_end,
            T.TOOL_CALL_END: self._tool_call_end,
            T.REWARD: self._reward,
            T.ERROR: self._error,
            T.TRAIN_STEP: self._train_step,
        }
        self.registry = prometheus_client.REGISTRY if registry is None else registry
        try:
            self.registry.register(self)
        except ValueError as error:
            raise InputError(
                f"the registry cannot take the metrics of PrometheusStreamObserver: {error}; give each observer a "
                "registry of its own, or call unregister() on the earlier one"
            ) from None

    def _make_metrics(self, reward_buckets: Sequence[float]) -> None:
        """Make the metrics that count events. They are not registered one by one, but together as this observer."""
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415  (an extra)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"rollcast_{name}", help, labels, registry=None)

        def histogram(name: str, help: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"rollcast_{name}", help, labels, registry=None, buckets=buckets)

        self._runs = counter("runs", "Runs that ended", "status")
        self._chains = counter("chains", "Chains that ended", "finish_reason")
        self._generations = counter("generations", "Generations that ended", "finish_reason")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts, earlier turns included each time")
        self._errors = counter("errors", "Error events", "where")
        self._first_token = histogram(
            "time_to_first_token_seconds", "From the request to the first token", FIRST_TOKEN_S
        )
        self._generation_s = histogram("generation_duration_seconds", "Of one generation", GENERATION_S)
        self._rate = histogram(
            "generation_tokens_per_second", "Tokens of one generation over its duration", TOKENS_PER_S
        )
        self._tool_s = histogram("tool_duration_seconds", "Of one tool call", TOOL_S, "tool", "status")
        self._chain_s = histogram("chain_duration_seconds", "Of one chain", CHAIN_S)
        try:
            self._rewards = histogram("reward", "Rewards of chains", reward_buckets)
        except ValueError as error:
            raise InputError(
                f"reward_buckets is {reward_buckets!r}: {error}; expected numbers that rise"
            ) from None
        self._mean_reward = Gauge(
            "rollcast_mean_reward",
            "Mean reward of the last run that ended, by split",
            ("split",),
            registry=None,
        )
        self._counted = (
            self._runs, self._chains, self._generations, self._prompt_tokens, self._errors, self._first_token,
            self._generation_s, self._rate, self._tool_s, self._chain_s, self._rewards, self._mean_reward,
        )  # fmt: skip

    # -- events ------------------------------------------------------------------------------------------------------

    async def on_event(self, event: StreamEvent) -> None:
        self._hints.note(event)
        handler = self._handlers.get(event.event_type)
        if handler is not None:
            handler(event)

    async def on_run_opened(self, run_id: str) -> None:
        """Note that the manager counts this run's tokens."""
        self._ours.add(run_id)
        if self.manager is not None:
            self._readings.source = weakref.ref(self.manager)

    async def on_run_closed(self, run_id: str) -> None:
        """Forget the run."""
        self._ours.discard(run_id)
        self._splits.pop(run_id, None)

    def _run_start(self, event: StreamEvent) -> None:
        split = event.data.get("split")
        if split is not None:
            self._splits[event.run_id] = _among(split, SPLITS)
        self._training.sampling_with(event.data.get("policy_version"))

    def _run_end(self, event: StreamEvent) -> None:
        data = event.data
        if "leader" in data:  # a part of a run, whose leader ends it
            return
        self._runs.labels(_among(data["status"], _STATUSES)).inc()
        split = self._splits.pop(event.run_id, "")
        if data["mean_reward"] is not None:
            self._mean_reward.labels(split).set(data["mean_reward"])

    def _chain_start(self, event: StreamEvent) -> None:
        for tool in event.data["tools"]:
            if len(self._tools) < MOST_TOOLS and len(tool) <= NAME_CHARS:
                self._tools.add(tool)

    def _chain_end(self, event: StreamEvent) -> None:
        self._chains.labels(_among(event.data["finish_reason"], _CHAIN_REASONS)).inc()
        self._chain_s.observe(event.data["duration_s"])

    def _generation_end(self, event: StreamEvent) -> None:
        data = event.data
        tokens, seconds = data["completion_tokens"], data["duration_s"]
        self._generations.labels(_among(data["finish_reason"], _GENERATION_REASONS)).inc()
        self._generation_s.observe(seconds)
        if data["ttft_s"] is not None:
            self._first_token.observe(data["ttft_s"])
        if data["prompt_tokens"] is not None:
            self._prompt_tokens.inc(data["prompt_tokens"])
        if tokens > 0 and seconds > 0:
            self._rate.observe(tokens / seconds)
        if event.run_id not in self._ours:  # made by hand, or on another machine
            self._readings.add("rollcast_generated_tokens", (), tokens)

    def _tool_call_end(self, event: StreamEvent) -> None:
        data = event.data
        tool = data["tool_name"] if data["tool_name"] in self._tools else "unknown"
        self._tool_s.labels(tool, _among(data["status"], _TOOL_STATUSES)).observe(data["duration_s"])

    def _reward(self, event: StreamEvent) -> None:
        if event.data.get("final") is not False and math.isfinite(event.data["reward"]):
            self._rewards.observe(event.data["reward"])

    def _error(self, event: StreamEvent) -> None:
        self._errors.labels(_among(event.data["where"].partition(":")[0], PLACES)).inc()

    def _train_step(self, event: StreamEvent) -> None:
        self._training.take(event, self._sampled_per_s(event.timestamp))

    def _sampled_per_s(self, now: float) -> float | None:
        """Tokens per second since the last step, in the manager's own chains."""
        if self.manager is None:
            return None
        tokens: int = self.manager.totals().completion_tokens
        before, self._trained_at = self._trained_at, (now, tokens)
        if before is None or now <= before[0] or tokens <= before[1]:
            return None
        return (tokens - before[1]) / (now - before[0])

    # -- the registry ------------------------------------------------------------------------------------------------

    def describe(self) -> Iterator[Metric]:
        """The metrics without their values, for the registry."""
        for metric in self._counted:
            yield from metric.describe()
        yield from self._training.describe()
        yield from self._hints.describe()
        yield from _families({})

    def collect(self) -> Iterator[Metric]:
        """The metrics with their values; the registry calls this for each scrape, from any thread."""
        for metric in self._counted:
            yield from metric.collect()
        yield from self._training.collect()
        yield from self._hints.collect()
        yield from _families(self._readings.take(self.manager))

    def unregister(self) -> None:
        """Remove the metrics from the registry. Doing so twice is not an error."""
        try:
            self.registry.unregister(self)
        except KeyError:  # it was removed before
            return

    async def aclose(self) -> None:
        """Read the manager's numbers once more. The metrics stay in the registry: see `unregister`."""
        source = self._readings.source
        manager = None if source is None else source()
        if manager is not None:
            self._readings.take(manager)
        self._hints.forget()
        self._ours.clear()
        self._splits.clear()
        self._trained_at = None


_STATUSES = frozenset(get_args(RunStatus))
_CHAIN_REASONS = frozenset(get_args(ChainFinishReason))
_GENERATION_REASONS = frozenset(get_args(GenerationFinishReason))
_TOOL_STATUSES = frozenset(get_args(ToolStatus))


def _among(value: Any, known: frozenset[str]) -> str:
    """The value if it is known; events made by hand may have any value, and each label value is a series for ever."""
    return value if value in known else "other"


Series = dict[tuple[str, tuple[str, ...]], float]  # by metric and label values

_SCRAPED: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("counter", "rollcast_events", "Events that somebody watched", ("type",)),
    ("counter", "rollcast_generated_tokens", "Sampled tokens, of open generations too", ()),
    ("gauge", "rollcast_open_runs", "Runs that go on", ()),
    ("gauge", "rollcast_open_chains", "Chains that go on", ()),
    ("counter", "rollcast_observer_delivered_events", "Events given to the observer", ("observer",)),
    ("counter", "rollcast_observer_merged_events", "Chunks merged as it fell behind", ("observer",)),
    ("counter", "rollcast_observer_dropped_events", "Events dropped as it fell behind", ("observer",)),
    ("counter", "rollcast_observer_failures", "Times that it raised", ("observer",)),
    ("gauge", "rollcast_observer_queued_events", "Events that wait for it", ("observer",)),
    ("gauge", "rollcast_observer_queued_bytes", "Memory of the events that wait for it", ("observer",)),
    ("gauge", "rollcast_observer_lag_seconds", "Age of the oldest event that waits for it", ("observer",)),
)


def _families(series: Series) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415  (an extra)

    for kind, name, text, labels in _SCRAPED:
        family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
        for (of, values), value in series.items():
            if of == name:
                family.add_metric(values, value)
        yield family


class _Readings:
    """The manager's numbers as series whose counters never fall, although observers and managers come and go.

    Observers with the same name are one series: their counts are added up, and the greatest lag is shown.
    """

    def __init__(self) -> None:
        self.source: weakref.ref[StreamingManager] | None = None  # the manager that was seen last
        self._lock = threading.Lock()  # two scrapes may come at once
        self._counters = Counter[tuple[str, tuple[str, ...]]]({("rollcast_generated_tokens", ()): 0})
        self._names: set[str] = set()  # of the observers that are shown
        self._seen: weakref.WeakKeyDictionary[Any, dict[tuple[str, tuple[str, ...]], int]] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, name: str, labels: tuple[str, ...], amount: int) -> None:
        """Count something that the manager does not count."""
        with self._lock:
            self._counters[name, labels] += amount

    def take(self, manager: StreamingManager | None) -> Series:
        """All current values; only counters and zeros if there is no manager."""
        with self._lock:
            gauges: Series = {("rollcast_open_runs", ()): 0, ("rollcast_open_chains", ()): 0}
            if manager is not None:
                self.source = weakref.ref(manager)
                self._read(manager, gauges)
            return {**self._counters, **gauges}

    def _read(self, manager: StreamingManager, gauges: Series) -> None:
        with manager.lock:
            totals = manager.totals()
            deliveries = [(delivery, delivery.statistics()) for delivery in manager.fanout.deliveries]
        gauges["rollcast_open_runs", ()] = totals.open_runs
        gauges["rollcast_open_chains", ()] = totals.open_chains
        self._rise(manager, "rollcast_generated_tokens", (), totals.completion_tokens)
        for event_type, count in totals.emitted.items():
            self._rise(manager, "rollcast_events", (event_type,), count)
        for delivery, now in deliveries:
            name = (self._shown_name(now.name),)
            self._rise(delivery, "rollcast_observer_delivered_events", name, now.delivered)
            self._rise(delivery, "rollcast_observer_merged_events", name, now.merged)
            self._rise(delivery, "rollcast_observer_dropped_events", name, now.dropped)
            self._rise(delivery, "rollcast_observer_failures", name, now.failed)
            for gauge, value in (("queued_events", now.queued), ("queued_bytes", now.queued_bytes)):
                key = (f"rollcast_observer_{gauge}", name)
                gauges[key] = gauges.get(key, 0) + value
            key = ("rollcast_observer_lag_seconds", name)
            gauges[key] = max(gauges.get(key, 0), now.lag_s)

    def _shown_name(self, name: str) -> str:
        name = name[:NAME_CHARS]
        if name not in self._names and len(self._names) >= MOST_OBSERVERS:
            return "other"
        self._names.add(name)
        return name

    def _rise(self, source: object, name: str, labels: tuple[str, ...], count: int) -> None:
        """Add what the source's count has risen by since it was last read."""
        key = (name, labels)
        seen = self._seen.setdefault(source, {})
        self._counters[key] += count - seen.get(key, 0)
        seen[key] = count
