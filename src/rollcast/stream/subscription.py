"""A reader that takes events at its own pace: `async for event in manager.subscribe(filter)`."""

from __future__ import annotations

import weakref
from collections import deque
from types import TracebackType
from typing import Self

from rollcast.records import StreamEvent
from rollcast.stream.delivery import Delivery, ObserverStatistics
from rollcast.stream.fanout import Fanout
from rollcast.stream.queue import Control, Single
from rollcast.stream.waiting import event_of

__all__ = ["Subscription"]


class Subscription:
    """The events that a filter wants, from when it is made until `close`; chains that are open then start with snapshots.

    Read it in one task, of any event loop. Its queue is bounded: for a slow reader neighbouring chunks merge, and beyond the
    manager's `queue_limit` a `gap` stands for what was dropped. It never slows the rollout, and the end of a run does not wait
    for it. It ends when it or its manager is closed, and when it is no longer
    referenced.

        async with manager.subscribe(EventFilter(chains="chain_0")) as events:
            async for event in events: ...
    """

    def __init__(self, fanout: Fanout, delivery: Delivery) -> None:
        self._delivery = delivery
        self._items: deque[Single] = deque()
        delivery.pulled = True
        fanout.add(delivery)
        self._close = weakref.finalize(self, fanout.remove, delivery)
        self._close.atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        while True:
            while self._items:
                item = self._items.popleft()
                if not isinstance(item, Control):
                    self._delivery.delivered += 1
                    return event_of(item)
            self._items.extend(await self._delivery.take())
            if not self._items:
                raise StopAsyncIteration

    def close(self) -> None:
        """Get nothing more; what already waits can still be read. Call it from any thread."""
        self._close()

    def statistics(self) -> ObserverStatistics:
        """The statistics of its queue."""
        with self._delivery.lock:
            return self._delivery.statistics()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
