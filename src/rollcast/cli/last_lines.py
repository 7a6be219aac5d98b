"""What a command says at its end: where its record is, and where it published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollcast.cli.standard_error import say
from rollcast.errors import RollcastError
from rollcast.text import visible

if TYPE_CHECKING:
    from rollcast.cli.recording import RunRecord
    from rollcast.serve.producer import HubProducer
    from rollcast.stream import StreamingManager

__all__ = ["LastLines"]


class LastLines:
    """The lines, on the standard error.

    Args:
        record: of the command; None: it leaves none.
        manager: of the agent.
    """

    def __init__(self, record: RunRecord | None, manager: StreamingManager) -> None:
        self._record = record
        self._published = _published_by(manager)

    def finish(self) -> None:
        """Finish the record, and print the lines."""
        if self._record is not None:
            self._record.finish()
        self._say_published()

    def say(self) -> None:
        """Print the lines."""
        if self._record is not None:
            self._record.say()
        self._say_published()

    def say_of_failure(self, error: RollcastError | KeyboardInterrupt) -> None:
        """Have the lines printed after the sentence about the error."""
        if self._record is not None:
            self._record.say_of_failure(error)
        if isinstance(error, KeyboardInterrupt):  # nothing is printed about it
            self._say_published()
        elif self._published is not None and (line := self._published.line()) is not None:
            error.add_note(line)

    def _say_published(self) -> None:
        line = None if self._published is None else self._published.line()
        if line is not None:
            say(line)


def _published_by(manager: StreamingManager) -> _Published | None:
    """What this manager publishes to the hub that `ROLLCAST_HUB` names; None if it publishes nothing."""
    if not manager.publishes:
        return None
    from rollcast.serve.hub_observer import HubStreamObserver  # noqa: PLC0415  (most commands publish nothing)

    observer = next(each for each in manager.observers if isinstance(each, HubStreamObserver))
    return _Published(observer.producer)


class _Published:
    """What one command published.

    Args:
        producer: of this process.
    """

    def __init__(self, producer: HubProducer) -> None:
        self._producer = producer

    def line(self) -> str | None:
        """None if the hub has nothing: it was not reached, or refused, of which the producer has warned; or nothing happened."""
        producer = self._producer
        producer.settle()  # as the end of the process would
        if not producer.has_delivered:
            return None
        line = f"published to {producer.url} as {producer.source}"
        if not producer.is_up_to_date:
            line += " (the hub does not have all of it yet)"
        return "".join(piece for piece, _ in visible(line))
