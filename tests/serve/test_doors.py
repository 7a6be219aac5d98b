"""Which scope opens which door, over real sockets: the table of SECURITY.md."""

import asyncio
import json

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rollcast.errors import RefusedError
from rollcast.records import decode
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer
from rollcast.serve.access import Door, Grant, refusal
from rollcast.serve.protocol import Cancel, Hello, Query, Subscribe, Update, encode_frame

V1 = {"subprotocols": ["rollcast.v1"], "proxy": None, "ping_interval": None}
OPENED_BY = {
    Door.RUNS: "read",
    Door.SUBSCRIBE: "read",
    Door.QUERY: "read",
    Door.FEED: "read",
    Door.METRICS: "read",
    Door.CANCEL: "control",
    Door.PUBLISH: "publish",
}
GRANTS = [
    (),
    ("read",),
    ("control",),
    ("publish",),
    ("read", "control"),
    ("control", "publish"),
    ("read", "control", "publish"),
]
by_scopes = pytest.mark.parametrize("scopes", GRANTS, ids=lambda scopes: "+".join(scopes) or "none")


async def ask(socket, frame):
    """The answer to a frame."""
    await socket.send(encode_frame(frame), text=True)
    async with asyncio.timeout(60):
        return json.loads(await socket.recv())


async def fed(url, headers):
    """Whether the plain feed gives an event; else it says what is missing."""
    try:
        async with connect(url, proxy=None, additional_headers=headers) as socket, asyncio.timeout(60):
            return decode(await socket.recv()).event_type == "chain_snapshot"
    except InvalidStatus as error:
        response = error.response
    said = (response.status_code, response.body.decode().partition(";")[0])
    assert said == (403, "the plain feed needs a token with the read scope")
    return False


async def opened(server, token, run_id):
    """The doors that open, by knocking at each."""
    doors = set()
    bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with connect(server.url, **V1) as socket:
        welcome = await ask(socket, Hello(token))
        if welcome["runs"]:
            doors.add(Door.RUNS)
        knocks = (
            (Subscribe("1"), Door.SUBSCRIBE),
            (Query(id="3", what="chains"), Door.QUERY),
            (Cancel(run_id, id="2"), Door.CANCEL),
        )
        for frame, door in knocks:
            answer = await ask(socket, frame)
            while answer["type"] in ("batch", "rows") or answer.get("id", frame.id) != frame.id:
                answer = json.loads(await socket.recv())
            if answer["type"] != "error":
                doors.add(door)
            else:
                assert answer["code"] == 403
                assert f"{door} needs a token with the {OPENED_BY[door]} scope" in answer["message"]
    async with connect(server.url, **V1) as socket:
        answer = await ask(socket, Hello(token, role="producer", source="w", epoch="e"))
        if answer["type"] == "welcome":
            doors.add(Door.PUBLISH)
        else:
            assert answer["code"] == 4503
            assert "publish needs a token with the publish scope" in answer["message"]
    if await fed(server.url, bearer):
        doors.add(Door.FEED)
    async with aiohttp.ClientSession(server.url.replace("ws:", "http:"), headers=bearer) as session:
        answer = await session.get("/metrics")
        if answer.status == 200:
            doors.add(Door.METRICS)
        else:
            assert answer.status == 403
            assert "insufficient_scope" in answer.headers["WWW-Authenticate"]
            assert "/metrics needs a token with the read scope" in await answer.text()
        assert await (await session.get("/healthz")).text() == "ok\n"
    return doors


class Desk:
    """A hub that knows nothing: whoever may publish is welcome."""

    def connect(self, _hello, _link):
        return 0

    def greeted(self, _link):
        pass

    def heard(self, _link):
        pass

    def disconnect(self, _link):
        pass

    def cancel(self, _asked, _answer):
        return False


def expected(scopes):
    return {door for door, scope in OPENED_BY.items() if scope in scopes}


@by_scopes
def test_one_function_decides_for_every_door(scopes):
    """Each scope opens its own doors and no other scope's."""
    assert set(Door) == set(OPENED_BY)
    assert {door for door in Door if refusal(Grant(scopes), door) is None} == expected(scopes)


@by_scopes
@pytest.mark.parametrize("how", ["token", "anonymous"])
async def test_each_door_opens_for_its_scope_alone(stage, how, scopes):
    """By a token with these scopes, and for everybody if there is no token."""
    if how == "token":
        server = await stage.serve(tokens=(Token("t", scopes),))
    else:
        server = await stage.serve(anonymous_scopes=scopes)
    server.take_producers(Desk())
    asked = []
    async with stage.manager.run(on_cancel=asked.append) as run:
        with run.chain(chain_id="chain_0"):
            doors = await opened(server, "t" if how == "token" else None, run.run_id)
    assert doors == expected(scopes)
    assert bool(asked) is (Door.CANCEL in doors)


@pytest.mark.parametrize("token", [None, "", "wrong", "T", "t ", "tt", "expired"])
async def test_without_a_good_token_no_door_opens(stage, token):
    """Missing, wrong and expired ones: the run list is not told either."""
    tokens = (Token("t", ("read", "control")), Token("expired", ("read", "control"), expires_at=1.0))
    server = await stage.serve(tokens=tokens)
    bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with stage.manager.run() as run:
        with run.chain():
            async with connect(server.url, **V1) as socket:
                answer = await ask(socket, Hello(None if token is None else token))
                assert (answer["type"], answer["code"]) == ("error", 4003 if token == "expired" else 4500)
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
            if token == "t ":
                return  # a header's value ends before its spaces
            with pytest.raises(InvalidStatus) as refused:
                await connect(server.url, proxy=None, additional_headers=bearer)
            assert refused.value.response.status_code == 401
            async with aiohttp.ClientSession(server.url.replace("ws:", "http:"), headers=bearer) as session:
                assert (await session.get("/metrics")).status == 401


@pytest.mark.parametrize(
    "header", [b"Bearer \xff\xfe", b"Bearer t t", b"Basic dDp0", b"Bearer t\r\nAuthorization: Bearer t", b"bearer", b"Token t",
               b"Bearer " + b"t" * 4000]
)  # fmt: skip
async def test_a_header_that_is_not_one_good_token_opens_nothing(stage, header):
    """Bytes beyond ASCII, another scheme, two tokens, two headers."""
    server = await stage.serve(token="t")
    for path, upgrade in ((b"/metrics", b""), (b"/", b"Connection: Upgrade\r\nUpgrade: websocket\r\n")):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        lines = b"GET %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: %b\r\n%b\r\n" % (path, header, upgrade)
        writer.write(lines)
        async with asyncio.timeout(60):
            assert (await reader.readline()).split()[1] in (b"401", b"400")
        writer.close()


async def test_a_session_whose_token_ends_has_no_door_left(stage, monkeypatch):
    """What it asks for after the moment is answered by the close, and nothing more is sent."""
    now = [1000.0]
    monkeypatch.setattr("rollcast.serve.server._now", lambda: now[0])
    server = await stage.serve(tokens=(Token("t", ("read", "control"), expires_at=2000.0),))
    async with stage.manager.run() as run:
        with run.chain(chain_id="chain_0"):
            async with connect(server.url, **V1) as socket:
                assert (await ask(socket, Hello("t")))["type"] == "welcome"
                now[0] = 2000.0
                assert (await ask(socket, Subscribe("1")))["code"] == 4003
                async with asyncio.timeout(60):
                    with pytest.raises(ConnectionClosed) as closed:
                        await socket.recv()
            assert closed.value.rcvd.code == 4003


async def test_an_update_needs_what_a_subscription_needs(stage):
    """It is refused for its scope, not for its id."""
    server = await stage.serve(tokens=(Token("t", ("control",)),))
    async with connect(server.url, **V1) as socket:
        await ask(socket, Hello("t"))
        assert (await ask(socket, Update("1")))["code"] == 403


async def test_our_client_says_which_scope_is_missing(stage):
    """`rollcast watch` ends with this sentence."""
    server = await stage.serve(tokens=(Token("t", ("control",)),))
    with pytest.raises(
        RefusedError, match="subscribe needs a token with the read scope; this one may only control"
    ):
        async for _ in stage.client(token="t"):
            pass
    assert server.statistics().subscriptions == 0


async def test_who_may_only_control_can_still_cancel(stage):
    """Without seeing anything."""
    await stage.serve(tokens=(Token("t", ("control",)),))
    asked = []
    async with stage.manager.run(on_cancel=asked.append) as run:
        with run.chain(chain_id="chain_0"):
            await stage.client(token="t").cancel(run.run_id)
    assert asked == [None]


async def test_healthz_says_nothing_of_a_run(stage):
    """It needs no token, so that a probe can ask."""
    server = await stage.serve(token="secret")
    async with stage.manager.run(), aiohttp.ClientSession() as session:
        answer = await session.get(f"http://127.0.0.1:{server.port}/healthz")
        assert (answer.status, await answer.text()) == (200, "ok\n")


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/?chain=a&", "/elsewhere"])
@pytest.mark.parametrize("field", ["token", "access_token", "TOKEN"])
async def test_a_token_in_a_url_is_refused_and_not_repeated(stage, path, field):
    """At each door, and for both protocols."""
    server = await stage.serve(token="sekrit")
    url = f"http://127.0.0.1:{server.port}{path}{'&' if '?' in path else '?'}{field}=sekrit"
    async with aiohttp.ClientSession() as session:
        answer = await session.get(url)
        assert answer.status == 400
        assert "sekrit" not in await answer.text() + str(answer.headers)
    with pytest.raises(InvalidStatus) as refused:
        await connect(url.replace("http:", "ws:"), **V1)
    assert refused.value.response.status_code == 400


# -- origins and names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocols", [None, ["rollcast.v1"]])
@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost:3000", f"https://{'a' * 60}.{'b' * 60}.example"],
)
async def test_a_foreign_page_is_told_its_origin_and_the_option(stage, origin, protocols):
    """4507, in the close itself too, which a page of the plain feed alone sees; a long name is shortened there."""
    server = await stage.serve()
    async with connect(server.url, proxy=None, origin=origin, subprotocols=protocols) as socket:
        if protocols:
            message = json.loads(await socket.recv())["message"]
            assert origin in message
            assert "--origin or ServerSettings(origins=…)" in message
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd.code == 4507
    assert origin[:20] in closed.value.rcvd.reason
    assert "--origin or ServerSettings(origins=…) allows it" in closed.value.rcvd.reason


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://lab.example", "https://lab.example"),
        ("https://lab.example/", "https://lab.example"),
        ("https://LAB.example:443", "https://lab.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("vscode-webview://abc", "vscode-webview://abc"),
        ("https://Bücher.example:8443", "https://xn--bcher-kva.example:8443"),
    ],
)
async def test_an_origin_that_was_named_may_connect(stage, given, origin):
    """However it was typed."""
    server = await stage.serve(origins=(given,))
    async with connect(server.url, origin=origin, **V1) as socket:
        assert (await ask(socket, Hello()))["type"] == "welcome"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765"])
async def test_a_name_that_is_not_ours_is_told_the_option(stage, host):
    """403, with the name that came."""
    server = await stage.serve()
    async with aiohttp.ClientSession() as session:
        answer = await session.get(f"http://127.0.0.1:{server.port}/healthz", headers={"Host": host})
        said = await answer.text()
    assert answer.status == 403
    assert host in said
    assert "--host-name NAME (ServerSettings(hosts=…)) adds one" in said


async def test_a_name_that_was_named_is_ours(stage):
    """As an ingress passes it on."""
    server = await stage.serve(hosts=("Lab.Example",))
    async with aiohttp.ClientSession() as session:
        answer = await session.get(f"http://127.0.0.1:{server.port}/healthz", headers={"Host": "lab.example"})
        assert answer.status == 200


@pytest.mark.parametrize(
    "origin", ["*", "lab.example", "https://", "null", "", "https://lab.example/page", "https://*.example", "http://[::1",
               "https://a b", "https://lab:x", "https://lab:0"]
)  # fmt: skip
def test_what_could_never_match_an_origin_is_refused(origin):
    """When the server is made, rather than by a page that stays out for ever; nor is every page let in."""
    with pytest.raises(ValueError, match=r"an origin of the server \(--origin, origins=…\) is"):
        WebSocketStreamingServer(settings=ServerSettings(origins=(origin,)))


@pytest.mark.parametrize("host", ["https://lab.example", "lab:8765", "", "*", "*.example", "a b", "a/b", "-"])
def test_what_could_never_match_a_name_is_refused(host):
    """A name alone is expected."""
    with pytest.raises(ValueError, match=r"a host of the server \(--host-name, hosts=…\) is"):
        WebSocketStreamingServer(settings=ServerSettings(hosts=(host,)))
