"""The proxy: it listens, tells whose a request is, and passes it on."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any, Self

from rollcast.errors import InputError, MissingExtraError

try:
    from aiohttp import hdrs, web
    from aiohttp.http import HttpProcessingError
except ImportError as missing:
    raise MissingExtraError("the proxy", "proxy") from missing

from rollcast.proxy.counts import Counts
from rollcast.proxy.headers import bearer, is_secret, keys_of, unreadable
from rollcast.proxy.own import OwnPaths, same_secret
from rollcast.proxy.passing import Passing, refused, remove_what_was_added
from rollcast.proxy.paths import Target, target_of
from rollcast.proxy.settings import ProxySettings
from rollcast.proxy.watching import Caller, Watching
from rollcast.stream import StreamingManager

__all__ = ["Proxy"]

logger = logging.getLogger("rollcast.proxy")


def _not_of_a_bad_request(record: logging.LogRecord) -> bool:
    """Keep what aiohttp says of our own faults; a request that is not HTTP is its sender's, who is told, and may hold a key."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    logger.debug("a request was not HTTP (%s)", type(error).__name__)
    return False


_of_aiohttp = logging.getLogger("rollcast.proxy.http")
_of_aiohttp.addFilter(_not_of_a_bad_request)
MOST_READ = 16 << 20  # bytes of a request; a longer one is copied, and not watched


class Proxy:
    """Stands between callers and an engine. Use it as an async context manager.

    Args:
        settings: where it listens, and what it lets pass.
        manager: the manager whose observers watch; None: nobody does.
        watching: what looks at it, in place of a plain `Watching` for the manager.

    Attributes:
        counts: how many requests there were, and what became of them.
    """

    def __init__(
        self,
        settings: ProxySettings,
        *,
        manager: StreamingManager | None = None,
        watching: Watching | None = None,
    ) -> None:
        if watching is None and manager is not None:
            watching = Watching(manager, Counts(), idle_s=settings.idle_s)
        self.settings = settings
        self.counts = Counts() if watching is None else watching.counts
        self.watching = watching
        self._own = OwnPaths(settings, self.counts, watching)
        self._sweeping: asyncio.Task[None] | None = None
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
        app.router.add_route("*", r"/{path:[\s\S]*}", self._handle, expect_handler=_no_answer_yet)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_of_aiohttp,
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
            # From 3.13 on asyncio gives no number if no address can be had.
            elsewhere = isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, None)
            other = "--host" if elsewhere else "--port"
            raise InputError(
                f"cannot listen at {settings.host}:{settings.port}: {error.strerror or error}; give another {other}"
            ) from error
        self._port = self._runner.addresses[0][1]
        if self.watching is not None:
            self._sweeping = asyncio.create_task(self._close_idle_chains(self.watching))

    async def stop(self) -> None:
        """Take no new requests, wait at most `drain_s` for the open ones, then close."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self.passing.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        if self.watching is not None:
            self.watching.close()

    async def _close_idle_chains(self, watching: Watching) -> None:
        while True:
            await asyncio.sleep(min(self.settings.idle_s / 4, 30.0))
            watching.close_idle()

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
                return await self._own.answer(request, target)
            watching = self.watching
            if (
                watching is not None
                and target.kind == "generation"
                and request.method == "POST"
                and watching.interested
            ):
                return await self._watched(request, target, watching)
            return await self.passing.copy(request, target, _body_of(request), None)
        finally:
            counts.open -= 1

    async def _watched(self, request: web.Request, target: Target, watching: Watching) -> web.StreamResponse:
        """Pass on a request that somebody watches. Its body is read whole, unless it is too large."""
        body, rest = await _read(request)
        if rest is not None:
            return await self.passing.copy(request, target, _together(body, rest), None)
        watched = watching.begin(target.route, body, self._caller(request, target, watching))
        if watched is not None and watched.turned is not None:
            return await self.passing.put_together(request, target, body, watched)
        return await self.passing.copy(request, target, body, watched)

    def _caller(self, request: web.Request, target: Target, watching: Watching) -> Caller:
        """Whose request it is: by its path, by the header that names a session, and by its API key."""
        name = self.settings.session_header
        given = request.headers.get(name)
        secret = is_secret(name)
        if secret and name.lower() == "authorization":
            given = bearer(given)
        if secret and given == self.settings.listen_token:
            given = None
        session = watching.session_of(given, secret) if given else None
        own = bearer(request.headers.get(hdrs.AUTHORIZATION)) or request.headers.get("api-key")
        key = watching.session_of(own, True) if own and own != self.settings.listen_token else None
        keys = keys_of(request.headers.items())
        if self.settings.upstream_key is not None:
            keys += (self.settings.upstream_key,)
        return Caller(session, key, target.chain, request.headers.get("X-Group-ID"), keys)

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
        if (name := unreadable(request.headers.items())) is not None:
            return refused(
                400, f"the header {name[:80]} has bytes that are not UTF-8, and cannot be passed on"
            )
        if request.method == "CONNECT":
            return refused(
                501, "this proxy stands before one engine, and connects to no other host", "connect_refused"
            )
        return None

    def _is_let_in(self, request: web.Request) -> bool:
        offered = request.headers.get("X-Rollcast-Token") or bearer(request.headers.get(hdrs.AUTHORIZATION))
        return same_secret(offered, self.settings.listen_token)


async def _no_answer_yet(request: web.Request) -> None:
    """Answer `Expect: 100-continue` only once the engine has: see `_after_continue`."""


def _body_of(request: web.Request) -> Any:
    """The caller's body, as it comes; None if the request has no body."""
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


async def _read(request: web.Request) -> tuple[bytes, AsyncIterator[bytes] | None]:
    """The caller's body, and if it is too large to be kept, the beginning of it and the rest."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts, size = [], 0
    pieces = request.content.iter_any()
    async for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MOST_READ:
            return b"".join(parts), aiter(pieces)
    return b"".join(parts), None


async def _together(beginning: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield beginning
    async for piece in rest:
        yield piece
