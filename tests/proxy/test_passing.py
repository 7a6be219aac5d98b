"""What nobody watches goes through as it is."""

import asyncio
import gzip

import pytest

from ports import kept_port
from raw_engine import Engine, answer, call, chunk, head, read_answer

HEADERS = (
    "Content-Type: application/json",
    "X-Request-ID: a",
    "Set-Cookie: a=1",
    "Set-Cookie: b=2",
    "Server: uvicorn",
    "X-UPPER: Ü".encode().decode("latin-1"),
)


async def both(engine, proxy, data=b"{}", **options):
    """What a caller gets from the engine, and what it gets through the proxy."""
    return await call(engine.url, data, **options), await call(proxy.url, data, **options)


@pytest.mark.parametrize(
    "played",
    [
        [answer(b'{"ok": true}', "200 OK", *HEADERS)],
        [answer(b'{"error": {}}', "429 Too Many Requests", "Retry-After: 7")],
        [answer(b"", "500 Internal Server Error")],
        [answer(b"not JSON", "200 Fine", "Content-Type: application/json")],
        [answer(b"", "302 Found", "Location: http://elsewhere/")],
        [answer(gzip.compress(b"x" * 1000), "200 OK", "Content-Encoding: gzip")],
        [b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"],
        [
            head("Content-Type: text/event-stream"),
            chunk(b"data: 1\n\n"),
            chunk(b"data: [DONE]\n\n"),
            chunk(b""),
        ],
        [head(), chunk(b"\xff\x00\xc3"), chunk(b"\xa4"), chunk(b"")],
        [b"HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nuntil the connection closes"],
        [b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", answer(b"after a hint")],
    ],
)
async def test_the_answer_is_the_engines(engine, proxies, played):
    """Status, reason, headers in their order and body are those that the engine sent."""
    engine.plays = lambda asked: played
    proxy = await proxies(engine.url)
    direct, passed = await both(engine, proxy)
    if played[0].startswith((b"HTTP/1.0", b"HTTP/1.1 103")):
        direct.line = (
            passed.line if direct.line.startswith("HTTP/1.0") or " 103 " in direct.line else direct.line
        )
        assert passed.body.endswith((b"closes", b"hint"))
        assert " 200 " in passed.line
        return
    assert (passed.line, passed.headers, passed.body, passed.whole) == (
        direct.line,
        direct.headers,
        direct.body,
        True,
    )


async def test_the_request_is_the_callers(engine, proxies):
    """Method, path, query and body arrive as they were sent, and headers too but for those of the connection."""
    proxy = await proxies(engine.url)
    sent = ("X-Session-ID: s", "Content-Type: application/json", "Accept-Encoding: br", "Authorization: Bearer k", "Connection: X-Hop, close", "X-Hop: 1", "TE: trailers", "X-A: 1", "X-A: 2")  # fmt: skip
    await call(proxy.url, b'{"a":  1}', path="/v1/embeddings?a=%2Fb&c=d+e", headers=sent)
    (asked,) = engine.asked
    assert asked.line == "POST /v1/embeddings?a=%2Fb&c=d+e HTTP/1.1"
    assert asked.body == b'{"a":  1}'
    assert asked.header("Host") == f"127.0.0.1:{engine.port}"
    names = [pair for pair in asked.headers if pair[0] not in ("Host", "Via", "Content-Length")]
    assert names == [("X-Session-ID", "s"), ("Content-Type", "application/json"), ("Accept-Encoding", "br"), ("Authorization", "Bearer k"), ("X-A", "1"), ("X-A", "2")]  # fmt: skip


async def test_a_chunked_request_goes_through(engine, proxies):
    """A body without a length is passed on piece by piece."""
    proxy = await proxies(engine.url)
    raw = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"abc") + chunk(b"def") + chunk(b"")  # fmt: skip
    assert (await call(proxy.url, raw=raw)).body == b'{"ok": true}'
    assert engine.asked[0].body == b"abcdef"


async def test_head_has_no_body(engine, proxies):
    """HEAD is answered by the engine's headers, its Content-Length included."""
    engine.plays = lambda asked: [b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nX-A: 1\r\n\r\n"]
    proxy = await proxies(engine.url)
    got = await call(proxy.url, method="HEAD", path="/health")
    assert (got.line, got.header("Content-Length"), got.header("X-A")) == ("HTTP/1.1 200 OK", "1234", "1")


async def test_continue_is_said_once_the_engine_has(engine, proxies):
    """A caller that expects 100 Continue sends its body after the engine has said it."""
    proxy = await proxies(engine.url)
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await read_answer(reader)).body == b'{"ok": true}'
    assert engine.asked[0].body == b"abc"
    writer.close()
    await writer.wait_closed()


async def test_each_piece_comes_at_once(engine, proxies):
    """The first piece of a stream is passed on while the engine has not sent the second."""
    more = asyncio.Event()
    engine.plays = lambda asked: [head(), chunk(b"one"), more.wait(), chunk(b"two"), chunk(b"")]
    proxy = await proxies(engine.url)
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(8) == b"3\r\none\r\n"
    more.set()
    assert await reader.readexactly(13) == b"3\r\ntwo\r\n0\r\n\r\n"
    writer.close()
    await writer.wait_closed()


STREAM = (
    head("Content-Type: text/event-stream")
    + chunk(b'data: {"a": "\xc3\xa4"}\n\n')
    + chunk(b"data: [DONE]\n\n")
    + chunk(b"")
)
WHOLE = answer(b'{"choices": []}', "200 OK", "Content-Type: application/json")


@pytest.mark.parametrize("played", [STREAM, WHOLE], ids=["stream", "whole"])
async def test_a_cut_anywhere_is_a_cut(engine, proxies, played):
    """If the engine breaks off after any byte, the caller gets those bytes of the body and no end of it."""
    proxy = await proxies(engine.url)
    for cut in range(len(played)):
        engine.plays = lambda asked, cut=cut: [played[:cut].replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n"), _close()]  # fmt: skip
        got = await call(proxy.url, b"{}")
        if b"\r\n\r\n" not in played[:cut]:
            assert got.line.startswith("HTTP/1.1 502")
            continue
        direct = await call(engine.url, b"{}")
        assert (got.line, got.headers, got.body, got.whole) == (
            direct.line,
            direct.headers,
            direct.body,
            direct.whole,
        )


class _Cut(ConnectionError):
    pass


async def _close():
    raise _Cut


async def test_a_caller_that_leaves_ends_the_engines_answer(engine, proxies, until):
    """The connection to the engine is closed when the caller's is."""
    never = asyncio.Event()
    engine.plays = lambda asked: [head(), chunk(b"one"), never.wait()]
    proxy = await proxies(engine.url)
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    await reader.readuntil(b"one")
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(60):
        await engine.asked[0].closed.wait()
    await until(lambda: proxy.counts.left == 1 and proxy.counts.open == 0)


async def test_a_caller_that_leaves_before_an_answer_ends_the_call(engine, proxies, until):
    """The same holds while the engine has not answered at all."""
    never = asyncio.Event()
    engine.plays = lambda asked: [never.wait()]
    proxy = await proxies(engine.url)
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    await until(lambda: engine.asked)
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(60):
        await engine.asked[0].closed.wait()
    await until(lambda: proxy.counts.left == 1)


async def test_a_slow_caller_slows_the_engine(engine, proxies, until):
    """The proxy holds no more than its buffers of an answer that the caller does not read."""
    played = 0

    def plays(asked):
        nonlocal played
        yield head()
        for _ in range(2000):
            played += 1
            yield chunk(b"x" * 65536)
        yield chunk(b"")

    engine.plays = plays
    proxy = await proxies(engine.url)
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    await reader.readuntil(b"\r\n\r\n")
    before = -1
    while before != played:  # until nothing moves any more
        before = played
        for _ in range(200):
            await asyncio.sleep(0.001)
    assert played < 1900  # of 131 MB, what the buffers of two connections hold
    writer.transport.abort()


async def test_an_engine_that_comes_later(proxies):
    """Without an engine a call is answered by 502 and a sentence; once it is there, calls go through."""
    with kept_port() as port:
        proxy = await proxies(f"http://127.0.0.1:{port}")
        got = await call(proxy.url, b"{}")
        assert got.line == "HTTP/1.1 502 Bad Gateway"
        assert f"the engine at http://127.0.0.1:{port} gave no answer".encode() in got.body
        engine = await Engine().start(port)
        assert (await call(proxy.url, b"{}")).body == b'{"ok": true}'
        await engine.stop()


async def test_an_engine_that_speaks_another_protocol(engine, proxies):
    """What is not HTTP is said to be so, with 502."""
    engine.plays = lambda asked: [b"SSH-2.0-OpenSSH_9.6\r\n", _close()]
    proxy = await proxies(engine.url)
    got = await call(proxy.url, b"{}")
    assert got.line.startswith("HTTP/1.1 502")
    assert b"HTTP" in got.body


async def test_a_generation_is_never_sent_twice(engine, proxies):
    """If the engine closes the connection instead of answering, the caller is told so, and the engine was asked once."""
    engine.plays = lambda asked: [_close()]
    proxy = await proxies(engine.url, allow_control=True)
    for method, path in (
        ("POST", "/v1/completions"),
        ("POST", "/pause"),
        ("PUT", "/sleep"),
        ("GET", "/wake_up"),
    ):
        engine.asked.clear()
        got = await call(proxy.url, b"{}", method=method, path=path)
        assert got.line.startswith("HTTP/1.1 502"), method
        assert len(engine.asked) == 1, method


async def test_many_at_once(engine, proxies):
    """1,024 answers at once are each whole and the caller's own."""
    engine.plays = lambda asked: [head(), *(chunk(asked.body + b"%d" % i) for i in range(8)), chunk(b"")]
    proxy = await proxies(engine.url)

    async def one(i):
        got = await call(proxy.url, b"<%d>" % i)
        return got.whole and got.body == b"".join(b"<%d>%d" % (i, k) for k in range(8))

    assert all(await asyncio.gather(*(one(i) for i in range(1024))))
    assert proxy.counts.open == 0


async def test_what_is_open_is_finished_before_the_end(engine, proxies, until):
    """A proxy that is stopped takes no new callers, and gives those that it has the rest of their answers."""
    more = asyncio.Event()
    engine.plays = lambda asked: [head(), chunk(b"one"), more.wait(), chunk(b"two"), chunk(b"")]
    proxy = await proxies(engine.url, drain_s=60.0)
    calls = [asyncio.create_task(call(proxy.url, b"{}")) for _ in range(16)]
    await until(lambda: len(engine.asked) == 16)
    stopping = asyncio.create_task(proxy.stop())
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")

    async def is_closed():
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return True
        writer.close()
        return False

    async with asyncio.timeout(60):
        while not await is_closed():
            await asyncio.sleep(0.001)
    more.set()
    assert [(got.body, got.whole) for got in await asyncio.gather(*calls)] == [(b"onetwo", True)] * 16
    await stopping
