"""The producer API: whatever is raised, what was opened is closed."""

import asyncio
import threading

import pytest

from rollcast import BaseAgent, StreamingManager, current_chain, tool
from rollcast.testing import ScriptedBackend, capture_events

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("inside", ["run", "chain", "generation", "tool"])
@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_exception_anywhere_closes_everything_around_it(inside, error):
    """From the inside out, and it is raised."""
    manager = StreamingManager()

    def work():
        with manager.run() as run:
            if inside == "run":
                raise error
            with run.chain(HELLO) as chain:
                if inside == "chain":
                    raise error
                with chain.generation() as generation:
                    generation.chunk("half a ")
                    if inside == "generation":
                        raise error
                with chain.tool_call("search", {"q": "x"}) as call:
                    call.observation("so far", partial=True)
                    if inside == "tool":
                        raise error

    with capture_events(manager) as capture, pytest.raises(type(error)):
        work()
    manager.close()
    capture.check()
    status = "failed" if isinstance(error, ValueError) else "cancelled"
    assert capture.events[-1].data["status"] == status
    if inside != "run":
        assert capture.of("chain_end")[0].data["finish_reason"] == (
            "error" if status == "failed" else "cancelled"
        )
        assert len(capture.of("error")) == (status == "failed")
    if inside == "tool":
        assert capture.of("tool_observation")[-1].data["partial"] is False


def test_chains_from_several_threads():
    """One run, many threads: each chain is whole, and seq has no hole."""
    manager = StreamingManager()

    def one(run, i):
        with run.chain(HELLO, chain_id=f"mine_{i}") as chain, chain.generation() as generation:
            for j in range(50):
                generation.chunk(f"{i}.{j} ", [j], [-0.5])

    with capture_events(manager) as capture, manager.run(chains=8) as run:
        threads = [threading.Thread(target=one, args=(run, i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    manager.close()
    capture.check()
    assert [e.seq for e in capture.events] == list(range(len(capture.events)))
    for i in range(8):
        assert capture.text(f"mine_{i}") == "".join(f"{i}.{j} " for j in range(50))


def test_a_trajectory_comes_out():
    """A loop of one's own has the same trajectory as an agent's."""
    manager = StreamingManager()
    with manager.run() as run, run.chain(HELLO, row={"answer": 4}) as chain:
        with chain.generation(prompt_ids=[1, 2]) as generation:
            generation.chunk("fo", [3], [-0.5])
            generation.chunk("ur", [4], [-0.25])
        chain.reward(1.0, {"length": 4})
    t = chain.trajectory
    assert (t.token_ids, t.loss_mask, t.logprobs) == ([1, 2, 3, 4], [0, 0, 1, 1], [0.0, 0.0, -0.5, -0.25])
    assert (t.final_response, t.reward, t.metrics, t.finish_reason) == (
        "four",
        1.0,
        {"length": 4},
        "answered",
    )


def test_depth_counts_from_the_last_fresh_prompt():
    """It equals `step` until a prompt is rendered afresh; the first prompt always is one, and not said to be."""
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run() as run, run.chain(HELLO) as chain:
        for fresh in (True, False, True, False):
            with chain.generation(prompt_ids=[1], fresh=fresh) as generation:
                generation.chunk("a", [2])
            with chain.tool_call("search", {}) as call:
                call.observation("b")
        snapshot = chain.snapshot()
    manager.close()
    for event in capture.events:
        if event.step is not None:
            assert event.depth == {1: 1, 2: 2, 3: 1, 4: 2}[event.step]
    assert {e.event_type.value for e in capture.events if e.depth == 1} >= {
        "llm_generation_start", "llm_generation_chunk", "llm_generation_end",
        "tool_call_start", "tool_observation", "tool_call_end",
    }  # fmt: skip
    assert (snapshot.step, snapshot.depth) == (4, 2)
    assert [turn.fresh for turn in chain.trajectory.turns] == [False, False, True, False]


async def test_code_deep_inside_finds_its_chain():
    """Each task its own; outside there is none."""
    manager = StreamingManager()

    async def deep(word):
        await asyncio.sleep(0)
        with current_chain().generation() as generation:
            generation.chunk(word)
            await asyncio.sleep(0)

    async def one(run, word):
        with run.chain(HELLO):
            await deep(word)
        assert current_chain().trajectory is None

    with capture_events(manager) as capture:
        async with manager.run(chains=3) as run:
            await asyncio.gather(*(one(run, word) for word in ("a", "b", "c")))
    capture.check()
    assert sorted(capture.text(f"chain_{i}") for i in range(3)) == ["a", "b", "c"]


async def test_a_tool_finds_its_chain():
    """In the loop and on a thread."""
    seen = []

    @tool
    def on_a_thread() -> str:
        """Look."""
        seen.append(current_chain().trajectory.chain_id)
        return "ok"

    @tool
    async def in_the_loop() -> str:
        """Look."""
        seen.append(current_chain().trajectory.chain_id)
        return "ok"

    calls = "".join(
        f'<tool_call>{{"name": "{n}", "arguments": {{}}}}</tool_call>' for n in ("on_a_thread", "in_the_loop")
    )
    backend = ScriptedBackend([calls, "done"])
    agent = BaseAgent("scripted", tools=[on_a_thread, in_the_loop], backend=backend)
    await agent.run_async(3, HELLO, num_chains=2)
    assert sorted(seen) == ["chain_0", "chain_0", "chain_1", "chain_1"]


def test_outside_a_chain_nothing_happens():
    """The same calls do nothing."""
    chain = current_chain()
    with chain.generation() as generation:
        generation.chunk("x", [1], [-1.0])
    with chain.tool_call("t", {}) as call:
        call.observation("y", partial=True)
    chain.reward(1.0)
    chain.error("no", "agent")
    chain.message({"role": "user", "content": "x"})
    assert not chain.live
    assert not chain.wants("chain_end")


def test_inside_a_loop_the_synchronous_form_does_not_wait_for_the_loop():
    """It would wait for itself; the asynchronous form is for that."""
    manager = StreamingManager(drain_timeout=60)

    async def work():
        with capture_events(manager) as capture:
            with manager.run() as run, run.chain(HELLO):
                pass
            await manager.drain()
        return capture

    async def whole():
        async with asyncio.timeout(60):
            return await work()

    asyncio.run(whole()).check()
    manager.close()


def test_chains_that_ended_are_not_kept_by_those_that_follow():
    """In one context, each begun before the one before it has ended: no chain remembers more than its neighbour."""
    with StreamingManager().run() as run:
        before = run.chain(HELLO).start()
        for _ in range(5):
            after = run.chain(HELLO).start()
            before.end("answered")
            before = after
        assert before.around.around is None
        before.end("answered")
    assert current_chain().trajectory is None


def test_a_run_knows_its_manager():
    """A loop of one's own waits for lossless observers with `run.manager.ready()`."""
    manager = StreamingManager()
    with manager.run() as run:
        assert run.manager is manager
