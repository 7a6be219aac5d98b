"""Who and what is let through."""

import pytest

from raw_engine import call
from rollcast.errors import InputError
from rollcast.proxy import Proxy, ProxySettings
from rollcast.proxy.headers import is_secret


@pytest.mark.parametrize(
    "path",
    [
        "/pause", "/pause?mode=keep", "/%70ause", "/%2570ause", "//pause", "/v1/../pause", "/./pause/", "/PAUSE", "/pause;a", "/x\\..\\pause",
        "/update_weights", "/update_weights_from_disk", "/collective_rpc", "/sleep", "/flush_cache", "/v1/load_lora_adapter",
        "/start_weight_update", "/pause_generation", "/abort_request", "/reset_prefix_cache", "/chains/a/pause",
    ],
)  # fmt: skip
async def test_control_needs_leave(engine, proxies, path):
    """A call that changes the engine is refused in a sentence, however its path is spelt, and passes with `allow_control`."""
    proxy = await proxies(engine.url)
    got = await call(proxy.url, path=path)
    assert got.line == "HTTP/1.1 403 Forbidden"
    assert b"--allow-control" in got.body
    assert not engine.asked
    proxy = await proxies(engine.url, allow_control=True)
    assert (await call(proxy.url, path=path)).line == "HTTP/1.1 200 OK"
    assert engine.asked[0].path == path.removeprefix("/chains/a")


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/v1/models",
        "/tokenize",
        "/v1/embeddings",
        "/metrics",
        "/v1/responses",
        "/ping",
        "/skyrl/v1/generate",
    ],
)
async def test_all_else_passes(engine, proxies, path):
    """Any other path is passed on."""
    proxy = await proxies(engine.url)
    assert (await call(proxy.url, method="GET", path=path)).line == "HTTP/1.1 200 OK"


async def test_a_listen_token_is_asked_for(engine, proxies):
    """Without the token a call gets 401; with it, as API key or in a header of its own, it passes, and the engine never sees it."""
    proxy = await proxies(engine.url, listen_token="let-me-in")
    assert (await call(proxy.url)).line == "HTTP/1.1 401 Unauthorized"
    wrong = await call(proxy.url, headers=["Authorization: Bearer let-me-inn"])
    assert (wrong.line, b"--listen-token" in wrong.body) == ("HTTP/1.1 401 Unauthorized", True)
    assert not engine.asked
    await call(proxy.url, headers=["Authorization: Bearer let-me-in"])
    await call(proxy.url, headers=["X-Rollcast-Token: let-me-in", "Authorization: Bearer engine-key"])
    assert [(asked.header("Authorization"), asked.header("X-Rollcast-Token")) for asked in engine.asked] == [
        (None, None),
        ("Bearer engine-key", None),
    ]


async def test_the_engine_may_have_a_key_of_its_own(engine, proxies):
    """`upstream_key` takes the place of what the caller sends."""
    proxy = await proxies(engine.url, listen_token="let-me-in", upstream_key="engine-key")
    await call(proxy.url, headers=["Authorization: Bearer let-me-in"])
    assert engine.asked[0].header("Authorization") == "Bearer engine-key"


async def test_an_upgrade_is_refused(engine, proxies):
    """A WebSocket is refused in a sentence."""
    proxy = await proxies(engine.url)
    got = await call(
        proxy.url, method="GET", path="/v1/realtime", headers=["Connection: Upgrade", "Upgrade: websocket"]
    )
    assert got.line == "HTTP/1.1 501 Not Implemented"
    assert b"websocket" in got.body


async def test_a_port_in_use(engine):
    """A port that somebody has is named, with what to do."""
    with pytest.raises(InputError, match=rf"cannot listen at 127.0.0.1:{engine.port}: .*--port"):
        await Proxy(ProxySettings(upstream="http://127.0.0.1:9", host="127.0.0.1", port=engine.port)).start()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"upstream": "ftp://a"}, "scheme"),
        ({"upstream": "http://a:99999"}, "expected the engine's address"),
        ({"upstream": ""}, "expected the engine's address"),
        ({"upstream": "http://a:1/ b"}, "expected the engine's address"),
        ({"upstream": "http://127.0.0.1:8001", "port": 8001}, "the proxy's own address"),
        ({"upstream": "http://a:1/v1/"}, "leave out /v1"),
        ({"upstream": "http://u:secret@a:1"}, "without a user"),
        ({"host": "0.0.0.0"}, "there is no token"),
        ({"reward_token": "a", "listen_token": "a"}, "reward itself"),
        ({"listen_token": ""}, "listen_token"),
        ({"session_header": "a b"}, "name of a header"),
        ({"idle_s": 0.0}, "more than 0"),
    ],
)
def test_wrong_settings(settings, sentence):
    """A wrong setting is refused in a sentence that names it and shows no secret."""
    with pytest.raises(InputError, match=sentence) as refused:
        ProxySettings(**({"upstream": "http://a:1"} | settings))
    assert "secret" not in str(refused.value)


async def test_an_address_of_another_machine():
    """Where it cannot listen is named with the option that is wrong."""
    settings = ProxySettings(upstream="http://a:1", host="192.0.2.1", listen_token="a-token")
    with pytest.raises(InputError, match=r"cannot listen at 192\.0\.2\.1:0: .*; give another --host"):
        await Proxy(settings).start()


async def test_a_header_that_is_not_utf8_is_refused(engine, proxies):
    """A header that aiohttp could only send without its value is refused in a sentence, and not passed on empty."""
    proxy = await proxies(engine.url)
    got = await call(
        proxy.url, raw=b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX-Name: \xe9\r\nContent-Length: 0\r\n\r\n"
    )
    assert got.line == "HTTP/1.1 400 Bad Request"
    assert b"the header X-Name has bytes that are not UTF-8" in got.body
    assert not engine.asked


async def test_a_path_may_have_a_line_break(engine, proxies):
    """Every path is passed on as it is written, also one with an escaped line break."""
    proxy = await proxies(engine.url)
    assert (await call(proxy.url, method="GET", path="/v1/a%0d%0ab")).line == "HTTP/1.1 200 OK"
    assert engine.asked[0].path == "/v1/a%0d%0ab"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Transfer-Encoding: chunked, identity",
        b"Content-Length: +5",
        b"Authorization: Bearer sk-secret\x01",
    ],
)
async def test_what_is_not_http_is_not_logged(engine, proxies, caplog, head):
    """A request that two servers could read differently is refused, without a traceback and without its headers in the log."""
    proxy = await proxies(engine.url)
    got = await call(proxy.url, raw=b"POST /v1/x HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\nabcde")
    assert got.line.endswith("400 Bad Request")
    assert not engine.asked
    assert "Traceback" not in caplog.text
    assert "sk-secret" not in caplog.text


async def test_an_engine_that_switches_protocols(engine, proxies):
    """An engine that answers 101 to a request that asked for nothing else gives no answer, which the caller is told."""
    proxy = await proxies(engine.url)
    engine.plays = lambda _: [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n?"
    ]
    got = await call(proxy.url)
    assert got.line == "HTTP/1.1 502 Bad Gateway"
    assert b"another protocol" in got.body


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("Authorization", True),
        ("X-Api-Key", True),
        ("Ocp-Apim-Subscription-Key", True),
        ("X-Auth-Token", True),
        ("Cookie", True),
        ("X-Session-ID", False),
        ("X-Group-ID", False),
        ("User-Agent", False),
    ],
)
def test_which_headers_hold_secrets(name, secret):
    """A header that holds a secret is told by its name."""
    assert is_secret(name) is secret
