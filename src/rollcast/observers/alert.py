"""An observer that sends alerts to an address or a command (docs/hints.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from rollcast.aio import wait_for_all
from rollcast.errors import InputError
from rollcast.observers.alert_sender import Alert, AlertSender
from rollcast.observers.alert_target import AlertTarget, alert_target
from rollcast.observers.hints import HintObserver
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.hint_watch import HintChange
from rollcast.records.hints import named_chains
from rollcast.records.view_fields import object_of
from rollcast.records.view_parts import count_of
from rollcast.text import plain_line

__all__ = ["AlertObserver"]

T = StreamEventType

CLOSE_S = 4.5  # how long the end of a program waits for the last alert; a manager gives its observers 5 s
KILL_S = 0.4
MAX_TEXT = 500
MAX_ID = 80
MAX_CHAINS = 16


class AlertObserver(HintObserver):
    """Sends an alert when a hint appears, when it goes, and when a run fails. It never makes a run wait.

    A run fails if its status is `failed`, or if every chain of it failed. At most `per_minute` alerts are sent in a minute; what has
    none of its own is counted in the next one. If the target fails, one warning says so.

    Args:
        target: an address that takes a POST (`https://…`, `http://…`); or a command with its arguments, quoted as for a shell, which
            is not used. The alert is JSON: the body of the POST, or the command's standard input and its variable `ROLLCAST_ALERT`.
        per_minute: how many alerts are sent in a minute, and at once.
        mask: is given each text that a model, a tool or a row may have a part in, and returns it without secrets.
        chain_filter: the chains in which hints are looked for, as for `HintObserver`.
        by_clock: as for `HintObserver`.

    Raises:
        InputError: `target` is neither, there is no such program, or `per_minute` is below 1.
        FilterError: `chain_filter` is not a filter.
    """

    def __init__(
        self,
        target: str | AlertTarget,
        *,
        per_minute: int = 6,
        mask: Callable[[str], str] | None = None,
        chain_filter: EventFilter | str | Iterable[str] | None = None,
        by_clock: bool = True,
    ) -> None:
        super().__init__(self._changed, chain_filter=chain_filter, by_clock=by_clock)
        self.filter |= EventFilter.coerce(chain_filter) & EventFilter(types=T.ERROR)
        self.filter |= EventFilter(types=(T.RUN_START, T.RUN_END))
        if per_minute < 1:
            raise InputError(f"per_minute is {per_minute}; expected a whole number from 1 upward")
        self._mask = mask
        self._target = alert_target(target) if isinstance(target, str) else target
        self._sender = AlertSender(self._target, per_minute)
        self._pid = os.getpid()
        self._error: tuple[str, str] | None = None  # a run, and the latest error in it

    @property
    def sent(self) -> int:
        """How many alerts were taken by the target."""
        return self._sender.sent

    @property
    def failed(self) -> int:
        """How many alerts were not taken."""
        return self._sender.failed

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Take the events, and send what follows from them."""
        if os.getpid() != self._pid:
            return  # a forked child: its parent sends the alerts
        await super().on_batch(events)
        for event in events:
            if event.event_type == T.ERROR:
                data = object_of(event.data)
                self._error = (event.run_id, f"{data.get('error_type')}: {data.get('error')}")
            elif event.event_type == T.RUN_END:
                self._run_ended(event)

    async def aclose(self) -> None:
        """Send what waits as one alert; after 4.5 seconds it is broken off."""
        await super().aclose()
        if os.getpid() != self._pid:
            return
        stopped = self._sender.stop()
        await wait_for_all([stopped], CLOSE_S)
        if not stopped.done():
            self._sender.give_up()
            await wait_for_all([stopped], KILL_S)

    # -- what alerts say ---------------------------------------------------------------------------------------------------

    def _changed(self, change: HintChange) -> None:
        hint = change.hint
        names = named_chains(hint)
        text = f"{hint.sentence} ({names})" if names else hint.sentence
        what = "hint_appeared" if change.appeared else "hint_gone"
        self._send(
            what,
            change.id,
            text if change.appeared else f"no longer: {hint.sentence}",
            run_id=hint.run_id,
            timestamp=change.at,
            kind=hint.kind,
            group_id=None if hint.group_id is None else self._safe(hint.group_id, MAX_ID),
            subject=self._safe(hint.subject, MAX_ID),
            chains=[self._safe(name, MAX_ID) for name in hint.chains[:MAX_CHAINS]],
            count=hint.count,
        )

    def _run_ended(self, event: StreamEvent) -> None:
        data = object_of(event.data)
        chains, failed = count_of(data.get("chains")) or 0, count_of(data.get("failed")) or 0
        if data.get("status") == "failed":
            text = "The run failed" + (f"; {failed} of {chains} chains failed" if failed else "")
        elif chains and failed >= chains:
            text = (
                f"All {chains} chains of the run failed" if chains > 1 else "The only chain of the run failed"
            )
        else:
            return
        if self._error is not None and self._error[0] == event.run_id:
            text += f"; the latest error is {self._error[1]}"
        self._send(
            "run_failed", f"run_failed/{plain_line(event.run_id, MAX_ID)}", text,
            run_id=event.run_id, timestamp=event.timestamp, chains=[], count=failed,
        )  # fmt: skip

    def _send(self, what: str, id: str, text: str, *, run_id: str, **fields: Any) -> None:
        known = {"run_id": plain_line(run_id, MAX_ID), **fields}
        self._sender.put(Alert(what, id, self._safe(text, MAX_TEXT), known))

    def _safe(self, text: str, limit: int) -> str:
        """One line without secrets."""
        return plain_line(text if self._mask is None else self._mask(text), limit)
