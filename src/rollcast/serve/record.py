"""The record that a server's runs leave: whether there is one, and waiting until it has what happened."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from rollcast.aio import follower
from rollcast.archive import ArchiveObserver
from rollcast.stream import StreamObserver
from rollcast.stream.delivery import Delivery
from rollcast.stream.fanout import Fanout
from rollcast.stream.queue import Control

__all__ = ["LATE_S", "begun_record", "caught_up", "delivered", "lost_by", "record_of", "recorded", "written"]

LATE_S = 2.0  # how long an answer waits for an observer that lags


def record_of(manager: Any) -> ArchiveObserver | None:
    """The observer that records what this manager's runs do; of several the one that was added last."""
    found = None
    for observer in manager.observers:
        for leaf in (observer, *observer.leaves()):
            if isinstance(leaf, ArchiveObserver):
                found = leaf
    return found


async def caught_up(manager: Any, observer: StreamObserver, timeout: float = LATE_S) -> bool:
    """Wait until an observer was given everything that has been emitted. False if that takes too long."""
    with manager.lock:
        delivery = manager.delivery_of(observer)
    return delivery is None or await delivered(manager.fanout, delivery, timeout)


async def delivered(fanout: Fanout, delivery: Delivery, timeout: float = LATE_S) -> bool:
    """Wait until the reader of a delivery was given everything that was put into it. False if that takes too long."""
    with fanout.lock:
        if delivery.idle:
            return True
        arrived = Future[None]()
        delivery.put_uncounted([Control("barrier", done=arrived)])
    try:
        async with asyncio.timeout(timeout):
            await asyncio.wrap_future(follower(arrived))
    except TimeoutError:
        return False
    return True


async def begun_record(manager: Any) -> tuple[ArchiveObserver | None, str | None]:
    """The record of this manager's runs when it has everything that has been emitted, and a sentence if it does not.

    None if nothing is recorded, or if the record has not begun, since no run has begun since it was added.
    """
    record = record_of(manager)
    if record is None:
        return None, None
    behind = await recorded(manager, record)
    return (record, behind) if record.begun or behind is not None else (None, None)


async def recorded(manager: Any, record: ArchiveObserver, timeout: float = LATE_S) -> str | None:
    """Wait until the record has everything that has been emitted. A sentence if it does not, or not in time."""
    if not (await caught_up(manager, record, timeout) and await written(record, timeout)):
        return (
            f"the record {record.path.name} is behind, since its disk is slow: what came last may be missing"
        )
    if record.failing is not None:
        return f"the record {record.path.name} cannot be written at present: {record.failing}"
    return None


def lost_by(manager: Any, record: ArchiveObserver) -> int:
    """How many events the record lacks, since it could not be written or did not come after the run."""
    with manager.lock:
        delivery = manager.delivery_of(record)
        return record.totals.lost + (0 if delivery is None else int(delivery.statistics().dropped))


async def written(record: ArchiveObserver, timeout: float = LATE_S) -> bool:
    """Wait until the record's writer has written everything that it was given, or failed to. False if that takes too long."""
    try:
        async with asyncio.timeout(timeout):
            await record.recorded()
    except TimeoutError:
        return False
    return True
