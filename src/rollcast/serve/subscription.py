"""The state of one client's subscription, and sending a batch that is framed once for all clients that get the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from rollcast.archive.pace import Pace
from rollcast.records import EventFilter
from rollcast.serve.history import Selector
from rollcast.serve.losses import Losses
from rollcast.serve.opening import Join
from rollcast.serve.protocol import FRAME_BYTES, CloseCode, batch_frame
from rollcast.serve.recorded import RecordPlace

__all__ = ["Feed", "Outlet", "Replay", "Sender", "Subscription", "Transmit"]

Framing = tuple[bool, str]
PLAIN = (True, "")


class Outlet(Protocol):
    """A client's connection, as the broadcaster sees it.

    Attributes:
        plain: whether it gets one event per message without frames.
    """

    plain: bool

    def unsent(self) -> int:
        """How many bytes it was given that the network has not taken."""

    def close(self, code: CloseCode, message: str) -> None:
        """Close the connection, without waiting."""


class Feed(Protocol):
    """Gives a subscription the events of a record.

    Attributes:
        answered: whether the client has its answer to `subscribe`.
        hurry: to be set when the pace was changed.
    """

    answered: bool
    hurry: asyncio.Event

    @property
    def place(self) -> RecordPlace | float | None:
        """Before what is given next."""

    def stop(self) -> None:
        """End, without waiting."""


class Transmit(Protocol):
    """Sends messages to several clients, without waiting."""

    def __call__(self, outlets: Iterable[Any], /, *messages: bytes) -> None: ...


class Replay(NamedTuple):
    """A replay that is asked for.

    Attributes:
        pace: how fast.
        time: where it begins, in seconds since the epoch; None: where the subscription says.
    """

    pace: Pace
    time: float | None = None


class Subscription:
    """What one client wants, and how far it is.

    Args:
        outlet: the client's connection.
        id: the id that the client chose.
        selector: which events it wants.
        position: the position in the history of the next event it gets.
        max_message: the size of the largest message that it takes, in bytes; None: any size.
        parts: whether it understands batches in parts.

    Attributes:
        room: how many bytes the events of one message may have; None: any number.
        live_from: events before this position are replayed, and not merged.
        owed_until: the client may be any distance behind this position, since it asked for these events or waited for snapshots.
        told: the bytes before the last cursor that the client was sent.
        behind: whether it could not take more.
        join: the snapshots that it is being given; None: it has them all.
        next_filter: the filter that applies once it has caught up.
        losses: what the client is told that it missed.
        feed: gives it a record; None: it is given the history.
        since: what it asked for.
        pace: of its replay; None: it is no replay.
        snapshots: whether it begins with snapshots of the chains that are open if it begins in the middle of a record, also after
            each change of its filter.
        of_run: a run of the record that it is given, of a folder of records.
        framing: whether it is plain, and its id; clients with equal values get the same frame. None: nothing was sent yet.
    """

    __slots__ = (
        "behind", "feed", "framing", "id", "join", "live_from", "losses", "next_filter", "of_run", "outlet", "owed_until", "pace", "parts", "position",
        "room", "selector", "since", "snapshots", "told",
    )  # fmt: skip

    def __init__(
        self,
        outlet: Outlet,
        id: str,
        selector: Selector,
        position: int,
        max_message: int | None = None,
        *,
        parts: bool = False,
    ) -> None:
        self.outlet = outlet
        self.id = id
        self.parts = parts
        self.room = None if max_message is None else max_message - (0 if outlet.plain else FRAME_BYTES)
        self.selector = selector
        self.position = self.live_from = self.owed_until = position
        self.told = 0
        self.behind = False
        self.join: Join | None = None
        self.next_filter: EventFilter | None = None
        self.losses: Losses | None = None
        self.feed: Feed | None = None
        self.since = "live"
        self.pace: Pace | None = None
        self.snapshots = False
        self.of_run: str | None = None
        self.framing: Framing | None = None

    def make_framing(self) -> Framing:
        """See `framing`."""
        plain = self.outlet.plain
        self.framing = framing = (plain, "" if plain else self.id)
        return framing


class Outgoing(NamedTuple):
    """A batch that is sent: its events, the cursor after them, and which part of how many it is."""

    events: Sequence[bytes]
    cursor: str
    part: int = 1
    parts: int = 1


class Sender:
    """Frames batches and sends them.

    Attributes:
        transmit: sends messages; None: the server does not run, so nothing is sent.
        batches: how many batches were sent, each counted once however many clients shared it.
    """

    def __init__(self) -> None:
        self.transmit: Transmit | None = None
        self.batches = 0

    def send(
        self,
        members: Sequence[Subscription],
        events: Sequence[bytes],
        cursor: str,
        part: int = 1,
        parts: int = 1,
    ) -> None:
        """Send a batch to each member in one message; those with equal ids share its bytes. Plain clients get the bare events."""
        self._send(members, [Outgoing(events, cursor, part, parts)])

    def send_several(
        self, members: Sequence[Subscription], batches: Sequence[tuple[Sequence[bytes], str]]
    ) -> None:
        """Send batches, each with its cursor, to each member: in a message each, which are given to the network together."""
        self._send(members, [Outgoing(events, cursor) for events, cursor in batches])

    def _send(self, members: Sequence[Subscription], batches: Sequence[Outgoing]) -> None:
        transmit = self.transmit
        if transmit is None or not members:
            return
        groups: dict[Framing, list[Outlet]] = {}
        latest: Framing | None = None
        outlets: list[Outlet] = []
        for subscription in members:
            framing = subscription.framing or subscription.make_framing()
            if framing != latest:  # most have that of the one before
                outlets, latest = groups.setdefault(framing, []), framing
            outlets.append(subscription.outlet)
        framed = [] if groups.keys() == {PLAIN} else [b",".join(batch.events) for batch in batches]
        for (plain, name), outlets in groups.items():
            if plain:
                transmit(outlets, *(event for batch in batches for event in batch.events))
            else:
                pairs = zip(batches, framed, strict=True)
                transmit(
                    outlets,
                    *(
                        batch_frame(name, each.cursor, events, each.part, each.parts)
                        for each, events in pairs
                    ),
                )
        self.batches += len(batches)
