"""The text that `rollcast train` prints before and after training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rollcast.cli.itself import quoted, this_command
from rollcast.cli.train.curves import draw, plot_rows
from rollcast.cli.train.record import Record, clock_text
from rollcast.cli.train.settings import TrainSettings
from rollcast.cli.train.view import LABEL_CELLS, TrainView

if TYPE_CHECKING:
    from rollcast.train import TrainResult

__all__ = ["NO_PICTURE", "say_beginning", "say_end"]

NO_PICTURE = "The curves are not drawn as PNG, since matplotlib is missing: pip install 'rollcast[plot]'"
_PLOT_WIDTH = 80  # if there is no terminal


def say_beginning(view: TrainView, title: str, settings: TrainSettings, out: Path, *, picture: bool) -> None:
    """Print what is trained, for how long, and where it is saved."""
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
    view: TrainView,
    title: str,
    settings: TrainSettings,
    result: TrainResult,
    out: Path,
    *,
    picture: bool,
    place: Path | None = None,
) -> None:
    """Print the curves, the improvement, and how to go on.

    Args:
        view: prints it.
        title: what was trained.
        settings: the training's.
        result: the training's.
        out: the training's folder, as it was typed.
        picture: whether the curves are drawn.
        place: the training's folder, absolute, since the agent may have changed the current folder; None: `out`.
    """
    place = out if place is None else place
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
    if result.why:
        view.say([(f"{'why':<{LABEL_CELLS}}", "dim"), (result.why, "")], whole=True)
    for name, text in _next_commands(settings, result, out, place):
        view.say([(f"{name:<{LABEL_CELLS}}", "dim"), (text, "")], whole=True)
    if picture and rows:
        drawn = _drawn(record, title, out / "curves.png", place / "curves.png")
        view.say([(f"{'curves':<{LABEL_CELLS}}", "dim"), (drawn, "")])
    elif not picture:
        view.say([(NO_PICTURE, "")])


def _drawn(record: Record, title: str, shown: Path, path: Path) -> str:
    """Draw the picture; say where it is, or why it could not be written (the weights are saved by now)."""
    try:
        draw(record, title, path)
    except OSError as error:
        return f"{shown} cannot be written: {error.strerror or error}"
    return str(shown)


def _next_commands(
    settings: TrainSettings, result: TrainResult, out: Path, place: Path
) -> list[tuple[str, str]]:
    """The commands to type next."""
    last = result.history[-1]
    if settings.trainer == "trl" and last.step == 0:
        return []  # TRL saves after a step, and there was none
    more = f" --minutes {2 * settings.minutes:g}" if settings.minutes else f" --steps {2 * last.step}"
    if result.stopped == "interrupted":
        more = ""
    go_on = ("go on", f"{this_command()} train --resume --out {quoted(out)}{more}")
    newest = _checkpoint(settings, out, last.step)
    better = _better_than_the_last(settings, result, place)
    if better is None:
        return [("watch it", _watching(settings, newest)), go_on]
    name, found, lately = better
    best = out / name
    return [
        ("the best", f"{best.name}: sampled {found:.2f}; at the end it was {lately:.2f}"),
        ("watch it", _watching(settings, best)),
        ("the last", _watching(settings, newest)),
        go_on,
    ]


def _checkpoint(settings: TrainSettings, out: Path, step: int) -> Path:
    return out / (f"checkpoint-{step}" if settings.trainer == "trl" else f"step-{step:06d}")


def _better_than_the_last(
    settings: TrainSettings, result: TrainResult, place: Path
) -> tuple[str, float, float] | None:
    """The name of the checkpoint with the best evaluation, with its success and that of the last evaluation.

    None if the last one was not worse by more than chance (two standard errors of a share of this many questions).
    """
    rated = [(p.step, p.evaluation) for p in result.history if p.evaluation is not None]
    rated = [(step, evaluation) for step, evaluation in rated if not math.isnan(evaluation.sampled)]
    kept = [
        (evaluation.sampled, step)
        for step, evaluation in rated
        if _checkpoint(settings, place, step).is_dir()
    ]
    if not kept:
        return None
    (best, step), last = max(kept), rated[-1][1]
    share = min(max((best + last.sampled) / 2, 0.0), 1.0)
    if best - last.sampled <= 2 * math.sqrt(share * (1 - share) / max(last.questions, 1)):
        return None
    return _checkpoint(settings, place, step).name, best, last.sampled


def _watching(settings: TrainSettings, weights: Path) -> str:
    """The command that runs these weights, with the agent and on the task that they were trained with."""
    parts = [this_command(), "run"]
    if settings.agent is not None:
        parts.append(quoted(settings.agent))
    else:
        parts.append(f"--backend {'transformers' if settings.trainer == 'trl' else 'tiny'}")
    if settings.task != TrainSettings().task:
        parts.append(f"--task {quoted(settings.task)}")
    return " ".join([*parts, f"--model {quoted(weights)}"])
