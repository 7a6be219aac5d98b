"""`--serve`: others watch over the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rollcast.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from rollcast.serve import WebSocketStreamingServer
    from rollcast.stream import StreamingManager

__all__ = ["server_at", "serving"]


def server_at(where: str | None, token: str | None) -> WebSocketStreamingServer | None:
    """The server of `--serve [HOST:]PORT` and `--token`, not started; None where nothing is to be served.

    Raises:
        InputError: this is no port, or the network would reach it without a token.
    """
    if where is None:
        return None
    host, _, port = where.rpartition(":")
    if not port.isascii() or not port.isdecimal():
        raise InputError(f"--serve is {where!r}; expected PORT or HOST:PORT, such as 8765")
    from rollcast.serve import WebSocketStreamingServer  # noqa: PLC0415  (most runs serve nobody)
    from rollcast.serve.access import is_loopback  # noqa: PLC0415

    host = host.strip("[]") or "localhost"
    if token is None and not is_loopback(host):
        raise InputError(
            f"--serve {where}: the network reaches that address, and no token is asked for; set ROLLCAST_TOKEN, "
            "give --token, or listen on localhost"
        )
    return WebSocketStreamingServer(host, int(port), token=token)


@contextmanager
def serving(server: WebSocketStreamingServer, manager: StreamingManager) -> Iterator[None]:
    """The server watches the manager, and so does what `/metrics` shows, if the extra for that is installed."""
    from rollcast.stream.observers import PrometheusStreamObserver  # noqa: PLC0415  (most runs serve nobody)

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
