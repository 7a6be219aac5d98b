"""The table that follows a record: it tells what a table of events tells, and says when it cannot."""

import asyncio
import random

import pytest

from rollcast.archive import ArchiveObserver
from rollcast.records import StreamEvent, StreamEventType
from rollcast.serve import recorded_rows
from rollcast.serve.live_rows import LiveRows
from rollcast.serve.recorded_rows import RecordedRows, can_follow
from rollcast.stream import StreamingManager
from serve.test_live_rows import Told, steady
from stream.doings import do_something

T = StreamEventType


@pytest.fixture
async def manager():
    manager = StreamingManager(queue_limit=1 << 30)
    yield manager
    await manager.aclose()


@pytest.fixture
def record(manager, tmp_path):
    record = ArchiveObserver(tmp_path / "record", masker=False)
    manager.add_observer(record)
    return record


async def following(manager, record):
    """A table that follows the record, which has begun."""
    await manager.drain()
    await record.recorded()
    assert can_follow(manager, record)
    rows = RecordedRows(None, manager, record)
    await rows.begin()
    return rows


async def looked(rows):
    """The table after it has asked for everything."""
    assert await rows.catch_up() is None
    rows.ask()
    return rows


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("seed", range(20))
async def test_rows_are_those_that_the_events_make(manager, record, seed):
    """Whatever the chains do, and whenever somebody looks; a client that watches has the same in the end."""
    choose = random.Random(seed).choice
    told = Told(manager)
    chains, seen, version = [], {}, 0
    async with manager.run(chains=9, train_step=3, split="train") as run:
        chains.append(run.chain([{"role": "user", "content": "q"}], seed=4).start())
        rows = await following(manager, record)
        for _ in range(120):
            chain = choose(chains)
            if len(chains) < 9 and choose(range(12)) == 0:
                about = {"group_id": choose([None, "group_0"]), "reference": choose([None, 12]), "seed": 5}
                chains.append(run.chain([{"role": "user", "content": "q"}], **about).start())
            elif chain.ended:
                continue
            elif choose(range(25)) == 0:
                chain.end(choose(["answered", "max_steps", "error"]), "so")
            else:
                do_something(choose, chain)
            if choose(range(10)) == 0:
                await looked(rows)
                await told.catch_up()
                assert steady(rows.open_rows()) == steady(told.rows.open_rows())
                assert steady(rows.ended_rows()) == steady(told.rows.ended_rows())
                seen |= steady(rows.changed_since(version))
                version = rows.version
                assert seen == steady([*rows.open_rows(), *rows.ended_rows()])


async def test_what_a_training_learned_completes_rows(manager, record):
    """Also of a row that was made before."""
    async with manager.run() as run:
        one = run.chain([]).start()
        rows = await following(manager, record)
        one.end("answered", "so")
        with run.chain([]):
            pass
    await looked(rows)
    rows.encoded(rows.ended_rows()[0], 1 << 20)
    learned = {run.run_id: {"chain_0": {"advantage": 0.5}, "chain_1": {"advantage": -0.5}}}
    manager.emit(StreamEvent(T.TRAIN_STEP, "", 1.0, {"train_step": 7, "chains": learned}, run_id="training"))
    await looked(rows)
    assert [row["advantage"] for row in rows.ended_rows()] == [0.5, -0.5]
    assert [row["train_step"] for row in rows.step_rows()] == [7]


async def test_a_chain_that_does_nothing_has_no_new_row(manager, record):
    """However often it is asked, and whatever others do."""
    async with manager.run() as run:
        still, other = run.chain([]).start(), run.chain([]).start()
        rows = await following(manager, record)
        await looked(rows)
        version = rows.version
        other.generation().start()
        await looked(rows)
        assert [row["chain_id"] for row in rows.changed_since(version)] == [other.trajectory.chain_id]
        assert still.trajectory.chain_id in {row["chain_id"] for row in rows.open_rows()}


async def test_a_table_does_not_outlive_its_record(manager, record):
    """It still has what came before."""
    async with manager.run() as run:
        chain = run.chain([]).start()
        rows = await following(manager, record)
        chain.end("answered")
        manager.remove_observer(record)
        assert rows.closed
        await rows.catch_up()
        assert [row["state"] for row in rows.ended_rows()] == ["ended"]
        assert not can_follow(manager, record)


async def test_chains_that_another_process_relays_are_not_followed(manager, record):
    """They cannot be asked."""
    async with manager.run() as run:
        run.chain([]).start()
        rows = await following(manager, record)
        manager.relay(StreamEvent(T.RUN_START, "", 1.0, {}, run_id="elsewhere", seq=0))
        assert rows.closed
        assert not can_follow(manager, record)


async def test_chains_of_which_somebody_makes_events_are_not_followed(manager, record):
    """What they add up to is not what their writer says."""
    async with manager.run() as run:
        chain = run.chain([]).start()
        rows = await following(manager, record)
        manager.emit(
            StreamEvent(
                T.MESSAGE, chain.trajectory.chain_id, 1.0, {"role": "user", "content": "x"}, run_id=run.run_id
            )
        )
        await looked(rows)
        assert rows.closed


async def test_a_record_that_is_late_is_not_followed(manager, record, monkeypatch):
    """A disk that hangs must not hold up what is shown."""
    monkeypatch.setattr(recorded_rows, "LATE_S", 0.0)
    async with manager.run() as run:
        run.chain([]).start()
        rows = await following(manager, record)
        monkeypatch.setattr(record, "_worker", _Hangs())
        with run.chain([]):
            for _ in range(recorded_rows.LATE_LOOKS):
                rows.ask()
            assert not rows.closed
            await asyncio.sleep(0.001)
            rows.ask()
            assert rows.closed


class _Hangs:
    """A worker that takes everything and writes nothing."""

    running = True

    def start(self):
        pass

    def put(self, events):
        pass

    def put_trajectory(self, trajectory):
        pass

    def flush(self):
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


async def test_the_server_keeps_no_events_for_a_table_of_a_record(manager, record):
    """The manager gives it none."""
    async with manager.run() as run:
        run.chain([]).start()
        await following(manager, record)
        assert not manager.fanout.asking
        assert LiveRows().name not in [each.name for each in manager.statistics()]
