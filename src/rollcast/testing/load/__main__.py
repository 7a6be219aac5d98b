"""`python -m rollcast.testing.load`: play a synthetic load, and say how it went."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

import click

from rollcast.cli.exit_codes import BAD_INPUT, INTERRUPTED
from rollcast.errors import RollcastError
from rollcast.serve import WebSocketStreamingServer
from rollcast.stream import StreamingManager
from rollcast.testing.load import Load, LoadReport, play_load

__all__ = ["main"]


@click.command(context_settings={"show_default": True})
@click.option("--chains", type=int, default=Load.chains, help="How many chains are open at once.")
@click.option(
    "--tokens-per-s",
    type=float,
    default=Load.tokens_per_s,
    help="Tokens a second of each chain while it generates.",
)
@click.option(
    "--events-per-s",
    type=float,
    default=None,
    help="All other events a second, of all chains together; 0: chains only generate.  [default: turns of 50 tokens]",
)
@click.option("--seconds", type=float, default=Load.seconds, help="How long it goes on after all have begun.")
@click.option("--turns", type=int, default=Load.turns, help="The mean number of turns of a chain.")
@click.option(
    "--tool-calls", type=int, default=Load.tool_calls, help="Tool calls after each turn but the last."
)
@click.option("--rewards/--no-rewards", default=Load.rewards, help="Whether chains get rewards.")
@click.option(
    "--group-size", type=int, default=Load.group_size, help="How many chains have the same question."
)
@click.option(
    "--chains-per-run",
    type=int,
    default=None,
    help="Chains of a run.  [default: as many as are open at once]",
)
@click.option("--seed", type=int, default=Load.seed, help="The seed of everything that is said.")
@click.option("--flat-out", is_flag=True, help="As fast as possible; the same events in the same order.")
@click.option("--no-streaming", is_flag=True, help="Emit nothing: what the load costs by itself.")
@click.option(
    "--serve", type=int, default=None, metavar="PORT", help="Serve it to viewers on this port; 0: any."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(*, no_streaming: bool, serve: int | None, as_json: bool, **about: Any) -> None:
    """Play synthetic chains that write, call a tool and are rewarded, without a model.

    With ROLLCAST_HUB set they are published to that hub, and with --serve a server of this process shows them. Otherwise nobody
    watches. At the end it says how much there was, and how far it fell behind its clock.
    """
    try:
        report = asyncio.run(_play(Load(**about), live=not no_streaming, serve=serve))
    except KeyboardInterrupt:
        click.echo("interrupted; its chains have ended as cancelled", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    click.echo(json.dumps(asdict(report)) if as_json else _told(report))


async def _play(load: Load, *, live: bool, serve: int | None) -> LoadReport:
    async with AsyncExitStack() as stack:
        manager = StreamingManager()
        stack.push_async_callback(manager.aclose)
        if serve is not None:
            server = await stack.enter_async_context(WebSocketStreamingServer("127.0.0.1", serve))
            manager.add_observer(server.get_observer())
            click.echo(f"serving at {server.page_url}", err=True)
        return await play_load(manager, load, live=live)


def _told(report: LoadReport) -> str:
    """The report in a few lines."""
    others = sum(report.events.values())
    whole = report.begin_s + report.seconds
    lines = [
        f"{report.chains:,} chains in {report.runs:,} runs, all ended",
        f"{report.tokens:,} tokens and {others:,} other events in {whole:.2f} s, of which the first chains took {report.begin_s:.2f} s to begin",
        f"behind its clock: {report.behind_s:.2f} s at the end, {report.most_behind_s:.2f} s at most",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the command: bad input gives one sentence and exit code 2."""
    try:
        command(prog_name="python -m rollcast.testing.load")
    except RollcastError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
