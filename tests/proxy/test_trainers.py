"""What trainers send, made from their sources, comes back as the engine gives it. The `openai` SDK is run for real."""

import json
import re

import openai
import pytest

from rollcast.testing import OpenAIServer, ServedAnswer

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 2 + 2?"}]
IDS = [151644, 872, 198, 3838, 374]
GENERATE = "/inference/v1/generate"

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
    # skyrl 0.4.0, backends/skyrl_train/inference_servers/remote_inference_client.py::RemoteGenerateClient.generate, with the
    # sampling of engine_utils.py::get_vllm_sampling_params
    "SkyRL": (GENERATE, {"X-Session-ID": "trajectory-1"}, {
        "sampling_params": {
            "min_tokens": 1, "skip_special_tokens": True, "include_stop_str_in_output": True, "max_tokens": 64, "temperature": 1.0,
            "top_p": 1.0, "top_k": -1, "min_p": 0.0, "logprobs": 1, "stop": None,
        },
        "token_ids": IDS, "cache_salt": "3",
    }),
    # the same, RemoteInferenceClient.sample, by which SkyRL serves Tinker's clients
    "SkyRL for Tinker": (GENERATE, {"X-Session-ID": "sampler-1"}, {
        "sampling_params": {"n": 1, "logprobs": 0, "output_kind": 2, "prompt_logprobs": None, "temperature": 1.0, "max_tokens": 64},
        "token_ids": IDS,
    }),
    # art 0.5.23, model.py::Model._default_chat_completion_extra_body, and pipeline_trainer/yes_no_maybe_pipeline.py::eval_fn
    "ART": ("/v1/chat/completions", {}, {
        "messages": MESSAGES, "max_tokens": 64, "n": 1, "return_token_ids": True, "return_tokens_as_token_ids": True,
        "nvext": {"extra_fields": ["engine_data"]}, "chat_template_kwargs": {"preserve_thinking": True},
    }),
    # agentlightning 1.0.2, server/proxy.py::ProxyRouter.prepare_body in its modes `train` and `val`
    "agent-lightning": ("/v1/chat/completions", {}, {
        "messages": MESSAGES, "temperature": 1.0, "return_token_ids": True, "logprobs": True,
    }),
    "agent-lightning's validation": ("/v1/chat/completions", {}, {
        "messages": MESSAGES, "temperature": 0.7, "return_token_ids": True,
    }),
}  # fmt: skip


def timeless(answer):
    """The answer without the second in which it was made, which streams of `/inference/v1/generate` do not have."""
    status, headers, body = answer
    return status, headers, re.sub(rb'"created":[0-9]+', b'"created":0', body)


@pytest.mark.parametrize("trainer", SENT)
async def test_a_trainer_gets_what_the_engine_gives(stage, proxies, trainer):
    """Status, headers and body are the engine's, watched or not, and from the second call on the tokens are seen while they are sampled."""
    path, headers, fields = SENT[trainer]
    names = {name.replace("-", "_"): value for name, value in headers.items()}
    alike = timeless if path == GENERATE else tuple
    async with OpenAIServer("It is four.") as server:
        body = {"model": server.model, **fields}
        direct = await stage.post(server.url, body, path, **names)
        assert await stage.post((await proxies(server.url)).url, body, path, **names) == direct
        proxy = await stage.watch(server.url)
        for _ in range(3):
            assert alike(await stage.post(proxy.url, body, path, **names)) == alike(direct)
        assert stage.watching.counts.turned == 2
        ends = await stage.seen("llm_generation_end")
        assert [end.data["content"] for end in ends] == ["" if path == GENERATE else "It is four."] * 3
        assert [end.data["completion_tokens"] for end in ends] == [3] * 3
        rows = [start.data.get("row", {}) for start in await stage.seen("chain_start")]
        assert {row.get("session") for row in rows} == {headers.get("X-Session-ID")}
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


async def test_ids_without_text_are_shown(stage):
    """Of `/inference/v1/generate` somebody sees what there is: ids and log-probabilities, one by one."""
    path, _, fields = SENT["SkyRL"]
    async with OpenAIServer("It is four.") as server:
        proxy = await stage.watch(server.url)
        for _ in range(2):
            _, _, body = await stage.post(proxy.url, {"model": server.model, **fields}, path)
        (choice,) = json.loads(body)["choices"]
        first, *seen = [event.data for event in await stage.seen("llm_generation_chunk")]
        assert first["token_ids"] == choice["token_ids"]
        assert [each["token_ids"] for each in seen] == [[token] for token in choice["token_ids"]]
        entries = choice["logprobs"]["content"]
        assert [each["logprobs"] for each in seen] == [[entry["logprob"]] for entry in entries]
        await stage.end()


async def test_the_answers_of_two_adapters_name_their_own_model(stage):
    """Streams of `/inference/v1/generate` name no model, so that which a whole answer has is learnt for each model."""
    path, _, fields = SENT["SkyRL"]

    def answered(request):
        return ServedAnswer("a" if request.json["model"] == "scripted" else "b c")

    async with OpenAIServer(answered) as server:
        server.adapters.add("adapter")
        proxy = await stage.watch(server.url)
        for model in ("scripted", "adapter", "scripted", "adapter"):
            body = {"model": model, **fields}
            answers = [await stage.post(url, body, path) for url in (proxy.url, server.url)]
            assert timeless(answers[0]) == timeless(answers[1])
        assert stage.watching.counts.turned == 2
        await stage.end()


async def test_what_arts_own_engine_streams_in_parts_is_left_whole(stage):
    """ART's vLLM says which policy sampled which tokens, in a stream by parts; the caller gets what a whole answer says."""
    path, _, fields = SENT["ART"]
    whole = {
        "id": "c", "object": "chat.completion", "created": 1, "model": "scripted",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "a b"}, "finish_reason": "stop", "token_ids": [1, 2],
            "policy_token_spans": [{"start_token": 0, "end_token": 2, "policy_version": 3}],
        }],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }  # fmt: skip
    common = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    chunks = [
        common | {"choices": [{
            "index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason, "token_ids": [at + 1],
            "policy_token_spans": [{"start_token": at, "end_token": at + 1, "policy_version": 3}],
        }]}
        for at, (text, reason) in enumerate([("a", None), (" b", "stop")])
    ] + [common | {"choices": [], "usage": whole["usage"]}]  # fmt: skip

    def answered(request):
        return ServedAnswer(chunks=chunks if request.json.get("stream") else [whole])

    async with OpenAIServer(answered) as server:
        proxy = await stage.watch(server.url)
        for _ in range(3):
            body = {"model": server.model, **fields}
            assert await stage.post(proxy.url, body, path) == await stage.post(server.url, body, path)
        assert [bool(request.json.get("stream")) for request in server.generations].count(True) == 1
        assert [end.data["content"] for end in await stage.seen("llm_generation_end")][-1] == "a b"
        await stage.end()
