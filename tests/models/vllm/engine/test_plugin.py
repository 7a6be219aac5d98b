"""vLLM loads the plugin by itself: an engine in another process publishes to a hub, and knows nothing of Rollcast."""

import asyncio
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rollcast import StreamingManager, WebSocketStreamingServer
from rollcast.fleet import Hub
from rollcast.serve import ServerSettings, Token
from rollcast.testing import capture_events

from .conftest import OPTIONS

# The engine's core is a process of its own here, as it is by default.
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams

def main():
    llm = LLM(model={model!r}, seed=0, logprobs_mode="processed_logprobs", **{options!r})
    params = SamplingParams(n=2, max_tokens=24, temperature=1.0, seed=7, logprobs=0)
    outputs = llm.generate(["What is 12 * 34?", "Say something."], params, use_tqdm=False)
    found = [[list(s.token_ids), s.text, [row[i].logprob for row, i in zip(s.logprobs, s.token_ids)]]
             for output in outputs for s in output.outputs]
    print("RESULT", json.dumps([found, sorted(name for name in sys.modules if name.partition(".")[0] == "rollcast")]))

if __name__ == "__main__":
    main()
"""
TOKEN = "a-secret"


def run(script, **environment):
    """What the engine's caller got, and which modules of ours the process has."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ROLLCAST_HUB")}
    program = subprocess.run(
        [sys.executable, str(script)],
        env={
            **clean,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[4] / "src"), clean.get("PYTHONPATH", "")]
            ),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = [line for line in program.stdout.splitlines() if line.startswith("RESULT ")] or [
        program.stderr[-4000:]
    ]
    assert program.returncode == 0, program.stderr[-4000:]
    assert "steps aside" not in program.stderr
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture
def script(model, environment, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(PROGRAM.format(model=str(model), options=OPTIONS))
    return path


def test_vllm_finds_the_plugin():
    """By the entry point of the installed package."""
    (point,) = {point.value for point in entry_points(group="vllm.general_plugins", name="rollcast")}
    assert point == "rollcast_vllm:register"


async def test_an_engine_publishes_what_it_samples(script):
    """With a hub in the environment its caller gets the same as without, and the hub has every token; without one nothing of ours is loaded."""
    without, ours = await asyncio.to_thread(run, script)
    assert ours == []
    settings = ServerSettings(tokens=(Token(TOKEN, ("read", "publish")),))
    seen = StreamingManager(publish=False)
    async with Hub(WebSocketStreamingServer(port=0, settings=settings), seen) as hub:
        with capture_events(seen) as capture:
            result, ours = await asyncio.to_thread(
                run, script, ROLLCAST_HUB=hub.server.url, ROLLCAST_HUB_TOKEN=TOKEN
            )
            async with asyncio.timeout(60):
                while not capture.of("run_end"):
                    await asyncio.sleep(0.05)
        capture.check()
    assert result == without
    assert "rollcast.attaching.vllm_engine" in ours
    chains = []
    for start in capture.of("chain_start"):
        chunks = capture.of("llm_generation_chunk", start.chain_id)
        ids, logprobs = (
            [x for chunk in chunks for x in chunk.data[name]] for name in ("token_ids", "logprobs")
        )
        chains.append([ids, "".join(chunk.data["content"] for chunk in chunks), logprobs])
    assert sorted(chains) == sorted(result)
    assert len(capture.of("run_start")) == 1
    assert len({start.group_id for start in capture.of("chain_start")}) == 2
