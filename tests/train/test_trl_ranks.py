"""A TRL training over two processes is one run with two sources, to whoever watches it through a hub."""

import asyncio
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("trl", reason="needs the extra")

from rollcast.fleet.hub import Hub
from rollcast.records import StreamEventType, check_events, decode
from rollcast.records.run_view import RunViews
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events

pytestmark = pytest.mark.torch

T = StreamEventType
TOKEN = "a-token-that-publishes"
SCRIPT = Path(__file__).parent / "trl_ranks.py"
GENERATIONS = 4  # of each prompt; each process plays six chains, so one group of three is shared
CHAINS = 12


async def train_on_two(folder):
    """Train with torchrun; the events that a hub got, and those of each process's log."""
    manager = StreamingManager(publish=False)
    settings = ServerSettings(tokens=(Token(TOKEN, ("read", "publish")),), close_s=0.5, hello_s=60.0)
    server = WebSocketStreamingServer("127.0.0.1", 0, settings=settings)
    with capture_events(manager) as capture:
        async with Hub(server, manager):
            known = {
                "ROLLCAST_HUB": server.url,
                "ROLLCAST_HUB_TOKEN": TOKEN,
                "ROLLCAST_RECORDS": str(folder / "records"),
            }
            torchrun = (
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                "2",
            )
            process = await asyncio.create_subprocess_exec(
                *torchrun, str(SCRIPT), str(folder), str(GENERATIONS), env={**os.environ, **known},
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            out, _ = await process.communicate()
        await manager.drain()
    await manager.aclose()
    assert process.returncode == 0, out.decode()[-4000:]
    logs = {
        path.name: [decode(line) for line in path.read_bytes().splitlines()]
        for path in folder.glob("*.jsonl")
    }
    return SimpleNamespace(events=capture.events, logs=logs, out=out.decode())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return asyncio.run(train_on_two(tmp_path_factory.mktemp("ranks")))


def starts(events, kind=T.RUN_START):
    found = defaultdict(list)
    for event in events:
        if event.event_type is kind:
            found[event.run_id].append(event)
    return found


def test_the_hub_sees_one_training_with_two_sources(trained):
    """Every rollout names it as its parent, and every run has ended on both."""
    ranks = {event.source for event in trained.events}
    assert {name.rpartition("-")[2] for name in ranks} == {"rank0", "rank1"}
    runs = starts(trained.events)
    (training,) = [run_id for run_id, events in runs.items() if "parent_run_id" not in events[0].data]
    for run_id, events in runs.items():
        assert {event.source for event in events} == ranks
        assert {event.data.get("parent_run_id", training) for event in events} == {training}, run_id
    views = RunViews()
    for event in trained.events:
        views.apply(event)
    assert {view.status for view in views.runs.values()} == {"completed"}
    check_events(trained.events)


def test_chains_and_groups_have_one_numbering_over_both(trained):
    """A group's chains have one prompt, also those that another process plays, and each rollout has all numbers once."""
    of_run = starts(trained.events, T.CHAIN_START)
    rollouts = [
        events
        for run_id, events in of_run.items()
        if starts(trained.events)[run_id][0].data["split"] == "train"
    ]
    assert len(rollouts) == 2
    for events in rollouts:
        assert Counter(e.chain_id for e in events) == Counter(f"chain_{i}" for i in range(CHAINS))
        groups = defaultdict(list)
        for event in events:
            groups[event.group_id].append(event)
        assert groups.keys() == {f"group_{i}" for i in range(CHAINS // GENERATIONS)}
        for chains in groups.values():
            assert sorted(e.data["index"] for e in chains) == [*range(GENERATIONS)]
            assert len({e.data["messages"][-1]["content"] for e in chains}) == 1
        assert {len({e.source for e in chains}) for chains in groups.values()} == {1, 2}
    for events in starts(trained.events).values():
        split = events[0].data.get("split")
        expected = {"train": (CHAINS, 3), "eval": (CHAINS, 3), None: (0, 0)}[split]
        assert tuple(sum(e.data[name] for e in events) for name in ("chains", "groups")) == expected


def test_only_the_first_process_tells_of_steps(trained):
    """And it tells what was learned from the chains of both: advantages whose sum over a group is nothing."""
    steps = [event for event in trained.events if event.event_type is T.TRAIN_STEP]
    assert {event.source[-1] for event in steps} == {"0"}
    learned = [event.data["chains"] for event in steps if "chains" in event.data]
    assert len(learned) == 2
    for of_runs in learned:
        (chains,) = of_runs.values()
        assert chains.keys() == {f"chain_{i}" for i in range(CHAINS)}
        for first in range(0, CHAINS, GENERATIONS):
            group = [chains[f"chain_{i}"]["advantage"] for i in range(first, first + GENERATIONS)]
            assert sum(group) == pytest.approx(0.0, abs=1e-3)


def test_each_process_s_log_has_the_run_that_its_rollouts_name(trained):
    """So a log of one process alone can be read: nothing in it names what is not there."""
    assert trained.logs.keys() == {"events.jsonl", "events.rank1.jsonl"}
    for name, events in trained.logs.items():
        (source,) = {event.source for event in events}
        assert source.endswith("rank1" if "rank1" in name else "rank0")
        begun = {event.run_id for event in events if event.event_type is T.RUN_START}
        parents = {
            e.data["parent_run_id"]
            for e in events
            if e.event_type is T.RUN_START and "parent_run_id" in e.data
        }
        assert len(parents) == 1
        assert parents <= begun
        check_events(events)


def test_only_the_first_process_prints(trained):
    """The other one says once where its chains can be seen."""
    assert trained.out.count("prints no chains") == 1
    assert (
        "rank 1 prints no chains, since rank 0 prints here; to see them: rollcast watch ws://127.0.0.1"
        in trained.out
    )
    assert trained.out.count("training completed") == 1
