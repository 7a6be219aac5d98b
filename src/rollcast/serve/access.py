"""Access rules: tokens and scopes, `Host`, `Origin`, and the query in a plain client's URL. Pure.

`authorize` says what a token grants; `refusal` decides, for every door, whether that is enough.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from rollcast.errors import FilterError
from rollcast.records import EventFilter
from rollcast.serve.settings import Scope, Token

__all__ = [
    "Door",
    "Grant",
    "authorize",
    "bearer_token",
    "filter_of_query",
    "host_allowed",
    "is_loopback",
    "origin_allowed",
    "refusal",
]

_QUERY_FIELDS = {"chain": "chains", "group": "groups", "run": "runs", "type": "types", "source": "sources"}


class Door(StrEnum):
    """What a client may ask for, with its name in a refusal."""

    RUNS = "the list of runs"  # in `welcome`
    SUBSCRIBE = "subscribe"
    QUERY = "query"
    FEED = "the plain feed"
    METRICS = "/metrics"
    CANCEL = "cancel"
    PUBLISH = "publish"


_NEEDED: dict[Door, Scope] = {
    Door.RUNS: "read",
    Door.SUBSCRIBE: "read",
    Door.QUERY: "read",
    Door.FEED: "read",
    Door.METRICS: "read",
    Door.CANCEL: "control",
    Door.PUBLISH: "publish",
}


@dataclass(frozen=True)
class Grant:
    """What a client may do, and until when (seconds since the epoch; None: for ever)."""

    scopes: tuple[Scope, ...]
    expires_at: float | None = None


def authorize(
    tokens: Sequence[Token],
    anonymous: tuple[Scope, ...],
    given: str | None,
    now: float,
    *,
    required: bool = True,
) -> Grant | Literal["wrong", "expired"]:
    """What the given token grants. Every token is compared, each in constant time.

    Args:
        tokens: the server's tokens; if there are none, clients need none.
        anonymous: the scopes of every client if there are no tokens, and of one without a good token if none is required.
        given: the token that the client sent.
        now: seconds since the epoch.
        required: whether a client must send one of the tokens, if there are any.
    """
    if not tokens:
        return Grant(anonymous)
    offered = (given or "").encode("utf-8", "replace")
    found: Token | None = None
    for token in tokens:
        if hmac.compare_digest(token.value.encode(), offered):
            found = token
    if found is None:
        return "wrong" if required else Grant(anonymous)
    if found.expires_at is not None and found.expires_at <= now:
        return "expired" if required else Grant(anonymous)
    scopes = found.scopes if required else tuple(dict.fromkeys((*anonymous, *found.scopes)))
    return Grant(scopes, found.expires_at)


def refusal(grant: Grant, door: Door) -> str | None:
    """Why the grant does not open the door, in a sentence; None if it does."""
    needed = _NEEDED[door]
    if needed in grant.scopes:
        return None
    allowed = f"may only {' and '.join(grant.scopes)}" if grant.scopes else "may do nothing"
    return f"{door} needs a token with the {needed} scope; this one {allowed}"


def bearer_token(header: str | None) -> str | None:
    """The token of an `Authorization: Bearer` header (RFC 6750)."""
    scheme, _, token = (header or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """A `Host` header without its port, in lower case."""
    return (urlsplit(f"//{host}").hostname or "").rstrip(".")


def host_allowed(header: str | None, own: str, hosts: Sequence[str], *, any_name: bool) -> bool:
    """Whether the `Host` header names this server, and not a foreign name that was made to point here (DNS rebinding).

    Addresses always pass, since only names can be made to point elsewhere.

    Args:
        header: the header as the client sent it.
        own: the host that the server was told to listen on.
        hosts: further names.
        any_name: whether any name passes, since a server on the network with tokens does not know its names.
    """
    try:
        name = _name(header or "")
    except ValueError:
        return False
    if not name:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return any_name or name in {"localhost", own.lower(), *(h.lower() for h in hosts)}
    return True


def origin_allowed(origin: str | None, host: str | None, origins: Sequence[str]) -> bool:
    """Whether a page from this origin may connect: it comes from this server, or is one of `origins`.

    Programs send no `Origin`; browsers always do (RFC 6454).
    """
    if origin is None or origin in origins:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:  # such as http://[
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == (host or "").lower()


def filter_of_query(query: str) -> EventFilter:
    """The filter in a plain client's URL, `?chain=chain_0&type=tool_observation`; each field may be repeated.

    Raises:
        FilterError: a name or a type is unknown.
        ValueError: it has too many fields.
    """
    named: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=256):
        if name not in _QUERY_FIELDS:
            raise FilterError(f"the URL has no field {name!r}; its fields are {', '.join(_QUERY_FIELDS)}")
        named.setdefault(_QUERY_FIELDS[name], []).append(value)
    return EventFilter.from_dict(named)
