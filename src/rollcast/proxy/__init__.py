"""An HTTP proxy that speaks OpenAI, between an agent or a trainer and its engine: what passes can be watched token by token.

    rollcast proxy --upstream http://engine:8000 --port 8001 --serve 8765

The caller gets what the engine would have given it. An answer that nobody watches is copied, and never opened.

`paths`, `headers` and `rewriting` do no I/O; `passing` copies one request and its answer, `watching` looks at it, and `server` is the
proxy. The extra `proxy` installs aiohttp, which serves and calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.lazy import lazy_names

if TYPE_CHECKING:
    from rollcast.proxy.server import Proxy
    from rollcast.proxy.settings import ProxySettings

__all__ = ["Proxy", "ProxySettings"]

_HOME = {
    "rollcast.proxy.server": "Proxy",
    "rollcast.proxy.settings": "ProxySettings",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
