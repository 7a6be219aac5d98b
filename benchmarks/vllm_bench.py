"""`make bench-vllm`: compares an agent's chains, streamed, to vLLM's own `AsyncLLM.generate` for the same prompts.

It needs the environment of `make test-vllm`. One engine serves both, in turns; the model is tiny, so that the code around
the model matters most. Both are greedy, so that both make the same tokens. A callback sees each of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import about_machine
from benchmarks.measure import estimate, paired, ratios

CHAINS = 16
TOKENS = 256
MESSAGES = [{"role": "user", "content": "What is 347 * 28 + 9?"}]
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "TORCH_COMPILE_DISABLE": "1"}


def make_model(folder: Path, *, large: bool = False) -> str:
    """A random Qwen3 with the tokenizer of the embedded model.

    Args:
        folder: where it is saved.
        large: seven layers that are 512 wide, about what two cores can train, instead of four that are 256 wide.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rollcast.models.tiny.backend import CHECKPOINT

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=json.loads((CHECKPOINT / "config.json").read_text())["vocab_size"],
        hidden_size=512 if large else 256,
        intermediate_size=1536 if large else 512,
        num_hidden_layers=7 if large else 4,
        num_attention_heads=8 if large else 4,
        num_key_value_heads=8 if large else 2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        eos_token_id=2,
        bos_token_id=None,
        pad_token_id=None,
        initializer_range=0.1,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINT / name, folder / name)
    return str(folder)


def bare(backend: Any) -> float:
    """Measure tokens per second of `AsyncLLM.generate` in its own event loop, with text and log-probabilities."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = backend._engine
    ids = backend.renderer.render(MESSAGES, [])

    async def one() -> int:
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=TOKENS,
            logprobs=0,
            output_kind=RequestOutputKind.DELTA,
            stop_token_ids=engine._end_ids,
        )
        count, texts, logprobs = 0, [], []
        async for output in engine._llm.generate({"prompt_token_ids": ids}, parameters, next(engine._names)):
            completion = output.outputs[0]
            texts.append(completion.text)
            logprobs += [
                row[token].logprob
                for row, token in zip(completion.logprobs, completion.token_ids, strict=True)
            ]
            count += len(completion.token_ids)
        return count

    async def all_at_once() -> int:
        return sum(await asyncio.gather(*(one() for _ in range(CHAINS))))

    start = time.perf_counter()
    count = asyncio.run(engine.ask(all_at_once()))
    seconds = time.perf_counter() - start
    assert count == CHAINS * TOKENS, f"{count} tokens: the model's greedy generation ends early"
    return count / seconds


def ours(agent: Any) -> float:
    """Measure tokens per second of an agent's chains, with streaming on."""
    seen: list[str] = []
    start = time.perf_counter()
    result = agent.run(
        max_steps=1,
        start_messages=MESSAGES,
        num_chains=CHAINS,
        enable_streaming=True,
        streaming_callback=seen.append,
        sampling={"max_tokens": TOKENS, "temperature": 0.0},
    )
    seconds = time.perf_counter() - start
    count = sum(sum(t.loss_mask) for t in result)
    assert seen
    assert count == CHAINS * TOKENS, f"{count} tokens: the chains ended early"
    return count / seconds


def main() -> None:
    """Print both, and the ratio with its interval."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from rollcast import BaseAgent
    from rollcast.models.vllm import AsyncVLLMBackend

    with tempfile.TemporaryDirectory() as folder:
        backend = AsyncVLLMBackend(
            make_model(Path(folder)), dtype="float32", enforce_eager=True, max_num_seqs=32
        )
        agent = BaseAgent("model", backend=backend)
        trials = {"bare": lambda: bare(backend), "ours": lambda: ours(agent)}
        results = paired(trials, options.rounds)
        about = about_machine()
        print(
            f"{about['cpu']}, {about['cores']} cores; load {about['load']}; {CHAINS} chains of {TOKENS} tokens"
        )
        for name, rates in results.items():
            found = estimate(rates)
            print(f"{name}: {found.value:.0f} tokens/s [{found.low:.0f}, {found.high:.0f}]")
        found = estimate(ratios(results["ours"], results["bare"]))
        print(f"ratio: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], target >= 0.95")
        asyncio.run(backend.close())


if __name__ == "__main__":
    main()
