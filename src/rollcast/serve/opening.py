"""How open chains stood at one moment, in parts that are encoded one after the other, as clients take them. Without I/O.

A part is made when somebody has room for it, and forgotten soon after: what a client costs that never takes it is its place
in the opening. The snapshots themselves share their texts with the chains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rollcast.records import StreamEvent
from rollcast.serve.fitting import fitted
from rollcast.serve.history import Entry, Selector, encoded
from rollcast.stream.queue import event_size

__all__ = ["PART_BYTES", "Join", "Left", "Opening", "Part"]

PART_BYTES = 512 << 10  # of a part, unless one event is larger
SMALL_BYTES = 32 << 10  # that are encoded at once, without a thread
MAX_KEPT_PARTS = 4  # for clients that come to them a moment later


class Part(NamedTuple):
    """Encoded events, and the index of the first one after them."""

    events: list[bytes]
    next: int


class Opening:
    """What subscriptions that begin at one moment get before the live tail.

    Args:
        selector: which chains.
        before: chains that this one wants as well are left out: the client has them; None: it has none.
        start: the place in the history when the snapshots were made.
        total: bytes that had come into the history by then.

    Attributes:
        as_of: the `seq` of each open run's last event when the snapshots were made.
        position: where the live tail begins; None while events from before the snapshots are still on their way.
    """

    def __init__(self, selector: Selector, before: Selector | None, start: int, total: int) -> None:
        self.selector = selector
        self.before = before
        self.start = start
        self.total = total
        self.position: int | None = None
        self.as_of: Mapping[str, int] = {}
        self._snapshots: Sequence[StreamEvent] = ()
        self._tail: list[bytes] = []
        self._kept: OrderedDict[tuple[int, int | None], Part] = OrderedDict()
        self._spare: tuple[int, bytes] | None = None  # encoded, but it was too large for its part

    def renew(self, snapshots: Sequence[StreamEvent], as_of: Mapping[str, int]) -> None:
        """Take these snapshots."""
        self._snapshots, self.as_of = snapshots, as_of

    def arrive(self, window: Sequence[Entry]) -> bool:
        """Join the snapshots with what came since `start`, whatever was emitted before them included.

        Returns:
            False if an event tells half of what the snapshots tell, since chunks were merged over their moment: new ones are
            needed.
        """
        wanted = [entry for entry in window if self.selector.wants(entry.place)]
        covered = [self._covers(entry) for entry in wanted]
        if None in covered:
            return False
        self._tail = [entry.data for entry, told in zip(wanted, covered, strict=True) if not told]
        self.position = self.start + len(window)
        return True

    def _covers(self, entry: Entry) -> bool | None:
        """Whether the snapshots tell what this event tells; None: half of it."""
        as_of = self.as_of.get(entry.place.run_id, -1)
        if entry.from_seq > as_of or (self.before is not None and self.before.wants(entry.place)):
            return False
        return True if entry.seq <= as_of else None

    def __len__(self) -> int:
        return len(self._snapshots) + len(self._tail)

    def is_small(self, index: int, room: int | None) -> bool:
        """Whether the part from `index` on takes next to no time to make."""
        size, most, snapshots = 0, PART_BYTES if room is None else min(room, PART_BYTES), self._snapshots
        for i in range(index, len(self)):
            size += event_size(snapshots[i]) if i < len(snapshots) else len(self._tail[i - len(snapshots)])
            if size > SMALL_BYTES:
                return False
            if size > most:
                return True
        return True

    def part(self, index: int, room: int | None) -> Part:
        """The part from `index` on, in at most `room` bytes. From any thread."""
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
            spare = self._spare = (index, encoded(self._snapshots[index]))
        return spare[1]

    def kept(self, key: tuple[int, int | None]) -> Part | None:
        """A part that was made a moment ago."""
        return self._kept.get(key)

    def keep(self, key: tuple[int, int | None], part: Part) -> None:
        """Keep it for a moment, unless it is large."""
        if sum(map(len, part.events)) <= 2 * PART_BYTES:
            self._kept[key] = part
            if len(self._kept) > MAX_KEPT_PARTS:
                self._kept.popitem(last=False)


class Left(NamedTuple):
    """An opening that was left before its end.

    Attributes:
        opening: of whose moment the client has something.
        part: the number of the part that makes of it a whole batch.
        reason: why it was left.
    """

    opening: Opening
    part: int
    reason: str


class Join:
    """How far one subscription is in its opening.

    Args:
        opening: that it is given.
        restarts: how often it began anew, since it was too slow.
        left: another opening that it was given some of.

    Attributes:
        index: of the event that comes next.
        sent: parts that it was given.
        told: it was told of what is missing between the opening that it left and this one.
        making: the next part is being made.
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
        """Whether the client was given something, or has to be told of a gap."""
        return bool(self.sent or self.told or self.left)

    def leave(self, reason: str) -> Left | None:
        """What the next one has to tell the client; None: this one has told it nothing."""
        if self.sent or self.told:
            return Left(self.opening, self.sent + 1, reason)
        return self.left

    def parts(self, next: int) -> int:
        """How many parts there are, as far as is known when those before `next` have been sent: at least one more than that."""
        whole = len(self.opening)
        if next >= whole:
            return self.sent + 1
        return max(self.sent + 2, (self.sent + 1) * whole // next)
