"""Readings that several clients wait for together, without a server."""

import asyncio
import contextlib

import pytest

from rollcast.archive.pages import Rows
from rollcast.archive.readings import RunsWanted, StepsWanted
from rollcast.errors import RecordReaderError
from rollcast.serve.shared_readings import SharedReadings


class Reader:
    """Each reading waits until it is told to end."""

    def __init__(self):
        self.begun = []

    async def __call__(self, wanted):
        ended = asyncio.get_running_loop().create_future()
        self.begun.append((wanted, ended))
        return await ended


@pytest.fixture
async def shared():
    reader = Reader()
    shared = SharedReadings(reader)
    shared.reader = reader
    yield shared
    await shared.aclose()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def ask(shared, wanted):
    return asyncio.create_task(shared.rows(wanted))


WANTED = RunsWanted(path="/record", limit=64)


def rows(total):
    return Rows(rows=[], total=total)


async def test_who_asks_before_a_reading_begins_shares_it_and_who_asks_later_gets_the_next(shared):
    """However many ask, one reading goes on and one waits; nobody gets one that had begun before it asked."""
    begun = shared.reader.begun
    first = [ask(shared, WANTED) for _ in range(3)]
    await settle()
    later = [ask(shared, RunsWanted(path="/record", limit=64)) for _ in range(20)]
    await settle()
    assert len(begun) == 1
    begun[0][1].set_result(rows(1))
    assert [(await each).total for each in first] == [1, 1, 1]
    await settle()
    assert len(begun) == 2
    begun[1][1].set_result(rows(2))
    assert {(await each).total for each in later} == {2}
    last = ask(shared, WANTED)
    await settle()
    begun[2][1].set_result(rows(3))
    assert (await last).total == 3


async def test_different_readings_do_not_wait_for_each_other(shared):
    """Another page, another record, other rows."""
    asked = [ask(shared, each) for each in (WANTED, RunsWanted(path="/record"), StepsWanted(path="/record"))]
    await settle()
    assert len(shared.reader.begun) == 3
    for _, ended in shared.reader.begun:
        ended.set_result(rows(1))
    await asyncio.gather(*asked)


async def test_a_reading_that_fails_fails_for_those_who_shared_it_and_the_next_begins(shared):
    """The one that waited is made all the same."""
    begun = shared.reader.begun
    first = [ask(shared, WANTED) for _ in range(2)]
    await settle()
    later = ask(shared, WANTED)
    await settle()
    begun[0][1].set_exception(RecordReaderError("it died"))
    for each in first:
        with pytest.raises(RecordReaderError, match="it died"):
            await each
    await settle()
    begun[1][1].set_result(rows(2))
    assert (await later).total == 2


async def test_who_leaves_takes_the_reading_from_nobody(shared):
    """The others get their answer."""
    begun = shared.reader.begun
    leaving, staying = ask(shared, WANTED), ask(shared, WANTED)
    await settle()
    leaving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving
    begun[0][1].set_result(rows(1))
    assert (await staying).total == 1


async def test_the_end_ends_readings_that_go_on_and_that_wait(shared):
    """No task is left."""
    asked = [ask(shared, WANTED)]
    await settle()
    asked.append(ask(shared, WANTED))
    await settle()
    await shared.aclose()
    await asyncio.wait(asked)
    assert all(each.cancelled() for each in asked)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "rollcast-server-reading"]
