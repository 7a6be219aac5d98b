"""What the command says before and after a run."""

from __future__ import annotations

from collections import Counter
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollcast.records import Trajectory
from rollcast.rollout import RunResult
from rollcast.stream.observers.safe_text import shorten, visible

__all__ = ["print_about", "print_summary"]


SHOWN_CHARS = 500  # of a question, an answer or an error
SHOWN_ERRORS = 3  # kinds of them


def _console(file: TextIO, *, color: bool | None) -> Console:
    return Console(file=file, no_color=True if color is False else None, highlight=False, soft_wrap=False)


def print_about(about: str, file: TextIO, *, color: bool | None) -> None:
    """What the model can and cannot do."""
    _console(file, color=color).print(Text(about, style="dim"))


def print_summary(
    result: RunResult, rows: list[dict[str, Any]], file: TextIO, *, color: bool | None, log: str | None
) -> None:
    """The rewards by group, and the totals."""
    console = _console(file, color=color)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group", no_wrap=True)
    table.add_column("question", ratio=2, overflow="fold")
    table.add_column("answer", no_wrap=True)
    table.add_column("rewards", ratio=1, overflow="fold")
    table.add_column("mean", justify="right", no_wrap=True)
    for row, (group_id, chains) in zip(rows, result.groups.items(), strict=True):
        rewards = [t.reward for t in chains if t.reward is not None]
        table.add_row(
            Text(group_id),
            _shown(row["messages"][-1]["content"]),
            _shown(row.get("answer", "")),
            Text(" ").join(_outcome(t) for t in chains),
            Text(f"{sum(rewards) / len(rewards):.2f}" if rewards else "–"),
        )
    console.print()
    console.print(table)
    console.print(Text(_totals(result), style="bold"))
    for error, count in Counter(_cause(t) for t in (*result.failed, *result.unscored)).most_common(
        SHOWN_ERRORS
    ):
        line = _shown(error)
        console.print(Text.assemble((f"{count} × ", "bold"), line, style="red"))
    if log is not None:
        console.print(Text(f"events: {log}"))


def _shown(value: Any) -> Text:
    """The beginning of the value, with its control characters made visible."""
    head, left_out = shorten(str(value), SHOWN_CHARS)
    pieces = [Text(piece, style="reverse" if escaped else "") for piece, escaped in visible(head)]
    return Text("").join([*pieces, Text("…" if left_out else "")])


def _outcome(t: Trajectory) -> Text:
    if t.reward is not None:
        return Text(f"{t.reward:g}", style="green" if t.reward > 0 else "red")
    if t.error is not None and t.finish_reason != "error":
        return Text("reward failed", style="red")
    return Text(t.finish_reason or "?", style="red" if t.finish_reason == "error" else "yellow")


def _cause(t: Trajectory) -> str:
    """Why it failed, without its own name: so that chains that failed alike are one line."""
    return (t.error or "").replace(f" of {t.chain_id} ", " ")


def _totals(result: RunResult) -> str:
    reasons = ", ".join(
        f"{n} {reason}" for reason, n in Counter(t.finish_reason for t in result).most_common()
    )
    if result.unscored:
        reasons += f"; {len(result.unscored)} of the rewards failed"
    mean = f", mean reward {result.mean_reward:.2f}" if result.mean_reward is not None else ""
    rate = result.completion_tokens / result.duration_s if result.duration_s else 0.0
    return (
        f"{result.status}: {len(result)} chains ({reasons}){mean}, {result.completion_tokens} tokens in "
        f"{result.duration_s:.2f} s ({rate:.0f} tokens/s), seed {result.seed}"
    )
