"""The live tail: sends the history to subscriptions in portions, each made once for all at the same position."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from rollcast.records import StreamEvent
from rollcast.records.codec import decode_unchecked
from rollcast.serve.history import Entry, History, Selector, encoded
from rollcast.serve.settings import ServerSettings
from rollcast.serve.subscription import Sender, Subscription
from rollcast.serve.worker import Shortener
from rollcast.stream.queue import compact

__all__ = ["PORTION", "PORTION_BYTES", "LiveTail"]

PORTION = 2048  # how many entries one subscription is given before the others' turn
PORTION_BYTES = 256 << 10
MERGED_BYTES = 1 << 20  # the size of a portion for a client that fell behind


class LiveTail:
    """Gives portions of the history.

    Args:
        history: the server's history.
        lock: guards the history.
        settings: the server's settings.
        sender: sends batches.
        shortener: shortens events that are larger than a client takes.
    """

    def __init__(
        self,
        history: History,
        lock: threading.RLock,
        settings: ServerSettings,
        sender: Sender,
        shortener: Shortener,
    ) -> None:
        self.history = history
        self.lock = lock
        self.settings = settings
        self._sender = sender
        self._shortener = shortener

    def give(
        self, members: list[Subscription], selector: Selector, position: int, room: int | None, head: int
    ) -> bool:
        """Send the next portion to clients with equal filters and limits at one position. Returns whether there is more for them.

        The clients' state is updated before anything is sent, while it is still in the processor's cache.
        """
        with self.lock:
            if (
                position < self.history.tail
            ):  # another thread let go of it a moment ago: they are looked at again
                return True
            if self.history.has_wanted(selector, position):
                window = self.history.window(position, PORTION)
                end = None
            else:
                window, end = self.history.window(head - 1, 1), head - position
        batches: list[tuple[list[bytes], int]] = []
        shortening = False
        if end is None:
            batches, end, shortening = self._batches(window, selector, position, room)
        reached = position + end
        told = window[end - 1].before + len(window[end - 1].data) if batches else None
        for subscription in members:
            subscription.position = reached
            if told is not None:
                subscription.told = told
            if subscription.behind and reached >= head:
                subscription.behind = False
        if told is None:
            self._told(members, window[:end], silent=True)
        if batches:
            cursor = self.history.cursor
            self._sender.send_several(members, [(events, cursor(position + to)) for events, to in batches])
        return not shortening and reached < head

    def _batches(
        self, window: list[Entry], selector: Selector, position: int, room: int | None
    ) -> tuple[list[tuple[list[bytes], int]], int, bool]:
        """The batches of one portion, each with the number of entries up to its end; the number of entries in the portion; and
        whether it ends before an entry that is being shortened.
        """
        max_events, max_bytes, wants = self.settings.batch_events, self.settings.batch_bytes, selector.wants
        most = max_bytes if room is None else min(max_bytes, room)
        batches: list[tuple[list[bytes], int]] = []
        batch: list[bytes] = []
        size = given = end = 0
        shortening = False
        if selector.all and (room is None or self._all_fit(window, room)):
            return *self._all_in_batches(window), False
        for end, entry in enumerate(window, 1):
            if not (selector.all or wants(entry.place)):
                continue
            data = entry.data
            if room is not None:
                if len(data) > room:
                    shorter = self._shortener.get(position + end - 1, data, room)
                    if shorter is None:  # they continue from here when it is ready
                        shortening, end = True, end - 1  # noqa: PLW2901
                        break
                    data = shorter
                if batch and size + len(batch) + len(data) > room:
                    batches.append((batch, end - 1))
                    given += size
                    batch, size = [], 0
            batch.append(data)
            size += len(data)
            if len(batch) >= max_events or size >= most:
                batches.append((batch, end))
                given += size
                batch, size = [], 0
                if given >= PORTION_BYTES:
                    break
        if batch:
            batches.append((batch, end))
        return batches, end, shortening

    def _all_fit(self, window: list[Entry], room: int) -> bool:
        """Whether no batch of these entries can have more bytes, with its commas, than a message has room for."""
        longest = max([len(entry.data) for entry in window], default=0)
        return longest + self.settings.batch_bytes + self.settings.batch_events <= room

    def _all_in_batches(self, window: list[Entry]) -> tuple[list[tuple[list[bytes], int]], int]:
        """As `_batches` for clients that want everything and have room for any batch: nothing is decided for each event."""
        most_events, most_bytes = self.settings.batch_events, self.settings.batch_bytes
        data = [entry.data for entry in window]
        sizes = [0, *accumulate(map(len, data))]  # of the first so many entries
        batches: list[tuple[list[bytes], int]] = []
        begin = 0
        while begin < len(data) and sizes[begin] < PORTION_BYTES:
            end = min(
                bisect_left(sizes, sizes[begin] + most_bytes, begin + 1), begin + most_events, len(data)
            )
            batches.append((data[begin:end], end))
            begin = end
        return batches, begin

    def give_merged(self, subscription: Subscription, head: int) -> bool:
        """Send a larger portion, with merged chunks, to a client that fell behind. Returns the same as `give`."""
        with self.lock:
            if subscription.position < self.history.tail:  # as in `give`
                return True
            window = self.history.window(subscription.position, 2 * PORTION)
        room = subscription.room
        most = MERGED_BYTES if room is None else min(room, MERGED_BYTES)
        wanted: list[bytes] = []
        size = end = 0
        for entry in window:
            if subscription.selector.wants(entry.place):
                size += len(entry.data) + 1
                if size > most:
                    break
                wanted.append(entry.data)
            end += 1
        if end == 0:  # it is one large event, so nothing can be merged
            return self.give([subscription], subscription.selector, subscription.position, room, head)
        events, _, _ = compact([decode_unchecked(data) for data in wanted])
        subscription.position += end
        subscription.behind = subscription.position < head
        if events:
            data = [encoded(event) for event in events if isinstance(event, StreamEvent)]
            self._send([subscription], data, subscription.position)
        self._told([subscription], window[:end], silent=not events)
        return subscription.behind

    def _told(self, members: Sequence[Subscription], window: list[Entry], *, silent: bool = False) -> None:
        """Note the cursor that the members were sent. Members that got no event for long are sent an empty batch with it."""
        if not window:
            return
        now = window[-1].before + len(window[-1].data)
        overdue = [s for s in members if silent and now - s.told > self.history.limit // 8]
        if overdue:
            self._send(overdue, [], overdue[0].position)
        for subscription in overdue if silent else members:
            subscription.told = now

    def _send(self, members: Sequence[Subscription], events: list[bytes], position: int) -> None:
        self._sender.send(members, events, self.history.cursor(position))
