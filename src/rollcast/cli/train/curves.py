"""Draws a training's curves: in the terminal, and as a picture (extra `plot`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rollcast.cli.train.record import Record, bucketed, scale
from rollcast.terminal.layout import UNICODE, Glyphs, Row

__all__ = ["can_draw", "draw", "plot_rows"]

_LINES = 9
_AXIS_CELLS = 7


def plot_rows(record: Record, width: int, glyphs: Glyphs) -> list[Row]:
    """The mean reward of each step and the evaluations, as rows at most `width` cells wide; empty without steps."""
    if not record.history:
        return []
    fancy = glyphs is UNICODE
    marks = {"reward": "·" if fancy else ".", "sampled": "o", "greedy": "▲" if fancy else "x"}
    upright, tick, level = ("│", "┤", "─") if fancy else ("|", "+", "-")
    cells = max(min(width - _AXIS_CELLS - 1, 70), 10)
    last_step = record.history[-1].step
    sampled = [(step, e.sampled) for step, e in record.evaluations]
    greedy = [(step, e.greedy) for step, e in record.evaluations]
    low, high = scale([*record.rewards, *[y for _, y in sampled + greedy]])
    canvas = [[(" ", "")] * cells for _ in range(_LINES)]

    def put(x: float, y: float, name: str, style: str) -> None:
        line = round((high - y) / (high - low) * (_LINES - 1))
        canvas[line][min(round(x * (cells - 1)), cells - 1)] = (marks[name], style)

    means = bucketed(record.rewards, cells)
    for i, y in enumerate(means):
        put((i + 1) / len(means), y, "reward", "reward")
    for points, name, style in (
        (greedy, "greedy", "done"),
        (sampled, "sampled", "chain:0"),
    ):  # the last is on top
        for step, y in points:
            put(step / last_step, y, name, style)
    rows: list[Row] = []
    for i, line in enumerate(canvas):
        y = high - (high - low) * i / (_LINES - 1)
        label = f"{y:>5.2f} {tick}" if i % 4 == 0 else f"      {upright}"
        rows.append([(label, "dim"), *line])
    first, last = "0", f"step {last_step}"
    axis = f"{first}{' ' * max(cells - len(first) - len(last), 1)}{last}"
    rows += [[(" " * 6 + level * (cells + 1), "dim")], [(" " * _AXIS_CELLS + axis, "dim")]]
    legend: Row = [(" " * _AXIS_CELLS, ""), (f"{marks['reward']} mean reward", "reward")]
    legend += [("   ", ""), (f"{marks['sampled']} held-out, sampled", "chain:0")]
    legend += [("   ", ""), (f"{marks['greedy']} greedy", "done")]
    return [*rows, legend]


def can_draw() -> bool:
    """Whether the extra `plot` is installed."""
    return find_spec("matplotlib") is not None


def draw(record: Record, title: str, path: Path) -> None:
    """Write the curves to a PNG.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  (an extra)

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps = [p.step for p in record.history if "mean_reward" in p.metrics]
    axes.plot(steps, record.rewards, color="0.7", linewidth=1, label="mean reward of a step")
    when = [step for step, _ in record.evaluations]
    axes.plot(when, [e.sampled for _, e in record.evaluations], marker="o", label="held-out, sampled")
    axes.plot(when, [e.greedy for _, e in record.evaluations], marker="^", label="held-out, greedy")
    low, high = axes.get_ylim()
    if low >= -0.1 and high <= 1.1:
        axes.set_ylim(0, 1.02)
    axes.set_xlabel("step")
    axes.set_title(title, parse_math=False)  # a path may have dollar signs
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
