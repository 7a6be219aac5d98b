"""The streaming specification's Async vLLM example, with a model of that name in the working directory."""

import shutil

from rollcast import BaseAgent, StreamEventType
from rollcast.records import check_events
from rollcast.testing import capture_events


class YourAgent(BaseAgent):
    """Whatever a user derives."""


async def test_async_vllm_backend(model, environment, tmp_path, monkeypatch):
    """It streams token by token, with no option set."""
    shutil.copytree(model, tmp_path / "your-model")
    monkeypatch.chdir(tmp_path)
    # fmt: off
    agent = YourAgent(
        model_name="your-model",
        backend="async_vllm",
        # ... other args
    )
    # fmt: on
    async with agent:
        with capture_events(agent.streaming_manager) as capture:
            messages = [{"role": "user", "content": "What is 12 * 34?"}]
            result = await agent.run_async(1, messages, num_chains=2, enable_streaming=True, seed=1)
    check_events(capture.events)
    for trajectory in result:
        assert trajectory.error is None
        chunks = capture.of(StreamEventType.LLM_GENERATION_CHUNK, trajectory.chain_id)
        assert [i for chunk in chunks for i in chunk.data["token_ids"]] == trajectory.turns[0].token_ids
        assert len(chunks) > 1
