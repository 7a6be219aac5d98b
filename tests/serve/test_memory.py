"""Rows of what a server's history has: the same from another process as from the event loop."""

import threading

import pytest

from rollcast.archive.record_process import RecordProcess
from rollcast.errors import RecordReaderError
from rollcast.records import StreamEvent, StreamEventType
from rollcast.serve import memory
from rollcast.serve.history import History
from rollcast.serve.memory import past_of

T = StreamEventType


def story(number):
    """A run with two chains, the second of which goes on; every third run has ended."""
    run = f"run-{number}"
    kinds = [
        (T.RUN_START, "", {"train_step": number}),
        (T.CHAIN_START, "chain_0", {"messages": [{"role": "user", "content": "q" * 200}], "index": 0}),
        (T.CHAIN_START, "chain_1", {"messages": [], "index": 1}),
        (T.LLM_GENERATION_CHUNK, "chain_0", {"content": "a", "offset": 0}),
        (T.CHAIN_END, "chain_0", {"finish_reason": "answered", "reward": 1.0, "steps": 1}),
        (T.TRAIN_STEP, "", {"train_step": number, "chains": {run: {"chain_0": {"advantage": 0.5}}}}),
        *([(T.RUN_END, "", {"status": "completed"})] if number % 3 == 0 else []),
    ]
    return [
        StreamEvent(kind, chain, 1e9 + number + at / 100, data, None, None, at, run)
        for at, (kind, chain, data) in enumerate(kinds)
    ]


@pytest.fixture
def history():
    history = History(1 << 30)
    for number in range(300):
        history.extend(story(number))
    return history


@pytest.fixture
async def records():
    records = RecordProcess()
    yield records
    await records.aclose()


async def past(history, records):
    return await past_of(history, threading.RLock(), history.head, records)


async def test_another_process_adds_up_the_same(history, records, monkeypatch):
    """In several portions."""
    monkeypatch.setattr(memory, "FEW_BYTES", 1 << 30)
    here = await past(history, records)
    assert records.pid is None
    monkeypatch.setattr(memory, "FEW_BYTES", 0)
    monkeypatch.setattr(memory, "PORTION_BYTES", 10_000)
    elsewhere = await past(history, records)
    assert records.pid is not None
    assert elsewhere == here
    assert {row["state"] for row in here.rows} == {"ended", "running", "lost"}
    assert len(here.rows) == 600
    assert len(here.steps) == 300


async def test_only_as_many_rows_are_given_as_a_table_keeps(history, records, monkeypatch):
    """Those of chains that began last, and those of all that are open."""
    monkeypatch.setattr(memory, "MAX_ENDED", 50)
    monkeypatch.setattr(memory, "FEW_BYTES", 0)
    told = await past(history, records)
    over = [row for row in told.rows if row["state"] != "running"]
    assert len(over) == 50
    assert over[-1]["run_id"] == "run-299"
    assert len(told.rows) - len(over) == 200


async def test_the_loop_adds_up_what_no_process_can(history, records, monkeypatch, caplog):
    """And says why."""
    monkeypatch.setattr(memory, "FEW_BYTES", 0)

    def refuse(_portion):
        raise RecordReaderError("the process that reads records cannot be started")

    monkeypatch.setattr(records, "past", refuse)
    assert len((await past(history, records)).rows) == 600
    assert "cannot be started" in caplog.text


async def test_a_portion_whose_beginning_is_gone_is_refused(records, history, monkeypatch):
    """Such as after another process took the place of the one that had it; then the loop does it."""
    monkeypatch.setattr(memory, "FEW_BYTES", 0)
    monkeypatch.setattr(memory, "PORTION_BYTES", 10_000)
    whole = records.past

    def forgetful(portion):
        portion.name += str(portion.number)
        return whole(portion)

    monkeypatch.setattr(records, "past", forgetful)
    assert len((await past(history, records)).rows) == 600
