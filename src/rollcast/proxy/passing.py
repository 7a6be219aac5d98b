"""Passes one request on to the engine, and its answer back, as they are.

Bodies are copied piece by piece, in both directions, and each side is read only as fast as the other takes it. Nothing is decoded: a
compressed body stays compressed. If the caller leaves, the connection to the engine is closed at once, which makes the engine abort.
If the engine breaks off, the caller's connection is closed without the end of the body, so that it does not look whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from rollcast.proxy.counts import Counts
from rollcast.proxy.headers import bearer, passed_on
from rollcast.proxy.paths import Target
from rollcast.proxy.settings import ProxySettings
from rollcast.proxy.watching import MOST_KEPT, Watched

__all__ = ["GONE", "Body", "Passing", "Seen", "refused", "remove_what_was_added"]

logger = logging.getLogger("rollcast.proxy")

_NEVER = frozenset(("host", "x-rollcast-token"))
_MADE = (hdrs.SERVER, hdrs.DATE, hdrs.CONTENT_TYPE)  # aiohttp adds them to an answer that lacks them
_REPEATED = frozenset(
    ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE")
)  # aiohttp tries them again by itself
GONE = (aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.IncompleteReadError)

Body = bytes | AsyncIterator[bytes] | None


class Seen(Protocol):
    """Somebody who looks at an answer while it is copied. Nothing of this raises or waits."""

    def answered(self, status: int, headers: Any) -> None:
        """The engine has answered with this status; the body follows."""
        ...

    def took(self, data: bytes) -> None:
        """A piece of the body was passed on."""
        ...

    def ended(self) -> None:
        """The body was whole."""
        ...

    def failed(self, why: str) -> None:
        """The engine broke off, or gave no answer."""
        ...

    def left(self) -> None:
        """The caller has left."""
        ...


def refused(status: int, message: str, code: str = "") -> web.Response:
    """An answer of the proxy's own, in the shape of OpenAI's errors."""
    error = {"message": message, "type": "rollcast_proxy", "param": None, "code": code or status}
    return web.json_response({"error": error}, status=status)


async def remove_what_was_added(_: web.Request, response: web.StreamResponse) -> None:
    """Take out the headers that aiohttp adds to an answer, if the engine's answer had none."""
    if isinstance(response, _Passed):
        for name in response.lacks:
            response.headers.pop(name, None)


class _Passed(web.StreamResponse):
    """The engine's answer, on its way to the caller."""

    lacks: tuple[str, ...] = ()  # the headers that aiohttp adds and the engine did not send


class Passing:
    """Copies requests and answers.

    Args:
        settings: of the proxy.
        counts: where it counts.
    """

    def __init__(self, settings: ProxySettings, counts: Counts) -> None:
        self.settings = settings
        self.counts = counts
        self.session: aiohttp.ClientSession | None = None
        self._without = _NEVER

    async def open(self) -> None:
        """Make the pool of connections to the engine.

        A connection that was idle for three seconds is not used again, since uvicorn closes it after five: a request that is sent
        at that moment would be lost, and a generation is not repeated.
        """
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0, ttl_dns_cache=10)
        self.session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.settings.connect_s),
            skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT, hdrs.CONTENT_TYPE),
            max_line_size=1 << 16,
            max_field_size=1 << 16,
            requote_redirect_url=False,
        )

    async def close(self) -> None:
        if self.session is not None:
            await self.session.close()
            self.session = None

    async def knock(self) -> str | None:
        """Why no connection to the engine can be opened now; None if one can."""
        assert self.session is not None
        try:
            url = URL(self.settings.upstream + "/health", encoded=True)
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=5), allow_redirects=False):
                return None
        except GONE as error:
            return _why(error)

    async def copy(
        self, request: web.Request, target: Target, body: Body, seen: Seen | None
    ) -> web.StreamResponse:
        """Ask the engine with this body, and pass its answer on.

        Args:
            request: the caller's.
            target: what its path means.
            body: what is sent.
            seen: who looks at the answer.
        """
        try:
            answer = await self.ask(request, target, body)
        except asyncio.CancelledError:
            self._left(seen)
            raise
        except GONE as error:
            return self.unreachable(error, seen)
        try:
            return await self._give(request, answer, seen)
        except asyncio.CancelledError:
            self._left(seen)
            raise
        finally:
            answer.close()  # does nothing to an answer that was read to its end

    async def put_together(
        self, request: web.Request, target: Target, body: bytes, watched: Watched
    ) -> web.StreamResponse:
        """Ask for a stream instead of a whole answer, show it while it comes, and give the caller the whole answer.

        If that cannot be done, because of the engine or a fault of ours, the engine is asked again with what the caller wrote.
        """
        assert watched.turned is not None
        self.counts.turned += 1
        try:
            answer = await self.ask(request, target, watched.turned.body, body_is_ours=True)
        except asyncio.CancelledError:
            self._left(watched)
            raise
        except GONE as error:
            return self.unreachable(error, watched)
        try:
            if answer.status in _NOT_TAKEN:
                watched.was_refused(await _beginning(answer))
            elif answer.status != 200 or answer.content_type != "text/event-stream":
                watched.as_it_was()
                return await self._give(request, answer, watched)
            else:
                response = await self._put_together(request, answer, watched)
                if response is not None:
                    return response
        except asyncio.CancelledError:
            self._left(watched)
            raise
        finally:
            answer.close()
        return await self.copy(request, target, body, watched)

    async def _put_together(
        self, request: web.Request, answer: aiohttp.ClientResponse, watched: Watched
    ) -> web.StreamResponse | None:
        """Read the stream, and give the whole answer; None if the stream cannot be put together."""
        watched.answered(answer.status, answer.headers)
        try:
            size = 0
            async for piece in answer.content.iter_any():
                size += len(piece)
                if size > MOST_KEPT:
                    watched.failed(f"its stream has more than {MOST_KEPT:,} bytes; it is asked again")
                    return None
                watched.took(piece)
                if watched.watching.off:
                    return None
        except GONE as error:
            return self.unreachable(error, watched)
        status, body = 200, watched.whole_body()  # what came last is read, too
        if watched.error_in_stream is not None:
            status, body = watched.error_in_stream
        if body is None:
            watched.failed(watched.why_not_whole)
            return None
        headers = passed_on(answer.headers.items(), _OF_A_STREAM)
        headers += [(hdrs.CONTENT_LENGTH, str(len(body))), (hdrs.CONTENT_TYPE, watched.content_type)]
        response = _Passed(status=status, headers=watched.in_order(headers))
        response.lacks = tuple(name for name in _MADE[:2] if name not in answer.headers)
        self.counts.answers[status] += 1
        await response.prepare(request)
        try:
            await response.write(body)
        except aiohttp.ClientConnectionResetError:
            self._left(watched)
            return response
        watched.ended()
        return response

    async def ask(
        self, request: web.Request, target: Target, body: Body, *, body_is_ours: bool = False
    ) -> aiohttp.ClientResponse:
        """Send the request to the engine, and wait for the head of its answer.

        Args:
            request: the caller's, of which the method and the headers are used.
            target: what its path means.
            body: what is sent.
            body_is_ours: whether the proxy changed the body, so that its length differs and its answer must not be compressed.
        """
        assert self.session is not None
        method = request.method
        headers = passed_on(
            request.headers.items(), self._without | (_OF_BODY if body_is_ours else frozenset())
        )
        headers = self._with_key(headers)
        headers.append((hdrs.VIA, "1.1 rollcast"))
        once = method in _REPEATED and (target.kind == "control" or body is not None)
        answer = await self.session.request(
            method,
            URL(self.settings.upstream + target.path, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
            middlewares=(_once(),) if once else None,
        )
        if answer.status == 101:  # nobody asked for it, and what follows is not HTTP
            answer.close()
            raise aiohttp.ClientPayloadError("it switched to another protocol")
        return answer

    def _with_key(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The caller's headers with the engine's key instead of the proxy's token."""
        settings = self.settings
        if settings.listen_token is None and settings.upstream_key is None:
            return headers
        kept = [
            (name, value)
            for name, value in headers
            if name.lower() != "authorization"
            or (settings.upstream_key is None and bearer(value) != settings.listen_token)
        ]
        if settings.upstream_key is not None:
            kept.append((hdrs.AUTHORIZATION, f"Bearer {settings.upstream_key}"))
        return kept

    async def _give(
        self, request: web.Request, answer: aiohttp.ClientResponse, seen: Seen | None
    ) -> web.StreamResponse:
        response = await self.begin(request, answer)
        if seen is not None:
            seen.answered(answer.status, answer.headers)
        content = answer.content
        try:
            async for piece in content.iter_any():
                await response.write(piece)
                if seen is not None:
                    seen.took(piece)
        except aiohttp.ClientConnectionResetError:
            self._left(seen)
            return response
        except GONE as error:
            return self.cut(request, response, error, seen)
        if seen is not None:
            seen.ended()
        return response

    async def begin(
        self, request: web.Request, answer: aiohttp.ClientResponse, without: frozenset[str] = frozenset()
    ) -> web.StreamResponse:
        """Send the head of the engine's answer to the caller."""
        headers = passed_on(answer.headers.items(), without)
        response = _Passed(status=answer.status, reason=answer.reason, headers=headers)
        response.lacks = tuple(name for name in _MADE if name not in answer.headers)
        self.counts.answers[answer.status] += 1
        await response.prepare(request)
        return response

    def unreachable(self, error: BaseException, seen: Seen | None) -> web.Response:
        """What the caller is told if the engine gave no answer."""
        self.counts.unreachable += 1
        why = _why(error)
        if seen is not None:
            seen.failed(why)
        self.counts.answers[502] += 1
        return refused(
            502,
            f"the engine at {self.settings.upstream} gave no answer: {why}; see whether it runs there, and speaks HTTP",
            "upstream_unreachable",
        )

    def cut(
        self, request: web.Request, response: web.StreamResponse, error: BaseException, seen: Seen | None
    ) -> web.StreamResponse:
        """Break off as the engine did: what came is sent, and the connection is closed without an end."""
        self.counts.cut += 1
        why = _why(error)
        logger.debug("the engine broke off: %s", why)
        if seen is not None:
            seen.failed(why)
        if request.transport is not None:
            request.transport.close()
        return response

    def _left(self, seen: Seen | None) -> None:
        self.counts.left += 1
        if seen is not None:
            seen.left()


_NOT_TAKEN = (400, 404, 415, 422, 501)  # an engine that does not know a field, or has no streams
_OF_A_STREAM = frozenset(("content-length", "content-type", "cache-control", "x-accel-buffering"))
_OF_BODY = frozenset(("content-length", "accept-encoding", "content-encoding", "expect"))


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    """What an engine says of a request that it refuses."""
    try:
        async with asyncio.timeout(5):
            return await answer.content.read(1 << 16)
    except GONE:
        return b""


def _once() -> aiohttp.ClientMiddlewareType:
    """Let a request be sent once: aiohttp would send it again if the connection is closed before the answer."""
    sent = False

    async def send(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        nonlocal sent
        if sent:
            raise aiohttp.ServerDisconnectedError
        sent = True
        return await handler(request)

    return send


def _why(error: BaseException) -> str:
    """What happened, in a few words without aiohttp's."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error) or "no connection"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.ClientResponseError):
        return "what it sent is not HTTP/1.1"
    return str(error) or type(error).__name__
