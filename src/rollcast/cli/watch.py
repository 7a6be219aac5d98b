"""`rollcast watch`: shows another program's chains on this terminal."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rollcast.cli.alert import ALERT_EVENTS, alert_to
from rollcast.cli.exit_codes import INTERRUPTED
from rollcast.cli.speed import speed_of
from rollcast.errors import InputError
from rollcast.records import EventFilter
from rollcast.serve.address import server_address
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.terminal import ConsoleStreamObserver

if TYPE_CHECKING:
    from rollcast.observers import AlertObserver
    from rollcast.serve import WebSocketStreamingClient

__all__ = ["WatchOptions", "watch_command"]


@dataclass(frozen=True)
class WatchOptions:
    """The options on the command line; see `rollcast watch --help`."""

    url: str
    since: str | None
    speed: str | None
    token: str | None = field(repr=False)
    tls_ca: str | None
    alert: str | None = field(repr=False)  # its address may be a secret
    show_chains: list[str] | None
    show_types: list[str] | None
    show_sources: list[str] | None
    color: bool | None
    timestamps: bool


def watch_command(options: WatchOptions) -> int:
    """Show what comes until Ctrl-C; return the exit code.

    Raises:
        InputError: an option is wrong, or the output cannot be written.
        RefusedError: the server cannot be reached, or refuses this client.
        BrokenPipeError: the output's reader has gone.
    """
    if options.since not in (None, "live", "start"):
        raise InputError(f"--since is {options.since!r}; expected live or start")
    if options.speed is not None:
        speed_of(options.speed)
        if options.since == "live":
            raise InputError(
                "--speed and --since live are both given; a replay begins at the start: leave out --since, or --speed"
            )
    logging.basicConfig(format="rollcast: %(message)s", level=logging.WARNING)
    wanted = EventFilter(chains=options.show_chains, types=options.show_types, sources=options.show_sources)
    try:
        asyncio.run(_watch(options, wanted))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


async def _watch(options: WatchOptions, wanted: EventFilter) -> None:
    # The network may be quiet while the chains are not, so only the times of events count.
    alarmed = EventFilter(chains=options.show_chains, sources=options.show_sources)
    alert = alert_to(options.alert, chain_filter=alarmed, by_clock=False)
    if alert is None or wanted == EventFilter():
        await _show(options, wanted, alert)
        return
    # Alerts need what the terminal does not show, but no tokens, so they have a connection of their own.
    tasks = [
        asyncio.create_task(_show(options, wanted, None)),
        asyncio.create_task(_follow(_client(options, EventFilter(types=ALERT_EVENTS)), alert)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _client(options: WatchOptions, wanted: EventFilter) -> WebSocketStreamingClient:
    from rollcast.serve import WebSocketStreamingClient  # noqa: PLC0415  (other commands need no network)

    # Events may be from a later version, or made by hand: they are shown, not checked.
    return WebSocketStreamingClient(
        server_address(options.url),
        token=options.token,
        filter=wanted,
        since=options.since or ("live" if options.speed is None else "start"),
        speed=None if options.speed is None else _times(options.speed),
        check=False,
        tls_ca=options.tls_ca,
    )


def _times(text: str) -> float | Literal["max"]:
    speed = speed_of(text)
    return "max" if speed == math.inf else speed


async def _show(options: WatchOptions, wanted: EventFilter, alert: AlertObserver | None) -> None:
    """Show what comes; an alert is sent of the same events."""
    console = ConsoleStreamObserver(
        show_timestamps=options.timestamps, chain_filter=wanted, color=options.color
    )
    console.hints_by_clock = False
    console.mode = "lossless"  # the network waits for a slow terminal, so that nothing is merged

    def check() -> None:
        if console.failure is not None:
            why = console.failure.strerror or console.failure
            raise InputError(f"the output cannot be written: {why}; make room, or print elsewhere")
        if console.unread:
            raise BrokenPipeError

    await _follow(_client(options, wanted), *[console, *([] if alert is None else [alert])], check=check)


async def _follow(
    client: WebSocketStreamingClient, *observers: StreamObserver, check: Callable[[], None] = lambda: None
) -> None:
    """Give the observers what comes; `check` is called after each event, and may raise."""
    manager = StreamingManager(publish=False)
    for observer in observers:
        manager.add_observer(observer)
    try:
        async with client:
            async for event in client:
                manager.relay(event)
                await manager.ready()
                check()
    finally:
        await manager.aclose()
