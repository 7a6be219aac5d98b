"""Turns what people type for a server, as after `rollcast watch`, into a WebSocket address."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from rollcast.errors import InputError
from rollcast.serve.secrecy import has_token, shown_url

__all__ = ["hub_address", "server_address"]

DEFAULT_PORT = 8765
_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_EVERY_ADDRESS = {"0.0.0.0": "localhost", "::": "localhost"}  # noqa: S104  (a server listens there, but clients cannot connect to it)
_FILES = {".jsonl", ".ndjson", ".json", ".log", ".txt", ".gz", ".zst"}
_BEGINNINGS_OF_PATHS = ("/", "./", "../", "~", "file:")
_EXPECTED = "expected HOST:PORT, such as localhost:8765, or ws://localhost:8765 (wss:// with TLS)"


def server_address(given: str) -> str:
    """The address for `8765`, `localhost`, `localhost:8765`, `[::1]:8765`, `http://localhost:8765`, `wss://…`.

    Raises:
        InputError: it is the name of a file, has a token in it, or cannot be an address; the message tells which.
    """
    text = given.strip()
    _refuse_file(text)
    _refuse_token(text)
    return _address(text, given)


def hub_address(given: str) -> str:
    """As `server_address`, of a hub to which a process publishes.

    Raises:
        InputError: it has a token in it, or cannot be an address; the message tells which.
    """
    text = given.strip()
    if has_token(text):
        raise InputError(
            f"{shown_url(text)!r} has a token in it, and everybody on the host sees such addresses; give it as "
            "ROLLCAST_HUB_TOKEN in the environment, or as token=…"
        )
    if not text or text.startswith(_BEGINNINGS_OF_PATHS):
        raise InputError(f"{shown_url(given)!r} is not an address of a hub; {_EXPECTED}")
    return _address(text, given)


def _address(text: str, given: str) -> str:
    if text.isascii() and text.isdecimal():
        text = f"localhost:{text}"
    scheme, mark, rest = text.partition("://")
    if not mark:
        if "@" in text or re.match(r"(wss?|https?)(:|/)/", text, re.IGNORECASE):
            raise InputError(f"{shown_url(given)!r} is not an address of a server; {_EXPECTED}")
        return f"ws://{_place(text, given)}"
    if scheme.lower() not in _SCHEMES:
        raise InputError(
            f"{shown_url(given)!r} is not a WebSocket address: its scheme is {scheme!r}; {_EXPECTED}"
        )
    place, slash, path = rest.partition("/")
    if not place or set("@?#") & set(rest):  # the client checks it
        return f"{_SCHEMES[scheme.lower()]}://{rest}"
    return f"{_SCHEMES[scheme.lower()]}://{_place(place, given, port=None)}{slash}{path}"


def _place(place: str, given: str, port: int | None = DEFAULT_PORT) -> str:
    """`HOST:PORT`, checked; `port` is the default (None: the scheme's own)."""
    shown = shown_url(given)
    host, rest = _host_and_rest(place, shown)
    number, slash, path = rest.partition("/")
    if number.startswith(":"):
        if not re.fullmatch(r"[0-9]{1,5}", number[1:]) or not 1 <= int(number[1:]) <= 65535:
            raise InputError(f"{shown!r} has the port {number[1:]!r}; expected a number from 1 to 65535")
    elif number:
        raise InputError(f"{shown!r} is not an address of a server; {_EXPECTED}")
    elif port is not None:
        number = f":{port}"
    host = _EVERY_ADDRESS.get(host, host) or "localhost"
    return f"[{host}]{number}{slash}{path}" if ":" in host else f"{host}{number}{slash}{path}"


def _host_and_rest(place: str, shown: str) -> tuple[str, str]:
    """The host, without brackets, and what follows it."""
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or not _is_ipv6(host):
            raise InputError(
                f"{shown!r} has brackets around what is not an IPv6 address; expected [::1]:8765"
            )
        return host, rest
    if place.count(":") > 1:
        if _is_ipv6(place) and not _is_ipv6(
            place.rpartition(":")[0]
        ):  # otherwise its end may be meant as a port
            return place, ""
        raise InputError(
            f"{shown!r} has several colons; expected an IPv6 address in brackets, such as [::1]:8765"
        )
    host, colon, port = place.partition(":")
    if not colon:
        host, slash, path = place.partition("/")
        return _named(host, shown), f"{slash}{path}"
    return _named(host, shown), f":{port}"


def _named(host: str, shown: str) -> str:
    if host and not re.fullmatch(r"[^\s/?#\\<>\"'|*,;@]+", host):
        raise InputError(f"{shown!r} is not an address of a server; {_EXPECTED}")
    return host


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _refuse_file(text: str) -> None:
    """Refuse the name of a file: people may try to watch a log of events.

    Raises:
        InputError: it is the name of a file.
    """
    if not text:
        raise InputError(f"the address is empty; {_EXPECTED}")
    if "://" in text and not text.startswith("file:"):
        return
    path = Path(text)
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        there = False
    looks_like_one = path.suffix.lower() in _FILES or text.startswith(_BEGINNINGS_OF_PATHS)
    if there or looks_like_one:
        what = "a folder" if there and path.is_dir() else "a file" if there else "the name of a file"
        raise InputError(
            f"{text!r} is {what}, and watch follows a server; give its HOST:PORT, such as localhost:8765. "
            "A log of events is followed with tail -f, or read line by line with rollcast.records.decode"
        )


def _refuse_token(text: str) -> None:
    """Refuse a token in an address, which the shell would keep and other users could see.

    Raises:
        InputError: there is a token.
    """
    if has_token(text):
        raise InputError(
            f"{shown_url(text)!r} has a token in it, and shells keep what was typed; leave it out, and give it as "
            "ROLLCAST_TOKEN in the environment, or with --token"
        )
