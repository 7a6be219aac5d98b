"""`rollcast proxy`: one URL between callers and an engine, and whatever passes can be watched."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from rollcast.cli.output import Output
from rollcast.cli.recording import Recording, RunRecord, record_for
from rollcast.cli.serving import Serving, say_links, server_at, watching
from rollcast.cli.signals import ending_on_signals
from rollcast.cli.standard_error import warn
from rollcast.cli.wording import counted

if TYPE_CHECKING:
    from rollcast.proxy import Proxy, ProxySettings
    from rollcast.proxy.counts import Counts
    from rollcast.proxy.watching import Watching
    from rollcast.serve import WebSocketStreamingServer
    from rollcast.stream import StreamingManager
    from rollcast.terminal import ConsoleStreamObserver

__all__ = ["ProxyOptions", "proxy_command"]


@dataclass(frozen=True)
class ProxyOptions:
    """The options on the command line; see `rollcast proxy --help`."""

    upstream: str
    host: str
    port: int
    listen_token: str | None = field(repr=False)
    upstream_key: str | None = field(repr=False)
    reward_token: str | None = field(repr=False)
    session_header: str
    allow_control: bool
    idle: float
    drain: float
    probe: bool
    show: int
    stream_tools: bool
    no_logprobs: bool
    recording: Recording
    serving: Serving
    color: bool | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Take them from the options of the command, whose names have `_` for `-`.

        Raises:
            InputError: two of them contradict each other, or one is empty.
        """
        same = {each.name: options[each.name] for each in fields(cls) if each.name in options}
        level = options["record"]
        off = level in (None, "none") and (level == "none" or options["record_dir"] is None)
        recording = Recording(
            level=None if off else level,
            off=off,
            directory=options["record_dir"],
            name=options["name"],
            tags=tuple(options["tag"] or ()),
        )
        return cls(
            **same,
            recording=recording,
            serving=Serving.of({**options, "keep_serving": False}),
            color=False if options["no_color"] else None,
        )


def proxy_command(options: ProxyOptions) -> int:
    """Pass requests on until Ctrl-C or SIGTERM; the exit code.

    Raises:
        InputError: an option is wrong, or a port is in use.
        MissingExtraError: aiohttp is not installed.
    """
    logging.basicConfig(format="rollcast: %(message)s", level=logging.WARNING)
    from rollcast.proxy.settings import ProxySettings  # noqa: PLC0415  (other commands need none of it)

    settings = ProxySettings(
        upstream=options.upstream,
        host=options.host,
        port=options.port,
        listen_token=options.listen_token,
        upstream_key=options.upstream_key,
        reward_token=options.reward_token,
        session_header=options.session_header,
        allow_control=options.allow_control,
        idle_s=options.idle,
        drain_s=options.drain,
    )
    serving = options.serving.with_made_token(options.recording)
    # With a history every token would be asked for, whether or not anybody looks: only a record of all tokens does that anyway.
    server = server_at(serving, keeps_history=options.recording.level == "tokens")
    record = asyncio.run(_pass_on(options, settings, serving, server))
    if record is not None:
        record.finish()
    return 0


async def _pass_on(
    options: ProxyOptions, settings: ProxySettings, serving: Serving, server: WebSocketStreamingServer | None
) -> RunRecord | None:
    from rollcast.proxy.counts import Counts  # noqa: PLC0415  (as above)
    from rollcast.proxy.rewriting import EngineTraits  # noqa: PLC0415
    from rollcast.proxy.server import Proxy  # noqa: PLC0415
    from rollcast.proxy.watching import Watching  # noqa: PLC0415
    from rollcast.stream import StreamingManager  # noqa: PLC0415

    manager = StreamingManager()
    about = _about(options, settings)
    record = record_for(options.recording, manager, name="proxy", settings=about, seed=None)
    showing = _shown_first(options, manager)
    looking = Watching(
        manager,
        Counts(),
        idle_s=settings.idle_s,
        traits=EngineTraits(logprobs=not options.no_logprobs, tools=options.stream_tools),
        about={
            "backend": "openai",
            "settings": about,
            "name": options.recording.name,
            "tags": options.recording.tags,
        },
        showing=showing,
    )
    proxy = Proxy(settings, watching=looking)
    out = Output(sys.stdout, color=options.color)
    ended = asyncio.Event()
    try:
        async with AsyncExitStack() as stack:
            if server is not None:
                await stack.enter_async_context(server)
                stack.enter_context(watching(server, manager))
            with ending_on_signals(ended.set):
                await stack.enter_async_context(proxy)
                out.say(
                    [(f"proxy for {settings.upstream}: give callers {proxy.url}/v1 as their base URL", "")]
                )
                if server is not None:
                    say_links(server, serving, out.say)
                await _look_at_engine(options, proxy, looking, out)
                out.say([("Ctrl-C ends it", "dim")])
                out.must_have_printed()
                await ended.wait()
                if proxy.counts.open:
                    warn(
                        f"{counted(proxy.counts.open, 'answer')} to finish, at most {settings.drain_s:g} s; Ctrl-C again ends it now"
                    )
    finally:
        await manager.aclose()
    out.say([(_sum(proxy.counts), "")])
    return record


def _about(options: ProxyOptions, settings: ProxySettings) -> dict[str, Any]:
    """What a record has about the proxy; no secret is among it."""
    return {
        "upstream": settings.upstream,
        "session_header": settings.session_header,
        "allow_control": settings.allow_control or None,
        "stream_tools": options.stream_tools or None,
        "idle": settings.idle_s,
    }


async def _look_at_engine(options: ProxyOptions, proxy: Proxy, looking: Watching, out: Output) -> None:
    """Say whether the engine is there, and with `--probe` what it gives."""
    from rollcast.proxy.probe import probe  # noqa: PLC0415  (as above)

    if options.probe:
        for line in await probe(proxy.settings, looking.traits):
            out.say([(line, "")])
    elif (why := await proxy.passing.knock()) is not None:
        out.say([(f"the engine is not there yet ({why}); calls are answered with 502 until it is", "")])


class _ShownFirst:
    """Shows a number of chains on the console: the first ones, and others as these end.

    Args:
        manager: whose observer the console is.
        console: that shows them.
        most: how many at a time.
    """

    def __init__(self, manager: StreamingManager, console: ConsoleStreamObserver, most: int) -> None:
        self._manager = manager
        self._console = console
        self._most = most
        self._shown: list[str] = []

    def begins(self, chain_id: str) -> None:
        """A call is about to begin; if it begins a chain, that will have this id, and is shown from its start."""
        if self._has_room():
            self._show([*self._shown, chain_id])

    def began(self, chain_id: str) -> None:
        """A call of this chain began."""
        if chain_id not in self._shown and len(self._shown) < self._most:
            self._shown.append(chain_id)
        self._show(self._shown)

    def _has_room(self) -> bool:
        if len(self._shown) >= self._most:
            runs = list(self._manager.fanout.runs.values())
            self._shown = [shown for shown in self._shown if any(run.has_chain(shown) for run in runs)]
        return len(self._shown) < self._most

    def _show(self, chains: list[str]) -> None:
        wanted = _of_chains(chains)
        if wanted != self._console.filter:
            self._console.filter = wanted
            self._manager.refresh(self._console)


def _of_chains(chains: list[str]) -> Any:
    from rollcast.records import EventFilter, StreamEventType  # noqa: PLC0415  (as above)

    return EventFilter(chains=chains) | EventFilter(types=StreamEventType.RUN_START)


def _shown_first(options: ProxyOptions, manager: StreamingManager) -> _ShownFirst | None:
    if not options.show:
        return None
    from rollcast.terminal import ConsoleStreamObserver  # noqa: PLC0415  (as above)

    console = ConsoleStreamObserver(True, _of_chains([]), color=options.color)
    manager.add_observer(console)
    return _ShownFirst(manager, console, options.show)


def _sum(counts: Counts) -> str:
    """The last line: what passed."""
    parts = [counted(sum(counts.requests.values()), "request")]
    for number, words in (
        (counts.watched, "watched"),
        (counts.refused, "refused"),
        (counts.unreachable, "without an answer of the engine"),
        (counts.cut, "cut off by the engine"),
        (counts.left, "left by the caller"),
    ):
        if number:
            parts.append(f"{number:,} {words}")
    return ", ".join(parts)
