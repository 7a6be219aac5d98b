"""Facts about runners and about runs whose chains they play; no Ray is needed."""

import asyncio
import pickle

import pytest

from rollcast import BaseAgent, InputError, tool
from rollcast.errors import WorkersError
from rollcast.fleet import ray_workers
from rollcast.fleet.crossing import PackedAgent
from rollcast.fleet.ray_pool import RunnerDiedError
from rollcast.fleet.ray_workers import _RayRun
from rollcast.fleet.runner import Runner, RunnerOrder
from rollcast.rollout.workers import ChainOrder, first_attempt
from rollcast.tasks import get_task
from rollcast.testing import EventCapture, ScriptedBackend

HELLO = [{"role": "user", "content": "go"}]
WAIT = '<tool_call>{"name": "wait", "arguments": {}}</tool_call>'
QUICK = {"max_tokens": 24}


waiting = []  # one for each call of the tool that has begun


@tool
async def wait() -> str:
    """Wait for ever."""
    waiting.append(1)
    await asyncio.Event().wait()
    return ""


def waiting_agent():
    waiting.clear()
    return BaseAgent("m", [wait], ScriptedBackend([WAIT, "done"]))


class Pool:
    """Runners in this process, in place of those on a cluster.

    Attributes:
        dying: how many calls of `play` from now on end with the death of their runner.
        calls: the methods that were called.
    """

    def __init__(self, runners, *, dying=0):
        self.runners = runners
        self.about = {}
        self.dying = dying
        self.calls = []
        self.at_once = self.most_at_once = 0

    async def take(self):
        if not self.runners:
            raise WorkersError("no runner is left")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        return next(iter(self.runners))

    def give_back(self, name):
        self.at_once -= 1

    async def call(self, name, method, *arguments):
        self.calls.append(method)
        if method == "play" and self.dying:
            self.dying -= 1
            raise RunnerDiedError(f"{name} died: it was killed")
        arguments = pickle.loads(pickle.dumps(arguments))  # as it crosses
        return pickle.loads(pickle.dumps(await getattr(self.runners[name], method)(*arguments)))

    async def call_all(self, method, *arguments, timeout=None):
        return {name: await self.call(name, method, *arguments) for name in self.runners}


class Workers:
    """Has a run's chains played by a pool of one runner in this process."""

    def __init__(self, agent, *, dying=0):
        self.agent, self.dying = agent, dying
        self.pool = None

    async def begin(self, agent, order, rows):
        runner = Runner()
        refusal = (await runner.start(RunnerOrder(PackedAgent("a", None, pickle.dumps(self.agent))))).refusal
        assert not refusal
        self.pool = Pool({"runner_0": runner}, dying=self.dying)
        return _RayRun(self.pool, None, order, agent)


def arithmetic():
    task = get_task("arithmetic")
    return task, BaseAgent(tools=task.tools, reward=task.reward)


async def test_chains_of_a_runner_are_the_same_to_the_bit():
    """Ids, log-probabilities, tool calls, messages and rewards, with the row that each chain has."""
    task, agent = arithmetic()
    rows = task.rows(3, 0)
    here = await agent.run_async(task.max_steps, rows, 2, seed=7, sampling=QUICK)
    there = await agent.run_async(task.max_steps, rows, 2, seed=7, sampling=QUICK, workers=Workers(agent))
    assert [t.digest() for t in there] == [t.digest() for t in here]
    assert [t.row for t in there] == [t.row for t in here]
    assert there.rewards == here.rewards
    await agent.aclose()


async def test_rows_choose_their_tools_there_too():
    """The runner's agent has the tools that the row names: here none, so that what looks like a call is text."""

    agent = BaseAgent("m", [wait], ScriptedBackend([WAIT, "done"]))
    rows = [{"messages": HELLO, "tools": []}]
    (trajectory,) = await agent.run_async(2, rows, workers=Workers(agent))
    assert (trajectory.finish_reason, trajectory.final_response) == ("answered", WAIT)


async def test_no_more_chains_run_at_once_than_allowed():
    """`max_concurrent_chains` holds over all runners."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    workers = Workers(agent)
    await agent.run_async(1, HELLO, 8, max_concurrent_chains=3, workers=workers)
    assert workers.pool.most_at_once == 3


async def test_a_chain_whose_runner_dies_runs_again():
    """It has the same seed and another id; the others are not touched."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    here = await agent.run_async(1, HELLO, 3, seed=1)
    there = await agent.run_async(
        1, HELLO, 3, seed=1, workers=Workers(agent, dying=1), max_concurrent_chains=1
    )
    assert [t.chain_id for t in there] == ["chain_0.2", "chain_1", "chain_2"]
    assert [t.messages for t in there] == [t.messages for t in here]
    assert there.status == "completed"
    assert there["chain_0"] is there["chain_0.2"] is there.trajectories[0]


async def test_a_later_attempt_says_so_in_its_beginning():
    """`attempt` of `chain_start` is 2."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    runner, capture = Runner(), EventCapture()
    await runner.start(RunnerOrder(PackedAgent("a", None, pickle.dumps(agent))))
    runner._agent.streaming_manager.add_observer(capture)
    run = agent.prepare(1, HELLO, enable_streaming=True, seed=1)
    await runner.play(run._run_order(), run._order(0).again(2))
    await runner.end_run(run.run_id, "completed")
    (begun,) = [event for event in capture.events if event.event_type == "chain_start"]
    assert (begun.chain_id, begun.data["attempt"], begun.group_id) == ("chain_0.2", 2, "group_0")
    await runner.close()


async def test_a_chain_that_kills_its_runners_fails_in_the_end():
    """After three attempts it is data: an error that says how the last one died."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    (trajectory,) = await agent.run_async(1, HELLO, workers=Workers(agent, dying=3))
    assert trajectory.finish_reason == "error"
    assert (
        trajectory.error
        == "its runners died with all 3 attempts at it; the last: runner_0 died: it was killed"
    )
    assert trajectory.messages == HELLO


async def test_a_cancelled_chain_brings_what_there_is_of_it(until):
    """The runner ends it properly, its siblings go on."""
    agent = waiting_agent()
    workers = Workers(agent)
    run = agent.prepare(3, HELLO, 2, workers=workers)
    running = asyncio.create_task(run.execute())
    await until(lambda: len(waiting) == 2)
    run.cancel("chain_1")
    await until(lambda: run.result["chain_1"].finish_reason == "cancelled")
    (call,) = run.result["chain_1"].tool_calls
    assert call.status == "cancelled"
    run.cancel()
    result = await running
    assert result.status == "cancelled"
    assert [t.finish_reason for t in result] == ["cancelled"] * 2


async def test_a_cancelled_caller_ends_the_run_everywhere(until):
    """The runner's part ends too."""
    agent = waiting_agent()
    workers = Workers(agent)
    running = asyncio.create_task(agent.run_async(3, HELLO, 2, workers=workers))
    await until(lambda: workers.pool is not None and workers.pool.calls.count("play") == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert workers.pool.calls[-1] == "end_run"
    assert not workers.pool.runners["runner_0"]._parts


async def test_a_runner_that_does_not_end_a_chain_is_left_behind(until, monkeypatch, caplog):
    """The run ends after the grace period and a moment, and a warning names the runner."""
    monkeypatch.setattr(ray_workers, "LEAVE_S", 0.0)
    agent = waiting_agent()
    agent.cancel_grace_s = 0.01
    workers = Workers(agent)
    run = agent.prepare(3, HELLO, workers=workers)
    running = asyncio.create_task(run.execute())
    await until(lambda: workers.pool is not None and "play" in workers.pool.calls)

    async def deaf(*_):
        pass

    workers.pool.runners["runner_0"].cancel = deaf
    run.cancel()
    assert (await running).trajectories[0].finish_reason == "cancelled"
    assert "runner_0 did not end chain_0 within 0.01 s of its cancellation; it is left behind" in caplog.text


async def test_a_run_without_runners_fails():
    """The error says so."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))

    class Nobody(Workers):
        async def begin(self, agent, order, rows):
            run = await super().begin(agent, order, rows)
            self.pool.runners.clear()
            return run

    with pytest.raises(WorkersError, match="no runner is left"):
        await agent.run_async(1, HELLO, workers=Nobody(agent))


async def test_the_run_ends_with_the_totals_of_all_chains():
    """Although other processes ran them."""
    agent, capture = BaseAgent("m", backend=ScriptedBackend("one two")), EventCapture()
    agent.streaming_manager.add_observer(capture)
    await agent.run_async(1, HELLO, 3, True, workers=Workers(agent))
    (end,) = [event for event in capture.events if event.event_type == "run_end"]
    assert (end.data["chains"], end.data["completion_tokens"]) == (3, 3 * 2)
    await agent.aclose()


async def test_a_part_of_a_run_names_its_leader_and_leaves_the_totals_to_it():
    """Its `run_start` and `run_end` count no chain."""
    agent, capture = BaseAgent("m", backend=ScriptedBackend("done")), EventCapture()
    runner = Runner()
    await runner.start(RunnerOrder(PackedAgent("a", None, pickle.dumps(agent))))
    runner._agent.streaming_manager.add_observer(capture)
    agent.streaming_manager.source = "driver"
    run = agent.prepare(1, HELLO, enable_streaming=True)
    await runner.play(run._run_order(), run._order(0))
    assert await runner.end_run(run.run_id, "completed")
    assert not await runner.end_run(run.run_id, "completed")
    start, end = capture.events[0].data, capture.events[-1].data
    assert (start["leader"], start["chains"], start["seed"]) == ("driver", 0, run.result.seed)
    assert (end["leader"], end["chains"], end["completion_tokens"]) == ("driver", 0, 0)
    await runner.close()


async def test_a_runner_of_another_version_refuses():
    """The sentence has both."""
    about = await Runner().start(RunnerOrder(PackedAgent("a", "m:a"), version="0.0.1"))
    assert "and 0.0.1 here; install the same version on both" in about.refusal


@pytest.mark.parametrize(
    ("packed", "refusal"),
    [
        (
            PackedAgent("a", "no_such_module:agent"),
            "no_such_module:agent cannot be loaded: ModuleNotFoundError",
        ),
        (PackedAgent("a", None, pickle.dumps(3)), "a is int; expected a BaseAgent"),
        (PackedAgent("a", None, b"cnot_there\nx\n."), "agent a cannot be loaded on"),
    ],
)
async def test_what_is_no_agent_there_is_told(packed, refusal):
    """In a sentence, and the host."""
    about = await Runner().start(RunnerOrder(packed))
    assert refusal in about.refusal
    assert about.host in about.refusal


async def test_a_row_that_cannot_cross_is_refused():
    """By its attribute, before a chain begins: `begin` checks them."""
    import threading

    import cloudpickle

    from rollcast.fleet.crossing import pack_value

    row = (
        BaseAgent("m", backend=ScriptedBackend("done"))
        .prepare(1, [{"messages": HELLO, "lock": threading.Lock()}])
        .rows
    )
    with pytest.raises(InputError, match=r"its \[0\]\.fields\['lock'\], of type lock"):
        pack_value(row, "start_messages", cloudpickle.dumps, "leave it out")


@pytest.mark.parametrize(
    ("chain_id", "first"), [("chain_5", "chain_5"), ("chain_5.2", "chain_5"), ("a.b", "a.b"), ("", "")]
)
def test_the_first_attempt_is_found_by_any(chain_id, first):
    """Since a viewer cancels the one that it sees."""
    assert first_attempt(chain_id) == first


def test_a_later_attempt_keeps_its_seed():
    """Only its id and the attempt differ."""
    order = ChainOrder("chain_5", "group_1", 1, None, 77)
    assert order.again(3) == ChainOrder("chain_5.3", "group_1", 1, None, 77, attempt=3)
