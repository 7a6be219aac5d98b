"""The pump: calls one observer, where that observer lives, with what its delivery has.

    Delivery ──▶ Pump ──▶ observer.on_batch / on_event / on_run_opened … aclose

An observer is never called twice at once. What it raises is its own: it is logged, counted and reported, and nobody else
notices. State changes are made under the delivery's lock:

    idle ──start──▶ running ──nothing left──▶ idle
                       └──the delivery has ended──▶ closing ──aclose returned──▶ closed
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from concurrent.futures import Future
from typing import Any, Literal, Protocol, cast

from rollcast.aio import call_in, follower, fulfil, others_run, running_loop, uncancel
from rollcast.failures import place_of, text_and_place
from rollcast.records import StreamEvent
from rollcast.stream.delivery import Delivery
from rollcast.stream.observer import StreamObserver
from rollcast.stream.queue import Control, Item
from rollcast.stream.waiting import event_of

__all__ = ["FAILURES_TO_DETACH", "Pump", "PumpHost"]

logger = logging.getLogger("rollcast.stream")

FAILURES_TO_DETACH = 5
TURN = 256  # events handed over before other tasks of the loop get a turn, or more if those take long:
TURN_S = 0.05  # as many as are handed over while these would run once, and for no longer than this
# A pump's turn costs more than handing over a few events: if these were fewer, those of two turns of the loop gather,
FEW = 64
SHORT_S = 0.001  # unless turns are longer than this: nobody sees a millisecond
THREAD_TICK_S = 0.01  # a threaded observer wakes at most this often: fewer fights for the interpreter lock
BLOCKING_S = 0.1  # an observer that keeps the event loop for longer is named in a warning


class PumpHost(Protocol):
    """What a pump needs of whoever made it. All but `failed` are called with the lock held."""

    def expects_more(self) -> bool:
        """Whether a run is open: then a pump with nothing to do waits instead of ending."""
        ...

    def loop_for(self, *preferred: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
        """The running event loop in which to call an observer that does not have a thread of its own.

        Raises:
            RuntimeError: there is none, and none can be made.
        """
        ...

    def failed(self, pump: Pump, error: BaseException, event: StreamEvent | None) -> None:
        """The observer raised; `event` is the one that it was given, None for a hook."""
        ...

    def closed(self, pump: Pump) -> None:
        """The observer has left and is closed."""
        ...


class Pump:
    """Hands one delivery's events to one observer.

    Args:
        observer: who is called.
        delivery: what it is given; if that is `threaded`, the observer is called on a thread of its own.
        host: see `PumpHost`.
        after: an earlier pump's `finished`, if that one still calls the same observer.

    Attributes:
        finished: done when the observer has left and is closed.
        failures_in_a_row: calls of it that raised since the last one that did not.
        own_loop: the event loop in which it wants to be called, if that runs.
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
        self.finished: Future[None] = Future()
        self.own_loop: asyncio.AbstractEventLoop | None = None
        self.state: Literal["idle", "running", "closing", "closed"] = "idle"
        self._lock = delivery.lock
        self._host = host
        self._after = after
        self._loop: asyncio.AbstractEventLoop | None = None  # in which it runs; None until it has begun
        self._task: asyncio.Task[None] | None = None
        self._home = running_loop()  # the loop in which the observer was added, or was called last
        self._context = contextvars.copy_context()
        self._batched = type(observer).on_batch is not StreamObserver.on_batch
        self.failures_in_a_row = 0
        self._suspect = False  # the observer took long once
        self._share_s = 0.0  # how long the other tasks of the loop took in their last turn
        self._turn_ends = 0.0
        self._causes: set[tuple[str, str | None]] = set()  # of failures that were logged
        delivery.on_wake = self.ensure_running_locked
        delivery.on_bad_filter = self._filter_failed

    # -- starting and stopping: the lock is held -----------------------------------------------------------------------

    def ensure_running_locked(self) -> None:
        """Make sure that the pump runs, if there is something to hand over or to close."""
        if self._loop is not None and self._loop.is_closed():  # it died with its loop
            self._stopped_locked()
        delivery = self.delivery
        if self.state != "idle":
            return
        delivery.awake = bool(delivery.items) or delivery.ended
        if delivery.awake:
            self.state = "running"
            try:
                self._start_locked()
            except (
                RuntimeError
            ) as error:  # the system gives no thread, or (Python 3.12) the interpreter exits
                # Tried again with the next event, and by `run_here` when the manager closes.
                self._stopped_locked()
                logger.debug("%s waits: %s", delivery.reader, error)

    def _start_locked(self) -> None:
        if self.delivery.threaded:
            name = f"rollcast-observer-{self.delivery.reader}"
            threading.Thread(target=self._run_on_a_thread, name=name, daemon=True).start()
            return
        while True:
            loop = self._host.loop_for(self.own_loop, self._home)
            self._loop = self._home = loop
            if loop is running_loop():
                self._create_task(loop)
                return
            if call_in(loop, self._create_task, loop):
                return
            self._home = None  # it was closed since

    def _run_on_a_thread(self) -> None:
        asyncio.run(self._run())

    def _create_task(self, loop: asyncio.AbstractEventLoop) -> None:
        name = f"rollcast-observer-{self.delivery.reader}"
        # A copy: the pump before this one may still be in its last step, in another loop, and a context is entered once at a time.
        self._task = loop.create_task(self._run(), name=name, context=self._context.copy())
        self._task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        with self._lock:
            if task.cancelled() and self._task is task:  # before its first step
                self._stopped_locked()

    def _stopped_locked(self) -> None:
        """The pump does not run any more. What is left is handed over by the next one."""
        closing = self.state == "closing"
        if self.state != "closed":
            self.state = "idle"
        self._loop = self._home = self._task = None
        self.delivery.leave_locked()
        if closing:  # its aclose was interrupted; it is not called a second time
            self._closed_locked()

    def _closed_locked(self) -> None:
        self.state = "closed"
        self._host.closed(self)
        fulfil(self.finished)

    def give_up_locked(self) -> None:
        """Stop a call that hangs. What waits is dropped, and the observer is closed."""
        self.delivery.discard_locked()
        loop, task = self._loop, self._task
        if loop is None or task is None or not call_in(loop, task.cancel):
            self._closed_locked()

    def after_fork_locked(self) -> None:
        """In a forked child the pump is not there."""
        self.state = "idle"
        self._after = self._loop = self._home = self._task = None

    def run_here(self) -> None:
        """If no pump could be started for an observer that leaves: be its pump, in this thread."""
        with self._lock:
            if self.state != "idle" or not self.delivery.ended:
                return
            self.state = "running"
            self.delivery.awake = True
        asyncio.run(self._run())

    # -- running -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Hand over what waits, until nothing is left and no run is open; close the observer if it has left.

        1. Wait for an earlier pump of the same observer.
        2. Take what waits, and hand it over.
        3. With nothing left: wait for more, or end.
        4. Close the observer, if it has left.
        """
        delivery = self.delivery
        self._loop = asyncio.get_running_loop()
        self._task = delivery.hook_task = asyncio.current_task()
        try:
            if self._after is not None:
                await asyncio.wrap_future(follower(self._after))
                self._after = None
            while not isinstance(found := self._next(), str):
                if isinstance(found, asyncio.Future):
                    await found
                    continue
                try:
                    if delivery.taken_mixed or len(found) >= TURN:
                        await self._in_parts(found)
                    else:  # the common case, without looking at each
                        await self._hand_over(cast("list[StreamEvent]", found))
                except BaseException:
                    with self._lock:
                        delivery.put_back(found[delivery.begun :])
                    raise
                if delivery.threaded and not delivery.ended:
                    await self._rest()
                else:
                    # More may have come meanwhile, perhaps of this observer's own making: others get a turn.
                    began = time.perf_counter()
                    await others_run()
                    little = len(found) < FEW and delivery.bytes < delivery.limit // 8
                    if little and time.perf_counter() - began < SHORT_S:
                        await others_run()
            if found == "closing":
                await self._attempt(None, "aclose")
        except BaseException as error:
            with self._lock:
                given_up = (
                    delivery.discarding and delivery.ended and isinstance(error, asyncio.CancelledError)
                )
                if given_up and self.state != "closing":
                    self.state = "closing"
                else:
                    self._stopped_locked()  # cancelled with its loop: what is left goes on in the next one
                    if not given_up:
                        raise
                    return
            found = "closing"
            uncancel()
            await self._attempt(None, "aclose")
        if found == "closing":
            with self._lock:
                self._closed_locked()

    def _next(self) -> list[Item] | asyncio.Future[None] | Literal["idle", "closing"]:
        """What waits; or a future that is done when something does; or the state in which the pump ends."""
        delivery, lock = self.delivery, self._lock
        lock.acquire()  # half of what `with` costs
        try:
            if items := delivery.take_locked():
                return items
            if delivery.ended:
                self.state = "closing"
                return "closing"
            if not self._host.expects_more():
                self.state, self._loop, self._task = "idle", None, None
                delivery.leave_locked()
                return "idle"
            return delivery.sleep_locked()
        finally:
            lock.release()

    async def _rest(self) -> None:
        """Let a moment's events gather, unless somebody waits for this observer."""
        with self._lock:
            self.delivery.handed_over_locked()
            urgent = self.delivery.urgent
        if not urgent:
            await asyncio.sleep(THREAD_TICK_S)

    async def _in_parts(self, items: list[Item]) -> None:
        """At most `TURN` events at a time, and each hook in its place."""
        self._turn_ends = time.perf_counter() + self._share_s
        if not self.delivery.taken_mixed:
            for start in range(0, len(items), TURN):
                await self._hand_over(cast("list[StreamEvent]", items[start : start + TURN]))
            return
        events: list[StreamEvent] = []
        for item in items:
            if type(item) is not Control:
                events.append(event_of(item))
                if len(events) < TURN:
                    continue
            batch, events = events, []
            if batch:
                await self._hand_over(batch)
            if type(item) is Control:
                self.delivery.begun += 1
                await self._obey(item)
        if events:
            await self._hand_over(events)

    async def _hand_over(self, events: list[StreamEvent]) -> None:
        delivery, observer = self.delivery, self.observer
        beat = _Heartbeat() if self._suspect else None
        began = time.perf_counter()
        if self._batched:
            delivery.begun += len(events)
            if not delivery.discarding:
                await self._attempt(events[0], "on_batch", events)
        else:
            for begun, event in enumerate(events, delivery.begun + 1):
                delivery.begun = begun
                if delivery.discarding:
                    continue
                try:
                    await observer.on_event(event)
                except BaseException as error:  # isolation: a watcher's failure is its own
                    if self._is_not_its_own(error):
                        raise
                    self._failed(error, event)
                else:
                    self.failures_in_a_row = 0
        delivery.delivered += len(events)
        ended = time.perf_counter()
        if ended - began > BLOCKING_S and not delivery.threaded:
            self._was_slow(beat)
        if len(events) == TURN and ended >= self._turn_ends:
            await self._let_others_run()

    async def _let_others_run(self) -> None:
        """One turn of the loop. If ten thousand chains speak in it, this observer gets as much time next."""
        began = time.perf_counter()
        await others_run()
        now = time.perf_counter()
        self._share_s = min(now - began, TURN_S)
        self._turn_ends = now + self._share_s

    async def _attempt(self, event: StreamEvent | None, method: str, *arguments: Any) -> None:
        """Call a method of the observer; its failure is its own."""
        try:
            await getattr(self.observer, method)(*arguments)
        except BaseException as error:  # isolation, as above
            if self._is_not_its_own(error):
                raise
            self._failed(error, event)
        else:
            self.failures_in_a_row = 0

    async def _obey(self, control: Control) -> None:
        match control.kind:
            case "barrier":
                if control.done is not None:
                    fulfil(control.done)
            case "chain_closed":
                await self._attempt(None, "on_chain_closed", control.run_id, control.chain_id)
            case "run_opened":
                await self._attempt(None, "on_run_opened", control.run_id)
            case "run_closed":
                await self._attempt(None, "on_run_closed", control.run_id)

    # -- failures ------------------------------------------------------------------------------------------------------

    def _is_not_its_own(self, error: BaseException) -> bool:
        """Whether the observer did not fail: its task was cancelled or destroyed, or somebody pressed Ctrl-C.

        `sys.exit()` in an observer is a failure, as it is in a tool: a watcher does not end the run.
        """
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            return task is not None and task.cancelling() > 0
        if isinstance(error, GeneratorExit):  # thrown in from outside if this task is not the one that runs
            return running_loop() is not self._loop or asyncio.current_task() is not self._task
        return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()

    def _failed(self, error: BaseException, event: StreamEvent | None) -> None:
        delivery = self.delivery
        delivery.failed += 1
        self.failures_in_a_row += 1
        self._log(error, event.event_type if event else "a hook")
        if self.failures_in_a_row == FAILURES_TO_DETACH and not delivery.ended:
            logger.error("%s failed %d times in a row and is detached", delivery.reader, FAILURES_TO_DETACH)
            delivery.discarding = True
        self._host.failed(self, error, event)

    def _filter_failed(self, error: BaseException) -> None:
        self._log(error, "its filter")
        self._host.failed(self, error, None)

    def _log(self, error: BaseException, what: str) -> None:
        """The traceback once for each cause, however often it fails."""
        cause = (type(error).__name__, place_of(error))
        if cause in self._causes:
            logger.debug("%s failed on %s again: %s", self.delivery.reader, what, text_and_place(error))
        else:
            self._causes.add(cause)
            logger.error(
                "%s failed on %s: %s", self.delivery.reader, what, text_and_place(error), exc_info=error
            )

    def _was_slow(self, beat: _Heartbeat | None) -> None:
        """It took long: did it await, or hold the event loop? The second time we know."""
        self._suspect = True
        if beat is not None and not beat.loop_ran and self.delivery.first_time("blocking"):
            logger.warning(
                "%s keeps the event loop for %.2f s at a time, and every chain with it; make it await, or set "
                "`threaded = True` on its class",
                self.delivery.reader,
                time.perf_counter() - beat.began,
            )


class _Heartbeat:
    """Whether the event loop got a turn since."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.loop_ran = False
        asyncio.get_running_loop().call_soon(self._beat)

    def _beat(self) -> None:
        self.loop_ran = True
