"""A client comes back: where it goes on, and what it has missed if it cannot. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from rollcast.records.codec import one_line_json
from rollcast.serve.history import WITHIN, History, Selector
from rollcast.serve.ledger import PassedRun, RunLedger
from rollcast.serve.protocol import LostRun

__all__ = ["MAX_LOST", "Losses", "Return", "losses", "way_back"]

MAX_LOST = 64  # runs that are listed, the latest ones
MAX_LOST_BYTES = 12288  # of JSON that they take: the answer must fit in the smallest message


class Return(NamedTuple):
    """Where a client goes on.

    Attributes:
        position: of the next event; None: with snapshots of what is open.
        since: the position after the last event that it has.
        missed: the runs of which it misses something that it wants, if only snapshots can follow; the earliest first.
        began_anew: its cursor is of another history, so it has nothing of this one.
    """

    position: int | None = None
    since: int = 0
    missed: Sequence[PassedRun] = ()
    began_anew: bool = False


class Losses(NamedTuple):
    """As `Subscribed` has them."""

    lost: list[LostRun]
    lost_more: int
    began_anew: bool


def way_back(history: History, ledger: RunLedger, selector: Selector, since: str) -> Return:
    """Where a client goes on that asks for `since`.

    If the place is gone, but nothing that the filter wants went with it, it goes on at the oldest event that is held.
    """
    if since == "live":
        return Return()
    asked = 0 if since == "start" else history.named(since)
    if asked is None:
        return Return(missed=ledger.passed(selector, 0), began_anew=True)
    within = since.endswith(WITHIN)  # some snapshots are missing, and only new ones help
    if asked >= history.tail and not within:
        return Return(asked)
    missed = ledger.passed(selector, asked)
    if not within and all(run.first >= history.tail for run in missed) and not ledger.forgotten(asked):
        return Return(history.tail)
    return Return(since=asked, missed=missed)


def losses(
    ledger: RunLedger, selector: Selector, back: Return, as_of: Mapping[str, int], source: str = ""
) -> Losses:
    """What a client misses that goes on with snapshots.

    Args:
        ledger: of everything that the history was given.
        selector: of what the client wants.
        back: what `way_back` said.
        as_of: the `seq` of the last event of each open run that the snapshots tell of. Events up to it may still be on
            their way to the history; the client does not get those.
        source: of runs of which the history has nothing yet.
    """
    missed = list(back.missed)
    named = {run.run_id for run in missed}
    for run_id, last_seq in as_of.items():
        run = ledger.run(run_id) or PassedRun(run_id, source, back.since)
        if last_seq > run.last_seq and run_id not in named and selector.filter.wants_gap(run_id):
            missed.append(run)
    listed: list[LostRun] = []
    size = 0
    for run in reversed(missed[-MAX_LOST:]):
        lost = _lost(run, back.since, as_of)
        size += len(one_line_json(msgspec.json.encode(lost)))
        if size > MAX_LOST_BYTES:
            break
        listed.append(lost)
    more = len(missed) - len(listed) + ledger.forgotten(back.since)
    return Losses(listed[::-1], more, back.began_anew)


def _lost(run: PassedRun, since: int, as_of: Mapping[str, int]) -> LostRun:
    to_seq = max(run.last_seq, as_of.get(run.run_id, -1))
    from_seq = 0 if run.first >= since else None
    return LostRun(run.run_id, run.source, from_seq, to_seq, run.status or "running")
