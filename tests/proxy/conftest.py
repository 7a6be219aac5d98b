"""An engine, proxies on port 0, and proxies that somebody watches."""

import asyncio
import contextlib

import aiohttp
import pytest

from raw_engine import Engine
from rollcast.proxy import Proxy, ProxySettings
from rollcast.proxy.counts import Counts
from rollcast.proxy.watching import Watching
from rollcast.stream import StreamingManager
from rollcast.testing.observers import EventCapture


@pytest.fixture
async def engine():
    engine = await Engine().start()
    yield engine
    await engine.stop()


@pytest.fixture
async def proxies():
    """Makes proxies, started; they are stopped after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(upstream, watching=None, **settings):
            settings.setdefault("drain_s", 5.0)
            settings.setdefault("host", "127.0.0.1")
            proxy = Proxy(ProxySettings(upstream=upstream, **settings), watching=watching)
            await stack.enter_async_context(proxy)
            return proxy

        yield make


class Stage:
    """A proxy that is watched, what its watcher got, and a session of a caller."""

    def __init__(self, proxies, manager, session):
        self._proxies = proxies
        self.manager = manager
        self.session = session
        self.events = EventCapture()
        self.proxy = None

    async def watch(self, upstream, observer=None, *, traits=None, **settings):
        self.manager.add_observer(self.events if observer is None else observer)
        self.watching = Watching(self.manager, Counts(), traits=traits)
        self.proxy = await self._proxies(upstream, self.watching, **settings)
        return self.proxy

    async def post(self, url, body, path="/v1/chat/completions", **headers):
        """Status, headers and body; None in place of a body that was cut."""
        data = body if isinstance(body, bytes) else None
        async with self.session.post(
            url + path,
            json=None if data is not None else body,
            data=data,
            headers={k.replace("_", "-"): v for k, v in headers.items()},
        ) as answer:
            names = [name for name in answer.headers if name not in ("Transfer-Encoding", "Date")]
            try:
                return answer.status, names, await answer.read()
            except aiohttp.ClientError:
                return answer.status, names, None

    async def seen(self, kind):
        """The events of this type so far."""
        await self.manager.drain()
        return self.events.of(kind)

    async def end(self):
        """Stop the proxy, so that what is open is closed, and check the grammar."""
        await self.proxy.stop()
        await self.manager.drain()
        self.events.check()


@pytest.fixture
async def stage(proxies):
    manager = StreamingManager()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield Stage(proxies, manager, session)
    await asyncio.sleep(0)
    await manager.aclose()
