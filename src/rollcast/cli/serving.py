"""Lets others watch over the network, for `--serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from rollcast.cli.itself import this_command
from rollcast.cli.kept_token import MadeToken, made_token
from rollcast.cli.page_links import link_lines
from rollcast.cli.recording import Recording, record_directory
from rollcast.cli.signals import ending_on_signals
from rollcast.errors import InputError, MissingExtraError
from rollcast.serve.secrecy import shown_url
from rollcast.terminal.layout import Row

if TYPE_CHECKING:
    from rollcast.serve import WebSocketStreamingServer
    from rollcast.stream import StreamingManager

__all__ = ["Serving", "keep_serving", "say_links", "server_at", "watching"]


@dataclass(frozen=True)
class Serving:
    """The command line's options about serving.

    Attributes:
        where: `[HOST:]PORT`; None: nothing is served.
        token: the secret that clients must give.
        made: a secret that the command made since none was given: it adds control, and reading needs none.
        tls_cert, tls_key: PEM files; with them clients connect with `wss://`.
        origins: origins whose pages may connect beside the server's own.
        host_names: host names of the server.
        keep: serve on after the end, until a signal comes.
    """

    where: str | None = None
    token: str | None = field(default=None, repr=False)
    tls_cert: str | None = None
    tls_key: str | None = None
    origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    keep: bool = False
    made: MadeToken | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Pick them out of a command's options, whose names have `_` for `-`."""
        return cls(
            where=options["serve"],
            token=options["token"],
            tls_cert=options["tls_cert"],
            tls_key=options["tls_key"],
            origins=tuple(options["origin"] or ()),
            host_names=tuple(options["host_name"] or ()),
            keep=options["keep_serving"],
        )

    def with_made_token(self, recording: Recording) -> Serving:
        """These options with a token of the command's own, if it serves and was given none."""
        if self.where is None or self.token is not None:
            return self
        directory = None if recording.off else recording.begun_in / record_directory(recording.directory)
        return replace(self, made=made_token(directory))


def server_at(serving: Serving, *, keeps_history: bool = True) -> WebSocketStreamingServer | None:
    """Make the server for `--serve [HOST:]PORT` and its options, not started; None if nothing is to be served.

    Args:
        serving: the options.
        keeps_history: whether clients that come later can have what was before; then every token is watched, whoever looks.

    Raises:
        InputError: this is not a port, an option is wrong or has no use, or the network could reach the server without a
            token.
    """
    if serving.where is None:
        given = {
            "--tls-cert": serving.tls_cert,
            "--tls-key": serving.tls_key,
            "--origin": serving.origins,
            "--host-name": serving.host_names,
            "--keep-serving": serving.keep,
        }
        for name, value in given.items():
            if value:
                raise InputError(
                    f"{name} is given without --serve; say where to listen, such as --serve 8765"
                )
        return None
    host, _, port = serving.where.rpartition(":")
    if not port.isascii() or not port.isdecimal() or set("/@?#") & set(host):
        raise InputError(f"--serve is {shown_url(serving.where)!r}; expected PORT or HOST:PORT, such as 8765")
    import msgspec  # noqa: PLC0415  (most runs do not serve)

    from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer  # noqa: PLC0415
    from rollcast.serve.access import is_loopback  # noqa: PLC0415

    host = host.strip("[]") or "localhost"
    if serving.token is None and not is_loopback(host):
        raise InputError(
            f"--serve {serving.where}: the network can reach that address, and there is no token; set ROLLCAST_TOKEN, "
            "give --token, or listen on localhost"
        )
    made = serving.made
    settings = ServerSettings(
        tokens=() if made is None else (Token(made.value, ("read", "control")),),
        tokens_required=made is None,
        tls_cert=serving.tls_cert,
        tls_key=serving.tls_key,
        origins=serving.origins,
        hosts=serving.host_names,
    )
    if not keeps_history:
        settings = msgspec.structs.replace(settings, history_bytes=0)
    return WebSocketStreamingServer(host, int(port), token=serving.token, settings=settings)


@contextmanager
def watching(server: WebSocketStreamingServer, manager: StreamingManager) -> Iterator[None]:
    """Let the server observe the manager, and the metrics for `/metrics`, if their extra is installed."""
    from rollcast.observers import PrometheusStreamObserver  # noqa: PLC0415  (most runs do not serve)

    manager.add_observer(server.get_observer())
    try:
        metrics = PrometheusStreamObserver()
    except (MissingExtraError, InputError):
        yield  # `/metrics` names the missing extra; or it has the metrics of the agent's own observer
        return
    manager.add_observer(metrics)
    try:
        yield
    finally:
        metrics.unregister()


def say_links(server: WebSocketStreamingServer, serving: Serving, say: Callable[[Row], object]) -> None:
    """Print how to watch, and keep the token that the links have."""
    if serving.made is not None:
        serving.made.keep()
    say([(f"watch it with: {this_command()} watch {server.url}", "")])
    for line in link_lines(server, None if serving.made is None else serving.made.value):
        say([(line, "")])


async def keep_serving(server: WebSocketStreamingServer, say: Callable[[Row], object]) -> None:
    """Serve what has ended until Ctrl-C or SIGTERM comes, and say so in one line."""
    ended = asyncio.Event()
    with ending_on_signals(ended.set):
        say([(f"still serving at {server.url}, as --keep-serving asks; Ctrl-C ends it", "")])
        await ended.wait()
