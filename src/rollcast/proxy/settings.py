"""The settings of a proxy, checked when they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rollcast.errors import InputError
from rollcast.serve.access import is_loopback
from rollcast.serve.secrecy import shown_url

__all__ = ["ProxySettings"]

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, 5.6.2
_LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """All settings of a proxy. Times are in seconds.

    Attributes:
        upstream: the engine's address, `http://HOST:PORT`, without `/v1`.
        host, port: where the proxy listens; port 0 is any free one.
        listen_token: what callers must send as their API key; None: nothing, which only loopback allows.
        upstream_key: the engine's API key; None: what the caller sends is passed on, unless it is the `listen_token`.
        reward_token: what a reward and an end must be sent with; None: they are refused.
        session_header: the header that names a caller's session. `Authorization` makes every API key a session of its own.
        allow_control: whether calls that change the engine, such as `/pause` or `/update_weights`, are passed on.
        idle_s: a chain of which nothing was heard for so long is closed with `unknown`.
        drain_s: how long the proxy waits for open answers when it is stopped.
        connect_s: how long a connection to the engine may take to open.

    Raises:
        InputError: one of them is wrong; the message names it.
    """

    upstream: str
    host: str = "localhost"
    port: int = 0
    listen_token: str | None = field(default=None, repr=False)
    upstream_key: str | None = field(default=None, repr=False)
    reward_token: str | None = field(default=None, repr=False)
    session_header: str = "X-Session-ID"
    allow_control: bool = False
    idle_s: float = 600.0
    drain_s: float = 60.0
    connect_s: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "upstream", _checked_upstream(self.upstream))
        if not 0 <= self.port <= 65535:
            raise InputError(f"port is {self.port}; expected 0 to 65535")
        engine = urlsplit(self.upstream)
        if engine.port == self.port and (
            {engine.hostname, self.host} <= _LOCAL or engine.hostname == self.host
        ):
            raise InputError(
                f"--upstream is {self.upstream!r}, which is the proxy's own address; give the engine's, or another --port"
            )
        if self.listen_token is None and not is_loopback(self.host):
            raise InputError(
                f"the network can reach {self.host}, and there is no token; set ROLLCAST_LISTEN_TOKEN, give --listen-token, or "
                "listen on localhost"
            )
        for name in ("listen_token", "upstream_key", "reward_token"):
            value = getattr(self, name)
            if value is not None and (
                not value or not value.isascii() or not value.isprintable() or " " in value
            ):
                raise InputError(f"{name} is empty, or has characters that a header cannot carry")
        if self.reward_token is not None and self.reward_token == self.listen_token:
            raise InputError(
                "the reward token is the same as the listen token, so the agent that is trained could reward itself; give another one"
            )
        if not _HEADER.fullmatch(self.session_header):
            raise InputError(
                f"session_header is {self.session_header!r}; expected the name of a header, such as X-Session-ID"
            )
        if not self.idle_s > 0:
            raise InputError(f"idle is {self.idle_s}; expected seconds, more than 0")
        if not self.drain_s >= 0:
            raise InputError(f"drain is {self.drain_s}; expected seconds, 0 or more")


def _checked_upstream(given: str) -> str:
    text = given.strip().rstrip("/")
    shown = shown_url(given)
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0) and not re.search(r"\s", text)
    except ValueError:
        good = False
    expected = "expected the engine's address, such as http://localhost:8000"
    if not good:
        raise InputError(f"--upstream is {shown!r}; {expected}")
    if parts.scheme not in ("http", "https"):
        raise InputError(f"--upstream is {shown!r}, whose scheme is {parts.scheme!r}; {expected}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"--upstream is {shown!r}; {expected}, without a user, a query or a fragment; the engine's key comes from ROLLCAST_UPSTREAM_KEY"
        )
    if parts.path.endswith("/v1"):
        raise InputError(
            f"--upstream is {shown!r}; leave out /v1, since the paths of the callers begin with it: {text.removesuffix('/v1')}"
        )
    return text
