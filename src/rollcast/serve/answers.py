"""What the server answers without a WebSocket: how often, and `/metrics`.

Whoever asks without pause gets answers no faster than these turns, so that asking costs a run nothing, whoever asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Response

__all__ = ["MetricsPage", "Turns"]

PAGES = ("/healthz", "/metrics")
TURNS_PER_S = 10
BURST = 20  # answers that may be had at once, after a pause
LONGEST_TURN_S = 1.0  # from which on who waited is told to come back later
RENDER_EVERY_S = 1.0
_NO_PACKAGE = "# Metrics need packages that are not installed: pip install 'rollcast[metrics]'.\n"
_NO_OBSERVER = "# There are no metrics of Rollcast here: add a PrometheusStreamObserver to the agent's streaming_manager.\n"


class Turns:
    """Ten answers a second, for all who ask for one thing together, and some more at once after a pause.

    An answer beyond that waits for its turn, which costs nothing; one that waited for more than a second is 429. So those
    who ask without pause get ten answers a second together, however many they are.

    Args:
        clock: in seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free_at: dict[
            str, float
        ] = {}  # by what is asked for: when the next turn would be, if nobody had waited

    def wait_s(self, what: str) -> float:
        """Take a turn; how long it is until then, in seconds."""
        now = self._clock()
        earliest = now - BURST / TURNS_PER_S
        turn = max(self._free_at.get(what, earliest), earliest)
        self._free_at[what] = turn + 1 / TURNS_PER_S
        return max(0.0, round(turn + 1 / TURNS_PER_S - now, 6))  # microseconds: sums of floats are not exact

    def give_back(self, what: str) -> None:
        """Somebody left before his turn."""
        self._free_at[what] -= 1 / TURNS_PER_S

    async def paced(
        self, connection: ServerConnection, what: str, answer: Response | Coroutine[Any, Any, Response]
    ) -> Response:
        """The answer, when it is its turn; or, after a long wait for a page, that too many ask for it.

        Args:
            connection: of who asks.
            what: is asked for; each of `PAGES` has its own turns, and all refusals have theirs together.
            answer: to give. If it has to be made first, that is done when its turn has come.
        """
        what = what if what in PAGES else ""
        wait_s = self.wait_s(what)
        try:
            if wait_s > 0:
                await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            self.give_back(what)
            _drop(answer)
            raise
        if what and wait_s > LONGEST_TURN_S:
            _drop(answer)
            late = connection.respond(
                HTTPStatus.TOO_MANY_REQUESTS, "Too many ask at once; ask less often, such as once a second.\n"
            )
            late.headers["Retry-After"] = "1"
            return late
        return await answer if isinstance(answer, Coroutine) else answer


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
