"""An engine, and proxies on port 0."""

import contextlib

import pytest

from raw_engine import Engine
from rollcast.proxy import Proxy, ProxySettings


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
            proxy = Proxy(
                ProxySettings(upstream=upstream, **settings),
                **({} if watching is None else {"watching": watching}),
            )
            await stack.enter_async_context(proxy)
            return proxy

        yield make
