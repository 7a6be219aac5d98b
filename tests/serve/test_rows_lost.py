"""Rows of chains whose events the table of rows lost: they come all the same, or a sentence says that they are missing."""

import asyncio
import contextlib
import random

import pytest

from rollcast.archive import ArchiveObserver
from rollcast.records import StreamEvent
from rollcast.serve.live_rows import LiveRows
from rollcast.stream import StreamingManager

CHAINS = 600

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture(params=["record", "memory"])
async def kept(request, stage, tmp_path, monkeypatch):
    """A stage whose table of rows loses what does not fit into its small queue, with a record and without."""
    stage.manager.queue_limit = 1 << 16
    stage.record = None
    if request.param == "record":
        stage.record = ArchiveObserver(tmp_path / "r", masker=False)
        stage.manager.add_observer(stage.record)
    await stage.serve()
    monkeypatch.setattr(type(stage.server.get_observer()), "queue_limit_bytes", 64 << 20)
    monkeypatch.setattr(LiveRows, "queue_limit_bytes", 0)
    stage.manager.remove_observer(stage.server.get_observer())
    stage.manager.add_observer(stage.server.get_observer())
    return stage


def lost(stage):
    """How many events the table of rows lost."""
    return sum(each.dropped for each in stage.manager.statistics() if "(rows)" in each.name)


def chain_of(stack, run, number):
    """A chain with a generation and a call; every third stays open."""
    about = [{"role": "user", "content": f"question {number}"}]
    chain = stack.enter_context(run.chain(about, group_id=f"group_{number // 8}", chain_id=f"chain_{number}"))
    with chain.generation() as generation:
        generation.chunk("word ", [1], [-0.1])
    with chain.tool_call("look", {"at": number}) as call:
        call.observation("seen")
    if number % 3:
        chain.reward(float(number % 4))
        chain.end("answered")


async def asked(stage, **about):
    """All rows by chain, and what the answer lacks."""
    rows, missing, after = {}, [], None
    while True:
        following = None
        async with contextlib.aclosing(stage.client().query("chains", after=after, **about)) as answer:
            async for part in answer:
                rows |= {row["chain_id"]: row for row in part.rows}
                missing += part.missing
                following = part.next or following
        if following is None:
            return rows, missing
        after = following


def check(rows):
    """Each chain has its row, as it is now."""
    assert set(rows) == {f"chain_{n}" for n in range(CHAINS)}
    for number in range(CHAINS):
        row = rows[f"chain_{number}"]
        assert row["state"] == ("ended" if number % 3 else "running")
        assert row.get("reward") == (float(number % 4) if number % 3 else None)
        assert (row["group_id"], row["calls"]) == (f"group_{number // 8}", 1)


async def test_no_row_is_missing_after_a_burst(kept):
    """All chains in one turn of the loop are more than the queue holds: who watches gets each of them, and so does who asks then."""
    told, missing = {}, []
    async with asyncio.timeout(120), contextlib.AsyncExitStack() as stack:
        answer = await stack.enter_async_context(
            contextlib.aclosing(kept.client().query("chains", watch=True))
        )
        run = None
        async for part in answer:
            told |= {row["chain_id"]: row for row in part.rows}
            missing += part.missing
            if run is None:
                run = await stack.enter_async_context(kept.manager.run(chains=CHAINS))
                for number in range(CHAINS):
                    chain_of(stack, run, number)
                assert lost(kept)
            if (
                len(told) == CHAINS
                and sum(row["state"] == "ended" for row in told.values()) == CHAINS * 2 // 3
            ):
                break
        check(told)
        rows, lacks = await asked(kept)
        check(rows)
        assert missing == lacks == []


async def test_what_cannot_be_made_good_is_said(stage, monkeypatch):
    """Without a record, and the history lost events too: a sentence comes to who watches and to who asks, and no ended chain looks open."""
    stage.manager.queue_limit = 1 << 16
    stage.manager.fanout.make_room_locked = lambda chains: None
    await stage.serve()
    monkeypatch.setattr(LiveRows, "queue_limit_bytes", 0)
    told, missing = {}, []
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        answer = await stack.enter_async_context(
            contextlib.aclosing(stage.client().query("chains", watch=True))
        )
        run = None
        async for part in answer:
            told |= {row["chain_id"]: row for row in part.rows}
            missing += part.missing
            if run is None:
                run = await stack.enter_async_context(stage.manager.run(chains=CHAINS))
                early = stack.enter_context(run.chain([], chain_id="early"))
            elif "early" in told and early is not None:
                early.end("answered")
                early = None
                for number in range(CHAINS):
                    chain_of(stack, run, number)
                assert lost(stage)
            elif missing and told["early"]["state"] != "running":
                break
        assert f"run {run.run_id}" in missing[0]
        assert told["early"]["state"] == "lost"
        rows, lacks = await asked(stage)
        assert missing[0] in lacks
        open_now = {chain for chain, row in rows.items() if row["state"] == "running"}
        assert open_now == {f"chain_{n}" for n in range(0, CHAINS, 3)}


async def test_a_record_that_fell_behind_says_so(stage, tmp_path, monkeypatch):
    """What its queue dropped is missing from every answer, which says so."""
    monkeypatch.setattr(ArchiveObserver, "queue_limit_bytes", 0)
    stage.manager.queue_limit = 1 << 16
    stage.manager.fanout.make_room_locked = lambda chains: None
    record = ArchiveObserver(tmp_path / "r", masker=False)
    stage.manager.add_observer(record)
    await stage.serve()
    async with stage.manager.run(chains=CHAINS) as run, contextlib.AsyncExitStack() as stack:
        with stage.manager.lock:  # the record's thread gets nothing meanwhile
            for number in range(CHAINS):
                chain_of(stack, run, number)
        rows, missing = await asked(stage)
        assert len(rows) < CHAINS
        assert any(f"{record.path.name} fell behind its runs" in sentence for sentence in missing)


class Stepped:
    """Runs, a table whose queue is small, and one that loses nothing; each step is taken when a test says so."""

    def __init__(self, choose):
        self.choose = choose
        self.manager = StreamingManager(queue_limit=1 << 30)
        fanout = self.manager.fanout
        self.small, self.large = (fanout.delivery(name, LiveRows.filter) for name in ("small", "large"))
        fanout.add(self.small)
        fanout.add(self.large)
        self.small.limit = 6_000
        self.rows, self.whole = LiveRows(), LiveRows()
        self.runs, self.chains, self.held = [], {}, []
        self.ended = None  # chains that a mending found over in the manager
        self.seen, self.version = {}, 0

    async def take(self, delivery, table, most=None):
        """Give a table what waits, or a part of it: the rest is given before anything else."""
        held = self.held if table is self.rows else []
        if not held:
            with self.manager.lock:
                held += [item for item in delivery.take_locked() if isinstance(item, StreamEvent)]
        part, held[:] = held[:most], held[most:] if most else []
        await table.on_batch(part)

    def act(self):
        """Something happens in a run: a chain begins, does something or ends; a run begins or ends."""
        run = self.choose(self.runs) if self.runs else None
        if run is None or (len(self.runs) < 3 and self.choose(range(20)) == 0):
            self.runs.append(self.manager.run().__enter__())
            return
        place = self.choose(range(12))
        chain = self.chains.get((run, place))
        what = self.choose(["begin", "begin", "call", "call", "end", "end", "run end"])
        if chain is None and what == "begin":
            about = [{"role": "user", "content": "q" * self.choose([1, 2_000])}]
            self.chains[run, place] = run.chain(about, group_id=f"of {place}").__enter__()
        elif chain is not None and what == "call":
            with chain.generation() as generation:
                generation.chunk("look", [1], [-0.1])
            with chain.tool_call("look", {"at": 1}) as call:
                call.observation("seen" * self.choose([1, 500]))
        elif chain is not None and what == "end":
            if self.choose([True, False]):
                chain.reward(float(self.choose(range(5))))
            chain.end("answered")
            self.chains[run, place] = None
        elif what == "run end" and self.choose(range(6)) == 0:
            self.runs.remove(run)
            run.close()

    async def mend(self):
        """The first part of a mending, or its last one, as the server does them."""
        if self.ended is not None:
            await self.take(self.small, self.rows)
            while self.held:
                await self.take(self.small, self.rows)
            self.rows.lose_ends(self.ended)
            self.ended = None
            return
        lost = {lane.run_id for lane in self.rows.take_lost()}
        if lost:
            runs = self.manager.fanout.runs
            self.ended = [
                (run, chain)
                for run, chain in self.rows.open_chains()
                if run in lost and not (run in runs and runs[run].has_chain(chain))
            ]
            await self.take(self.large, self.whole)
            told = [*self.whole.ended_rows(), *self.whole.open_rows()]
            self.rows.mend(row for row in told if row["run_id"] in lost)

    def look(self):
        """A client that watches looks for what has changed."""
        for row in self.rows.changed_since(self.version):
            self.seen[row["run_id"], row["chain_id"]] = dict(row)
        self.version = self.rows.version


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_the_order_of_steps_no_row_is_lost(seed):
    """Events, losses, the table, mending and a client take turns at random: in the end each row is as if nothing had been lost."""
    stepped = Stepped(random.Random(seed).choice)
    for _ in range(400):
        step = stepped.choose(["act"] * 12 + ["take", "part", "mend", "look"])
        if step == "act":
            stepped.act()
        elif step == "take":
            await stepped.take(stepped.small, stepped.rows)
        elif step == "part":
            await stepped.take(stepped.small, stepped.rows, 3)
        elif step == "mend":
            await stepped.mend()
        else:
            stepped.look()
    for _ in range(6):
        await stepped.take(stepped.small, stepped.rows)
        await stepped.mend()
    await stepped.take(stepped.large, stepped.whole)
    stepped.look()

    def told(rows):
        names = ("state", "group_id", "reward", "calls", "steps", "finish_reason", "ended_at", "index")
        return {(row["run_id"], row["chain_id"]): [row.get(name) for name in names] for row in rows}

    expected = told([*stepped.whole.ended_rows(), *stepped.whole.open_rows()])
    assert told([*stepped.rows.ended_rows(), *stepped.rows.open_rows()]) == expected
    assert told(stepped.seen.values()) == expected
    await stepped.manager.aclose()
