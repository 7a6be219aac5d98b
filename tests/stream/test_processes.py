"""What a process is among others: its rank and name, and the run that it shares with them."""

import pytest

from rollcast import BaseAgent
from rollcast.records import StreamEventType
from rollcast.stream import StreamingManager, processes
from rollcast.stream.processes import SharedRun, default_source, rank_of_process, source_of_process
from rollcast.testing import ScriptedBackend, capture_events

T = StreamEventType


@pytest.fixture(autouse=True)
def environ(monkeypatch):
    """Nothing of this process's own environment, and no run that is taken."""
    for name in ("RANK", "WORLD_SIZE", "ROLLCAST_SOURCE", "ROLLCAST_SOURCE_TAKEN", "ROLLCAST_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(SharedRun, "_pid", None)
    return monkeypatch


@pytest.mark.parametrize(
    ("rank", "count", "found"), [("1", "2", 1), ("0", "1", None), ("", "", None), ("x", "2", None), ("0", "8", 0)]
)  # fmt: skip
def test_a_rank_is_that_of_one_process_of_several(rank, count, found):
    """A process that torchrun started alone is none."""
    assert rank_of_process({"RANK": rank, "WORLD_SIZE": count}) == found


def test_a_manager_has_a_source_if_its_process_is_one_of_several(environ):
    """Named by the variable, or by host and rank; otherwise none, as in a single process."""
    assert StreamingManager().source == default_source() == ""
    environ.setenv("RANK", "3")
    environ.setenv("WORLD_SIZE", "4")
    assert StreamingManager().source == source_of_process()
    assert StreamingManager().source.endswith("-rank3")
    assert StreamingManager(source="mine").source == "mine"
    environ.setenv("ROLLCAST_SOURCE", "trainer")
    assert StreamingManager().source == "trainer-rank3"


async def test_the_first_run_of_a_process_is_its_part_of_the_shared_one(environ):
    """Chains that it numbers have its name, since others number theirs; later runs are its own."""
    environ.setenv("ROLLCAST_RUN_ID", "shared")
    manager = StreamingManager(source="rank1")
    with capture_events(manager) as capture:
        async with manager.run(parent_run_id="other") as child:
            pass
        async with manager.run() as first:
            with first.chain(), first.chain(), first.chain(chain_id="mine"):
                pass
        async with manager.run() as second:
            with second.chain() as chain:
                pass
    assert first.run_id == "shared"
    assert "shared" not in (child.run_id, second.run_id)
    chains = [e.chain_id for e in capture.events if e.event_type is T.CHAIN_START and e.run_id == "shared"]
    assert chains == ["chain_0@rank1", "chain_1@rank1", "mine"]
    assert chain.trajectory.chain_id == "chain_0"


async def test_a_run_that_nobody_can_watch_does_not_take_the_shared_one(environ):
    """It has no events."""
    environ.setenv("ROLLCAST_RUN_ID", "shared")
    manager = StreamingManager()
    async with manager.run(live=False) as silent:
        pass
    async with manager.run() as run:
        pass
    assert (silent.run_id != "shared", run.run_id) == (True, "shared")


async def test_an_agent_s_chains_of_a_shared_run_have_the_name_of_their_process(environ):
    """And so have its groups: those of another process are other ones."""
    environ.setenv("ROLLCAST_RUN_ID", "shared")
    agent = BaseAgent(backend=ScriptedBackend(["hello"]), streaming_manager=StreamingManager(source="rank1"))
    result = await agent.run_async(
        1, [{"role": "user", "content": "hi"}], num_chains=2, enable_streaming=True
    )
    assert result.run_id == "shared"
    assert [(t.chain_id, t.group_id) for t in result] == [
        ("chain_0@rank1", "group_0@rank1"),
        ("chain_1@rank1", "group_0@rank1"),
    ]


@pytest.mark.parametrize("variable", ["ROLLCAST_SOURCE", "ROLLCAST_RUN_ID"])
@pytest.mark.parametrize(
    ("given", "why"), [("x" * 10_000, "it has 10,000 characters"), ("a\x1b[31mb\nc", r"it is 'a\x1b[31mb\x0ac'")]
)  # fmt: skip
async def test_what_cannot_be_a_name_counts_as_unset(environ, caplog, variable, given, why):
    """One sentence says so, however many managers and runs there are."""
    environ.setattr(processes, "_told", set())
    environ.setenv(variable, given)
    for _ in range(2):
        manager = StreamingManager()
        assert manager.source == ""
        async with manager.run() as run:
            assert run.run_id != given
    assert [record.getMessage() for record in caplog.records] == [
        f"{variable} is not used, since {why}; expected a name of at most 200 printable characters"
    ]
