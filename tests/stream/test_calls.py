"""In what portions an observer is given what waits, and how many of them count as begun."""

import asyncio
import threading

import pytest

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream import StreamObserver, calls
from rollcast.stream.calls import TURN, TURN_ALONE, Calls
from rollcast.stream.delivery import Delivery
from rollcast.stream.observer import EncodingObserver, overrides_on_chain_closed
from rollcast.stream.queue import Control


class Batches(StreamObserver):
    """Keeps each batch as one text; it is interrupted in the batch of this number."""

    interrupted_in = None

    def __init__(self):
        self.given = []

    async def on_batch(self, events):
        self.given.append("".join(event.chain_id for event in events))
        if len(self.given) == self.interrupted_in:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    async def on_event(self, event):
        await self.on_batch([event])

    async def on_run_opened(self, run_id):
        self.given.append("(")


class Following(Batches):
    async def on_chain_closed(self, run_id, chain_id):
        self.given.append("|")


class OneByOne(Batches):
    on_batch = StreamObserver.on_batch

    async def on_event(self, event):
        await Batches.on_batch(self, [event])


def waiting(text):
    """What waits: `(` is the hook of a run that opens, `|` that of a chain that closes, and any other character an event."""
    hooks = {"(": Control("run_opened", "r"), "|": Control("chain_closed", "r", "a")}
    return [hooks.get(each) or StreamEvent(StreamEventType.TRAIN_STEP, each, 0.0, {}) for each in text]


def delivery_of(items, *, threaded=False, encodes=False):
    """A delivery in which these wait, and what was taken of it."""
    delivery = Delivery(
        "r", EventFilter(), lock=threading.RLock(), limit=1 << 30, snapshots=lambda _: (), threaded=threaded
    )
    delivery.encodes = encodes
    with delivery.lock:
        delivery.put_uncounted(items)
        return delivery, delivery.take_locked()


async def given(observer, text):
    """Hand this over until it is done or interrupted; returns which of it was begun."""
    delivery, items = delivery_of(waiting(text))
    caller = Calls(observer, delivery, lambda *_: None)

    async def deliver():
        caller.task = asyncio.current_task()
        await caller.deliver(items)

    await asyncio.wait([asyncio.create_task(deliver())])
    return text[: delivery.begun]


TEXT = "(ab|c||d(|e|"


@pytest.mark.parametrize(
    ("observer", "batches"),
    [
        (Batches, ["(", "abcd", "(", "e"]),
        (Following, ["(", "ab", "|", "c", "|", "|", "d", "(", "|", "e", "|"]),
        (OneByOne, ["(", "a", "b", "c", "d", "(", "e"]),
    ],
)
async def test_a_chain_that_closes_parts_only_the_batches_of_those_who_want_to_know(observer, batches):
    """A run that opens parts those of all."""
    watching = observer()
    assert await given(watching, TEXT) == TEXT
    assert watching.given == batches


async def test_an_observer_that_gets_the_hook_in_a_call_is_told_from_then_on():
    """Whether it has the hook is looked up once for all chains that close between two of its calls."""
    watching = Batches()

    async def tell(_run_id, _chain_id):
        watching.given.append("|")

    async def on_run_opened(_run_id):
        watching.on_chain_closed = tell

    watching.on_run_opened = on_run_opened
    assert await given(watching, "a|b|c(d|e|") == "a|b|c(d|e|"
    assert watching.given == ["abc", "d", "|", "e", "|"]


def test_looking_for_the_hook_costs_little(monkeypatch):
    """It takes longer than a call: an observer that has it is not asked again, and any other once between two of its calls."""
    asked = []

    def overrides(observer):
        asked.append(observer)
        return overrides_on_chain_closed(observer)

    monkeypatch.setattr(calls, "overrides_on_chain_closed", overrides)
    for observer, most in ((Following(), 1), (Batches(), 3)):
        asked.clear()
        asyncio.run(given(observer, "a|b|c(d|e||"))
        assert len(asked) == most


@pytest.mark.parametrize("observer", [Batches, Following, OneByOne])
async def test_what_was_begun_is_known_wherever_it_is_interrupted(observer):
    """So what comes after it is given once more, and nothing is given twice: a hook that nobody listens to makes no difference."""
    whole = observer()
    await given(whole, TEXT)
    for number, batch in enumerate(whole.given, 1):
        if batch in ("(", "|"):
            continue
        watching = observer()
        watching.interrupted_in = number
        begun = await given(watching, TEXT)
        told = "".join(watching.given)
        assert told == "".join(whole.given[:number])
        assert [each for each in begun if each not in "(|"] == [each for each in told if each not in "(|"]
        assert begun.count("(") == told.count("(")


@pytest.mark.parametrize(("threaded", "most"), [(False, TURN), (True, TURN_ALONE)])
async def test_an_encoding_observer_on_its_own_thread_is_given_more_at_once(threaded, most):
    """Nothing else gets its turn there."""
    sizes = []

    class Encodes(EncodingObserver):
        async def on_encodable(self, events):
            sizes.append(len(events))

    items = waiting("a" * (2 * TURN_ALONE + 1))
    delivery, taken = delivery_of(items, threaded=threaded, encodes=True)
    await Calls(Encodes(), delivery, lambda *_: None).deliver(taken)
    assert max(sizes) == most
    assert sum(sizes) == len(items)
