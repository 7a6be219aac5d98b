"""What trainers send, made from their sources, comes back as the engine gives it. The `openai` SDK is run for real."""

import json

import openai
import pytest

from rollcast.testing import OpenAIServer

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 2 + 2?"}]
IDS = [151644, 872, 198, 3838, 374]

# By trainer: the path, the headers and the fields that its code sends.
SENT = {
    # trl 1.16.0, experimental/async_grpo/async_rollout_worker.py::_generate_one_turn
    "TRL AsyncGRPO": ("/v1/completions", {}, {
        "prompt": IDS, "max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "n": 1,
        "return_token_ids": True, "logprobs": 0, "seed": 7_000_000_000_000_000_000,
    }),
    # verifiers 0.4.0, v1/clients/eval.py: the harness's body as it is, and its session
    "verifiers": ("/v1/chat/completions", {"X-Session-ID": "trace-1"}, {
        "messages": MESSAGES, "temperature": 0.7, "max_completion_tokens": 64,
    }),
    # openenv 0.10.0, core/harness/capture/upstream.py
    "OpenEnv": ("/v1/chat/completions", {}, {
        "messages": MESSAGES, "stream": False, "logprobs": True, "top_logprobs": 0, "return_token_ids": True,
    }),
    # areal 1.0.4, engine/vllm_remote.py: a flat payload
    "AReaL": ("/v1/completions", {}, {
        "prompt": IDS, "top_p": 1.0, "top_k": -1, "max_tokens": 64, "temperature": 1.0, "stop_token_ids": [1], "return_tokens_as_token_ids": True,
        "logprobs": 0, "stream": False,
    }),
    # nemo-gym 0.4.0, responses_api_models/vllm_model/app.py with return_token_id_information
    "NeMo-Gym": ("/v1/chat/completions", {}, {
        "messages": MESSAGES, "logprobs": True, "return_tokens_as_token_ids": True, "temperature": 1.0,
    }),
}  # fmt: skip


@pytest.mark.parametrize("trainer", SENT)
async def test_a_trainer_gets_what_the_engine_gives(stage, trainer):
    """Status, headers and body are the engine's, and from the second call on the tokens are seen while they are sampled."""
    path, headers, fields = SENT[trainer]
    headers = {name.replace("-", "_"): value for name, value in headers.items()}
    async with OpenAIServer("It is four.") as server:
        proxy = await stage.watch(server.url)
        for _ in range(3):
            body = {"model": server.model, **fields}
            assert await stage.post(proxy.url, body, path, **headers) == await stage.post(
                server.url, body, path, **headers
            )
        assert stage.watching.counts.turned == 2
        ends = await stage.seen("llm_generation_end")
        assert [end.data["content"] for end in ends] == ["It is four."] * 3
        await stage.end()


@pytest.mark.parametrize("stream", [False, True])
async def test_the_openai_sdk(stage, stream):
    """The SDK gets the same objects through the proxy, and its conversation is one chain."""
    async with OpenAIServer("It is four.") as server:
        proxy = await stage.watch(server.url)

        async def talk(url):
            said = []
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                messages = list(MESSAGES)
                for _ in range(3):
                    answer = await client.chat.completions.create(
                        model=server.model, messages=messages, stream=stream
                    )
                    if stream:
                        chunks = [chunk async for chunk in answer]
                        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                        said += [chunk.model_dump_json() for chunk in chunks]
                    else:
                        text = answer.choices[0].message.content
                        said.append(answer.model_dump_json())
                    messages += [
                        {"role": "assistant", "content": text},
                        {"role": "user", "content": "And then?"},
                    ]
            return said

        assert await talk(proxy.url) == await talk(server.url)
        assert len(await stage.seen("chain_start")) == 1
        assert len(await stage.seen("llm_generation_end")) == 3
        assert json.loads(server.generations[0].body)["messages"] == MESSAGES
        await stage.end()
