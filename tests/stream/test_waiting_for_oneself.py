"""An observer's hook cannot wait for what waits for that hook: it is told so at once, and nothing hangs."""

import asyncio
import logging

import pytest

from rollcast import BaseAgent, InputError, StreamingManager
from rollcast.records import EventFilter
from rollcast.stream import StreamObserver
from rollcast.testing import ScriptedBackend

HELLO = [{"role": "user", "content": "hello"}]

# Longer than any test: what waits for itself would be seen to hang.
NEVER_S = 3600.0


class Calls(StreamObserver):
    """Calls something on the first event, and keeps what it raised."""

    filter = EventFilter(types="run_start")

    def __init__(self, call):
        self.call = call
        self.raised = None
        self.called = False
        self.closed = False

    async def on_event(self, event):
        if self.called:
            return
        self.called = True
        try:
            await self.call(self)
        except InputError as error:
            self.raised = error

    async def aclose(self):
        self.closed = True


class CallsOnAThread(Calls):
    threaded = True


def agent_with(observer):
    agent = BaseAgent(
        backend=ScriptedBackend("hi"), streaming_manager=StreamingManager(drain_timeout=NEVER_S)
    )
    agent.streaming_manager.add_observer(observer)
    observer.agent = agent
    return agent


async def drain(observer):
    await observer.manager.drain()


async def drain_sync(observer):
    observer.manager.drain_sync()


async def close_manager(observer):
    await observer.manager.aclose()


async def close_manager_sync(observer):
    observer.manager.close()


async def run(observer):
    await observer.agent.run_async(1, HELLO, enable_streaming=True)


async def read_a_run(observer):
    async with observer.agent.run_async_streaming(1, HELLO) as stream:
        async for _ in stream:
            pass


async def own_run(observer):
    async with observer.manager.run():
        pass


CALLS = [drain, close_manager, close_manager_sync, run, read_a_run, own_run]


@pytest.mark.parametrize(
    ("kind", "call"), [*((Calls, c) for c in CALLS), *((CallsOnAThread, c) for c in (*CALLS, drain_sync))]
)
async def test_what_would_wait_for_the_hook_is_refused_in_it(kind, call):
    """At once, with a sentence that names the observer; the run that called the hook goes on to its end."""
    observer = kind(call)
    agent = agent_with(observer)
    result = await agent.run_async(1, HELLO, enable_streaming=True)
    assert result.status == "completed"
    assert f"in a hook of {observer.name}, which it would wait for; call it elsewhere" in str(observer.raised)
    assert agent.streaming_manager.observers == [observer]
    await agent.streaming_manager.aclose()
    assert observer.closed


async def test_a_run_of_which_observers_get_nothing_is_none_of_it():
    """Nothing is waited for at the end of a run without streaming."""
    lengths = []

    async def run_quietly(observer):
        lengths.append(len(await observer.agent.run_async(1, HELLO)))

    observer = Calls(run_quietly)
    await agent_with(observer).run_async(1, HELLO, enable_streaming=True)
    assert (observer.raised, lengths) == (None, [1])


async def test_a_task_that_a_hook_starts_may_wait_for_it():
    """It waits for the hook, and the hook does not wait for it."""
    tasks = []

    async def start(observer):
        tasks.append(asyncio.create_task(observer.manager.drain()))

    observer = Calls(start)
    await agent_with(observer).run_async(1, HELLO, enable_streaming=True)
    await asyncio.gather(*tasks)
    assert observer.raised is None


async def test_another_manager_may_be_waited_for_in_a_hook():
    """What waits for others does not wait for itself."""
    other = StreamingManager()

    async def close_other(observer):
        await other.drain()
        await other.aclose()

    observer = Calls(close_other)
    await agent_with(observer).run_async(1, HELLO, enable_streaming=True)
    assert observer.raised is None


async def test_an_observer_that_has_left_may_drain(caplog):
    """It was removed in this very hook, and is waited for by nobody but who closes the manager."""

    async def leave_and_drain(observer):
        manager = observer.manager
        manager.remove_observer(observer)
        await manager.drain()

    observer = Calls(leave_and_drain)
    agent = agent_with(observer)
    with caplog.at_level(logging.WARNING, "rollcast"):
        await agent.run_async(1, HELLO, enable_streaming=True)
        await agent.streaming_manager.aclose()
    assert (observer.raised, observer.closed, caplog.messages) == (None, True, [])


async def test_the_last_hook_cannot_wait_for_its_own_end():
    """`aclose` of the manager waits until `aclose` of the observer has ended."""

    class Closes(StreamObserver):
        raised = None

        async def on_event(self, event):
            pass

        async def aclose(self):
            try:
                await manager.aclose()
            except InputError as error:
                self.raised = error

    manager = StreamingManager(drain_timeout=NEVER_S)
    observer = Closes()
    manager.add_observer(observer)
    await manager.aclose()
    assert "in a hook of Closes" in str(observer.raised)
