"""Who watches rows gets each chain's last state, and nothing older after it, whichever table they come from meanwhile."""

import asyncio
import contextlib
import errno
import random
import shutil
from functools import partial

import pytest

from rollcast.archive import ArchiveObserver
from rollcast.records import EventFilter
from rollcast.serve import queries
from rollcast.serve.recorded_rows import RecordedRows


class Watch:
    """A client that watches rows.

    Attributes:
        rows: the latest row of each chain, by chain.
        states: the states that each chain was told to have, in order, without repetitions.
        count: how many rows came.
    """

    def __init__(self, client, **about):
        self._query = client.query("chains", watch=True, **about)
        self.rows, self.states, self.missing, self.count = {}, {}, [], 0
        self._task = None
        self._came = asyncio.Event()
        self._answered = asyncio.Event()

    async def __aenter__(self):
        """Watch, and wait for the first rows."""
        self._task = asyncio.create_task(self._read())
        async with asyncio.timeout(60):
            await self._answered.wait()
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _read(self):
        async with contextlib.aclosing(self._query) as answer:
            async for part in answer:
                self.missing += part.missing
                for row in part.rows:
                    chain = row["chain_id"]
                    self.rows[chain] = row
                    self.count += 1
                    states = self.states.setdefault(chain, [])
                    if states[-1:] != [row["state"]]:
                        states.append(row["state"])
                self._answered.set()
                self._came.set()

    async def until(self, holds):
        async with asyncio.timeout(80):
            while not holds():
                if self._task.done():
                    self._task.result()
                    raise AssertionError("the answer ended")
                self._came.clear()
                await self._came.wait()

    def is_(self, chain, state):
        return self.rows.get(chain, {}).get("state") == state


@pytest.fixture
async def recorded(stage, tmp_path):
    """A stage with a record."""
    stage.record = ArchiveObserver(tmp_path / "r", masker=False)
    stage.manager.add_observer(stage.record)
    await stage.serve()
    return stage


def table_of(stage):
    return stage.server._queries._table._rows


async def rows_now(stage, **about):
    rows = {}
    async with contextlib.aclosing(stage.client().query("chains", **about)) as answer:
        async for part in answer:
            rows |= {row["chain_id"]: row for row in part.rows}
    return rows


async def following(stage):
    """Until the server's table follows the record."""
    async with asyncio.timeout(60):
        while not isinstance(table_of(stage), RecordedRows):
            await rows_now(stage)


async def test_a_chain_that_waits_for_a_tool_is_not_sent_again(recorded):
    """However often somebody looks."""
    async with recorded.manager.run() as run:
        with run.chain([], chain_id="waits") as chain, chain.generation() as generation:
            generation.chunk("x", [1], [-0.1])
            generation.end("tool_call")
            other = run.chain([], chain_id="other").start()
            chain.tool_call("look", {}).start()
            await following(recorded)
            async with Watch(recorded.client()) as watch:
                await watch.until(lambda: "waits" in watch.rows and "other" in watch.rows)
                version = table_of(recorded).version
                for _ in range(5):
                    await rows_now(recorded)
                assert table_of(recorded).version == version
                other.end("answered")
                await watch.until(lambda: watch.is_("other", "ended"))


@pytest.mark.parametrize("asked", [True, False])
async def test_the_record_is_removed_while_a_chain_is_open(recorded, asked):
    """What ends afterwards is told too, whether or not somebody else asks meanwhile."""
    async with recorded.manager.run() as run:
        chain = run.chain([], chain_id="a").start()
        late = run.chain([], chain_id="b").start()
        await following(recorded)
        async with Watch(recorded.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            recorded.manager.remove_observer(recorded.record)
            chain.end("answered")
            if asked:
                await rows_now(recorded)
            await watch.until(lambda: watch.is_("a", "ended"))
            late.end("answered")
            await watch.until(lambda: watch.is_("b", "ended"))
            assert watch.states == {"a": ["running", "ended"], "b": ["running", "ended"]}


async def test_an_end_before_the_record_is_removed(recorded):
    """It is told although the record is not followed any more."""
    async with recorded.manager.run() as run:
        chain = run.chain([], chain_id="a").start()
        await following(recorded)
        async with Watch(recorded.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            chain.end("answered")
            recorded.manager.remove_observer(recorded.record)
            await rows_now(recorded)
            await watch.until(lambda: watch.is_("a", "ended"))


async def test_the_record_is_taken_off_and_added_again(recorded):
    """What ended meanwhile is not told as open for ever."""
    async with recorded.manager.run() as run:
        chain = run.chain([], chain_id="a").start()
        other = run.chain([], chain_id="b").start()
        await following(recorded)
        async with Watch(recorded.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            recorded.manager.remove_observer(recorded.record)
            chain.end("answered")
            recorded.manager.add_observer(recorded.record)
            await watch.until(lambda: watch.rows["a"]["state"] != "running")
            other.end("answered")
            await watch.until(lambda: watch.is_("b", "ended"))


async def test_a_second_record_is_added(recorded, tmp_path):
    """The rows come from it then, with what the start of each chain told."""
    async with recorded.manager.run() as run:
        chain = run.chain([], chain_id="a", seed=4, reference=7).start()
        await following(recorded)
        async with Watch(recorded.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            second = ArchiveObserver(tmp_path / "r2", masker=False)
            recorded.manager.add_observer(second)
            one = run.chain([], chain_id="b").start()
            await recorded.manager.drain()
            await rows_now(recorded)
            await watch.until(lambda: watch.is_("b", "running"))
            chain.end("answered")
            one.end("answered")
            await watch.until(lambda: watch.is_("a", "ended") and watch.is_("b", "ended"))
            assert watch.rows["a"]["seed"] == 4
            assert watch.states == {"a": ["running", "ended"], "b": ["running", "ended"]}


async def test_a_record_of_some_chains_only(stage, tmp_path):
    """It cannot tell of the others, so it is not followed."""
    stage.record = ArchiveObserver(tmp_path / "r", masker=False)
    stage.record.filter = EventFilter(types=stage.record.filter.types, groups=["g"])
    stage.manager.add_observer(stage.record)
    await stage.serve()
    async with stage.manager.run() as run:
        run.chain([], chain_id="a", group_id="g").start()
        await stage.manager.drain()
        await rows_now(stage)
        async with Watch(stage.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            await rows_now(stage)
            b = run.chain([], chain_id="b").start()
            await rows_now(stage)
            b.end("answered")
            await watch.until(lambda: watch.is_("b", "ended"))


async def test_the_folder_is_deleted(recorded):
    """The record is begun anew, and its rows go on."""
    async with recorded.manager.run() as run:
        chain = run.chain([], chain_id="a").start()
        await following(recorded)
        async with Watch(recorded.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            shutil.rmtree(recorded.record.path)
            chain.end("answered")
            await watch.until(lambda: watch.is_("a", "ended"))
            run.chain([], chain_id="b").start().end("answered")
            await watch.until(lambda: watch.is_("b", "ended"))


async def test_the_record_lost_events(recorded, monkeypatch):
    """A chain whose end was lost is not told as open; if it is lost, that is said."""
    async with recorded.manager.run() as run:
        chain = run.chain([], chain_id="a").start()
        await following(recorded)
        async with Watch(recorded.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            delivery = recorded.manager.delivery_of(recorded.record)
            with recorded.manager.lock:
                delivery.limit = 0
            chain.message({"role": "user", "content": "x" * 1000})
            chain.end("answered")
            one = run.chain([], chain_id="b").start()
            one.message({"role": "user", "content": "x" * 1000})
            one.end("answered")
            with recorded.manager.lock:
                assert delivery.dropped
                delivery.limit = 1 << 20
            await rows_now(recorded)
            await watch.until(lambda: watch.rows["a"]["state"] != "running")
            assert watch.missing or watch.is_("a", "ended"), watch.rows


async def test_the_manager_is_closed(recorded, caplog):
    """Who watches gets what was over before; who asks then is answered from the record, and nothing fails."""
    async with recorded.manager.run() as run:
        chain = run.chain([], chain_id="a").start()
        await following(recorded)
        async with Watch(recorded.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            chain.end("answered")
            run.chain([], chain_id="b").start()
            await recorded.manager.aclose()
            assert (await rows_now(recorded))["a"]["state"] == "ended"
            await watch.until(lambda: watch.is_("a", "ended") and "b" in watch.rows)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_the_run_ends_with_open_chains(recorded):
    """They are over then."""
    async with recorded.manager.run() as run:
        run.chain([], chain_id="a").start()
        await following(recorded)
        watch = await Watch(recorded.client()).__aenter__()
        await watch.until(lambda: watch.is_("a", "running"))
    await watch.until(lambda: watch.rows["a"]["state"] != "running")
    await watch.__aexit__()


async def test_the_disk_is_full(recorded, monkeypatch):
    """Who asks then is told what the table knows: the record has the chain as it was before, or not at all."""
    async with recorded.manager.run() as run:
        chain = run.chain([], chain_id="a").start()
        await following(recorded)
        async with Watch(recorded.client()) as watch:
            await watch.until(lambda: watch.is_("a", "running"))
            with monkeypatch.context() as disk:
                disk.setattr(recorded.record._recorder._events, "append", is_full)
                chain.end("answered")
                run.chain([], chain_id="b").start().end("answered")
                await watch.until(lambda: watch.is_("a", "ended") and watch.is_("b", "ended"))
                for about in ({}, {"sort": "-reward"}, {"filter": {"state": "ended"}}):
                    rows = await rows_now(recorded, **about)
                    assert {chain: row["state"] for chain, row in rows.items()} == {
                        "a": "ended",
                        "b": "ended",
                    }
                assert await rows_now(recorded, filter={"state": "running"}) == {}
            run.chain([], chain_id="c").start().end("answered")
            await watch.until(lambda: watch.is_("c", "ended"))
            rows = await rows_now(recorded)
            assert {chain: row["state"] for chain, row in rows.items()} == dict.fromkeys("abc", "ended")


def is_full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("seed", range(5))
async def test_nobody_is_left_with_a_chain_that_is_over(recorded, tmp_path, monkeypatch, seed):
    """Whatever becomes of the record, and whoever asks or begins to watch meanwhile."""
    monkeypatch.setattr(queries, "WATCH_S", 0.01)
    monkeypatch.setattr(queries, "LONGEST_REST_S", 0.01)
    choose, manager, records = random.Random(seed).choice, recorded.manager, [recorded.record]
    watches, chains, number = [], [], 0
    async with contextlib.AsyncExitStack() as stack, manager.run() as run:
        for _ in range(150):
            what = choose(range(16))
            if what == 0:
                await rows_now(recorded)
            elif what == 1 and len(watches) < 3:
                about = choose([{}, {"filter": {"state": "running"}}, {"filter": {"group_id": "g"}}])
                watches.append(await stack.enter_async_context(Watch(recorded.client(), **about)))
            elif what == 2 and choose([True, False]):
                if records and choose([True, False]):
                    manager.remove_observer(records.pop())
                elif number < 4:
                    number += 1
                    records.append(ArchiveObserver(tmp_path / f"another_{number}", masker=False))
                    manager.add_observer(records[-1])
            elif what < 6 and len(chains) < 20:
                name = f"chain_{len(chains)}"
                chains.append(run.chain([], chain_id=name, group_id=choose([None, "g"])).start())
            elif what < 9 and chains:
                choose(chains).end("answered")
            else:
                await asyncio.sleep(choose([0, 0, 0.02]))
        for chain in chains:
            chain.end("answered")
        for watch in watches:
            await watch.until(partial(knows_no_open_chain, watch))
            for states in watch.states.values():
                over = [state for state in states if state != "running"]
                assert states == over or (states[0] == "running" and states[1:] == over)


def knows_no_open_chain(watch):
    return all(row["state"] != "running" for row in watch.rows.values())
