"""Checks a request before its WebSocket opens: its host name, its token, its origin."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Literal

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from rollcast.errors import InputError
from rollcast.serve.access import (
    Door,
    Grant,
    authorize,
    bearer_token,
    filter_of_query,
    host_allowed,
    is_loopback,
    origin_allowed,
    refusal,
)
from rollcast.serve.secrecy import has_token
from rollcast.serve.settings import ServerSettings
from rollcast.text import printable_line

__all__ = ["Entrance", "header_token"]

LONGEST_NAME = 200  # characters of a host or an origin in an answer


class Entrance:
    """Decides which requests may pass, by the settings of a server.

    Args:
        settings: the server's settings.
        host: the host that the server was told to listen on.

    Attributes:
        epoch: gives the seconds since the epoch, for tokens that expire.
    """

    def __init__(self, settings: ServerSettings, host: str, epoch: Callable[[], float]) -> None:
        self.epoch = epoch
        self._settings = settings
        self._host = host
        self._any_name = bool(settings.tokens) and not settings.hosts and not is_loopback(host)

    def authorize(self, token: str | None) -> Grant | Literal["wrong", "expired"]:
        """What the token grants now."""
        settings = self._settings
        return authorize(
            settings.tokens, settings.anonymous_scopes, token, self.epoch(), required=settings.tokens_required
        )

    def refuse_address(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to a request with a wrong host name or with a token in its URL; None if it may continue."""
        hosts = request.headers.get_all("Host")
        given = hosts[0] if len(hosts) == 1 else None
        if not host_allowed(given, self._host, self._settings.hosts, any_name=self._any_name):
            name = printable_line(given or "", LONGEST_NAME)
            return connection.respond(
                HTTPStatus.FORBIDDEN,
                f"This server does not go by the name {name!r}; --host-name NAME "
                "(ServerSettings(hosts=…)) adds one.\n",
            )
        if has_token(request.path):
            return connection.respond(
                HTTPStatus.BAD_REQUEST,
                "A token does not belong in a URL, which logs keep; send it as Authorization: Bearer.\n",
            )
        return None

    def refuse_entry(self, connection: ServerConnection, headers: Headers, door: Door) -> Response | None:
        """The answer to a request whose token does not open the door; None if it does."""
        granted = self.authorize(header_token(headers))
        if isinstance(granted, Grant):
            refused = refusal(granted, door)
            if refused is None:
                return None
            response = connection.respond(HTTPStatus.FORBIDDEN, f"{refused}.\n")
            response.headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"'
            return response
        what = "has expired" if granted == "expired" else "is missing or wrong"
        response = connection.respond(
            HTTPStatus.UNAUTHORIZED, f"The token {what}; send one as Authorization: Bearer.\n"
        )
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    def refuse_filter(self, connection: ServerConnection, query: str) -> Response | None:
        """The answer to a plain client whose URL has a wrong filter; None if the filter is valid."""
        try:
            filter_of_query(query)
        except (InputError, ValueError) as error:
            return connection.respond(HTTPStatus.BAD_REQUEST, f"{error}\n")
        return None

    def foreign_origin(self, headers: Headers) -> str | None:
        """The origin of a page that may not connect; None if it may, or if the client is not a page."""
        given = headers.get_all("Origin")
        if not given or (
            len(given) == 1 and origin_allowed(given[0], headers.get("Host"), self._settings.origins)
        ):
            return None
        return printable_line(", ".join(given), LONGEST_NAME)


def header_token(headers: Headers) -> str | None:
    """The token of the request's one `Authorization` header."""
    given = headers.get_all("Authorization")
    return bearer_token(given[0]) if len(given) == 1 else None
