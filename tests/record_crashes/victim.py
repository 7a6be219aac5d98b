"""The process that is killed: runs, one after another, that are recorded; what a watcher sees goes into a pipe at once.

`python -m record_crashes.victim FOLDER SEED` writes to its standard output: one line of JSON for each event.
"""

import asyncio
import os
import random
import sys

from rollcast import StreamingManager, StreamObserver
from rollcast.archive import ArchiveObserver, line_log, worker
from rollcast.records import encode

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


class Pipe(StreamObserver):
    """A watcher outside of the process has each event as soon as it is delivered."""

    async def on_batch(self, events):
        os.write(1, b"".join(encode(event) + b"\n" for event in events))

    async def on_event(self, event):
        await self.on_batch([event])


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


async def main():
    folder, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    # Small segments, so that many of the kills come while one is sealed; beats, so that open generations are kept.
    line_log.is_full = lambda lines, size: lines >= rng.choice([50, 400, 5000])
    worker.BEAT_S = rng.choice([0.05, 0.3, 10.0])
    manager = StreamingManager()
    level = rng.choice(["auto", "turns", "tokens"])
    manager.add_observer(ArchiveObserver(folder, level=level, name=level))
    if rng.random() < 0.5:
        manager.add_observer(Pipe())
    else:
        watcher = Pipe()
        watcher.tokens = "never"
        manager.add_observer(watcher)
    for _ in range(100_000):
        chains = rng.randint(1, 40)
        async with manager.run(chains=chains) as run:
            tasks = [one_chain(run, number, rng) for number in range(chains)]
            await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
