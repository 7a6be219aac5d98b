"""`rollcast watch`: shows another program's chains on this terminal."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from rollcast.cli.address import server_address
from rollcast.cli.alert import alert_to
from rollcast.errors import InputError
from rollcast.records import EventFilter
from rollcast.stream import StreamingManager
from rollcast.terminal import ConsoleStreamObserver

__all__ = ["WatchOptions", "watch_command"]

INTERRUPTED = 130  # the shell's code for a program that Ctrl-C ended


@dataclass(frozen=True)
class WatchOptions:
    """The options on the command line; see `rollcast watch --help`."""

    url: str
    since: str
    token: str | None = field(repr=False)
    tls_ca: str | None
    alert: str | None = field(repr=False)  # its address may be a secret
    show_chains: list[str] | None
    show_types: list[str] | None
    color: bool | None
    timestamps: bool


def watch_command(options: WatchOptions) -> int:
    """Show what comes until Ctrl-C; return the exit code.

    Raises:
        InputError: an option is wrong, or the output cannot be written.
        RefusedError: the server cannot be reached, or refuses this client.
        BrokenPipeError: the output's reader has gone.
    """
    if options.since not in ("live", "start"):
        raise InputError(f"--since is {options.since!r}; expected live or start")
    logging.basicConfig(format="rollcast: %(message)s", level=logging.WARNING)
    wanted = EventFilter(chains=options.show_chains, types=options.show_types)
    try:
        asyncio.run(_watch(options, wanted))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


async def _watch(options: WatchOptions, wanted: EventFilter) -> None:
    from rollcast.serve import WebSocketStreamingClient  # noqa: PLC0415  (other commands need no network)

    of_chains = None if options.show_chains is None else EventFilter(chains=options.show_chains)
    # The network may be quiet while the chains are not, so only the times of events count.
    alert = alert_to(options.alert, chain_filter=of_chains, by_clock=False)
    # Events may be from a later version, or made by hand: they are shown, not checked.
    client = WebSocketStreamingClient(
        server_address(options.url),
        token=options.token,
        filter=wanted if alert is None else wanted | alert.filter,
        since=options.since,
        check=False,
        tls_ca=options.tls_ca,
    )
    console = ConsoleStreamObserver(
        show_timestamps=options.timestamps, chain_filter=wanted, color=options.color
    )
    manager = StreamingManager()
    console.hints_by_clock = False
    console.mode = "lossless"  # the network waits for a slow terminal, so that nothing is merged
    manager.add_observer(console)
    if alert is not None:
        manager.add_observer(alert)
    try:
        async with client:
            async for event in client:
                manager.relay(event)
                await manager.ready()
                if console.failure is not None:
                    why = console.failure.strerror or console.failure
                    raise InputError(f"the output cannot be written: {why}; make room, or print elsewhere")
                if console.unread:
                    raise BrokenPipeError
    finally:
        await manager.aclose()
