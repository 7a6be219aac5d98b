"""Shows a training while it runs: as a panel at the bottom of a terminal, or as lines.

The panel takes the place of the console's status, below the lines of the chains that are shown. Each of those chains has a
row with a fixed place, so that nothing jumps when one ends.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TextIO

from rollcast.cli.train.record import Record, clock_text, sparkline
from rollcast.records.hint_watch import HintChange
from rollcast.terminal.hint_lines import HintRows
from rollcast.terminal.layout import UNICODE, Row, row_cells, wrap
from rollcast.terminal.printer import Printer
from rollcast.terminal.shown import VisibleChain

if TYPE_CHECKING:
    from rollcast.train import Progress

__all__ = ["LABEL_CELLS", "TrainView"]

LABEL_CELLS = 12  # the width of the label before a row's figures

_TICK_S = 0.1
_REPAINT_S = 0.1
_SPARK_CELLS = 40
_DIFFERENCE = 0.005  # a smaller change of success counts as none


class TrainView:
    """Shows a training on one stream; use it as a context manager around the training.

    On a terminal that can move its cursor it is a panel; elsewhere each step and each evaluation is a line, without control
    codes.

    Args:
        stream: where to print.
        record: what is shown; `progress` fills it.
        title: what is trained on what.
        color: True or False; None: decided by the stream and the environment.
        clock: a monotonic clock, in seconds.

    Attributes:
        live: whether it is a panel.
        shown: ids of the chains that have a row above it.
    """

    def __init__(
        self,
        stream: TextIO,
        record: Record,
        title: str,
        *,
        color: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.printer = Printer(stream, color=color, width=None, timestamps=False, limits=(8, 600))
        self.output = self.printer.output
        self.record = record
        self.live = self.printer.capable
        self._title = title
        self.shown: list[str] = []
        self._clock = clock
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rollcast-train-view", daemon=True)
        self._painted: tuple[float, list[str]] = (float("-inf"), [])
        self._note: str | None = None
        self._hints = HintRows()

    # -- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> TrainView:
        if self.live:
            with self.output as output:
                output.status = self._rows
                output.redraw()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._inbox.put(None)
        self._thread.join()
        if self.live:
            self.output.clear_status()

    def _work(self) -> None:
        """Show what comes, and keep the panel's clock running while the event loop computes.

        This has a thread of its own, since a terminal may block for as long as its user likes (Ctrl-S).
        """
        while True:
            try:
                shown = self._inbox.get(timeout=_TICK_S if self.live else None)
            except queue.Empty:
                with self.output:
                    continue
            if shown is None:
                return
            shown()

    # -- what happens ----------------------------------------------------------------------------------------------

    def progress(self, progress: Progress) -> None:
        """Report a step, or the evaluation before the first one. It never waits for the terminal."""
        self._inbox.put(partial(self.show, progress, self._clock()))

    def note(self, text: str) -> None:
        """Show a note, in the panel from now on, or as a line. It never waits for the terminal."""
        self._inbox.put(partial(self.show_note, text))

    def hint(self, change: HintChange) -> None:
        """Report a hint that appeared or went. It never waits for the terminal."""
        self._inbox.put(partial(self.show_hint, change))

    def show(self, progress: Progress, now: float) -> None:
        """Show a step at once, in this thread, for `progress`."""
        with self.output as output:
            self.record.take(progress, now)
            if not self.live and progress.step > 0:
                self.say(self._step_row(progress, now))
            if progress.evaluation is not None:
                self.say(self._evaluation_row(progress))
            self._painted = (float("-inf"), [])
            output.redraw()

    def show_note(self, text: str) -> None:
        """Show a note at once, in this thread, for `note`."""
        with self.output as output:
            self._note = text
            if not self.live:
                self.say([(text, "")])
            self._painted = (float("-inf"), [])
            output.redraw()

    def show_hint(self, change: HintChange) -> None:
        """Show a change of a hint at once, in this thread, for `hint`."""
        for row, _, _ in self._hints.of([change], change.at, self.printer.rows):
            self.say(row)

    def say(self, row: Row, *, whole: bool = False) -> None:
        """Print a row among the lines, wrapped at the terminal's width; `whole`: as one line that can be copied."""
        with self.output as output:
            self.printer.measure()
            width = self.printer.width
            safe = self.printer.rows.safe(row)
            for part in [safe] if width is None or whole else wrap(safe, width - 1, width - 1):
                output.put(self.printer.painter.paint(part) + "\n")

    # -- lines -----------------------------------------------------------------------------------------------------

    def _step_row(self, progress: Progress, now: float) -> Row:
        metrics = progress.metrics
        parts = [f"step {progress.step}" + (f" of {self.record.steps}" if self.record.steps else "")]
        for name, word in (("mean_reward", "mean reward"), ("success", "success")):
            if name in metrics:
                parts.append(f"{word} {metrics[name]:.2f}")
        parts += self._figures(progress, short=True)
        parts.append(clock_text(now - self.record.started_at))
        return [(f" {self.printer.glyphs.dot} ".join(parts), "")]

    def _evaluation_row(self, progress: Progress) -> Row:
        evaluation = progress.evaluation
        assert evaluation is not None
        when = f"after step {progress.step}" if progress.step else "before training"
        which = "held-out questions" if evaluation.held_out else "questions"
        return [
            (f"{self.printer.glyphs.train} ", "train"),
            (f"{when}, {evaluation.questions} {which}: ", ""),
            (f"sampled {evaluation.sampled:.2f}, greedy {evaluation.greedy:.2f}", "bold"),
        ]

    def _figures(self, progress: Progress, *, short: bool = False) -> list[str]:
        metrics = progress.metrics
        figures = []
        if "tokens_per_s" in metrics:
            figures.append(f"{metrics['tokens_per_s']:,.0f} tokens/s")
        figures.append(f"policy {progress.policy_version}")
        if metrics.get("failed"):
            failed = int(metrics["failed"])
            figures.append(f"{failed} {'chain' if failed == 1 else 'chains'} without a reward")
        if "flat_groups" in metrics:
            flat, groups = int(metrics["flat_groups"]), int(metrics["flat_groups"] + metrics["kept_groups"])
            figures.append(
                f"flat groups {flat}/{groups}" if short else f"{flat} of {groups} groups without variance"
            )
        return figures

    # -- the panel -------------------------------------------------------------------------------------------------

    def _rows(self) -> list[str]:
        """The rows at the bottom, painted. Called inside `with output`, for every write."""
        self.printer.measure()
        width, most = self.printer.status_size()
        _, lines = self.printer.size()
        paint = self.printer.painter.paint
        now, (at, panel) = self._clock(), self._painted
        if now - at >= _REPAINT_S:
            safe = map(self.printer.rows.safe, self._panel(width - 1, now))
            panel = [paint(wrap(row, width - 1, 2)[0]) for row in safe]
            self._painted = (now, panel)
        if not most:
            return panel[1:2]  # there is only room for the row with the progress
        room = max((lines or 24) // 2 - len(panel), 0)
        chains = [paint(wrap(row, width - 1, 2)[0]) for row in self._chain_rows()[: min(most, room)]]
        return chains + panel[: max((lines or 24) // 2, 2)]

    def _chain_rows(self) -> list[Row]:
        """What each shown chain is writing; a chain that writes nothing keeps its row."""
        rows = []
        for chain_id in self.shown:
            chain = self.output.shown.open_chain(chain_id)
            if chain is not None:
                rows.append(self.printer.live_row(chain))
            else:
                style = self.printer.painter.chain_style(chain_id)
                rows.append(self.printer.prefix(VisibleChain("", chain_id, style), 0.0))
        return rows

    def _panel(self, width: int, now: float) -> list[Row]:
        rule = self.printer.glyphs.rule
        head: Row = [(f"{rule * 2} ", "rule"), ("train", "title"), (" ", ""), (self._title, "dim"), (" ", "")]
        fill: Row = [(rule * max(width - row_cells(head), 0), "rule")]
        return [
            wrap(head, width, 2)[0] if row_cells(head) > width else head + fill,
            self._clock_row(now),
            self._reward_row(width),
            self.success_row(width),
            self._figures_row(),
        ]

    def _clock_row(self, now: float) -> Row:
        record, g = self.record, self.printer.glyphs
        dot = (f" {g.dot} ", "dim")
        step = record.last.step if record.last else 0
        # A limit of minutes counts only training, over all sessions.
        elapsed = record.last.seconds if record.minutes and record.last else now - record.started_at
        row: Row = [(f"{g.spinner[int(now * 8) % len(g.spinner)]} ", "call"), (f"step {step}", "bold")]
        if record.steps:
            row.append((f" of {record.steps}", ""))
        row += [dot, (clock_text(elapsed), "")]
        if record.minutes:
            row.append((f" of {clock_text(record.minutes * 60)}", ""))
        if self._note is not None:
            return [*row, dot, (self._note, "stopped")]
        left = record.left_s(now)
        if left is not None:
            row += [dot, (f"about {clock_text(left)} left", "")]
        elif not record.evaluations:
            row += [dot, ("first, how good it is now", "dim")]
        return row

    def _reward_row(self, width: int) -> Row:
        row: Row = [(f"{'reward':<{LABEL_CELLS}}", "dim")]
        rewards = self.record.rewards
        if not rewards:
            return [*row, (self.printer.glyphs.more, "dim")]
        cells = min(_SPARK_CELLS, width - LABEL_CELLS - 8)
        line = sparkline(rewards, cells, ascii_only=self.printer.glyphs is not UNICODE)
        return [*row, (f"{rewards[-1]:.2f}  ", "bold"), (line, "reward")]

    def success_row(self, width: int) -> Row:
        """How the evaluations went, from the first to the last."""
        evaluations = self.record.evaluations
        label = "held-out" if not evaluations or evaluations[-1][1].held_out else "success"
        row: Row = [(f"{label:<{LABEL_CELLS}}", "dim")]
        if not evaluations:
            return [*row, (self.printer.glyphs.more, "dim")]
        (_, first), (step, last) = evaluations[0], evaluations[-1]
        row += [*self._change("sampled", first.sampled, last.sampled), ("   ", "")]
        row += self._change("greedy", first.greedy, last.greedy)
        after: Row = [("   " + (f"after step {step}" if step else "before training"), "dim")]
        return row + after if row_cells(row + after) <= width else row

    def _change(self, name: str, first: float, last: float) -> Row:
        """The change from the first to the last value, and its direction."""
        if len(self.record.evaluations) < 2:
            return [(f"{name} ", ""), (f"{last:.2f}", "bold")]
        up, down, same, to = (
            ("↑", "↓", "=", "→") if self.printer.glyphs is UNICODE else ("up", "down", "=", "->")
        )
        arrow, style = (
            (up, "done")
            if last > first + _DIFFERENCE
            else (down, "fail")
            if last < first - _DIFFERENCE
            else (same, "dim")
        )
        return [
            (f"{name} ", ""),
            (f"{first:.2f} {to} ", "dim"),
            (f"{last:.2f}", "bold"),
            (f" {arrow}", style),
        ]

    def _figures_row(self) -> Row:
        last = self.record.last
        if last is None:
            return [(" ", "")]
        return [(f" {self.printer.glyphs.dot} ".join(self._figures(last)), "dim")]
