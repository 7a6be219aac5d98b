"""SkyRL 0.4's inference client for real, through a watched proxy: `make attach-skyrl`, which gives it an environment of its own."""

import asyncio
import json
import os
import subprocess
from itertools import chain
from pathlib import Path

import pytest

from rollcast.testing import OpenAIServer
from rollcast.testing.openai_server import ServedAnswer

BIN = Path(os.environ.get("ROLLCAST_TEST_SKYRL", "")).absolute()
DRIVER = Path(__file__).parent / "environments" / "rollcast_skyrl.py"
pytestmark = [
    pytest.mark.skipif("ROLLCAST_TEST_SKYRL" not in os.environ, reason="make attach-skyrl runs it"),
    pytest.mark.timeout(600),
]


def answer(request):
    """Three ids that follow from the prompt."""
    last = request.json["token_ids"][-1]
    return ServedAnswer(["a", "b", "c"], token_ids=[[last + 10], [last + 20], [last + 30]])


async def generated(folder, engine, model, proxy):
    """What its client returns: ids, log-probabilities, reasons and texts."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "python"), str(DRIVER), engine, model, proxy,
        env={**os.environ, "PYTHONPATH": ""}, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    (line,) = [line for line in out.decode().splitlines() if line.startswith("ROLLOUTS ")]
    return json.loads(line.removeprefix("ROLLOUTS "))


async def test_skyrl_is_watched_and_unchanged(stage, tmp_path):
    """What SkyRL's client returns is the same with and without the proxy; each session is a chain with ids and log-probabilities."""
    async with OpenAIServer(answer) as server:
        direct = await generated(tmp_path, server.url, server.model, server.url)
        proxy = await stage.watch(server.url)
        passed = await generated(tmp_path, server.url, server.model, proxy.url)
    assert passed == direct
    first, second, sample = passed
    assert first["response_ids"][2] == [15, 25, 35]
    assert len(first["response_logprobs"][2]) == 3
    assert stage.watching.counts.turned >= 3  # the second turns, if all of the first were sent at once
    starts = await stage.seen("chain_start")
    sessions = {start.data["row"]["session"] for start in starts}
    assert sessions == {"trajectory-0", "trajectory-1", "trajectory-2", "sampler"}
    assert len(starts) == 4
    chunks = [chunk.data for chunk in await stage.seen("llm_generation_chunk")]
    trained = [*first["response_ids"], *second["response_ids"], sample["sequences"][0]["tokens"]]
    assert sorted(token for chunk in chunks for token in chunk["token_ids"]) == sorted(
        chain.from_iterable(trained)
    )
    values = [*first["response_logprobs"], *second["response_logprobs"], sample["sequences"][0]["logprobs"]]
    assert sorted(value for chunk in chunks for value in chunk["logprobs"]) == sorted(
        chain.from_iterable(values)
    )
    await stage.end()
