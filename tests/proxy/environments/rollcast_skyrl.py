"""Rollouts by the inference client of SkyRL 0.4. Its own interpreter runs this; see test_skyrl.py."""

import asyncio
import json
import sys

from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import RemoteInferenceClient


class Words:
    """Stands for a tokenizer: an id is a word."""

    def batch_decode(self, ids):
        return [" ".join(map(str, each)) for each in ids]


SAMPLING = {
    "min_tokens": 1, "skip_special_tokens": True, "include_stop_str_in_output": True, "max_tokens": 16, "temperature": 1.0,
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "logprobs": 1, "stop": None,
}  # fmt: skip


async def main(engine, model, proxy):
    """Two turns of three trajectories, as its generator asks for them, and a sample for a client of Tinker."""
    client = RemoteInferenceClient(
        proxy_url=proxy, server_urls=[engine], data_parallel_size=1, model_name=model, tokenizer=Words()
    )
    prompts, said = [[1, 2, 3], [1, 2, 3], [4, 5]], []
    sessions = [f"trajectory-{at}" for at in range(3)]
    for turn in range(2):
        batch = {
            "prompt_token_ids": prompts,
            "session_ids": sessions,
            "sampling_params": SAMPLING,
            "cache_salt": "0",
        }
        out = await client.generate(batch, model=model)
        said.append(out)
        prompts = [[*p, *ids, 90 + turn] for p, ids in zip(prompts, out["response_ids"], strict=True)]
    sample = {"prompt": {"chunks": [{"type": "encoded_text", "tokens": [7, 8]}]}, "session_id": "sampler"}
    said.append(
        await client.sample({"json": sample | {"sampling_params": {"max_tokens": 2}, "num_samples": 1}})
    )
    await client._get_generate_client().aclose()
    print("ROLLOUTS", json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
