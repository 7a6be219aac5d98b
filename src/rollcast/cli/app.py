"""The commands, their options and their help."""

from __future__ import annotations

from typing import Annotated

import typer

import rollcast
from rollcast.cli.run import RunOptions, run_command
from rollcast.tasks import task_names

__all__ = ["app"]

app = typer.Typer(
    name="rollcast",
    help="Run tool-using LLM agents as many parallel chains, and watch every token, tool call and reward live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rollcast {rollcast.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run tool-using LLM agents as many parallel chains, and watch every token, tool call and reward live."""


@app.command()
def run(
    agent: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:AGENT]",
            help="An agent of your own: module:name or path/to/file.py:name. The embedded model where none is given.",
        ),
    ] = None,
    task: Annotated[str, typer.Option(help=f"What to work on: {', '.join(task_names())}.")] = "arithmetic",
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='JSON lines to work on instead of a task: {"prompt": "…", "answer": …} or {"messages": […]}.',
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A question of your own instead of the task's; may be given several times."),
    ] = None,
    questions: Annotated[int, typer.Option(help="How many of the task's questions.", min=1)] = 2,
    chains: Annotated[int, typer.Option(help="Chains for each question.", min=1)] = 4,
    max_steps: Annotated[
        int | None, typer.Option(help="Generations that a chain may have; the task knows a good number.")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Chains that run at once; all where it is not given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same questions and chains.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    pace: Annotated[
        float | None,
        typer.Option(
            help="Tokens a second and chain, for reading along; as fast as it goes where not given."
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Append every event as a JSON line; - is standard output."),
    ] = None,
    chain: Annotated[
        list[str] | None, typer.Option(help="Show this chain only (chain_0 …); may be given several times.")
    ] = None,
    type: Annotated[
        list[str] | None,
        typer.Option(help="Show this type of event only (tool_call_start …); may be given several times."),
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours.")] = False,
    no_timestamps: Annotated[
        bool, typer.Option("--no-timestamps", help="No times before the lines.")
    ] = False,
) -> None:
    """Run an agent and watch its chains.

    Without an agent of yours, the model is the embedded one (rollcast/tiny, 0.46 million parameters, no download, no
    GPU). It knows the questions of the shipped tasks and nothing else: it is there to be watched and trained, not to be
    talked to.
    """
    options = RunOptions(
        agent=agent,
        rows=rows,
        task=task,
        prompts=prompt or [],
        questions=questions,
        chains=chains,
        max_steps=max_steps,
        max_concurrent=max_concurrent,
        seed=seed,
        temperature=temperature,
        pace=pace,
        json=json,
        show_chains=chain or None,
        show_types=type or None,
        color=False if no_color else None,
        timestamps=not no_timestamps,
    )
    code = run_command(options)
    if code:
        raise typer.Exit(code)
