"""Snapshots of the open chains at one moment, in parts that are encoded one by one as clients take them. Without I/O.

A part is made when a client has room for it, and forgotten soon after, so a client that never reads costs only its place in
the opening. The snapshots share their texts with the chains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from rollcast.records import StreamEvent
from rollcast.records.lanes import Lane
from rollcast.records.secrets import Masker
from rollcast.serve.fitting import fitted
from rollcast.serve.history import Entry, Selector, encoded, masked
from rollcast.stream.queue import event_size

__all__ = ["PART_BYTES", "Join", "Left", "Opening", "Part"]

PART_BYTES = 512 << 10  # the size of a part, unless one event is larger
SMALL_BYTES = 32 << 10  # a part of at most this size is encoded at once, without the worker
MAX_KEPT_PARTS = 4  # kept for clients that need them a moment later


class Part(NamedTuple):
    """Encoded events, and the index of the first one after them."""

    events: list[bytes]
    next: int


class Opening:
    """What subscriptions that begin at one moment get before the live tail.

    Args:
        selector: which chains to include.
        before: the client's earlier selector; chains that it wants are left out, since the client has them. None: none.
        start: the position in the history when the snapshots were made.
        total: how many bytes had come into the history by then.
        masker: of secrets in the snapshots; None masks nothing.

    Attributes:
        as_of: the `seq` of the last event of each open run and source when the snapshots were made.
        first: the `seq` of the first event of each run and source that follows the snapshots, before the live tail.
        position: where the live tail begins; None while events from before the snapshots are still on their way.
    """

    def __init__(
        self,
        selector: Selector,
        before: Selector | None,
        start: int,
        total: int,
        masker: Masker | None = None,
    ) -> None:
        self._masker = masker
        self.selector = selector
        self.before = before
        self.start = start
        self.total = total
        self.position: int | None = None
        self.as_of: Mapping[Lane, int] = {}
        self.first: dict[Lane, int] = {}
        self._snapshots: Sequence[StreamEvent] = ()
        self._tail: list[bytes] = []
        self._kept: OrderedDict[tuple[int, int | None], Part] = OrderedDict()
        self._spare: tuple[int, bytes] | None = None  # an encoded event that no longer fitted in its part

    def renew(self, snapshots: Sequence[StreamEvent], as_of: Mapping[Lane, int]) -> None:
        self._snapshots, self.as_of = snapshots, as_of

    def arrive(self, window: Sequence[Entry], gone: Collection[str] = ()) -> None:
        """Join the snapshots with what came since `start`, whatever was emitted before them included.

        Args:
            window: what came.
            gone: runs that have ended, and whose end does not come. Nothing is given of those that had ended before the snapshots.
        """
        over = set(gone) - {lane.run_id for lane in self.as_of}
        tail = [
            entry
            for entry in window
            if self.selector.wants(entry.place) and entry.place.run_id not in over and not self._covers(entry)
        ]
        self.first = {}
        for entry in tail:
            self.first.setdefault(entry.place.lane, entry.from_seq)
        self._tail = [entry.data for entry in tail]
        self.position = self.start + len(window)

    def _covers(self, entry: Entry) -> bool:
        """Whether the snapshots cover this event: all of it or nothing.

        Chunks do not merge over the moment of the snapshots (queue.py), and those that a producer has merged came here together. One of
        them may begin with a token that is older than the latest events of other chains.
        """
        if self.before is not None and self.before.wants(entry.place):
            return False
        return entry.seq <= self.as_of.get(entry.place.lane, -1)

    def __len__(self) -> int:
        return len(self._snapshots) + len(self._tail)

    def is_small(self, index: int, room: int | None) -> bool:
        """Whether the part from `index` on is made in next to no time."""
        size, most, snapshots = 0, PART_BYTES if room is None else min(room, PART_BYTES), self._snapshots
        for i in range(index, len(self)):
            size += event_size(snapshots[i]) if i < len(snapshots) else len(self._tail[i - len(snapshots)])
            if size > SMALL_BYTES:
                return False
            if size > most:
                return True
        return True

    def part(self, index: int, room: int | None) -> Part:
        """The part from `index` on, in at most `room` bytes. Call it from any thread."""
        most = PART_BYTES if room is None else min(room, PART_BYTES)
        events: list[bytes] = []
        size = 0
        while index < len(self):
            event = self._event(index)
            if room is not None:
                event = fitted(event, room)
            if events and size + len(event) + 1 > most:
                break
            events.append(event)
            size += len(event) + 1
            index += 1
        return Part(events, index)

    def _event(self, index: int) -> bytes:
        if index >= len(self._snapshots):
            return self._tail[index - len(self._snapshots)]
        spare = self._spare
        if spare is None or spare[0] != index:
            snapshot = self._snapshots[index]
            data = encoded(snapshot)
            if self._masker is not None:
                data = masked(snapshot, data, self._masker)
            spare = self._spare = (index, data)
        return spare[1]

    def kept(self, key: tuple[int, int | None]) -> Part | None:
        """The part, if it was made a moment ago."""
        return self._kept.get(key)

    def keep(self, key: tuple[int, int | None], part: Part) -> None:
        """Keep a part for a moment, unless it is large."""
        if sum(map(len, part.events)) <= 2 * PART_BYTES:
            self._kept[key] = part
            if len(self._kept) > MAX_KEPT_PARTS:
                self._kept.popitem(last=False)


class Left(NamedTuple):
    """An opening that was left before its end.

    Attributes:
        opening: the opening that the client has some of.
        part: the number of the part that will complete the batch.
        reason: why it was left.
    """

    opening: Opening
    part: int
    reason: str


class Join:
    """How far one subscription is in its opening.

    Args:
        opening: the opening that it is being given.
        restarts: how often it began anew because it was too slow.
        left: an earlier opening that it was given some of.

    Attributes:
        index: the index of the next event.
        sent: how many parts it was given.
        told: whether the client was told what it misses before this opening, in a gap or in the answer to `subscribe`.
        making: whether its next part is being made.
    """

    __slots__ = ("index", "left", "making", "opening", "restarts", "sent", "told")

    def __init__(self, opening: Opening, restarts: int = 0, left: Left | None = None) -> None:
        self.opening = opening
        self.restarts = restarts
        self.left = left
        self.index = self.sent = 0
        self.told = self.making = False

    @property
    def begun(self) -> bool:
        """Whether the client knows of this opening, or must be sent a gap."""
        return bool(self.sent or self.told or self.left)

    def leave(self, reason: str) -> Left | None:
        """What the next join must report to the client; None if the client does not know of this opening."""
        if self.sent or self.told:
            return Left(self.opening, self.sent + 1, reason)
        return self.left

    def parts(self, next: int) -> int:
        """How many parts there are, by estimate until the last one; `next` is the index after the part to be sent."""
        whole = len(self.opening)
        if next >= whole:
            return self.sent + 1
        return max(self.sent + 2, (self.sent + 1) * whole // next)
