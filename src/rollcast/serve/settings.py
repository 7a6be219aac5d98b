"""The settings of a server, checked when the server is made."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Container
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from rollcast.errors import InputError
from rollcast.records.secrets import masker_of
from rollcast.serve.secrecy import shown_url

__all__ = ["SMALLEST_MESSAGE", "Limits", "Role", "Scope", "ServerSettings", "Token"]

Scope = Literal["read", "control", "publish"]
Role = Literal["viewer", "page", "producer"]
Count = Annotated[int, msgspec.Meta(ge=1)]
Size = Annotated[int, msgspec.Meta(ge=0)]
SMALLEST_MESSAGE = 16 << 10  # bytes; a shortened event must be able to say so within this size
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class Token(msgspec.Struct, frozen=True):
    """A secret that gives access to the server.

    Attributes:
        value: what the client sends.
        scopes: `read` lets a client watch runs, `control` lets it change them, and `publish` lets a producer send
            its events to a hub. No scope includes another.
        expires_at: seconds since the epoch; None: never.
    """

    value: str
    scopes: tuple[Scope, ...] = ("read",)
    expires_at: float | None = None

    def __repr__(self) -> str:
        return (
            f"Token(scopes={self.scopes!r}, expires_at={self.expires_at!r})"  # logs must not show the secret
        )


class Limits(msgspec.Struct, frozen=True):
    """What one client may do. Beyond the first three its connection is closed with 4504.

    Attributes:
        message_bytes: the size of one message from the client.
        messages_per_s: how many messages the client may send per second, and twice as many in a burst.
        subscriptions: how many it may have open at a time.
        queries: how many may run at a time; a further one is answered by an `error`.
        rows: how many rows, or events of a chain, one query gives; `next` names those after them.
    """

    message_bytes: Count = 64 << 10
    messages_per_s: Count = 50
    subscriptions: Count = 16
    queries: Count = 8
    rows: Count = 1000


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a server. Times are in seconds, sizes in bytes.

    Attributes:
        tokens: tokens for clients, besides the `token` argument. If there are none at all, clients need no token.
        anonymous_scopes: what every client may do if there are no tokens.
        tokens_required: whether a client must give one of the tokens. If not, one without a token, or with a wrong one, has
            `anonymous_scopes`, and a token adds its own: so reading is open, and cancelling is not.
        insecure: whether the server may listen on addresses other than loopback without a token.
        tls_cert: a PEM file with the server's certificate and those that lead to its authority; clients then connect with
            `wss://`. None: no TLS.
        tls_key: a PEM file with the certificate's private key; None: it is in `tls_cert`.
        origins: origins of pages that may connect besides the server's own pages, such as `https://lab.example`.
        hosts: names of the server besides addresses, `localhost` and its own host.
        limits: what one client may do, unless its role has limits of its own.
        page_limits: the limits of a client whose `hello` says that it is a `page`; None: `limits`.
        producer_limits: the limits of a `producer` whose token has the `publish` scope; without it, it has a viewer's limits.
        connections: how many clients may be connected at a time.
        hello_s: how long a client of `rollcast.v1` may take to send `hello`.
        heartbeat_s: after this long without a message the server pings; after as long again it closes with 4012, unless bytes
            that waited for the client are still moving, since a slow link is not a dead one.
        batch_s, batch_bytes, batch_events: a batch is sent when the first of these is reached; the first chunk of a
            generation is sent at once.
        history_bytes: the size of the events kept for clients that come back or want the start. 0: none are kept, and the
            server asks the manager only for what its clients want.
        client_buffer: if a client has more unsent bytes than this, its events wait and merge.
        behind_bytes: how far behind a client may be; beyond that it is closed with 4008.
        compression: permessage-deflate for `rollcast.v1`: True, False, or None: for all clients except on loopback.
        close_s: how long a closing client may take.
        plain_message_bytes: the largest message of the plain feed, and of `rollcast.v1` for a client whose `hello` has no
            `max_message`. Ordinary clients close the connection at a message over 1 MiB. A larger event is shortened, and
            says so.
        masker: a `Masker` of secrets in what clients are sent; None masks known shapes and the values of environment variables
            that look secret, `False` masks nothing. What a model sampled is not masked.
    """

    tokens: tuple[Token, ...] = ()
    anonymous_scopes: tuple[Scope, ...] = ("read",)
    tokens_required: bool = True
    insecure: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    limits: Limits = Limits()
    page_limits: Limits | None = None
    producer_limits: Limits = Limits(message_bytes=1 << 20, messages_per_s=500)
    connections: Count = 2048
    hello_s: Seconds = 5.0
    heartbeat_s: Seconds = 20.0
    batch_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.025
    batch_bytes: Count = 64 << 10
    batch_events: Count = 256
    history_bytes: Size = 64 << 20
    client_buffer: Count = 1 << 20
    behind_bytes: Count = 16 << 20
    compression: bool | None = None
    close_s: Seconds = 5.0
    plain_message_bytes: Annotated[int, msgspec.Meta(ge=SMALLEST_MESSAGE)] = 1 << 20
    masker: Any = None  # msgspec cannot check a Masker among other types; `checked` does

    def limits_of(self, role: str, scopes: Container[str]) -> Limits:
        """The limits of a client with this role. An unknown role has a viewer's limits."""
        if role == "producer" and "publish" in scopes:
            return self.producer_limits
        if role == "page" and self.page_limits is not None:
            return self.page_limits
        return self.limits

    @property
    def lets_anyone_in(self) -> bool:
        """Whether clients need no token."""
        return not (self.tokens and self.tokens_required)

    @property
    def largest_message(self) -> int:
        """The size of the largest message that any client may send."""
        roles: tuple[Role, ...] = ("viewer", "page", "producer")
        scopes = {*self.anonymous_scopes, *(scope for token in self.tokens for scope in token.scopes)}
        return max(self.limits_of(role, scopes).message_bytes for role in roles)

    def checked(self, token: str | None = None) -> ServerSettings:
        """These settings with `token` among the tokens, with the scopes `read` and `control`.

        Raises:
            InputError: a setting has the wrong type or is out of bounds.
        """
        for name in ("tokens", "origins", "hosts"):
            if isinstance(getattr(self, name), str):
                raise InputError(
                    f"{name} of the server is one string; expected several, such as ({name[:-1]},)"
                )
        tokens = self.tokens if token is None else (*self.tokens, Token(token, ("read", "control")))
        masker_of(self.masker)
        files = {
            name: os.fspath(path)
            for name in ("tls_cert", "tls_key")
            if isinstance(path := getattr(self, name), os.PathLike)
        }
        try:
            built = msgspec.to_builtins(
                msgspec.structs.replace(self, tokens=tokens, masker=None, **files), builtin_types=(bytes,)
            )
            settings = msgspec.convert(built, ServerSettings)
        except (msgspec.ValidationError, TypeError) as error:
            raise InputError(
                f"the server's settings are wrong: {error}; ServerSettings has their types"
            ) from None
        for secret in settings.tokens:
            if not re.fullmatch(r"[!-~]+", secret.value):
                raise InputError(
                    "a token of the server is empty or has spaces or characters beyond ASCII; "
                    'expected one such as python -c "import secrets; print(secrets.token_urlsafe())" makes'
                )
        if settings.tls_key is not None and settings.tls_cert is None:
            raise InputError(
                "tls_key of the server is given without tls_cert; give both (--tls-cert, --tls-key)"
            )
        return msgspec.structs.replace(
            settings,
            masker=self.masker,
            origins=tuple(map(_origin, settings.origins)),
            hosts=tuple(map(_host_name, settings.hosts)),
        )


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _origin(given: str) -> str:
    """The origin as browsers send it.

    Raises:
        InputError: it is not an origin.
    """
    origin = _punycode(given.strip().lower().removesuffix("/"))
    scheme, _, place = origin.partition("://")
    try:
        parts = urlsplit(origin)
        fits = bool(parts.scheme and parts.hostname) and parts.port != 0
        fits = fits and place.isascii() and re.fullmatch(r"[^/?#@*\s\\]+", place) is not None
    except ValueError:  # such as http://[, or a port that is not a number
        fits = False
    if not fits:
        raise InputError(
            f"an origin of the server (--origin, origins=…) is {shown_url(given)!r}; expected that of one page: its scheme, "
            "host and port, such as https://lab.example or http://localhost:3000"
        )
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, "/"))


def _host_name(given: str) -> str:
    """The name as in a `Host` header, without a port.

    Raises:
        InputError: it is not a name.
    """
    name = _punycode(given.strip().lower().strip("[]").removesuffix("."))
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if not re.fullmatch(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", name):
            raise InputError(
                f"a host of the server (--host-name, hosts=…) is {shown_url(given)!r}; expected a name alone, without a port, "
                "such as lab.example"
            ) from None
    return name


def _punycode(place: str) -> str:
    """The place with its names as browsers send them: `bücher.example` is `xn--bcher-kva.example`."""
    try:
        return re.sub(r"[\w.-]*[^\x00-\x7f][\w.-]*", lambda m: m[0].encode("idna").decode(), place)
    except UnicodeError:
        return place  # it is not a name, and will be refused
