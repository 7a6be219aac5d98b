"""`make bench-openai`: compares an agent on the openai backend, streamed, to bare requests to the same vLLM server.

It needs the environment of `make test-vllm`. The server samples with the same small model for both, in turns; both are greedy,
so that both get the same tokens. A bare request is aiohttp's, its chunks decoded by msgspec. A callback sees each of the
agent's tokens. Tokens per second are also given by the CPU time of client and server together, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.machine import about_machine
from benchmarks.measure import estimate, paired, ratios
from benchmarks.vllm_bench import CHAINS, MESSAGES, TOKENS, make_model, ours


def bare(url: str, model: str, ids: list[int]) -> float:
    """Measure tokens per second of bare requests, all at once."""

    async def one(session: aiohttp.ClientSession) -> int:
        body = {
            "model": model, "prompt": ids, "max_tokens": TOKENS, "temperature": 0.0, "logprobs": 0, "stream": True,
            "return_token_ids": True, "seed": 1,
        }  # fmt: skip
        count, logprobs = 0, []
        async with session.post(url + "/v1/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    choice = msgspec.json.decode(line[6:])["choices"][0]
                    count += len(choice["token_ids"] or ())
                    logprobs += (choice["logprobs"] or {}).get("token_logprobs", ())
        assert len(logprobs) == count
        return count

    async def all_at_once() -> int:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
            return sum(await asyncio.gather(*(one(session) for _ in range(CHAINS))))

    start = time.perf_counter()
    count = asyncio.run(all_at_once())
    seconds = time.perf_counter() - start
    assert count == CHAINS * TOKENS, f"{count} tokens: the model's greedy generation ends early"
    return count / seconds


def measured(server: Any, trial: Callable[[], float]) -> tuple[float, float, float]:
    """Tokens per second, tokens per CPU second of client and server, and CPU microseconds a token in the client."""
    tokens, of_server, of_client = CHAINS * TOKENS, server.cpu_s(), time.process_time()
    rate = trial()
    client = time.process_time() - of_client
    return rate, tokens / (client + server.cpu_s() - of_server), client / tokens * 1e6


def main() -> None:
    """Print both, and the ratio with its interval."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--large", action="store_true", help="a model of seven layers that are 512 wide")
    options = parser.parse_args()
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from rollcast import BaseAgent
    from rollcast.models.openai import OpenAIBackend
    from vllm_server import VLLMServer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model", large=options.large)
        server = VLLMServer(Path(model), folder / "server.log", "--max-num-seqs", "32").start()
        try:
            backend: Any = OpenAIBackend(model, base_url=server.url)
            agent = BaseAgent("model", backend=backend)
            ids = backend.renderer.render(MESSAGES, [])
            trials = {
                "bare": lambda: measured(server, lambda: bare(server.url, model, ids)),
                "ours": lambda: measured(server, lambda: ours(agent)),
            }
            results = paired(trials, options.rounds)
            asyncio.run(backend.close())
        finally:
            server.stop()
        about = about_machine()
        print(
            f"{about['cpu']}, {about['cores']} cores; load {about['load']}; {CHAINS} chains of {TOKENS} tokens"
            + (", large model" if options.large else "")
        )
        for at, unit in enumerate(
            ("tokens/s", "tokens per CPU second of client and server", "CPU µs a token in the client")
        ):
            columns = {kind: [rates[at] for rates in rounds] for kind, rounds in results.items()}
            for kind, rates in columns.items():
                found = estimate(rates)
                print(f"{kind}: {found.value:.0f} {unit} [{found.low:.0f}, {found.high:.0f}]")
            found = estimate(ratios(columns["ours"], columns["bare"]))
            target = ", target >= 0.95" if at < 2 else ""
            print(f"ratio: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]{target}")


if __name__ == "__main__":
    main()
