"""The child process that reads records: what it gives, that readings take turns, and how it ends."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import msgspec
import pytest

from rollcast import EventFilter, InputError, StreamEvent, StreamEventType
from rollcast.archive import format as fmt
from rollcast.archive import record_process
from rollcast.archive.chain_rows import ChainQuery, merged_page
from rollcast.archive.line_log import LineLog
from rollcast.archive.reader import Archive
from rollcast.archive.readings import ChainsWanted, RunsWanted, StepsWanted, given_by
from rollcast.archive.record_process import MAX_READINGS, RecordProcess
from rollcast.errors import ArchiveError, RecordReaderError
from rollcast.records import encode
from rollcast.records.codec import decode

T = StreamEventType


def event(seq, chain="chain_0", run="r"):
    data = {"error": f"e{seq}" + "x" * 500, "error_type": "", "where": "agent"}
    return StreamEvent(T.ERROR, chain, 1000.0 + seq, data, None, None, seq, run)


@pytest.fixture
def many(tmp_path):
    """20,000 events of 50 chains, 10 MB, in sealed segments."""
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "run.json").write_bytes(msgspec.json.encode(fmt.RunFile(id="abc", status="completed")))
    log = LineLog(folder / "events")
    events = [event(i, f"chain_{i % 50}") for i in range(20_000)]
    for begin in range(0, len(events), 5000):
        part = events[begin : begin + 5000]
        log.append(b"".join(encode(e) + b"\n" for e in part), len(part))
        log.close()
    return folder, events


@pytest.fixture
async def records():
    process = RecordProcess()
    yield process
    await process.aclose()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


async def all_of(items):
    async with items:
        return [item async for item in items]


async def test_it_gives_the_events_that_a_reader_gives(records, many):
    """From any place, by any filter; each with its line, its position and what filters look at; the cursor goes on."""
    folder, events = many
    windows = await all_of(records.events(folder, since=17))
    told = [e for window in windows for e in window.events]
    assert [decode(e.data) for e in told] == events[17:]
    assert [e.position for e in told] == list(range(17, 20_000))
    assert (told[0].chain_id, told[0].seq, told[0].run_id, told[0].event_type) == (
        "chain_17",
        17,
        "r",
        "error",
    )
    assert windows[-1].cursor == "abc.20000"
    (window,) = await all_of(records.events(folder, since=windows[-1].cursor))
    assert (window.events, window.position) == ([], 20_000)
    wanted = EventFilter(chains="chain_3") | EventFilter(chains="chain_7", runs="r")
    some = [
        e for window in await all_of(records.events(folder, filter=wanted, until=1000)) for e in window.events
    ]
    assert [decode(e.data) for e in some] == list(Archive.open(folder).events(filter=wanted, until=1000))
    assert len(some) == 40


async def test_rows_of_a_record(stage, records):
    """Runs, chains and training steps; chains page by page, each once, in their order."""
    stage.observe()
    for _ in range(2):
        await stage.run(5)
    archive = await stage.close()
    answer = await records.rows(RunsWanted(path=str(archive.path), limit=1))
    assert (len(answer.rows), answer.total) == (1, 2)
    rest = await records.rows(RunsWanted(path=str(archive.path), after=answer.next))
    assert rest.next is None
    runs = [msgspec.json.decode(row) for row in answer.rows + rest.rows]
    assert [(row["status"], row["chains"], row["open_chains"], row["mean_reward"]) for row in runs] == [
        ("completed", 5, 0, 2.0)
    ] * 2
    assert runs[0]["started_at"] >= runs[1]["started_at"]
    query = ChainQuery(sort="-reward", limit=3)
    found, pages = [], 0
    while True:
        page = merged_page([await records.chains(archive.path, query)], query)
        assert page.total == 10
        found += [msgspec.json.decode(row) for row in page.rows]
        pages += 1
        query.after = page.next
        if query.after is None:
            break
    assert pages == 4
    assert [row["reward"] for row in found] == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    rows = list(archive.chains().rows)
    assert sorted(map(repr, found)) == sorted(map(repr, rows))
    assert (await records.rows(StepsWanted(path=str(archive.path)))).rows == []


async def test_the_story_of_a_chain(stage, records):
    """All its events and no others; a chain that is not there is told in a sentence, as a cursor of another record is."""
    stage.observe()
    run_id = await stage.run(4)
    archive = await stage.close()
    windows = await all_of(records.story(archive.path, "chain_2", run_id))
    told = [decode(e.data) for window in windows for e in window.events]
    assert told == list(archive.events_of("chain_2", run_id))
    assert told[0].event_type == T.CHAIN_START
    assert told[-1].event_type == T.CHAIN_END
    with pytest.raises(ArchiveError, match="no chain 'chain_9'"):
        await all_of(records.story(archive.path, "chain_9"))
    with pytest.raises(InputError, match="no cursor of the record"):
        await all_of(records.events(archive.path, since="other.7"))
    with pytest.raises(ArchiveError, match="is not there"):
        await all_of(records.events(archive.path.with_name("gone")))


async def test_a_reading_that_nobody_takes_from_holds_nobody_up(records, many):
    """It has two windows on the way and no more; others are answered meanwhile."""
    folder, events = many
    slow = records.events(folder)
    first = await anext(slow)
    for _ in range(3):
        assert len(await all_of(records.events(folder, since=19_990))) == 1
    assert len(slow._came) <= 2
    rest = [window async for window in slow]
    assert len(first.events) + sum(len(window.events) for window in rest) == len(events)


async def test_too_many_readings_are_refused(records, many):
    """And it takes others again once some are closed."""
    folder, _ = many
    readings = [records.events(folder) for _ in range(MAX_READINGS)]
    for reading in readings:
        await anext(reading)
    with pytest.raises(RecordReaderError, match="64 readings"):
        await anext(records.events(folder))
    for reading in readings:
        reading.close()
    assert await anext(records.events(folder))


async def test_a_child_that_dies_fails_what_it_was_doing_and_nothing_else(records, many, until):
    """Each open reading raises; the next one has another child."""
    folder, events = many
    reading = records.events(folder)
    await anext(reading)
    pid = records.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RecordReaderError, match=r"died \(signal 9"):
        async for _ in reading:
            pass
    windows = await all_of(records.events(folder))
    assert sum(len(window.events) for window in windows) == len(events)
    assert records.pid != pid
    await until(lambda: not is_running(pid))


async def test_a_child_has_died_whichever_thread_hears_of_it_first(records, many, monkeypatch):
    """Here it is the one that writes to it."""
    folder, _ = many
    read = record_process.read_message

    def read_late(pipe):
        data = read(pipe)
        give_up = time.monotonic() + 10
        while data is None and not child.over and time.monotonic() < give_up:
            child.put(record_process.More(reading.id))
            time.sleep(0.01)
        return data

    monkeypatch.setattr(record_process, "read_message", read_late)
    reading = records.events(folder)
    await anext(reading)
    child = records._holder.child
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(RecordReaderError, match=r"died \(signal 9"):
        async for _ in reading:
            pass


async def test_it_ends_when_it_is_idle_and_when_it_is_closed(many, until):
    """And comes again with the next reading."""
    folder, _ = many
    records = RecordProcess(idle_s=0.05)
    await all_of(records.events(folder, since=19_000))
    first = records._holder.child.pid
    await until(lambda: records.pid is None and not is_running(first))
    await all_of(records.events(folder, since=19_000))
    second = records._holder.child.pid
    assert second != first
    await records.aclose()
    assert not is_running(second)
    await records.aclose()


async def test_it_is_closed_when_the_interpreter_ends(until, monkeypatch):
    """No thread can be started by then."""

    async def refused(*_):
        raise RuntimeError("cannot schedule new futures after shutdown")

    records = RecordProcess()
    records.warm()
    await until(lambda: records.pid is not None)
    child = records.pid
    monkeypatch.setattr(asyncio, "to_thread", refused)
    await records.aclose()
    assert not is_running(child)


async def test_a_child_that_was_started_early_takes_the_first_reading(many, until):
    """`warm` starts one child, and no second one."""
    folder, _ = many
    records = RecordProcess()
    records.warm()
    records.warm()
    await until(lambda: records.pid is not None)
    first = records.pid
    await all_of(records.events(folder, since=19_990))
    assert records.pid == first
    await records.aclose()
    assert not is_running(first)


async def test_a_child_that_was_started_early_ends_if_nothing_is_read(until):
    """As one that is idle; then it can be started again."""
    records = RecordProcess(idle_s=0.05)
    child = None
    for _ in range(2):
        records.warm()
        assert records._holder.child is not child
        child = records._holder.child
        await until(lambda child=child: child.pid is not None and child.over and not is_running(child.pid))
    await records.aclose()


async def test_a_reading_keeps_an_idle_child(many):
    """A replay may pause for longer than that."""
    folder, _ = many
    records = RecordProcess(idle_s=0.02)
    reading = records.events(folder)
    await anext(reading)
    await asyncio.sleep(0.1)
    assert [window async for window in reading]
    await records.aclose()


async def test_closing_it_fails_what_is_open(many):
    """Whoever waits is told."""
    folder, _ = many
    records = RecordProcess()
    reading = records.events(folder)
    await anext(reading)
    await records.aclose()
    with pytest.raises(RecordReaderError, match="was stopped"):
        async for _ in reading:
            pass


async def test_what_is_closed_starts_no_child_until_it_is_reopened(many):
    """Whoever asks meanwhile is told."""
    folder, _ = many
    records = RecordProcess()
    for _ in range(2):
        await all_of(records.events(folder, since=19_990))
        await records.aclose()
        with pytest.raises(RecordReaderError, match="was stopped"):
            await all_of(records.events(folder, since=19_990))
        assert records._holder.child is None
        records.reopen()
    await records.aclose()


async def test_a_stopped_child_with_a_full_pipe_is_killed_when_it_is_closed(many):
    """Closing takes seconds then, whatever waits in the pipe."""
    folder, _ = many
    records = RecordProcess()
    await all_of(records.events(folder, since=19_990))
    pid = records.pid
    os.kill(pid, signal.SIGSTOP)
    wide = EventFilter(chains=[f"chain_{number:0200d}" for number in range(1000)])  # 200 kB
    waiting = asyncio.create_task(all_of(records.events(folder, filter=wide)))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await records.aclose()
        with pytest.raises(RecordReaderError, match="was stopped"):
            await waiting
    assert not is_running(pid)


async def test_what_cannot_be_sent_is_an_error_of_its_reading(records, many):
    """And of no other: neither of one that is open, nor of the next."""
    folder, _ = many
    reading = records.events(folder)
    await anext(reading)
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be asked for this"):
            await records.chains(folder, ChainQuery(where={"index": [2**70]}))
    assert [window async for window in reading][-1].complete
    fresh = RecordProcess()
    with pytest.raises(InputError, match="cannot be asked for this"):
        await fresh.chains(folder, ChainQuery(where={"index": [2**70]}))
    await all_of(fresh.events(folder, since=19_990))
    await fresh.aclose()


async def test_numbers_of_any_size_are_sorted(records, tmp_path):
    """A seed may have more than 64 bits."""
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(fmt.RunFile(id="abc", status="completed")))
    seeds = [1, 2**80, -(2**70), 2**64, 10**400]
    rows = [{"row": "start", "run_id": "r", "chain_id": f"chain_{i}", "seed": s} for i, s in enumerate(seeds)]
    (tmp_path / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    query = ChainQuery(sort="seed", limit=2)
    while not found or query.after is not None:
        page = merged_page([await records.chains(tmp_path, query)], query)
        found += [json.loads(row)["seed"] for row in page.rows]
        query.after = page.next
    assert found == sorted(seeds)


async def test_a_thread_that_cannot_be_started(many, monkeypatch):
    """The reading fails in a sentence, and the next one has another try."""
    folder, _ = many
    records, start = RecordProcess(), threading.Thread.start
    for refused in ("rollcast-record-process", "rollcast-record-watch", "rollcast-record-answers"):

        def refuse(thread, refused=refused):
            if thread.name == refused:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        if refused == "rollcast-record-process":
            with pytest.raises(RecordReaderError, match="cannot be started"):
                records.warm()
        async with asyncio.timeout(60):
            with pytest.raises(RecordReaderError, match="cannot be started: can't start new thread"):
                await all_of(records.events(folder))
        monkeypatch.undo()
    assert await all_of(records.events(folder, since=19_990))
    await records.aclose()


@pytest.mark.slow
async def test_a_child_that_is_stuck_is_killed(many, monkeypatch):
    """What it was asked fails in a sentence, and the next reading has another child."""
    folder, events = many
    records = RecordProcess()
    reading = records.events(folder)
    await anext(reading)
    os.kill(records.pid, signal.SIGSTOP)
    monkeypatch.setattr(record_process, "STUCK_S", 0.6)  # from now on: a slow one may say nothing for longer
    monkeypatch.setattr(record_process, "TICK_S", 0.2)
    with pytest.raises(RecordReaderError, match="has said nothing for 1 s and was killed"):
        async for _ in reading:
            pass
    monkeypatch.undo()
    windows = await all_of(records.events(folder))
    assert sum(len(window.events) for window in windows) == len(events)
    await records.aclose()


@pytest.mark.slow
async def test_a_child_without_work_says_that_it_is_alive(many, until):
    """As long as a reading is open, whose windows nobody takes."""
    folder, _ = many
    records = RecordProcess()
    reading = records.events(folder)
    await anext(reading)
    child = records._holder.child
    # Windows: the one that was taken and two more; then the first sign, and the next.
    await until(lambda: child._heard >= 5)
    assert len(reading._came) == 2
    reading.close()
    await records.aclose()


async def test_rows_of_a_long_record_are_read_in_pieces(tmp_path):
    """So that other readings have their turn, and the parent is told that the child is alive."""
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(fmt.RunFile(id="abc", status="completed")))
    rows = [{"row": "start", "run_id": "r", "chain_id": f"chain_{i}", "started_at": i} for i in range(5000)]
    (tmp_path / "chains.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    for wanted in (ChainsWanted(path=str(tmp_path), query=ChainQuery()), RunsWanted(path=str(tmp_path))):
        given = list(given_by(wanted))
        assert given.count(None) >= 5
        assert given[-1] is not None


async def test_a_child_that_cannot_start_says_why(many, monkeypatch):
    """The last line of what Python said, or what the system said."""
    folder, _ = many
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    records = RecordProcess()
    with pytest.raises(RecordReaderError, match="cannot be started: No such file"):
        await all_of(records.events(folder))
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONHOME", str(folder))
    with pytest.raises(RecordReaderError, match=r"died \(exit code 1"):
        await all_of(records.events(folder))
    await records.aclose()


async def test_the_child_finds_what_its_parent_finds(many, monkeypatch, tmp_path):
    """Its modules come from where the parent's come from; one in the current folder hides none of them."""
    folder, _ = many
    for name in ("msgspec", "rollcast", "queue"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    records = RecordProcess()
    assert await all_of(records.events(folder, since=19_999))
    await records.aclose()


async def test_a_folder_that_goes_away_is_an_error_of_its_reading(records, many):
    """Not of the child, which goes on."""
    folder, _ = many
    reading = records.events(folder)
    await anext(reading)
    pid = records.pid
    shutil.rmtree(folder)
    rest = [window async for window in reading]
    assert any("taken away while it was read" in each for window in rest for each in window.damage)
    with pytest.raises(ArchiveError, match="is not there"):
        await all_of(records.events(folder))
    assert records.pid == pid


async def test_it_has_a_low_priority(records, many):
    """So that reading takes only what sampling leaves."""
    folder, _ = many
    await all_of(records.events(folder, since=19_999))
    assert os.getpriority(os.PRIO_PROCESS, records.pid) >= 10


PARENT = """
import asyncio, sys
from pathlib import Path
from rollcast.archive.record_process import RecordProcess
from rollcast.archive.readings import ChainsWanted, RunsWanted, StepsWanted, given_by

async def main():
    records = RecordProcess()
    reading = records.events(Path(sys.argv[1]))
    await anext(reading)
    print(records.pid, flush=True)
    if sys.argv[2] == "fork":
        import os, time
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_the_child_dies_with_its_parent(many, tmp_path, how):
    """Killed with -9 in the middle of a reading, and if a fork of it lives on and holds the pipe."""
    folder, _ = many
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen(
        [sys.executable, script, folder, how], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 60
        while is_running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()
        parent.wait()
