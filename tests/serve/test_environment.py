"""Processes that publish since the environment says so, and how they end."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from hub_standin import Hub
from rollcast.archive import list_records
from rollcast.serve.environment import host_name, source_of_process
from rollcast.stream import StreamingManager

AGENT = """
import json, sys
from rollcast import BaseAgent
agent = BaseAgent("rollcast/tiny")
result = agent.run(2, [{"role": "user", "content": "Calculate 1 + 2."}], num_chains=2, seed=7)
print(json.dumps([trajectory.to_dict()["turns"][0]["token_ids"] for trajectory in result]))
"""


@pytest.fixture
def here(tmp_path):
    """Runs scripts in a folder of their own, in which they also record."""

    def run(script, **environ):
        names = ("ROLLCAST_HUB", "ROLLCAST_SOURCE", "ROLLCAST_RECORDS", "RANK")
        clean = {name: value for name, value in os.environ.items() if name not in names}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=tmp_path,
            env=clean | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    return run


async def test_a_plain_script_publishes(here):
    """Its run streams although it does not ask for that, and its results are the same to the bit."""
    alone = await asyncio.to_thread(here, AGENT)
    async with Hub() as hub:
        done = await asyncio.to_thread(
            here, AGENT, ROLLCAST_HUB=hub.url, ROLLCAST_HUB_TOKEN="secret", ROLLCAST_SOURCE="me"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == alone.stdout
        assert hub.hellos[0].token == "secret"
        types = hub.types("me")
        assert (types[0], types[-1]) == ("run_start", "run_end")
        assert types.count("chain_end") == 2
        assert "llm_generation_chunk" not in types


async def test_a_command_leaves_recording_to_the_hub(here, tmp_path):
    """`rollcast run` records nothing here then, unless an option asks for it; it publishes in both cases."""
    command = """
        import sys
        from rollcast.cli import main
        sys.argv = ["rollcast", "run", "--questions", "1", "--chains", "1", "--seed", "1"]
        main()
    """
    asking = command.replace('"--seed"', '"--record", "turns", "--seed"')
    async with Hub() as hub:
        plain = await asyncio.to_thread(here, command, ROLLCAST_HUB=hub.url, ROLLCAST_SOURCE="plain")
        assert (plain.returncode, plain.stderr) == (0, f"published to {hub.url} as plain\n")
        assert not (tmp_path / "rollcast-runs").exists()
        asked = await asyncio.to_thread(here, asking, ROLLCAST_HUB=hub.url, ROLLCAST_SOURCE="asked")
        assert "recorded: " in asked.stderr
        assert asked.stderr.endswith(f"published to {hub.url} as asked\n")
        assert len(await asyncio.to_thread(list_records, tmp_path / "rollcast-runs")) == 1
        assert hub.types("plain")[-1] == hub.types("asked")[-1] == "run_end"


async def test_a_command_that_reaches_no_hub_does_not_say_that_it_published(here):
    """It says that the hub cannot be reached, and where the events are."""
    command = """
        import sys
        import rollcast.serve.producer as p
        from rollcast.cli import main
        p.DRAIN_S = 0.5
        sys.argv = ["rollcast", "run", "--questions", "1", "--chains", "1", "--seed", "1"]
        main()
    """
    hub = Hub()
    async with hub:
        pass
    done = await asyncio.to_thread(here, command, ROLLCAST_HUB=hub.url, ROLLCAST_HUB_TOKEN="shibboleth")
    assert done.returncode == 0
    assert "cannot be reached" in done.stderr
    assert "published to" not in done.stderr
    assert "shibboleth" not in done.stdout + done.stderr


async def test_a_training_says_where_it_published(here):
    """At its end, with the name of this process, and without the token."""
    command = """
        import sys
        from rollcast.cli import main
        sys.argv = ["rollcast", "train", "--steps", "1", "--out", "trained"]
        main()
    """
    async with Hub() as hub:
        done = await asyncio.to_thread(
            here, command, ROLLCAST_HUB=hub.url, ROLLCAST_SOURCE="trainer", ROLLCAST_HUB_TOKEN="secret"
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith(f"published to {hub.url} as trainer\n")
        assert "secret" not in done.stdout + done.stderr


async def test_a_process_that_ends_while_the_hub_is_away(here, tmp_path):
    """It leaves a record, and says so; the next process here hands that over, and the record goes."""
    hub = Hub()
    async with hub:
        pass
    short = AGENT + "\nimport rollcast.serve.producer as p\n"
    quick = "import rollcast.serve.producer as p; p.DRAIN_S = 0.5\n" + short
    left = await asyncio.to_thread(here, quick, ROLLCAST_HUB=hub.url, ROLLCAST_SOURCE="first")
    assert left.returncode == 0
    assert left.stderr.count("cannot be reached") == 1
    assert left.stderr.count("the rest is recorded in") == 1
    records = tmp_path / "rollcast-runs"
    (record,) = await asyncio.to_thread(list_records, records)
    assert record.state == "ended"
    async with hub:
        await asyncio.to_thread(here, AGENT, ROLLCAST_HUB=hub.url, ROLLCAST_SOURCE="second")
        await hub.until(lambda: hub.ended)
        assert hub.ended[0][0] == "first"
        assert hub.types("first") == hub.types("second")
        assert [*hub.numbers().values()] == [[*range(1, len(hub.types("first")) + 1)]] * 2
    assert await asyncio.to_thread(list_records, records) == []


@pytest.mark.parametrize("slowly", [False, True])
async def test_a_process_that_is_killed_while_the_hub_is_away(here, slowly):
    """What it had recorded until then is handed over by the next process here, which does not end before that."""
    hub = Hub()
    async with hub:
        pass
    script = """
        import os, pathlib, signal, time
        import rollcast.serve.producer as p
        p.MEMORY_BYTES = 2000
        from rollcast.archive import list_records
        from rollcast.stream import StreamingManager
        manager = StreamingManager()
        run = manager.run().open()
        for _ in range(50):
            with run.chain([{"role": "user", "content": "x" * 100}]):
                pass
        manager.drain_sync()
        while not (found := list_records(pathlib.Path("rollcast-runs"))) or found[0].facts.totals.events < 50:
            time.sleep(0.05)
            found and manager.observers[0].producer._backlog.beat()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = await asyncio.to_thread(here, script, ROLLCAST_HUB=hub.url, ROLLCAST_SOURCE="first")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    patient = "import rollcast.serve.producer as p\np.DRAIN_S = 60\n"
    slow = "import rollcast.serve.handover as h\nh.PAUSE_S = 0.5\n" if slowly else ""
    async with hub:
        await asyncio.to_thread(here, patient + slow + AGENT, ROLLCAST_HUB=hub.url, ROLLCAST_SOURCE="second")
        assert hub.ended
        types = hub.types("first")
        assert types[0] == "run_start"
        assert types.count("chain_end") >= 24
        assert [*range(1, len(types) + 1)] == next(n for (s, _), n in hub.numbers().items() if s == "first")


async def test_a_variable_that_names_no_hub(here):
    """The run goes on, and one sentence says what is wrong, however many managers are made."""
    done = await asyncio.to_thread(here, AGENT + AGENT, ROLLCAST_HUB="ftp://hub")
    assert done.returncode == 0
    assert done.stderr.count("ROLLCAST_HUB names no hub") == 1
    assert "Traceback" not in done.stderr


async def test_a_token_in_the_address_is_refused_and_not_shown(here):
    """It would be in every list of processes."""
    done = await asyncio.to_thread(here, AGENT, ROLLCAST_HUB="ws://hub:8765/?token=shibboleth")
    assert done.returncode == 0
    assert "ROLLCAST_HUB_TOKEN" in done.stderr
    assert "shibboleth" not in done.stderr


def test_a_manager_need_not_publish(monkeypatch):
    """What relays events of other processes does not publish them again."""
    monkeypatch.setenv("ROLLCAST_HUB", "localhost:1")
    manager = StreamingManager(publish=False)
    assert not manager.publishes
    assert manager.observers == []


def test_the_name_of_a_process():
    """`ROLLCAST_SOURCE`, or the rank on its host, or the pid."""
    pid, host = os.getpid(), host_name()
    assert source_of_process({}) == f"{host}-{pid}"
    assert source_of_process({"RANK": "3"}) == f"{host}-rank3"
    assert source_of_process({"RANK": "3", "ROLLCAST_SOURCE": "trainer"}) == "trainer"
    several = {"RANK": "3", "WORLD_SIZE": "4", "ROLLCAST_SOURCE": "trainer"}  # which the ranks all inherit
    assert source_of_process(several) == "trainer-rank3"


def test_a_child_of_a_process_has_another_name():
    """It inherits the variables, and not the name; the process itself keeps it, and so does a child that is given another."""
    environ = {"ROLLCAST_SOURCE": "trainer"}
    assert source_of_process(environ) == "trainer"
    assert source_of_process(environ) == "trainer"
    taken = environ["ROLLCAST_SOURCE_TAKEN"]
    inherited = {"ROLLCAST_SOURCE": "trainer", "ROLLCAST_SOURCE_TAKEN": taken.replace(str(os.getpid()), "1")}
    assert source_of_process(inherited) == f"trainer-{os.getpid()}"
    assert source_of_process(inherited | {"ROLLCAST_SOURCE": "worker"}) == "worker"
