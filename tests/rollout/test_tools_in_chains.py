"""Tools as chains use them: side by side, with state of their own, cancelled, and with images."""

import asyncio
import logging
import struct
import subprocess
import sys
import threading

import pytest

from rollcast import BaseAgent, ChainContext, tool
from rollcast.errors import InputError
from rollcast.testing import ScriptedBackend, capture_events
from rollcast.tools import Image, Injected

HELLO = [{"role": "user", "content": "go"}]


def call(name, arguments="{}"):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def agent_of(*tools, text, kind=BaseAgent):
    return kind("scripted", tools=tools, backend=ScriptedBackend([text, "done"]))


async def test_parallel_calls_are_told_apart():
    """Each has an id of its own, in its events, in the assistant's message and in the tool's, though they interleave."""
    second_began = asyncio.Event()

    @tool
    async def first() -> str:
        async with asyncio.timeout(60):
            await second_began.wait()
        return "first"

    @tool
    async def second():
        yield "sec"
        second_began.set()
        yield "ond"

    agent = agent_of(first, second, text=call("first") + call("second"))
    with capture_events(agent.streaming_manager) as capture:
        (t,) = await agent.run_async(3, HELLO, enable_streaming=True)
    capture.check()
    ids = [e.data["call_id"] for e in capture.of("tool_call_start")]
    assert len(set(ids)) == 2
    said = {
        i: [e.data["observation"] for e in capture.of("tool_observation") if e.data["call_id"] == i]
        for i in ids
    }
    assert said == {ids[0]: ["first"], ids[1]: ["sec", "ond", "second"]}
    assert {e.data["call_id"] for e in capture.of("tool_call_end")} == set(ids)
    assert [c["id"] for c in t.messages[1]["tool_calls"]] == ids
    assert [m["tool_call_id"] for m in t.messages if m["role"] == "tool"] == ids
    assert [r.call.call_id for r in t.tool_calls] == ids


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_partial_output_is_streamed_while_the_tool_runs(kind):
    """The first piece is seen before the tool goes on; the last observation is the whole."""
    seen = asyncio.Event()
    loop_has_seen = threading.Event()

    if kind == "sync":

        @tool
        def work():
            yield "a"
            assert loop_has_seen.wait(60)
            yield "b"
    else:

        @tool
        async def work():
            yield "a"
            async with asyncio.timeout(60):
                await seen.wait()
            yield "b"

    agent = agent_of(work, text=call("work"))
    async with agent.run_async_streaming(3, HELLO) as stream:
        events = []
        async for event in stream:
            events.append(event)
            if event.event_type == "tool_observation" and event.data["partial"]:
                seen.set()
                loop_has_seen.set()
    pieces = [
        (e.data["observation"], e.data["partial"]) for e in events if e.event_type == "tool_observation"
    ]
    assert pieces == [("a", True), ("b", True), ("ab", False)]


class Cart:
    """What one customer buys."""

    def __init__(self) -> None:
        self.items: list[str] = []


class Shop:
    """One shop for all chains; what belongs to a chain lives in its context."""

    def __init__(self) -> None:
        self.sold = 0

    def cart(self, ctx: ChainContext) -> Cart:
        return ctx.state.setdefault("cart", Cart())

    async def buy(self, item: str, ctx: ChainContext) -> dict[str, object]:
        """Buy something."""
        self.sold += 1
        self.cart(ctx).items.append(item)
        return {"cart": self.cart(ctx).items, "shared": self.sold > 0}


async def test_methods_of_a_shared_object_keep_a_chains_state_apart():
    """The object is one, the cart is each chain's; the reward finds it."""
    shop = Shop()

    def items(ctx):
        return float(len(ctx.state["cart"].items))

    script = [call("buy", '{"item": "tea"}'), call("buy", '{"item": "cup"}'), "done"]
    agent = BaseAgent("scripted", tools=[shop.buy], backend=ScriptedBackend(script), reward=items)
    result = await agent.run_async(5, HELLO, num_chains=8)
    assert [[r.observation for r in t.tool_calls] for t in result] == [
        ['{"cart": ["tea"], "shared": true}', '{"cart": ["tea", "cup"], "shared": true}']
    ] * 8
    assert {t.reward for t in result} == {2.0}
    assert shop.sold == 16


@pytest.mark.parametrize("generator", [False, True])
async def test_cancellation_reaches_a_running_tool(generator):
    """Its `finally` has run, awaits included, before the call's and the chain's events close."""
    running = asyncio.Event()
    order: list[str] = []

    async def stay():
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            order.append("cleaned up")

    if generator:

        @tool
        async def work():
            yield "begun"
            await stay()
    else:

        @tool
        async def work():
            await stay()

    agent = agent_of(work, text=call("work") + call("work"))
    with capture_events(agent.streaming_manager) as capture:
        on_event = capture.on_event

        async def note(event):
            if event.event_type in ("tool_call_end", "chain_end", "run_end"):
                order.append(event.event_type)
            await on_event(event)

        capture.on_event = note
        task = asyncio.create_task(agent.run_async(3, HELLO, enable_streaming=True))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    capture.check()
    assert order == ["cleaned up"] * 2 + ["tool_call_end"] * 2 + ["chain_end", "run_end"]
    assert {e.data["status"] for e in capture.of("tool_call_end")} == {"cancelled"}


async def test_a_sync_tool_that_is_cancelled_is_left_behind_by_name(caplog):
    """The run ends at once, and a warning names the thread that still runs."""
    gate, running = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @tool(timeout=None)
    def stuck() -> None:
        loop.call_soon_threadsafe(running.set)
        gate.wait()

    agent = agent_of(stuck, text=call("stuck"))
    with capture_events(agent.streaming_manager) as capture:
        task = asyncio.create_task(agent.run_async(3, HELLO, enable_streaming=True))
        await running.wait()
        with caplog.at_level(logging.WARNING, "rollcast.tools"):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert not gate.is_set()
    capture.check()
    assert "thread rollcast-tool-stuck still runs though its call was cancelled" in caplog.text
    gate.set()


def test_a_cancelled_sync_tool_does_not_hold_the_interpreter():
    """The program ends though the abandoned tool never does."""
    program = """
import asyncio, threading
from rollcast import BaseAgent, tool
from rollcast.testing import ScriptedBackend

async def main():
    loop, running = asyncio.get_running_loop(), asyncio.Event()

    @tool(timeout=None)
    def stuck() -> None:
        loop.call_soon_threadsafe(running.set)
        threading.Event().wait()

    backend = ScriptedBackend('<tool_call>{"name": "stuck"}</tool_call>')
    agent = BaseAgent("s", tools=[stuck], backend=backend)
    task = asyncio.create_task(agent.run_async(1, [{"role": "user", "content": "go"}]))
    await running.wait()
    task.cancel()
    await asyncio.wait([task])
    print(task.cancelled())

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "True\n"
    assert "rollcast-tool-stuck" in done.stderr


PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + bytes(12_305)


@tool
async def draw() -> Image:
    """Draw."""
    return Image(PNG)


async def test_an_image_is_text_in_events_and_messages():
    """Events stay small and JSON; a model without eyes reads the note."""
    agent = agent_of(draw, text=call("draw"))
    with capture_events(agent.streaming_manager) as capture:
        (t,) = await agent.run_async(3, HELLO, enable_streaming=True)
    (observation,) = capture.of("tool_observation")
    assert observation.data["observation"] == f"[image/png 640x480, {len(PNG)} bytes]"
    assert t.messages[2]["content"] == observation.data["observation"]


async def test_an_agent_may_show_images_to_its_model():
    """`tool_message` chooses the parts, and the backend gets them; the events stay as they are."""

    class Seeing(BaseAgent):
        def tool_message(self, call, result):
            message = super().tool_message(call, result)
            return {**message, "content": result.parts} if result.images else message

    agent = agent_of(draw, text=call("draw"), kind=Seeing)
    with capture_events(agent.streaming_manager) as capture:
        await agent.run_async(3, HELLO, enable_streaming=True)
    content = agent.backend.requests[1].messages[2]["content"]
    assert [part["type"] for part in content] == ["text", "image_url"]
    assert content[1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert capture.of("tool_observation")[0].data["observation"].startswith("[image/png")


def test_a_tool_that_wants_another_context_is_refused():
    """When the agent is made, not when the model first calls it."""

    class Other(Injected):
        pass

    def ask(ctx: Other) -> str:
        """Ask."""
        return "x"

    with pytest.raises(
        InputError, match="tool 'ask' takes a Other as its parameter 'ctx', and chains give a ChainContext"
    ):
        agent_of(ask, text="")
