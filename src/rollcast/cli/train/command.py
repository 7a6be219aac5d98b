"""`rollcast train`, from its options to its exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rollcast.cli.alert import alert_to
from rollcast.cli.exit_codes import SIGNALLED, UNREAD
from rollcast.cli.last_lines import LastLines
from rollcast.cli.load import load_agent
from rollcast.cli.log import log_at, log_line
from rollcast.cli.on_ray import workers_for
from rollcast.cli.recording import name_of_agent, record_for, record_to_go_on_from
from rollcast.cli.serving import Serving, keep_serving, say_links, server_at, watching
from rollcast.cli.signals import ending_on_signals
from rollcast.cli.standard_error import warn
from rollcast.cli.train.curves import can_draw
from rollcast.cli.train.folder import (
    SETTINGS_FILE,
    claimed,
    folder_for,
    history_in,
    keep_settings,
    newest_checkpoint,
)
from rollcast.cli.train.record import Record
from rollcast.cli.train.settings import TrainSettings, merged
from rollcast.cli.train.shown import ShownChains
from rollcast.cli.train.summary import say_beginning, say_end
from rollcast.cli.train.tensorboard import Scalars
from rollcast.cli.train.view import LABEL_CELLS, TrainView
from rollcast.errors import InputError, RollcastError
from rollcast.grace import run_to_the_end
from rollcast.models import EMBEDDED
from rollcast.observers import HintObserver
from rollcast.rollout import BaseAgent
from rollcast.tasks import Task, get_task

if TYPE_CHECKING:
    from rollcast.fleet import RayWorkers
    from rollcast.observers import JSONStreamObserver
    from rollcast.serve import WebSocketStreamingServer
    from rollcast.train import GRPOConfig, Progress, TrainResult

__all__ = ["train_command"]

_SHOWN_ON_A_TERMINAL = 3


def train_command(line: dict[str, Any], config: str | None = None) -> int:
    """Train, show the chains and print the summary.

    Args:
        line: the options by the names of `TrainSettings`; None if one was not given.
        config: a TOML file with more of them.

    Returns:
        The exit code: 0, 129 after SIGHUP, 130 after Ctrl-C, 143 after SIGTERM, 141 if the output's reader has gone.

    Raises:
        RollcastError: an option is wrong, or the training failed.
    """
    settings = _settings(line, config)
    recording = (
        settings.recording
    )  # all paths are resolved now: the agent's own file may change the current folder
    task = get_task(settings.task)
    grpo = _grpo(settings)
    out = folder_for(settings)
    serving = settings.serving.with_made_token(recording)
    server = server_at(serving)
    alert = alert_to(settings.alert)
    log = log_at(settings.json)
    with claimed(settings, out) as folder:
        place = folder.absolute()
        agent = _agent(task, settings, out)
        workers = workers_for(settings.ray, settings.runners, settings.agent)
        if log is not None:
            log.open()
            agent.streaming_manager.add_observer(log)
        if alert is not None:
            agent.streaming_manager.add_observer(alert)
        scalars = None if settings.tensorboard is None else Scalars(settings.tensorboard, recording.begun_in)
        name = settings.name or (
            task.name if settings.agent is None else name_of_agent(agent, settings.agent)
        )
        record = record_for(
            recording,
            agent.streaming_manager,
            name=name,
            settings=_recorded(settings),
            seed=grpo.seed,
            out=place,
            parent=record_to_go_on_from(place, recording) if settings.resume else None,
        )
        session = _Session(
            agent, settings, serving, (folder, place, recording.begun_in), scalars, log, name, workers
        )
        return _trained(session, task, grpo, server, LastLines(record, agent.streaming_manager))


def _recorded(settings: TrainSettings) -> dict[str, Any]:
    """The settings that say what was trained: those that were given, and no secret."""
    return {
        name: value
        for name, value in msgspec.structs.asdict(settings).items()
        if name not in ("token", "alert", "name", "tag", "out")
        and value is not None
        and value is not False
        and value != []
    }


def _trained(
    session: _Session,
    task: Task,
    grpo: GRPOConfig,
    server: WebSocketStreamingServer | None,
    last_lines: LastLines,
) -> int:
    """Train, and return the exit code."""
    settings, out = session.settings, session.out
    picture = can_draw()
    say_beginning(session.view, session.title, settings, out, picture=picture)

    def sum_up(result: TrainResult) -> None:
        say_end(session.view, session.title, settings, result, out, picture=picture, place=session.place)
        session.say_what_is_missing()

    try:
        _, signals = run_to_the_end(session.run(task, grpo, server, sum_up))
    except (RollcastError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) and settings.trainer == "trl":
            # A thread is inside torch, which aborts if the interpreter exits meanwhile.
            last_lines.say()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(SIGNALLED + signal.SIGINT)
        last_lines.say_of_failure(error)
        raise
    last_lines.finish()
    if signals:
        return SIGNALLED + signals[0]
    return UNREAD if session.unread else 0


def _settings(line: dict[str, Any], config: str | None) -> TrainSettings:
    """The settings; with `--resume`, on top of those that the training began with."""
    if line.get("resume") and line.get("model") is not None:
        raise InputError(
            "--resume and --model were both given; a training goes on with the weights of its checkpoint: leave out --model"
        )
    if config is None and line.get("resume") and line.get("out") is not None:
        kept = Path(line["out"]) / SETTINGS_FILE
        with suppress(OSError):  # the name is too long, which `folder_for` reports
            config = str(kept) if kept.is_file() else None
    return merged(line, config)


def _grpo(settings: TrainSettings) -> GRPOConfig:
    from rollcast.train import GRPOConfig  # noqa: PLC0415  (NumPy, only for this command)

    return GRPOConfig(**settings.trainer_options)


def _agent(task: Task, settings: TrainSettings, out: Path) -> BaseAgent:
    if settings.trainer == "trl":
        importlib.import_module("rollcast.train.trl")  # raises an error that says what is missing
    if settings.agent is not None:
        if settings.model is not None:
            raise InputError("--agent and --model were both given; your own agent has a model already")
        return load_agent(settings.agent)
    if settings.trainer == "trl":
        from rollcast.cli.train.with_trl import make_agent  # noqa: PLC0415  (torch and TRL)

        return make_agent(task, settings.model)
    model = settings.model or EMBEDDED
    if settings.resume and model != EMBEDDED and not Path(model).is_dir():
        from rollcast.train.resumable import check_resumable, numbered  # noqa: PLC0415

        newest = newest_checkpoint(out)
        assert newest is not None
        check_resumable(newest, numbered(out, "step-"))
        model = str(newest)  # its first model may be gone; each checkpoint is a whole model
    return BaseAgent(model, task.tools, "tiny", reward=task.reward, name=task.name)


class _Session:
    """One training, and its display.

    Args:
        agent: what is trained.
        settings: the training's.
        serving: the options about serving.
        folders: the training's, as typed; the same, absolute; the folder in which the command was typed.
        scalars: for TensorBoard.
        log: the log that `--json` asked for.
        name: what the training is called.
        workers: run the chains; None: this process does.
    """

    def __init__(
        self,
        agent: BaseAgent,
        settings: TrainSettings,
        serving: Serving,
        folders: tuple[Path, Path, Path],
        scalars: Scalars | None,
        log: JSONStreamObserver | None,
        name: str,
        workers: RayWorkers | None,
    ) -> None:
        stream = sys.stderr if log is not None and log.path is None else sys.stdout
        color = False if settings.no_color else None
        self.agent = agent
        self.settings = settings
        self.serving = serving
        self.out, self.place, self.begun_in = folders
        self.name = name
        self.workers = workers
        self.scalars = scalars
        self.log = log
        model = agent.backend.model_name if settings.agent else settings.model or EMBEDDED
        self.title = f"{model} on {settings.task}"
        self.record = Record(settings.steps, settings.minutes, time.monotonic())
        for progress in history_in(self.place) if settings.resume else []:
            self.record.take(progress, None)
        self.view = TrainView(stream, self.record, self.title, color=color)
        how_many = settings.show
        if how_many is None:
            how_many = _SHOWN_ON_A_TERMINAL if self.view.live else 0
        self.shown = ShownChains(agent.streaming_manager, how_many, stream, color=color)
        self.view.shown = self.shown.chains
        agent.streaming_manager.add_observer(HintObserver(self.view.hint))
        self.ending = False
        self.warned = False
        self.kept = False  # whether the settings are saved in the folder

    async def run(
        self,
        task: Task,
        grpo: GRPOConfig,
        server: WebSocketStreamingServer | None,
        sum_up: Callable[[TrainResult], None],
    ) -> tuple[TrainResult, list[int]]:
        """Train, print the summary, and serve on if that is asked for; the result, and the signals that ended the training."""
        async with AsyncExitStack() as serving:
            if server is not None:
                await serving.enter_async_context(server)
                serving.enter_context(watching(server, self.agent.streaming_manager))
                say_links(server, self.serving, self.view.say)
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.agent)
                if self.workers is not None:
                    await stack.enter_async_context(self.workers)
                if self.scalars is not None:
                    stack.enter_context(self.scalars)
                stack.enter_context(self.view)
                signals = stack.enter_context(ending_on_signals(self._end))
                result = await self._train(task, grpo)
            sum_up(result)
            if server is not None and self.settings.keep_serving and not signals:
                await keep_serving(server, self.view.say)
        return result, signals

    async def _train(self, task: Task, grpo: GRPOConfig) -> TrainResult:
        if self.settings.trainer == "trl":
            from rollcast.cli.train.with_trl import train_with_trl  # noqa: PLC0415  (torch and TRL)

            return await train_with_trl(
                self.agent, task, self.settings, self.place, self._progress, self._is_ending, self.name
            )
        from rollcast.train import train  # noqa: PLC0415  (NumPy, only for this command)

        return await train(
            self.agent,
            task,
            grpo,
            out=self.place,
            resume=self.settings.resume,
            on_progress=self._progress,
            stop=self._is_ending,
            name=self.name,
            tags=self.settings.tag,
            workers=self.workers,
        )

    @property
    def unread(self) -> bool:
        """Whether the output's reader has gone, as after `| head -1`."""
        return self.view.output.unread or (self.log is not None and self.log.unread)

    def say_what_is_missing(self) -> None:
        """Print what could not be written, to the log or to the terminal."""
        if self.log is not None and self.log.incomplete is not None:
            self.view.say(
                [
                    (f"{'events':<{LABEL_CELLS}}", "dim"),
                    (log_line(self.log) or "", ""),
                ]
            )
        self._warn_if_broken()

    def _warn_if_broken(self) -> None:
        failure = self.view.output.lost_to
        if failure is not None and not self.warned:
            self.warned = True
            warn(f"the output cannot be written: {failure.strerror or failure}; nothing more is shown")

    def _is_ending(self) -> bool:
        return self.ending or self.unread

    def _progress(self, progress: Progress) -> None:
        if not self.kept:
            self.kept = True
            keep_settings(self.settings, self.place, self.begun_in)
        self.view.progress(progress)
        self._warn_if_broken()
        if self.scalars is not None:
            self.scalars.progress(progress)
        self.shown.next_step()

    def _end(self) -> None:
        self.ending = True
        self.view.note("finishing this step; Ctrl-C again ends at once")
