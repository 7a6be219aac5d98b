"""The way of what an engine sampled to the event loops that wait for it."""

import asyncio

from rollcast.models.backend import Delta
from rollcast.models.inbox import Inbox, deliver


def delta(text):
    return Delta(text, [1], [-0.5], 0)


async def read(inbox):
    if not inbox.items:
        await inbox.arrival()
    return inbox.items.popleft()


async def test_who_waits_is_woken_with_the_item():
    """And what comes before anybody waits is kept, in order."""
    inbox = Inbox()
    reader = asyncio.create_task(read(inbox))
    await asyncio.sleep(0)  # it waits
    await asyncio.to_thread(deliver, [(inbox, delta("a")), (inbox, delta("b")), (inbox, None)])
    assert (await reader).text == "a"
    assert [(await read(inbox)).text, await read(inbox)] == ["b", None]


async def test_a_loop_is_woken_once_for_all_that_is_in_it(monkeypatch):
    """Whatever the number of generations and items."""
    calls = []
    loop = asyncio.get_running_loop()
    plain = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: calls.append(plain(*args)))
    inboxes = [Inbox() for _ in range(8)]
    assert deliver([(inbox, delta("a")) for inbox in inboxes for _ in range(3)]) == []
    assert len(calls) == 1
    await asyncio.sleep(0)
    assert [len(inbox.items) for inbox in inboxes] == [3] * 8


async def test_loops_that_are_closed_are_told_and_the_others_served():
    """Nobody is left to read what belongs to them."""

    async def made():
        return Inbox()

    loop = asyncio.new_event_loop()
    gone = await asyncio.to_thread(loop.run_until_complete, made())
    loop.close()
    here = Inbox()
    assert deliver([(gone, delta("a")), (here, delta("b")), (gone, None)]) == [loop]
    assert (await read(here)).text == "b"
    assert not gone.items


async def test_a_reader_that_was_cancelled_is_not_woken():
    """Its items stay where they are, and what comes for others beside them arrives."""
    inbox, other = Inbox(), Inbox()
    reader = asyncio.create_task(read(inbox))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])
    deliver([(inbox, delta("a")), (other, delta("b"))])
    await asyncio.sleep(0)
    assert [box.items.popleft().text for box in (inbox, other)] == ["a", "b"]
