"""Carries out a watcher's `cancel`, for chains of a run that are open and for those that have not begun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rollcast.errors import InputError

if TYPE_CHECKING:
    from rollcast.stream.fanout import Fanout

__all__ = ["Cancelled", "cancel"]


@dataclass(frozen=True)
class Cancelled:
    """The result of `cancel`.

    Attributes:
        ending: the open chains that are told to end.
        not_begun: chains that had not begun, and will not.
        over: how many chains had ended before.
    """

    ending: list[str]
    not_begun: list[str]
    over: int


def cancel(
    fanout: Fanout, run_id: str, chain_id: str | None = None, group_id: str | None = None
) -> Cancelled:
    """See `StreamingManager.cancel`."""
    if chain_id is not None and group_id is not None:
        raise InputError("a chain and a group are both given; name one of them")
    with fanout.lock:
        run = fanout.runs.get(run_id)
        if run is None:
            raise InputError(f"no run {run_id!r} is open")
        if chain_id is not None:
            ending = [chain_id] if run.has_chain(chain_id) else []
            not_begun = [chain_id] if chain_id in run.announced else []
            if not ending and not not_begun:
                raise InputError(f"run {run_id} has no open chain {chain_id!r}")
        else:
            ending = run.chain_ids(group_id)
            not_begun = [name for name, group in run.announced.items() if group_id in (None, group)]
            if group_id is not None and not ending and not not_begun:
                raise InputError(f"run {run_id} has no open chain in a group {group_id!r}")
        on_cancel = run.on_cancel
        if on_cancel is None:
            raise InputError(f"run {run_id} cannot be cancelled from outside: its producer gave no on_cancel")
        over = 0 if chain_id is not None else run.count_ended(group_id)
    if chain_id is None and group_id is None:
        on_cancel(None)
    else:
        # Chains that have not begun come first: otherwise one could begin when an open chain makes room for it.
        for name in [*not_begun, *ending]:
            on_cancel(name)
    with fanout.lock:
        for name in not_begun:
            run.announced.pop(name, None)
    return Cancelled(ending, not_begun, over)
