"""Queries over a connection: what is open, what is over, and both, with a record and without, while a run goes on."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time

import pytest
from websockets.asyncio.client import connect
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.uri import parse_uri

from growing_records import delete_while_written
from rollcast import BaseAgent
from rollcast.archive import ArchiveObserver
from rollcast.archive.reader import Archive
from rollcast.errors import RefusedError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.codec import decode
from rollcast.records.view import ChainView
from rollcast.serve import Limits, Token
from rollcast.serve import queries as module
from rollcast.serve.protocol import Hello, Query, Stop, encode_frame
from rollcast.testing import ScriptedBackend

T = StreamEventType
pytestmark = pytest.mark.usefixtures("patience")


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


async def ask(stage, what, token=None, **about):
    """The whole answer: its rows, and its last part."""
    rows = []
    client = stage.client(token=token)
    async with asyncio.timeout(60), contextlib.aclosing(client.query(what, **about)) as answer:
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
        assert last.missing == []
        for what in ("runs", "chains", "steps"):
            assert (await ask(kept, what))[2].missing == []  # no record, and nothing was let go


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


async def test_the_rollout_of_a_training_step_is_summarized_when_it_is_over(kept):
    """What trends need of it; evaluations, and runs that are no rollouts, have none."""
    async with kept.manager.run(chains=0, agent="training") as training:
        for step, split in ((1, "train"), (1, "eval")):
            async with kept.manager.run(
                chains=3, parent_run_id=training.run_id, train_step=step, split=split
            ) as run:
                for number in range(3):
                    finish(run, number, group=f"group_{number // 2}", words=["w"] * (number + 1))
                if split == "train":
                    rows, _, _ = await ask(kept, "runs")
                    assert "summary" not in next(row for row in rows if row["run_id"] == run.run_id)
        rows, _, _ = await ask(kept, "runs")
    (summary,) = [row["summary"] for row in rows if "summary" in row]
    assert next(row for row in rows if "summary" in row)["split"] == "train"
    assert summary["ids"] == ["chain_0", "chain_1", "chain_2"]
    told = (
        summary["chains"],
        summary["mean_reward"],
        summary["lowest"],
        summary["highest"],
        summary["questions"],
    )
    assert told == (3, 1.0, 0.0, 2.0, 2)
    assert summary["variance"] == pytest.approx(2 / 3)
    assert summary["mean_tokens"] == 2.0
    assert (summary["same_answer"], summary["answer"]) == (0.5, "ww")


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
        async with asyncio.timeout(60), contextlib.aclosing(answer):
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
    async with asyncio.timeout(60):
        while stage.server._queries.running:
            await asyncio.sleep(0.01)
    return True


async def test_who_watches_rows_is_told_how_the_last_chains_ended_when_the_manager_closes_with_the_run(kept):
    """What the table had taken before its manager closed still reaches the client."""
    async with asyncio.timeout(60):
        async with contextlib.AsyncExitStack() as stack, kept.manager.run(chains=2) as run:
            answer = await stack.enter_async_context(
                contextlib.aclosing(kept.client().query("chains", watch=True, filter={"run_id": run.run_id}))
            )
            with contextlib.ExitStack() as chains:
                for number in range(2):
                    begin(chains, run, number)
                rows = {row["chain_id"]: row for row in (await anext(answer)).rows}
                assert [row["state"] for row in rows.values()] == ["running"] * 2
            stack.pop_all()
        await kept.manager.aclose()
        async with contextlib.aclosing(answer):
            while {row["state"] for row in rows.values()} != {"ended"}:
                rows |= {row["chain_id"]: row for row in (await anext(answer)).rows}


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
    async with asyncio.timeout(60), contextlib.aclosing(answer):
        playing = None
        async for part in answer:
            told |= {(row["run_id"], row["chain_id"]): row for row in part.rows}
            playing = playing or asyncio.create_task(play())
            if len(told) == 48 and all(row["state"] == "ended" for row in told.values()):
                break
        assert await playing
    rows, total, _ = await ask(kept, "chains", limit=100)
    assert total == 48
    unlike = (
        "first",
        "last",
        "trajectory",
        "times",
        "stays",
    )  # a record sees tokens, and so times to the microsecond
    for row in rows:
        seen = told[row["run_id"], row["chain_id"]]
        assert {k: v["count"] for k, v in seen["stays"].items()} == {
            k: v["count"] for k, v in row["stays"].items()
        }
        assert {k: v for k, v in seen.items() if k not in unlike} == {
            k: v for k, v in row.items() if k not in unlike
        }


async def test_agents_that_run_meanwhile_change_no_answer_in_itself(kept):
    """While 40 chains of an agent run, each answer has each chain once; afterwards all of them, with their rewards."""
    agent = BaseAgent(
        backend=ScriptedBackend("The answer is 4."),
        reward=lambda final_response: float("4" in final_response),
        streaming_manager=kept.manager,
    )
    rows = [{"messages": [{"role": "user", "content": f"What is 2 + 2? {n}"}]} for n in range(10)]
    running = asyncio.create_task(agent.run_async(1, rows, num_chains=4, enable_streaming=True))
    asked = 0
    while not running.done() or not asked:
        asked += 1
        for what in ("chains", "runs", "steps"):
            found, total, _ = await ask(kept, what)
            assert total == len(found)
            if what == "chains":
                assert len(set(ids(found))) == total <= 40
    await running
    found, total, _ = await ask(kept, "chains", filter={"reward": 1})
    assert len(set(ids(found))) == total == 40
    (run,), _, _ = await ask(kept, "runs")
    assert (run["chains"], run["mean_reward"], run["status"]) == (40, 1.0, "completed")


async def test_what_a_trainer_learned_reaches_those_who_watch(kept):
    """The advantage comes with the row of a chain that has ended."""
    answer = kept.client().query("chains", watch=True)
    async with asyncio.timeout(60), contextlib.aclosing(answer):
        begun = learned = False
        async for part in answer:
            if not begun:
                begun = True
                async with kept.manager.run(chains=1) as run:
                    finish(run, 1)
                learn(kept, run, 5, chain_0={"advantage": 0.25, "staleness": 0})
            learned = any(row.get("advantage") == 0.25 for row in part.rows)
            if learned:
                break
    assert learned, "the answer ended before"


async def test_the_table_ends_a_while_after_the_last_query(kept, monkeypatch, until):
    """Nobody asks: no rows are kept, and the manager has one observer fewer."""
    observer = kept.server.get_observer()
    async with kept.manager.run(chains=1) as run:
        finish(run, 0)
        await ask(kept, "chains")
        assert observer.companions
        names = [s.name for s in kept.manager.statistics()]
        assert "WebSocketStreamingServer (rows)" in names
        monkeypatch.setattr(module, "KEEP_S", 0.01)
        await ask(kept, "chains")
        await until(lambda: not observer.companions)
        await until(lambda: len(kept.manager.statistics()) == len(names) - 1)
        rows, _, _ = await ask(kept, "chains")
        assert len(rows) == 1


async def test_the_table_ends_although_who_asked_for_it_left_before_it_was_there(kept, monkeypatch, until):
    """A query that is stopped at once leaves no observer behind."""
    observer, queries = kept.server.get_observer(), kept.server._queries
    monkeypatch.setattr(module, "KEEP_S", 0.01)
    async with kept.manager.run(chains=1) as run:
        finish(run, 0)
        for turns in range(6):
            asking = asyncio.create_task(queries.table())
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            await until(lambda: not observer.companions)
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


async def test_a_record_that_begins_late_says_so(stage, tmp_path, monkeypatch):
    """What was over before it began is not in it."""
    monkeypatch.setattr(module, "LATE_RECORD_S", 0.0)
    await stage.serve()
    async with stage.manager.run(chains=2) as run:
        finish(run, 0)
        await asyncio.sleep(0.01)
        stage.manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
        finish(run, 1)
        rows, _, last = await ask(stage, "chains")
        assert [row["chain_id"] for row in rows] == ["chain_1"]
        assert any("begins after some of the runs did" in sentence for sentence in last.missing)


async def test_secrets_are_masked_in_every_answer(kept):
    """As in batches: in rows and stories, of chains that are open and chains that are over."""
    secret = "sk-ant-" + "a1b2c3d4" * 4
    async with kept.manager.run(chains=2) as run, contextlib.AsyncExitStack() as stack:
        for number in range(2):
            chain = stack.enter_context(
                run.chain([{"role": "user", "content": f"use {secret}"}], reference=f"key {secret}")
            )
            with chain.generation() as generation:
                generation.chunk("I look.", [1], [-0.1])
            with chain.tool_call("look", {"at": secret}) as call:
                call.observation(f"saw {secret}")
            if number == 0:
                chain.reward(1.0)
                chain.end("answered")
        for what in ("chains", "runs", "steps"):
            rows, _, _ = await ask(kept, what)
            if what != "chains":
                assert secret not in json.dumps(rows)
        mine, _, _ = await ask(kept, "chains", filter={"state": "running"})
        assert len(mine) == 1
        assert secret not in json.dumps(mine)
        assert "key" in mine[0]["reference"]
        over, _, _ = await ask(kept, "chains", filter={"state": "ended"})
        if kept.record is None:  # the record of these tests masks nothing
            assert secret not in json.dumps(over)
        rows, _, _ = await ask(kept, "chain", chain="chain_1")
        assert secret not in json.dumps(rows)
        if kept.record is None:
            rows, _, _ = await ask(kept, "chain", chain="chain_0")
            assert secret not in json.dumps(rows)


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
    async with asyncio.timeout(60):
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
        await stage.manager.drain()
        await record.recorded()  # it has begun, so that it is followed from the first question on
        await ask(stage, "chains")
        finish(run, 0)
        begin(stack, run, 1)
        assert len((await ask(stage, "chains"))[0]) == 2
        delete_while_written(tmp_path / "r")
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


# -- clients that do not read, and limits ------------------------------------------------------------------------------


class Deaf:
    """A raw client that asks and does not read, with a small window."""

    def __init__(self, server):
        self.server = server
        self.socket = socket.socket()
        self.protocol = ClientProtocol(parse_uri(server.url), subprotocols=["rollcast.v1"], max_size=None)
        self.rows, self.done = 0, set()

    async def ask(self, *frames):
        loop = asyncio.get_running_loop()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        await loop.sock_connect(self.socket, ("127.0.0.1", self.server.port))
        self.protocol.send_request(self.protocol.connect())
        await self._flush()
        while self.protocol.state.name == "CONNECTING":
            await self.read()
        for frame in (Hello(features=["queries"], max_message=1 << 20), *frames):
            self.protocol.send_text(encode_frame(frame))
        await self._flush()
        return self

    async def _flush(self):
        for data in self.protocol.data_to_send():
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read(self):
        self.protocol.receive_data(await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16))
        for event in self.protocol.events_received():
            if getattr(event, "opcode", None) is Opcode.TEXT:
                frame = json.loads(event.data)
                self.rows += len(frame.get("rows", ()))
                if frame["type"] in ("done", "error"):
                    self.done.add(frame["id"])

    def close(self):
        self.socket.close()


async def test_a_client_that_does_not_read_holds_nobody_up(stage, tmp_path, until):
    """Its answers wait in the record, not in memory; the record is let go of; when it reads, it gets all."""
    server = await stage.serve(client_buffer=64 << 10, limits=Limits(rows=100_000), heartbeat_s=60)
    stage.manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
    async with stage.manager.run(chains=1) as run:
        with run.chain([{"role": "user", "content": "q"}]) as chain:
            with chain.generation() as generation:
                generation.chunk("I look.", [1], [-0.1])
            for number in range(1500):
                with chain.tool_call("look", {"at": number}) as call:
                    call.observation("x" * 4000)
                if number % 100 == 0:
                    await stage.manager.drain()
    questions = [Query(id=str(n), what="chain", chain="chain_0", run=run.run_id) for n in range(8)]
    deaf = [await Deaf(server).ask(*questions) for _ in range(5)]
    records = server._queries.records
    await until(lambda: server._queries.running == 40 and records._holder.child is not None)
    await until(lambda: all(not client.keeps_up() for client in server._clients))
    await until(lambda: not records._holder.child._readings)
    assert sum(client.unsent() for client in server._clients) < 5 * (8 * (256 << 10) + (64 << 10))
    events, _ = await story(stage, "chain_0", limit=10)
    assert len(events) == 10
    one = deaf.pop()
    for each in deaf:
        each.close()
    await until(lambda: server._queries.running == 8)
    async with asyncio.timeout(60):
        while len(one.done) < 8:
            await one.read()
    one.close()
    events, _ = await story(stage, "chain_0")
    assert one.rows == 8 * len(events)
    assert len(events) > 4500


async def test_a_query_that_is_stopped_in_the_middle(stage, tmp_path):
    """Nothing of it comes after `done`; the connection goes on."""
    server = await stage.serve(limits=Limits(rows=100_000))
    stage.manager.add_observer(ArchiveObserver(tmp_path / "r", masker=False))
    async with stage.manager.run(chains=1) as run:
        with run.chain([{"role": "user", "content": "q"}]) as chain:
            with chain.generation() as generation:
                generation.chunk("I look.", [1], [-0.1])
            for number in range(500):
                with chain.tool_call("look", {"at": number}) as call:
                    call.observation("x" * 4000)
    async with asyncio.timeout(60), connect(server.url, subprotocols=["rollcast.v1"], proxy=None) as socket_:
        await socket_.send(encode_frame(Hello()), text=True)
        assert json.loads(await socket_.recv())["type"] == "welcome"
        await socket_.send(
            encode_frame(Query(id="a", what="chain", chain="chain_0", run=run.run_id)), text=True
        )
        assert json.loads(await socket_.recv())["type"] == "rows"
        await socket_.send(encode_frame(Stop("a")), text=True)
        while (frame := json.loads(await socket_.recv()))["type"] == "rows":
            pass
        assert frame == {"type": "done", "id": "a"}
        await socket_.send(encode_frame(Query(id="a", what="runs")), text=True)
        answers = [json.loads(await socket_.recv()) for _ in range(2)]
        assert [(frame["type"], frame["id"]) for frame in answers] == [("rows", "a"), ("done", "a")]
        assert [row["run_id"] for row in answers[0]["rows"]] == [run.run_id]
    assert not server._queries.running


async def test_large_rows_and_events_fit_into_a_message(kept):
    """A client that takes 16 KiB gets frames of that size; an event is shortened as in a batch."""
    async with kept.manager.run(chains=2) as run:
        for _ in range(2):
            with run.chain([{"role": "user", "content": "q"}]) as chain:
                with chain.generation() as generation:
                    generation.chunk("y" * 100_000, [1], [-0.1])
                chain.reward(1.0, {f"metric_{i}": 0.123 for i in range(1000)})
        async with (
            asyncio.timeout(60),
            connect(kept.server.url, subprotocols=["rollcast.v1"], proxy=None, max_size=16 << 10) as socket_,
        ):
            await socket_.send(encode_frame(Hello(max_message=16 << 10)), text=True)
            await socket_.recv()
            for what in (
                Query(id="a", what="chains"),
                Query(id="b", what="chain", chain="chain_1"),
                Query(id="c", what="runs"),
            ):
                await socket_.send(encode_frame(what), text=True)
                rows = []
                while (frame := json.loads(await socket_.recv()))["type"] == "rows":
                    rows += frame["rows"]
                assert frame["type"] == "done", frame
                assert rows
                if what.id == "b":
                    assert any("truncated" in row["data"] for row in rows)


async def test_wrong_queries_are_answered_in_a_sentence(kept):
    """What was found, and what was expected."""
    for about, says in (
        ({"what": "chains", "sort": "beauty"}, "'beauty'; the fields are activity, advantage"),
        ({"what": "chains", "filter": {"beauty": 1}}, "'beauty'; the fields are"),
        ({"what": "chains", "filter": {"index": 2**70}}, "index cannot be chosen by a number of 71 bits"),
        ({"what": "chains", "after": "x"}, "'x' is not the `next` of a page"),
        ({"what": "runs", "after": "x"}, "'x' is not the `next` of a page"),
        ({"what": "steps", "after": "x"}, "'x' is not the `next` of a page"),
        ({"what": "everything"}, "this server answers"),
        ({"what": "chain"}, "give chain"),
        ({"what": "runs", "limit": 0}, "expected a JSON object"),
    ):
        with pytest.raises(RefusedError, match=says.replace("(", ".")):
            await ask(kept, about.pop("what"), **about)


async def test_a_client_may_not_ask_without_the_scope(stage):
    """As for everything that reads."""
    await stage.serve(tokens=(Token("rule", ("control",)),))
    with pytest.raises(RefusedError, match="query needs a token with the read scope"):
        await ask(stage, "runs", token="rule")


async def test_a_server_of_before_answers_no_queries(stage, monkeypatch):
    """The client says so, and does not wait."""
    await stage.serve()
    monkeypatch.setattr("rollcast.serve.conversation.FEATURES", ("parts",))
    with pytest.raises(RefusedError, match="earlier version"):
        await ask(stage, "runs")
