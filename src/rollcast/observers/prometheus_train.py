"""The metrics of a training for Prometheus, from its `train_step` events."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

from rollcast.records import StreamEvent

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["NAME_CHARS", "TrainingFigures"]

NAME_CHARS = 120  # characters in a label
MOST_OTHERS = 64  # how many of a trainer's own metrics are shown
_OTHERS = "rollcast_train_metric"

# Each gauge with the trainers' names for it; the first name that an event has counts.
_GAUGES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("rollcast_train_loss", ("loss",), "Loss of the last step"),
    ("rollcast_train_mean_reward", ("mean_reward", "reward"), "Mean reward of the last step's chains"),
    ("rollcast_train_reward_std", ("reward_std",), "Standard deviation of their rewards"),
    ("rollcast_train_success_ratio", ("success",), "Share of the chains with a reward of 1 or more"),
    ("rollcast_train_entropy_nats", ("entropy",), "Entropy of the policy, a token"),
    ("rollcast_train_kl_nats", ("kl",), "KL divergence, a token"),
    ("rollcast_train_gradient_norm", ("grad_norm",), "Norm of the gradient, before clipping"),
    (
        "rollcast_train_clipped_ratio",
        ("clip_fraction", "clip_ratio/region_mean"),
        "Share of the tokens whose ratio was clipped",
    ),
    ("rollcast_train_learning_rate", ("learning_rate",), "Learning rate"),
    ("rollcast_train_tokens_per_second", ("tokens_per_s",), "Tokens sampled over the time of the last step"),
    ("rollcast_train_staleness_versions", ("staleness",), "Versions by which the tokens were behind"),
    ("rollcast_train_flat_groups", ("flat_groups",), "Groups whose rewards do not differ"),
    ("rollcast_train_kept_groups", ("kept_groups",), "Groups that were learned from"),
    ("rollcast_train_unrewarded_chains", ("failed",), "Chains without a reward"),
    (
        "rollcast_train_chain_tokens",
        ("length/tokens",),
        "Tokens that the last step's chains sampled, at the mean",
    ),
    ("rollcast_train_chain_tokens_max", ("length/tokens_max",), "Those of the longest chain"),
    ("rollcast_train_chain_turns", ("length/turns",), "Turns of the last step's chains, at the mean"),
    ("rollcast_train_chain_turns_max", ("length/turns_max",), "Those of the chain with most"),
    ("rollcast_train_cut_turns", ("length/cut_turns",), "Turns that ran out of tokens, a chain at the mean"),
    ("rollcast_train_step_rewards", ("reward/steps",), "Sum of a chain's rewards of steps, at the mean"),
    ("rollcast_train_rollout_seconds", ("rollout_s",), "Of the last step's rollout"),
    ("rollcast_train_update_seconds", ("update_s",), "Of the last step's update"),
    ("rollcast_train_step", (), "Number of the last step"),
    ("rollcast_policy_version", (), "Of the weights that sample now"),
)
# Each family with one label, and how the figures of a rollout are called that belong to it: what the label stands for is `*`.
_FAMILIES: tuple[tuple[str, str, str, str], ...] = (
    ("rollcast_train_finish_ratio", "finish_reason", "finish/*", "Share of the last step's chains that ended so"),
    ("rollcast_train_tool_calls", "tool", "tool/*/calls", "Calls of the tool, a chain at the mean"),
    ("rollcast_train_tool_failed_calls", "tool", "tool/*/failed", "Failed calls of the tool, a chain at the mean"),
    ("rollcast_train_reward_metric", "name", "metrics/*", "Numbers that the reward gives beside itself, at the mean"),
)  # fmt: skip
MOST_OF_A_FAMILY = 200  # how many values of its label are shown

_KNOWN = {name for _, names, _ in _GAUGES for name in names} | {"tokens"}


class TrainingFigures:
    """The values of the last `train_step`, and totals over all. A value that no event gave is absent."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._others: dict[str, float] = {}
        self._families_of_figures: dict[str, dict[str, float]] = {name: {} for name, *_ in _FAMILIES}
        self._steps = 0
        self._tokens = 0.0

    def take(self, event: StreamEvent, sampled: float | None) -> None:
        """Note a step, whatever its event contains.

        Args:
            event: the `train_step`.
            sampled: tokens per second since the step before, for a trainer that does not report it; None if unknown.
        """
        metrics = event.data.get("metrics")
        metrics = metrics if isinstance(metrics, dict) else {}
        found = {str(name)[:NAME_CHARS]: _number(value) for name, value in metrics.items()}
        numbers = {name: number for name, number in found.items() if number is not None}
        for gauge, names, _ in _GAUGES:
            first = next((numbers[name] for name in names if name in numbers), None)
            if first is not None:
                self._values[gauge] = first
            elif gauge in self._values and any(name in metrics for name in names):
                self._values[gauge] = math.nan  # for example a loss that is NaN, for which JSON has no number
        if sampled is not None and "tokens_per_s" not in numbers:
            self._values["rollcast_train_tokens_per_second"] = sampled
        for name, gauge in (
            ("train_step", "rollcast_train_step"),
            ("policy_version", "rollcast_policy_version"),
        ):
            number = _number(event.data.get(name))
            if number is not None:
                self._values[gauge] = number
        if "loss" in numbers or "mean_reward" in numbers or "reward" in numbers:  # TRL also sends evaluations
            self._steps += 1
        tokens = numbers.get("tokens", 0.0)
        if tokens > 0 and math.isfinite(tokens):
            self._tokens += tokens
        for name, number in numbers.items():
            if (place := _place_of(name)) is not None:
                family, label = place
                values = self._families_of_figures[family]
                if label in values or len(values) < MOST_OF_A_FAMILY:
                    values[label] = number
            elif name not in _KNOWN and (name in self._others or len(self._others) < MOST_OTHERS):
                self._others[name] = number

    def sampling_with(self, version: Any) -> None:
        """Note that a run began with weights of this version."""
        number = _number(version)
        if number is not None:
            self._values["rollcast_policy_version"] = number

    def describe(self) -> Iterator[Metric]:
        """The metrics without values."""
        return self._families({}, {}, {})

    def collect(self) -> Iterator[Metric]:
        """The metrics; one that no event gave has no value."""
        labelled = {name: dict(values) for name, values in self._families_of_figures.items()}
        return self._families(dict(self._values), dict(self._others), labelled)

    def _families(
        self, values: dict[str, float], others: dict[str, float], labelled: dict[str, dict[str, float]]
    ) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415  (an extra)

        yield CounterMetricFamily("rollcast_train_steps", "Steps of trainings", value=self._steps)
        yield CounterMetricFamily(
            "rollcast_train_tokens", "Tokens that were learned from", value=self._tokens
        )
        for gauge, _, text in _GAUGES:
            yield GaugeMetricFamily(gauge, text, value=values.get(gauge))
        for name, label, _, text in _FAMILIES:
            family = GaugeMetricFamily(name, text, labels=(label,))
            for of, value in labelled.get(name, {}).items():
                family.add_metric((of,), value)
            yield family
        family = GaugeMetricFamily(_OTHERS, "Other figures of the last step", labels=("name",))
        for name, value in others.items():
            family.add_metric((name,), value)
        yield family


def _place_of(name: str) -> tuple[str, str] | None:
    """The family of a rollout's figure, and what its label is; None if it has none."""
    for family, _, shape, _ in _FAMILIES:
        before, after = shape.split("*")
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
            return family, name[len(before) : len(name) - len(after)]
    return None


def _number(value: Any) -> float | None:
    """The value as a float; None if it is not a number. A number that is too large is infinite."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        return float(value) if is_number else None
    except OverflowError:
        return math.inf if value > 0 else -math.inf
