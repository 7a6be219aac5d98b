"""Opens a client's connection to a server: the address, TLS, redirects, `hello`, and what its failures mean in words."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from contextlib import suppress
from urllib.parse import urljoin, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)
from websockets.http11 import Response
from websockets.typing import Subprotocol

from rollcast.errors import InputError, RefusedError
from rollcast.serve.access import is_loopback
from rollcast.serve.protocol import SUBPROTOCOL, CloseCode, Hello, encode_frame
from rollcast.serve.secrecy import WithoutSecrets, has_token, shown_url, without_secrets
from rollcast.serve.tls import client_context
from rollcast.text import printable_line

__all__ = [
    "MAX_MESSAGE",
    "UNREACHABLE",
    "Dialer",
    "next_message",
    "pause_s",
    "refusal_in",
    "turned_away",
    "why",
]

connection_logger = logging.getLogger("rollcast.serve.client.connection")
connection_logger.addFilter(WithoutSecrets())

MAX_MESSAGE = 64 << 20  # bytes; the server shortens larger events
CLOSE_S = 1.0  # how long a server may take to close
REDIRECTS = (300, 301, 302, 303, 307, 308)
_SOCKET_SCHEMES = {"http": "ws", "https": "wss"}

UNREACHABLE = (OSError, TimeoutError, InvalidHandshake, ConnectionClosed)
"""What `Dialer.dial` raises if another try may succeed."""


class Dialer:
    """Opens connections to one server.

    Args:
        url: `ws://…` or `wss://…`.
        tls_ca: a PEM file with the authority of the server's certificate, or the certificate itself; None: the authorities
            that the system trusts.

    Attributes:
        url: the address without a user, a password and a query.

    Raises:
        InputError: the URL is not valid or has a token in it, or the authority cannot be read.
    """

    def __init__(self, url: str, tls_ca: str | None = None) -> None:
        host = _host(url)
        self.url = shown_url(url)
        self._address = url
        self._tls_ca = tls_ca
        self._tls: ssl.SSLContext | None = None
        if urlsplit(url).scheme == "wss":
            self._tls = client_context(tls_ca)
        elif tls_ca is not None:
            raise InputError(
                f"{self.url} is not encrypted, and an authority (tls_ca) is given; expected wss://"
            )
        self._local = is_loopback(host)

    async def dial(self, hello: Hello) -> ClientConnection:
        """Open a connection and send `hello`; the answer is read later.

        Raises:
            RefusedError: the server refuses, or is not one of Rollcast.
            InputError: what is on the way, such as a proxy, cannot be used.
            OSError, TimeoutError, InvalidHandshake, ConnectionClosed: the server cannot be reached now.
        """
        try:
            connection = await _connect(
                self._address,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                user_agent_header=None,
                proxy=None if self._local else True,
                max_size=MAX_MESSAGE,
                ping_interval=None,  # the session has its own
                close_timeout=CLOSE_S,
                logger=connection_logger,
                ssl=self._tls,
                create_connection=_Connection,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (429, 500, 502, 503, 504):
                raise
            raise RefusedError(f"{self.url} refuses with HTTP {status}: {_said(error.response)}") from None
        except ssl.SSLCertVerificationError as error:
            raise RefusedError(self._distrust(error)) from None
        except (InvalidURI, InvalidProxy, ImportError, ValueError) as error:
            # Mostly the environment's proxy; ImportError: a kind of proxy that needs another package.
            reason = error.msg if isinstance(error, InvalidURI | InvalidProxy) else str(error)
            what = (
                "the proxy of the environment" if isinstance(error, InvalidProxy) else "an address on the way"
            )
            raise InputError(
                f"{self.url} cannot be reached: {what} cannot be used: {printable_line(without_secrets(reason))}"
            ) from None
        try:
            if connection.subprotocol != SUBPROTOCOL:
                raise RefusedError(f"{self.url} is not a Rollcast server: it does not speak {SUBPROTOCOL}")
            await connection.send(encode_frame(hello), text=True)
        except BaseException:
            connection.transport.abort()
            raise
        return connection

    def _distrust(self, error: ssl.SSLCertVerificationError) -> str:
        reason = printable_line(error.verify_message).rstrip(".")
        advice = (
            "give the file of its authority (--tls-ca FILE, tls_ca=…) if that is a private one"
            if self._tls_ca is None
            else f"{self._tls_ca} was to vouch for it"
        )
        return f"the certificate of {self.url} is not trusted: {reason}; {advice}"


def _said(response: Response) -> str:
    """Why an HTTP server refuses, in its own words. A web page is not repeated."""
    body = (response.body or b"").decode(errors="replace").strip()
    kinds = response.headers.get_all("Content-Type")
    if any("html" in kind for kind in kinds) or body[:1] == "<":
        return "it answers with a web page; is it a Rollcast server?"
    return printable_line(body) or "no reason given"


def turned_away(error: BaseException) -> bool:
    """Whether the server was reached, and gave a reason for closing the connection."""
    return isinstance(error, ConnectionClosed) and error.rcvd is not None and bool(error.rcvd.reason)


def refusal_in(error: Exception, *, new_token: bool) -> str | None:
    """Why the server refuses this client for good, if that is what its close says; None if another try may succeed.

    Args:
        error: with which the connection ended.
        new_token: whether the next try has another token.
    """
    close = error.rcvd if isinstance(error, ConnectionClosed) else None
    if close is None:
        return None
    same_token = close.code == CloseCode.TOKEN_EXPIRED and not new_token
    if same_token or 4500 <= close.code <= 4999:
        return f"{printable_line(close.reason) or 'no reason given'} ({close.code})"
    return None


def pause_s(failures: int, first_s: float, longest_s: float) -> float:
    """How many seconds to wait after so many failures in a row, from 1 upward: about twice as long each time, and never the same for many clients."""
    longest = min(longest_s, first_s * 2 ** min(failures - 1, 30))
    return random.uniform(longest / 2, longest)


class _Connection(ClientConnection):
    """A connection that counts received bytes, since a message may take long on a slow link that is not dead."""

    received = 0

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        super().data_received(data)


async def next_message(connection: ClientConnection, silence_s: float) -> str | bytes:
    """The next message.

    Raises:
        TimeoutError: not a byte came for that long.
    """
    assert isinstance(connection, _Connection)
    while True:
        received = connection.received
        try:
            async with asyncio.timeout(silence_s):
                return await connection.recv()
        except TimeoutError:
            if connection.received == received:
                raise


class _connect(connect):  # noqa: N801  (as the class that it extends)
    """The `connect` of websockets, which here follows a redirect only within the same origin.

    The token is in the first message, and would go to any server that answers; websockets protects only its own headers.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        """The address to continue at, or the exception that ends the attempt."""
        if not isinstance(exc, InvalidStatus) or exc.response.status_code not in REDIRECTS:
            return exc
        try:
            here = _without_user(self.uri)  # a relative address would inherit the user
            target = _socket_url(urljoin(here, exc.response.headers["Location"]))
            if _origin(target) == _origin(self.uri) and urlsplit(target).username is None:
                return _with_user_of(self.uri, target)
        except (KeyError, ValueError):  # no Location, several, or one that is not an address
            return exc
        return RefusedError(
            f"{shown_url(self.uri)} sends its clients on to {printable_line(shown_url(target))}, another server, which gets no token "
            "from here; give that address yourself if you trust it"
        )


def _socket_url(url: str) -> str:
    """The address with a WebSocket scheme."""
    scheme, rest = url.split(":", 1)
    return f"{_SOCKET_SCHEMES.get(scheme.lower(), scheme)}:{rest}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port.

    Raises:
        ValueError: it is not an address.
    """
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"ws": 80, "wss": 443}.get(parts.scheme)


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _with_user_of(url: str, target: str) -> str:
    """The target with the URL's user and password; both have the same origin."""
    parts, there = urlsplit(url), urlsplit(target)
    return there._replace(netloc=parts.netloc, fragment="").geturl()


def _host(url: str) -> str:
    """The host of a WebSocket address.

    Raises:
        InputError: it is not such an address, or has a token in it.
    """
    host, fits, token = "", False, False
    with suppress(ValueError):
        parts = urlsplit(url)
        token = has_token(url)
        host = parts.hostname or ""
        host.encode("idna")  # as resolving it would
        fits = parts.scheme in ("ws", "wss") and parts.port != 0 and not parts.fragment and url.isprintable()
        fits = fits and (parts.username is None or parts.password is not None)  # as websockets asks
    if token:
        raise InputError(
            f"{shown_url(url)!r} has a token in it, and shells and logs keep addresses; give it as token=…, or to the "
            "command as ROLLCAST_TOKEN"
        )
    if not fits or not host:
        raise InputError(
            f"{shown_url(url)!r} is not a WebSocket address; expected one such as ws://localhost:8765"
        )
    return host


def why(error: BaseException) -> str:
    """The error in words that are safe for a terminal, since they may come from the server."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer came in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails ({printable_line(error.reason or 'no reason given')}); does the server speak it? If not, say ws://"
    if isinstance(error, OSError) and error.strerror:
        return printable_line(error.strerror)
    if isinstance(error, ConnectionResetError):
        return "the connection was cut at once; if it is a server without TLS, say ws://"
    if isinstance(error, InvalidMessage) and isinstance(error.__cause__, EOFError):
        return "it closed the connection before it answered; if it is a server with TLS, say wss://"
    if isinstance(error, InvalidMessage) and str(error.__cause__).startswith("unsupported protocol"):
        return "a web server answers there, and it is not one of Rollcast"
    if isinstance(error, InvalidMessage):
        return "what answers does not speak HTTP; if it is a server with TLS, say wss://"
    if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.reason:
        return f"{printable_line(without_secrets(error.rcvd.reason))} ({error.rcvd.code})"
    return printable_line(without_secrets(str(error))) or type(error).__name__
