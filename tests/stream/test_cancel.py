"""Ending a run on behalf of somebody who watches it."""

import asyncio
import threading

import pytest

from rollcast import BaseAgent
from rollcast.errors import InputError
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.testing import ScriptedBackend


async def test_a_producer_is_told_what_to_end():
    """The chain, or the whole run; what is not open is said."""
    manager, asked = StreamingManager(), []
    with manager.run(on_cancel=asked.append) as run, run.chain(chain_id="chain_0"):
        manager.cancel(run.run_id, "chain_0")
        manager.cancel(run.run_id)
        with pytest.raises(InputError, match="has no open chain 'chain_1'"):
            manager.cancel(run.run_id, "chain_1")
    assert asked == ["chain_0", None]
    with pytest.raises(InputError, match=r"no run .* is open"):
        manager.cancel(run.run_id)
    with manager.run() as run, pytest.raises(InputError, match="gave no on_cancel"):
        manager.cancel(run.run_id)


async def test_an_agents_run_can_be_cancelled_from_another_thread():
    """One chain ends with `cancelled`, its sibling goes on."""
    gate = asyncio.Event()
    reached = threading.Event()

    async def hang(request, token):
        if token == 1:
            reached.set()
            await gate.wait()

    agent = BaseAgent(backend=ScriptedBackend("one two three", before_token=hang))
    manager = agent.streaming_manager

    def cancel():
        reached.wait(10)
        (run_id,) = manager.fanout.runs
        manager.cancel(run_id, "chain_1")
        loop.call_soon_threadsafe(gate.set)

    loop = asyncio.get_running_loop()
    cancelling = loop.run_in_executor(None, cancel)
    result = await agent.run_async(
        1, [{"role": "user", "content": "Count."}], num_chains=2, enable_streaming=True
    )
    await cancelling
    assert [t.finish_reason for t in result] == ["answered", "cancelled"]
    await agent.aclose()


def test_an_observer_is_called_in_the_event_loop_that_it_names():
    """Wherever the run is."""
    ready, seen = threading.Event(), []

    class Named(StreamObserver):
        async def on_event(self, event):
            seen.append(asyncio.get_running_loop())

    observer = Named()

    async def home():
        observer.loop = asyncio.get_running_loop()
        leave = asyncio.Event()
        observer.leave = leave.set
        ready.set()
        await leave.wait()

    thread = threading.Thread(target=asyncio.run, args=(home(),))
    thread.start()
    ready.wait(10)
    manager = StreamingManager()
    manager.add_observer(observer)

    async def run():
        async with manager.run():
            pass

    asyncio.run(run())
    assert seen == [observer.loop] * 2
    observer.loop.call_soon_threadsafe(observer.leave)
    thread.join()
    manager.close()


def test_a_run_whose_loop_is_closed_cannot_be_cancelled():
    """Its producer is gone without having closed it, which is said as for any run that cannot be told to stop."""
    loop, reached = asyncio.new_event_loop(), asyncio.Event()

    async def hang(request, token):
        reached.set()
        await asyncio.Event().wait()

    agent = BaseAgent(backend=ScriptedBackend("one two three", before_token=hang))
    run = agent.prepare(1, [{"role": "user", "content": "Count."}], enable_streaming=True)
    task = loop.create_task(run.execute())
    loop.run_until_complete(reached.wait())
    on_cancel = run.stream.on_cancel
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.run_until_complete(agent.aclose())
    loop.close()
    with pytest.raises(InputError, match="the event loop that it ran in is closed"):
        on_cancel(None)
