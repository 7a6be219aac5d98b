"""What is told to a client that leaves snapshots before their end and begins with new ones: the `gap` of each run and source. Pure."""

from __future__ import annotations

import time
from typing import Any

from rollcast.records import StreamEvent, StreamEventType
from rollcast.records.lanes import Lane
from rollcast.serve.history import Selector, encoded
from rollcast.serve.ledger import PassedRun, RunLedger
from rollcast.serve.opening import Opening

__all__ = ["gaps_between", "in_messages"]

ENDED = "; the run has ended meanwhile"
PASSED = "; the run has passed meanwhile"
UNKNOWN = "; how many events are missing is not known"
MAX_PASSED = 64  # runs that opened and ended in between, the latest ones; of others the number is told


def gaps_between(
    ledger: RunLedger, selector: Selector, old: Opening, new: Opening, reason: str
) -> list[bytes]:
    """A `gap` for each run and source of which something may be missing between the moments of two openings.

    Args:
        ledger: of everything that came by.
        selector: of what the client wants.
        old: the opening that it leaves.
        new: the one that it begins with.
        reason: why.
    """
    gaps = []

    def tell(lane: Lane, first: int, last: int, why: str, status: str | None = None) -> None:
        data: dict[str, Any] = {"from_seq": first, "to_seq": last, "dropped": {}, "reason": reason + why}
        if status is not None:
            data["run_status"] = status
        now, (run_id, source) = time.time(), lane
        gap = StreamEvent(StreamEventType.GAP, "", now, data, seq=last, run_id=run_id, source=source)
        gaps.append(encoded(gap))

    def tell_end(lane: Lane, first: int, run: PassedRun | None, why: str) -> None:
        if run is None or run.status is None:  # its end did not come by
            why += UNKNOWN
        last = first if run is None else max(first, run.last_seq)
        tell(lane, first, last, why, (run.status if run is not None else None) or "unknown")

    wanted = selector.filter.wants_gap
    for lane, seq in old.as_of.items():
        last = new.as_of.get(lane)
        if not wanted(*lane):
            continue
        if last is None:
            tell_end(lane, seq + 1, ledger.run(lane), ENDED)
        elif last > seq:
            tell(lane, seq + 1, last, "")
    for lane, last in new.as_of.items():
        if lane not in old.as_of and wanted(*lane):
            tell(lane, 0, last, "")
    since = old.start  # what follows the snapshots is left too
    passed = [
        run
        for run in ledger.passed(selector, since)
        if run.lane not in old.as_of and run.lane not in new.as_of and run.status is not None
    ]
    for run in passed[-MAX_PASSED:]:
        tell_end(run.lane, old.first.get(run.lane, 0), run, PASSED)
    more = max(0, len(passed) - MAX_PASSED) + ledger.forgotten(since)
    if more:
        tell(Lane("", ""), 0, 0, f"; {more:,} further runs have passed{UNKNOWN}")
    return gaps


def in_messages(events: list[bytes], room: int | None) -> list[list[bytes]]:
    """The events, in lists that fit into a message each; at least one list."""
    messages: list[list[bytes]] = [[]]
    size = 0
    for event in events:
        if messages[-1] and room is not None and size + len(event) + 1 > room:
            messages.append([])
            size = 0
        messages[-1].append(event)
        size += len(event) + 1
    return messages
