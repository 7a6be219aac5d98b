"""The files of the live page over HTTP: headers, caching, prefixes, hostile paths."""

import asyncio
import gzip
import zipfile
from importlib.resources import files
from pathlib import Path

import aiohttp
import pytest
from hatchling.builders.wheel import WheelBuilder
from websockets.asyncio.client import connect

from rollcast.archive import zstd
from rollcast.serve.page_files import (
    CONTENT_SECURITY_POLICY,
    MIME_TYPES,
    PageFile,
    PageFiles,
    as_sent,
    is_url_path,
    read_page_files,
)

PREFIXES = ["", "/proxy/8765", "/user/ada@lab/proxy/8765", "/node/gpu-7/8765/lab", "/%7Eada"]
FOLDER = files("rollcast.serve") / "page"
SOURCES = {
    path.relative_to(str(FOLDER)).as_posix(): path.read_bytes()
    for path in Path(str(FOLDER)).rglob("*")
    if path.suffix in MIME_TYPES
}
SENT = as_sent(SOURCES)


async def raw(port, path, *headers, method=b"GET", host=b"127.0.0.1"):
    """The status, the headers in lower case and the body that a request gets, with the path as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: " + host, *headers]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    async with asyncio.timeout(60):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    first, *fields = head.decode("latin-1").split("\r\n")
    found = {}
    for name, _, value in (field.partition(": ") for field in fields):
        found.setdefault(name.lower(), []).append(value)
    return int(first.split()[1]), found, body


def base(server):
    return server.url.replace("ws:", "http:")


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_file_of_the_page_is_given_behind_any_prefix(stage, prefix):
    """With its type and its length, uncompressed for clients that do not ask for gzip."""
    server = await stage.serve()
    names = read_page_files().names
    assert "index.html" in names
    for name in names:
        status, headers, body = await raw(server.port, f"{prefix}/{name}".encode())
        assert status == 200
        assert body == SENT[name]
        assert headers["content-type"] == [MIME_TYPES["." + name.rpartition(".")[2]]]
        assert headers["content-length"] == [str(len(body))]
        assert "content-encoding" not in headers
    status, headers, body = await raw(server.port, f"{prefix}/".encode())
    assert (status, body) == (200, SENT["index.html"])
    assert headers["content-type"] == ["text/html; charset=utf-8"]


async def test_the_headers_of_every_file(stage):
    """The policy of the page, and nothing that leaks where it was."""
    server = await stage.serve()
    for name in read_page_files().names:
        _, headers, _ = await raw(server.port, b"/" + name.encode())
        assert headers["cache-control"] == ["no-cache"]
        assert headers["content-security-policy"] == [
            CONTENT_SECURITY_POLICY,
            "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
        ]
        assert headers["x-content-type-options"] == ["nosniff"]
        assert headers["referrer-policy"] == ["no-referrer"]
        assert headers["cross-origin-opener-policy"] == ["same-origin"]
        assert headers["cross-origin-resource-policy"] == ["same-origin"]
        assert headers["vary"] == ["Accept-Encoding"]


def test_the_policy_is_that_of_the_design():
    """No script, style or connection but the server's own, and no string becomes a script."""
    assert CONTENT_SECURITY_POLICY == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


async def test_browsers_get_gzip_and_the_same_bytes(stage):
    """Compressed once, when the files are read."""
    server = await stage.serve()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for name in read_page_files().names:
            answer = await session.get(f"{base(server)}/{name}", headers={"Accept-Encoding": "br, gzip"})
            body = await answer.read()
            assert int(answer.headers["Content-Length"]) == len(body)
            if answer.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert body == SENT[name]


@pytest.mark.parametrize(
    ("accepts", "compressed"),
    [(b"gzip", True), (b"GZIP;q=0.5", True), (b"*", True), (b"gzip;q=0", False), (b"gzip; q=0.000", False),
     (b"br", False), (b"identity", False), (b"", False)],
)  # fmt: skip
async def test_gzip_only_for_those_who_take_it(stage, accepts, compressed):
    """RFC 9110, 12.5.3."""
    server = await stage.serve()
    _, headers, _ = await raw(server.port, b"/token.js", b"Accept-Encoding: " + accepts)
    assert ("content-encoding" in headers) is compressed


async def test_zstd_for_those_who_take_it(stage):
    """It is smaller than gzip; what is sent is the same file."""
    server = await stage.serve()
    for accepts, coding in ((b"gzip, zstd", ["zstd"]), (b"gzip, zstd;q=0", ["gzip"]), (b"*", ["gzip"])):
        _, headers, body = await raw(server.port, b"/main.js", b"Accept-Encoding: " + accepts)
        assert headers["content-encoding"] == coding
        sent = zstd.decompress(body) if coding == ["zstd"] else gzip.decompress(body)
        assert sent == SENT["main.js"]


async def test_what_a_browser_has_is_not_sent_again(stage):
    """304 with the ETag; another ETag, and the one of the other encoding, get the file."""
    server = await stage.serve()
    _, headers, _ = await raw(server.port, b"/token.js")
    _, packed, _ = await raw(server.port, b"/token.js", b"Accept-Encoding: gzip")
    etag, packed_etag = headers["etag"][0].encode(), packed["etag"][0].encode()
    assert etag != packed_etag
    for given in (etag, b"W/" + etag, b'"other", ' + etag, b"*"):
        status, headers, body = await raw(server.port, b"/token.js", b"If-None-Match: " + given)
        assert (status, body, headers["etag"]) == (304, b"", [etag.decode()])
        assert headers["cache-control"] == ["no-cache"]
    for given in (b'"other"', packed_etag, etag[:-2] + b'"', b"", b"nonsense"):
        status, _, body = await raw(server.port, b"/token.js", b"If-None-Match: " + given)
        assert (status, body) == (200, SENT["token.js"])
    status, *_ = await raw(
        server.port, b"/token.js", b"Accept-Encoding: gzip", b"If-None-Match: " + packed_etag
    )
    assert status == 304


def test_an_etag_is_that_of_the_content():
    """So a cache is right after an upgrade, and between two servers."""
    assert PageFile.of("a.js", b"1").etag == PageFile.of("b.js", b"1").etag != PageFile.of("a.js", b"2").etag
    assert PageFile.of("a.js", b"1" * 999).compressed == PageFile.of("a.js", b"1" * 999).compressed


async def test_files_that_have_not_changed_are_not_refused_when_many_are_asked_for(stage):
    """304 takes turns of its own for each file, not those of refusals."""
    server = await stage.serve()
    _, headers, _ = await raw(server.port, b"/token.js")
    etag = b"If-None-Match: " + headers["etag"][0].encode()
    for _ in range(5):
        assert (await raw(server.port, b"/token.js", etag))[0] == 304
    assert {what for what, _ in server._handshake.turns._free_at} == {"token.js"}


@pytest.mark.parametrize("path", [b"/", b"/token.js", b"/healthz", b"/metrics", b"/x.js", b"/lab/"])
async def test_head_says_what_get_says_without_the_body(stage, path):
    """Every answer."""
    server = await stage.serve()
    (status, headers, body), (head_status, head_headers, nothing) = (
        await raw(server.port, path),
        await raw(server.port, path, method=b"HEAD"),
    )
    assert (status, nothing) == (head_status, b"")
    assert body
    for name in ("content-type", "etag"):
        assert headers.get(name) == head_headers.get(name)
    if path != b"/metrics":  # whose figures go on
        assert headers["content-length"] == head_headers["content-length"]


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"get", b"TRACE"])
async def test_other_methods_are_refused(stage, method):
    """405, and which there are."""
    server = await stage.serve()
    status, headers, _ = await raw(server.port, b"/", method=method)
    assert (status, headers["allow"]) == (405, ["GET, HEAD"])


HOSTILE = [
    b"/../../../../etc/passwd", b"/..%2f..%2fetc%2fpasswd", b"/%2e%2e/%2e%2e/etc/passwd", b"/vendor/../../server.py",
    b"/page_files.py", b"/server.py", b"/./index.html", b"/../index.html", b"/proxy/../index.html", b"//index.html",
    b"//evil.example/", b"/\\..\\server.py", b"/index.html/", b"/index.html%00.js", b"/index.htm", b"/INDEX.HTML",
    b"/xindex.html", b"/.git/config", b"/token", b"/token.js/x.js", b"/token.js~", b"index.html", b"*",
    b"http://127.0.0.1/index.html", b"/[", b"/" + b"x" * 4000 + b".js",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
async def test_a_hostile_path_gets_no_file(stage, path, caplog):
    """Only what is in the folder of the page is known at all; a path is never one on the disk."""
    server = await stage.serve()
    status, headers, body = await raw(server.port, path)
    if path == b"/index.html/":  # a prefix that is called so
        assert status == 200
        return
    assert status in (400, 404)
    assert headers["content-type"] == ["text/plain; charset=utf-8"]
    assert b"root:" not in body
    assert b"import" not in body
    assert not caplog.records


def test_paths_of_urls():
    """Without empty segments and dots, which proxies and servers read differently."""
    assert all(map(is_url_path, ["/", "/a", "/a/", "/a/b.js", "/~a/%7E/x@y:1,2;3"]))
    assert not any(
        map(
            is_url_path, ["", "a", "//", "/a//b", "/.", "/a/..", "/../a", "/a b", "/[", "/ä", "/a\\b", "/a\n"]
        )
    )


def test_a_file_is_found_by_whole_names_only():
    """The longest one first: `vendor/x.js` is not `x.js`."""
    page = PageFiles({"x.js": b"1", "vendor/x.js": b"2", "index.html": b"3", "notes.md": b"4"})
    assert page.at("/lab/vendor/x.js").data == b"2"
    assert page.at("/lab/x.js").data == b"1"
    assert page.at("/vendorx/x.js").data == b"1"
    assert page.at("/ax.js") is None
    assert page.at("/vendor/").data == b"3"
    assert page.at("/notes.md") is None
    assert PageFiles({}).at("/") is None


async def test_a_browser_at_a_prefix_without_a_slash_is_sent_to_the_page(stage):
    """Its URLs are relative. Others are told 404, and nobody is sent to another host."""
    server = await stage.serve()
    for path, place in ((b"/lab", "./lab/"), (b"/user/ada/proxy/8765", "./8765/"), (b"/a:b", "./a:b/")):
        status, headers, _ = await raw(server.port, path, b"Accept: text/html,*/*;q=0.8")
        assert (status, headers["location"]) == (307, [place])
        assert (await raw(server.port, path))[0] == 404
    for path in (b"//evil.example", b"/x.js"):
        assert (await raw(server.port, path, b"Accept: text/html"))[0] == 404


async def test_a_name_that_is_not_ours_gets_no_file(stage):
    """DNS rebinding; and a foreign page may not ask either."""
    server = await stage.serve(origins=("https://lab.example",))
    for path in (b"/", b"/token.js", b"/lab/"):
        status, _, body = await raw(server.port, path, host=b"evil.example")
        assert status == 403
        assert b"--host-name" in body
        status, _, body = await raw(server.port, path, b"Origin: https://evil.example")
        assert status == 403
        assert b"https://evil.example; --origin" in body
        assert (await raw(server.port, path, b"Origin: https://lab.example"))[0] == 200
        assert (await raw(server.port, path, b"Origin: http://127.0.0.1"))[0] == 200


async def test_the_files_need_no_token_and_a_url_must_not_have_one(stage):
    """They say nothing of a run; the page sends its token over the WebSocket."""
    server = await stage.serve(token="sekrit")
    for path in (b"/", b"/token.js", b"/lab/token.js"):
        assert (await raw(server.port, path))[0] == 200
        status, _, body = await raw(server.port, path + b"?token=sekrit")
        assert status == 400
        assert b"sekrit" not in body


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_websocket_opens_under_any_prefix(stage, prefix, say):
    """In `rollcast.v1` and plainly; `/healthz` and `/metrics` answer there too."""
    server = await stage.serve()
    async with connect(f"{server.url}{prefix}/", subprotocols=["rollcast.v1"], proxy=None) as socket:
        await socket.send('{"type":"hello"}')
        assert '"welcome"' in await socket.recv()
    async with stage.manager.run() as run:
        with run.chain(chain_id="chain_0"):
            async with connect(f"{server.url}{prefix}/?chain=chain_0", proxy=None) as socket:
                async with asyncio.timeout(60):
                    assert '"chain_snapshot"' in await socket.recv()
    assert (await raw(server.port, f"{prefix}/healthz".encode()))[2] == b"ok\n"
    assert (await raw(server.port, f"{prefix}/metrics".encode()))[0] == 200


async def test_every_door_asks_for_its_token_under_a_prefix(stage):
    """Another path is no way around it."""
    server = await stage.serve(token="t")
    assert (await raw(server.port, b"/lab/metrics"))[0] == 401
    upgrade = (b"Connection: Upgrade", b"Upgrade: websocket")
    assert (await raw(server.port, b"/lab/", *upgrade))[0] == 401
    async with connect(f"{server.url}/lab/", subprotocols=["rollcast.v1"], proxy=None) as socket:
        await socket.send('{"type":"hello"}')
        assert '"code":4500' in await socket.recv()


def test_the_page_is_in_the_wheel(tmp_path):
    """Every file of it, as hatchling builds it."""
    root = Path(__file__).parents[2]
    (built,) = WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        inside = {name.removeprefix("rollcast/serve/page/") for name in wheel.namelist()}
    assert set(read_page_files().names) <= inside
