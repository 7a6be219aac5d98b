"""The proxy: it listens, tells whose a request is, and passes it on."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator
from typing import Any, Self

from rollcast.errors import InputError, MissingExtraError

try:
    from aiohttp import hdrs, web
except ImportError as missing:
    raise MissingExtraError("the proxy", "proxy") from missing

from rollcast.proxy.counts import Counts
from rollcast.proxy.headers import bearer
from rollcast.proxy.passing import Passing, refused, remove_what_was_added
from rollcast.proxy.paths import Target, target_of
from rollcast.proxy.settings import ProxySettings

__all__ = ["Proxy"]

logger = logging.getLogger("rollcast.proxy")


class Proxy:
    """Stands between callers and an engine. Use it as an async context manager.

    Args:
        settings: where it listens, and what it lets pass.

    Attributes:
        counts: how many requests there were, and what became of them.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        self.counts = Counts()
        self.passing = Passing(settings, self.counts)
        self._runner: web.AppRunner | None = None
        self._port = settings.port

    @property
    def url(self) -> str:
        """Where callers reach it, without a path."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            InputError: it cannot listen there.
        """
        settings = self.settings
        app = web.Application()
        app.on_response_prepare.append(remove_what_was_added)
        app.router.add_route("*", "/{path:.*}", self._handle, expect_handler=_no_answer_yet)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=settings.drain_s,
            auto_decompress=False,
            max_line_size=1 << 16,
            max_field_size=1 << 16,
        )
        await self._runner.setup()
        await self.passing.open()
        site = web.TCPSite(self._runner, settings.host, settings.port, backlog=4096)
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            raise InputError(
                f"cannot listen at {settings.host}:{settings.port}: {error.strerror or error}; give another --port"
            ) from error
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Take no new requests, wait at most `drain_s` for the open ones, then close."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self.passing.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        counts = self.counts
        target = target_of(request.rel_url.raw_path_qs)
        counts.requests[target.kind] += 1
        counts.open += 1
        try:
            refusal = self._refusal(request, target)
            if refusal is not None:
                counts.refused += 1
                return refusal
            if target.kind == "own":
                return await self._own(request, target)
            return await self.passing.copy(request, target, _body_of(request), None)
        finally:
            counts.open -= 1

    def _refusal(self, request: web.Request, target: Target) -> web.Response | None:
        """Why the request is not passed on; None if it is."""
        settings = self.settings
        if settings.listen_token is not None and target.kind != "own" and not self._is_let_in(request):
            return refused(
                401,
                "this proxy needs its --listen-token: send it as the API key (Authorization: Bearer …) or as X-Rollcast-Token",
                "wrong_token",
            )
        if target.kind == "control" and not settings.allow_control:
            return refused(
                403,
                f"{target.path.partition('?')[0]} changes the engine for everybody who uses it; start the proxy with "
                "--allow-control to let such calls pass, or send them to the engine itself",
                "control_refused",
            )
        if hdrs.UPGRADE in request.headers and "upgrade" in request.headers.get(hdrs.CONNECTION, "").lower():
            return refused(
                501,
                f"the proxy passes on HTTP requests, and no {request.headers[hdrs.UPGRADE][:40]} connections; open them at the "
                "engine itself",
                "upgrade_refused",
            )
        if request.method == "CONNECT":
            return refused(
                501, "this proxy stands before one engine, and connects to no other host", "connect_refused"
            )
        return None

    def _is_let_in(self, request: web.Request) -> bool:
        offered = request.headers.get("X-Rollcast-Token") or bearer(request.headers.get(hdrs.AUTHORIZATION))
        return _same(offered, self.settings.listen_token)

    async def _own(self, request: web.Request, target: Target) -> web.StreamResponse:
        return refused(404, f"the proxy has no {target.path.partition('?')[0]}")


def _same(offered: str | None, token: str | None) -> bool:
    """Whether the secret is the right one, compared in constant time."""
    if token is None:
        return False
    return hmac.compare_digest((offered or "").encode("utf-8", "replace"), token.encode())


async def _no_answer_yet(request: web.Request) -> None:
    """Answer `Expect: 100-continue` only once the engine has: see `_after_continue`."""


def _body_of(request: web.Request) -> Any:
    """The caller's body, as it comes; None if there is none."""
    if not request.body_exists:
        return None
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        return _after_continue(request)
    return request.content


async def _after_continue(request: web.Request) -> AsyncIterator[bytes]:
    """The body of a caller that waits for the engine's leave: aiohttp asks for it only once the engine has said 100 Continue."""
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    async for piece in request.content.iter_any():
        yield piece
