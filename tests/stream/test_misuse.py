"""A loop of one's own that is wrong is told so where it is wrong, and its events obey the grammar all the same."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest

from rollcast import InputError, StreamingManager, current_chain
from rollcast.testing import capture_events

HELLO = [{"role": "user", "content": "hello"}]


def generated(chain):
    with chain.generation() as generation:
        generation.chunk("x")


def chain_not_entered(run):
    generated(run.chain(HELLO))


def chain_not_entered_ends(run):
    run.chain(HELLO).end("answered")


def chain_entered_twice(run):
    with run.chain(HELLO) as chain, chain:
        pass


def generation_after_the_end(run):
    with run.chain(HELLO) as chain:
        chain.end("max_steps")
        generated(chain)


def generation_not_entered(run):
    with run.chain(HELLO) as chain:
        chain.generation().chunk("x")


def generation_after_the_reward(run):
    with run.chain(HELLO) as chain:
        chain.reward(1.0)
        generated(chain)


def generation_inside_a_tool_call(run):
    with run.chain(HELLO) as chain:
        generated(chain)
        with chain.tool_call("ask", {}):
            generated(chain)


def tool_call_after_the_end(run):
    with run.chain(HELLO) as chain:
        generated(chain)
        chain.end("answered")
        chain.tool_call("ask", {}).start()


def tool_call_inside_a_generation(run):
    with run.chain(HELLO) as chain, chain.generation(), chain.tool_call("ask", {}):
        pass


def tool_call_before_any_generation(run):
    with run.chain(HELLO) as chain, chain.tool_call("ask", {}):
        pass


def two_open_calls_of_one_id(run):
    with run.chain(HELLO) as chain:
        generated(chain)
        with chain.tool_call("ask", {}, "a"), chain.tool_call("ask", {}, "a"):
            pass


def reward_inside_a_generation(run):
    with run.chain(HELLO) as chain, chain.generation():
        chain.reward(1.0)


def reward_inside_a_tool_call(run):
    with run.chain(HELLO) as chain:
        generated(chain)
        with chain.tool_call("ask", {}):
            chain.reward(1.0)


def two_rewards(run):
    with run.chain(HELLO) as chain:
        chain.reward(1.0)
        chain.reward(2.0)


def reward_after_the_end(run):
    with run.chain(HELLO) as chain:
        chain.end("answered")
        chain.reward(1.0)


def reward_that_is_no_number(run):
    with run.chain(HELLO) as chain:
        chain.reward("good")


def chunk_of_none(run):
    with run.chain(HELLO) as chain, chain.generation() as generation:
        generation.chunk(None)


def observation_that_is_no_text(run):
    with run.chain(HELLO) as chain:
        generated(chain)
        with chain.tool_call("ask", {}) as call:
            call.observation({"answer": 4})


def unknown_status_of_a_tool(run):
    with run.chain(HELLO) as chain:
        generated(chain)
        with chain.tool_call("ask", {}) as call:
            call.observation("4", "ok")


def unknown_finish_reason_of_a_generation(run):
    with run.chain(HELLO) as chain, chain.generation() as generation:
        generation.end("tool_calls")


def unknown_finish_reason_of_a_chain(run):
    with run.chain(HELLO) as chain:
        chain.end("done")


def one_chain_id_twice(run):
    for _ in range(2):
        with run.chain(HELLO, chain_id="mine"):
            pass


def text_for_messages(run):
    run.chain("hello")


def run_entered_twice(run):
    with run:
        pass


@pytest.mark.parametrize("live", [True, False], ids=["watched", "not watched"])
@pytest.mark.parametrize(
    ("loop", "says"),
    [
        (chain_not_entered, "chain_0 has not begun"),
        (chain_not_entered_ends, "chain_0 has not begun"),
        (chain_entered_twice, "chain_0 has begun already"),
        (generation_after_the_end, r"chain_0 has ended \(max_steps\); it cannot generate"),
        (generation_not_entered, "a generation of chain_0 has not begun"),
        (generation_after_the_reward, "chain_0 has its reward"),
        (generation_inside_a_tool_call, "cannot generate while its tool call ask is open"),
        (tool_call_after_the_end, "it cannot call ask"),
        (tool_call_inside_a_generation, "cannot call ask while its generation is open"),
        (tool_call_before_any_generation, "before any generation"),
        (two_open_calls_of_one_id, "already has an open call 'a'"),
        (reward_inside_a_generation, "cannot be rewarded while its generation is open"),
        (reward_inside_a_tool_call, "cannot be rewarded while its tool call ask is open"),
        (two_rewards, r"has a reward already \(1.0\)"),
        (reward_after_the_end, "it cannot be rewarded"),
        (reward_that_is_no_number, "reward is str; expected a number"),
        (chunk_of_none, "text is None"),
        (observation_that_is_no_text, "observation of ask is dict; expected text"),
        (unknown_status_of_a_tool, "status is 'ok'; expected one of success, error"),
        (unknown_finish_reason_of_a_generation, "finish_reason is 'tool_calls'; expected one of stop"),
        (unknown_finish_reason_of_a_chain, "finish_reason is 'done'; expected one of answered"),
        (one_chain_id_twice, "has a chain 'mine' already"),
        (text_for_messages, "messages is str; expected a list"),
        (run_entered_twice, "was opened already"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_misuse_is_refused(loop, says, live, caplog):
    """With a sentence that says what is wrong; and what was open is closed, once and in order."""
    manager = StreamingManager()
    with (
        capture_events(manager) as capture,
        pytest.raises(InputError, match=says),
        manager.run(live=live) as run,
    ):
        loop(run)
    manager.close()
    capture.check()
    assert bool(capture.events) == live


def test_a_chain_needs_an_open_run():
    """Neither before it nor after it may one begin."""
    run = StreamingManager().run()
    chain = run.chain(HELLO)
    with pytest.raises(InputError, match="its run has not"):
        chain.start()
    run.open()
    run.close()
    with pytest.raises(InputError, match=r"has ended \(completed\)"):
        chain.start()


def test_calls_made_before_they_begin_have_ids_of_their_own():
    """So that a turn's calls can be made first and awaited together; an empty id is none."""
    with StreamingManager().run() as run, run.chain(HELLO) as chain:
        generated(chain)
        calls = [chain.tool_call("ask", {}, ""), chain.tool_call("ask", {})]
        for call in calls:
            call.start().observation("4")
        for call in calls:
            call.end()
    assert [record.call.call_id for record in chain.trajectory.tool_calls] == ["call_0", "call_1"]


def test_an_id_that_is_made_is_not_that_of_an_open_call():
    """A producer's own ids may look like those that are made."""
    with StreamingManager().run() as run, run.chain(HELLO) as chain:
        generated(chain)
        with chain.tool_call("ask", {}, "call_0"), chain.tool_call("ask", {}) as made:
            made.observation("4")
    assert [record.call.call_id for record in chain.trajectory.tool_calls] == ["call_0", "call_1"]


def test_generations_made_before_they_begin_are_counted_when_they_do():
    """The step is that of the beginning; a generation that is still open then ends with `error`."""
    manager = StreamingManager()
    with capture_events(manager) as capture, manager.run() as run, run.chain(HELLO) as chain:
        first, second = chain.generation(), chain.generation()
        first.start().chunk("a")
        second.start().chunk("b")
        first.chunk("too late")
    manager.close()
    capture.check()
    assert [(turn.step, turn.text, turn.finish_reason) for turn in chain.trajectory.turns] == [
        (1, "a", "error"),
        (2, "b", "error"),
    ]


def test_ids_are_found_around_those_that_were_given():
    """A chain without an id takes a free one."""
    with StreamingManager().run() as run:
        ids = [
            run.chain(HELLO, chain_id=chain_id).trajectory.chain_id for chain_id in ("chain_1", None, None)
        ]
    assert ids == ["chain_1", "chain_2", "chain_3"]


def test_the_repeats_of_a_group_are_counted():
    """From 0, in each group; a given index stands."""
    with StreamingManager().run() as run:
        places = [("a", None), ("b", None), ("a", None), (None, None), (None, None), ("b", 7)]
        chains = [run.chain(HELLO, group_id=group, index=index) for group, index in places]
    assert [chain.trajectory.index for chain in chains] == [0, 0, 1, 0, 0, 7]


def test_a_chain_that_others_ended_is_not_found():
    """Where it was ended from another thread, `current_chain` finds the one around it, or none."""
    with StreamingManager().run() as run, run.chain(HELLO) as outer:
        inner = run.chain(HELLO).start()
        assert current_chain() is inner
        thread = threading.Thread(target=inner.end, args=("answered",))
        thread.start()
        thread.join()
        assert current_chain() is outer


def test_numbers_of_other_libraries_become_plain():
    """A NumPy reward is a float in the trajectory, and so it has a digest."""
    with StreamingManager().run() as run, run.chain(HELLO) as chain:
        chain.reward(np.float32(0.5))
    assert type(chain.trajectory.reward) is float
    assert chain.trajectory.digest()


async def test_siblings_that_outlive_their_run_are_stopped():
    """One chain raises, the block is left, and the loop of its sibling is told at its next step."""
    manager, go_on = StreamingManager(), asyncio.Event()

    async def outliving(run):
        with run.chain(HELLO) as chain:
            with chain.generation() as generation:
                generation.chunk("a")
                await go_on.wait()
                generation.chunk("b")
            chain.tool_call("ask", {}).start()

    async def failing(run):
        with run.chain(HELLO):
            raise ConnectionError("gone")

    with capture_events(manager) as capture:
        with contextlib.suppress(ConnectionError):
            async with manager.run(chains=2) as run:
                sibling = asyncio.create_task(outliving(run))
                await asyncio.sleep(0)
                await failing(run)
        go_on.set()
        with pytest.raises(InputError, match=r"chain_0 has ended \(error\)"):
            await sibling
    capture.check()
    assert capture.text("chain_0") == "a"
