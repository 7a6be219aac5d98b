"""Which headers an intermediary passes on (RFC 9110, 7.6.1). Pure.

`Connection` and what it names, `Keep-Alive`, `Proxy-Connection`, `TE`, `Trailer`, `Transfer-Encoding` and `Upgrade` belong to one
connection; everything else goes through as it is: names in their case, repeated headers in their order.
"""

from __future__ import annotations

from collections.abc import Iterable

from rollcast.text import names_secret

__all__ = ["Headers", "bearer", "is_secret", "keys_of", "passed_on", "unreadable"]

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


def unreadable(headers: Iterable[tuple[str, str]]) -> str | None:
    """The first header whose value is not UTF-8, so that it could not be passed on as it is; None if there is none.

    Args:
        headers: names and values; bytes that are not UTF-8 are surrogates, as PEP 383 has it.
    """
    for name, value in headers:
        if not value.isascii() and any("\udc80" <= each <= "\udcff" for each in value):
            return name
    return None


def bearer(value: str | None) -> str | None:
    """The token of an `Authorization: Bearer` header (RFC 6750), or None."""
    scheme, _, token = (value or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def is_secret(name: str) -> bool:
    """Whether a header of this name holds a secret, such as `X-Api-Key`, `X-Auth-Token` or `Cookie`."""
    low = name.lower()
    return "auth" in low or "cookie" in low or low.endswith("key") or names_secret(low.replace("-", "_"))


def keys_of(headers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The secrets of at least eight characters in these headers; a shorter one cannot be told from other text."""
    found = (bearer(value) or value.strip() for name, value in headers if is_secret(name))
    return tuple(dict.fromkeys(each for each in found if len(each) >= 8))
