"""Ending a run on behalf of somebody who watches it."""

import asyncio
import threading

import pytest

from rollcast import BaseAgent
from rollcast.errors import InputError
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.stream.cancelling import Cancelled, cancel
from rollcast.testing import ScriptedBackend, capture_events


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
        reached.wait(60)
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
    ready.wait(60)
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


def counting_agent():
    """An agent whose chains generate until they are cancelled, and an event that is set when one does."""
    reached = asyncio.Event()

    async def hang(request, token):
        reached.set()
        await asyncio.Event().wait()

    return BaseAgent(backend=ScriptedBackend("one two three", before_token=hang)), reached


ROWS = [{"messages": [{"role": "user", "content": f"Count from {n}."}]} for n in range(2)]


async def test_chains_of_a_cancelled_run_that_have_not_begun_do_not_begin():
    """Two of six run at once; the others never begin, and the run ends with its status."""
    agent, reached = counting_agent()
    run = agent.prepare(1, ROWS, 3, True, max_concurrent_chains=2)
    with capture_events(agent.streaming_manager) as capture:
        task = asyncio.create_task(run.execute())
        await reached.wait()
        assert agent.streaming_manager.cancel(run.run_id) == ["chain_0", "chain_1"]
        result = await task
    assert result.status == "cancelled"
    assert [t.finish_reason for t in result] == ["cancelled"] * 6
    assert [event.chain_id for event in capture.of("chain_start")] == ["chain_0", "chain_1"]
    (end,) = capture.of("run_end")
    assert (end.data["status"], end.data["chains"]) == ("cancelled", 2)
    await agent.aclose()


async def test_chains_of_a_cancelled_group_that_have_not_begun_do_not_begin(until):
    """The other group goes on, and so the run is completed."""
    agent, reached = counting_agent()
    run = agent.prepare(1, ROWS, 3, True, max_concurrent_chains=2)
    manager = agent.streaming_manager
    with capture_events(manager) as capture:
        task = asyncio.create_task(run.execute())
        await reached.wait()
        told = cancel(manager.fanout, run.run_id, group_id="group_0")
        assert told == Cancelled(["chain_0", "chain_1"], ["chain_2"], 0)
        await until(lambda: {"chain_3", "chain_4"} <= {event.chain_id for event in capture.of("chain_start")})
        with pytest.raises(InputError, match="no open chain in a group 'group_0'"):
            manager.cancel(run.run_id, group_id="group_0")
        told = cancel(manager.fanout, run.run_id, group_id="group_1")
        assert told == Cancelled(["chain_3", "chain_4"], ["chain_5"], 0)
        result = await task
    assert result.status == "completed"
    assert [t.finish_reason for t in result] == ["cancelled"] * 6
    assert {event.chain_id for event in capture.of("chain_start")} == {f"chain_{n}" for n in (0, 1, 3, 4)}
    await agent.aclose()


async def test_a_single_chain_that_has_not_begun_does_not_begin():
    """It is told to end as an open one is; a chain that is over is not."""
    agent, reached = counting_agent()
    run = agent.prepare(1, ROWS, 3, True, max_concurrent_chains=1)
    manager = agent.streaming_manager
    with capture_events(manager) as capture:
        task = asyncio.create_task(run.execute())
        await reached.wait()
        assert cancel(manager.fanout, run.run_id, "chain_4") == Cancelled([], ["chain_4"], 0)
        with pytest.raises(InputError, match="no open chain 'chain_4'"):
            manager.cancel(run.run_id, "chain_4")
        manager.cancel(run.run_id)
        result = await task
    assert result.trajectories[4].finish_reason == "cancelled"
    assert [event.chain_id for event in capture.of("chain_start")] == ["chain_0"]
    await agent.aclose()


async def test_what_is_over_is_counted():
    """By group and in all, for whoever wants to know what became of it."""
    manager, asked = StreamingManager(), []
    async with manager.run(chains=4, on_cancel=asked.append) as run:
        for name, group in (("a", "g"), ("b", "g"), ("c", "h")):
            with run.chain(chain_id=name, group_id=group):
                pass
        run.announce("e", "g")
        run.announce("a", "g")  # it has begun, and is over
        with run.chain(chain_id="d", group_id="g"):
            assert cancel(manager.fanout, run.run_id, group_id="g") == Cancelled(["d"], ["e"], 2)
            assert cancel(manager.fanout, run.run_id) == Cancelled(["d"], [], 3)
    assert asked == ["e", "d", None]
    await manager.aclose()
