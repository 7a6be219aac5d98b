"""What is printed about the live page: its links, and how to reach it from another machine."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from rollcast.serve import WebSocketStreamingServer

__all__ = ["forward_lines", "has_display", "link_lines", "page_link", "url_elsewhere"]


def page_link(server: WebSocketStreamingServer, token: str | None) -> str:
    """The address of the page; a token is in its fragment, which browsers send to no server."""
    return server.page_url if token is None else f"{server.page_url}#token={quote(token, safe='')}"


def link_lines(server: WebSocketStreamingServer, made: str | None) -> list[str]:
    """The lines about the page of a run that is served.

    Args:
        server: that serves it, started.
        made: the token that the command made, which adds control; None: a token was given, which is not repeated.
    """
    if made is None:
        lines = [f"in a browser: {server.page_url}#token=…, with the token for the dots"]
    else:
        lines = [f"in a browser: {page_link(server, None)}", f"  with cancel: {page_link(server, made)}"]
    return [*lines, *forward_lines(server)]


def forward_lines(server: WebSocketStreamingServer) -> list[str]:
    """How to reach a page from the machine that one sits at; nothing if that is this one, or if the link is the same there."""
    from rollcast.serve.access import is_loopback  # noqa: PLC0415  (most commands do not serve)

    if (url := url_elsewhere(server)) != server.url:
        return [f"from other machines: http{url.removeprefix('ws')}/, with the same token"]
    if not is_loopback(server.host) or (has_display() and "SSH_CONNECTION" not in os.environ):
        return []
    port = server.port
    return [f"from your machine: ssh -L {port}:localhost:{port} {socket.gethostname()}"]


def url_elsewhere(server: WebSocketStreamingServer) -> str:
    """The server's address for other machines: with this one's name if it listens on each of its addresses and nobody said a name."""
    if server.host in ("", "0.0.0.0", "::") and not server.settings.hosts:  # noqa: S104  (shown, not listened on)
        return f"{server.url.partition(':')[0]}://{socket.gethostname()}:{server.port}"
    return server.url


def has_display() -> bool:
    """Whether a browser that is opened here would be seen by somebody."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
