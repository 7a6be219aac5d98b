"""The table of rows, which asks the chains of its manager's own runs, and is told of all others."""

import asyncio
import random

import pytest

from rollcast.archive.pages import ROW_BYTES
from rollcast.records import StreamEvent
from rollcast.serve.live_rows import LiveRows
from rollcast.stream import StreamingManager
from stream.doings import do_something


@pytest.fixture
async def manager():
    manager = StreamingManager(queue_limit=1 << 30)
    yield manager
    await manager.aclose()


def table(manager):
    """A table that was added to the manager."""
    rows = LiveRows()
    rows.loop = asyncio.get_running_loop()
    manager.add_observer(rows)
    return rows


class Told:
    """A table that is given every event, as of relayed chains."""

    def __init__(self, manager):
        self.rows = LiveRows()
        self._delivery = manager.fanout.delivery("told", LiveRows.filter)
        self._delivery.pulled = True
        manager.fanout.add(self._delivery)

    async def catch_up(self):
        with self._delivery.lock:
            items = self._delivery.take_locked()
        await self.rows.on_batch([item for item in items if isinstance(item, StreamEvent)])


def steady(rows):
    """What does not depend on the microsecond, by chain."""
    unlike = ("times", "stays", "last_event_at", "started_at")
    told = {}
    for row in rows:
        stays = {state: stay["count"] for state, stay in row.get("stays", {}).items()}
        told[row["run_id"], row["chain_id"]] = [
            stays,
            {k: v for k, v in row.items() if k not in unlike},
        ]
    return told


@pytest.mark.parametrize("seed", range(25))
async def test_rows_of_chains_that_are_asked_are_those_that_their_events_make(manager, seed):
    """Whatever the chains do, and whenever somebody looks; a client that watches has the same in the end."""
    choose = random.Random(seed).choice
    asking, told = table(manager), Told(manager)
    chains, seen, version = [], {}, 0
    with manager.run(chains=9, train_step=3, split="train") as run:
        for _ in range(200):
            chain = choose(chains) if chains else None
            if chain is None or (len(chains) < 9 and choose(range(12)) == 0):
                about = {"group_id": choose([None, "group_0"]), "reference": choose([None, 12]), "seed": 5}
                chains.append(run.chain([{"role": "user", "content": "q"}], **about).start())
            elif chain.ended:
                continue
            elif choose(range(25)) == 0:
                chain.end(choose(["answered", "max_steps", "error"]), "so")
            else:
                do_something(choose, chain)
            if choose(range(6)) == 0:
                await asking.catch_up()
                asking.ask()
                await told.catch_up()
                assert steady(asking.open_rows()) == steady(told.rows.open_rows())
                assert steady(asking.ended_rows()) == steady(told.rows.ended_rows())
                seen |= steady(asking.changed_since(version))
                version = asking.version
                assert seen == steady([*asking.open_rows(), *asking.ended_rows()])


async def test_what_a_chain_does_between_two_looks_costs_one_row(manager):
    """And nothing at all as long as nobody looks."""
    rows = table(manager)
    with manager.run() as run, run.chain([]) as chain:
        await rows.catch_up()
        version = rows.version
        for _ in range(5):
            with chain.generation() as generation:
                generation.chunk("word", [1], [-0.1])
        await rows.catch_up()
        assert (rows.version, rows.to_ask) == (version, 1)
        rows.ask()
        assert (rows.version, rows.to_ask) == (version + 1, 0)
        (row,) = rows.changed_since(version)
        assert (row["step"], row["completion_tokens"], row["activity"]) == (5, 5, "scoring")


async def test_events_are_taken_by_themselves_a_moment_later(manager, until):
    """Nobody has to ask, so that the queue does not grow."""
    rows = table(manager)
    with manager.run() as run:
        with run.chain([]):
            pass
        assert rows.ended_rows() == []
        await until(rows.ended_rows)
        (statistics,) = manager.statistics()
        assert (statistics.queued, statistics.dropped) == (0, 0)


async def test_the_rest_of_a_question_that_was_abandoned_is_asked_by_the_next(manager):
    """No chain is forgotten that had done something."""
    rows = table(manager)
    with manager.run(chains=200) as run:
        chains = [run.chain([]).start() for _ in range(200)]
        await rows.catch_up()
        for chain in chains:
            chain.generation().start()
        asking = asyncio.create_task(rows.make())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        assert rows.to_ask
        rows.ask()
        assert [row["activity"] for row in rows.open_rows()] == ["generating"] * 200


async def test_chains_may_end_while_the_rows_of_others_are_made(manager):
    """The rows are made in portions; a chain whose end was taken in between has the row of an ended chain."""
    rows = table(manager)
    with manager.run(chains=200) as run:
        chains = [run.chain([]).start() for _ in range(200)]
        await rows.catch_up()
        making = asyncio.create_task(rows.make())
        await asyncio.sleep(0)
        chains[-1].end("answered")
        await rows.catch_up()
        await making
        assert (len(rows.open_rows()), len(rows.ended_rows())) == (199, 1)


async def test_a_row_that_is_out_of_date_is_not_kept_as_json(manager):
    """An answer may still show it; who watches gets the latest."""
    rows = table(manager)
    with manager.run() as run, run.chain([]) as chain:
        await rows.catch_up()
        (before,) = rows.open_rows()
        chain.generation().start()
        rows.ask()
        (after,) = rows.open_rows()
        assert b"generating" not in rows.encoded(before, ROW_BYTES)
        assert b"generating" in rows.encoded(after, ROW_BYTES)
