"""`rollcast hub`: the one place in which many processes are watched."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rollcast.cli.kept_token import MadeToken, made_token
from rollcast.cli.output import Output
from rollcast.cli.page_links import forward_lines, page_link, url_elsewhere
from rollcast.cli.recording import Recording, RunRecord, record_directory, record_for
from rollcast.cli.signals import ending_on_signals
from rollcast.cli.standard_error import warn
from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEventType

if TYPE_CHECKING:
    from rollcast.fleet.acks_file import AcksFile
    from rollcast.fleet.hub import Hub
    from rollcast.fleet.restored import Restored
    from rollcast.serve import WebSocketStreamingServer
    from rollcast.stream import StreamingManager

__all__ = ["HubOptions", "hub_command"]


@dataclass(frozen=True)
class HubOptions:
    """The options on the command line; see `rollcast hub --help`."""

    port: int
    host: str
    token: str | None = field(repr=False)
    publish_token: str | None = field(repr=False)
    recording: Recording
    show: int
    tls_cert: str | None
    tls_key: str | None
    origins: tuple[str, ...]
    host_names: tuple[str, ...]
    color: bool | None


@dataclass(frozen=True)
class _Memory:
    """What the hub before this one left, and where this one keeps what the next must know; nothing with `--no-record`."""

    restored: Restored | None = None
    acks: AcksFile | None = None


def hub_command(options: HubOptions) -> int:
    """Take producers and viewers until Ctrl-C or SIGTERM; the exit code.

    Raises:
        InputError: an option is wrong, the port is in use, or nothing can be recorded where it is to be.
        ArchiveError: the record directory cannot be read.
    """
    logging.basicConfig(format="rollcast: %(message)s", level=logging.WARNING)
    recording = options.recording
    directory = None if recording.off else recording.begun_in / record_directory(recording.directory)
    made = made_token(directory) if options.token is None else None
    server = _server(options, made)
    record = asyncio.run(_serve(options, server, made, _memory(directory)))
    if record is not None:
        record.finish()
    return 0


def _memory(directory: Path | None) -> _Memory:
    if directory is None:
        return _Memory()
    from rollcast.fleet.acks_file import AcksFile  # noqa: PLC0415  (not with --no-record)
    from rollcast.fleet.restored import restored_from  # noqa: PLC0415

    acks = AcksFile(directory)  # first, since it tells whether the hub before this one still runs
    restored = restored_from(directory)
    for note in restored.notes:
        warn(note)
    return _Memory(restored, acks)


def _server(options: HubOptions, made: MadeToken | None) -> WebSocketStreamingServer:
    from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer  # noqa: PLC0415  (other commands need no network)
    from rollcast.serve.environment import token_for_hub  # noqa: PLC0415

    value = made.value if made is not None else options.token
    assert value is not None
    tokens = [Token(value, ("read", "control", "publish"))]
    if options.publish_token not in (None, value):
        tokens.append(Token(options.publish_token, ("publish",)))
    elif options.publish_token is not None and token_for_hub() is None:
        # In the environment it may be this hub's own token, which it told the processes here to publish with.
        raise InputError(
            "--publish-token is the same as --token, so producers could watch and cancel too; give another one, or leave it out: "
            "--token publishes as well"
        )
    settings = ServerSettings(
        tokens=tuple(tokens),
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        origins=options.origins,
        hosts=options.host_names,
    )
    return WebSocketStreamingServer(options.host, options.port, settings=settings)


async def _serve(
    options: HubOptions, server: WebSocketStreamingServer, made: MadeToken | None, memory: _Memory
) -> RunRecord | None:
    from rollcast.fleet.collector import collect_seldom  # noqa: PLC0415
    from rollcast.fleet.hub import Hub  # noqa: PLC0415  (other commands need no network)
    from rollcast.stream import StreamingManager  # noqa: PLC0415

    manager = StreamingManager(publish=False)  # it is the hub, and publishes to no other
    parent = None if memory.restored is None else memory.restored.parent
    record = record_for(
        options.recording,
        manager,
        name="hub",
        settings={"hub": True, "port": options.port},
        seed=None,
        parent=parent,
    )
    out = Output(sys.stdout, color=options.color)
    ended = asyncio.Event()
    hub = Hub(server, manager, restored=memory.restored, acks=memory.acks)
    try:
        with ExitStack() as stack:
            _observe(manager, hub, options, stack)
            async with hub:
                collect_seldom()
                with ending_on_signals(ended.set):
                    if made is not None:
                        made.keep()
                    for line in _lines(server, options, made):
                        out.say([(line, "")])
                    out.say([("Ctrl-C ends it", "dim")])
                    out.must_have_printed()
                    await ended.wait()
    finally:
        await manager.aclose()
        if memory.acks is not None:
            await asyncio.to_thread(memory.acks.close)
    return record


def _observe(manager: StreamingManager, hub: Hub, options: HubOptions, stack: ExitStack) -> None:
    """Show the first chains of each run, if that is asked for, and count for `/metrics`, if its extra is installed."""
    if options.show:
        from rollcast.terminal import ConsoleStreamObserver  # noqa: PLC0415  (most hubs show nothing)

        chains = [f"chain_{i}" for i in range(options.show)]
        shown = EventFilter(chains=chains) | EventFilter(types=StreamEventType.RUN_START)
        manager.add_observer(ConsoleStreamObserver(True, shown, color=options.color))
    from rollcast.errors import MissingExtraError  # noqa: PLC0415
    from rollcast.fleet.metrics import HubMetrics  # noqa: PLC0415
    from rollcast.observers import PrometheusStreamObserver  # noqa: PLC0415

    try:
        metrics = PrometheusStreamObserver()
    except MissingExtraError:
        return  # `/metrics` names what is missing
    manager.add_observer(metrics)
    stack.callback(metrics.unregister)
    counts = HubMetrics(hub)
    stack.callback(counts.unregister)


def _lines(server: WebSocketStreamingServer, options: HubOptions, made: MadeToken | None) -> list[str]:
    """How to watch, and what to set where the producers run."""
    from rollcast.serve.access import is_loopback  # noqa: PLC0415  (other commands need no network)

    shown = "in a browser: "
    shown += (
        page_link(server, made.value)
        if made is not None
        else f"{server.page_url}#token=…, with the token for the dots"
    )
    publishes = "…" if made is None or options.publish_token not in (None, made.value) else made.value
    which = "" if publishes != "…" else "  (…: the token, or that of --publish-token)"
    lines = [
        shown,
        *forward_lines(server),
        "in the environment of each process that is to be seen here:",
        f"  ROLLCAST_HUB={url_elsewhere(server)}",
        f"  ROLLCAST_HUB_TOKEN={publishes}{which}",
    ]
    if is_loopback(server.host):
        lines.append("only processes of this machine reach it; --host 0.0.0.0 lets others in")
    return lines
