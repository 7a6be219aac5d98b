"""Compares the transformers backend with streaming chains to a static batch of `model.generate` on the same prompts.

It runs on a GPU if there is one (a random model of 1.7 billion parameters in bfloat16, 64 chains), else on the CPU (25 million,
8 and 32 chains, two threads). Prompts have about 300 tokens and differ; every chain samples the same number of tokens.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.tokens import NoOp
from rollcast import BaseAgent
from rollcast.errors import MissingExtraError
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.tiny.backend import CHECKPOINT

try:
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, TextIteratorStreamer

    from rollcast.models.hf import TransformersBackend
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"torch", "transformers"}:
        raise
    raise MissingExtraError("the benchmark `backends`", "torch") from error

__all__ = ["run"]

COMMON: dict[str, Any] = {"max_position_embeddings": 4096, "tie_word_embeddings": True, "eos_token_id": None}
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "head_dim": 64,
}
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "head_dim": 128,
}
QUICK = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
}

THREADS = 2


class Setting(NamedTuple):
    """What is measured: chains at once, tokens per chain, rounds."""

    chains: int
    tokens: int
    rounds: int


def run(quick: bool) -> list[Figure]:
    """Measure tokens per second of all chains together."""
    gpu = torch.cuda.is_available() and not quick
    sizes, kv, vocabulary = (QUICK, 2, 512) if quick else (LARGE, 8, 32_000) if gpu else (SMALL, 4, 512)
    torch.manual_seed(0)
    config = Qwen3Config(**COMMON, **sizes, num_key_value_heads=kv, vocab_size=vocabulary)
    model: Any = Qwen3ForCausalLM(config).eval()
    if gpu:
        model = model.to("cuda", torch.bfloat16)
    if quick:
        settings = [Setting(2, 4, 1)]
    else:
        settings = [Setting(64, 128, 7)] if gpu else [Setting(8, 48, 5), Setting(32, 48, 5)]
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return [line for setting in settings for line in _at(model, setting)]
    finally:
        torch.set_num_threads(before)


def _at(model: Any, setting: Setting) -> list[Figure]:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.eos_token = None  # every chain samples to its limit
    with_agent = TransformersBackend(model, tokenizer, cache_bytes=_cache_bytes(model, setting))
    rows = [_question(i) for i in range(setting.chains)]
    prompts = [with_agent.renderer.render(row["messages"], []) for row in rows]
    agent = BaseAgent(backend=with_agent)
    watched = BaseAgent(backend=with_agent)
    watched.streaming_manager.add_observer(NoOp())
    trials: dict[str, Callable[[], int]] = {
        "static": lambda: _static(model, prompts, setting),
        "backend": lambda: asyncio.run(_backend(with_agent, prompts, setting)),
        "off": lambda: asyncio.run(_agent(agent, rows, setting, streaming=False)),
        "on": lambda: asyncio.run(_agent(watched, rows, setting, streaming=True)),
    }
    found = paired({name: _timed(trial) for name, trial in trials.items()}, setting.rounds)
    one = paired({"one": _timed(lambda: _one_at_a_time(model, tokenizer, prompts, setting))}, 1)["one"]
    asyncio.run(with_agent.close())
    at = f"backends: {setting.chains} at once"
    return [
        figure(f"{at}: static batch of generate, nothing streamed", found["static"], "tokens/s"),
        figure(f"{at}: backend alone", found["backend"], "tokens/s"),
        figure(f"{at}: agent, streaming off", found["off"], "tokens/s"),
        figure(f"{at}: agent, streaming on", found["on"], "tokens/s"),
        figure(f"{at}: backend / static", ratios(found["backend"], found["static"]), "×", ">= 0.9"),
        figure(f"{at}: agent, streaming on / static", ratios(found["on"], found["static"]), "×", ">= 0.9"),
        figure(f"{at}: agent, streaming on / off", ratios(found["on"], found["off"]), "×"),
        figure(f"{at}: TextIteratorStreamer, one after the other", one[0], "tokens/s"),
    ]


def _timed(trial: Callable[[], int]) -> Callable[[], float]:
    def timed() -> float:
        began = time.perf_counter()
        tokens = trial()
        return tokens / (time.perf_counter() - began)

    return timed


def _cache_bytes(model: Any, setting: Setting) -> int:
    """Room for all chains, whatever else the machine is doing."""
    config = model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    return 2 * setting.chains * 1024 * token


def _question(i: int) -> dict[str, Any]:
    digits = random.Random(i)
    text = " ".join(str(digits.randrange(100, 1000)) for _ in range(72))
    return {"messages": [{"role": "user", "content": text}]}


def _static(model: Any, prompts: list[list[int]], setting: Setting) -> int:
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    out = model.generate(
        padded, attention_mask=mask, do_sample=True, top_k=0, pad_token_id=0,
        max_new_tokens=setting.tokens, min_new_tokens=setting.tokens,
    )  # fmt: skip
    sampled: int = out[:, longest:].numel()
    return sampled


async def _backend(backend: TransformersBackend, prompts: list[list[int]], setting: Setting) -> int:
    async def consumed(i: int, prompt: list[int]) -> int:
        asked = GenerationRequest(f"r{i}", [], [], Sampling(max_tokens=setting.tokens), prompt)
        return sum([len(delta.token_ids or ()) async for delta in backend.generate(asked)])

    return sum(await asyncio.gather(*(consumed(i, prompt) for i, prompt in enumerate(prompts))))


async def _agent(agent: BaseAgent, rows: list[dict[str, Any]], setting: Setting, *, streaming: bool) -> int:
    sampling = Sampling(max_tokens=setting.tokens)
    result = await agent.run_async(1, rows, 1, streaming, sampling=sampling)
    return sum(len(turn.token_ids or ()) for t in result.trajectories for turn in t.turns)


def _one_at_a_time(model: Any, tokenizer: Any, prompts: list[list[int]], setting: Setting) -> int:
    """Stream with transformers itself, one generation at a time; a few are enough to tell the speed."""
    for prompt in prompts[:4]:
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        given = torch.tensor([prompt], device=model.device)
        arguments = {
            "input_ids": given, "attention_mask": torch.ones_like(given), "streamer": streamer, "do_sample": True,
            "top_k": 0, "pad_token_id": 0, "max_new_tokens": setting.tokens, "min_new_tokens": setting.tokens,
        }  # fmt: skip
        thread = threading.Thread(target=model.generate, kwargs=arguments)
        thread.start()
        for _ in streamer:
            pass
        thread.join()
    return len(prompts[:4]) * setting.tokens
