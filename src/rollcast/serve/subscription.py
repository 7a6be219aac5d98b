"""What one client wants and how far it is; and how a batch is framed once for all that get the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from rollcast.records import EventFilter
from rollcast.serve.history import Selector
from rollcast.serve.losses import Losses
from rollcast.serve.opening import Join
from rollcast.serve.protocol import FRAME_BYTES, CloseCode, batch_frame

__all__ = ["Outlet", "Sender", "Subscription", "Transmit"]

Framing = tuple[bool, str]
PLAIN = (True, "")


class Outlet(Protocol):
    """A client's connection, as the broadcaster sees it.

    Attributes:
        plain: one event a message and no frames around them.
    """

    plain: bool

    def unsent(self) -> int:
        """Bytes that were given to it and that the network has not taken."""

    def close(self, code: CloseCode, message: str) -> None:
        """End it. Does not wait."""


class Transmit(Protocol):
    """Sends messages to several clients, without waiting."""

    def __call__(self, outlets: Iterable[Any], /, *messages: bytes) -> None: ...


class Subscription:
    """What one client wants, and how far it is.

    Args:
        outlet: its connection.
        id: that the client gave it.
        selector: what it wants.
        position: in the history, of what it gets next.
        max_message: bytes of the largest message that it takes; None: any number.
        parts: whether it knows that a batch may come in parts.

    Attributes:
        room: bytes that the events of one message may have; None: any number.
        live_from: what stands before it is replayed, and is not merged.
        owed_until: being behind what stands before it is no reason to be closed: the client asked for it, or waited for snapshots.
        told: bytes before the cursor that the client knows.
        behind: it could not take more.
        join: the snapshots that it is being given; None: it has had them.
        next_filter: what the client wants once it has caught up.
        losses: what the client is told that it missed.
        framing: whether it is plain, and its id; clients for which it is equal get the same frame. None: nothing was sent yet.
    """

    __slots__ = (
        "behind", "framing", "id", "join", "live_from", "losses", "next_filter", "outlet", "owed_until", "parts", "position",
        "room", "selector", "told",
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
        self.framing: Framing | None = None

    def make_framing(self) -> Framing:
        """See `framing`."""
        plain = self.outlet.plain
        self.framing = framing = (plain, "" if plain else self.id)
        return framing


class Sender:
    """Frames batches and sends them.

    Attributes:
        transmit: sends messages; None: the server does not run, and nothing is sent.
        batches: so many were sent, each counted once however many clients shared it.
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
        """One batch to each, in one message; those with equal ids share its bytes. Plain ones get the events."""
        transmit = self.transmit
        if transmit is None or not members:
            return
        groups: dict[Framing, list[Outlet]] = {}
        for subscription in members:
            framing = subscription.framing or subscription.make_framing()
            groups.setdefault(framing, []).append(subscription.outlet)
        joined = b"" if groups.keys() == {PLAIN} else b",".join(events)
        for (plain, name), outlets in groups.items():
            if plain:
                transmit(outlets, *events)
            else:
                transmit(outlets, batch_frame(name, cursor, joined, part, parts))
        self.batches += 1
