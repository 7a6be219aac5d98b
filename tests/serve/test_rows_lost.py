"""Rows of chains whose events the table of rows lost: they come all the same, or a sentence says that they are missing."""

import asyncio
import contextlib

import pytest

from rollcast.archive import ArchiveObserver
from rollcast.serve.live_rows import LiveRows

CHAINS = 600


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
