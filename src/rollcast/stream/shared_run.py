"""An open run of this process of which other processes run chains, whose events are relayed here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rollcast.records import EventFilter, StreamEvent
from rollcast.stream.fanout import OpenPart, OpenRun

__all__ = ["SharedRun"]


def _of_own(name: str) -> Any:
    """An attribute that is the own part's."""
    return property(lambda run: getattr(run.own, name))


class SharedRun:
    """The chains of two parts of one run. See `OpenRun`.

    Args:
        own: the part that this process writes; it says how the run is cancelled and when it is over.
        elsewhere: what is relayed.
    """

    loop: asyncio.AbstractEventLoop | None = _of_own("loop")
    parent_run_id: str | None = _of_own("parent_run_id")
    expected_chains: int = _of_own("expected_chains")
    on_cancel: Callable[[str | None], object] | None = _of_own("on_cancel")
    announced: dict[str, str | None] = _of_own("announced")

    def __init__(self, own: OpenRun, elsewhere: OpenRun) -> None:
        self.own = own
        self.elsewhere = elsewhere

    def as_of(self) -> Mapping[str, int]:
        """See `OpenRun.as_of`."""
        return {**self.elsewhere.as_of(), **self.own.as_of()}

    def next_seq(self, source: str) -> int | None:
        """See `OpenRun.next_seq`."""
        seq = self.own.next_seq(source)
        return self.elsewhere.next_seq(source) if seq is None else seq

    def has_chain(self, chain_id: str) -> bool:
        """See `OpenRun.has_chain`."""
        return self.own.has_chain(chain_id) or self.elsewhere.has_chain(chain_id)

    def tell_all(self, chain_id: str) -> None:
        """See `OpenRun.tell_all`."""
        self.own.tell_all(chain_id)

    def place_in(self, chain_id: str) -> tuple[int, int] | None:
        """See `OpenRun.place_in`."""
        return self.own.place_in(chain_id) or self.elsewhere.place_in(chain_id)

    def chain_ids(self, group_id: str | None = None) -> list[str]:
        """See `OpenRun.chain_ids`."""
        return [*self.own.chain_ids(group_id), *self.elsewhere.chain_ids(group_id)]

    def count_ended(self, group_id: str | None = None) -> int:
        """See `OpenRun.count_ended`. The own part counts those that ended elsewhere too, once it has their trajectories."""
        return self.own.count_ended(group_id)

    def open_part(self, chain_id: str) -> OpenPart | None:
        """See `OpenRun.open_part`."""
        return self.own.open_part(chain_id) or self.elsewhere.open_part(chain_id)

    def standing(self) -> tuple[int, int]:
        """See `OpenRun.standing`."""
        (chains, tokens), (others, their_tokens) = self.own.standing(), self.elsewhere.standing()
        return chains + others, tokens + their_tokens

    def snapshots(self, filter: EventFilter, besides: EventFilter | None) -> Iterator[StreamEvent]:
        """See `OpenRun.snapshots`."""
        yield from self.own.snapshots(filter, besides)
        yield from self.elsewhere.snapshots(filter, besides)
