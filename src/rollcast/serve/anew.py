"""What is told to a client that leaves snapshots before their end and begins with new ones: the `gap` of each run. Pure."""

from __future__ import annotations

import time
from typing import Any

from rollcast.records import StreamEvent, StreamEventType
from rollcast.serve.history import Selector, encoded
from rollcast.serve.ledger import PassedRun, RunLedger
from rollcast.serve.opening import Opening

__all__ = ["gaps_between", "in_messages"]

ENDED = "; the run has ended meanwhile"
PASSED = "; the run has passed meanwhile"
UNKNOWN = "; how many events are missing is not known"
MAX_PASSED = 64  # runs that opened and ended in between, the latest ones; of others the number is told


def gaps_between(
    ledger: RunLedger, selector: Selector, old: Opening, new: Opening, reason: str, source: str
) -> list[bytes]:
    """A `gap` for each run of which something may be missing between the moments of two openings.

    Args:
        ledger: of everything that came by.
        selector: of what the client wants.
        old: the opening that it leaves.
        new: the one that it begins with.
        reason: why.
        source: of the runs.
    """
    gaps = []

    def tell(run_id: str, first: int, last: int, why: str, status: str | None = None) -> None:
        data: dict[str, Any] = {"from_seq": first, "to_seq": last, "dropped": {}, "reason": reason + why}
        if status is not None:
            data["run_status"] = status
        gap = StreamEvent(StreamEventType.GAP, "", time.time(), data, seq=last, run_id=run_id, source=source)
        gaps.append(encoded(gap))

    def tell_end(run_id: str, first: int, run: PassedRun | None, why: str) -> None:
        if run is None or run.status is None:  # its end did not come by
            why += UNKNOWN
        last = first if run is None else max(first, run.last_seq)
        tell(run_id, first, last, why, (run.status if run is not None else None) or "unknown")

    wanted = selector.filter.wants_gap
    for run_id, seq in old.as_of.items():
        last = new.as_of.get(run_id)
        if not wanted(run_id):
            continue
        if last is None:
            tell_end(run_id, seq + 1, ledger.run(run_id), ENDED)
        elif last > seq:
            tell(run_id, seq + 1, last, "")
    for run_id, last in new.as_of.items():
        if run_id not in old.as_of and wanted(run_id):
            tell(run_id, 0, last, "")
    since = old.start  # what follows the snapshots is left too
    passed = [
        run
        for run in ledger.passed(selector, since)
        if run.run_id not in old.as_of and run.run_id not in new.as_of and run.status is not None
    ]
    for run in passed[-MAX_PASSED:]:
        tell_end(run.run_id, old.first.get(run.run_id, 0), run, PASSED)
    more = max(0, len(passed) - MAX_PASSED) + ledger.forgotten(since)
    if more:
        tell("", 0, 0, f"; {more:,} further runs have passed{UNKNOWN}")
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
