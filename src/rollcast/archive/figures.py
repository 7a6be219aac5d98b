"""The figures of a record: tools, ends, failures, tokens, slow chains, lengths by training step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from rollcast.archive.reader import Archive
from rollcast.records import EventFilter, StreamEventType
from rollcast.records.view import ChainView
from rollcast.records.view_fields import STATES, object_of
from rollcast.records.view_parts import ToolUse

__all__ = ["Figures", "SlowChain", "StepFigures", "figures_of"]

SLOWEST = 5
MAX_METRICS = 64  # of a step that are told
MAX_FAILURES = 1000  # kinds that are told apart
OTHER = "other"
_OPEN_TOKENS = "open_tokens"  # of a chain that has no end


class SlowChain(msgspec.Struct):
    """One of the chains that took longest; `times` are seconds by state."""

    run_id: str
    chain_id: str
    duration_s: float
    times: dict[str, float]


class StepFigures(msgspec.Struct):
    """The rollout of one training step. Means are over its chains that ended; None if there is none.

    `ends`: how many chains ended in which way; `tools`: calls by tool; `metrics`: means of the numbers beside the reward.
    """

    train_step: int
    chains: int
    mean_tokens: float | None
    longest_tokens: int | None
    mean_steps: float | None
    mean_reward: float | None
    ends: dict[str, int] = {}
    tools: dict[str, ToolUse] = {}
    metrics: dict[str, float] = {}


class Figures(msgspec.Struct):
    """What all chains of a record came to.

    Attributes:
        chains: how many began; `groups` are those of all runs.
        ends: how many chains ended in which way; those that did not end as `running` or `lost`.
        tools: by name, with the calls of chains that have no end, as far as the record has their events.
        failures: `error` events by where they happened and their type, as `tool:look ValueError`.
        completion_tokens: sampled in all chains that ended.
        open_tokens: sampled in chains that have no end, as far as the record has their events.
        truncated: generations that ran out of tokens.
        mean_tokens: per chain that ended.
        mean_reward: of the chains that have a reward, without a training's evaluations if there are others.
        mean_eval_reward: of its evaluations; None if there are none.
        seconds: that all chains spent in each state.
        slowest: the longest first.
        steps: of a training.
        damage: what could not be read of the errors.
    """

    chains: int
    groups: int
    ends: dict[str, int]
    tools: dict[str, ToolUse]
    failures: dict[str, int]
    completion_tokens: int
    truncated: int
    mean_tokens: float | None
    mean_reward: float | None
    seconds: dict[str, float]
    slowest: list[SlowChain]
    steps: list[StepFigures]
    damage: list[str] = []
    open_tokens: int = 0
    mean_eval_reward: float | None = None


def figures_of(archive: Archive) -> Figures:
    """The figures of everything that is there now."""
    rows = _with_open_chains(archive, archive.chains().rows)
    failures, damage = _failures(archive)
    evaluations = [row for row in rows if row.get("split") == "eval"]
    rewards = _numbers([row for row in rows if row.get("split") != "eval"], "reward")
    seconds: Counter[str] = Counter()
    for row in rows:
        seconds.update(_times(row))
    return Figures(
        chains=len(rows),
        groups=len({(r["run_id"], str(r["group_id"])) for r in rows if r.get("group_id") is not None}),
        ends=dict(Counter(_end_of(row) for row in rows).most_common()),
        tools=_tools(rows),
        failures=failures,
        completion_tokens=int(sum(_numbers(rows, "completion_tokens"))),
        truncated=int(sum(_numbers(rows, "truncated"))),
        mean_tokens=_mean(_numbers(rows, "completion_tokens")),
        mean_reward=_mean(rewards or _numbers(rows, "reward")),
        seconds={name: round(value, 6) for name, value in seconds.most_common()},
        slowest=_slowest(rows),
        steps=_steps(rows),
        damage=damage,
        open_tokens=int(sum(_numbers(rows, _OPEN_TOKENS))),
        mean_eval_reward=_mean(_numbers(evaluations, "reward")),
    )


def _with_open_chains(archive: Archive, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows; those of chains that have no end, which say nothing of calls and tokens, with what their events add up to."""
    views = {(row["run_id"], row["chain_id"]): None for row in rows if row.get("state") != "ended"}
    if not views:
        return rows
    known: dict[tuple[str, str], ChainView] = {}
    runs, chains = ({key[i] for key in views} for i in (0, 1))
    for event in archive.events(filter=EventFilter(runs=runs, chains=chains)):
        key = (event.run_id, event.chain_id)
        if key in views:
            view = known.setdefault(key, ChainView.without_conversation())
            view.apply(event)
            view.forget_text()
    return [_with_view(row, known.get((row["run_id"], row["chain_id"]))) for row in rows]


def _with_view(row: dict[str, Any], view: ChainView | None) -> dict[str, Any]:
    if view is None:
        return row
    return row | {
        "tool_use": msgspec.to_builtins(view.tool_use),
        "times": {name: time.seconds for name, time in view.times.items()},
        "truncated": view.truncated,
        _OPEN_TOKENS: view.tokens,
    }


def _times(row: dict[str, Any]) -> dict[str, float]:
    """Seconds by state, of the states that there are."""
    times = object_of(row.get("times"))
    return {name: times[name] for name in STATES if isinstance(times.get(name), int | float)}


def _end_of(row: dict[str, Any]) -> str:
    return str(row.get("finish_reason") if row.get("state") == "ended" else row.get("state"))


def _numbers(rows: list[dict[str, Any]], name: str) -> list[float]:
    values = [row.get(name) for row in rows]
    return [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _tools(rows: list[dict[str, Any]]) -> dict[str, ToolUse]:
    tools: dict[str, ToolUse] = {}
    for row in rows:
        for name, value in object_of(row.get("tool_use")).items():
            use = ToolUse.restored(value)
            known = tools.get(name)
            if known is None:
                tools[name] = use
            else:
                known.calls += use.calls
                known.failed += use.failed
                known.seconds += use.seconds
    return dict(sorted(tools.items(), key=lambda item: -item[1].calls))


def _failures(archive: Archive) -> tuple[dict[str, int], list[str]]:
    """The errors by kind; an index tells in which parts of a record there are any."""
    counts: Counter[str] = Counter()
    reader = archive.events(filter=EventFilter(types=[StreamEventType.ERROR]))
    for event in reader:
        if event.event_type is StreamEventType.ERROR:
            kind = f"{event.data.get('where', '')} {event.data.get('error_type', '')}".strip()
            counts[kind if kind in counts or len(counts) < MAX_FAILURES else OTHER] += 1
    return dict(counts.most_common()), [str(each) for each in reader.damage]


def _slowest(rows: list[dict[str, Any]]) -> list[SlowChain]:
    known = [row for row in rows if isinstance(row.get("duration_s"), int | float)]
    known.sort(key=lambda row: -row["duration_s"])
    return [
        SlowChain(row["run_id"], row["chain_id"], float(row["duration_s"]), _times(row))
        for row in known[:SLOWEST]
    ]


def _steps(rows: list[dict[str, Any]]) -> list[StepFigures]:
    rows = [row for row in rows if row.get("split") != "eval"]
    runs = {row["run_id"]: row["train_step"] for row in rows if isinstance(row.get("train_step"), int)}
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["run_id"] in runs:  # also chains that nothing was learned from
            by_step.setdefault(runs[row["run_id"]], []).append(row)
    return [_step_figures(step, chains) for step, chains in sorted(by_step.items())]


def _step_figures(step: int, rows: list[dict[str, Any]]) -> StepFigures:
    tokens = _numbers(rows, "completion_tokens")
    return StepFigures(
        step,
        len(rows),
        _mean(tokens),
        int(max(tokens)) if tokens else None,
        _mean(_numbers(rows, "steps")),
        _mean(_numbers(rows, "reward")),
        dict(Counter(_end_of(row) for row in rows).most_common()),
        _tools(rows),
        _metrics(rows),
    )


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The means of the numbers that rewards gave beside themselves."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in object_of(row.get("metrics")).items():
            if isinstance(value, int | float) and (name in values or len(values) < MAX_METRICS):
                values.setdefault(name, []).append(float(value))
    return {name: sum(found) / len(found) for name, found in values.items()}
