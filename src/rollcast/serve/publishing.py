"""What a server asks a hub for, if it is one: it takes what producers publish, and passes cancels on to them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

from rollcast.serve.protocol import CancelRun, CloseCode, Done, ErrorFrame, Hello, Publish, ServerFrame

__all__ = ["ProducerDesk", "Refused"]


class Refused(NamedTuple):
    """Why a producer may not connect."""

    code: CloseCode
    message: str


class ProducerLink(Protocol):
    """A producer's connection, as the hub sees it; `serve.outlet.Client` is one."""

    def send(self, frame: ServerFrame) -> None:
        """Send a frame without waiting."""
        ...

    def close(self, code: CloseCode, message: str) -> None:
        """Send the reason, and close. This does not wait."""
        ...


class ProducerDesk(Protocol):
    """A hub. Everything here is called in the server's event loop.

    Attributes:
        resumed: the runs that were open when the hub before it ended; their beginnings are in that one's record.
    """

    resumed: Collection[str]

    def connect(self, hello: Hello, link: ProducerLink) -> Refused | int:
        """Take a producer's connection, or say why not; the number of the last of its events that the hub has."""
        ...

    def greeted(self, link: ProducerLink) -> None:
        """Called when the producer has been sent its `welcome`."""
        ...

    async def take(self, link: ProducerLink, frame: Publish) -> None:
        """Take events. It returns when the hub can take more, and meanwhile nothing is read from the producer."""
        ...

    def heard(self, link: ProducerLink) -> None:
        """Called for every other message of a producer."""
        ...

    def answered(self, link: ProducerLink, frame: Done | ErrorFrame) -> None:
        """Take a producer's answer to a `cancel`."""
        ...

    def disconnect(self, link: ProducerLink) -> None:
        """Called when a connection has ended, of a producer or not."""
        ...

    def cancel(self, asked: CancelRun, answer: Callable[[Done | ErrorFrame], object]) -> bool:
        """Have producers cancel what a viewer asks for. False if no producer has published anything of the run."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """A row for each producer: see `sources` in docs/server.md."""
        ...
