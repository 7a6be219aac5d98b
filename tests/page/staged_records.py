"""Records whose events have the times that a test gives them, so that a replay stands still between them."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from rollcast.archive import ArchiveObserver
from rollcast.records import StreamEvent
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events

APART_S = 2.0  # between two events
QUESTION = "I think of a number from 1 to 15. Find it."


async def guessing(run_id="guessing", chains=2, name=None, start=1_790_000_000.0):
    """The events of a run, each `APART_S` after the one before: its chains take turns, and the first one ends before the others.

    A chain guesses twice and then says that it found it; its turns have token ids.
    """
    manager = StreamingManager()
    with capture_events(manager) as capture:
        async with manager.run(
            chains=chains, groups=1, agent="guess", model="staged", run_id=run_id, name=name
        ) as run:
            with contextlib.ExitStack() as stack:
                opened = []
                for number in range(chains):
                    messages = [{"role": "user", "content": QUESTION}]
                    about = {
                        "group_id": "group_0",
                        "index": number,
                        "chain_id": f"chain_{number}",
                        "reference": 12,
                    }
                    opened.append(stack.enter_context(run.chain(messages, **about)))
                for turn, guess in enumerate((8, 12)):
                    for chain in opened:
                        say(chain, f"guess {guess}.", turn)
                        with chain.tool_call("guess", {"number": guess}) as call:
                            call.observation("higher" if guess == 8 else "right")
                for number, chain in enumerate(opened):
                    say(chain, f"Found it, says {number}.", 2)
                    chain.reward(1.0 / (1 + number))
                    chain.end("answered", final_response="Found it.")
        await manager.drain()
    await manager.aclose()
    return restamped(capture.events, start)


def say(chain, text, turn):
    with chain.generation() as generation:
        for at, word in enumerate(text.split(" ")):
            word = f"{word}\n" if at + 1 < len(text.split(" ")) else word  # a record merges no lines
            generation.chunk(word, token_ids=[100 * turn + at], logprobs=[-0.1 - at])


def restamped(events, start):
    """The same events, each `APART_S` after the one before."""
    return [msgspec.structs.replace(event, timestamp=start + APART_S * at) for at, event in enumerate(events)]


async def record(path, events, level="tokens", **about):
    """Write a record of these events."""
    manager = StreamingManager()
    observer = ArchiveObserver(Path(path), level=level, masker=False, **about)
    manager.add_observer(observer)
    for event in events:
        manager.relay(event)
    await manager.drain()
    await manager.aclose()
    return Path(path)


def recorded(path, **options):
    """A record of one run of guesses, and its events."""

    async def both() -> tuple[Path, list[StreamEvent]]:
        about = {name: options.pop(name) for name in ("level",) if name in options}
        events = await guessing(**options)
        if options.get("name"):
            about["name"] = options["name"]
        return await record(path, events, **about), events

    return made(both())


def made(coroutine):
    """What the coroutine returns."""
    return in_a_thread(lambda: asyncio.run(coroutine))


def in_a_thread(function):
    """What the function returns. Playwright has an event loop in this thread, in which nothing may block."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
