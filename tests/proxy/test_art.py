"""ART 0.5's client for real, through a watched proxy: `make attach-art`, which gives it an environment of its own."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from rollcast.testing import OpenAIServer
from rollcast.testing.openai_server import ServedAnswer

BIN = Path(os.environ.get("ROLLCAST_TEST_ART", "")).absolute()
DRIVER = Path(__file__).parent / "environments" / "rollcast_art.py"
pytestmark = [
    pytest.mark.skipif("ROLLCAST_TEST_ART" not in os.environ, reason="make attach-art runs it"),
    pytest.mark.timeout(600),
]


def answer(request):
    """Twice the first number of the question."""
    words = request.json["messages"][-1]["content"].split()
    return ServedAnswer(f"It is {2 * int(next(word for word in words if word.isdigit()))}.")


async def gathered(folder, engine, model, endpoint):
    """The trajectories that ART gathers from an endpoint, whole: messages, choices with ids and log-probabilities, rewards."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "python"), str(DRIVER), engine, model, endpoint,
        env={**os.environ, "PYTHONPATH": "", "WANDB_MODE": "disabled", "WEAVE_DISABLED": "true"},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    (line,) = [line for line in out.decode().splitlines() if line.startswith("ROLLOUTS ")]
    return json.loads(line.removeprefix("ROLLOUTS "))


async def test_art_is_watched_and_unchanged(stage, tmp_path):
    """What ART gathers is the same with and without the proxy, to the last field; each of its rollouts is a chain with ids."""
    async with OpenAIServer(answer) as server:
        engine = server.url + "/v1"
        direct = await gathered(tmp_path, engine, server.model, engine)
        proxy = await stage.watch(server.url)
        passed = await gathered(tmp_path, engine, server.model, proxy.url + "/v1")
    assert passed == direct
    assert [each["reward"] for each in passed] == [1.0] * 5
    choices = [choice for each in passed for choice in each["messages_and_choices"][1::2]]
    assert len(await stage.seen("chain_start")) == 5
    assert stage.watching.counts.turned == 9  # all but the first
    ends = await stage.seen("llm_generation_end")
    assert sorted(end.data["content"] for end in ends) == sorted(
        choice["message"]["content"] for choice in choices
    )
    seen = [token for chunk in await stage.seen("llm_generation_chunk") for token in chunk.data["token_ids"]]
    assert sorted(seen) == sorted(token for choice in choices for token in choice["token_ids"])
    await stage.end()
