"""`rollcast run`: an agent's chains on the terminal, an events log, and a summary."""

from __future__ import annotations

import asyncio
import secrets
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from rollcast.cli.itself import this_command
from rollcast.cli.load import backend_options, load_agent_or_task, load_rows
from rollcast.cli.pace import Paced
from rollcast.cli.replace import give_model
from rollcast.cli.serving import Serving, server_at
from rollcast.cli.signals import SIGNALLED, ending_on_signals
from rollcast.cli.summary import print_about, print_summary
from rollcast.errors import InputError
from rollcast.models import EMBEDDED, Sampling
from rollcast.records import EventFilter
from rollcast.rollout import BaseAgent, Run, RunResult
from rollcast.stream.observers import ConsoleStreamObserver, JSONStreamObserver
from rollcast.tasks import Task, get_task

if TYPE_CHECKING:
    from rollcast.serve import WebSocketStreamingServer

__all__ = ["RunOptions", "run_command"]


@dataclass(frozen=True)
class RunOptions:
    """What the command line says; see `rollcast run --help`."""

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
    seed: int | None
    temperature: float | None
    pace: float | None
    json: str | None
    serving: Serving
    show_chains: list[str] | None
    show_types: list[str] | None
    color: bool | None
    timestamps: bool


def run_command(options: RunOptions) -> int:
    """Run, show and sum up; the exit code: 0, 1 if no chain came through, 130 after Ctrl-C, 143 after SIGTERM."""
    if options.seed is None:
        options = replace(options, seed=secrets.randbits(32))
    task, own = _task_or_agent(options)
    if own is None:
        options = replace(options, agent=None)
    shown = EventFilter(chains=options.show_chains, types=options.show_types)
    rows = _rows(task, options)
    server = server_at(options.serving)
    agent = _agent(task, own, options)
    lines_to_stdout = options.json == "-"
    if options.json is not None:
        agent.streaming_manager.add_observer(JSONStreamObserver(None if lines_to_stdout else options.json))
    if not lines_to_stdout:
        agent.streaming_manager.add_observer(
            ConsoleStreamObserver(show_timestamps=options.timestamps, chain_filter=shown, color=options.color)
        )
    sampling = task.sampling if options.agent is None else Sampling()
    if options.temperature is not None:
        sampling = msgspec.structs.replace(sampling, temperature=options.temperature)
    run = agent.prepare(
        task.max_steps if options.max_steps is None else options.max_steps,
        rows,
        options.chains,
        True,
        sampling=sampling,
        max_concurrent_chains=options.max_concurrent,
        seed=options.seed,
    )
    out = sys.stderr if lines_to_stdout else sys.stdout
    if options.agent is None and options.model is None:
        print_about(task.about, out, color=options.color)
    result, signals = asyncio.run(_execute(agent, run, server, out))
    print_summary(result, rows, out, color=options.color, log=None if lines_to_stdout else options.json)
    if signals:
        return SIGNALLED + signals[0]
    return 1 if len(result.failed) + len(result.unscored) == len(result) else 0


def _task_or_agent(options: RunOptions) -> tuple[Task, BaseAgent | None]:
    """What to run: a task with the agent that it makes, or an agent of the user's own."""
    task = get_task(options.task)
    if options.agent is None:
        return task, None
    found = load_agent_or_task(options.agent)
    return (found, None) if isinstance(found, Task) else (task, found)


def _agent(task: Task, own: BaseAgent | None, options: RunOptions) -> BaseAgent:
    given = backend_options(options.backend_options)
    if own is not None:
        if options.model is None and (options.backend or given):
            raise InputError(
                "--backend or --backend-option was given without --model; an agent of your own has its backend in it: give the model "
                "that is to run instead of the agent's as well"
            )
        agent = own
        if options.model is not None:
            give_model(agent, options.model, options.backend, given)
    else:
        own_questions = options.prompts or options.rows
        agent = BaseAgent(
            options.model or EMBEDDED,
            task.tools,
            options.backend,
            reward=None if own_questions else task.reward,
            name=task.name,
            backend_options=given,
        )
    if options.pace is not None:
        agent.backend = Paced(agent.backend, options.pace)
    return agent


def _rows(task: Task, options: RunOptions) -> list[dict[str, Any]]:
    if options.prompts and options.rows:
        raise InputError("--prompt and --rows were both given; give one of them")
    if options.prompts:
        return [{"messages": [{"role": "user", "content": prompt}]} for prompt in options.prompts]
    if options.rows:
        return load_rows(options.rows)
    assert options.seed is not None
    return task.rows(options.questions, options.seed)


async def _execute(
    agent: BaseAgent, run: Run, server: WebSocketStreamingServer | None, out: TextIO
) -> tuple[RunResult, list[int]]:
    async with AsyncExitStack() as stack:
        if server is not None:
            await stack.enter_async_context(server)
            agent.streaming_manager.add_observer(server.get_observer())
            print(f"watch it with: {this_command()} watch {server.url}", file=out, flush=True)
        await stack.enter_async_context(agent)
        with ending_on_signals(run.cancel) as signals:
            result = await run.execute()
        return result, signals
