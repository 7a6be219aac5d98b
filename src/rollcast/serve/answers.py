"""HTTP answers of the server: their rate limit, and `/metrics`.

A client that asks without a pause gets answers only at this rate, so that its requests cost a run next to nothing.
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
MOST_ASKERS = 1024  # how many addresses have turns of their own
BURST = 20  # how many answers a client may get at once after a pause
LONGEST_TURN_S = 1.0  # a client that would have to wait longer is told to come back later
RENDER_EVERY_S = 1.0
_NO_PACKAGE = "# Metrics need packages that are not installed: pip install 'rollcast[metrics]'.\n"
_NO_OBSERVER = "# There are no metrics of Rollcast here: add a PrometheusStreamObserver to the agent's streaming_manager.\n"


class Turns:
    """Ten answers per second for each path and address, and some more at once after a pause.

    An answer beyond that waits for its turn, which costs nothing; if the wait would be over a second, there is no turn. So all
    clients on one machine that ask without a pause get ten answers per second together, and clients on other machines, such
    as a health check, do not wait for them.

    Args:
        clock: in seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # For each path and address: when the next turn is, or was if that time has passed.
        self._free_at: dict[tuple[str, str], float] = {}
        self._forgot_at = clock()

    def wait_s(self, what: str, asker: str = "") -> float:
        """Take a turn; returns the seconds until then. If that is more than `LONGEST_TURN_S`, no turn was taken."""
        now = self._clock()
        earliest = now - BURST / TURNS_PER_S
        key = self._key(what, asker, earliest)
        turn = max(self._free_at.get(key, earliest), earliest) + 1 / TURNS_PER_S
        wait_s = max(0.0, round(turn - now, 6))  # microseconds: sums of floats are not exact
        if wait_s <= LONGEST_TURN_S:
            self._free_at[key] = turn
        return wait_s

    def give_back(self, what: str, asker: str = "") -> None:
        """Return the turn of a client that left before it."""
        key = (what, asker)
        if key in self._free_at:
            self._free_at[key] -= 1 / TURNS_PER_S

    def _key(self, what: str, asker: str, earliest: float) -> tuple[str, str]:
        """The key of the turns; beyond `MOST_ASKERS` addresses, all new ones share theirs."""
        if (what, asker) in self._free_at or len(self._free_at) < MOST_ASKERS:
            return what, asker
        if self._forgot_at < earliest:  # after so long without a request, all turns are free
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
        """Give the answer at its turn; if there is no turn for a page, answer 429.

        Args:
            connection: the connection that asks.
            what: the path, such as `/metrics`; it is empty for all refusals together, which are never answered with 429.
            answer: the answer. If it is a coroutine, it runs when the turn has come.
            asker: the address that asks, as `asker_at` gives it.
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
    """The machine at this address: each IPv4 address counts as one, and so does each IPv6 /64."""
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
    """The metrics in the default registry, those of `PrometheusStreamObserver` and any others of the program.

    They are rendered at most once a second, on another thread, however many clients ask.

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
        if task is None or task.done():  # otherwise another client has already asked for it
            task = self._rendering = asyncio.create_task(self._render())
        return await asyncio.shield(task)  # a client that leaves must not cancel it for the others

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
