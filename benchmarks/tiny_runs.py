"""Runs the arithmetic task on the embedded model, and the same requests without an agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import msgspec

from rollcast.models.backend import Delta, GenerationRequest, Sampling
from rollcast.models.tiny import TinyBackend
from rollcast.rollout import BaseAgent, RunResult
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.tasks import get_task

__all__ = ["Requests", "Spent", "agent_run", "bare_run", "record"]

REPEATS = 4  # chains per question
SEED = 7


class Spent(NamedTuple):
    """What a run took, in seconds, and how many tokens it sampled."""

    wall: float
    cpu: float
    tokens: int


Requests = dict[str, list[tuple[GenerationRequest, list[int]]]]
"""For each chain, in order: the agent's requests, and the ids that came."""


class _Recording(BaseAgent):
    """Records its requests as they were made."""

    def __init__(self, backend: TinyBackend) -> None:
        super().__init__(backend=backend, tools=TASK.tools, reward=TASK.reward)
        self.asked: dict[str, list[GenerationRequest]] = {}

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """The backend's deltas."""
        kept = msgspec.structs.replace(
            request, prompt_ids=list(request.prompt_ids or ()), messages=list(request.messages)
        )
        _, chain, _ = request.request_id.split("/")
        self.asked.setdefault(chain, []).append(kept)
        return super().generate(request)


TASK = get_task("arithmetic")


async def _ready_backend() -> TinyBackend:
    """Make a new backend for each run, so that none profits from prompts that another one read."""
    backend = TinyBackend()
    warm = GenerationRequest("warm", [], [], Sampling(max_tokens=4, seed=1), prompt_ids=[300, 301, 302])
    async for _ in backend.generate(warm):
        pass
    return backend


async def agent_run(
    concurrent: int,
    chains: int,
    *,
    streaming: bool = False,
    observers: Sequence[StreamObserver] = (),
    record: bool = False,
) -> tuple[RunResult, Spent, BaseAgent]:
    """Run the task as a user does. The backend is loaded before, and closing the observers counts."""
    backend = await _ready_backend()
    manager = StreamingManager(drain_timeout=0.05)
    agent = (
        _Recording(backend) if record else BaseAgent(backend=backend, tools=TASK.tools, reward=TASK.reward)
    )
    agent.streaming_manager = manager
    for observer in observers:
        manager.add_observer(observer)
    rows = TASK.rows(chains // REPEATS, 0)
    wall, cpu = time.perf_counter(), time.process_time()
    result = await agent.run_async(
        TASK.max_steps,
        rows,
        REPEATS,
        streaming,
        sampling=TASK.sampling,
        max_concurrent_chains=concurrent,
        seed=SEED,
    )
    spent = Spent(
        time.perf_counter() - wall,
        time.process_time() - cpu,
        sum(t.completion_tokens for t in result.trajectories),
    )
    await manager.aclose()
    await backend.close()
    return result, spent, agent


async def record(concurrent: int, chains: int) -> Requests:
    """Record an agent's requests in such a run."""
    result, _, agent = await agent_run(concurrent, chains, record=True)
    assert isinstance(agent, _Recording)
    return {
        t.chain_id: list(zip(agent.asked[t.chain_id], (turn.token_ids for turn in t.turns), strict=True))
        for t in result.trajectories
    }


async def bare_run(concurrent: int, requests: Requests) -> Spent:
    """Serve the same requests in the same order, as many at once, without agent, tools, parser, trajectory or manager.

    Raises:
        AssertionError: the ids are not those that the agent got.
    """
    backend = await _ready_backend()
    slots = asyncio.Semaphore(concurrent)
    sampled: dict[str, list[list[int]]] = {chain: [] for chain in requests}

    async def chain(name: str) -> None:
        async with slots:
            for request, expected in requests[name]:
                ids: list[int] = []
                deltas = backend.generate(request)
                async for delta in deltas:
                    ids += delta.token_ids or ()
                    if len(ids) == len(expected):  # the parser ended the generation here
                        break
                await deltas.aclose()  # type: ignore[attr-defined]  # it is a generator
                sampled[name].append(ids)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[asyncio.create_task(chain(name)) for name in requests])
    spent = Spent(
        time.perf_counter() - wall,
        time.process_time() - cpu,
        sum(len(ids) for turns in sampled.values() for ids in turns),
    )
    await backend.close()
    assert sampled == {name: [ids for _, ids in turns] for name, turns in requests.items()}
    return spent
