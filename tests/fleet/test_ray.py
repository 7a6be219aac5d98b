"""Runs on real Ray clusters. Those that do not break one share it."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fleet import ray_agents
from rollcast import BaseAgent
from rollcast.errors import InputError, WorkersError
from rollcast.fleet import RayWorkers
from rollcast.fleet.hub import Hub
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer
from rollcast.stream import StreamingManager
from rollcast.tasks import get_task
from rollcast.testing import EventCapture, ScriptedBackend
from rollcast.train import GRPOConfig, train

# Every cluster here wants a token. Ray reads this when it is imported.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "right" * 8}
ray = pytest.importorskip("ray", reason="the extra ray is not installed")
from ray.cluster_utils import Cluster  # noqa: E402  (only if there is Ray)

HELLO = [{"role": "user", "content": "go"}]
QUICK = {"max_tokens": 24}
BY_VALUE = (ray_agents,)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves files of its processes open
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]


def cluster_of(num_cpus, attempts=3):
    """A cluster of one host. Ray gives a node thirty seconds to start, and a slow machine may need another try."""
    try:
        return Cluster(
            initialize_head=True, head_node_args={"num_cpus": num_cpus, "include_dashboard": False}
        )
    except Exception as error:
        if attempts == 1 or "timed out during startup" not in str(error):
            raise
    return cluster_of(num_cpus, attempts - 1)


@pytest.fixture(scope="module")
def cluster():
    """One host with two CPUs, which wants a token."""
    made = cluster_of(2)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(autouse=True)
def disconnected():
    """Each test connects by itself."""
    yield
    if ray.is_initialized():
        ray.shutdown()


def workers(cluster, **settings):
    return RayWorkers(cluster.address, **{"runners": 2, "by_value": BY_VALUE} | settings)


def pids(folder):
    """Of the runners whose tools wait."""
    return [int(path.name.partition("-")[2]) for path in Path(folder).glob("waits-*")]


async def test_results_are_the_same_bits_and_every_token_is_seen(cluster):
    """As without Ray: trajectories and rewards; observers here see each chain from its start to its end, with its source."""
    task = get_task("arithmetic")
    agent = BaseAgent(tools=task.tools, reward=task.reward)
    rows = task.rows(2, 0)
    here = await agent.run_async(task.max_steps, rows, 2, seed=7, sampling=QUICK)
    capture = EventCapture()
    agent.streaming_manager.add_observer(capture)
    async with workers(cluster) as runners:
        there = await agent.run_async(task.max_steps, rows, 2, True, seed=7, sampling=QUICK, workers=runners)
    assert [t.digest() for t in there] == [t.digest() for t in here]
    assert there.rewards == here.rewards
    ended = {event.chain_id: event for event in capture.events if event.event_type == "chain_end"}
    assert {name: event.data["reward"] for name, event in ended.items()} == {
        t.chain_id: t.reward for t in here
    }
    assert len({event.source for event in ended.values()}) == 2
    for trajectory in here:
        seen = "".join(
            event.data["content"]
            for event in capture.events
            if event.event_type == "llm_generation_end" and event.chain_id == trajectory.chain_id
        )
        assert seen == "".join(turn.text for turn in trajectory.turns)
    assert capture.closed_runs == [there.run_id]
    await agent.aclose()


async def test_a_training_learns_the_same_bits(cluster):
    """Every runner gets the new weights, and tokens carry their version."""
    task = get_task("arithmetic")
    config = GRPOConfig(steps=2, questions=3, group=3, seed=5, eval_questions=2, eval_every=0)

    async def trained(runners):
        agent = BaseAgent(tools=task.tools, reward=task.reward)
        async with agent:
            result = await train(agent, task, config, workers=runners)
            probe = await agent.run_async(1, task.rows(1, 0), 2, seed=1, sampling=QUICK, workers=runners)
        return result, probe

    alone, probe = await trained(None)
    async with workers(cluster) as runners:
        spread, there = await trained(runners)
    figures = ("mean_reward", "loss", "kl", "grad_norm")
    assert [[h.metrics.get(f) for f in figures] for h in spread.history] == [
        [h.metrics.get(f) for f in figures] for h in alone.history
    ]
    assert [t.digest() for t in there] == [t.digest() for t in probe]
    assert {version for t in there for turn in t.turns for version in turn.policy_versions} == {
        alone.history[-1].policy_version
    }


async def test_workers_have_one_agent(cluster):
    """Another one is refused, since each runner has a backend of its own."""
    first, second = (BaseAgent("m", backend=ScriptedBackend("done"), name=name) for name in ("A", "B"))
    async with workers(cluster, runners=1) as runners:
        await first.run_async(1, HELLO, workers=runners)
        with pytest.raises(
            InputError, match=r"these workers run agent A; make others, RayWorkers\(…\), for agent B"
        ):
            await second.run_async(1, HELLO, workers=runners)


async def test_a_runner_that_is_killed_is_replaced_and_its_chains_run_again(cluster, tmp_path, until):
    """Both attempts are seen: the first ends as lost, the second has `attempt` 2."""
    agent, capture = ray_agents.waiting(tmp_path), EventCapture()
    agent.streaming_manager.add_observer(capture)
    async with workers(cluster) as runners:
        running = asyncio.create_task(agent.run_async(3, HELLO, 2, True, seed=1, workers=runners))
        await until(lambda: len(capture_of(capture, "tool_call_start")) == 2, 300)
        await until(lambda: len(pids(tmp_path)) == 2, 300)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        await until(lambda: len(pids(tmp_path)) == 3 or capture_of(capture, "chain_start", attempt=2), 300)
        (tmp_path / "go").touch()
        result = await running
    assert sorted(t.chain_id.partition(".")[2] for t in result) == ["", "2"]
    assert [t.final_response for t in result] == ["done"] * 2
    (again,) = capture_of(capture, "chain_start", attempt=2)
    (gap,) = [event for event in capture.events if event.event_type == "gap"]
    assert again.chain_id.endswith(".2")
    assert gap.data["run_status"] == "completed"
    assert gap.source != again.source
    assert capture.closed_runs == [result.run_id]
    await agent.aclose()


async def test_with_a_hub_of_its_own_everything_goes_there(cluster, monkeypatch, tmp_path):
    """If `ROLLCAST_HUB` names one: it has one run, from the driver and both runners, that ends once."""
    monkeypatch.setenv("ROLLCAST_RECORDS", str(tmp_path))
    manager, seen = StreamingManager(publish=False), EventCapture()
    manager.add_observer(seen)
    server = WebSocketStreamingServer(
        "127.0.0.1", 0, settings=ServerSettings(tokens=(Token("shibboleth", ("publish",)),))
    )
    async with Hub(server, manager, viewers=False):
        monkeypatch.setenv("ROLLCAST_HUB", server.url)
        monkeypatch.setenv("ROLLCAST_HUB_TOKEN", "shibboleth")
        agent = BaseAgent("m", backend=ScriptedBackend("done"))
        (publisher,) = agent.streaming_manager.observers
        async with agent, workers(cluster) as runners:
            result = await agent.run_async(1, HELLO, 4, workers=runners)
        await asyncio.to_thread(publisher.producer.finish)  # as at the end of the process
    await manager.drain()
    assert {event.chain_id for event in capture_of(seen, "chain_end")} == {t.chain_id for t in result}
    assert len({event.source for event in seen.events}) == 3
    (leader,) = [event for event in capture_of(seen, "run_end") if "leader" not in event.data]
    assert (leader.source, leader.data["chains"]) == (agent.streaming_manager.source, 4)
    assert seen.closed_runs == [result.run_id]
    await manager.aclose()


def capture_of(capture, kind, **data):
    """The events of this kind with these data."""
    return [
        event for event in capture.events if event.event_type == kind and data.items() <= event.data.items()
    ]


async def test_a_tool_that_kills_its_process_costs_one_attempt(cluster, tmp_path):
    """The chain runs again on the runner that took the place."""
    agent = ray_agents.dying(tmp_path)
    async with workers(cluster, runners=1) as runners:
        (trajectory,) = await agent.run_async(3, HELLO, workers=runners)
    assert (trajectory.chain_id, trajectory.final_response) == ("chain_0.2", "done")


async def test_a_watcher_s_cancel_reaches_the_runner(cluster, tmp_path, until):
    """Of one chain by its id, then of the run; everything that was opened is closed."""
    agent, capture = ray_agents.waiting(tmp_path), EventCapture()
    manager = agent.streaming_manager
    manager.add_observer(capture)
    async with workers(cluster) as runners:
        running = asyncio.create_task(agent.run_async(3, HELLO, 2, True, workers=runners))
        await until(lambda: len(capture_of(capture, "tool_call_start")) == 2, 300)
        run_id = capture.events[0].run_id
        assert manager.cancel(run_id, "chain_1") == ["chain_1"]
        await until(lambda: capture_of(capture, "chain_end", finish_reason="cancelled"), 300)
        assert [event.chain_id for event in capture_of(capture, "chain_end")] == ["chain_1"]
        manager.cancel(run_id)
        result = await running
    assert result.status == "cancelled"
    assert [t.finish_reason for t in result] == ["cancelled"] * 2
    assert {e.data["status"] for e in capture_of(capture, "tool_call_end")} == {"cancelled"}
    await agent.aclose()


async def test_a_host_that_is_lost_takes_its_runners_along(tmp_path, until):
    """Their chains run again on the host that is left."""
    own = cluster_of(1)
    try:
        other = own.add_node(num_cpus=1)
        agent = ray_agents.waiting(tmp_path)
        async with workers(own) as runners:
            running = asyncio.create_task(agent.run_async(3, HELLO, 4, seed=1, workers=runners))
            await until(lambda: len(pids(tmp_path)) == 2, 300)
            own.remove_node(other, allow_graceful=False)
            (tmp_path / "go").touch()
            result = await running
        assert [t.final_response for t in result] == ["done"] * 4
        assert sum(t.chain_id.endswith(".2") for t in result) in (
            0,
            2,
        )  # those of the lost host, unless they were quicker
    finally:
        ray.shutdown()
        own.shutdown()


async def test_an_agent_that_cannot_be_loaded_there_is_refused(cluster):
    """Before anything starts, in one sentence."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    async with workers(cluster, agent="no_such_module:agent", runners=1) as runners:
        with pytest.raises(WorkersError, match="no_such_module:agent cannot be loaded: ModuleNotFoundError"):
            await agent.run_async(1, HELLO, workers=runners)


async def test_runners_for_which_there_is_no_room_are_told(cluster, until):
    """What each needs, and what is free."""
    agent = BaseAgent("m", backend=ScriptedBackend("done"))
    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    await until(lambda: ray.available_resources().get("CPU") == 2, 300)  # the last test's runners have ended
    async with workers(cluster, runners=1, cpus=8, start_timeout_s=2) as runners:
        with pytest.raises(WorkersError, match="each needs 8 CPUs, and of the cluster 2 of 2 CPUs are free"):
            await agent.run_async(1, HELLO, workers=runners)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "and this process Ray 2.60.0 with Python 3.99.0; install the cluster's versions here"),
        ({"RAY_AUTH_TOKEN": "wrong" * 8}, "or the cluster wants another token: RAY_AUTH_MODE=token and"),
    ],
    ids=["version", "token"],
)
def test_a_cluster_that_does_not_fit_is_refused_in_a_sentence(cluster, environment, sentence):
    """Another version of Ray or Python, and another token."""
    code = f"""
        import asyncio, sys
        import ray._private.utils as utils
        if not {bool(environment)}:
            utils.compute_version_info = lambda: ("2.60.0", "3.99.0")
        from rollcast import BaseAgent, RollcastError
        from rollcast.fleet import RayWorkers
        from rollcast.testing import ScriptedBackend
        agent = BaseAgent("m", backend=ScriptedBackend("done"))
        try:
            asyncio.run(agent.run_async(1, [{{"role": "user", "content": "x"}}], workers=RayWorkers({cluster.address!r})))
        except RollcastError as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=500, env=os.environ | environment,
    )  # fmt: skip
    assert "WorkersError" in done.stdout, done.stderr[-2000:]
    assert sentence in done.stdout


def test_runners_die_with_the_process_that_has_them(cluster, tmp_path):
    """After kill -9 of the driver no runner is left."""
    code = f"""
        import asyncio, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import ray_agents
        from rollcast.fleet import RayWorkers
        workers = RayWorkers({cluster.address!r}, runners=1, by_value=[ray_agents])
        asyncio.run(ray_agents.waiting({str(tmp_path)!r}).run_async(3, {HELLO!r}, workers=workers))
    """
    driver = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        wait_for(lambda: pids(tmp_path))
        (pid,) = pids(tmp_path)
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not alive(pid))
    assert not alive(pid)


def alive(pid):
    """Whether a process runs, and is not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition):
    """Wait until it holds. If it never does, the timeout of the test fails it, so this is an assertion."""
    import time

    while not condition():
        time.sleep(0.05)


def test_sigterm_ends_a_run_properly(cluster, tmp_path):
    """Although Ray takes the signal for itself: the chain is closed, and the summary comes."""
    (tmp_path / "own.py").write_text(
        Path(ray_agents.__file__).read_text() + f"\nagent = waiting({str(tmp_path)!r})\n"
    )
    command = [sys.executable, "-m", "rollcast", "run", "own.py:agent", "--prompt", "Go.", "--chains", "1"]
    with subprocess.Popen(
        [*command, "--ray", cluster.address, "--runners", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
    ) as process:  # fmt: skip
        printed = ""
        while "→ wait" not in printed:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        process.terminate()
        printed += process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "■ cancelled" in printed
    assert "(1 cancelled)" in printed


def test_the_command_line_runs_on_ray_of_its_own(tmp_path):
    """`--ray local` starts one, with a token, and prints what it printed without it; the record has every chain."""
    script = tmp_path / "own.py"
    script.write_text(
        "from rollcast import BaseAgent, tool\n"
        "from rollcast.testing import ScriptedBackend\n"
        "@tool\n"
        "def shout(text: str) -> str:\n"
        '    """Shout it."""\n'
        "    return text.upper()\n"
        """CALL = '<tool_call>{"name": "shout", "arguments": {"text": "hey"}}</tool_call>'\n"""
        'agent = BaseAgent("m", [shout], ScriptedBackend([CALL, "It said HEY."]))\n'
    )
    command = [
        sys.executable,
        "-m",
        "rollcast",
        "run",
        f"{script}:agent",
        "--prompt",
        "Go.",
        "--seed",
        "1",
        "--chains",
        "2",
    ]
    environment = os.environ | {"HOME": str(tmp_path)}

    def output(*more):
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, timeout=500, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
        return done

    here, there = output(), output("--ray", "local", "--runners", "1")
    assert len(there.stderr.splitlines()) == len(here.stderr.splitlines())  # Ray itself says nothing
    for line in ("HEY", "It said HEY.", "completed: 2 chains (2 answered)"):
        assert line in here.stdout
        assert line in there.stdout
