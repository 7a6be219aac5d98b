"""What a chain is given while it runs: rewards of steps, messages from outside; and what its run tells about itself."""

import asyncio
import json
import math
import threading

import pytest

from rollcast import BaseAgent, ChainContext, Sampling, reward, tool
from rollcast.errors import InputError, MessagesError
from rollcast.records import prompt_hash
from rollcast.testing import ScriptedBackend, capture_events

HELLO = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'


@tool
def look(ctx: ChainContext) -> str:
    """Look around."""
    ctx.step_reward(0.25, {"seen": 1})
    ctx.add_message({"role": "user", "content": "Hurry!"})
    return "nothing"


async def played(agent, rows=HELLO, chains=1, **about):
    """The run's events and trajectories, checked against the grammar."""
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(4, rows, chains, enable_streaming=True, **about)
    capture.check()
    return capture, result


# -- while it runs -------------------------------------------------------------------------------------------------------


async def test_a_tool_gives_rewards_and_messages():
    """They come after the calls of its turn, in order; the model reads the message; the chain's reward can add them up."""

    @reward
    def total(trajectory):
        return sum(each.reward for each in trajectory.step_rewards)

    backend = ScriptedBackend([CALL + CALL, CALL, "done"])
    capture, (t,) = await played(BaseAgent(tools=[look], backend=backend, reward=total))
    kinds = [
        str(e.event_type) for e in capture.events if e.event_type in ("reward", "message", "tool_call_end")
    ]
    given = ["reward", "message"]
    assert kinds == ["tool_call_end"] * 2 + given * 2 + ["tool_call_end", *given, "reward"]
    assert [(e.step, e.data["final"]) for e in capture.of("reward")] == [(1, False)] * 2 + [
        (2, False),
        (3, True),
    ]
    assert [(r.step, r.reward, r.metrics) for r in t.step_rewards] == [
        (s, 0.25, {"seen": 1}) for s in (1, 1, 2)
    ]
    assert t.reward == 0.75
    assert [m["role"] for m in t.messages] == [
        "user", "assistant", "tool", "tool", "user", "user", "assistant", "tool", "user", "assistant",
    ]  # fmt: skip


async def test_watched_or_not_the_chain_is_the_same():
    """What tools give is part of the trajectory, not of the events."""
    agent = BaseAgent(tools=[look], backend=ScriptedBackend([CALL, "done"]))
    _, (watched,) = await played(agent, seed=1)
    (alone,) = await agent.run_async(4, HELLO, seed=1)
    assert watched.digest() == alone.digest()
    assert watched.step_rewards == alone.step_rewards


async def test_the_reward_itself_may_give_rewards_of_steps():
    """They come before the chain's own, also if that fails."""

    @reward
    def split(ctx, fails):
        ctx.step_reward(0.5)
        if fails:
            raise ValueError("no")
        return 1

    agent = BaseAgent(backend=ScriptedBackend("done"), reward=split)
    rows = [{"messages": HELLO, "fails": fails} for fails in (False, True)]
    capture, (good, bad) = await played(agent, rows)
    told = {
        name: [d.data["final"] for d in capture.of("reward") if d.chain_id == name]
        for name in ("chain_0", "chain_1")
    }
    assert told == {"chain_0": [False, True], "chain_1": [False]}
    assert (good.reward, bad.reward) == (1.0, None)
    assert [each.reward for each in bad.step_rewards] == [0.5]


@pytest.mark.parametrize(
    ("give", "kind"),
    [
        (lambda ctx: ctx.step_reward(math.nan), InputError),
        (lambda ctx: ctx.step_reward("much"), InputError),
        (lambda ctx: ctx.add_message({"role": "user"}), MessagesError),
        (lambda ctx: ctx.add_message("hello"), MessagesError),
    ],
)
async def test_what_is_wrong_is_refused_in_the_tool(give, kind):
    """There its author sees it, and the chain goes on."""
    found = []

    @tool
    def look(ctx: ChainContext) -> str:
        """Look."""
        with pytest.raises(kind) as caught:
            give(ctx)
        found.append(str(caught.value))
        return "nothing"

    _, (t,) = await played(BaseAgent(tools=[look], backend=ScriptedBackend([CALL, "done"])))
    assert "expected" in found[0] or "give" in found[0]
    assert (t.finish_reason, t.step_rewards, len(t.messages)) == ("answered", [], 4)


async def test_an_ended_chain_takes_nothing():
    """A tool that was left behind is told so, instead of giving into the void."""
    kept, ended, refused = [], threading.Event(), threading.Event()

    @tool
    def look(ctx: ChainContext) -> str:
        """Look."""

        def later():
            ended.wait(60)
            with pytest.raises(InputError, match="takes no more"):
                ctx.step_reward(1)
            refused.set()

        threading.Thread(target=later, daemon=True).start()
        kept.append(ctx)
        return "nothing"

    _, (t,) = await played(BaseAgent(tools=[look], backend=ScriptedBackend([CALL, "done"])))
    ended.set()
    assert await asyncio.to_thread(refused.wait, 60)
    with pytest.raises(InputError, match="takes no more"):
        kept[0].add_message({"role": "user", "content": "x"})
    assert t.step_rewards == []


class Asked(BaseAgent):
    """A user who asks twice."""

    async def next_message(self, trajectory, ctx):
        """Ask for more, until there are two answers."""
        ctx.step_reward(0.5)
        return {"role": "user", "content": "Sure?"} if len(trajectory.turns) < 2 else None


async def test_somebody_may_answer_a_turn_without_calls():
    """The chain goes on with that message; with None it ends; after the last turn nobody is asked."""
    agent = Asked(backend=ScriptedBackend(["4", "Yes.", "Really."]))
    capture, (t,) = await played(agent)
    assert [e.data for e in capture.of("message")] == [{"role": "user", "content": "Sure?"}]
    assert (t.finish_reason, t.final_response, len(t.turns)) == ("answered", "Yes.", 2)
    assert [r.step for r in t.step_rewards] == [1, 2]
    (t,) = await agent.run_async(1, HELLO)
    assert (t.finish_reason, len(t.turns), t.step_rewards) == ("answered", 1, [])


async def test_a_failure_of_whoever_answers_is_the_agents():
    """The chain ends with it, and its siblings go on."""

    class Broken(BaseAgent):
        async def next_message(self, trajectory, ctx):
            raise ValueError("out of words")

    capture, (t,) = await played(Broken(backend=ScriptedBackend("4")))
    assert (t.finish_reason, t.reward) == ("error", None)
    (error,) = capture.of("error")
    assert (error.data["where"], error.data["error_type"]) == ("agent", "ValueError")


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        (asyncio.CancelledError(), "was cancelled from within"),
        (SystemExit(3), "3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
async def test_whoever_answers_cannot_stop_the_program(fails, says):
    """What ends more than a chain ends the chain alone, if its own code raises it."""

    class Broken(BaseAgent):
        async def next_message(self, trajectory, ctx):
            raise fails

    _, (t,) = await played(Broken(backend=ScriptedBackend("4")))
    assert (t.finish_reason, says in t.error) == ("error", True)


async def test_one_who_answers_is_an_async_function():
    """The sentence says so."""

    class Plain(BaseAgent):
        def next_message(self, trajectory, ctx):
            return {"role": "user", "content": "And?"}

    _, (t,) = await played(Plain(backend=ScriptedBackend("4"), name="plain"))
    assert "next_message of agent plain returned dict; define it with `async def`" in t.error


async def test_a_wrong_message_is_the_agents_failure():
    """It has no role that a model could read."""

    class Wrong(BaseAgent):
        async def next_message(self, trajectory, ctx):
            return {"content": "And?"}

    capture, (t,) = await played(Wrong(backend=ScriptedBackend("4")))
    assert "a message for chain_0[0] has role None" in t.error
    assert capture.of("error")[0].data["where"] == "agent"


async def test_whoever_does_not_answer_does_not_hold_a_cancelled_run():
    """It ignores its cancellation, and is left behind after the grace period."""
    asked, over = asyncio.Event(), asyncio.Event()

    class Deaf(BaseAgent):
        cancel_grace_s = 0.05

        async def next_message(self, trajectory, ctx):
            asked.set()
            while not over.is_set():
                try:
                    await over.wait()
                except asyncio.CancelledError:
                    continue

    run = Deaf(backend=ScriptedBackend("4")).prepare(4, HELLO)
    running = asyncio.create_task(run.execute())
    await asked.wait()
    run.cancel()
    async with asyncio.timeout(60):
        (t,) = await running
    assert t.finish_reason == "cancelled"
    over.set()


# -- about itself --------------------------------------------------------------------------------------------------------


async def test_a_run_tells_how_to_get_it_again():
    """Its seed, also one that was drawn; sampling, settings and the schemas of the tools, and nothing secret."""
    agent = BaseAgent(
        tools=[look],
        backend=ScriptedBackend("done"),
        reward=lambda: 1,
        backend_options=None,
        system_prompt="Be brief.",
    )
    capture, result = await played(
        agent, sampling=Sampling(temperature=0.5, stop=("x",)), max_concurrent_chains=3
    )
    start = capture.of("run_start")[0].data
    assert start["seed"] == result.seed
    assert start["sampling"] == {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 256,
        "stop": ["x"],
    }
    assert start["settings"] == {
        "max_steps": 4,
        "num_chains": 1,
        "max_concurrent_chains": 3,
        "reward": "<lambda>",
    }
    assert start["tools"] == [look.schema]
    again = await agent.run_async(
        4, HELLO, seed=start["seed"], sampling=Sampling(**start["sampling"] | {"stop": ("x",)})
    )
    assert [t.digest() for t in again] == [t.digest() for t in result]


async def test_a_chain_tells_its_question_its_seed_and_its_row():
    """Repeats of a row have its hash and a seed of their own, in every run."""
    rows = [{"messages": [{"role": "user", "content": text}], "answer": 1, "level": text} for text in "ab"]
    agent = BaseAgent(backend=ScriptedBackend("done"))
    starts = []
    for _ in range(2):
        capture, _ = await played(agent, rows, 2, seed=7)
        starts.append({e.chain_id: e.data for e in capture.of("chain_start")})
    for name in starts[0]:
        assert starts[0][name] == starts[1][name]
    told = list(starts[0].values())
    assert [d["prompt_hash"] for d in told] == [prompt_hash(rows[r]["messages"]) for r in (0, 0, 1, 1)]
    assert [d["row"] for d in told] == [{"level": level} for level in "aabb"]
    assert len({d["seed"] for d in told}) == 4
    assert not any("parent_chain_id" in d or "attempt" in d for d in told)


async def test_a_sub_agents_run_names_the_chain_that_began_it():
    """Its run has that chain's as its parent, so that a watcher finds one under the other."""
    inner = BaseAgent(backend=ScriptedBackend("found"), name="inner")

    @tool
    async def look() -> str:
        """Ask another agent."""
        (t,) = await inner.run_async(1, HELLO, enable_streaming=True)
        return t.final_response

    outer = BaseAgent(
        tools=[look], backend=ScriptedBackend([CALL, "done"]), streaming_manager=inner.streaming_manager
    )
    capture, _ = await played(outer)
    first, second = capture.of("run_start")
    assert "parent_run_id" not in first.data
    assert second.data["parent_run_id"] == first.run_id
    parents = {e.run_id: e.data.get("parent_chain_id") for e in capture.of("chain_start")}
    assert parents == {first.run_id: None, second.run_id: "chain_0"}


async def test_a_large_row_is_shown_as_far_as_there_is_room():
    """All its fields together take no more than one field may; those beyond are described."""
    row = {"messages": HELLO, **{f"part{i}": "x" * 40_000 for i in range(50)}, "level": "hard"}
    capture, _ = await played(BaseAgent(backend=ScriptedBackend("done")), [row])
    shown = capture.of("chain_start")[0].data["row"]
    assert shown.keys() == row.keys() - {"messages"}
    assert (len(shown["part0"]), shown["part1"], shown["level"]) == (40_000, "<str (40000)>", "hard")
    assert len(json.dumps(shown)) < 70_000
