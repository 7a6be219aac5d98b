"""Finds where a client that comes back continues, and what it has missed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from rollcast.records.codec import one_line_json
from rollcast.records.lanes import Lane
from rollcast.serve.history import WITHIN, History, Selector
from rollcast.serve.ledger import PassedRun, RunLedger
from rollcast.serve.protocol import LostRun

__all__ = ["MAX_LOST", "Losses", "Return", "losses", "way_back"]

MAX_LOST = 64  # how many runs are listed, the latest ones
MAX_LOST_BYTES = 12288  # bytes of their JSON, since the answer must fit in the smallest message


class Return(NamedTuple):
    """Where a client continues.

    Attributes:
        position: the position of the next event; None: it continues with snapshots of the open chains.
        since: the position after the last event that it has.
        missed: the runs with events that it wants and missed, if only snapshots can follow; the earliest first.
        began_anew: whether its cursor belongs to another history, so that it has nothing of this one.
    """

    position: int | None = None
    since: int = 0
    missed: Sequence[PassedRun] = ()
    began_anew: bool = False


class Losses(NamedTuple):
    """The fields of `Subscribed` about what was lost."""

    lost: list[LostRun]
    lost_more: int
    began_anew: bool


def way_back(history: History, ledger: RunLedger, selector: Selector, since: str) -> Return:
    """Where a client continues that asks for `since`.

    If that place is gone, but no event that the filter wants is, the client continues at the oldest event that is kept.
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
    ledger: RunLedger,
    selector: Selector,
    back: Return,
    as_of: Mapping[Lane, int],
    to_come: Mapping[Lane, int] | None = None,
) -> Losses:
    """What a client has missed that continues with snapshots.

    Args:
        ledger: everything that the history was given.
        selector: what the client wants.
        back: the result of `way_back`.
        as_of: the `seq` of the last event of each open run and source that the snapshots cover. Events up to it may still be on
            their way to the history; the client does not get those.
        to_come: the `seq` of the first event of each run and source that the client is given after the snapshots; it may begin with
            some that were made for others before.
    """
    to_come = to_come or {}
    missed = [run for run in back.missed if run.lane in as_of or to_come.get(run.lane) != 0]
    named = {run.lane for run in missed}
    for lane, last_seq in as_of.items():
        run = ledger.run(lane) or PassedRun(*lane, back.since)
        if last_seq > run.last_seq and lane not in named and selector.filter.wants_gap(*lane):
            missed.append(run)
    listed: list[LostRun] = []
    size = 0
    for run in reversed(missed[-MAX_LOST:]):
        lost = _lost(run, back.since, as_of, to_come)
        size += len(one_line_json(msgspec.json.encode(lost)))
        if size > MAX_LOST_BYTES:
            break
        listed.append(lost)
    more = len(missed) - len(listed) + ledger.forgotten(back.since)
    return Losses(listed[::-1], more, back.began_anew)


def _lost(run: PassedRun, since: int, as_of: Mapping[Lane, int], to_come: Mapping[Lane, int]) -> LostRun:
    from_seq, lane = 0 if run.first >= since else None, run.lane
    if lane in as_of:
        to_seq = as_of[lane]
    elif lane in to_come:
        to_seq = to_come[lane] - 1
    else:
        return LostRun(run.run_id, run.source, from_seq, run.last_seq, run.status or "running")
    return LostRun(run.run_id, run.source, from_seq, to_seq, "running")  # if it has ended, that is to come
