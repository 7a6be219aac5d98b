"""agent-lightning 1.0 for real, through a watched proxy: `make attach-agent-lightning`, which gives it an environment of its own."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from pathlib import Path

import aiohttp
import pytest

from rollcast.testing import OpenAIServer
from rollcast.testing.openai_server import ServedAnswer

BIN = Path(os.environ.get("ROLLCAST_TEST_AGENT_LIGHTNING", "")).absolute()
ENVIRONMENTS = Path(__file__).parent / "environments"
pytestmark = [
    pytest.mark.skipif(
        "ROLLCAST_TEST_AGENT_LIGHTNING" not in os.environ, reason="make attach-agent-lightning runs it"
    ),
    pytest.mark.timeout(600),
]


def answer(request):
    """Twice the first number of the question."""
    words = request.json["messages"][-1]["content"].split()
    return ServedAnswer(f"It is {2 * int(next(word for word in words if word.isdigit()))}.")


@contextlib.asynccontextmanager
async def running(folder, *command):
    """A program of agent-lightning's; it is stopped at the end."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "PYTHONPATH": str(ENVIRONMENTS)}, cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def agent_lightning(folder, model):
    """Its server, and its controller with the local runner, one rollout at a time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, hydra = f"http://127.0.0.1:{port}", ("hydra.run.dir=.", "hydra.output_subdir=null")
    serve = (
        str(BIN / "agl-server"),
        "host=127.0.0.1",
        f"port={port}",
        f"default_proxy.model_name={model}",
        *hydra,
    )
    control = (
        str(BIN / "agl-controller"), "runner_type=local", f"agl_server.url={url}", "local_runner.maximum_size=1",
        "local_runner.poll_interval=0.1", *hydra,
    )  # fmt: skip
    async with running(folder, *serve) as server, aiohttp.ClientSession(trust_env=False) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url + "/healthz") as health:
                    assert health.status == 200
                    break
            assert server.returncode is None
            await asyncio.sleep(0.1)
        async with running(folder, *control):
            yield url


async def rolled_out(folder, agl_url, model, endpoint):
    """What its rollout manager gets of a batch: states, rewards, and the triplets to train on."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "python"), str(ENVIRONMENTS / "rollcast_agl.py"), agl_url, model, endpoint,
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out = (await process.communicate())[0].decode()
    assert process.returncode == 0, out
    (line,) = [line for line in out.splitlines() if line.startswith("ROLLOUTS ")]
    return sorted(json.loads(line.removeprefix("ROLLOUTS ")), key=lambda rollout: rollout["number"])


async def test_agent_lightning_is_watched_and_unchanged(stage, tmp_path):
    """What agent-lightning trains on is the same with and without the proxy; each of its rollouts is a chain with ids."""
    async with OpenAIServer(answer) as server, agent_lightning(tmp_path, server.model) as agl_url:
        direct = await rolled_out(tmp_path, agl_url, server.model, server.url + "/v1")
        proxy = await stage.watch(server.url)
        passed = await rolled_out(tmp_path, agl_url, server.model, proxy.url + "/v1")
    assert passed == direct
    assert [(each["state"], each["reward"], len(each["triplets"])) for each in passed] == [
        ("succeeded", 1.0, 2)
    ] * 4
    assert all(
        response["token_ids"] and response["log_probs"]
        for each in passed
        for _, response, _ in each["triplets"]
    )
    assert len(await stage.seen("chain_start")) == 4
    ends = await stage.seen("llm_generation_end")
    assert sorted(end.data["content"] for end in ends) == sorted(f"It is {2 * i}." for i in (3, 6, 5, 10) * 2)
    assert stage.watching.counts.turned == 7  # all but the first
    seen = [token for chunk in await stage.seen("llm_generation_chunk") for token in chunk.data["token_ids"]]
    trained = [
        token for each in passed for _, response, _ in each["triplets"] for token in response["token_ids"]
    ]
    assert sorted(seen) == sorted(trained)
    await stage.end()
