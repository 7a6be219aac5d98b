"""A recording that is given to observers flat out: the same calls as from a manager that relays it, without queues."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast import EventFilter, StreamEvent, StreamEventType, StreamingManager, StreamObserver
from rollcast.stream.playback import BATCH, Playback

T = StreamEventType


class Notes(StreamObserver):
    """Notes down what it is called with."""

    mode = "lossless"

    def __init__(self, filter=None):
        self.filter = filter or EventFilter()
        self.called = []

    async def on_event(self, event):
        self.called.append((event.event_type.value, event.run_id, event.chain_id, event.seq))

    async def on_run_opened(self, run_id):
        self.called.append(("opened", run_id))

    async def on_run_closed(self, run_id):
        self.called.append(("closed", run_id))

    async def on_chain_closed(self, run_id, chain_id):
        self.called.append(("chain closed", run_id, chain_id))

    async def aclose(self):
        self.called.append("closed for good")


class Batches(StreamObserver):
    """Notes down how many events it is given at once."""

    def __init__(self):
        self.sizes = []

    async def on_event(self, event):
        raise AssertionError("it takes batches")

    async def on_batch(self, events):
        self.sizes.append(len(events))


def event(kind, run_id="r", chain_id="", seq=0, **data):
    return StreamEvent(
        T(kind),
        chain_id,
        1000.0 + seq,
        data,
        1 if chain_id else None,
        None,
        seq,
        run_id,
        "group_0" if chain_id else None,
    )


def play(events, *observers, check=lambda: None):
    asyncio.run(Playback(observers).play(events, check))


async def relayed(events, observer):
    manager = StreamingManager()
    manager.add_observer(observer)
    for each in events:
        manager.relay(each)
    await manager.aclose()


KINDS = [
    "chain_start",
    "llm_generation_start",
    "llm_generation_chunk",
    "reward",
    "chain_end",
    "run_start",
    "run_end",
    "gap",
    "chain_snapshot",
]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from(["", "r", "s"]),
        st.sampled_from(["", "chain_0", "chain_1"]),
        st.booleans(),
    ),
    max_size=40,
)
FILTERS = st.sampled_from(
    [
        EventFilter(),
        EventFilter(types="chain_end"),
        EventFilter(chains="chain_0"),
        EventFilter(runs="s"),
        EventFilter(groups="group_0"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(EVENTS, FILTERS)
def test_an_observer_is_called_as_by_a_manager_that_relays(drawn, wanted):
    """With the same events and hooks in the same order, whatever the filter leaves out."""
    events = [
        event(
            kind,
            run_id,
            chain_id,
            seq,
            **({"run_status": "failed"} if kind == "gap" and over else {}),
            content="x",
        )
        for seq, (kind, run_id, chain_id, over) in enumerate(drawn)
    ]
    found, expected = Notes(wanted), Notes(wanted)
    play(events, found)
    asyncio.run(relayed(events, expected))
    assert found.called == expected.called


def test_events_come_in_batches_that_hooks_divide():
    """A hook is called after the events before it."""
    observer = Batches()
    events = [
        event("llm_generation_chunk", chain_id="chain_0", seq=seq, content="x") for seq in range(BATCH + 3)
    ]
    play([*events, event("run_end", seq=BATCH + 3), event("run_start", "s")], observer)
    assert observer.sizes == [BATCH, 4, 1]


def test_what_the_check_raises_ends_it_and_observers_are_closed():
    """Such as a reader of the output that has gone."""
    observer = Notes()

    def check():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        play([event("run_start"), event("run_end", seq=1)], observer, check=check)
    assert observer.called == [("opened", "r"), ("run_start", "r", "", 0), "closed for good"]


def test_an_observer_that_fails_ends_it():
    """All are closed."""

    class Failing(Notes):
        async def on_event(self, event):
            raise ValueError("broken")

    failing, other = Failing(), Notes()
    with pytest.raises(ValueError, match="broken"):
        play([event("run_start"), event("run_end", seq=1)], failing, other)
    assert failing.called[-1] == other.called[-1] == "closed for good"
