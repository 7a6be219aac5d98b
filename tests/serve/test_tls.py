"""TLS, tried for real: our client and foreign ones, good certificates and bad ones."""

import asyncio
import contextlib
import os
import shutil
import socket as sockets
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from websockets.asyncio.client import connect

import rollcast as rollcast_package
from rollcast.errors import InputError, RefusedError
from rollcast.records import decode
from rollcast.serve import ServerSettings, WebSocketStreamingClient, WebSocketStreamingServer

SRC = str(Path(rollcast_package.__file__).parents[1])
ENV = os.environ | {"PYTHONPATH": SRC, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


async def serve_tls(stage, pair, **options):
    return await stage.serve(tls_cert=str(pair[0]), tls_key=str(pair[1]), **options)


# -- clients -------------------------------------------------------------------------------------------------------------


async def test_our_client_watches_by_wss(stage, say, read, authority, localhost_pair):
    """The whole run, a token with it, and cancelling."""
    server = await serve_tls(stage, localhost_pair, token="secret")
    assert server.url.startswith("wss://")
    client = stage.client(token="secret", tls_ca=str(authority.cert), since="start")
    async with client:
        async with stage.manager.run() as run:
            say(run, "abc")
        events = await read(client)
    assert [e.event_type for e in events][-1] == "run_end"
    with pytest.raises(RefusedError, match="no run 'x' is open"):
        await stage.client(token="secret", tls_ca=str(authority.cert)).cancel("x")
    await client.aclose()


async def test_foreign_clients_watch_by_wss(stage, say, strict_authority):
    """websockets' and aiohttp's; /healthz and /metrics by https."""
    server = await serve_tls(stage, strict_authority.certify("localhost"))
    trusted = ssl.create_default_context(cafile=strict_authority.cert)
    https = server.url.replace("wss:", "https:")
    async with (
        connect(server.url, proxy=None, ssl=trusted) as one,
        aiohttp.ClientSession() as session,
        session.ws_connect(server.url, ssl=trusted) as other,
    ):
        assert one.transport.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
        assert await (await session.get(f"{https}/healthz", ssl=trusted)).text() == "ok\n"
        assert (await session.get(f"{https}/metrics", ssl=trusted)).status == 200
        async with stage.manager.run() as run:
            say(run, "abc")
        async with asyncio.timeout(60):
            assert decode(await one.recv()).event_type == "run_start"
            assert decode((await other.receive()).data).event_type == "run_start"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_asks_by_https(stage, authority, localhost_pair):
    """Another program, with another library of TLS."""
    server = await serve_tls(stage, localhost_pair)
    url = f"https://localhost:{server.port}/healthz"
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--noproxy", "*", "--cacert", str(authority.cert), "--connect-to", "::127.0.0.1:", url,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    assert (out, errors) == (b"ok\n", b"")


async def test_a_large_batch_and_a_slow_reader_pass_through_tls(stage, read, authority, localhost_pair):
    """Bytes that wait in TLS are counted as those that wait in a socket."""
    await serve_tls(stage, localhost_pair)
    client = stage.client(tls_ca=str(authority.cert), since="start")
    async with client:
        async with stage.manager.run() as run:
            with (
                run.chain([{"role": "user", "content": "Say it."}]) as chain,
                chain.generation() as generation,
            ):
                for _ in range(40):
                    generation.chunk("x" * 100_000)
                    await stage.manager.drain()
        events = await read(client)
    text = "".join(e.data["content"] for e in events if e.event_type == "llm_generation_chunk")
    assert len(text) == 4_000_000
    await client.aclose()


# -- whom a client trusts --------------------------------------------------------------------------------------------------


async def test_a_certificate_of_nobody_known_is_one_sentence(stage, localhost_pair):
    """With what to do; and the client does not try for ever."""
    await serve_tls(stage, localhost_pair)
    with pytest.raises(
        RefusedError, match=r"the certificate of wss://127.0.0.1:\d+ is not trusted: .*; give .*--tls-ca FILE"
    ):
        await stage.client().connect()
    with pytest.raises(RefusedError, match="is not trusted"):
        async for _ in stage.client():
            pass


async def test_a_certificate_of_another_authority_is_not_trusted(stage, other_authority, localhost_pair):
    """That the sentence names."""
    await serve_tls(stage, localhost_pair)
    with pytest.raises(RefusedError, match=r"is not trusted: .*; .*ca\.pem was to vouch for it"):
        await stage.client(tls_ca=str(other_authority.cert)).connect()


async def test_a_certificate_for_another_name_is_not_trusted(stage, authority):
    """A server that took over an address has no certificate for it."""
    await serve_tls(stage, authority.certify("elsewhere", names="DNS:elsewhere.example"))
    with pytest.raises(RefusedError, match=r"is not trusted: .*127\.0\.0\.1"):
        await stage.client(tls_ca=str(authority.cert)).connect()


async def test_a_servers_own_certificate_may_be_named(stage, localhost_pair):
    """In place of an authority."""
    await serve_tls(stage, localhost_pair)
    async with stage.client(tls_ca=str(localhost_pair[0])) as client:
        assert client.runs == []


async def test_a_token_is_not_said_before_the_certificate_was_checked(stage, localhost_pair, monkeypatch):
    """Nothing of it reaches a server that is not trusted."""
    await serve_tls(stage, localhost_pair, token="secret")
    asked = []
    monkeypatch.setattr("rollcast.serve.entrance.authorize", lambda *args: asked.append(args))
    with pytest.raises(RefusedError):
        await stage.client(token="secret").connect()
    assert asked == []


async def test_a_server_that_closes_the_connection_is_not_said_to_speak_no_http():
    """One that is just starting or ending does that, too."""

    async def close(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RefusedError, match=r"closed the connection before it answered; if .* say wss://"):
            await WebSocketStreamingClient(f"ws://127.0.0.1:{port}").connect()


async def test_ws_and_wss_are_not_confused_in_silence(stage, authority, localhost_pair):
    """Either mistake is a sentence that names the other."""
    server = await serve_tls(stage, localhost_pair)
    with pytest.raises(RefusedError, match=r"say wss://"):
        await WebSocketStreamingClient(server.url.replace("wss:", "ws:")).connect()
    await server.stop()
    plain = WebSocketStreamingServer("127.0.0.1", 0)
    async with plain:
        with pytest.raises(RefusedError, match=r"say ws://"):
            await WebSocketStreamingClient(
                plain.url.replace("ws:", "wss:"), tls_ca=str(authority.cert)
            ).connect()


@pytest.mark.parametrize("ca", ["/nowhere/ca.pem", "", "\0", __file__, "/"])
def test_an_authority_that_cannot_be_read_is_one_sentence(ca):
    """Before anything is tried."""
    with pytest.raises(InputError, match=r"the TLS authority .* (cannot be read|has no certificate)"):
        WebSocketStreamingClient("wss://localhost:1", tls_ca=ca)


def test_an_authority_without_tls_is_one_sentence(authority):
    """Whoever names one expects an encrypted connection."""
    with pytest.raises(InputError, match=r"is not encrypted, .*expected wss://"):
        WebSocketStreamingClient("ws://localhost:1", tls_ca=str(authority.cert))


# -- handshakes ------------------------------------------------------------------------------------------------------------


async def test_tls_handshakes_that_never_end_are_counted_and_ended(
    stage, until, monkeypatch, localhost_pair, authority
):
    """Silent clients do not take all the places, and give theirs back."""
    monkeypatch.setattr("rollcast.serve.connection.HANDSHAKES", 3)
    server = await serve_tls(stage, localhost_pair, connections=2, hello_s=0.5)
    loop = asyncio.get_running_loop()
    silent = []
    for _ in range(12):
        one = sockets.socket()
        one.setblocking(False)
        await loop.sock_connect(one, ("127.0.0.1", server.port))
        silent.append(one)
    ended = [loop.create_task(loop.sock_recv(one, 1)) for one in silent]
    async with asyncio.timeout(60):
        for task in ended:
            with contextlib.suppress(ConnectionResetError):
                assert await task == b""
    for one in silent:
        one.close()
    await stage.lets_in(tls_ca=str(authority.cert))
    await until(lambda: server.statistics().connections == 0)


async def test_what_is_not_tls_is_ended_and_not_logged(stage, localhost_pair, caplog, authority):
    """Strangers can't fill the log."""
    server = await serve_tls(stage, localhost_pair, hello_s=0.5)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 100, b"\x80", b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(data)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(60):
                await reader.read()
        writer.close()
    assert not caplog.records
    await stage.lets_in(tls_ca=str(authority.cert))


async def test_a_server_stops_while_a_handshake_goes_on(localhost_pair):
    """It does not wait for the stranger."""
    cert, key = map(str, localhost_pair)
    settings = ServerSettings(tls_cert=cert, tls_key=key, hello_s=60.0)
    server = await WebSocketStreamingServer("127.0.0.1", 0, settings=settings).start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await server.stop()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert server.statistics().connections == 0
    writer.close()


# -- certificates ----------------------------------------------------------------------------------------------------------


def settings_with(cert, key):
    return ServerSettings(
        tls_cert=None if cert is None else str(cert), tls_key=None if key is None else str(key)
    )


def refused(cert, key):
    with pytest.raises(InputError) as caught:
        WebSocketStreamingServer(settings=settings_with(cert, key))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_certificate_that_nobody_would_trust_is_refused_at_once(authority, localhost_pair):
    """Expired, for another purpose, or with the key of another."""
    cert, _ = localhost_pair
    assert "has expired; expected one that is valid today" in refused(*authority.certify("old", days=-1))
    assert "cannot be a server's" in refused(*authority.certify("client", usage="clientAuth"))
    _, other = authority.certify("other")
    assert "other.key belongs to another certificate than" in refused(cert, other)


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(authority, localhost_pair):
    """OpenSSL would ask on the terminal, and a run would wait."""
    cert, key = localhost_pair
    assert "is encrypted; expected one without a passphrase" in refused(cert, authority.encrypted(key))


def test_a_file_that_is_not_what_was_expected_is_named(tmp_path, localhost_pair):
    """Missing, a folder, empty, something else, or the two in the wrong order."""
    cert, key = localhost_pair
    empty = tmp_path / "empty.pem"
    empty.touch()
    assert f"the TLS certificate '{tmp_path / 'x'}' cannot be read: No such file" in refused(
        tmp_path / "x", key
    )
    assert f"the TLS key '{tmp_path / 'x'}' cannot be read: No such file" in refused(cert, tmp_path / "x")
    assert "cannot be read: Is a directory" in refused(tmp_path, key)
    assert "empty.pem has no certificate that can be read" in refused(empty, key)
    assert "empty.pem has no private key that can be read" in refused(cert, empty)
    assert f"{key} has no certificate that can be read" in refused(key, cert)
    assert "does not have both a certificate and its private key" in refused(cert, None)
    assert "cannot be read" in refused("", key)
    assert "cannot be read" in refused("a\0b", key)
    assert "tls_key of the server is given without tls_cert" in refused(None, key)


def test_one_file_may_hold_both(tmp_path, localhost_pair):
    """As some tools write it; a path may be a Path."""
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in localhost_pair))
    assert WebSocketStreamingServer(settings=ServerSettings(tls_cert=both)).url.startswith("wss://")


# -- the commands ----------------------------------------------------------------------------------------------------------


def rollcast(*args):
    command = [sys.executable, "-m", "rollcast", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=ENV, check=False)


def test_run_serves_and_watch_watches_by_wss(authority, localhost_pair):
    """The printed address is the one to type; without the authority it is one sentence and exit code 2."""
    cert, key = localhost_pair
    run = [
        *(
            sys.executable,
            "-m",
            "rollcast",
            "run",
            "--serve",
            "127.0.0.1:0",
            "--tls-cert",
            cert,
            "--tls-key",
            key,
        ),
        *("--pace", "0.02", "--seed", "7", "--chains", "2"),
    ]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=ENV) as running:
        url = next(line.split()[-1] for line in running.stdout if "watch it with" in line)
        assert url.startswith("wss://127.0.0.1:")
        distrusted = rollcast("watch", url)
        watch = [
            sys.executable,
            "-m",
            "rollcast",
            "watch",
            url,
            "--since",
            "start",
            "--tls-ca",
            authority.cert,
        ]
        with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, env=ENV) as watching:
            assert any("chain_3 " in line for line in watching.stdout)
            watching.terminate()
            watching.communicate(timeout=300)
        running.terminate()
        running.communicate(timeout=300)
    assert distrusted.returncode == 2
    assert "is not trusted" in distrusted.stderr
    assert len(distrusted.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_bad_certificate_is_one_sentence_and_exit_code_2(command, tmp_path):
    """Before any chain starts."""
    done = rollcast(command, "--serve", "127.0.0.1:0", "--tls-cert", tmp_path / "none.pem")
    assert done.returncode == 2
    assert "none.pem' cannot be read: No such file or directory" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
