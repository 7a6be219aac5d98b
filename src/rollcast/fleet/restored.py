"""What a hub's last life left, and what this one leaves: how far each producer was acknowledged, and what was open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rollcast.fleet.intake import Key
from rollcast.records import StreamEvent

__all__ = ["Restored"]


class Restored:
    """What a hub begins with, if there was one before it.

    Attributes:
        acked: the number of the last event that was safe, by process.
        recorded: the last `seq` that the record has, by run and source.
        open: the `run_start` of each run that was open, and then a snapshot of each of its open chains.
        parent: the name of the record; None: there is none.
    """

    def __init__(self) -> None:
        self.acked: Mapping[Key, int] = {}
        self.recorded: Mapping[tuple[str, str], int] = {}
        self.open: Sequence[StreamEvent] = ()
        self.parent: str | None = None

    def note(self, marks: Iterable[tuple[Key, int]]) -> None:
        """Remember how far processes were acknowledged."""

    def close(self) -> None:
        """Nothing more will be noted."""
