"""The text that the command prints before and after a run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rollcast.cli.outcomes import Outcome, cause_rows, outcome_row
from rollcast.cli.output import Output
from rollcast.records import Trajectory
from rollcast.rollout import RunResult
from rollcast.terminal.layout import UNICODE, Glyphs, Row, row_cells, wrap
from rollcast.text import shorten, visible

__all__ = ["print_about", "print_summary", "summary_rows", "totals_rows"]

_SHOWN_CHARS = 500  # how much of a question or an answer is shown
_TABLE_WIDTH = 60  # with at least this many columns, groups are a table
_CELLS = {"group": 16, "rewards": 24, "answer": 20}  # the most columns that these may have on a terminal


def print_about(about: str, out: Output) -> None:
    """Print what the model can and cannot do."""
    out.say(*[[(line, "dim")] for line in about.split("\n")])


def print_summary(result: RunResult, rows: list[dict[str, Any]], out: Output, *, log: str | None) -> None:
    """Print the rewards by group, the totals, and the place of the events."""
    width = out.width
    out.say([], *summary_rows(result, rows, width, out.printer.glyphs), *totals_rows(result, width))
    out.say(*cause_rows(_outcomes(result.trajectories), out.printer.glyphs))
    if log is not None:
        out.say([(f"events: {log}", "")])


def summary_rows(
    result: RunResult, rows: list[dict[str, Any]], width: int | None, glyphs: Glyphs = UNICODE
) -> list[Row]:
    """A table with a line for each group.

    Args:
        result: the run's result.
        rows: the rows that were run, one per group.
        width: the terminal's width, which no line exceeds: below 60 columns each group has a paragraph instead. None: there
            is no terminal, and each line is as long as it needs.
        glyphs: the glyphs that the output can show.
    """
    groups = [_Group(row, *group, glyphs) for row, group in zip(rows, result.groups.items(), strict=True)]
    if width is not None and width < _TABLE_WIDTH:
        return [line for group in groups for line in group.paragraph(width - 1)]
    return _table(groups, None if width is None else width - 1, glyphs)


class _Group:
    """A group's line or paragraph, in pieces that are safe for a terminal."""

    def __init__(self, row: dict[str, Any], group_id: str, chains: list[Trajectory], glyphs: Glyphs) -> None:
        self.glyphs = glyphs
        rewards = [t.reward for t in chains if t.reward is not None]
        self.name = _shown(group_id, glyphs)
        self.mean: Row = [(f"{sum(rewards) / len(rewards):.2f}" if rewards else "-", "bold")]
        self.rewards = outcome_row(_outcomes(chains), glyphs)
        self.answer = _shown(row.get("answer", ""), glyphs)
        self.question = _shown(row["messages"][-1]["content"], glyphs)

    def cells(self, width: int | None) -> list[Row]:
        """The cells of its line in the table, each cut to its width."""
        parts = [self.name, self.mean, self.rewards, self.answer, self.question]
        if width is None:
            return parts
        limits = [_CELLS["group"], None, _CELLS["rewards"], _CELLS["answer"], None]
        return [
            part if limit is None else _cut(part, limit, self.glyphs)
            for part, limit in zip(parts, limits, strict=True)
        ]

    def paragraph(self, width: int) -> list[Row]:
        """Its paragraph for a narrow terminal."""
        lines = wrap([*self.name, ("  mean ", "dim"), *self.mean], width, width)
        for label, part in (("", self.rewards), ("answer ", self.answer), ("", self.question)):
            if part:
                lines += [[("  ", ""), *line] for line in wrap([(label, "dim"), *part], width - 2, width - 2)]
        return lines


def _shown(value: Any, glyphs: Glyphs, style: str = "") -> Row:
    """The beginning of the value on one line, with its control characters made visible."""
    head, left_out = shorten(" ".join(str(value).split("\n")), _SHOWN_CHARS)
    pieces = [(piece, "escape" if escaped else style) for piece, escaped in visible(head)]
    return [*pieces, (glyphs.more, "dim")] if left_out else pieces


def _table(groups: list[_Group], width: int | None, glyphs: Glyphs) -> list[Row]:
    heads: list[Row] = [[(name, "bold")] for name in ("group", "mean", "rewards", "answer", "question")]
    lines = [heads, *[group.cells(width) for group in groups]]
    if not any(group.answer for group in groups):
        lines = [[*line[:3], line[4]] for line in lines]
    widest = [max(row_cells(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = []
    for line in lines:
        row: Row = []
        for cell, cells in zip(line[:-1], widest[:-1], strict=True):
            row += [*cell, (" " * (cells - row_cells(cell) + 2), "")]
        row += line[-1]
        rows.append(row if width is None else _cut(row, width, glyphs))
    return rows


def _cut(row: Row, cells: int, glyphs: Glyphs) -> Row:
    """The row, or its beginning with an ellipsis."""
    if row_cells(row) <= cells:
        return row
    kept: Row = []
    left = cells - 1
    for text, style in row:
        for char in text:
            left -= row_cells([(char, "")])
            if left < 0:
                return [*kept, (glyphs.more, "dim")]
            kept.append((char, style))
    return kept


def _outcomes(chains: list[Trajectory]) -> list[Outcome]:
    return [
        Outcome(
            t.chain_id,
            t.reward,
            t.finish_reason or "?",
            t.error,
            unscored=t.reward is None and t.error is not None and t.finish_reason != "error",
        )
        for t in chains
    ]


def totals_rows(result: RunResult, width: int | None) -> list[Row]:
    """The totals over all chains; on a terminal, lines break between facts, and inside one only if it is too wide."""
    reasons = ", ".join(
        f"{n} {reason}" for reason, n in Counter(t.finish_reason for t in result).most_common()
    )
    if result.unscored:
        reasons += f"; {len(result.unscored)} of the rewards failed"
    rate = result.completion_tokens / result.duration_s if result.duration_s else 0.0
    facts = [f"{result.status}: {len(result)} {'chain' if len(result) == 1 else 'chains'} ({reasons})"]
    if result.mean_reward is not None:
        facts.append(f"mean reward {result.mean_reward:.2f}")
    facts.append(f"{result.completion_tokens} tokens in {result.duration_s:.2f} s ({rate:.0f} tokens/s)")
    facts.append(f"seed {result.seed}")
    if width is None:
        return [[(", ".join(facts), "bold")]]
    lines = [""]
    for i, fact in enumerate(facts):
        piece = fact + ("," if i < len(facts) - 1 else "")
        longer = f"{lines[-1]} {piece}" if lines[-1] else piece
        if len(longer) < width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(piece)
    return [[(line, "bold")] for line in lines]
