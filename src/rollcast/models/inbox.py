"""How sampled tokens get from an engine's thread to the event loops that wait for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from rollcast.aio import call_in, resolve
from rollcast.errors import RollcastError
from rollcast.models.backend import Delta

__all__ = ["Inbox", "Item", "deliver"]

Item = Delta | RollcastError | None
"""A delta; an error to raise; or None if the generation was cancelled."""


class Inbox:
    """What has arrived for one generation. It is made and read in its consumer's loop; engines' generations derive from it.

    It has no limit: an engine never waits for a reader, and a generation has a limit of its own.

    Attributes:
        loop: the consumer's event loop.
        items: what has arrived and was not read; nothing comes after an error, None or a delta with a finish reason.
    """

    __slots__ = ("_waiter", "items", "loop")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def arrival(self) -> asyncio.Future[None]:
        """A future to await while `items` is empty: it is done as soon as something arrives."""
        self._waiter = waiter = self.loop.create_future()
        return waiter


def deliver(outgoing: Sequence[tuple[Inbox, Item]]) -> list[asyncio.AbstractEventLoop]:
    """Hand over the items from any thread, waking each loop once, however many there are.

    Returns:
        The loops that are closed: their items will never be read.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Inbox, Item]]] = {}
    for entry in outgoing:
        by_loop.setdefault(entry[0].loop, []).append(entry)
    closed = []
    for loop, entries in by_loop.items():
        if not call_in(loop, _receive, entries):
            closed.append(loop)
    return closed


def _receive(entries: list[tuple[Inbox, Item]]) -> None:
    """Runs in the consumers' loop: hand over the items and wake the waiting readers."""
    for inbox, item in entries:
        inbox.items.append(item)
        waiter = inbox._waiter  # noqa: SLF001  (this module's own)
        if waiter is not None:
            resolve(waiter)
