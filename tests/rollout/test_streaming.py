"""`run_async_streaming`: a run as a stream of events."""

import asyncio

import pytest

from rollcast import BaseAgent, EventFilter, StreamEventType
from rollcast.errors import InputError
from rollcast.records import check_events
from rollcast.testing import ScriptedBackend

T = StreamEventType
HELLO = [{"role": "user", "content": "hello"}]


def agent(**options):
    script = options.pop("script", "one two three four five")
    return BaseAgent("scripted", backend=ScriptedBackend(script, **options))


async def test_it_is_an_iterator():
    """Every event of the run, and nothing is left behind."""
    subject = agent()
    stream = subject.run_async_streaming(1, HELLO, num_chains=2)
    events = [event async for event in stream]
    check_events(events)
    assert stream.result.status == "completed"
    for t in stream.result:
        chunks = [e for e in events if e.chain_id == t.chain_id and e.event_type is T.LLM_GENERATION_CHUNK]
        assert "".join(e.data["content"] for e in chunks) == t.final_response
    assert subject.streaming_manager.observers == []


async def test_it_is_a_context_manager():
    """The result is whole when the events have ended."""
    async with agent().run_async_streaming(1, HELLO) as stream:
        kinds = [event.event_type async for event in stream]
    assert kinds[-1] is T.RUN_END
    assert stream.result.trajectories[0].finish_reason == "answered"


@pytest.mark.parametrize("entered", [True, False])
async def test_leaving_early_cancels_and_keeps_the_partial_trajectories(entered, until):
    """Chains are closed properly, and what was said stands in the result."""
    subject = agent(script="one " * 1000)
    stream = subject.run_async_streaming(1, HELLO, num_chains=3, sampling={"max_tokens": 1000})

    async def read():
        async for event in stream:
            if event.event_type is T.LLM_GENERATION_CHUNK and event.data["offset"] > 0:
                break

    if entered:
        async with stream:
            await read()
    else:
        await read()
        await stream.wait()
    assert stream.result.status == "cancelled"
    assert {t.finish_reason for t in stream.result} == {"cancelled"}
    assert all(t.turns[0].text.startswith("one") for t in stream.result if t.turns)
    assert not subject.backend.running
    await until(lambda: subject.streaming_manager.observers == [])


async def test_a_filtered_stream_ends_at_its_chain_and_the_run_goes_on():
    """Reading one chain to its end cancels no other."""
    async with agent().run_async_streaming(1, HELLO, num_chains=3, chain_filter="chain_0") as stream:
        events = [event async for event in stream]
    assert {e.chain_id for e in events} == {"chain_0"}
    assert events[-1].event_type is T.CHAIN_END
    assert [t.finish_reason for t in stream.result] == ["answered"] * 3


async def test_one_chain_can_be_cancelled():
    """Its siblings finish, and its end is among the events."""
    async with agent().run_async_streaming(1, HELLO, num_chains=3) as stream:
        events = []
        async for event in stream:
            events.append(event)
            if event.chain_id == "chain_1" and event.event_type is T.LLM_GENERATION_CHUNK:
                stream.cancel("chain_1")
    check_events(events)
    assert [t.finish_reason for t in stream.result] == ["answered", "cancelled", "answered"]


async def test_the_run_can_be_cancelled_from_inside():
    """The events of its ending still come."""
    async with agent().run_async_streaming(1, HELLO, num_chains=3) as stream:
        events = []
        async for event in stream:
            events.append(event)
            if event.event_type is T.LLM_GENERATION_CHUNK:
                stream.cancel()
    check_events(events)
    assert events[-1].data["status"] == stream.result.status == "cancelled"


async def test_cancelling_the_reader_cancels_the_run():
    """Nothing is left running."""
    forever = asyncio.Event()

    async def hang(request, i):
        await forever.wait()

    subject = agent(before_token=hang)
    stream = subject.run_async_streaming(1, HELLO)
    started = asyncio.Event()

    async def read():
        async for _ in stream:
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.result.trajectories[0].finish_reason == "cancelled"
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_exception_in_the_block_cancels_the_run():
    """And is raised."""
    with pytest.raises(RuntimeError, match="mine"):
        async with agent().run_async_streaming(1, HELLO) as stream:
            raise RuntimeError("mine")
    assert stream.result.status == "cancelled"


async def test_a_callback_is_called_beside():
    """With the text of each chunk."""
    texts = []
    async with agent().run_async_streaming(1, HELLO, streaming_callback=texts.append) as stream:
        async for _ in stream:
            pass
    assert "".join(texts) == "one two three four five"


async def test_two_streams_of_one_agent_do_not_mix():
    """Each has its own run."""
    subject = agent()

    async def read():
        stream = subject.run_async_streaming(1, HELLO, num_chains=2)
        return [event async for event in stream]

    one, other = await asyncio.gather(read(), read())
    check_events(one)
    check_events(other)
    assert one[0].run_id != other[0].run_id


async def test_types_can_be_chosen():
    """The stream ends although the run's end is filtered out."""
    stream = agent().run_async_streaming(1, HELLO, chain_filter=EventFilter(types=[T.CHAIN_END]))
    assert [event.event_type async for event in stream] == [T.CHAIN_END]


async def test_bad_arguments_are_refused_at_the_call():
    """Before anything starts."""
    with pytest.raises(InputError, match="max_steps"):
        agent().run_async_streaming(0, HELLO)


async def test_events_are_read_once():
    """A second loop ends at once, and a second reader beside the first is told so, instead of waiting for ever."""
    async with asyncio.timeout(60), agent().run_async_streaming(1, HELLO) as stream:
        first = aiter(stream)
        await anext(first)
        with pytest.raises(InputError, match="being read"):
            await anext(aiter(stream))
        assert [event async for event in first]
        assert [event async for event in stream] == []


async def test_waiting_for_the_run_leaves_no_observer(until):
    """Its events can be read afterwards all the same."""
    subject = agent()
    stream = subject.run_async_streaming(1, HELLO)
    await stream.wait()
    await until(lambda: subject.streaming_manager.observers == [])
    check_events([event async for event in stream])
