"""`rollcast stats`: the figures of a recorded run, as tables for people or as JSON."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import msgspec

from rollcast.archive.figures import Figures, StepFigures, figures_of
from rollcast.archive.index import find_record
from rollcast.archive.reader import Archive
from rollcast.cli.output import Output
from rollcast.cli.records import lacking, warn_of_damage
from rollcast.cli.standard_error import warn
from rollcast.cli.wording import counted, duration_text, number_text
from rollcast.terminal.event_rows import EventRows
from rollcast.terminal.layout import Row
from rollcast.text import printable_line

__all__ = ["stats_command"]

_KINDS = 12  # of tools and of failures that have a line
_STEPS = 12
_TOOLS_BY_STEP = 4
_TOOL_CHARS = 16
_OPEN = frozenset(("running", "lost"))  # what chains that have no end are called


def stats_command(directory: Path, word: str, *, json: bool, color: bool | None) -> int:
    """Print the figures; the exit code.

    Raises:
        ArchiveError: no record is meant or more than one, or it cannot be read.
        InputError: the output cannot be written.
        BrokenPipeError: the output's reader has gone.
    """
    archive = Archive.open(find_record(directory, word))
    figures = figures_of(archive)
    if json:
        about = {"record": archive.path.name, "state": archive.state}
        sys.stdout.write(msgspec.json.encode(about | msgspec.to_builtins(figures)).decode() + "\n")
        return 0
    out = Output(sys.stdout, color=color)
    texts = out.printer.rows
    out.say(*_totals(archive, figures, texts), *_tool_rows(figures, texts), *_failure_rows(figures, texts))
    out.say(*_slow_rows(figures, texts), *_step_rows(figures, texts))
    for damage in figures.damage[:_KINDS]:
        warn(f"{archive.path.name} is damaged: {damage}")
    warn_of_damage(archive, [])
    out.must_have_printed()
    return 0


def _totals(archive: Archive, figures: Figures, texts: EventRows) -> list[Row]:
    ends = ", ".join(f"{n:,} {how}" for how, n in figures.ends.items())
    reward = "none" if figures.mean_reward is None else f"{number_text(figures.mean_reward)} on average"
    if figures.mean_eval_reward is not None:
        reward += f", {number_text(figures.mean_eval_reward)} in evaluations"
    tokens = f"{figures.completion_tokens:,} sampled"
    if figures.mean_tokens is not None:
        tokens += f", {number_text(figures.mean_tokens)} a chain on average"
    if not figures.ends.keys().isdisjoint(_OPEN):
        tokens += ", in chains that ended"
        if figures.open_tokens:
            tokens += f"; {figures.open_tokens:,} in those that have no end"
    lines = [
        (
            "chains",
            f"{figures.chains:,} in {counted(figures.groups, 'group')}" + (f": {ends}" if ends else ""),
        ),
        ("reward", reward),
        ("tokens", tokens),
        ("cut off", f"{counted(figures.truncated, 'generation')} ran out of tokens"),
        ("time", ", ".join(f"{name} {duration_text(s)}" for name, s in figures.seconds.items())),
    ]
    head: Row = [*texts.line(archive.path.name, 80, "title"), ("  ", ""), (archive.state, "dim")]
    missing = lacking(archive.facts)
    gap: list[Row] = [] if missing is None else [[(f"{texts.glyphs.gap} {missing}", "gap")]]
    return [head, *gap, *([(f"{name:<8}", "dim"), *texts.line(text, 400)] for name, text in lines if text)]


def _table(title: str, rows: list[list[str]], texts: EventRows, left_out: int) -> list[Row]:
    """Rows of cells, the first of which is a name and the others are numbers."""
    names = [texts.line(row[0], 32) for row in rows]
    width = max(sum(len(text) for text, _ in name) for name in names)
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    found: list[Row] = [[], [(title, "bold")]]
    for name, row in zip(names, rows, strict=True):
        pad = " " * (width - sum(len(text) for text, _ in name))
        cells = "  ".join(cell.rjust(w) for cell, w in zip(row[1:], widths, strict=True))
        found.append([("  ", ""), *name, (f"{pad}  {cells}", "")])
    if left_out > 0:
        found.append([(f"  {texts.glyphs.more} {left_out:,} more", "gap")])
    return found


def _tool_rows(figures: Figures, texts: EventRows) -> list[Row]:
    if not figures.tools:
        return []
    rows = [["", "calls", "failed", "mean"]]
    for name, use in list(figures.tools.items())[:_KINDS]:
        mean = duration_text(use.seconds / use.calls) if use.calls else "-"
        rows.append([name or "(no name)", f"{use.calls:,}", f"{use.failed:,}", mean])
    return _table("tools", rows, texts, len(figures.tools) - _KINDS)


def _failure_rows(figures: Figures, texts: EventRows) -> list[Row]:
    if not figures.failures:
        return []
    rows = [[kind or "(unknown)", f"{n:,}"] for kind, n in list(figures.failures.items())[:_KINDS]]
    return _table("errors", rows, texts, len(figures.failures) - _KINDS)


def _slow_rows(figures: Figures, texts: EventRows) -> list[Row]:
    if not figures.slowest:
        return []
    rows = [["", "took", "of it"]]
    for chain in figures.slowest:
        most = max(chain.times, key=lambda name: chain.times[name], default=None)
        of_it = "-" if most is None else f"{duration_text(chain.times[most])} {most}"
        name = f"{chain.chain_id} (run {chain.run_id[-4:]})"
        rows.append([name, duration_text(chain.duration_s), of_it])
    return _table("slowest chains", rows, texts, 0)


def _step_rows(figures: Figures, texts: EventRows) -> list[Row]:
    if not figures.steps:
        return []
    kept = figures.steps
    if len(kept) > _STEPS:  # evenly, with the first and the last
        kept = [figures.steps[round(i * (len(kept) - 1) / (_STEPS - 1))] for i in range(_STEPS)]
    rows = [["step", "chains", "reward", "tokens", "longest", "turns"]]
    for step in kept:
        longest = "-" if step.longest_tokens is None else f"{step.longest_tokens:,}"
        means = (number_text(step.mean_reward), number_text(step.mean_tokens), number_text(step.mean_steps))
        rows.append([str(step.train_step), f"{step.chains:,}", means[0], means[1], longest, means[2]])
    table = _table("training steps (means over chains)", rows, texts, 0)
    return table + _tools_by_step(kept, texts)


def _tools_by_step(steps: list[StepFigures], texts: EventRows) -> list[Row]:
    """How many calls of each tool failed in each step, if any did."""
    failed = Counter[str]()
    for step in steps:
        failed.update({name: use.failed for name, use in step.tools.items() if use.failed})
    shown = [name for name, _ in failed.most_common(_TOOLS_BY_STEP)]
    if not shown:
        return []
    rows = [["step", *(printable_line(name, _TOOL_CHARS) for name in shown)]]
    for step in steps:
        uses = [step.tools.get(name) for name in shown]
        cells = ["-" if use is None else f"{use.failed:,} of {use.calls:,}" for use in uses]
        rows.append([str(step.train_step), *cells])
    return _table("failed calls by training step", rows, texts, len(failed) - len(shown))
