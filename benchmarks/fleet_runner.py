"""A process that runs chains and publishes them to a hub: `python -m benchmarks.fleet_runner '{"hub": "ws://127.0.0.1:8765"}'`."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from benchmarks.fleet_hub import TOKEN
from benchmarks.helper import obey
from benchmarks.lean import VOCABULARY, LeanBackend
from benchmarks.serve_house import until
from rollcast.models.backend import Delta, GenerationRequest
from rollcast.observers import JSONStreamObserver
from rollcast.records import StreamEventType
from rollcast.rollout import BaseAgent
from rollcast.serve.hub_observer import HubStreamObserver
from rollcast.stream import StreamingManager
from rollcast.testing.load import Load, play_load

__all__ = ["main"]

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
CHUNK = StreamEventType.LLM_GENERATION_CHUNK


class Stage:
    """Plays loads, and holds chains of an agent open."""

    def __init__(self, hub: str | None, folder: Path) -> None:
        self._hub = hub
        self._folder = folder
        self._names = itertools.count()
        self._sides: dict[str, Held] = {}
        self._observers: list[HubStreamObserver] = []

    def _observer(self) -> HubStreamObserver:
        assert self._hub is not None
        observer = HubStreamObserver(self._hub, token=TOKEN, directory=self._folder)
        observer.producer.start()
        self._observers.append(observer)
        return observer

    def end(self) -> None:
        """Wait until no producer writes to the folder any more."""
        for observer in self._observers:
            thread = observer.producer.end()
            if thread is not None:
                thread.join()

    async def play(self, to: str, load: dict[str, Any], *, watched: bool = False) -> dict[str, Any]:
        """Play a load to `nobody`, to a `file` as lines of JSON, or to the `hub`; or with streaming `off`.

        With `watched` it begins when somebody at the hub wants its tokens. The result has the CPU seconds until the observers
        have everything, and the hub has acknowledged it.
        """
        manager, observer = StreamingManager(drain_timeout=60), None
        if to == "file":
            manager.add_observer(JSONStreamObserver(self._folder / f"{next(self._names)}.jsonl"))
        elif to == "hub":
            manager.add_observer(observer := self._observer())
            await until(lambda: not watched or manager.wants(CHUNK))
        began = time.process_time()
        report = await play_load(manager, Load(**load), live=to != "off")
        dropped = sum(numbers.dropped for numbers in manager.statistics())
        await manager.aclose()
        while observer is not None and not observer.producer.is_up_to_date:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the hub may be slow
        return {
            "cpu": time.process_time() - began,
            "events": report.tokens + sum(report.events.values()),
            "tokens": report.tokens,
            "by_type": report.events,
            "seconds": report.seconds,
            "behind": report.behind_s,
            "dropped": dropped,
        }

    async def hold(self, chains: int, *, off_first: bool = False) -> dict[str, Any]:
        """Open so many chains of an agent that publishes, and as many of one with streaming off; all wait before their first token.

        The chains that are opened last lie better in memory, so one runner opens those with streaming off first, and another last. It returns when the hub has acknowledged everything that was published, so that nothing else goes on meanwhile.
        """
        self._sides = {"hub": Held(chains), "off": Held(chains)}
        observer = self._observer()
        self._sides["hub"].agent.streaming_manager.add_observer(observer)
        for name, side in sorted(self._sides.items(), reverse=off_first):
            await side.open(streaming=name == "hub")
        await self._sides["hub"].agent.streaming_manager.drain(600)
        while not observer.producer.is_up_to_date:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        (run_id,) = self._sides["hub"].agent.streaming_manager.runs
        return {"run": run_id}

    async def speak(self, side: str, tokens: int) -> dict[str, Any]:
        """Let every chain of one side generate so many tokens; the CPU seconds that they took, and how many there were."""
        held = self._sides[side]
        gc.collect()  # a full collection takes longer than all these tokens, and would come to one side or the other by chance
        began = time.process_time()
        await held.speak(tokens)
        return {"cpu": time.process_time() - began, "tokens": tokens * held.chains}

    async def wanted(self) -> dict[str, Any]:
        """Wait until somebody at the hub wants the tokens of the first chain."""
        manager = self._sides["hub"].agent.streaming_manager
        (run_id,) = manager.runs
        await until(lambda: manager.wants(CHUNK, "chain_0", "group_0", run_id))
        return {}

    async def release(self) -> dict[str, Any]:
        """End all chains that are held."""
        for side in self._sides.values():
            await side.close()
        self._sides = {}
        return {}


class Held:
    """A run of an agent whose chains wait for each other."""

    def __init__(self, chains: int) -> None:
        self.chains = chains
        self.agent = BaseAgent(
            backend=GatedBackend(self), streaming_manager=StreamingManager(drain_timeout=120)
        )
        self.last = False  # whether the next tokens are the last ones
        self.tokens = 0  # how many each generates when they go on
        self._waiting = 0
        self._all_wait = asyncio.Event()
        self._go = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    async def open(self, *, streaming: bool) -> None:
        """Begin, and wait until all chains do."""
        self._task = asyncio.create_task(
            self.agent.run_async(1, QUESTION, self.chains, enable_streaming=streaming, seed=1)
        )
        await self._all_wait.wait()

    async def speak(self, tokens: int) -> None:
        """Let them generate so many tokens each, until all wait again."""
        self.tokens = tokens
        self._let_go()
        await self._all_wait.wait()

    async def close(self) -> None:
        """Let them end."""
        self.last, self.tokens = True, 1
        self._let_go()
        assert self._task is not None
        await self._task
        await self.agent.streaming_manager.aclose()

    def _let_go(self) -> None:
        go, self._go = self._go, asyncio.Event()
        self._waiting = 0
        self._all_wait.clear()
        go.set()

    async def wait(self) -> None:
        """Wait as one of the chains."""
        self._waiting += 1
        if self._waiting == self.chains:
            self._all_wait.set()
        await self._go.wait()


class GatedBackend(LeanBackend):
    """Yields a few tokens at a time, each in a turn of the event loop of its own, and then waits for the other chains."""

    def __init__(self, held: Held) -> None:
        super().__init__(1)
        self._held = held

    async def generate(self, request: GenerationRequest | None) -> AsyncIterator[Delta]:
        """See `Backend.generate`."""
        held, at = self._held, 0
        while True:
            await held.wait()
            for at in range(at, at + held.tokens):  # noqa: B020  (goes on where it was)
                await asyncio.sleep(0)
                reason = "stop" if held.last else None
                yield Delta(VOCABULARY[at % 500], [1000 + at], [-0.5 - at / 1024], 0, finish_reason=reason)
            if held.last:
                return
            at += 1


async def main() -> None:
    """Perform the actions on standard input until it closes."""
    options = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="rollcast-runner-") as folder:
        stage = Stage(options["hub"], Path(folder))
        await obey(
            {},
            {
                "play": stage.play,
                "hold": stage.hold,
                "speak": stage.speak,
                "wanted": stage.wanted,
                "release": stage.release,
            },
        )
        stage.end()


if __name__ == "__main__":
    asyncio.run(main())
