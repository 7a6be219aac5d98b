"""One process of the proxy's benchmark: the engine, a plain copy with aiohttp, or the proxy, watched or not.

    python -m benchmarks.proxy_stage engine
    python -m benchmarks.proxy_stage plain|unwatched|watched URL

It prints its address, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
from aiohttp import web

from rollcast import StreamEvent, StreamObserver
from rollcast.proxy import Proxy, ProxySettings
from rollcast.proxy.counts import Counts
from rollcast.proxy.watching import Watching
from rollcast.stream import StreamingManager

_CHUNK = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m","choices":[{"index":0,"text":" word",'
    b'"logprobs":{"text_offset":[0],"token_logprobs":[-0.125],"tokens":["token_id:%d"],"top_logprobs":[{"token_id:%d":-0.125}]},'
    b'"finish_reason":%b,"stop_reason":null,"token_ids":[%d]}]}\n\n'
)
_HOP = ("Transfer-Encoding", "Connection", "Content-Length", "Host")


async def _engine(request: web.Request) -> web.StreamResponse:
    """Stream as many chunks as are asked for, each after a pause, as vLLM writes them."""
    body = await request.json()
    count, pause = body["max_tokens"], body["pause_s"]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    due = loop.time()
    for at in range(count):
        due += pause
        await asyncio.sleep(max(due - loop.time(), 0))
        await response.write(_CHUNK % (at, at, b'"length"' if at + 1 == count else b"null", at))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _plain(upstream: str, session: aiohttp.ClientSession) -> Callable[[web.Request], Any]:
    async def copy(request: web.Request) -> web.StreamResponse:
        """The shortest copy with back-pressure that aiohttp lets one write."""
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        url = upstream + request.path_qs
        async with session.request(request.method, url, headers=headers, data=request.content) as answer:
            headers = {name: value for name, value in answer.headers.items() if name not in _HOP}
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    return copy


async def _serve(stack: AsyncExitStack, handler: Callable[[web.Request], Any]) -> str:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


class _Reader(StreamObserver):
    """Takes every event in the proxy's own loop, in batches, as the server of `--serve` does."""

    async def on_batch(self, events: Sequence[StreamEvent]) -> None:
        pass

    async def on_event(self, event: StreamEvent) -> None:
        pass


async def _proxy(stack: AsyncExitStack, upstream: str, what: str) -> str:
    manager = StreamingManager()
    stack.push_async_callback(manager.aclose)
    if what == "watched":
        manager.add_observer(_Reader())
    settings = ProxySettings(upstream=upstream, host="127.0.0.1")
    proxy = await stack.enter_async_context(Proxy(settings, watching=Watching(manager, Counts())))
    return proxy.url


async def main(what: str, upstream: str = "") -> None:
    """Serve until the standard input ends."""
    async with AsyncExitStack() as stack:
        if what == "engine":
            url = await _serve(stack, _engine)
        elif what == "plain":
            session = await stack.enter_async_context(
                aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
            )
            url = await _serve(stack, _plain(upstream, session))
        else:
            url = await _proxy(stack, upstream, what)
        print(url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
