"""The plain feed: one event per message, for clients that speak no subprotocol."""

from __future__ import annotations

import asyncio
import time

from rollcast.serve.access import Grant, filter_of_query
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.entrance import Entrance
from rollcast.serve.outlet import Client
from rollcast.serve.protocol import CloseCode, Rate
from rollcast.serve.settings import ServerSettings

__all__ = ["feed_plainly"]


async def feed_plainly(
    client: Client,
    broadcaster: Broadcaster,
    entrance: Entrance,
    settings: ServerSettings,
    *,
    token: str | None,
    query: str,
) -> None:
    """Send a plain client what its filter wants until it is closed; its own messages are ignored but counted.

    Args:
        client: the client.
        broadcaster: sends it the events.
        entrance: says until when the token is valid.
        settings: the server's settings.
        token: the token that the client came with.
        query: the filter, as it stands in the URL.
    """
    granted = entrance.authorize(token)
    expires_at = granted.expires_at if isinstance(granted, Grant) else entrance.epoch()
    broadcaster.subscribe(client, "", filter_of_query(query), max_message=client.max_message)
    rate = Rate(settings.limits.messages_per_s, time.monotonic)
    silence = _Silence(settings.heartbeat_s)
    while not client.closed:
        left = silence.left_s
        if expires_at is not None:
            left = min(left, max(0.0, expires_at - entrance.epoch()))
        try:
            async with asyncio.timeout(left):
                message = await client.connection.recv()
        except TimeoutError:
            if expires_at is not None and entrance.epoch() >= expires_at:
                client.close(CloseCode.TOKEN_EXPIRED, "the token has expired; reconnect with a new one")
            elif await silence.is_death(client):
                client.close(CloseCode.NO_PONG, "no byte was read within the heartbeat; reconnect")
            continue
        if len(message) > settings.limits.message_bytes or not rate.spend():
            client.close(CloseCode.LIMIT, "this feed is read-only and received too many messages; send fewer")


class _Silence:
    """Measures how long nothing has moved between the server and a plain client."""

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._since = time.monotonic()
        self._asked = False

    @property
    def left_s(self) -> float:
        """Seconds until `is_death` must be called."""
        return max(0.0, self._since + self._heartbeat_s - time.monotonic())

    async def is_death(self, client: Client) -> bool:
        """Whether the client has been silent for a heartbeat and does not answer a ping."""
        if self.left_s > 0:
            return False
        moved, asked = client.moved(), self._asked
        self._since, self._asked = time.monotonic(), not moved
        if moved:
            return False
        if asked or client.unsent():
            return True
        await client.ping()
        return False
