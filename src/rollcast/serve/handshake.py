"""Answers the HTTP requests of a server before a WebSocket opens: `/healthz`, `/metrics`, refusals, and the upgrade at `/`."""

from __future__ import annotations

from collections.abc import Coroutine, Sized
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from rollcast.serve.access import Door, is_loopback
from rollcast.serve.answers import MetricsPage, Turns, asker_at
from rollcast.serve.entrance import Entrance
from rollcast.serve.settings import ServerSettings

__all__ = ["Handshake"]


class Handshake:
    """Answers each request, or lets it become a WebSocket.

    Args:
        entrance: decides which requests may pass.
        settings: the server's settings.
        clients: those that are connected now; their number is limited.

    Attributes:
        turns: the rate limit of answers.
        metrics: the page at `/metrics`.
    """

    def __init__(self, entrance: Entrance, settings: ServerSettings, clients: Sized) -> None:
        self.turns = Turns()
        self.metrics = MetricsPage()
        self._entrance = entrance
        self._settings = settings
        self._clients = clients

    async def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """The response that ends the request, when its turn comes; None: it becomes a WebSocket."""
        answer = self._answer(connection, request)
        if answer is None:
            return None
        refused = isinstance(answer, Response) and answer.status_code != HTTPStatus.OK
        what = "" if refused else request.path.partition("?")[0]
        address = connection.remote_address  # None: the client has gone
        return await self.turns.paced(connection, what, answer, asker_at(str(address[0])) if address else "")

    def _answer(
        self, connection: ServerConnection, request: Request
    ) -> Response | Coroutine[Any, Any, Response] | None:
        """The response to a page or a refused request; None if the request may become a WebSocket."""
        headers, (path, _, query) = request.headers, request.path.partition("?")
        entrance = self._entrance
        refused = entrance.refuse_address(connection, request)
        if refused is not None:
            return refused
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "ok\n")
        if path == "/metrics":
            return entrance.refuse_entry(connection, headers, Door.METRICS) or self.metrics.answer(connection)
        if path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, "There is /, /healthz and /metrics.\n")
        plain = "Sec-WebSocket-Protocol" not in headers
        if plain and "Upgrade" in headers:
            refused = entrance.refuse_entry(connection, headers, Door.FEED)
            refused = refused or entrance.refuse_filter(connection, query)
            if refused is not None:
                return refused
        if len(self._clients) >= self._settings.connections:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{len(self._clients)} clients are connected; try again later.\n",
            )
        local = is_loopback(str(connection.remote_address[0]))
        uncompressed = plain or (self._settings.compression is None and local)
        if uncompressed and "Sec-WebSocket-Extensions" in headers:
            del headers["Sec-WebSocket-Extensions"]
        return None
