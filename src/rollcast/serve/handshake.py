"""Answers the HTTP requests of a server before a WebSocket opens: the page, `/healthz`, `/metrics`, refusals, and the upgrade.

A proxy may leave its prefix in the path (`/user/ada/proxy/8765/metrics`), so only the end of a path counts.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sized
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from rollcast.serve.access import Door, is_loopback
from rollcast.serve.answers import MetricsPage, Turns, asker_at
from rollcast.serve.entrance import Entrance
from rollcast.serve.page_files import PageFiles, is_url_path
from rollcast.serve.settings import ServerSettings

__all__ = ["Handshake"]

_NOT_FOUND = "There is nothing at this path; the page is at /, and there are /healthz and /metrics.\n"


class Handshake:
    """Answers each request, or lets it become a WebSocket.

    Args:
        entrance: decides which requests may pass.
        settings: the server's settings.
        clients: those that are connected now; their number is limited.

    Attributes:
        turns: the rate limit of answers.
        metrics: what `/metrics` answers.
        page: the files of the live page; None before the server has read them.
    """

    def __init__(self, entrance: Entrance, settings: ServerSettings, clients: Sized) -> None:
        self.turns = Turns()
        self.metrics = MetricsPage()
        self.page: PageFiles | None = None
        self._entrance = entrance
        self._settings = settings
        self._clients = clients

    async def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """The response that ends the request, when its turn comes; None: it becomes a WebSocket."""
        what, answer = self._answer(connection, request)
        if answer is None:
            return None
        address = connection.remote_address  # None: the client has gone
        response = await self.turns.paced(
            connection, what, answer, asker_at(str(address[0])) if address else ""
        )
        if _method(request) == "HEAD":
            response.body = b""
        return response

    def _answer(
        self, connection: ServerConnection, request: Request
    ) -> tuple[str, Response | Coroutine[Any, Any, Response] | None]:
        """Whose turn it is, empty for a refusal, and the response; None if the request may become a WebSocket."""
        headers, (path, _, query) = request.headers, request.path.partition("?")
        entrance = self._entrance
        refused = entrance.refuse_address(connection, request)
        if refused is not None:
            return "", refused
        if not is_url_path(path):
            return "", connection.respond(HTTPStatus.NOT_FOUND, _NOT_FOUND)
        last = path.rpartition("/")[2]
        if last == "healthz":
            return "/healthz", connection.respond(HTTPStatus.OK, "ok\n")
        if last == "metrics":
            refused = entrance.refuse_entry(connection, headers, Door.METRICS)
            return ("", refused) if refused is not None else ("/metrics", self.metrics.answer(connection))
        if "Upgrade" in headers:
            return "", self._refuse_upgrade(connection, headers, query)
        return self._file(connection, request, path)

    def _refuse_upgrade(self, connection: ServerConnection, headers: Headers, query: str) -> Response | None:
        """The answer to a request that may not become a WebSocket; None if it may."""
        plain = "Sec-WebSocket-Protocol" not in headers
        if plain:
            refused = self._entrance.refuse_entry(connection, headers, Door.FEED)
            refused = refused or self._entrance.refuse_filter(connection, query)
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

    def _file(self, connection: ServerConnection, request: Request, path: str) -> tuple[str, Response]:
        """The answer to a request for a file of the page. No token is needed: the files say nothing of a run."""
        if _method(request) not in ("GET", "HEAD"):
            response = connection.respond(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and HEAD are answered.\n")
            response.headers["Allow"] = "GET, HEAD"
            return "", response
        origin = self._entrance.foreign_origin(request.headers)
        if origin is not None:
            return "", connection.respond(
                HTTPStatus.FORBIDDEN,
                f"Pages of this origin may not ask: {origin}; --origin or ServerSettings(origins=…) allows it.\n",
            )
        file = None if self.page is None else self.page.at(path)
        if file is not None:
            return file.name, file.response(request.headers)
        last = path.rpartition("/")[2]
        if "." not in last and "text/html" in request.headers.get("Accept", ""):
            response = connection.respond(
                HTTPStatus.TEMPORARY_REDIRECT, "The page is here with a slash behind.\n"
            )
            response.headers["Location"] = f"./{last}/"
            return "", response
        return "", connection.respond(HTTPStatus.NOT_FOUND, _NOT_FOUND)


def _method(request: Request) -> str:
    method: str = getattr(request, "method", "GET")  # before websockets 17 it is always GET
    return method
