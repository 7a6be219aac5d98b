"""The process that is killed: runs or a training that are recorded, and served to a watcher.

`python -m record_crashes.victim FOLDER SEED` writes the address of its server to its standard output.
"""

import asyncio
import random
import sys
from itertools import count

from rollcast import BaseAgent, StreamingManager
from rollcast.archive import ArchiveObserver, line_log, worker
from rollcast.serve import WebSocketStreamingServer
from rollcast.tasks import get_task
from rollcast.testing import ScriptedBackend
from rollcast.train import GRPOConfig, train

KINDS = ("handmade", "agent", "training")
SEED_OF_MOMENTS = 7919
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


def kind_of(seed):
    """What a seed kills: events made by hand, an agent's runs, or a training of the embedded model."""
    return KINDS[seed % len(KINDS)]


async def one_chain(run, number, rng):
    with run.chain(
        [{"role": "user", "content": f"question {number}"}], group_id=f"group_{number % 4}"
    ) as chain:
        for turn in range(rng.randint(1, 4)):
            with chain.generation(prompt_ids=[1, 2, 3]) as generation:
                for i in range(rng.randint(1, 60)):
                    generation.chunk(rng.choice(WORDS) + " ", [i], [-0.5])
                    if rng.random() < 0.3:
                        await asyncio.sleep(rng.random() * 0.01)
            if rng.random() < 0.7:
                with chain.tool_call("look", {"turn": turn}) as call:
                    await asyncio.sleep(rng.random() * 0.01)
                    call.observation("seen " * rng.randint(1, 200))
        if rng.random() < 0.1:
            raise RuntimeError("a chain fails")
        chain.reward(rng.random())


async def runs_by_hand(manager, rng):
    for _ in range(100_000):
        chains = rng.randint(1, 40)
        async with manager.run(chains=chains) as run:
            tasks = [one_chain(run, number, rng) for number in range(chains)]
            await asyncio.gather(*tasks, return_exceptions=True)


async def runs_of_an_agent(manager, rng):
    task = get_task("guess")
    for number in count():
        guess = f'<tool_call>{{"name": "guess", "arguments": {{"number": {rng.randint(1, 15)}}}}}</tool_call>'
        backend = ScriptedBackend([guess, guess, " ".join(WORDS * 3)], delay=rng.choice([0, 0.001, 0.004]))
        agent = BaseAgent(backend=backend, tools=task.tools, reward=task.reward, streaming_manager=manager)
        rows = task.rows(rng.randint(1, 4), number)
        await agent.run_async(3, rows, num_chains=rng.randint(1, 8), enable_streaming=True, seed=number)


async def a_training(manager, rng):
    task = get_task(rng.choice(["arithmetic", "guess"]))
    agent = BaseAgent(tools=task.tools, reward=task.reward, streaming_manager=manager)
    config = GRPOConfig(
        steps=100_000, questions=4, group=4, eval_every=2, eval_questions=8, seed=rng.randint(0, 99)
    )
    await train(agent, task, config)


async def main():
    folder, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    # Small segments, so that many of the kills come while one is sealed; beats, so that open generations are kept.
    lines_of_a_segment = rng.choice([50, 400, 5000])
    line_log.is_full = lambda lines, size: lines >= lines_of_a_segment
    worker.BEAT_S = rng.choice([0.05, 0.3, 10.0])
    level = rng.choice(["auto", "turns", "tokens"])
    manager = StreamingManager()
    manager.add_observer(ArchiveObserver(folder, level=level, name=level))
    async with WebSocketStreamingServer(port=0) as server:
        manager.add_observer(server.get_observer())
        print(server.url, flush=True)
        await {"handmade": runs_by_hand, "agent": runs_of_an_agent, "training": a_training}[kind_of(seed)](
            manager, rng
        )


if __name__ == "__main__":
    asyncio.run(main())
