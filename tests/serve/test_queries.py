"""Queries over a connection: what is open, what is over, and both, with a record and without, while a run goes on."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time

import pytest

from rollcast.archive import ArchiveObserver
from rollcast.archive.reader import Archive
from rollcast.errors import RefusedError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.codec import decode
from rollcast.records.view import ChainView
from rollcast.serve import queries as module

T = StreamEventType


def finish(run, number, *, group="group_0", reward=None, words=("let ", "me ")):
    """One chain with a generation, a call and a reward."""
    with run.chain(
        [{"role": "user", "content": f"question {number}"}], group_id=group, tools=["look"]
    ) as chain:
        with chain.generation(prompt_ids=[1, 2]) as generation:
            for i, word in enumerate(words):
                generation.chunk(word, [i], [-0.5])
        with chain.tool_call("look", {"at": number}) as call:
            call.observation("seen")
        chain.reward(float(number) if reward is None else reward)
    return chain


def begin(stack, run, number):
    """A chain that stays open in the middle of a generation."""
    chain = stack.enter_context(run.chain([{"role": "user", "content": f"question {number}"}]))
    generation = stack.enter_context(chain.generation(prompt_ids=[1, 2]))
    generation.chunk("thinking ", [7], [-0.1])
    return chain, generation


def learn(stage, run, step, **chains):
    """A trainer learned from chains of the run."""
    data = {
        "train_step": step,
        "policy_version": step,
        "metrics": {"loss": 0.5},
        "chains": {run.run_id: chains},
    }
    stage.manager.emit(StreamEvent(T.TRAIN_STEP, "", time.time(), data, run_id=run.run_id))


@pytest.fixture(params=["record", "memory"])
async def kept(request, stage, tmp_path):
    """A stage whose server is asked, with a record and without."""
    server = await stage.serve()
    stage.record = None
    if request.param == "record":
        stage.record = ArchiveObserver(tmp_path / "runs" / "r", masker=False)
        stage.manager.add_observer(stage.record)
    stage.pid = lambda: server._queries.records.pid
    return stage


async def ask(stage, what, **about):
    """The whole answer: its rows, and its last part."""
    rows = []
    async with asyncio.timeout(20), contextlib.aclosing(stage.client().query(what, **about)) as answer:
        async for part in answer:
            rows += part.rows
            if part.total is not None:
                rows_in_all = part.total
            if part.last:
                return rows, locals().get("rows_in_all"), part
            following = part.next
            if following is not None:
                stage.next = following
    raise AssertionError("the answer was not complete")


async def story(stage, chain, **about):
    """The whole story of a chain as events, and the last part."""
    rows, _, last = await ask(stage, "chain", chain=chain, **about)
    return [decode(json.dumps(row)) for row in rows], last


def ids(rows):
    return [(row["run_id"], row["chain_id"]) for row in rows]


async def test_chains_that_are_open_and_chains_that_are_over(kept):
    """Each once, with what it does now or how it ended; chosen, sorted and paged."""
    async with contextlib.AsyncExitStack() as stack:
        async with kept.manager.run(chains=3) as before:
            for number in range(3):
                finish(before, number)
        run = await stack.enter_async_context(kept.manager.run(chains=4))
        finish(run, 7, group="group_1")
        begin(stack, run, 8)
        begin(stack, run, 9)
        rows, total, _ = await ask(kept, "chains")
        assert total == 6
        assert len(set(ids(rows))) == 6
        assert [row["state"] for row in rows] == ["ended"] * 4 + ["running"] * 2
        assert [row.get("activity") for row in rows[-2:]] == ["generating"] * 2
        assert [row["started_at"] for row in rows] == sorted(row["started_at"] for row in rows)
        rows, total, _ = await ask(kept, "chains", run=run.run_id, sort="-reward", limit=2)
        assert total == 3
        assert [row.get("reward") for row in rows] == [7.0, None]
        rest, total, last = await ask(
            kept, "chains", run=run.run_id, sort="-reward", limit=2, after=kept.next
        )
        assert (len(rest), total) == (1, 3)
        assert len(set(ids(rows + rest))) == 3
        rows, total, _ = await ask(kept, "chains", filter={"state": "running"})
        assert total == 2
        rows, total, _ = await ask(kept, "chains", filter={"group_id": ["group_1", "x"], "reward": 7})
        assert [row["reward"] for row in rows] == [7.0]
        begin(stack, run, 10)
        rows, total, last = await ask(kept, "chains", filter={"state": "running"})
        assert total == 3
        assert bool(last.missing) == (kept.record is None)


async def test_the_rows_are_those_of_the_record(stage, tmp_path):
    """A live server tells of a chain what a reader of its record tells; what only a record can tell apart."""
    await stage.serve()
    record = ArchiveObserver(tmp_path / "r", masker=False)
    async with contextlib.AsyncExitStack() as stack:
        run = await stack.enter_async_context(stage.manager.run(chains=4, split="eval"))
        begin(stack, run, 0)
        stage.manager.add_observer(record)
        await ask(stage, "chains")
        begin(stack, run, 1)
        finish(run, 2)
        rows, _, _ = await ask(stage, "chains")
    without, _, _ = await ask(stage, "chains")
    await stage.manager.aclose()
    rows_of_record = await asyncio.to_thread(lambda: Archive.open(tmp_path / "r").chains().rows)
    recorded = {row["chain_id"]: row for row in rows_of_record}
    assert {row["chain_id"]: row for row in without} == recorded
    for row in rows:
        known = {
            k: v for k, v in recorded[row["chain_id"]].items() if k not in ("first", "last", "trajectory")
        }
        same = {"run_id", "chain_id", "started_at", "split", "prompt_hash", "source"} & known.keys()
        assert {k: row.get(k) for k in same} == {k: known[k] for k in same}


async def test_runs_and_steps(kept):
    """The newest run first; what a trainer said of its steps."""
    for number in range(3):
        async with kept.manager.run(chains=1, agent=f"run {number}") as run:
            finish(run, number)
            learn(kept, run, number)
    async with kept.manager.run(chains=2, agent="now") as run, contextlib.AsyncExitStack() as stack:
        begin(stack, run, 0)
        rows, total, _ = await ask(kept, "runs")
        assert total == 4
        assert [row["agent"] for row in rows] == ["now", "run 2", "run 1", "run 0"]
        assert [row["status"] for row in rows] == ["running"] + ["completed"] * 3
        assert [row["chains"] for row in rows] == [1, 1, 1, 1]
        assert [row["mean_reward"] for row in rows] == [None, 2.0, 1.0, 0.0]
        rows, total, _ = await ask(kept, "runs", limit=3)
        assert (len(rows), total) == (3, 4)
        rows, _, _ = await ask(kept, "runs", limit=3, after=kept.next)
        assert [row["agent"] for row in rows] == ["run 0"]
        rows, total, _ = await ask(kept, "steps")
        assert [(row["train_step"], row["metrics"]["loss"]) for row in rows] == [(0, 0.5), (1, 0.5), (2, 0.5)]
        assert total == 3


async def test_the_story_of_a_chain_that_is_over(kept):
    """All its events in order, page by page too; the place behind them."""
    async with kept.manager.run(chains=2) as run:
        for number in range(2):
            finish(run, number, words=[f"word{i} " for i in range(20)])
        events, last = await story(kept, "chain_1", run=run.run_id)
        assert (events[0].event_type, events[-1].event_type) == (T.CHAIN_START, T.CHAIN_END)
        assert {event.chain_id for event in events} == {"chain_1"}
        assert [event.seq for event in events] == sorted(event.seq for event in events)
        view = ChainView()
        for event in events:
            view.apply(event)
        assert (view.reward, view.steps) == (1.0, 1)
        assert last.cursor
        assert await story(kept, "chain_1") == (events, last)
        paged, after = [], None
        while True:
            kept.next = None
            some, _ = await story(kept, "chain_1", run=run.run_id, limit=3, after=after)
            assert len(some) <= 3
            paged += some
            if kept.next is None:
                break
            after = kept.next
        assert paged == events
        for about in ({"chain": "chain_9"}, {"chain": "chain_1", "run": "other"}):
            with pytest.raises(RefusedError, match="chain"):
                await ask(kept, "chain", **about)


async def test_the_story_of_an_open_chain_goes_on_at_its_cursor(kept, read):
    """A snapshot, and a subscription from its cursor has every later event once."""
    async with kept.manager.run(chains=2) as run, contextlib.AsyncExitStack() as stack:
        _, generation = begin(stack, run, 0)
        events, last = await story(kept, "chain_0")
        view = ChainView()
        for event in events:
            view.apply(event)
        assert (view.state, view.content) == ("generating", "thinking ")
        generation.chunk("more", [8], [-0.1])
        client = kept.client(since=last.cursor, filter=EventFilter(chains="chain_0"))
        async with client:
            later = []
            async for event in client:
                later.append(event)
                view.apply(event)
                if view.content.endswith("more"):
                    break
        assert (view.content, len(later)) == ("thinking more", 1)
        assert client.recovered


async def test_watched_rows_follow(kept):
    """Rows that come, change and end; not those that the filter leaves out; a row that no longer fits comes once more."""
    async with kept.manager.run(chains=4) as run, contextlib.AsyncExitStack() as stack:
        begin(stack, run, 0)
        told = {}
        answer = kept.client().query("chains", watch=True, filter={"state": "running", "run_id": run.run_id})
        async with asyncio.timeout(20), contextlib.aclosing(answer):
            changes = 0
            async for part in answer:
                changes += part.changed
                for row in part.rows:
                    told[row["chain_id"]] = row
                if changes == 0 and not part.changed:
                    chain = stack.enter_context(run.chain([{"role": "user", "content": "x"}]))
                elif told.get("chain_1", {}).get("state") == "running":
                    chain.end("answered")
                elif told.get("chain_1", {}).get("state") == "ended":
                    break
        assert set(told) == {"chain_0", "chain_1"}
        assert kept.server._queries.running == 0 or await gone(kept)


async def gone(stage):
    async with asyncio.timeout(10):
        while stage.server._queries.running:
            await asyncio.sleep(0.01)
    return True


async def test_watched_rows_while_a_real_run_goes_on(kept):
    """Fifty chains in four runs: in the end every row is as the answer to a query is."""

    async def play():
        for _ in range(4):
            async with kept.manager.run(chains=12) as run:
                for number in range(12):
                    with run.chain([{"role": "user", "content": "q"}]) as chain:
                        with chain.generation() as generation:
                            generation.chunk("word", [1], [-0.1])
                        await asyncio.sleep(0.005)
                        chain.reward(float(number))
        return True

    told = {}
    answer = kept.client().query("chains", watch=True)
    async with asyncio.timeout(30), contextlib.aclosing(answer):
        playing = None
        async for part in answer:
            told |= {(row["run_id"], row["chain_id"]): row for row in part.rows}
            playing = playing or asyncio.create_task(play())
            if playing.done() and len(told) == 48 and all(row["state"] == "ended" for row in told.values()):
                break
        assert await playing
    rows, total, _ = await ask(kept, "chains", limit=100)
    assert total == 48
    unlike = ("first", "last", "trajectory", "times")  # a record sees tokens, and so times to the microsecond
    for row in rows:
        seen = told[row["run_id"], row["chain_id"]]
        assert {k: v for k, v in seen.items() if k not in unlike} == {
            k: v for k, v in row.items() if k not in unlike
        }


async def test_what_a_trainer_learned_reaches_those_who_watch(kept):
    """The advantage comes with the row of a chain that has ended."""
    answer = kept.client().query("chains", watch=True)
    async with asyncio.timeout(20), contextlib.aclosing(answer):
        begun = False
        async for part in answer:
            if not begun:
                begun = True
                async with kept.manager.run(chains=1) as run:
                    finish(run, 1)
                learn(kept, run, 5, chain_0={"advantage": 0.25, "staleness": 0})
            if any(row.get("advantage") == 0.25 for row in part.rows):
                break


async def test_the_table_ends_a_while_after_the_last_query(kept, monkeypatch, until):
    """Nobody asks: no rows are kept, and the manager has one observer fewer."""
    monkeypatch.setattr(module, "KEEP_S", 0.05)
    observer = kept.server.get_observer()
    async with kept.manager.run(chains=1) as run:
        finish(run, 0)
        await ask(kept, "chains")
        assert observer.companions
        names = [s.name for s in kept.manager.statistics()]
        assert "WebSocketStreamingServer (rows)" in names
        await until(lambda: not observer.companions)
        await until(lambda: len(kept.manager.statistics()) == len(names) - 1)
        rows, _, _ = await ask(kept, "chains")
        assert len(rows) == 1


async def test_an_observer_that_is_taken_off_and_added_again(kept):
    """Its rows begin anew."""
    async with kept.manager.run(chains=2) as run, contextlib.AsyncExitStack() as stack:
        begin(stack, run, 0)
        assert len((await ask(kept, "chains"))[0]) == 1
        kept.manager.remove_observer(kept.server.get_observer())
        await ask(kept, "chains")
        kept.manager.add_observer(kept.server.get_observer())
        begin(stack, run, 1)
        assert len((await ask(kept, "chains"))[0]) == 2


# -- faults ------------------------------------------------------------------------------------------------------------


async def test_a_child_that_is_killed_fails_the_query_and_no_other(stage, tmp_path):
    """One sentence; the next query is answered."""
    server = await stage.serve()
    stage.manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
    async with stage.manager.run(chains=1) as run:
        finish(run, 0)
    await ask(stage, "chains")
    child = server._queries.records._holder.child
    os.kill(child.pid, signal.SIGSTOP)  # it will be in the middle of it
    asking = asyncio.create_task(ask(stage, "chains"))
    async with asyncio.timeout(10):
        while not child._readings:
            await asyncio.sleep(0.001)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(RefusedError, match=r"died \(signal 9\); ask again"):
        await asking
    rows, _, _ = await ask(stage, "chains")
    assert len(rows) == 1


async def test_a_record_that_is_deleted_meanwhile(stage, tmp_path):
    """What is open is told, what the memory has too, and that the record cannot be read."""
    await stage.serve()
    record = ArchiveObserver(tmp_path / "r", masker=False)
    stage.manager.add_observer(record)
    async with stage.manager.run(chains=3) as run, contextlib.AsyncExitStack() as stack:
        await ask(stage, "chains")
        finish(run, 0)
        begin(stack, run, 1)
        assert len((await ask(stage, "chains"))[0]) == 2
        shutil.rmtree(tmp_path / "r")
        rows, total, last = await ask(stage, "chains")
        assert (len(rows), total) == (2, 2)
        assert any("cannot be read" in sentence for sentence in last.missing)
        events, last = await story(stage, "chain_0")
        assert events[-1].event_type == T.CHAIN_END
        assert any("does not tell of it" in sentence for sentence in last.missing)
        for what in ("runs", "steps"):
            _, _, last = await ask(stage, what)
            assert any("cannot be read" in sentence for sentence in last.missing)


async def test_a_history_that_has_let_go_says_so(stage):
    """Without a record, the beginning of a chain may be gone."""
    await stage.serve(history_bytes=20_000, behind_bytes=20_000)
    async with stage.manager.run(chains=2) as run:
        with run.chain([{"role": "user", "content": "q"}]) as chain:
            for _ in range(10):
                with chain.generation() as generation:
                    generation.chunk("x" * 4000, [1], [-0.1])
        events, last = await story(stage, "chain_0")
        assert events[0].event_type != T.CHAIN_START
        assert any("beginning" in sentence for sentence in last.missing)
        _, _, last = await ask(stage, "chains")
        assert any("no record" in sentence for sentence in last.missing)


async def test_a_server_without_a_history(stage):
    """What is open is told; of what is over it has what came while somebody asked."""
    await stage.serve(history_bytes=0)
    async with stage.manager.run(chains=3) as run, contextlib.AsyncExitStack() as stack:
        begin(stack, run, 0)
        rows, _, last = await ask(stage, "chains")
        assert [row["state"] for row in rows] == ["running"]
        assert last.missing
        finish(run, 1)
        rows, _, _ = await ask(stage, "chains")
        assert sorted(row["state"] for row in rows) == ["ended", "running"]
        events, last = await story(stage, "chain_0")
        assert [event.event_type for event in events] == [T.CHAIN_SNAPSHOT]
        assert last.cursor is None


async def test_without_a_manager_there_are_no_rows(stage):
    """The observer was added to none yet."""
    await stage.serve()
    stage.manager.remove_observer(stage.server.get_observer())
    for what in ("runs", "chains", "steps"):
        assert (await ask(stage, what))[0] == []
    with pytest.raises(RefusedError, match="no chain 'c'"):
        await ask(stage, "chain", chain="c")


async def test_a_server_that_stops_ends_its_queries_and_its_child(kept):
    """No task and no process is left; after another start it answers again."""
    async with kept.manager.run(chains=1) as run:
        finish(run, 0)
        answer = kept.client().query("chains", watch=True)
        assert (await anext(answer)).rows
        pid = kept.pid()
        await kept.server.stop()
        with pytest.raises(RefusedError):
            async for _ in answer:
                pass
        assert kept.pid() is None
        if pid is not None:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        await kept.server.start()
        assert len((await ask(kept, "chains"))[0]) == 1
