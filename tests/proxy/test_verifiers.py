"""verifiers 0.4 for real, through a watched proxy: `make attach-verifiers`, which gives it an environment of its own."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from rollcast.testing import OpenAIServer
from rollcast.testing.openai_server import ServedAnswer

BIN = Path(os.environ.get("ROLLCAST_TEST_VERIFIERS", "")).absolute()
pytestmark = [
    pytest.mark.skipif("ROLLCAST_TEST_VERIFIERS" not in os.environ, reason="make attach-verifiers runs it"),
    pytest.mark.timeout(900),
]


def answer(request):
    """Twice the first number of the question."""
    said = request.json["messages"][-1]["content"] if "messages" in request.json else request.json["prompt"]
    words = said.replace("?", "").split()
    return ServedAnswer(f"It is {2 * int(next(word for word in words if word.isdigit()))}.")


async def evaluated(base_url, model, folder):
    """Run `vf-eval` and return, by task, what its two rollouts came to, and the ids of all rollouts."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "vf-eval"), "rollcast-sums", "-m", model, "--no-push", "-r", "2", "-o", str(folder),
        "--env.agent.harness.id", "null", "--env.agent.runtime.type", "subprocess",
        "--client.base-url", base_url, "--client.api-key-var", "NO_KEY",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent / "environments"), "PATH": f"{BIN}:{os.environ['PATH']}"},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    (found,) = folder.glob("*/traces.jsonl")
    episodes = [json.loads(line) for line in found.read_text().splitlines()]
    traces = [trace for episode in episodes for trace in episode["traces"]]
    assert all(not trace.get("errors") for trace in traces)
    came_to = sorted(
        (trace["task"]["data"]["idx"], json.dumps(trace["rewards"], sort_keys=True)) for trace in traces
    )
    return came_to, {trace["id"] for trace in traces}


async def test_vf_eval_is_watched_and_unchanged(stage, tmp_path):
    """Each rollout is a chain, named by its id, seen token by token; its rewards are those without a proxy."""
    (tmp_path / "direct").mkdir()
    (tmp_path / "passed").mkdir()
    async with OpenAIServer(answer) as server:
        direct, _ = await evaluated(server.url + "/v1", server.model, tmp_path / "direct")
        proxy = await stage.watch(server.url)
        passed, ids = await evaluated(proxy.url + "/v1", server.model, tmp_path / "passed")
        assert passed == direct
        assert len(passed) == 8
        starts = await stage.seen("chain_start")
        assert {start.data["row"]["session"] for start in starts} == ids
        assert len(await stage.seen("llm_generation_chunk")) == 3 * 8  # its harness streams
        ends = await stage.seen("llm_generation_end")
        assert sorted(end.data["content"] for end in ends) == sorted(
            f"It is {2 * i}." for i in range(4) for _ in range(2)
        )
        await stage.end()
