"""The proxy's own paths: `POST /rollcast/reward`, `POST /rollcast/end`, `GET /rollcast/health` and `GET /rollcast/metrics`.

A chain that passes through the proxy has no reward and no end of its own: the trainer, which knows them, sends them here. They need the
reward token, since an agent that is trained could otherwise reward itself.
"""

from __future__ import annotations

import hmac
from typing import Any

import msgspec
from aiohttp import hdrs, web

from rollcast.errors import MissingExtraError
from rollcast.proxy.counts import Counts
from rollcast.proxy.headers import bearer, is_secret
from rollcast.proxy.passing import refused
from rollcast.proxy.paths import Target
from rollcast.proxy.settings import ProxySettings
from rollcast.proxy.watching import Watching

try:
    from rollcast.proxy.metrics import exposition
except MissingExtraError as error:
    _lacking: str | None = str(error)
else:
    _lacking = None

__all__ = ["OwnPaths", "same_secret"]

MOST_READ = 1 << 20  # bytes of a reward


class _End(msgspec.Struct):
    """The body of `/rollcast/end`: one of the two names."""

    session: str | None = None
    chain: str | None = None


class _Reward(_End):
    """The body of `/rollcast/reward`."""

    reward: float | None = None
    metrics: dict[str, Any] | None = None
    end: bool = True


class OwnPaths:
    """Answers requests to the proxy itself.

    Args:
        settings: of the proxy.
        counts: what it counted.
        watching: what looks at it, or None.
    """

    def __init__(self, settings: ProxySettings, counts: Counts, watching: Watching | None) -> None:
        self._settings = settings
        self._counts = counts
        self._watching = watching

    async def answer(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Answer the request, or say what is wrong with it."""
        path = target.path.partition("?")[0]
        match path, request.method:
            case "/rollcast/health", "GET" | "HEAD":
                return web.json_response({"status": "ok"})
            case "/rollcast/metrics", "GET" | "HEAD":
                return self._metrics(request)
            case (("/rollcast/reward" | "/rollcast/end"), "POST"):
                return await self._told(request, path)
            case (("/rollcast/reward" | "/rollcast/end" | "/rollcast/health" | "/rollcast/metrics"), method):
                return refused(405, f"{path} does not take {method}")
        return refused(
            404, f"the proxy has no {path[:200]}; it has POST /rollcast/reward, POST /rollcast/end, GET /rollcast/health and GET /rollcast/metrics"
        )  # fmt: skip

    def _metrics(self, request: web.Request) -> web.Response:
        token = self._settings.listen_token
        if token is not None and not same_secret(_offered(request), token):
            return refused(401, "/rollcast/metrics needs the proxy's --listen-token", "wrong_token")
        if _lacking is not None:
            return refused(501, _lacking, "extra_missing")
        body, kind = exposition(self._counts)
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: kind})

    async def _told(self, request: web.Request, path: str) -> web.Response:
        token = self._settings.reward_token
        if token is None:
            return refused(
                403,
                f"{path} needs the proxy to be started with --reward-token: without one, the agent that is trained could reward itself",
                "no_reward_token",
            )
        if not same_secret(_offered(request), token):
            return refused(
                401,
                f"{path} needs the proxy's --reward-token, as Authorization: Bearer … or X-Rollcast-Token",
                "wrong_token",
            )
        if (request.content_length or 0) > MOST_READ:
            return refused(
                413, f"the body of {path} may have {MOST_READ:,} bytes; it has {request.content_length:,}"
            )
        body = await request.read()
        kind = _Reward if path.endswith("reward") else _End
        try:
            told = msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return refused(400, f"the body of {path} is wrong: {error}")
        names = [name for name in (told.session, told.chain) if name]
        if len(names) != 1:
            return refused(
                400,
                f'{path} needs "session" or "chain", and not both: the name that the calls were made with',
            )
        name = names[0] if told.chain else self._session(names[0])
        if isinstance(told, _Reward):
            if told.reward is None:
                return refused(400, f'{path} needs "reward", a number')
            return self._answered(self._reward(name, told))
        return self._answered(self._watching.end(name) if self._watching is not None else "nobody watches")

    def _session(self, given: str) -> str:
        secret = is_secret(self._settings.session_header)
        return self._watching.session_of(given, secret) if self._watching is not None else given

    def _reward(self, name: str, told: _Reward) -> str | None:
        if self._watching is None:
            return "nobody watches"
        assert told.reward is not None
        unseen = self._watching.reward(name, told.reward, told.metrics)
        return self._watching.end(name) if unseen is None and told.end else unseen

    @staticmethod
    def _answered(unseen: str | None) -> web.Response:
        """What nobody will see is no failure of the trainer's: it is told so with 200."""
        return web.json_response({"seen": True} if unseen is None else {"seen": False, "why": unseen})


def _offered(request: web.Request) -> str | None:
    return request.headers.get("X-Rollcast-Token") or bearer(request.headers.get(hdrs.AUTHORIZATION))


def same_secret(offered: str | None, token: str | None) -> bool:
    """Whether the secret is the right one, compared in constant time."""
    if token is None:
        return False
    return hmac.compare_digest((offered or "").encode("utf-8", "replace"), token.encode())
