"""The observer that `--alert` asks for."""

from __future__ import annotations

from rollcast.observers import AlertObserver
from rollcast.observers.alert_target import alert_target
from rollcast.records import EventFilter, StreamEventType
from rollcast.records.hint_watch import HINT_EVENTS
from rollcast.records.secrets import Masker

__all__ = ["ALERT_EVENTS", "alert_to"]

ALERT_EVENTS = (*HINT_EVENTS, StreamEventType.ERROR)


def alert_to(
    target: str | None, *, chain_filter: EventFilter | None = None, by_clock: bool = True
) -> AlertObserver | None:
    """Make the observer for `--alert URL|COMMAND`; None if it was not given.

    Raises:
        InputError: this is neither an address nor a command that there is.
    """
    if target is None:
        return None
    found = alert_target(target, "--alert")
    return AlertObserver(found, mask=Masker().text, chain_filter=chain_filter, by_clock=by_clock)
