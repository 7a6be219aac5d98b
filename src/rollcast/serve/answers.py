"""What the server answers without a WebSocket: how often, and `/metrics`.

Whoever asks without pause gets answers no faster than these turns, so that asking costs a run next to nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Response

__all__ = ["MetricsPage", "Turns", "asker_at"]

TURNS_PER_S = 10
MOST_ASKERS = 1024  # that have turns of their own
BURST = 20  # answers that may be had at once, after a pause
LONGEST_TURN_S = 1.0  # from which on who waited is told to come back later
RENDER_EVERY_S = 1.0
_NO_PACKAGE = "# Metrics need packages that are not installed: pip install 'rollcast[metrics]'.\n"
_NO_OBSERVER = "# There are no metrics of Rollcast here: add a PrometheusStreamObserver to the agent's streaming_manager.\n"


class Turns:
    """Ten answers a second, for one thing and one address, and some more at once after a pause.

    An answer beyond that waits for its turn, which costs nothing; at a second's wait there are no more turns. So those who
    ask without pause from one machine get ten answers a second together, however many they are, and those who ask from
    another one, such as a health check, do not wait for them.

    Args:
        clock: in seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By what is asked for and by whom: when the next turn would be, if nobody had waited.
        self._free_at: dict[tuple[str, str], float] = {}
        self._forgot_at = clock()

    def wait_s(self, what: str, asker: str = "") -> float:
        """Take a turn; how long it is until then, in seconds. Beyond `LONGEST_TURN_S` there is none to be taken."""
        now = self._clock()
        earliest = now - BURST / TURNS_PER_S
        key = self._key(what, asker, earliest)
        turn = max(self._free_at.get(key, earliest), earliest) + 1 / TURNS_PER_S
        wait_s = max(0.0, round(turn - now, 6))  # microseconds: sums of floats are not exact
        if wait_s <= LONGEST_TURN_S:
            self._free_at[key] = turn
        return wait_s

    def give_back(self, what: str, asker: str = "") -> None:
        """Somebody left before his turn."""
        key = (what, asker)
        if key in self._free_at:
            self._free_at[key] -= 1 / TURNS_PER_S

    def _key(self, what: str, asker: str, earliest: float) -> tuple[str, str]:
        """Whose turns they are: beyond `MOST_ASKERS` all newcomers share theirs."""
        if (what, asker) in self._free_at or len(self._free_at) < MOST_ASKERS:
            return what, asker
        if self._forgot_at < earliest:  # who has not asked for so long has all turns again
            self._forgot_at = self._clock()
            self._free_at = {key: at for key, at in self._free_at.items() if at > earliest}
        return (what, asker) if len(self._free_at) < MOST_ASKERS else (what, "")

    async def paced(
        self,
        connection: ServerConnection,
        what: str,
        answer: Response | Coroutine[Any, Any, Response],
        asker: str = "",
    ) -> Response:
        """The answer, when it is its turn; if a page has no turn left, that too many ask for it.

        Args:
            connection: of who asks.
            what: is asked for, such as `/metrics`; for all refusals together it is empty, and they are never 429.
            answer: to give. If it has to be made first, that is done when its turn has come.
            asker: who asks, as `asker_at` says it.
        """
        wait_s = self.wait_s(what, asker)
        late = wait_s > LONGEST_TURN_S
        try:
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, LONGEST_TURN_S))
        except asyncio.CancelledError:
            if not late:
                self.give_back(what, asker)
            _drop(answer)
            raise
        if what and late:
            _drop(answer)
            response = connection.respond(
                HTTPStatus.TOO_MANY_REQUESTS, "Too many ask at once; ask less often, such as once a second.\n"
            )
            response.headers["Retry-After"] = "1"
            return response
        return await answer if isinstance(answer, Coroutine) else answer


def asker_at(address: str) -> str:
    """Who asks from this address: an IPv4 address is one machine, and so are all IPv6 addresses of a /64."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))


def _drop(answer: Response | Coroutine[Any, Any, Response]) -> None:
    if isinstance(answer, Coroutine):
        answer.close()


class MetricsPage:
    """What `PrometheusStreamObserver`, and whatever else the program counts, has in the default registry.

    It is rendered at most once a second, on another thread, however many ask.

    Args:
        clock: in seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rendered: tuple[str, str] | None = None
        self._rendered_at = float("-inf")
        self._rendering: asyncio.Task[tuple[str, str]] | None = None

    async def answer(self, connection: ServerConnection) -> Response:
        """The page, at most a second old."""
        text, kind = await self._page()
        response = connection.respond(HTTPStatus.OK, text)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = kind
        return response

    async def _page(self) -> tuple[str, str]:
        if self._rendered is not None and self._clock() - self._rendered_at < RENDER_EVERY_S:
            return self._rendered
        task = self._rendering
        if task is None or task.done():  # else somebody has asked for it already
            task = self._rendering = asyncio.create_task(self._render())
        return await asyncio.shield(task)  # one who leaves takes nobody's page with him

    async def _render(self) -> tuple[str, str]:
        self._rendered = await asyncio.to_thread(scrape)  # collectors may read files
        self._rendered_at = self._clock()
        return self._rendered


def scrape() -> tuple[str, str]:
    """The metrics as text, and its content type; a comment says what is missing."""
    try:
        import prometheus_client  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError:
        return _NO_PACKAGE, "text/plain; version=0.0.4; charset=utf-8"
    text = prometheus_client.generate_latest().decode()
    if "\nrollcast_" not in text:
        text += _NO_OBSERVER
    return text, prometheus_client.CONTENT_TYPE_PLAIN_0_0_4
