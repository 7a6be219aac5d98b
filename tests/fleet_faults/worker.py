"""The process that produces: `python -m fleet_faults.worker PLAN`, with the plan as JSON.

It writes what it emits, but no chunks, to its standard output, one JSON array for each event; who reads that knows what there was to
lose. It is an ordinary program: that it publishes is said by the environment alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fleet_faults.plan import WorkerPlan
from fleet_faults.skew import shift_clock

if TYPE_CHECKING:  # what it imports takes its clock along, so that is set first
    from rollcast import StreamingManager
    from rollcast.records import Message
    from rollcast.stream.run import RunWriter

WORDS = [
    "the",
    "number",
    "must",
    "be",
    "higher",
    "than",
    "four",
    "and",
    "lower",
    "than",
    "nine",
    "so",
    "I",
    "try",
    "seven",
]
SWEEP_S = 20.0
EMITTED = 1  # the file descriptor


def main() -> None:
    """See the module."""
    plan = msgspec.json.decode(sys.argv[1], type=WorkerPlan)
    attempt, seed = int(sys.argv[2]), sys.argv[3]
    shift_clock(plan.clock_s)
    if plan.file_limit is not None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.file_limit, hard))
    asyncio.run(_produce(plan, attempt, random.Random(f"{seed} {plan.source} {attempt}")))


def _hurry(plan: WorkerPlan) -> None:
    """Shorten the times for which a producer waits, and its memory, so that a test sees what comes after them."""
    import rollcast.serve.hub_link as link
    from rollcast.serve import handover, producer

    link.LOOK_AGAIN_S, handover.ANSWER_S = 0.2, 3.0
    link.FIRST_PAUSE_S, link.LONGEST_PAUSE_S, link.STEADY_S = 0.05, 0.3, 0.2
    producer.DRAIN_S, producer.BEAT_S = plan.drain_s, 0.3
    if plan.memory is not None:
        producer.MEMORY_BYTES = plan.memory


async def _produce(plan: WorkerPlan, attempt: int, rng: random.Random) -> None:
    from rollcast import EventFilter, StreamEvent, StreamEventType, StreamingManager, StreamObserver

    class Emitted(StreamObserver):
        """Says what was emitted."""

        filter = EventFilter(types=set(StreamEventType) - {StreamEventType.LLM_GENERATION_CHUNK})
        mode = "lossless"
        threaded = True

        async def on_event(self, event: StreamEvent) -> None:
            said = (event.run_id, event.source, event.seq, event.event_type.value, event.chain_id)
            os.write(EMITTED, msgspec.json.encode(said) + b"\n")

    _hurry(plan)
    manager = StreamingManager(drain_timeout=plan.drain_s)
    manager.add_observer(Emitted())
    for number in range(plan.runs):
        if (
            plan.sweeps and number + 1 == plan.runs
        ):  # so that viewers who have the last run have all that was handed over
            await _until_all_is_handed_over(Path(os.environ["ROLLCAST_RECORDS"]))
        await {"handmade": _by_hand, "agent": _by_agent}[plan.kind](manager, plan, rng)
    await manager.aclose()


async def _until_all_is_handed_over(records: Path) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(SWEEP_S):
            while await asyncio.to_thread(_has_records_to_hand_over, records):
                await asyncio.sleep(0.02)


def _has_records_to_hand_over(records: Path) -> bool:
    return any(records.glob("*/handover.json"))


async def _by_hand(manager: StreamingManager, plan: WorkerPlan, rng: random.Random) -> None:
    async with manager.run(chains=plan.chains) as run:
        chains = [_chain(run, plan, number, rng) for number in range(plan.chains)]
        await asyncio.gather(*chains, return_exceptions=True)


async def _chain(run: RunWriter, plan: WorkerPlan, number: int, rng: random.Random) -> None:
    chain_id = f"chain_{number}@{plan.source}" if plan.shares_run else None
    question: list[Message] = [{"role": "user", "content": f"question {number}"}]
    with run.chain(question, chain_id=chain_id, group_id=f"group_{number % 2}") as chain:
        for turn in range(rng.randint(1, plan.turns)):
            with chain.generation(prompt_ids=[1, 2, 3]) as generation:
                for token in range(rng.randint(1, plan.tokens)):
                    generation.chunk(rng.choice(WORDS) + " ", [token], [-0.5])
                    await asyncio.sleep(rng.random() * plan.pause_s)
            if rng.random() < 0.7:
                with chain.tool_call("look", {"turn": turn}) as call:
                    await asyncio.sleep(rng.random() * plan.pause_s)
                    call.observation("seen " * rng.randint(1, 200))
        if rng.random() < 0.1:
            raise RuntimeError("a chain fails")
        chain.reward(rng.random())


async def _by_agent(manager: StreamingManager, plan: WorkerPlan, rng: random.Random) -> None:
    from rollcast import BaseAgent
    from rollcast.tasks import get_task
    from rollcast.testing import ScriptedBackend

    task = get_task("guess")
    guess = f'<tool_call>{{"name": "guess", "arguments": {{"number": {rng.randint(1, 15)}}}}}</tool_call>'
    texts = [guess] * (plan.turns - 1) + [" ".join(rng.choices(WORDS, k=plan.tokens))]
    backend = ScriptedBackend(texts, delay=plan.pause_s / 2)
    agent = BaseAgent(backend=backend, tools=task.tools, reward=task.reward, streaming_manager=manager)
    rows = task.rows(1, rng.randrange(100))
    await agent.run_async(plan.turns, rows, num_chains=plan.chains, enable_streaming=True, seed=1)


if __name__ == "__main__":
    main()
