"""`rollcast run`: shows an agent's chains on the terminal, and writes a log of events and a summary."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from rollcast.cli.alert import alert_to
from rollcast.cli.exit_codes import SIGNALLED, UNREAD
from rollcast.cli.last_lines import LastLines
from rollcast.cli.load import backend_options, load_agent_or_task, load_rows
from rollcast.cli.log import log_at, log_line
from rollcast.cli.on_ray import workers_for
from rollcast.cli.output import Output
from rollcast.cli.pace import Paced
from rollcast.cli.recording import Recording, RunRecord, name_of_agent, record_for
from rollcast.cli.replace import give_model
from rollcast.cli.serving import Serving, keep_serving, say_links, server_at, watching
from rollcast.cli.signals import ending_on_signals
from rollcast.cli.summary import print_about, print_summary
from rollcast.errors import InputError, RollcastError
from rollcast.grace import run_to_the_end
from rollcast.models import EMBEDDED, Sampling
from rollcast.observers import JSONStreamObserver
from rollcast.records import EventFilter
from rollcast.rollout import BaseAgent, Run, RunResult
from rollcast.tasks import Task, get_task
from rollcast.terminal import ConsoleStreamObserver

if TYPE_CHECKING:
    from rollcast.fleet import RayWorkers
    from rollcast.serve import WebSocketStreamingServer

__all__ = ["RunOptions", "run_command"]

_LOOK_S = 0.1  # how often to check that the output still has a reader


@dataclass(frozen=True)
class RunOptions:
    """The options on the command line; see `rollcast run --help`."""

    agent: str | None
    model: str | None
    backend: str | None
    backend_options: list[str]
    rows: str | None
    task: str
    prompts: list[str]
    questions: int
    chains: int
    max_steps: int | None
    max_concurrent: int | None
    ray: str | None
    runners: int | None
    seed: int | None
    temperature: float | None
    pace: float | None
    json: str | None
    recording: Recording
    serving: Serving
    alert: str | None = field(repr=False)  # its address may be a secret
    show_chains: list[str] | None
    show_types: list[str] | None
    color: bool | None
    timestamps: bool

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Take them from the options of the command, whose names have `_` for `-`."""
        same = {each.name: options[each.name] for each in fields(cls) if each.name in options}
        return cls(
            **same,
            backend_options=options["backend_option"] or [],
            prompts=options["prompt"] or [],
            recording=Recording.of(options),
            serving=Serving.of(options),
            show_chains=options["chain"] or None,
            show_types=options["type"] or None,
            color=False if options["no_color"] else None,
            timestamps=not options["no_timestamps"],
        )


def run_command(options: RunOptions) -> int:
    """Run, show the chains and print the summary.

    Returns:
        The exit code: 0, 1 if every chain failed, 129 after SIGHUP, 130 after Ctrl-C, 141 if the output's reader has gone, 143 after SIGTERM.
    """
    if options.seed is None:
        options = replace(options, seed=secrets.randbits(32))
    # Paths are resolved now: the agent's own file, which is loaded next, may change the current folder.
    log = log_at(options.json)
    given_rows = _given_rows(options)
    options = replace(options, serving=options.serving.with_made_token(options.recording))
    server = server_at(options.serving)
    task, own = _task_or_agent(options)
    if own is None:
        options = replace(options, agent=None)
    shown = EventFilter(chains=options.show_chains, types=options.show_types)
    rows = task.rows(options.questions, options.seed or 0) if given_rows is None else given_rows
    alert = alert_to(options.alert)
    agent = _agent(task, own, options)
    workers = _workers(options)
    lines_to_stdout = log is not None and log.path is None
    if log is not None:
        agent.streaming_manager.add_observer(log)
    if alert is not None:
        agent.streaming_manager.add_observer(alert)
    if not lines_to_stdout:
        agent.streaming_manager.add_observer(
            ConsoleStreamObserver(show_timestamps=options.timestamps, chain_filter=shown, color=options.color)
        )
    name = options.recording.name or _name(agent, options)
    run = _prepared(agent, task, rows, options, name, workers)
    last_lines = LastLines(_record(agent, options, name), agent.streaming_manager)
    if log is not None:
        log.open()
    out = Output(sys.stderr if lines_to_stdout else sys.stdout, color=options.color)
    if options.agent is None and options.model is None:
        print_about(task.about, out)

    def sum_up(result: RunResult) -> None:
        print_summary(result, rows, out, log=None if log is None else log_line(log))
        out.warn_if_broken()

    readers = _Readers(out, log, server)
    try:
        result, signals = run_to_the_end(
            _execute(agent, run, workers, server, readers, sum_up, options.serving)
        )
    except (RollcastError, KeyboardInterrupt) as error:
        last_lines.say_of_failure(error)
        raise
    last_lines.finish()
    if signals:
        return SIGNALLED + signals[0]
    if out.unread or (log is not None and log.unread):
        return UNREAD
    return 1 if len(result.failed) + len(result.unscored) == len(result) else 0


def _workers(options: RunOptions) -> RayWorkers | None:
    """The workers that `--ray` asks for. They import the user's agent only if the command line changes nothing about it."""
    as_it_is = options.model is None and options.pace is None
    return workers_for(options.ray, options.runners, options.agent if as_it_is else None)


def _prepared(
    agent: BaseAgent,
    task: Task,
    rows: list[dict[str, Any]],
    options: RunOptions,
    name: str,
    workers: RayWorkers | None,
) -> Run:
    sampling = task.sampling if options.agent is None else Sampling()
    if options.temperature is not None:
        sampling = msgspec.structs.replace(sampling, temperature=options.temperature)
    return agent.prepare(
        task.max_steps if options.max_steps is None else options.max_steps,
        rows,
        options.chains,
        True,
        sampling=sampling,
        max_concurrent_chains=options.max_concurrent,
        seed=options.seed,
        workers=workers,
        about={"name": name, "tags": options.recording.tags},
    )


def _name(agent: BaseAgent, options: RunOptions) -> str:
    """The run's name: that of the given agent, else of the file of rows, else `prompt`, else that of the task's agent."""
    if options.agent is not None:
        return name_of_agent(agent, options.agent)
    if options.rows:
        return Path(options.rows).stem
    return "prompt" if options.prompts else agent.name


def _record(agent: BaseAgent, options: RunOptions, name: str) -> RunRecord | None:
    """The record of the run."""
    kept = (
        "agent", "model", "backend", "rows", "task", "questions", "chains", "max_steps", "max_concurrent", "temperature", "pace",
        "ray", "runners",
    )  # fmt: skip
    settings = {key: getattr(options, key) for key in kept}
    settings["backend_options"] = options.backend_options or None
    return record_for(
        options.recording, agent.streaming_manager, name=name, settings=settings, seed=options.seed
    )


def _task_or_agent(options: RunOptions) -> tuple[Task, BaseAgent | None]:
    """What to run: a task with the agent that it makes, or an agent of the user's own."""
    task = get_task(options.task)
    if options.agent is None:
        return task, None
    if options.model is None and (options.backend or options.backend_options):
        raise InputError(
            "--backend or --backend-option was given without --model; your agent has a backend already: also give the model "
            "that is to run instead of the agent's"
        )
    found = load_agent_or_task(options.agent)
    return (found, None) if isinstance(found, Task) else (task, found)


def _agent(task: Task, own: BaseAgent | None, options: RunOptions) -> BaseAgent:
    given = backend_options(options.backend_options)
    model = None if options.model is None else options.recording.path_or_name(options.model)
    if own is not None:
        agent = own
        if model is not None:
            give_model(agent, model, options.backend, given)
    else:
        own_questions = options.prompts or options.rows
        agent = BaseAgent(
            model or EMBEDDED,
            task.tools,
            options.backend,
            reward=None if own_questions else task.reward,
            name=task.name,
            backend_options=given,
        )
    if options.pace is not None:
        agent.backend = Paced(agent.backend, options.pace)
    return agent


def _given_rows(options: RunOptions) -> list[dict[str, Any]] | None:
    """The rows that were given, in a file or as prompts; None if the task's own questions are asked."""
    if options.prompts and options.rows:
        raise InputError("--prompt and --rows were both given; give one of them")
    if options.prompts:
        return [{"messages": [{"role": "user", "content": prompt}]} for prompt in options.prompts]
    if options.rows:
        return load_rows(options.rows)
    return None


class _Readers:
    """Tells whether the run still has a reader: without one, a log or a server it need not go on.

    Args:
        out: the output for people.
        log: the log that `--json` asked for.
        server: the server that `--serve` asked for.
    """

    def __init__(
        self, out: Output, log: JSONStreamObserver | None, server: WebSocketStreamingServer | None
    ) -> None:
        self.out = out
        self._log = log
        self._others = server is not None or (log is not None and log.path is not None)

    async def gone(self) -> None:
        """Return when the run has no reader any more; say meanwhile if the output cannot be written."""
        while self._others or not (self.out.unread or (self._log is not None and self._log.unread)):
            self.out.warn_if_broken()
            await asyncio.sleep(_LOOK_S)


async def _execute(
    agent: BaseAgent,
    run: Run,
    workers: RayWorkers | None,
    server: WebSocketStreamingServer | None,
    readers: _Readers,
    sum_up: Callable[[RunResult], None],
    options: Serving,
) -> tuple[RunResult, list[int]]:
    """Run, print the summary, and serve on if that is asked for; the result, and the signals that ended the run."""
    async with AsyncExitStack() as serving:
        if server is not None:
            await serving.enter_async_context(server)
            serving.enter_context(watching(server, agent.streaming_manager))
            say_links(server, options, readers.out.say)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(agent)
            if workers is not None:
                await stack.enter_async_context(workers)
            looking = asyncio.create_task(_end_if_unread(run, readers))
            stack.callback(looking.cancel)
            with ending_on_signals(run.cancel) as signals:
                result = await run.execute()
        sum_up(result)
        if server is not None and options.keep and not signals:
            await keep_serving(server, readers.out.say)
        return result, signals


async def _end_if_unread(run: Run, readers: _Readers) -> None:
    await readers.gone()
    run.cancel()
