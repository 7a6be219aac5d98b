"""Compares the embedded model's NumPy engine to transformers' `model.generate` on the same checkpoint, both on the CPU in float32.

Prompts are different questions of arithmetic, as an agent renders them. Both sample the same number of tokens at temperature 1,
prompts are read within the time that counts, and nothing is remembered from one trial to the next. The NumPy backend also gives
each token's text and log-probability as it comes; `generate` gives the ids at the end. NumPy has one BLAS thread.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import Figure, figure, paired, ratios
from benchmarks.tiny_runs import Spent
from rollcast.errors import MissingExtraError
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.tiny import TinyBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.models.tiny.batch import Batch, Row
from rollcast.models.tiny.product import measure_block
from rollcast.models.tiny.weights import build_parameters, read_config, read_weights
from rollcast.rollout import BaseAgent
from rollcast.tasks import get_task
from rollcast.train.embedded import one_blas_thread

try:
    import torch
    from transformers import Qwen3ForCausalLM
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"torch", "transformers"}:
        raise
    raise MissingExtraError("the benchmark `engine`", "torch") from error

__all__ = ["run"]

Costs = dict[str, list[float]]

TWO_THREADS_AT = 128
"""The number of chains at which `generate` is also measured with two torch threads: fewer leave too little to share. If the cores
are busy, two threads wait for each other at every operation and are many times slower than one."""


class Setting(NamedTuple):
    """What is measured: chains at once, tokens per chain, how many such batches one after the other, rounds."""

    chains: int
    tokens: int
    batches: int
    rounds: int


# A single chain takes milliseconds, so there are more of them.
SETTINGS = (Setting(1, 64, 4, 9), Setting(8, 64, 2, 9), Setting(32, 64, 1, 9), Setting(128, 64, 1, 9))
QUICK = (Setting(2, 4, 1, 1),)


def run(quick: bool) -> Iterator[Figure]:
    """Measure tokens per second and CPU time per token, and their ratios."""
    before = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder:
            endless = _endless(Path(folder) / "model")
            model: Any = Qwen3ForCausalLM.from_pretrained(endless, dtype=torch.float32).eval()
            for setting in QUICK if quick else SETTINGS:
                yield from _at(endless, model, setting)
    finally:
        torch.set_num_threads(before)


def _endless(folder: Path) -> Path:
    """The checkpoint without tokens that end a generation, so that each samples up to its limit."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((CHECKPOINT / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}), "utf-8")
    return folder


def _at(folder: Path, model: Any, setting: Setting) -> Iterator[Figure]:
    prompts = _prompts(folder, setting.chains)
    at = f"engine: {setting.chains} at once"
    trials: dict[str, Callable[[], Spent]] = {
        "batch": lambda: _bare(folder, prompts, setting),
        "backend": lambda: asyncio.run(_backend(folder, prompts, setting)),
        "generate": lambda: _generate(model, prompts, setting, 1),
    }
    told = {"batch": "NumPy, the batch alone", "backend": "TinyBackend", "generate": "generate, 1 thread"}
    speed, cpu = _costs(trials, setting, setting.rounds)
    yield figure(f"{at}: tokens of the longest prompt", max(map(len, prompts)), "tokens")
    for name, words in told.items():
        yield figure(f"{at}: {words}", speed[name], "tokens/s")
        yield figure(f"{at}: {words}, CPU a token", cpu[name], "µs")
    yield figure(
        f"{at}: TinyBackend / the batch alone, tokens/s", ratios(speed["backend"], speed["batch"]), "×"
    )
    yield from _compared(f"{at}: TinyBackend and generate, 1 thread", speed, cpu)
    if setting.chains == TWO_THREADS_AT:
        del trials["batch"]
        trials["generate"] = lambda: _generate(model, prompts, setting, 2)
        speed, cpu = _costs(trials, setting, 3)
        yield figure(f"{at}: generate, 2 threads", speed["generate"], "tokens/s")
        yield figure(f"{at}: generate, 2 threads, CPU a token", cpu["generate"], "µs")
        yield from _compared(f"{at}: TinyBackend and generate, 2 threads", speed, cpu)


def _costs(trials: dict[str, Callable[[], Spent]], setting: Setting, rounds: int) -> tuple[Costs, Costs]:
    """For each trial, a value per round: tokens per second, and microseconds of CPU per token."""
    found = paired(trials, rounds)
    expected = setting.chains * setting.tokens * setting.batches
    assert all(spent.tokens == expected for values in found.values() for spent in values)
    speed = {name: [s.tokens / s.wall for s in values] for name, values in found.items()}
    cpu = {name: [s.cpu / s.tokens * 1e6 for s in values] for name, values in found.items()}
    return speed, cpu


def _compared(pair: str, speed: Costs, cpu: Costs) -> Iterator[Figure]:
    """The ratios; they are above 1 if the NumPy engine is ahead."""
    yield figure(f"{pair}: ratio of tokens/s", ratios(speed["backend"], speed["generate"]), "×")
    yield figure(f"{pair}: inverse ratio of CPU", ratios(cpu["generate"], cpu["backend"]), "×")


def _prompts(folder: Path, count: int) -> list[list[int]]:
    task = get_task("arithmetic")
    renderer = TinyBackend(folder).renderer
    schemas = BaseAgent(tools=task.tools).tool_schemas
    return [renderer.render(row["messages"], schemas) for row in task.rows(count, 0)]


def _bare(folder: Path, prompts: list[list[int]], setting: Setting) -> Spent:
    """Do what the engine's thread does, on this thread: no streams, texts or event loop."""
    config = read_config(folder)
    parameters = build_parameters(read_weights(folder), config)
    layer = parameters.layers[0]
    matrices = [layer.qkv_DE, layer.out_ED, layer.gate_up_DF, layer.down_FD, parameters.unembed_DV]
    with one_blas_thread(), np.errstate(all="ignore"):
        block = measure_block(matrices)
        batches = [Batch(config, parameters, block) for _ in range(setting.batches)]
        sampled = 0
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            for i, prompt in enumerate(prompts):
                batch.add(Row(prompt, Sampling(max_tokens=setting.tokens, seed=i), setting.tokens))
            while len(batch):
                rows = batch.step().rows
                sampled += len(rows)
                for row in rows:
                    if row.sampled == setting.tokens:
                        batch.remove(row)
        return Spent(time.perf_counter() - wall, time.process_time() - cpu, sampled)


async def _backend(folder: Path, prompts: list[list[int]], setting: Setting) -> Spent:
    """Use the backend as an agent does. Each batch has a new backend, loaded before, which remembers no prompt."""

    async def consumed(backend: TinyBackend, i: int, prompt: list[int]) -> int:
        asked = GenerationRequest(f"r{i}", [], [], Sampling(max_tokens=setting.tokens, seed=i), prompt)
        return sum([len(delta.token_ids or ()) async for delta in backend.generate(asked)])

    spent = Spent(0.0, 0.0, 0)
    for _ in range(setting.batches):
        backend = TinyBackend(folder)
        warm = GenerationRequest("warm", [], [], Sampling(max_tokens=4, seed=1), prompt_ids=[300, 301, 302])
        async for _delta in backend.generate(warm):
            pass
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = sum(
            await asyncio.gather(*(consumed(backend, i, prompt) for i, prompt in enumerate(prompts)))
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        await backend.close()
        spent = Spent(spent.wall + wall, spent.cpu + cpu, spent.tokens + tokens)
    return spent


def _generate(model: Any, prompts: list[list[int]], setting: Setting, threads: int) -> Spent:
    """A static batch, padded on the left."""
    torch.set_num_threads(threads)
    longest = max(map(len, prompts))
    sampled = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(setting.batches):
        padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = model.generate(
            padded, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
            max_new_tokens=setting.tokens,
        )  # fmt: skip
        sampled += out[:, longest:].numel()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu, sampled)
