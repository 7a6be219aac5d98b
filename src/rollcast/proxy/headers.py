"""Which headers an intermediary passes on (RFC 9110, 7.6.1). Pure.

`Connection` and what it names, `Keep-Alive`, `Proxy-Connection`, `TE`, `Trailer`, `Transfer-Encoding` and `Upgrade` belong to one
connection; everything else goes through as it is: names in their case, repeated headers in their order.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Headers", "bearer", "passed_on"]

Headers = list[tuple[str, str]]

_OF_ONE_CONNECTION = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


def passed_on(headers: Iterable[tuple[str, str]], without: frozenset[str] = frozenset()) -> Headers:
    """The headers that go to the other side.

    Args:
        headers: names and values, in order.
        without: further names to leave out, in lower case.
    """
    pairs = list(headers)
    named = {
        name.strip().lower()
        for header, value in pairs
        if header.lower() == "connection"
        for name in value.split(",")
    }
    # Some callers list these two by mistake; without them the other side could not read the body.
    named -= {"content-length", "content-type"}
    return [
        (name, value)
        for name, value in pairs
        if (low := name.lower()) not in _OF_ONE_CONNECTION and low not in named and low not in without
    ]


def bearer(value: str | None) -> str | None:
    """The token of an `Authorization: Bearer` header (RFC 6750), or None."""
    scheme, _, token = (value or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
