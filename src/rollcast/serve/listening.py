"""Checks the address that a server is given, and listens on it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.server import Server

from rollcast.errors import InputError
from rollcast.serve.secrecy import shown_url

__all__ = ["check_address", "listen"]


def check_address(host: Any, port: Any) -> None:
    """Check what a user gave as the host and the port to listen on.

    Raises:
        InputError: one of them cannot be right.
    """
    if not isinstance(host, str) or set("/@?#") & set(host):
        shown = shown_url(host) if isinstance(host, str) else host
        raise InputError(f"host is {shown!r}; expected a name or an address; an empty one is every address")
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise InputError(f"port is {port!r}; expected a number from 0 to 65535")


async def listen(host: str, port: int, serve: Callable[[list[str], int], Awaitable[Server]]) -> Server:
    """Listen on all addresses of the host, at the same port of each.

    Args:
        host: a name or an address; an empty one is every address.
        port: the port; 0: one that is free.
        serve: starts the server on these addresses and this port.

    Raises:
        InputError: the port is in use, or the host is not an address of this machine.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        while True:
            try:
                return await serve(addresses, port or _free_port(found[0][0], addresses[0]))
            except OSError as error:
                if port or error.errno != errno.EADDRINUSE:
                    raise
    except OSError as error:
        place = f"{host or 'every address'}, port {port}"
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"{place}, is in use; stop what listens there, or choose another port") from None
        reason = error.strerror or str(error)
        raise InputError(f"cannot listen on {place}: {reason}; choose another host or port") from None


def _free_port(family: int, host: str) -> int:
    """A port that is free now, so that several addresses can use the same one."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
