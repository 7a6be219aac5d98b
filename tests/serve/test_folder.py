"""A server of a folder of records: which there are, and each of them by a run of it."""

import asyncio
import contextlib
import shutil

import pytest
from websockets.asyncio.client import connect

from rollcast.archive import ArchiveObserver
from rollcast.errors import ArchiveError
from rollcast.serve import ServerSettings, Token, WebSocketStreamingServer
from rollcast.serve.protocol import SUBPROTOCOL
from rollcast.stream import StreamingManager
from serve.talk import Talk

TOKEN = "t"


async def write(path, *run_ids, chains=2, failing=False, open_chain=False):
    """A record of runs, one after the other; with `open_chain` it is left as it is in the middle of the last one."""
    manager = StreamingManager()
    record = ArchiveObserver(path, name=path.name, level="tokens", masker=False)
    manager.add_observer(record)
    for run_id in run_ids:
        async with manager.run(chains=chains, run_id=run_id) as run:
            for number in range(chains):
                with run.chain(chain_id=f"chain_{number}", group_id="g") as chain:
                    with chain.generation() as generation:
                        generation.chunk(f"{path.name} {run_id}\n", token_ids=[number], logprobs=[-0.5])
                    chain.reward(float(number))
            if failing:
                with run.chain(chain_id="failed") as chain:
                    chain.end("error")
    if open_chain:
        opened = contextlib.AsyncExitStack()
        run = await opened.enter_async_context(manager.run(chains=1, run_id="open"))
        chain = opened.enter_context(run.chain(chain_id="chain_0"))
        with chain.generation() as generation:
            generation.chunk("so far\n", token_ids=[7], logprobs=[-0.5])
        opened.enter_context(chain.generation()).chunk("goes on", token_ids=[8], logprobs=[-0.5])
        await manager.drain()
        await record.recorded()
        return manager, opened
    await manager.aclose()
    return None


@pytest.fixture
async def folder(tmp_path):
    """A folder with three records; the last of them has three runs."""
    records = tmp_path / "records"
    await write(records / "one", "r1")
    await write(records / "two", "r2", failing=True)
    await write(records / "three", "r3", "r4", "r5", chains=3)
    (records / "no-record").mkdir()
    return records


@pytest.fixture
async def talk_to():
    servers, sockets = [], []

    async def talk(path, **settings):
        settings = ServerSettings(tokens=(Token(TOKEN),), close_s=0.5, hello_s=60.0, **settings)
        server = await asyncio.to_thread(
            WebSocketStreamingServer, "127.0.0.1", 0, settings=settings, record=path
        )
        servers.append(await server.start())
        sockets.append(await connect(server.url, subprotocols=[SUBPROTOCOL], proxy=None))
        talk = Talk(sockets[-1])
        await talk.say("hello", token=TOKEN, features=["parts"])
        talk.welcome = await talk.hear("welcome")
        return talk

    yield talk
    for socket in sockets:
        await socket.close()
    for server in servers:
        await server.stop()


async def test_the_runs_of_a_folder_are_its_records(folder, talk_to):
    """The newest first, a row for each: its first run, name, state, counts and reward; a damaged one says so."""
    (folder / "damaged").mkdir()
    (folder / "damaged" / "run.json").write_text("{")
    talk = await talk_to(folder)
    assert {"record", "records"} <= set(talk.welcome["features"])
    rows, done = await talk.ask("runs")
    assert done["type"] == "done"
    found = {row["record"]["name"]: row for row in rows}
    assert [row["run_id"] for row in rows if row["status"] != "damaged"] == ["r3", "r2", "r1"]
    assert found["damaged"]["run_id"] == "record:damaged"
    assert "run.json is damaged" in found["damaged"]["record"]["damage"]
    two = found["two"]
    assert (two["status"], two["record"]["state"], two["chains"], two["failed"]) == (
        "completed",
        "ended",
        3,
        1,
    )
    assert two["mean_reward"] == 0.5
    assert two["duration_s"] >= 0
    assert found["three"]["record"]["runs"] == 3


async def test_pages_of_records(folder, talk_to):
    """Each page goes on behind the one before."""
    talk = await talk_to(folder)
    names, after = [], {}
    while True:
        await talk.say("query", id="q", what="runs", limit=2, **after)
        rows = await talk.hear("rows")
        assert rows["total"] == 3
        await talk.hear("done")
        names += [row["record"]["name"] for row in rows["rows"]]
        if rows.get("next") is None:
            break
        after = {"after": rows["next"]}
    assert names == ["three", "two", "one"]


async def test_a_run_is_answered_from_the_record_that_has_it(folder, talk_to):
    """Its runs, chains, steps and stories; also a run that was never listed, and another record on the same connection."""
    talk = await talk_to(folder)
    rows, _ = await talk.ask("chains", run="r5", sort="-reward")  # it was not listed
    assert [(row["run_id"], row["chain_id"]) for row in rows] == [("r5", f"chain_{n}") for n in (2, 1, 0)]
    rows, _ = await talk.ask("runs", run="r5")
    assert [row["run_id"] for row in rows] == ["r5", "r4", "r3"]
    rows, _ = await talk.ask("chain", run="r4", chain="chain_1")
    assert [row["data"]["content"] for row in rows if row["event_type"] == "llm_generation_end"] == [
        "three r4\n"
    ]
    rows, _ = await talk.ask("chain", run="r1", chain="chain_1")
    assert [row["data"]["content"] for row in rows if row["event_type"] == "llm_generation_end"] == [
        "one r1\n"
    ]
    assert (await talk.ask("steps", run="r1"))[1]["type"] == "done"


async def test_what_names_no_run_or_an_unknown_one_is_an_error(folder, talk_to):
    """One sentence, and the session goes on."""
    talk = await talk_to(folder)
    for what, fields in (("chains", {}), ("steps", {}), ("chain", {"chain": "chain_0"})):
        error = (await talk.ask(what, **fields))[1]
        assert (error["type"], error["code"]) == ("error", 400)
        assert "name a run of one of them" in error["message"]
    error = (await talk.ask("chains", run="\x1b[31mnone"))[1]
    assert (error["type"], error["code"]) == ("error", 404)
    assert "no record in records has the run '\\x1b[31mnone';" in error["message"]
    await talk.say("seek", id="a", time=1)
    assert (await talk.hear("error"))["code"] == 404
    assert len((await talk.ask("runs"))[0]) == 3


async def test_a_subscription_is_given_the_record_of_its_run(folder, talk_to):
    """By `of_run` or by its filter; one that names none is given nothing, and another filter leads to another record."""
    talk = await talk_to(folder)
    await talk.say("subscribe", id="none")
    assert (await talk.hear("subscribed", "error"))["type"] == "subscribed"
    await talk.say("subscribe", id="a", since="start", speed="max", of_run="r4")
    assert (await talk.hear("subscribed", "error"))["recovered"]
    events, _ = await talk.events(lambda event: event["event_type"] == "run_end" and event["run_id"] == "r5")
    assert {event["run_id"] for event in events} == {"r3", "r4", "r5"}
    await talk.say("subscribe", id="b", since="start", filter={"runs": ["r1"]}, snapshots=True)
    assert (await talk.hear("subscribed", "error"))["recovered"]
    events, _ = await talk.events()
    assert {event["run_id"] for event in events} == {"r1"}
    await talk.say("update", id="b", filter={"runs": ["r2"]})
    assert (await talk.hear("subscribed", "error"))["type"] == "subscribed"
    batch = await talk.hear("batch")
    assert (batch["id"], batch["events"]) == ("b", [])  # it is over, so there are no snapshots
    await talk.say("subscribe", id="c", filter={"runs": ["gone"]})
    assert not (await talk.hear("subscribed", "error"))["recovered"]


async def test_a_replay_of_one_of_them_begins_with_snapshots_and_seeks(folder, talk_to):
    """To a time and to a cursor of the same record."""
    talk = await talk_to(folder)
    rows, _ = await talk.ask("chain", run="r2", chain="chain_1")
    middle = next(row for row in rows if row["event_type"] == "llm_generation_end")
    await talk.say("subscribe", id="a", time=middle["timestamp"], speed=0, snapshots=True, of_run="r2")
    assert (await talk.hear("subscribed", "error"))["cursor"] is None
    batch = await talk.hear("batch")
    assert [event["chain_id"] for event in batch["events"]] == ["chain_1"]
    await talk.say("seek", id="a", time=0, snapshots=True)
    assert (await talk.hear("subscribed", "error"))["recovered"]
    assert (await talk.hear("batch"))["events"] == []
    await talk.say("speed", id="a", speed="max")
    events, _ = await talk.events()
    assert events[0]["event_type"] == "run_start"
    await talk.say("seek", id="a", cursor=batch["cursor"])
    assert (await talk.hear("subscribed", "error"))["cursor"] == batch["cursor"]
    assert (await talk.events())[0][0] == middle


async def test_a_record_that_goes_on_is_followed_and_new_ones_are_listed(folder, talk_to):
    """Its open chain begins with a snapshot, and its story has the ids of its tokens."""
    manager, opened = await write(folder / "four", open_chain=True)
    talk = await talk_to(folder)
    rows, _ = await talk.ask("runs")
    assert (rows[0]["run_id"], rows[0]["status"]) == ("open", "running")
    await talk.say("subscribe", id="a", filter={"runs": ["open"]}, snapshots=True)
    await talk.hear("subscribed")
    (snapshot,) = (await talk.hear("batch"))["events"]
    assert (snapshot["event_type"], snapshot["data"]["content"]) == ("chain_snapshot", "goes on")
    rows, _ = await talk.ask("chain", run="open", chain="chain_0")
    ids = [i for row in rows if row["event_type"] == "llm_generation_chunk" for i in row["data"]["token_ids"]]
    assert ids == [7, 8]
    await opened.aclose()
    await manager.aclose()
    events, _ = await talk.events()
    assert [event["event_type"] for event in events][-2:] == ["chain_end", "run_end"]
    await write(folder / "five", "r6")
    assert [row["run_id"] for row in (await talk.ask("runs"))[0]][:2] == ["r6", "open"]


async def test_a_record_that_is_replaced_is_read_anew(folder, talk_to):
    """Under the same name there is another one now."""
    talk = await talk_to(folder)
    assert len((await talk.ask("chains", run="r1"))[0]) == 2
    await asyncio.to_thread((folder / "one").rename, folder.parent / "gone")
    await write(folder / "one", "r1", chains=4)
    assert len((await talk.ask("chains", run="r1"))[0]) == 4


async def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """And so is one without any record."""
    for path, says in (
        (tmp_path / "none", "is not there"),
        (tmp_path, "has no run.json, so it is not a record"),
    ):
        with pytest.raises(ArchiveError, match=says):
            await asyncio.to_thread(WebSocketStreamingServer, record=path)


@pytest.mark.slow
async def test_a_thousand_records_are_listed(tmp_path, talk_to):
    """In the second listing as in the first, while one of them is read."""
    for number in range(20):
        await write(tmp_path / f"r{number}", f"run{number}")
    for number in range(20, 1000):
        await asyncio.to_thread(_copy, tmp_path / f"r{number % 20}", tmp_path / f"r{number}", number)
    talk = await talk_to(tmp_path)
    await talk.ask("chains", run="run3")  # so that the process that reads runs
    for _ in range(2):
        rows, _ = await talk.ask("runs")
        assert len(rows) == 1000


def _copy(old, new, number):
    """The record again, of another run."""
    shutil.copytree(old, new)
    run = new / "run.json"
    run.write_text(run.read_text().replace('"id": "', f'"id": "{number:04d}'))
