"""Credentials stay where they belong: no other origin gets them, and nothing repeats them."""

import asyncio
import contextlib
import logging

import pytest
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.http11 import Response

from rollcast.cli.run import RunOptions
from rollcast.cli.serving import Serving
from rollcast.cli.train.settings import TrainSettings
from rollcast.cli.watch import WatchOptions
from rollcast.errors import InputError, RefusedError
from rollcast.serve import ServerSettings, Token, WebSocketStreamingClient
from rollcast.serve.protocol import Hello, Session
from rollcast.serve.secrecy import has_token, shown_url, without_secrets
from rollcast.serve.tls import server_context

SECRET = "sekrit"


class Thief:
    """A WebSocket server that keeps all that it is told."""

    def __init__(self):
        self.requests = []
        self.messages = []

    async def handle(self, socket):
        self.requests.append(dict(socket.request.headers))
        async for message in socket:
            self.messages.append(message)


@contextlib.asynccontextmanager
async def listening(handler, **options):
    """The port of a server."""
    options = {"subprotocols": ["rollcast.v1"], "close_timeout": 0.1} | options
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        yield next(iter(server.sockets)).getsockname()[1]


def redirecting(status, location, seen=None):
    """A `process_request` that sends everybody on."""

    def respond(_, request):
        if seen is not None:
            seen.append(request.path)
        if location(request.path) is None:
            return None
        return Response(
            status, "Moved", Headers({"Location": location(request.path), "Content-Length": "0"}), b""
        )

    return respond


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_a_redirect_to_another_origin_gets_no_token(status, name):
    """Another port, and another name of the same port, are another origin: nobody there hears of the client."""
    thief = Thief()
    async with listening(thief.handle) as elsewhere:
        for target in (f"ws://{name}:{elsewhere}/", f"http://{name}:{elsewhere}/", f"//{name}:{elsewhere}/x"):
            redirect = redirecting(status, lambda _, target=target: target)
            async with listening(thief.handle, process_request=redirect) as here:
                client = WebSocketStreamingClient(f"ws://user:{SECRET}@127.0.0.1:{here}", token=SECRET)
                for ask in (client.connect, lambda client=client: client.cancel("r")):
                    with pytest.raises(RefusedError, match="another server, which gets no token") as caught:
                        await ask()
                    assert f"{name}:{elsewhere}" in str(caught.value)
                    assert SECRET not in str(caught.value)
    assert thief.requests == thief.messages == []


async def test_a_redirect_does_not_take_tls_away(authority, localhost_pair):
    """wss to ws: the same host, but in clear."""
    thief = Thief()
    tls = server_context(*map(str, localhost_pair))
    async with listening(thief.handle) as clear:
        redirect = redirecting(302, lambda _: f"ws://127.0.0.1:{clear}/")
        async with listening(thief.handle, process_request=redirect, ssl=tls) as here:
            client = WebSocketStreamingClient(
                f"wss://127.0.0.1:{here}", token=SECRET, tls_ca=str(authority.cert)
            )
            with pytest.raises(RefusedError, match="another server, which gets no token"):
                await client.connect()
    assert thief.requests == thief.messages == []


@pytest.mark.parametrize("user", ["", "user:password@"])
@pytest.mark.parametrize("absolute", [True, False])
async def test_a_redirect_within_the_origin_is_followed(absolute, user):
    """As an ingress sends on from a path to another; the token is said there."""
    thief, seen, here = Thief(), [], []

    def location(path):
        if path == "/there/":
            return None
        return f"http://127.0.0.1:{here[0]}/there/" if absolute else "/there/"

    async with listening(thief.handle, process_request=redirecting(302, location, seen)) as port:
        here.append(port)
        client = WebSocketStreamingClient(f"ws://{user}127.0.0.1:{port}/here", token=SECRET)
        await client.connect()
        await client.aclose()
    assert seen == ["/here", "/there/"]
    assert len(thief.messages) == 1
    assert SECRET in thief.messages[0]


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "ws://h:99999/",
        "ftp://h/",
        f"ws://user:{SECRET}@h/",
        "",
        f"/?token={SECRET}",
        "\x1b[31m",
    ],
)
async def test_a_redirect_to_nowhere_is_one_sentence(location):
    """Whatever stands there, and without a secret that stands there."""
    async with listening(
        lambda socket: socket.wait_closed(), process_request=redirecting(302, lambda _: location)
    ) as port:
        with pytest.raises((RefusedError, InputError)) as caught:
            await WebSocketStreamingClient(f"ws://127.0.0.1:{port}", token=SECRET).connect()
    assert str(caught.value).isprintable()
    assert SECRET not in str(caught.value)


# -- what is shown -----------------------------------------------------------------------------------------------------------

ADDRESSES = [
    f"ws://user:{SECRET}@127.0.0.1:1",
    f"ws://user:{SECRET}@127.0.0.1:1/path?x={SECRET}",
    f"ws://{SECRET}@127.0.0.1:1",
    f"ws://user:a/{SECRET}@127.0.0.1:1",
    f"ws://user:a#{SECRET}@127.0.0.1:1",
    f"ws://user:{SECRET}?b@127.0.0.1:1",
    f"ws://user:a@{SECRET}@127.0.0.1:1",
    f"ws://127.0.0.1:1/?token={SECRET}",
    f"ws://127.0.0.1:1/?access_token={SECRET}",
    f"ws://127.0.0.1:1/#token={SECRET}",
    f"ws://127.0.0.1:1/#{SECRET}",
    f"http://user:{SECRET}@127.0.0.1:1",
    f"user:{SECRET}@127.0.0.1:1",
    f"ws:/user:{SECRET}@127.0.0.1:1",
    f"ws://[user:{SECRET}@127.0.0.1:1",
    f"ws://user:{SECRET}@127.0.0.1:99999",
    f"ws://user:{SECRET}@",
]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_no_secret_of_an_address_is_repeated(address, caplog):
    """Not in an exception, nor in what caused it, nor in a log, however verbose."""
    caplog.set_level(logging.DEBUG)
    said = []
    try:
        client = WebSocketStreamingClient(address, token=SECRET)
        said += [client.url, repr(client), str(client)]
        await client.connect()
    except (InputError, RefusedError) as error:
        cause = error
        while cause is not None:
            said += [str(cause), repr(cause)]
            cause = cause.__cause__
    assert said
    assert SECRET not in " ".join(said)
    assert "127.0.0.1" in said[0] or address.endswith("@")
    assert SECRET not in caplog.text


async def test_nothing_secret_reaches_a_log_however_verbose(stage, say, read, caplog):
    """websockets writes each header and the beginning of each message at DEBUG, on both sides."""
    caplog.set_level(logging.DEBUG)
    server = await stage.serve(token=SECRET)
    url = server.url.replace("ws://", f"ws://user:{SECRET}@") + f"/?x={SECRET}"
    client = stage.client(url, token=SECRET, since="start")
    async with client:
        async with stage.manager.run() as run:
            say(run, "abc")
        await read(client)
    await client.aclose()
    with pytest.raises(RefusedError):
        await stage.client(token=f"wrong {SECRET}").cancel("r")
    assert "Authorization" in caplog.text
    assert "TEXT" in caplog.text
    assert SECRET not in caplog.text
    assert "Basic " not in caplog.text


REQUEST_LINE, HOST = b"GET /metrics HTTP/1.1\r\n", b"Host: 127.0.0.1\r\n"
BROKEN = {
    "a line of four words": f"GET /?token={SECRET} HTTP/1.1 x\r\n".encode() + HOST,
    "a folded header": REQUEST_LINE + HOST + f"Authorization: Bearer\r\n {SECRET}\r\n".encode(),
    "a header without a colon": REQUEST_LINE + HOST + f"Authorization Bearer {SECRET}\r\n".encode(),
    "a NUL": REQUEST_LINE + HOST + f"Authorization: Bearer {SECRET}\0\r\n".encode(),
    "a header of one's own": REQUEST_LINE + HOST + f"X-Api-Key: {SECRET}\r\n".encode(),
    "a subprotocol": REQUEST_LINE + HOST + f"Sec-WebSocket-Protocol: bearer.{SECRET}\r\n".encode(),
    "an address": f"GET http://user:{SECRET}@127.0.0.1/metrics HTTP/1.1\r\n".encode() + HOST,
    "many fields": f"GET /healthz?{'a&' * 300}token={SECRET} HTTP/1.1\r\n".encode() + HOST,
}


@pytest.mark.parametrize("request_bytes", BROKEN.values(), ids=BROKEN)
async def test_a_request_that_is_wrong_leaves_no_secret_in_a_log(stage, caplog, request_bytes):
    """What is wrong with it is told by the kind of the error, not by its text."""
    caplog.set_level(logging.DEBUG)
    server = await stage.serve(token="another")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request_bytes + b"\r\n")
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    assert b"200 OK" not in answer
    assert SECRET.encode() not in answer
    assert SECRET not in caplog.text


def test_no_repr_has_a_secret():
    """Tracebacks with local variables, and debuggers, show them."""
    session = Session(lambda _: "wrong", ServerSettings().limits, hello_s=1, heartbeat_s=1, clock=lambda: 0.0,
                      epoch=lambda: 0.0, token=SECRET)  # fmt: skip
    run = RunOptions(**dict.fromkeys(RunOptions.__annotations__) | {"serving": Serving("1", SECRET)})
    watch = WatchOptions("ws://h", "live", None, SECRET, None, None, None, None, None, None, True)
    for thing in (
        Hello(SECRET), session, run, watch, TrainSettings(token=SECRET), Token(SECRET), ServerSettings(tokens=(Token(SECRET),)),
        ServerSettings().checked(SECRET), WebSocketStreamingClient("ws://h", token=SECRET),
    ):  # fmt: skip
        assert SECRET not in repr(thing)
        assert SECRET not in str(thing)


@pytest.mark.parametrize(
    "proxy",
    [f"http://user:{SECRET}@[::1", f"nonsense://user:{SECRET}@x", f"http://user:{SECRET}@127.0.0.1:1"],
)
async def test_the_password_of_a_proxy_is_not_repeated(monkeypatch, proxy):
    """The environment's proxy may have one."""
    for name in ("ALL_PROXY", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "WS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("all_proxy", proxy)
    monkeypatch.setenv("ws_proxy", proxy)
    with pytest.raises((InputError, RefusedError)) as caught:
        await WebSocketStreamingClient("ws://rollcast.invalid:1").connect()
    error = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://h:1", "ws://h:1"),
        ("ws://u:p@h:1/x?y=z#f", "ws://h:1/x?…"),
        ("ws://h/user/@me/x", "ws://h/user/@me/x"),
        ("u:p@h", "h"),
        ("wss://u:p@[::1]:1/", "wss://[::1]:1/"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_its_secrets(url, shown):
    """What else it has stays readable."""
    assert shown_url(url) == shown


def test_other_libraries_words_are_shown_without_secrets():
    """An address in the middle of a sentence, and a sentence without one."""
    assert without_secrets("cannot open ws://u:p@h/x?t=1 now") == "cannot open ws://h/x?… now"
    assert without_secrets("is that so? yes") == "is that so? yes"


def test_a_token_in_an_address_is_found():
    """In a query or a fragment, in any case, whatever stands beside it."""
    for url in ("ws://h/?token=", "ws://h/?a=b&Token=c", "ws://h/#access_token=x", "/?token=x", "/?%74oken=x", "h;token=x",
                "/?" + "a&" * 300 + "token=x"):  # fmt: skip
        assert has_token(url)
    for url in ("ws://h/", "ws://h/token", "ws://token/", "ws://h/?chain=token", "ws://h/#x"):
        assert not has_token(url)
