"""Portions of the history, in batches."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from rollcast.records import EventFilter, StreamEventType
from rollcast.serve import ServerSettings
from rollcast.serve.history import Entry, History, Place, Selector
from rollcast.serve.subscription import Sender
from rollcast.serve.tail import LiveTail
from rollcast.serve.worker import Shortener, Worker

PLACE = Place(StreamEventType.REWARD, "c", None, "r", "s")


@given(
    st.lists(st.sampled_from([2, 20, 300, 5000, 40_000]), max_size=150),
    st.sampled_from([1, 3, 7, 256]),
    st.sampled_from([1, 50, 2000, 65_536]),
    st.sampled_from([None, 50_000, 1_000_000]),
)
def test_who_wants_everything_gets_the_batches_that_a_look_at_each_event_gives(sizes, events, size, room):
    """The same bounds hold, although nothing is decided for each event."""
    settings = ServerSettings(batch_events=events, batch_bytes=size)
    worker = Worker()
    shortener = Shortener(worker, lambda: None, lambda *_: None)
    tail = LiveTail(History(1 << 20), threading.RLock(), settings, Sender(), shortener)
    window = [Entry(b"x" * n, PLACE, at, at, at, 0) for at, n in enumerate(sizes)]
    everything, each = Selector(EventFilter()), Selector(EventFilter())
    each.all = False
    assert tail._batches(window, everything, 0, room) == tail._batches(window, each, 0, room)
