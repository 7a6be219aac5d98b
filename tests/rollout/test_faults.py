"""Whatever fails and whenever it is cancelled: the grammar holds, siblings finish, nothing hangs."""

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollcast import BaseAgent, StreamingManager, tool
from rollcast.testing import EventCapture, RaisingObserver, ScriptedBackend, StallingObserver

HELLO = [{"role": "user", "content": "go"}]


def script(request):
    turn = sum(m["role"] == "assistant" for m in request.messages)
    if turn < 2:
        call = f'<tool_call>{{"name": "work", "arguments": {{"n": {turn}}}}}</tool_call>'
        return f"I call. {call} {call}" if turn else f"I call. {call}"
    return "All done now."


@tool(timeout=30)
async def work(n: int) -> str:
    """Take a few turns of the loop."""
    for _ in range(3):
        await asyncio.sleep(0)
    if n == 1:
        raise ValueError("n is 1")
    return "worked"


def chain_of(request):
    return request.request_id.split("/")[1]


faults = st.fixed_dictionaries(
    {
        "chains": st.integers(1, 4),
        "concurrent": st.none() | st.integers(1, 3),
        "fail": st.dictionaries(
            st.sampled_from(["chain_0", "chain_1", "chain_2"]), st.integers(0, 12), max_size=2
        ),
        "cancel_run_after": st.none() | st.integers(0, 120),
        "cancel_chain_after": st.none()
        | st.tuples(st.sampled_from(["chain_0", "chain_1"]), st.integers(0, 120)),
        "kill_task_after": st.none() | st.integers(0, 120),
        "stall": st.none() | st.integers(0, 30),
        "raising": st.none() | st.integers(1, 6),
        "late": st.none() | st.integers(0, 80),
    }
)


async def play(f):
    """Run with the faults; the result or None where the caller was cancelled, and the capture."""
    tokens = dict.fromkeys(f["fail"], 0)

    async def before_token(request, i):
        chain = chain_of(request)
        if chain in tokens:
            tokens[chain] += 1
            if tokens[chain] > f["fail"][chain]:
                raise RuntimeError("injected")

    manager = StreamingManager(drain_timeout=0.02)
    backend = ScriptedBackend(script, before_token=before_token)
    agent = BaseAgent("scripted", tools=[work], backend=backend, streaming_manager=manager)
    capture, late, stalling = EventCapture(), EventCapture(), StallingObserver(after=f["stall"] or 0)
    manager.add_observer(capture)
    if f["stall"] is not None:
        manager.add_observer(stalling)
    if f["raising"] is not None:
        manager.add_observer(RaisingObserver(times=f["raising"]))
    run = agent.prepare(4, HELLO, f["chains"], True, max_concurrent_chains=f["concurrent"], seed=1)
    task = asyncio.create_task(run.execute())

    async def after(ticks, action):
        for _ in range(ticks):
            await asyncio.sleep(0)
        action()

    actions = []
    if f["cancel_run_after"] is not None:
        actions.append(after(f["cancel_run_after"], run.cancel))
    if f["cancel_chain_after"] is not None:
        chain, ticks = f["cancel_chain_after"]
        actions.append(after(ticks, lambda: run.cancel(chain)))
    if f["kill_task_after"] is not None:
        actions.append(after(f["kill_task_after"], task.cancel))
    if f["late"] is not None:
        actions.append(after(f["late"], lambda: manager.add_observer(late)))
    async with asyncio.timeout(60):
        await asyncio.gather(*actions)
        await asyncio.wait([task])
    stalling.release()
    await manager.aclose()
    return run, task, capture, late, backend


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(faults)
def test_the_grammar_holds_and_siblings_finish(f):
    """Backends fail, observers stall and raise, chains and runs are cancelled at any tick."""

    async def whole():
        run, task, capture, late, backend = await play(f)
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return run, task, capture, late, backend

    run, task, capture, late, backend = asyncio.run(whole())
    if not capture.events:  # cancelled before it began
        assert task.cancelled()
        return
    capture.check()
    late.check(late=True)
    assert capture.types()[-1] == "run_end"
    assert not backend.running
    ended = {e.chain_id: e.data["finish_reason"] for e in capture.of("chain_end")}
    killed = task.cancelled() or run.result.status == "cancelled"
    never_began = {t.chain_id for t in run.result.trajectories} - set(ended)
    assert killed or never_began <= {(f["cancel_chain_after"] or ("", 0))[0]}
    for t in run.result.trajectories:
        assert t.finish_reason is not None
        if t.chain_id in ended:
            assert ended[t.chain_id] == t.finish_reason
        if (
            not killed
            and t.chain_id not in f["fail"]
            and (f["cancel_chain_after"] or ("", 0))[0] != t.chain_id
        ):
            assert t.finish_reason == "answered"
            assert [r.status for r in t.tool_calls] == ["success", "error", "error"]
        for turn in t.turns:
            assert capture.text(t.chain_id, turn.step) == turn.text
