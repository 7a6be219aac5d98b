"""Sends alerts one after another on a thread of its own: few a minute, with what did not get one of its own counted in the next."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rollcast.errors import AlertError
from rollcast.observers.alert_target import AlertTarget

__all__ = ["Alert", "AlertSender"]

logger = logging.getLogger("rollcast.observers")

MAX_WAITING = 32
MAX_ALSO = 10  # texts of folded alerts in the one that is sent
ALSO_CHARS = 200
TRIES = 3
URGENT = "run_failed"


@dataclass(eq=False)
class Alert:
    """One alert.

    Attributes:
        what: `hint_appeared`, `hint_gone` or `run_failed`.
        id: the same for a hint when it appears and when it goes.
        text: a line for people.
        fields: what else its JSON has.
        tries: how often it was sent, in vain.
    """

    what: str
    id: str
    text: str
    fields: dict[str, Any]
    tries: int = 0
    folded: Counter[str] = field(default_factory=Counter)
    also: list[str] = field(default_factory=list)

    def fold(self, other: Alert) -> None:
        """Count another alert in this one, which is sent in its place."""
        self.folded[other.what] += 1
        self.folded += other.folded
        self.also = [*self.also, other.text[:ALSO_CHARS], *other.also][:MAX_ALSO]

    def body(self) -> bytes:
        """The JSON, in ASCII, of less than 32 KiB: it fits into a pipe that nobody reads, and into an environment variable."""
        fields = {
            "version": 1,
            "what": self.what,
            "id": self.id,
            "text": self.text,
            **self.fields,
            "folded": dict(self.folded),
            "also": self.also,
        }
        return json.dumps(fields).encode("ascii")


class AlertSender:
    """Sends alerts to a target. `put` never waits and never raises.

    Args:
        target: where they go.
        per_minute: how many are sent at once, and in a minute.
        clock: a monotonic clock in seconds.

    Attributes:
        sent, failed: how many were taken by the target, and how many were not.
    """

    def __init__(
        self, target: AlertTarget, per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sent = 0
        self.failed = 0
        self._target = target
        self._per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._counted_at = clock()
        self._waiting: deque[Alert] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped: Future[None] | None = None  # set while it is to end
        self._warned = False

    def put(self, alert: Alert) -> None:
        """Send it soon. A hint that goes while its appearance still waits cancels it."""
        with self._changed:
            if alert.what == "hint_gone" and self._cancel(alert.id):
                return
            if len(self._waiting) >= MAX_WAITING:
                last = self._waiting.pop()
                kept, counted = (alert, last) if alert.what == URGENT else (last, alert)
                kept.fold(counted)
                alert = kept
            self._waiting.append(alert)
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def _cancel(self, id: str) -> bool:
        waiting = next((each for each in self._waiting if each.id == id), None)
        if waiting is None or waiting.folded or waiting.what != "hint_appeared":
            return False
        self._waiting.remove(waiting)
        return True

    def _start(self) -> None:
        self._stopped = None
        self._target.resume()
        self._thread = threading.Thread(target=self._work, name="rollcast-alerts", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no thread, or the interpreter exits
            self._thread = None
            self._waiting.clear()

    def stop(self) -> Future[None]:
        """Send what waits as one alert, and end. The future is done then."""
        with self._changed:
            if self._stopped is None:
                self._stopped = Future()
                if self._thread is None:
                    self._stopped.set_result(None)
            self._changed.notify_all()
            return self._stopped

    def give_up(self) -> None:
        """Drop what waits, break off what is being sent, and send nothing until alerts are sent again after `stop`."""
        with self._changed:
            self.failed += len(self._waiting)
            self._waiting.clear()
        self._target.abort()

    # -- the thread ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (alert := self._next()) is not None:
            try:
                self._target.send(alert.body())
            except AlertError as error:
                self._not_sent(alert, error)
            except Exception as error:  # a fault of ours must not end the thread without a word
                logger.exception("an alert could not be sent, by a fault in Rollcast")
                self._not_sent(alert, AlertError(type(error).__name__))
            else:
                self.sent += 1

    def _next(self) -> Alert | None:
        """The next alert when it may be sent; None when the thread is to end."""
        with self._changed:
            while True:
                if self._waiting:
                    wait_s = 0.0 if self._stopped is not None else self._wait_s()
                    if wait_s <= 0:
                        self._left -= 1
                        return self._taken()
                    self._changed.wait(wait_s)
                elif self._stopped is not None:
                    self._thread = None
                    self._stopped.set_result(None)
                    return None
                else:
                    self._changed.wait()

    def _wait_s(self) -> float:
        """How long it is until an alert may be sent."""
        now = self._clock()
        self._left = min(
            self._left + (now - self._counted_at) * self._per_minute / 60, float(self._per_minute)
        )
        self._counted_at = now
        return (1 - self._left) * 60 / self._per_minute if self._left < 1 else 0.0

    def _taken(self) -> Alert:
        """The first that waits, or a failed run; with all others folded in if they could not be sent soon."""
        waiting = self._waiting
        first = next((each for each in waiting if each.what == URGENT), waiting[0])
        waiting.remove(first)
        if self._stopped is not None or len(waiting) > self._left:
            for other in waiting:
                first.fold(other)
            waiting.clear()
        return first

    def _not_sent(self, alert: Alert, error: AlertError) -> None:
        alert.tries += 1
        if not self._warned:
            self._warned = True
            logger.warning(
                "an alert could not be sent to %s: %s. The run goes on, and this is said once",
                self._target.shown,
                error,
            )
        with self._changed:
            if error.retry and self._target.retries and alert.tries < TRIES and self._stopped is None:
                self._waiting.appendleft(alert)
            else:
                self.failed += 1
