"""However often somebody is cancelled: when the run is over, nothing of it runs."""

import asyncio

import pytest

from rollcast import BaseAgent, tool
from rollcast.testing import ScriptedBackend, capture_events

HELLO = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "work", "arguments": {"n": %d}}</tool_call>'


class Bench:
    """An agent whose turns call two tools that take their time when they are cancelled."""

    def __init__(self):
        self.running = set()

        @tool
        async def work(n: int) -> str:
            """Work until it is cancelled, then clean up for n turns."""
            self.running.add(n)
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(n):
                    await asyncio.sleep(0)
                self.running.discard(n)
            return "done"

        self.agent = BaseAgent(backend=ScriptedBackend(f"{CALL % 1} {CALL % 30}"), tools=[work])
        self.agent.cancel_grace_s = 600.0  # none is left behind, however slow the machine is


async def test_every_tool_of_a_turn_has_ended_when_the_run_is_cancelled(until):
    """Also the one that takes longer to clean up than its neighbours."""
    bench = Bench()
    task = asyncio.create_task(bench.agent.run_async(2, HELLO))
    await until(lambda: len(bench.running) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not bench.running


async def test_a_second_cancellation_leaves_nothing_behind(until):
    """The first one ends the chains; the second does not leave them running."""
    bench = Bench()
    with capture_events(bench.agent.streaming_manager) as capture:
        task = asyncio.create_task(bench.agent.run_async(2, HELLO, num_chains=2, enable_streaming=True))
        await until(lambda: len(capture.of("tool_call_start")) == 4)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not bench.running
    await bench.agent.streaming_manager.aclose()
    capture.check()


async def test_a_stream_that_is_cancelled_twice_leaves_nothing_behind(until):
    """Its run has ended when the block is left."""
    bench = Bench()

    async def read():
        async with bench.agent.run_async_streaming(2, HELLO) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(read())
    await until(lambda: len(bench.running) == 2)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not bench.running
