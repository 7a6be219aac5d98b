"""`rollcast proxy`, as a process."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

import rollcast
from raw_engine import Engine, call, chunk, head
from rollcast import StreamingManager, WebSocketStreamingClient, WebSocketStreamingServer
from rollcast.cli.app import app
from rollcast.fleet import Hub
from rollcast.serve import ServerSettings, Token
from rollcast.testing import OpenAIServer
from rollcast.testing.observers import EventCapture

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("ROLLCAST_")} | {
    "PYTHONPATH": str(Path(rollcast.__file__).parents[1]),
    "PYTHONUNBUFFERED": "1",
}


class Command:
    """A proxy that runs as a process."""

    def __init__(self, process):
        self.process = process
        self.lines = []

    async def until(self, pattern):
        """Read lines until one matches; what matched."""
        async with asyncio.timeout(300):
            while True:
                line = (await self.process.stdout.readline()).decode()
                assert line, self.lines
                self.lines.append(line)
                if found := re.search(pattern, line):
                    return found

    async def rest(self):
        """What it prints until its end, and its exit code."""
        async with asyncio.timeout(300):
            out = (await self.process.stdout.read()).decode()
            return "".join(self.lines) + out, await self.process.wait()


@pytest.fixture
async def start(tmp_path):
    """Starts proxies; they are gone after the test."""
    processes = []

    async def start(*arguments, **environment):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rollcast", "proxy", "--port", "0", *arguments,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT | environment, cwd=tmp_path,
        )  # fmt: skip
        processes.append(process)
        command = Command(process)
        command.url = (await command.until(r"give callers (http://\S+)/v1 as"))[1]
        return command

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()


def chat(server, **fields):
    return {"model": server.model, "messages": [{"role": "user", "content": "What is 2 + 2?"}], **fields}


async def post(session, url, body, path="/v1/chat/completions", **headers):
    async with session.post(url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_it_passes_on_and_ends_with_a_sum(start):
    """It prints where callers go, passes on, and at SIGTERM says what passed."""
    async with OpenAIServer("Four.") as server, aiohttp.ClientSession() as session:
        proxy = await start("--upstream", server.url)
        assert await post(session, proxy.url, chat(server)) == await post(session, server.url, chat(server))
        await proxy.until("Ctrl-C ends it")
        proxy.process.send_signal(signal.SIGTERM)
        out, code = await proxy.rest()
    assert code == 0
    assert out.splitlines()[-1] == "1 request"
    assert len(out.splitlines()) == 3


async def test_it_shows_and_records(start, tmp_path):
    """With `--show` and `--record` a chain is seen here and afterwards, with its tokens."""
    async with OpenAIServer("Twelve and a half.") as server, aiohttp.ClientSession() as session:
        proxy = await start(
            "--upstream",
            server.url,
            "--show",
            "1",
            "--record",
            "tokens",
            "--reward-token",
            "pay",
            "--record-dir",
            "records",
        )
        for _ in range(2):
            await post(session, proxy.url, chat(server), **{"X-Session-ID": "a"})
        await post(
            session,
            proxy.url,
            {"session": "a", "reward": 0.5},
            "/rollcast/reward",
            Authorization="Bearer pay",
        )
        await proxy.until("Twelve and a half")
        proxy.process.send_signal(signal.SIGINT)
        out, code = await proxy.rest()
    assert code == 0, out
    assert "2 watched" in out
    assert "What is 2 + 2?" in out  # a chain is shown from its start
    assert "joined at" not in out
    assert "training" not in out
    assert "recorded: " in out
    shown = CliRunner().invoke(
        app, ["show", "latest", "--chain", "chain_0", "--record-dir", str(tmp_path / "records")]
    )
    assert "Twelve and a half." in shown.output
    assert "0.5" in shown.output


async def test_who_looks_makes_a_call_a_stream(start):
    """With `--serve` calls go through as they are until a client looks; then their tokens are seen."""
    async with OpenAIServer("Four.") as server, aiohttp.ClientSession() as session:
        proxy = await start("--upstream", server.url, "--serve", "0", "--no-color")
        page = (await proxy.until(r"rollcast watch (ws://\S+)"))[1]
        for _ in range(2):
            await post(session, proxy.url, chat(server), "/chains/mine/v1/chat/completions")
        assert not server.generations[-1].json.get("stream")
        seen = asyncio.Event()

        async def look():
            async with WebSocketStreamingClient(page) as client:
                async for event in client:
                    if event.event_type == "llm_generation_chunk":
                        seen.set()

        looking = asyncio.create_task(look())
        async with asyncio.timeout(60):
            # Who comes while a call is under way sees that one when it is whole; the next is a stream.
            while not (seen.is_set() and server.generations[-1].json.get("stream")):
                await post(session, proxy.url, chat(server), "/chains/mine/v1/chat/completions")
        assert server.generations[-1].json["stream"] is True
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


@contextlib.asynccontextmanager
async def hub_that_listens():
    """A hub, what it got, and the variables of the processes that report to it."""
    manager, seen = StreamingManager(publish=False), EventCapture()
    manager.add_observer(seen)
    settings = ServerSettings(tokens=(Token("a-secret", ("read", "control", "publish")),))
    async with Hub(WebSocketStreamingServer("127.0.0.1", 0, settings=settings), manager) as hub:
        yield hub, seen, {"ROLLCAST_HUB": hub.server.url, "ROLLCAST_HUB_TOKEN": "a-secret"}
    await manager.aclose()


@pytest.mark.parametrize("shared", [False, True])
async def test_several_proxies_report_to_one_hub(start, shared):
    """A session that goes through two proxies is a chain at each, and both name it; with one run id they are chains of one run."""
    async with hub_that_listens() as (hub, seen, variables), OpenAIServer("Four.") as server:
        together = {"ROLLCAST_RUN_ID": "the-training"} if shared else {}
        proxies = [
            await start("--upstream", server.url, **variables, **together, ROLLCAST_SOURCE=f"proxy-{number}")
            for number in (1, 2)
        ]
        async with aiohttp.ClientSession() as session:
            for number in range(4):  # as a router without affinity sends them
                await post(session, proxies[number % 2].url, chat(server), **{"X-Session-ID": "a"})
            for proxy in proxies:
                await post(session, proxy.url, chat(server), "/chains/mine/v1/chat/completions")
        client = WebSocketStreamingClient(hub.server.url, token="a-secret")
        async with asyncio.timeout(60):
            while len(seen.of("llm_generation_end")) < 6:
                await asyncio.sleep(0.01)
            parts = [
                (row["session"], row["source"], row["step"])
                async for answer in client.query("chains", filter={"session": "a"})
                for row in answer.rows
            ]
        assert sorted(parts) == [("a", "proxy-1", 2), ("a", "proxy-2", 2)]
        for proxy in proxies:
            proxy.process.send_signal(signal.SIGTERM)
            assert (await proxy.rest())[1] == 0
        async with asyncio.timeout(60):
            while len(seen.of("run_end")) < 2:
                await asyncio.sleep(0.01)
        assert [row["refused"] for row in hub.rows()] == [{}, {}]
    seen.check()
    assert len({event.run_id for event in seen.events}) == (1 if shared else 2)
    chains = sorted(
        (event.source, event.data["row"]["session"], event.chain_id) for event in seen.of("chain_start")
    )
    at = "@proxy-{}" if shared else ""
    assert chains == [
        (f"proxy-{number}", session, chain + at.format(number))
        for number in (1, 2)
        for session, chain in (("a", "chain_0"), ("mine", "mine"))
    ]
    assert [
        event.data["steps"] for event in seen.of("chain_end") if event.chain_id.startswith("chain_0")
    ] == [2, 2]


async def test_sigterm_under_load(start):
    """At SIGTERM every answer that has begun is given to its end."""
    engine = await Engine().start()
    more = asyncio.Event()
    engine.plays = lambda asked: [head(), chunk(b"one"), more.wait(), chunk(b"two"), chunk(b"")]
    proxy = await start("--upstream", engine.url)
    calls = [asyncio.create_task(call(proxy.url.replace("localhost", "127.0.0.1"), b"{}")) for _ in range(64)]
    async with asyncio.timeout(60):
        while len(engine.asked) < 64:
            await asyncio.sleep(0.001)
    proxy.process.send_signal(signal.SIGTERM)
    await proxy.until("64 answers to finish")
    more.set()
    assert [(got.body, got.whole) for got in await asyncio.gather(*calls)] == [(b"onetwo", True)] * 64
    assert (await proxy.rest())[1] == 0
    await engine.stop()


async def test_a_probe_says_what_the_engine_gives(start):
    """`--probe` names what is there and what is not."""
    async with OpenAIServer("Four.") as server:
        proxy = await start("--upstream", server.url, "--probe")
        out = [
            (await proxy.until(r"/v1/completions: .*"))[0],
            (await proxy.until(r"/v1/chat/completions: .*"))[0],
        ]
    assert all("token ids, log-probabilities (raw" in line for line in out)
    async with OpenAIServer("Four.", dialect="hosted") as server:
        proxy = await start("--upstream", server.url, "--probe")
        line = (await proxy.until(r"/v1/chat/completions: .*"))[0]
    assert line == "/v1/chat/completions: no token ids, no log-probabilities"


async def test_an_engine_that_is_not_there_yet(start):
    """It starts without its engine, and says so in a line."""
    proxy = await start("--upstream", "http://127.0.0.1:9")
    assert "502" in (await proxy.until("the engine is not there yet")).string
    assert (await call(proxy.url.replace("localhost", "127.0.0.1"), b"{}")).line.startswith("HTTP/1.1 502")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--upstream"),
        (["--upstream", "ftp://a"], "scheme"),
        (["--upstream", "http://a/v1"], "leave out /v1"),
        (["--upstream", "http://a", "--host", "0.0.0.0"], "--listen-token"),
        (["--upstream", "http://a", "--idle", "0"], "more than 0"),
        (["--upstream", "http://a", "--record", "much"], "much"),
        (["--upstream", "http://a", "--serve", "x"], "--serve"),
        (["--upstream", "http://a", "--origin", "http://b"], "--serve"),
    ],
)
def test_bad_input(arguments, sentence, tmp_path):
    """A wrong option is one sentence and exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "rollcast", "proxy", *arguments],
        capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
