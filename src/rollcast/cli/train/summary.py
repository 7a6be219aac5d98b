"""What `rollcast train` says before and after."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rollcast.cli.train.curves import draw, plot_rows
from rollcast.cli.train.record import Record, clock_text
from rollcast.cli.train.settings import TrainSettings
from rollcast.cli.train.view import LABEL_CELLS, TrainView

if TYPE_CHECKING:
    from rollcast.train import TrainResult

__all__ = ["NO_PICTURE", "say_beginning", "say_end"]

NO_PICTURE = "The curves are not drawn as PNG, since matplotlib is missing: pip install 'rollcast[plot]'"
_PLOT_WIDTH = 80  # where there is no terminal


def say_beginning(view: TrainView, title: str, settings: TrainSettings, out: Path, *, picture: bool) -> None:
    """What begins, how long it takes and where it goes."""
    how_long = f"{settings.steps} steps" if settings.steps else f"{settings.minutes:g} minutes"
    if settings.steps == 1 or settings.minutes == 1:
        how_long = how_long.removesuffix("s")
    verb = "Training goes on" if settings.resume else "Training"
    view.say(
        [(f"{verb}: {title}, {how_long}. It goes to {out}. Ctrl-C ends it and keeps what was learned.", "")]
    )
    if not picture:
        view.say([(NO_PICTURE, "dim")])


def say_end(
    view: TrainView, title: str, settings: TrainSettings, result: TrainResult, out: Path, *, picture: bool
) -> None:
    """The curves, the difference that it made, and how to go on."""
    record = view.record = Record(None, None, 0.0)
    for progress in result.history:
        record.take(progress, None)
    view.printer.measure()
    width = (view.printer.width or _PLOT_WIDTH) - 1
    rows = plot_rows(record, width, view.printer.glyphs)
    last = result.history[-1]
    steps = f"{last.step} {'step' if last.step == 1 else 'steps'}, {clock_text(last.seconds)} of training"
    ended = "interrupted" if result.stopped == "interrupted" else "done"
    for row in [[], *rows, [], [(f"{ended}: {steps}", "bold")], view.success_row(width)]:
        view.say(row)
    for name, text in _ways_on(settings, result, out):
        view.say([(f"{name:<{LABEL_CELLS}}", "dim"), (text, "")])
    if picture and rows:
        view.say([(f"{'curves':<{LABEL_CELLS}}", "dim"), (_drawn(record, title, out / "curves.png"), "")])
    elif not picture:
        view.say([(NO_PICTURE, "")])


def _drawn(record: Record, title: str, path: Path) -> str:
    """Where the picture is, or why it is not: the weights are saved by now, and nothing is lost with it."""
    try:
        draw(record, title, path)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror or error}"
    return str(path)


def _ways_on(settings: TrainSettings, result: TrainResult, out: Path) -> list[tuple[str, str]]:
    """What to type next."""
    last = result.history[-1]
    trl = settings.trainer == "trl"
    if trl and last.step == 0:
        return []  # TRL saves what was learned, and nothing was
    backend = "transformers" if trl else "tiny"
    weights = shlex.quote(str(out / (f"checkpoint-{last.step}" if trl else f"step-{last.step:06d}")))
    more = f" --minutes {2 * settings.minutes:g}" if settings.minutes else f" --steps {2 * last.step}"
    if result.stopped == "interrupted":
        more = ""
    return [
        ("watch it", f"rollcast run --backend {backend} --model {weights}"),
        ("go on", f"rollcast train --resume --out {shlex.quote(str(out))}{more}"),
    ]
