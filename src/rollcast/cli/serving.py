"""`--serve`: others watch over the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rollcast.errors import InputError, MissingExtraError
from rollcast.serve.secrecy import shown_url

if TYPE_CHECKING:
    from rollcast.serve import WebSocketStreamingServer
    from rollcast.stream import StreamingManager

__all__ = ["Serving", "server_at", "watching"]


@dataclass(frozen=True)
class Serving:
    """What the command line says about serving.

    Attributes:
        where: `[HOST:]PORT`; None: nothing is served.
        token: that clients must have.
        tls_cert, tls_key: PEM files; with them clients connect by `wss://`.
        origins: pages that may connect beside the server's own.
        host_names: names by which the server is reached.
    """

    where: str | None = None
    token: str | None = field(default=None, repr=False)
    tls_cert: str | None = None
    tls_key: str | None = None
    origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()


def server_at(serving: Serving) -> WebSocketStreamingServer | None:
    """The server of `--serve [HOST:]PORT` and the options beside it, not started; None if nothing is to be served.

    Raises:
        InputError: this is not a port, an option beside it is wrong or has nothing to do, or the network would reach the server
            without a token.
    """
    if serving.where is None:
        given = {
            "--tls-cert": serving.tls_cert,
            "--tls-key": serving.tls_key,
            "--origin": serving.origins,
            "--host-name": serving.host_names,
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
    from rollcast.serve import ServerSettings, WebSocketStreamingServer  # noqa: PLC0415  (most runs serve nobody)
    from rollcast.serve.access import is_loopback  # noqa: PLC0415

    host = host.strip("[]") or "localhost"
    if serving.token is None and not is_loopback(host):
        raise InputError(
            f"--serve {serving.where}: the network reaches that address, and no token is asked for; set ROLLCAST_TOKEN, "
            "give --token, or listen on localhost"
        )
    settings = ServerSettings(
        tls_cert=serving.tls_cert,
        tls_key=serving.tls_key,
        origins=serving.origins,
        hosts=serving.host_names,
    )
    return WebSocketStreamingServer(host, int(port), token=serving.token, settings=settings)


@contextmanager
def watching(server: WebSocketStreamingServer, manager: StreamingManager) -> Iterator[None]:
    """The server watches the manager, and so does what `/metrics` shows, if the extra for that is installed."""
    from rollcast.observers import PrometheusStreamObserver  # noqa: PLC0415  (most runs serve nobody)

    manager.add_observer(server.get_observer())
    try:
        metrics = PrometheusStreamObserver()
    except (MissingExtraError, InputError):
        yield  # `/metrics` says which extra; or the agent has an observer of its own, whose metrics are there
        return
    manager.add_observer(metrics)
    try:
        yield
    finally:
        metrics.unregister()
