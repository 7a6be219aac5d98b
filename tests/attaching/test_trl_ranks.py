"""A TRL training over two processes, each of which attaches its trainer, is one run with two sources."""

import asyncio
import os
import sys
import uuid
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("trl", reason="needs the extra")

from rollcast.attaching import trl_ranks
from rollcast.attaching.trl_ranks import SharedTraining, id_of_batch
from rollcast.fleet.hub import Hub
from rollcast.records import StreamEventType, check_events
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer
from rollcast.stream import StreamingManager
from rollcast.stream.run import new_run_id
from rollcast.testing import capture_events

pytestmark = pytest.mark.torch

T = StreamEventType
TOKEN = "a-token-that-publishes"
SCRIPT = Path(__file__).parent / "trl_attached_rank.py"
GENERATIONS = 4  # of each prompt; each process generates six chains, so one group is shared
CHAINS = 12


async def train_on_two(folder):
    """Train with torchrun; the events that a hub got."""
    manager = StreamingManager(publish=False)
    settings = ServerSettings(tokens=(Token(TOKEN, ("read", "publish")),), close_s=0.5, hello_s=60.0)
    server = WebSocketStreamingServer("127.0.0.1", 0, settings=settings)
    with capture_events(manager) as capture:
        async with Hub(server, manager):
            known = {
                "ROLLCAST_HUB": server.url,
                "ROLLCAST_HUB_TOKEN": TOKEN,
                "ROLLCAST_RECORDS": str(folder / "records"),
                "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]),
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
    return SimpleNamespace(events=capture.events, out=out.decode())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return asyncio.run(train_on_two(tmp_path_factory.mktemp("ranks")))


def by_run(events, kind):
    found = defaultdict(list)
    for event in events:
        if event.event_type is kind:
            found[event.run_id].append(event)
    return found


@pytest.mark.slow
def test_each_run_has_the_chains_of_both(trained):
    """The training, and each generation batch, in which chains and groups have one numbering over both processes."""
    check_events(trained.events)
    starts = by_run(trained.events, T.RUN_START)
    sources = {event.source for event in trained.events}
    assert {source.rpartition("-")[2] for source in sources} == {"rank0", "rank1"}
    (training,) = [run_id for run_id, events in starts.items() if "parent_run_id" not in events[0].data]
    chains = by_run(trained.events, T.CHAIN_START)
    assert len(starts) > 2
    for run_id, events in starts.items():
        assert {event.source for event in events} == sources
        assert {event.data.get("parent_run_id", training) for event in events} == {training}
        if run_id == training or events[0].data["split"] == "eval":
            continue
        assert Counter(e.chain_id for e in chains[run_id]) == Counter(f"chain_{i}" for i in range(CHAINS))
        groups = defaultdict(set)
        for event in chains[run_id]:
            groups[event.group_id].add(event.data["messages"][-1]["content"])
        assert {name: len(questions) for name, questions in groups.items()} == {
            f"group_{i}": 1 for i in range(3)
        }
        assert sum(event.data["chains"] for event in events) == CHAINS
        assert sum(event.data["groups"] for event in events) == CHAINS // GENERATIONS


@pytest.mark.slow
def test_the_first_process_tells_of_steps_and_of_all_advantages(trained):
    """Their sum over a group is nothing."""
    steps = [event for event in trained.events if event.event_type is T.TRAIN_STEP]
    assert {event.source[-1] for event in steps} == {"0"}
    told = [chains for event in steps for chains in event.data.get("chains", {}).values()]
    assert len(told) == 2
    for chains in told:
        assert chains.keys() == {f"chain_{i}" for i in range(CHAINS)}
        for first in range(0, CHAINS, GENERATIONS):
            group = [chains[f"chain_{i}"]["advantage"] for i in range(first, first + GENERATIONS)]
            assert sum(group) == pytest.approx(0.0, abs=1e-3)


def test_ids_of_batches_sort_after_their_training():
    """In the order of the batches, and each process makes the same."""
    training = new_run_id()
    ids = [id_of_batch(training, number) for number in (0, 1, 2, 16_383, 16_384, 70_000)]
    assert sorted([*ids, training[:13]]) == [training[:13], *ids]
    assert {uuid.UUID(name).version for name in ids} == {7}
    assert len(set(ids)) == len(ids)
    assert ids[1] == id_of_batch(training, 1)
    assert id_of_batch("night", 3) == "night-3"


class Store(dict):
    """What torch.distributed has, for one process."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)


def test_processes_agree_on_each_training(monkeypatch):
    """The second training of a trainer has another id."""
    monkeypatch.delenv("ROLLCAST_RUN_ID", raising=False)
    store, first, other = Store(), SharedTraining(True, None), SharedTraining(False, None)
    first._store = other._store = store
    other._attachment = first._attachment
    ids = [first.next_id(), first.next_id()]
    assert [other.next_id(), other.next_id()] == ids
    assert len(set(ids)) == 2


def test_if_the_first_process_says_nothing_the_others_have_runs_of_their_own(monkeypatch, caplog):
    """They wait a while on a thread of ours, and say what can be done."""
    monkeypatch.delenv("ROLLCAST_RUN_ID", raising=False)
    monkeypatch.setattr(trl_ranks, "WAIT_S", 0.0)
    alone = SharedTraining(False, Store())
    assert alone.next_id() != alone.next_id()
    assert "attach in every process, or set ROLLCAST_RUN_ID" in caplog.text
