"""One observer's queue, and the pump that empties it.

    emit ──put──▶ queue ──take──▶ pump ──▶ observer

The queue and its numbers are guarded by the manager's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, cast

import msgspec

from rollcast.errors import InputError
from rollcast.failures import place_of, text_and_place
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream.observer import StreamObserver
from rollcast.stream.queue import Control, EventQueue, Item

if TYPE_CHECKING:
    from rollcast.stream.manager import StreamingManager

__all__ = [
    "Delivery",
    "ObserverStatistics",
    "fulfil",
    "proxy_of",
    "refuse_to_wait_for_oneself",
    "running_loop",
    "wake_up",
]

logger = logging.getLogger("rollcast.stream")

FAILURES_TO_DETACH = 5
TURN = 256  # events handed over before other tasks of the loop get a turn, or more where those take long:
TURN_S = 0.05  # as many as are handed over while these would run once, and for no longer than this
THREAD_TICK_S = 0.01  # a threaded observer wakes at most this often: fewer fights for the interpreter lock
BLOCKING_S = 0.1  # an observer that keeps the event loop for longer is named in a warning


class ObserverStatistics(msgspec.Struct, frozen=True):
    """How one observer is doing. Counts are events since it was added; `lag_s` is the age of its oldest one, in seconds."""

    name: str
    mode: str
    delivered: int
    queued: int
    queued_bytes: int
    merged: int
    dropped: int
    failed: int
    lag_s: float


class Delivery(EventQueue):
    """The queue between a manager and one of its observers.

    Methods that say so need the manager's lock held.
    """

    def __init__(
        self,
        manager: StreamingManager,
        observer: StreamObserver,
        filter: EventFilter,
        after: Future[None] | None,
    ) -> None:
        super().__init__(
            observer.name, manager.queue_limit, lossless=observer.mode == "lossless", source=manager.source
        )
        self.manager = manager
        self.observer = observer
        self.filter = filter
        self.born = time.perf_counter()
        self.closing = False
        self.abandoned = False  # detached after failures: what waits is not delivered
        self.finished: Future[None] = Future()
        self.pump: asyncio.Task[None] | None = None  # the last, ended or not: the task that calls the hooks
        self.delivered = self.failed = 0
        self._after = after  # an earlier delivery to the same observer that still runs
        self._inflight: tuple[int, int, float | None] = (
            0,
            0,
            None,
        )  # events, bytes, time stamp of the oldest
        self._waiter: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the pump that runs
        self._home = running_loop()
        self._context = contextvars.copy_context()
        self._failures_in_a_row = 0
        self._begun = 0  # items of those that are being handed over
        self._task: asyncio.Task[None] | None = None  # the pump that runs
        self._suspect = False  # it took long once
        self._share_s = 0.0  # how long the other tasks of the loop took in their last turn
        self._turn_ends = 0.0
        self._reported = False
        self._batched = type(observer).on_batch is not StreamObserver.on_batch
        self._warned: set[str] = set()
        self._causes: set[tuple[str, str | None]] = set()  # of failures that were logged

    def wants(self, event_type: StreamEventType, chain_id: str, group_id: str | None, run_id: str) -> bool:
        """Whether the observer's filter lets such an event pass; not if the filter fails, whose code may be the user's."""
        try:
            return bool(self.filter.wants(event_type, chain_id, group_id, run_id))
        except Exception as error:  # noqa: BLE001  (a subclass of somebody's may raise anything)
            self._note_failure(error, "its filter", None)
            return False

    @property
    def progress(self) -> tuple[int, int]:
        """Changes whenever the observer takes something."""
        return self.delivered, self._begun

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being handed over. The lock is held."""
        return not self.items and not self.awake

    def became_full(self) -> None:
        """The rollout waits for this one from here on. The lock is held."""
        self.manager.congested.add(self)

    # -- emptying: the lock is held ----------------------------------------------------------------------------------

    def _take(self) -> list[Item]:
        size = self.bytes
        items = self.take(self.manager.snapshots(self.filter))
        self._inflight = (
            len(items),
            size,
            next((i.timestamp for i in items if isinstance(i, StreamEvent)), None),
        )
        return items

    def _taken(self) -> None:
        """What `_take` gave was handed over."""
        self._inflight = (0, 0, None)
        if self.full:
            self.full = False
            self.manager.congested.discard(self)
            self.manager.wake_producers()

    def statistics(self) -> ObserverStatistics:
        """The numbers."""
        waiting = self.waiting
        oldest = self._inflight[2] or (waiting[0].timestamp if waiting else None)
        return ObserverStatistics(
            name=self.observer.name,
            mode=self.observer.mode,
            delivered=self.delivered,
            queued=len(waiting) + self._inflight[0],
            queued_bytes=self.bytes + self._inflight[1],
            merged=self.merged,
            dropped=self.dropped,
            failed=self.failed,
            lag_s=max(0.0, time.time() - oldest) if oldest is not None else 0.0,
        )

    # -- the pump ----------------------------------------------------------------------------------------------------

    def put_free(self, items: list[Item]) -> None:
        """See `EventQueue`. A pump whose loop ended before it could begin is replaced here, once a run at least."""
        if self.awake and self._loop is not None and self._loop.is_closed():
            self._sleep()
        super().put_free(items)

    def rouse(self) -> None:
        """See to it that what is left is done. The lock is held."""
        if self.awake and self._loop is not None and self._loop.is_closed():
            self._sleep()
        if not self.awake:
            self.wake()

    def _sleep(self) -> None:
        """There is no pump. The lock is held."""
        self._taken()
        self.awake, self._loop, self._waiter, self._home, self._task = False, None, None, None, None

    def give_up(self) -> None:
        """End a call that hangs; what waits is dropped, and the observer closed. The lock is held."""
        self.abandoned = True
        self.dropped += len(self.waiting)
        self.items, self.bytes = [], 0
        loop, task = self._loop, self._task
        try:
            if loop is not None and task is not None:
                loop.call_soon_threadsafe(task.cancel)
                return
        except RuntimeError:  # its loop was closed, and the call with it
            pass
        self._finish()

    def wake(self) -> None:
        """See to it that the pump looks at the queue. The lock is held."""
        self.awake = True
        loop = self._loop
        if loop is None:
            self._start()
            return
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        if loop is running_loop():
            if not waiter.done():
                waiter.set_result(None)
            return
        try:
            loop.call_soon_threadsafe(_resolve, waiter)
        except RuntimeError:  # its loop was closed under it
            self._loop = None
            self._start()

    def _start(self) -> None:
        try:
            self._start_pump()
        except RuntimeError as error:  # the system gives no thread, or (Python 3.12) the interpreter exits
            self.awake = False  # tried again with the next event, and by `empty_here` when the manager closes
            logger.debug("%s waits: %s", self.observer.name, error)

    def _start_pump(self) -> None:
        if self.observer.threaded:
            name = f"rollcast-observer-{self.observer.name}"
            threading.Thread(target=self._run_on_a_thread, name=name, daemon=True).start()
            return
        loop = next((x for x in (self.observer.loop, self._home) if x is not None and x.is_running()), None)
        loop = loop or running_loop()
        if loop is None:
            loop = self.manager.loop_of_a_run() or self.manager.background_loop()
        self._loop = self._home = loop
        if loop is running_loop():
            self._create_pump(loop)
            return
        try:
            loop.call_soon_threadsafe(self._create_pump, loop)
        except RuntimeError:  # closed between the check and the call
            self._home = None
            self._start_pump()

    def _run_on_a_thread(self) -> None:
        asyncio.run(self._pump())

    def empty_here(self) -> None:
        """Where no pump could be started for an observer that leaves: be its pump, in this thread."""
        with self.manager.lock:
            if self.awake or self._loop is not None or not self.closing or self.finished.done():
                return
            self.awake = True
        asyncio.run(self._pump())

    def after_fork(self) -> None:
        """In a forked child: its pump is not here, and what waits is the parent's to deliver. The lock is held."""
        self.take(())
        self._inflight = (0, 0, None)
        self.full = self.awake = False
        self._after = self._waiter = self._loop = self._home = None

    def _create_pump(self, loop: asyncio.AbstractEventLoop) -> None:
        task = loop.create_task(
            self._pump(), name=f"rollcast-observer-{self.observer.name}", context=self._context
        )
        self._task = task
        self.manager.pumps.add(task)
        task.add_done_callback(self._pump_ended)

    def _pump_ended(self, task: asyncio.Task[None]) -> None:
        self.manager.pumps.discard(task)
        with self.manager.lock:
            if task.cancelled() and self._task is task:  # before its first step
                self._sleep()

    async def _pump(self) -> None:
        """Hand over what waits, until nothing is left and no run is open."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.pump = self._task
        try:
            if self._after is not None:
                await asyncio.wrap_future(proxy_of(self._after))
            at_once = False
            while True:
                if (
                    at_once
                ):  # more came during the delivery, maybe of this observer's own making: others get a turn
                    await asyncio.sleep(0)
                with self.manager.lock:
                    self._taken()
                    mixed, items = self.mixed, self._take()
                    if not items and (self.closing or not self.manager.runs):
                        self.awake, self._loop, self._task = False, None, None
                        break
                    if not items:
                        self.awake = False
                        self._waiter = waiter = self._loop.create_future()
                at_once = bool(items)
                if not items:
                    await waiter
                    continue
                await self._deliver(items, mixed=mixed)
                if self.observer.threaded and not self.closing:
                    await self._rest()
        except BaseException as error:
            with self.manager.lock:  # cancelled with its loop: what is left goes on in the next one
                self._sleep()
            if not (self.closing and self.abandoned and isinstance(error, asyncio.CancelledError)):
                raise
            _uncancel()  # the manager gave it up
        if self.closing and not self.finished.done():
            await self._close_observer()

    async def _rest(self) -> None:
        """Let a moment's events gather, unless somebody waits for this observer."""
        with self.manager.lock:
            self._taken()
            urgent = any(isinstance(i, Control) and i.kind == "barrier" for i in self.items)
        if not urgent:
            await asyncio.sleep(THREAD_TICK_S)

    async def _deliver(self, items: list[Item], *, mixed: bool) -> None:
        events: list[StreamEvent] = []
        self._begun = 0
        self._turn_ends = time.perf_counter() + self._share_s
        try:
            if not mixed and len(items) < TURN:  # the common case, without looking at each
                await self._hand_over(cast("list[StreamEvent]", items))
                return
            for item in items:
                if isinstance(item, StreamEvent):
                    events.append(item)
                    if len(events) < TURN:
                        continue
                batch, events = events, []
                await self._hand_over(batch)
                if isinstance(item, Control):
                    self._begun += 1
                    await self._obey(item)
            await self._hand_over(events)
        except BaseException:
            with self.manager.lock:
                self.put_back(items[self._begun :])
            raise

    async def _hand_over(self, events: list[StreamEvent]) -> None:
        if not events:
            return
        observer = self.observer
        began = time.perf_counter()
        beat = _Heartbeat() if self._suspect else None
        if self._batched:
            self._begun += len(events)
            if not self.abandoned:
                await self._attempt(events[0], observer.on_batch, events)
        else:
            await self._one_by_one(events)
        self.delivered += len(events)
        if time.perf_counter() - began > BLOCKING_S and not observer.threaded:
            self._was_slow(beat)
        if len(events) == TURN and time.perf_counter() >= self._turn_ends:
            await self._let_others_run()

    async def _let_others_run(self) -> None:
        """One turn of the loop. Where ten thousand chains speak in it, as much time is this observer's next."""
        began = time.perf_counter()
        await asyncio.sleep(0)
        now = time.perf_counter()
        self._share_s = min(now - began, TURN_S)
        self._turn_ends = now + self._share_s

    async def _one_by_one(self, events: list[StreamEvent]) -> None:
        on_event = self.observer.on_event
        for begun, event in enumerate(events, self._begun + 1):
            self._begun = begun
            if self.abandoned:
                continue
            try:
                await on_event(event)
            except BaseException as error:  # isolation: a watcher's failure is its own
                if _stops_the_pump(error):
                    raise
                self._failed(error, event)
            else:
                self._failures_in_a_row = 0

    def _was_slow(self, beat: _Heartbeat | None) -> None:
        """It took long: did it await, or hold the event loop? The second time we know."""
        self._suspect = True
        if beat is not None and not beat.loop_ran:
            self.warn_once(
                "blocking",
                f"{self.observer.name} keeps the event loop for {time.perf_counter() - beat.began:.2f} s at a time, "
                "and every chain with it; make it await, or set `threaded = True` on its class",
            )

    async def _attempt(
        self, event: StreamEvent | None, method: Callable[..., Coroutine[Any, Any, None]], *arguments: Any
    ) -> None:
        """Call a method of the observer; its failure is its own."""
        try:
            await method(*arguments)
        except BaseException as error:  # isolation, as above
            if _stops_the_pump(error):
                raise
            self._failed(error, event)
        else:
            self._failures_in_a_row = 0

    async def _obey(self, control: Control) -> None:
        observer = self.observer
        match control.kind:
            case "barrier":
                if control.done is not None:
                    fulfil(control.done)
            case "chain_closed":
                await self._attempt(None, observer.on_chain_closed, control.run_id, control.chain_id)
            case "run_opened":
                await self._attempt(None, observer.on_run_opened, control.run_id)
            case "run_closed":
                await self._attempt(None, observer.on_run_closed, control.run_id)

    async def _close_observer(self) -> None:
        try:
            await self._attempt(None, self.observer.aclose)
        finally:
            with self.manager.lock:
                self._finish()

    def _finish(self) -> None:
        """It is closed. The lock is held."""
        self.manager.closing.discard(self)
        fulfil(self.finished)

    def _failed(self, error: BaseException, event: StreamEvent | None) -> None:
        self.failed += 1
        self._failures_in_a_row += 1
        self._note_failure(error, event.event_type if event else "a hook", event.run_id if event else "")
        if self._failures_in_a_row == FAILURES_TO_DETACH:
            logger.error(
                "%s failed %d times in a row and is detached", self.observer.name, FAILURES_TO_DETACH
            )
            self.abandoned = True
            self.manager.remove_observer(self.observer)

    def _note_failure(self, error: BaseException, what: str, run_id: str | None) -> None:
        """Log it, once for each cause, and report the first to the other observers."""
        name = self.observer.name
        cause = (type(error).__name__, place_of(error))
        if cause in self._causes:
            logger.debug("%s failed on %s again: %s", name, what, text_and_place(error))
        else:  # the traceback once, however often it fails
            self._causes.add(cause)
            logger.error("%s failed on %s: %s", name, what, text_and_place(error), exc_info=error)
        if not self._reported:
            self._reported = True
            self.manager.report(self.observer, error, run_id=run_id)

    def warn_once(self, topic: str, message: str) -> None:
        """Log a warning, once a topic."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning("%s", message)


class _Heartbeat:
    """Whether the event loop got a turn since."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.loop_ran = False
        asyncio.get_running_loop().call_soon(self._beat)

    def _beat(self) -> None:
        self.loop_ran = True


def refuse_to_wait_for_oneself(what: str, deliveries: Iterable[Delivery]) -> None:
    """Say so at once where an observer's hook is about to wait for this very hook to end.

    Args:
        what: would wait.
        deliveries: what it would wait for.

    Raises:
        InputError: this task is the pump of one of them. A task that a hook started, which may outlive it, is none.
    """
    task = asyncio.current_task() if running_loop() is not None else None
    for delivery in deliveries:
        if task is not None and delivery.pump is task:
            raise InputError(
                f"{what} was called in a hook of {delivery.observer.name}, which it would wait for; call it elsewhere, or in "
                "a task that no hook awaits: asyncio.create_task(…)"
            )


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Of this thread."""
    return asyncio._get_running_loop()  # noqa: SLF001  (documented; None instead of an exception)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _stops_the_pump(error: BaseException) -> bool:
    """Whether this is no failure of the observer: its task is cancelled or closed, or somebody pressed Ctrl-C.

    `sys.exit()` in an observer is a failure, as it is in a tool: who watches does not end the run.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | GeneratorExit)


def wake_up(waiter: asyncio.Future[None]) -> None:
    """Have whoever awaits it go on; from any thread, and at once where it is the waiter's own."""
    loop = waiter.get_loop()
    if loop is running_loop():
        _resolve(waiter)
        return
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
        loop.call_soon_threadsafe(_resolve, waiter)


def _uncancel() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def proxy_of(promise: Future[None]) -> Future[None]:
    """One that is kept with it and can be cancelled without harm to it."""
    proxy: Future[None] = Future()
    promise.add_done_callback(lambda _: fulfil(proxy))
    return proxy


def fulfil(promise: Future[None]) -> None:
    """Mark it done, where nobody did so or cancelled it before."""
    with contextlib.suppress(InvalidStateError):
        promise.set_result(None)
