"""What is cancelled and goes on all the same: the run ends without it, and so does the event loop."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rollcast import BaseAgent, Delta, tool
from rollcast.grace import run_to_the_end
from rollcast.models import BaseBackend
from rollcast.models.reasoning import NONE
from rollcast.rollout import reward
from rollcast.testing import ScriptedBackend, capture_events

HELLO = [{"role": "user", "content": "go"}]
CALL = '<tool_call>{"name": "stubborn", "arguments": {}}</tool_call>'
GRACE_S = 0.05


class Bench:
    """An agent with a part of one kind that goes on though it is cancelled.

    Attributes:
        started: one entry for each chain whose part goes on.
    """

    def __init__(self, kind, timeout=None):
        self.started = []
        options = {"tools": [], "backend": ScriptedBackend([CALL, "done"])}
        if kind.startswith("tool"):
            options["tools"] = [tool(self.tool(kind), name="stubborn", description="x", timeout=timeout)]
        elif kind == "reward":
            options["reward"] = reward(self.reward, name="stubborn", timeout=timeout)
            options["backend"] = ScriptedBackend("done")
        else:
            options["backend"] = self.backend(kind)
        self.agent = BaseAgent(**options)
        self.agent.cancel_grace_s = GRACE_S

    async def goes_on(self, swallows=asyncio.CancelledError):
        self.started.append(1)
        while True:
            try:
                await asyncio.sleep(1000)
            except swallows:
                continue

    async def reward(self, final_response):
        await self.goes_on()

    def tool(self, kind):
        async def coroutine() -> str:
            await self.goes_on()

        async def everything() -> str:
            await self.goes_on(BaseException)

        async def awaits_a_task() -> str:
            await asyncio.create_task(self.goes_on())

        async def gathers() -> str:
            await asyncio.gather(self.goes_on(), self.goes_on())

        async def generator():
            yield "a"
            await self.goes_on()

        async def last_words():
            try:
                yield "a"
                self.started.append(1)
                await asyncio.sleep(1000)
            finally:
                await self.goes_on()

        async def spins() -> str:
            self.started.append(1)
            while True:
                try:
                    await asyncio.sleep(0)
                except BaseException:
                    continue

        async def never_waits():
            self.started.append(1)
            while True:
                yield "a" * 1000

        return locals()[kind.removeprefix("tool: ").replace(" ", "_")]

    def backend(self, kind):
        bench = self

        class Own(BaseBackend):
            async def generate(self, request):
                yield Delta("a")
                if kind == "backend":
                    await bench.goes_on()
                elif kind == "backend: awaits a task":
                    await asyncio.create_task(bench.goes_on())
                elif kind == "backend: last words":
                    try:
                        bench.started.append(1)
                        await asyncio.sleep(1000)
                    finally:
                        await bench.goes_on()
                elif kind == "backend: never waits":
                    bench.started.append(1)
                    while True:
                        yield Delta("a")
                else:  # it takes the cancellation for itself, and ends its turn as if nothing were
                    bench.started.append(1)
                    try:
                        await asyncio.sleep(1000)
                    except asyncio.CancelledError:
                        yield Delta("b", finish_reason="stop")

        return Own()


TOOLS = [
    "tool: coroutine",
    "tool: everything",
    "tool: awaits a task",
    "tool: gathers",
    "tool: generator",
    "tool: last words",
    "tool: spins",
    "tool: never waits",
]
BACKENDS = [
    "backend",
    "backend: awaits a task",
    "backend: last words",
    "backend: never waits",
    "backend: swallows",
]
KINDS = [*TOOLS, "reward", *BACKENDS]


def cancel_when_started(bench, chains):
    """From another thread, as a watcher does."""

    def wait():
        while len(bench.started) < chains:
            time.sleep(0.001)
        manager = bench.agent.streaming_manager
        manager.cancel(next(iter(manager.fanout.runs)))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_run_comes_back_with_its_trajectories(kind):
    """`agent.run` returns, every chain is closed, and nothing waits for what goes on."""
    bench = Bench(kind)
    with capture_events(bench.agent.streaming_manager) as capture:
        thread = cancel_when_started(bench, 2)
        result = bench.agent.run(3, HELLO, 2, True)
    thread.join()
    assert [t.finish_reason for t in result] == ["cancelled", "cancelled"]
    assert result.status == "cancelled"
    if kind in TOOLS:
        assert [e.data["status"] for e in capture.of("tool_call_end")] == ["cancelled", "cancelled"]
    bench.agent.streaming_manager.close()
    capture.check()


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_loop_of_the_users_own_ends(kind, caplog):
    """`asyncio.run` waits for all tasks at its end: those of Rollcast end, with one warning and no further noise."""
    bench = Bench(kind)

    async def main():
        run = bench.agent.prepare(3, HELLO, 2, True)
        task = asyncio.create_task(run.execute())
        while len(bench.started) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return run.result

    result = asyncio.run(main())
    assert [t.finish_reason for t in result] == ["cancelled", "cancelled"]
    stays = kind not in {"tool: never waits", "backend: never waits", "backend: swallows"}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * stays, caplog.text
    assert ("it is left behind" in caplog.text) == stays


@pytest.mark.parametrize("kind", TOOLS)
async def test_a_tool_is_left_behind_at_its_timeout(kind):
    """The model reads that it timed out, and the chain goes on."""
    bench = Bench(kind, timeout=0.05)
    with capture_events(bench.agent.streaming_manager) as capture:
        (chain,) = await bench.agent.run_async(3, HELLO, 1, True)
    assert chain.finish_reason == "answered"
    assert [call.status for call in chain.tool_calls] == ["timeout"]
    assert chain.tool_calls[0].observation.startswith("error: stubborn timed out after 0.05 s")
    assert [e.data["status"] for e in capture.of("tool_call_end")] == ["timeout"]
    capture.check()


async def test_a_reward_is_left_behind_at_its_timeout():
    """The chain has no reward, and says why."""
    bench = Bench("reward", timeout=0.05)
    (chain,) = await bench.agent.run_async(3, HELLO)
    assert (chain.finish_reason, chain.reward) == ("answered", None)
    assert "did not return within 0.05 s" in chain.error


async def test_a_backend_that_is_left_behind_is_an_error_of_its_chain():
    """The event names the backend and where it stands."""
    bench = Bench("backend")
    with capture_events(bench.agent.streaming_manager) as capture:
        run = bench.agent.prepare(3, HELLO, 1, True)
        task = asyncio.create_task(run.execute())
        while not bench.started:
            await asyncio.sleep(0.001)
        run.cancel()
        await task
    (error,) = capture.of("error")
    assert error.data["where"] == "backend"
    assert (
        "backend own is still running 0.05 s after chain_0 was cancelled, at test_left_behind.py:"
        in error.data["error"]
    )
    capture.check()


@pytest.mark.parametrize("kind", ["tool: coroutine", "reward", "backend"])
async def test_cancelling_again_in_the_time_of_grace_changes_nothing(kind):
    """Once for the run, twice for the chain, and the task of whoever waits."""
    bench = Bench(kind)
    with capture_events(bench.agent.streaming_manager) as capture:
        run = bench.agent.prepare(3, HELLO, 2, True)
        task = asyncio.create_task(run.execute())
        while len(bench.started) < 2:
            await asyncio.sleep(0.001)
        for cancel in (run.cancel, lambda: run.cancel("chain_1"), run.cancel, task.cancel):
            cancel()
            await asyncio.sleep(GRACE_S / 10)
        await asyncio.wait((task,))
    assert [t.finish_reason for t in run.result] == ["cancelled", "cancelled"]
    capture.check()


def test_two_kinds_at_once():
    """A tool that goes on in one chain, and a reward that does in the other."""
    tools, rewards = Bench("tool: coroutine"), Bench("reward")
    agent = tools.agent
    agent.backend = ScriptedBackend(
        lambda request: CALL if request.request_id.split("/")[1] == "chain_0" else "done"
    )
    agent.reward = rewards.agent.reward

    def wait():
        while not (tools.started and rewards.started):
            time.sleep(0.001)
        agent.streaming_manager.cancel(next(iter(agent.streaming_manager.fanout.runs)))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    result = agent.run(3, HELLO, 2, True)
    thread.join()
    assert [t.finish_reason for t in result] == ["cancelled", "cancelled"]


STOPS = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit]


class Raises(BaseBackend):
    """Its first chain waits until it is cancelled, or not at all, and raises the error; the others answer."""

    thinking = NONE

    def __init__(self, error, *, waits):
        super().__init__()
        self.error, self.waits, self.begun = error, waits, asyncio.Event()

    async def generate(self, request):
        yield Delta("a")
        if "/chain_0/" in request.request_id:
            self.begun.set()
            try:
                if self.waits:
                    await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass
            raise self.error
        yield Delta("b", finish_reason="stop")


@pytest.mark.parametrize("error", STOPS)
async def test_a_backend_that_fails_when_it_is_cancelled_ends_cancelled(error):
    """The error is told, and its sibling goes on."""
    backend = Raises(error, waits=True)
    agent = BaseAgent(backend=backend)
    with capture_events(agent.streaming_manager) as capture:
        run = agent.prepare(3, HELLO, 2, True)
        task = asyncio.create_task(run.execute())
        await backend.begun.wait()
        run.cancel("chain_0")
        result = await task
    assert [t.finish_reason for t in result] == ["cancelled", "answered"]
    assert [e.data["error_type"] for e in capture.of("error")] == [error.__name__]
    capture.check()


@pytest.mark.parametrize("error", [*STOPS, asyncio.CancelledError])
async def test_whatever_a_backend_raises_ends_its_chain_alone(error):
    """Nobody cancelled it, so the chain failed."""
    agent = BaseAgent(backend=Raises(error, waits=False))
    with capture_events(agent.streaming_manager) as capture:
        result = await agent.run_async(3, HELLO, 2, True)
    assert [t.finish_reason for t in result] == ["error", "answered"]
    assert result.status == "completed"
    assert len(capture.of("error")) == 1
    capture.check()


def test_a_chain_that_can_never_be_ended_gives_its_place_to_the_next():
    """Its backend awaits a task that swallows everything, and one chain runs at a time."""
    bench = Bench("backend")

    class Own(BaseBackend):
        thinking = NONE

        async def generate(self, request):
            yield Delta("a")
            if "/chain_0/" in request.request_id:
                await asyncio.create_task(bench.goes_on(BaseException))
            yield Delta("b", finish_reason="stop")

    bench.agent.backend = Own()

    async def main():
        run = bench.agent.prepare(3, HELLO, 2, True, max_concurrent_chains=1)
        task = asyncio.create_task(run.execute())
        while not bench.started:
            await asyncio.sleep(0.001)
        run.cancel("chain_0")
        return await task

    with capture_events(bench.agent.streaming_manager) as capture:
        result = run_to_the_end(main(), GRACE_S)
    assert [t.finish_reason for t in result] == ["cancelled", "answered"]
    capture.check()


async def test_a_cleanup_that_takes_longer_than_its_grace_is_not_interrupted():
    """It is left behind, and goes on as long as the event loop does."""
    began, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @tool(name="stubborn", timeout=None)
    async def cleans_up() -> str:
        """x"""
        began.set()
        try:
            await asyncio.sleep(1000)
        finally:
            await go_on.wait()
            ended.set()

    agent = BaseAgent(backend=ScriptedBackend([CALL, "done"]), tools=[cleans_up])
    agent.cancel_grace_s = 0.01
    run = agent.prepare(3, HELLO)
    task = asyncio.create_task(run.execute())
    await began.wait()
    run.cancel()
    await task
    assert not ended.is_set()
    go_on.set()
    async with asyncio.timeout(60):
        await ended.wait()


async def test_a_chain_whose_iterator_does_not_close_goes_on(monkeypatch, caplog):
    """A turn that the parser ends early needs no more of the backend than to let go."""
    monkeypatch.setattr("rollcast.rollout.chain.CLOSE_S", 0.05)

    class Hangs(BaseBackend):
        turns = 0
        thinking = NONE

        async def generate(self, request):
            self.turns += 1
            if self.turns > 1:
                yield Delta("Final Answer: done", finish_reason="stop")
                return
            try:
                yield Delta("Action: stubborn\nAction Input: {}\nObservation: I make one up")
                yield Delta(" and more")
            finally:
                await asyncio.sleep(1000)

    @tool
    def stubborn() -> str:
        """x"""
        return "4"

    (chain,) = await BaseAgent(backend=Hangs(), tools=[stubborn], parser="react").run_async(3, HELLO)
    assert (chain.finish_reason, [call.status for call in chain.tool_calls]) == ("answered", ["success"])
    assert "backend own did not close its iterator within 0.05 s" in caplog.text


def test_a_tool_that_never_waits_gives_others_their_turn():
    """Its sibling answers meanwhile, and of its endless output there is only so much."""
    for seconds in (0.2, 2, 20):  # within one of them it has given as much as there may be
        capture, result = run_beside_a_tool_that_never_waits(seconds)
        partial = [e for e in capture.of("tool_observation") if e.data["partial"]]
        if sum(len(e.data["observation"]) for e in partial) >= 10_000:
            break
    assert sum(len(e.data["observation"]) for e in partial) == 10_000
    assert [t.finish_reason for t in result] == ["answered", "answered"]
    ends = [e.chain_id for e in capture.events if e.event_type in ("tool_call_end", "chain_end")]
    assert ends.index("chain_1") < ends.index("chain_0")


def run_beside_a_tool_that_never_waits(seconds):
    """Two chains, of which the first calls such a tool with this timeout."""
    bench = Bench("tool: never waits", timeout=seconds)
    bench.agent.backend = ScriptedBackend(
        lambda request: (
            CALL
            if request.request_id.split("/")[1] == "chain_0" and request.messages[-1]["role"] == "user"
            else "done"
        )
    )
    with capture_events(bench.agent.streaming_manager) as capture:
        result = bench.agent.run(3, HELLO, 2, True)
    return capture, result


async def test_a_grace_below_zero_is_refused():
    """Before the run."""
    agent = BaseAgent(backend=ScriptedBackend("done"))
    agent.cancel_grace_s = -1
    with pytest.raises(ValueError, match="cancel_grace_s of the agent is -1; expected seconds from 0 upward"):
        await agent.run_async(1, HELLO)


SCRIPT = """
import asyncio, logging, os, signal, sys, threading, time
from rollcast import BaseAgent, tool
from rollcast.testing import ScriptedBackend
import rollcast.rollout.watchdog as watchdog
watchdog.BLOCKED_S, watchdog.LOOK_S = 60.0, 0.05  # a slow machine may hold the loop for a while when the run begins
CALL = '<tool_call>{"name": "stubborn", "arguments": {}}</tool_call>'
logging.basicConfig(level=logging.WARNING)

@tool(timeout=None)
async def stubborn() -> str:
    "x"
    %s

agent = BaseAgent(backend=ScriptedBackend([CALL, "done"]), tools=[stubborn])
agent.cancel_grace_s = 0.05
try:
    agent.run(3, [{"role": "user", "content": "x"}], 2, True)
except KeyboardInterrupt:
    print("interrupted")
"""
GOES_ON = """print("began", flush=True)
    while True:
        try:
            await asyncio.sleep(1000)
        except BaseException:
            continue"""
BLOCKS = """runner = signal.getsignal(signal.SIGINT).func.__self__  # asyncio's: it counts
    def tell():
        while not runner._interrupt_count:
            time.sleep(0.01)
        print("heard", flush=True)
    threading.Thread(target=tell, daemon=True).start()
    print("began", flush=True)
    watchdog.BLOCKED_S = 0.3
    time.sleep(1e6)"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
@pytest.mark.parametrize(("body", "presses"), [(GOES_ON, 1), (BLOCKS, 2)], ids=["goes on", "blocks"])
def test_ctrl_c_ends_the_program(body, presses):
    """Once if the tool awaits, twice if it blocks the event loop; nothing but one warning is printed."""
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT % body], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert program.stdout.readline() == "began\n"
        err = ""
        if presses == 2:
            err = program.stderr.readline()  # the watchdog's
            assert "the event loop is blocked, and every chain with it: <string>:" in err
        program.send_signal(signal.SIGINT)
        if presses == 2:  # at once they would be one
            assert program.stdout.readline() == "heard\n"
            program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=300)
    finally:
        program.kill()
        program.communicate()
    assert out.endswith("interrupted\n")
    assert len(err.splitlines()) == (1 if presses == 1 else 0), err
    assert program.returncode == 0


@pytest.mark.parametrize("timeout", [0.2, None])
def test_sync_tools_that_never_return_hold_up_neither_the_run_nor_the_exit(timeout):
    """More of them than there are threads."""
    script = f"""
import threading
from rollcast import BaseAgent, tool
from rollcast.testing import ScriptedBackend
CALL = '<tool_call>{{"name": "hangs", "arguments": {{}}}}</tool_call>'
started = threading.Semaphore(0)

@tool(timeout={timeout})
def hangs() -> str:
    "x"
    started.release()
    threading.Event().wait()

agent = BaseAgent(backend=ScriptedBackend([CALL, "done"]), tools=[hangs])
def cancel():
    for _ in range(256):
        started.acquire()
    manager = agent.streaming_manager
    manager.cancel(next(iter(manager.fanout.runs)))
if {timeout} is None:
    threading.Thread(target=cancel, daemon=True).start()
result = agent.run(3, [{{"role": "user", "content": "x"}}], 300, True)
print(len(result), {{(t.finish_reason, t.tool_calls[0].status) for t in result}})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True
    )
    ended = ("cancelled", "cancelled") if timeout is None else ("answered", "timeout")
    assert done.stdout == f"300 {{{ended}}}\n"
