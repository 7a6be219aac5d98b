"""`python -m benchmarks.plot_learning`: draws the newest kept curves of `learning` as `plots/learning.svg`, with matplotlib."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.learning import BAR
from benchmarks.plot import newest_first
from rollcast.errors import MissingExtraError
from rollcast.tasks import task_names

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise MissingExtraError("drawing curves", "plot") from error

__all__ = ["main"]

FOLDER = Path(__file__).parent
SAMPLED, GREEDY = "#0072b2", "#e69f00"  # Okabe and Ito's, which colour-blind readers tell apart


def main() -> None:
    """Draw the newest."""
    for path in newest_first():
        record = json.loads(path.read_text("utf-8"))
        curves = {name: record.get("curves", {}).get(name) for name in task_names()}
        if all(curves.values()) and not record["quick"]:
            plot = FOLDER / "plots" / "learning.svg"
            about = f"{record['cpu']}, {record['cores']} cores, {record['date']}"
            with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rollcast", "font.size": 9}):
                _drawn(curves, about).savefig(plot, metadata={"Date": None})
            print(f"{plot.name} shows {path.name}")
            return
    raise SystemExit("no curves of learning are kept; make some: python -m benchmarks learning --save")


def _drawn(curves: dict[str, list[dict[str, Any]]], about: str) -> Figure:
    """Draw one panel per task: success by minutes of training, with a line per seed."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).flat
    figure.suptitle(f"Share of 128 questions answered right, 3 seeds\n{about}", fontsize=10)
    for axes, (task, seeds) in zip(panels, curves.items(), strict=False):
        for number, curve in enumerate(seeds):
            minutes = [seconds / 60 for seconds in curve["seconds"]]
            for kind, colour in (("greedy", GREEDY), ("sampled", SAMPLED)):
                label = kind if number == 0 else None
                axes.plot(minutes, curve[kind], color=colour, linewidth=1.2, alpha=0.85, label=label)
        axes.axhline(BAR, color="#888888", linewidth=0.8, linestyle=":")
        axes.set(title=task, ylim=(0, 1.03), xlim=(0, None), xlabel="minutes of training")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False)
    return figure


if __name__ == "__main__":
    main()
