"""The pump: makes sure that one observer is called with its delivery's events, in the observer's own event loop or thread.

    Delivery ──▶ Pump ──▶ Shift (in an event loop) ──▶ Calls ──▶ observer.on_batch / on_event / on_run_opened … aclose

An observer is never called twice at once. State changes are made under the delivery's lock:

    idle ──begin──▶ running ──nothing left──▶ idle
                       └──the delivery has ended──▶ closing ──aclose returned──▶ closed

A pump works in shifts, one at a time. If one is interrupted because its loop ends or its task is cancelled, the pump is idle
again: the next event, run or loop that touches the manager begins the next shift, and if none does, the background loop does so
after a moment.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from concurrent.futures import Future
from typing import Literal, Protocol

from rollcast import aio
from rollcast.aio import fulfil
from rollcast.records import StreamEvent
from rollcast.stream.calls import FAILURES_TO_DETACH, Calls
from rollcast.stream.delivery import Delivery
from rollcast.stream.observer import StreamObserver
from rollcast.stream.shift import Shift, shared_running_loop

__all__ = ["FAILURES_TO_DETACH", "Pump", "PumpHost"]

logger = logging.getLogger("rollcast.stream")


class PumpHost(Protocol):
    """What a pump needs from its maker. All but `failed` and `left_behind` are called with the lock held."""

    @property
    def patience(self) -> float:
        """How many seconds an observer may take to end after it was cancelled."""
        ...

    def expects_more(self) -> bool:
        """Whether a run is open, so that a pump with nothing to do waits instead of ending."""
        ...

    def loop_for(self, *preferred: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
        """The running event loop in which to call an observer that has no thread of its own.

        Raises:
            RuntimeError: there is none, and none can be made.
        """
        ...

    def look_again(self, pump: Pump) -> None:
        """Called when the pump was interrupted with work left: call its `look_again` after a moment."""
        ...

    def failed(self, pump: Pump, error: BaseException, event: StreamEvent | None) -> None:
        """Called when the observer raised; `event` is the event that it was given, None for a hook."""
        ...

    def left_behind(self, pump: Pump) -> None:
        """Called when the observer did not end after it was cancelled, and must be removed."""
        ...

    def closed(self, pump: Pump) -> None:
        """Called when the observer has left and is closed, or is no longer waited for."""
        ...


class Pump:
    """Hands one delivery's events to one observer.

    A third of its methods are what a shift needs of its pump (`ShiftOwner`). The others are the changes of one state, `state`, and
    stay together for that, although they are more than twenty.

    Args:
        observer: the observer to call.
        delivery: the queue of its events; if it is `threaded`, the observer is called on a thread of its own.
        host: see `PumpHost`.
        after: the `finished` of an earlier pump that may still call the same observer.

    Attributes:
        finished: done when the observer has left and is closed.
        shift: the current shift.
        own_loop: the event loop in which the observer wants to be called, if it is running.
        given_up: whether the observer took nothing for too long; its call was cancelled, and what waited was dropped.
    """

    def __init__(
        self,
        observer: StreamObserver,
        delivery: Delivery,
        host: PumpHost,
        *,
        after: Future[None] | None = None,
    ) -> None:
        self.observer = observer
        self.delivery = delivery
        self.after = after
        self.finished: Future[None] = Future()
        self.shift: Shift | None = None
        self.own_loop: asyncio.AbstractEventLoop | None = None
        self.given_up = False
        self.state: Literal["idle", "running", "closing", "closed"] = "idle"
        self.calls = Calls(observer, delivery, self._failed)
        self._host = host
        self._lock = delivery.lock
        self._home = shared_running_loop()  # the loop in which the observer was added, or was called last
        self._context = contextvars.copy_context()
        self._left: Shift | None = None  # the shift in which the observer was left behind
        delivery.on_wake = self.ensure_running_locked
        delivery.on_bad_filter = self.calls.filter_failed

    @property
    def failures_in_a_row(self) -> int:
        """How many calls of the observer have raised since the last one that did not."""
        return self.calls.failures_in_a_row

    def _failed(self, error: BaseException, event: StreamEvent | None) -> None:
        self._host.failed(self, error, event)

    # -- beginning: the lock is held -----------------------------------------------------------------------------------

    def ensure_running_locked(self) -> None:
        """Make sure that a shift is running if there is something to hand over or to close."""
        self._ensure_running_locked(passing=False)

    def _ensure_running_locked(self, *, passing: bool) -> None:
        if self.shift is not None and self.shift.is_lost():
            self._stop_locked(self.shift)
        delivery = self.delivery
        if self.state != "idle":
            return
        delivery.awake = bool(delivery.items) or delivery.ended
        if not delivery.awake:
            return
        try:
            self._begin_locked(passing=passing)
        except RuntimeError as error:  # no thread can be started, or (Python 3.12) the interpreter exits
            # Tried again with the next event, and by `run_here` when the manager closes.
            self._idle_locked()
            logger.debug("%s waits: %s", delivery.reader, error)

    def _begin_locked(self, *, passing: bool) -> None:
        shift = self._new_shift_locked(passing=passing)
        if self.delivery.threaded:
            name = f"rollcast-observer-{self.delivery.reader}"
            threading.Thread(target=self._run_on_a_thread, args=(shift,), name=name, daemon=True).start()
            return
        while True:
            loop = self._host.loop_for(self.own_loop, self._home)
            if shift.begin_locked(loop):
                self._home = None if passing else loop
                return
            self._home = None  # it has been closed meanwhile
            shift = self._new_shift_locked(passing=passing)

    def _new_shift_locked(self, *, passing: bool = False) -> Shift:
        self.state = "running"
        self.delivery.awake = True
        self.shift = Shift(self, self._context.copy(), passing=passing)
        return self.shift

    def _run_on_a_thread(self, shift: Shift) -> None:
        shift.work_alone()

    def look_again(self) -> None:
        """Continue what an interrupted shift left a moment ago, unless another shift already does."""
        with self._lock:
            self._ensure_running_locked(passing=True)

    def run_here(self) -> None:
        """Run a shift in this thread, which has no event loop, if none could begin: for an observer that leaves, and at exit for any."""
        with self._lock:
            ended = self.delivery.ended
            if self.state != "idle" or not (ended or (self.delivery.items and aio.interpreter_exits())):
                return
            shift = self._new_shift_locked(passing=not ended)
        aio.run(self._work_here(shift))

    async def _work_here(self, shift: Shift) -> None:
        worker = shift.hire()
        while not worker.done():
            before = self.delivery.progress
            await asyncio.wait((worker,), timeout=self.patience)
            with self._lock:
                if worker.done() or self.delivery.progress != before:
                    continue
                if self.given_up:
                    self.abandon_locked()
                    return
                self.give_up_locked()

    # -- what a shift needs of its pump --------------------------------------------------------------------------------

    @property
    def patience(self) -> float:
        """See `ShiftOwner.patience`."""
        return self._host.patience

    def expects_more_locked(self) -> bool:
        """See `ShiftOwner.expects_more_locked`."""
        return self._host.expects_more()

    def finished_locked(self, state: Literal["idle", "closing", "closed"]) -> None:
        """See `ShiftOwner.finished_locked`."""
        if state == "closing":
            self.state = state
        elif state == "closed":
            self._close_locked()
        else:
            self._idle_locked(home=self._home)

    def interrupted_locked(self, shift: Shift) -> None:
        """See `ShiftOwner.interrupted_locked`. The next shift hands over what is left."""
        if self._left is shift:
            self._left = None
            fulfil(self.finished)
        if self.shift is shift:
            self._stop_locked(shift)
            if self.state == "idle" and (self.delivery.items or self.delivery.ended):
                self._host.look_again(self)

    def leave_behind(self, shift: Shift) -> None:
        """See `ShiftOwner.leave_behind`."""
        with self._lock:
            if self.shift is not shift:
                return
        if self.delivery.first_time("hangs"):
            logger.warning(
                "%s is still running %g s after it was cancelled; it is left behind and removed",
                self.delivery.reader,
                self.patience,
            )
        self._host.left_behind(self)
        with self._lock:
            if self.shift is shift:
                self.abandon_locked()

    # -- ending: the lock is held --------------------------------------------------------------------------------------

    def _idle_locked(self, home: asyncio.AbstractEventLoop | None = None) -> None:
        shift, self.shift = self.shift, None
        if shift is not None:
            shift.dismiss_locked()
        self.state, self._home = "idle", home
        self.delivery.leave_locked()

    def _stop_locked(self, shift: Shift) -> None:
        """End the current shift; what it did not hand over goes back into the queue."""
        closing = self.state == "closing"
        taken, shift.taken = shift.taken, []
        if taken:
            self.delivery.put_back(taken[self.delivery.begun :])
        self._idle_locked()
        if closing:  # its aclose was interrupted; it is not called a second time
            self._close_locked()

    def _close_locked(self) -> None:
        self._idle_locked()
        self.state = "closed"
        self._host.closed(self)
        fulfil(self.finished)

    def is_given_up_locked(self) -> bool:
        """See `ShiftOwner.is_given_up_locked`."""
        return self.given_up and self.state != "closing"

    def give_up_locked(self) -> None:
        """Stop a call that hangs: drop what waits, and close the observer."""
        if self.delivery.first_time("hangs"):
            logger.warning(
                "%s has taken nothing for %g s: it hangs and is stopped; %d of its events are dropped",
                self.delivery.reader,
                self.patience,
                self.delivery.statistics().queued,
            )
        self.given_up = True
        self.delivery.discard_locked()
        if self.shift is None or not self.shift.cancel_locked():
            self._close_locked()

    def abandon_locked(self) -> None:
        """Stop waiting for an observer that ignores being stopped; its task or thread keeps running."""
        logger.debug("%s is left behind", self.delivery.reader)
        self.delivery.discard_locked()
        self._left, self.shift = self.shift, None  # `finished` is not done: it may still be at work
        if self._left is not None:
            self._left.dismiss_guard_locked()
        else:  # nobody is: its last shift was interrupted
            fulfil(self.finished)
        self.state = "closed"
        self.delivery.leave_locked()
        self._host.closed(self)

    def after_fork_locked(self) -> None:
        """Reset in a forked child, where no shift runs."""
        self.state = "idle"
        self.after = self.shift = self._home = None
