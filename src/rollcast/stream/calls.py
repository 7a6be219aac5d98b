"""Calls one observer, and handles what it raises.

An exception from an observer is logged, counted and reported, and affects nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from rollcast.aio import fulfil, others_run, running_loop
from rollcast.failures import by_signal, class_name_of, place_of, text_and_place
from rollcast.records import StreamEvent
from rollcast.stream.delivery import Delivery
from rollcast.stream.observer import (
    EncodingObserver,
    StreamObserver,
    overrides_on_batch,
    overrides_on_chain_closed,
)
from rollcast.stream.own_filter import OwnFilter
from rollcast.stream.queue import Control, Item
from rollcast.stream.waiting import Encodable, Event, Passage, Relayed, encodable_of, event_of

__all__ = ["FAILURES_TO_DETACH", "Calls"]

logger = logging.getLogger("rollcast.stream")

FAILURES_TO_DETACH = 5
TURN = 256  # how many events to hand over before the loop's other tasks get a turn; more if their last turn was long:
TURN_ALONE = 2048  # and on a thread of the observer's own, where nothing else gets a turn, if it only encodes what it gets
TURN_S = (
    0.05  # handing over goes on for as long as that turn took, but for at most this many seconds of CPU time,
)
LOADED = 4  # which on a busy machine may take up to so many times as long by the clock
ALONE_S = 0.005  # it goes on for at least this long on a thread of the observer's own, where each turn may hand the interpreter over
BLOCKING_S = 0.1  # a warning names an observer that blocks the event loop for longer, in seconds of CPU time
WAITING_S = 1.0  # or by the clock, where a thread that does little may take a while on a busy machine;
WAITS = 5  # and one that is slow by the clock this many times in a row


class Calls:
    """Calls one observer.

    Args:
        observer: the observer to call.
        delivery: the queue that its events come from; this updates its counts.
        report: called with the exception that the observer raised, and the event that it was given; None for a hook.

    Attributes:
        task: the task that calls the observer now.
        failures_in_a_row: how many calls have raised since the last one that did not.
    """

    def __init__(
        self,
        observer: StreamObserver,
        delivery: Delivery,
        report: Callable[[BaseException, StreamEvent | None], object],
    ) -> None:
        self.observer = observer
        self.delivery = delivery
        self.task: asyncio.Task[None] | None = None
        self.failures_in_a_row = 0
        self._report = report
        self._batched = overrides_on_batch(observer)
        # Whether it may not matter to the observer when a chain has closed, nor which events came before.
        self._may_ignore_closings = self._batched and not overrides_on_chain_closed(observer)
        self._suspect = False  # the observer took long once
        self._waits = 0  # how many calls in a row took long since
        self._least_s = ALONE_S if delivery.threaded else 0.0
        self._most = TURN_ALONE if delivery.threaded and delivery.encodes else TURN
        self._share_s = self._least_s  # how long the loop's other tasks took in their last turn
        self._turn_ends = (0.0, 0.0)  # in CPU time of the thread, and by the clock
        self._causes: set[tuple[str, str | None]] = set()  # of failures that were logged

    async def deliver(self, items: list[Item]) -> None:
        """Hand over the items that were last taken from the delivery."""
        if self.delivery.taken_mixed or len(items) >= self._most:
            await self._in_parts(items)
        else:  # the common case, which need not look at each item
            await self._hand_over(cast("list[Encodable]", items))

    async def _in_parts(self, items: list[Item]) -> None:
        """Hand over a limited number of events at a time, and call each hook in its place."""
        self._begin_turn()
        if not self.delivery.taken_mixed:
            for start in range(0, len(items), self._most):
                await self._hand_over(cast("list[Encodable]", items[start : start + self._most]))
            return
        events: list[Encodable] = []
        taken: Callable[[Event], Encodable] = encodable_of if self.delivery.encodes else event_of
        passed_over = 0  # hooks that would do nothing: the events before and after them are one batch
        has_hook: bool | None = None  # None: not known
        for item in items:
            if type(item) is not Control and type(item) is not Passage:
                events.append(taken(item))
                if len(events) < self._most:
                    continue
            elif type(item) is Control and item.kind == "chain_closed" and self._may_ignore_closings:
                if has_hook is None:  # to find that out takes longer than a call
                    has_hook = overrides_on_chain_closed(self.observer)
                if not has_hook:
                    passed_over += 1
                    continue
            has_hook = None  # whoever is called may change that
            batch, events = events, []
            self.delivery.begun += passed_over
            passed_over = 0
            if batch:
                await self._hand_over(batch)
            if type(item) is Control:
                self.delivery.begun += 1
                await self._obey(item)
            elif type(item) is Passage:
                await self._hand_over(item.events, item)
        self.delivery.begun += passed_over
        if events:
            await self._hand_over(events)

    async def _hand_over(self, events: Sequence[Relayed], passage: Passage | None = None) -> None:
        """Give the observer these events; only one that takes `on_encodable` is given an `EncodableChunk`.

        Args:
            events: the events.
            passage: the one item of the queue that they are; None: each is an item.
        """
        delivery, observer, task = self.delivery, self.observer, self.task
        beat = _Heartbeat() if self._suspect else None
        count, left_out, own = len(events), 0, type(delivery.filter) is OwnFilter
        began = time.perf_counter()
        if self._batched:
            delivery.begun += count if passage is None else 1
            if own:
                events = [event for event in map(event_of, events) if delivery.passes(event)]
                left_out = count - len(events)
            if events and not delivery.discarding:
                whole = None if own else passage  # its filter was changed while this waited
                await self._attempt(events[0], self._call_with_batch, events, whole)
        else:
            for begun, event in enumerate(cast("Sequence[StreamEvent]", events), delivery.begun + 1):
                delivery.begun = begun
                if delivery.discarding:
                    continue
                if own and not delivery.passes(event):
                    left_out += 1
                    continue
                try:
                    await observer.on_event(event)
                except BaseException as error:  # isolation: a watcher's failure affects nothing else
                    if _is_not_its_own(error, task):
                        raise
                    self._failed(error, event)
                else:
                    self.failures_in_a_row = 0
        delivery.delivered += count - left_out
        ended = time.perf_counter()
        if ended - began > BLOCKING_S and not delivery.threaded:
            self._was_slow(beat)
        elif self._suspect:
            self._waits = 0
        may_be_more = count == self._most or passage is not None
        if may_be_more and (time.thread_time() >= self._turn_ends[0] or ended >= self._turn_ends[1]):
            await self._let_others_run()

    async def _let_others_run(self) -> None:
        """Give the loop's other tasks one turn. If it takes long, since many chains run, this observer gets as long next."""
        began = time.thread_time()
        await others_run()
        self._share_s = max(self._least_s, min(time.thread_time() - began, TURN_S))
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._turn_ends = (time.thread_time() + self._share_s, time.perf_counter() + LOADED * self._share_s)

    async def _call_with_batch(self, events: Sequence[Any], passage: Passage | None) -> None:
        if not self.delivery.encodes:
            await self.observer.on_batch(cast("list[StreamEvent]", events))
            return
        observer = cast("EncodingObserver", self.observer)
        if observer.takes_encodable():
            if passage is None:
                await observer.on_encodable(events)
            else:
                await observer.on_passage(passage.events, passage.lines)
        else:  # its `on_batch` was replaced meanwhile
            await observer.on_batch([*map(event_of, events)])

    async def call_hook(self, method: str, *arguments: Any) -> None:
        """Call a hook of the observer; if it raises, handle that as the observer's own failure."""
        await self._attempt(None, self._call, method, *arguments)

    async def _call(self, method: str, *arguments: Any) -> None:
        await getattr(self.observer, method)(*arguments)

    async def _attempt(
        self, event: Relayed | None, call: Callable[..., Coroutine[Any, Any, None]], *arguments: Any
    ) -> None:
        task = self.task
        try:
            await call(*arguments)
        except BaseException as error:  # isolation, as above
            if _is_not_its_own(error, task):
                raise
            self._failed(error, None if event is None else event_of(event))
        else:
            self.failures_in_a_row = 0

    async def _obey(self, control: Control) -> None:
        match control.kind:
            case "barrier":
                if control.done is not None:
                    fulfil(control.done)
            case "chain_closed":
                await self.call_hook("on_chain_closed", control.run_id, control.chain_id)
            case "run_opened":
                await self.call_hook("on_run_opened", control.run_id)
            case "run_closed":
                await self.call_hook("on_run_closed", control.run_id)

    def _failed(self, error: BaseException, event: StreamEvent | None) -> None:
        delivery = self.delivery
        delivery.failed += 1
        self.failures_in_a_row += 1
        self._log(error, event.event_type if event else "a hook")
        if self.failures_in_a_row == FAILURES_TO_DETACH and not delivery.ended:
            self._say(
                logging.ERROR,
                "%s failed %d times in a row and is detached",
                delivery.reader,
                FAILURES_TO_DETACH,
            )
            delivery.discarding = True
        self._report(error, event)

    def filter_failed(self, error: BaseException) -> None:
        """Log and report that the observer's filter raised."""
        self._log(error, "its filter")
        self._report(error, None)

    def _log(self, error: BaseException, what: str) -> None:
        """Log the traceback once for each cause, however often it fails."""
        cause = (class_name_of(error), place_of(error))
        if cause in self._causes:
            self._say(
                logging.DEBUG, "%s failed on %s again: %s", self.delivery.reader, what, text_and_place(error)
            )
        else:
            self._causes.add(cause)
            self._say(
                logging.ERROR,
                "%s failed on %s: %s",
                self.delivery.reader,
                what,
                text_and_place(error),
                exc_info=error,
            )

    def _say(self, level: int, text: str, *arguments: object, exc_info: BaseException | None = None) -> None:
        """Log this. If that raises, as a program's own log handler may, nobody else is to notice."""
        try:
            logger.log(level, text, *arguments, exc_info=exc_info)
        except BaseException as raised:
            if by_signal(raised):
                raise

    def _was_slow(self, beat: _Heartbeat | None) -> None:
        """Note that a call took long. Whether it blocked the loop is measured from the next call on, and warned of once."""
        self._suspect = True
        if beat is None or beat.loop_ran:
            self._waits = 0
            return
        self._waits += 1
        if (beat.blocked or self._waits >= WAITS) and self.delivery.first_time("blocking"):
            logger.warning(
                "%s keeps the event loop for %.2f s at a time, and every chain with it; make it await, or set "
                "`threaded = True` on its class",
                self.delivery.reader,
                time.perf_counter() - beat.began,
            )


def _is_not_its_own(error: BaseException, task: asyncio.Task[None] | None) -> bool:
    """Whether the exception is not the observer's failure: the task was cancelled or destroyed, or a signal came.

    What the observer itself raises is a failure, even `sys.exit()` and `raise KeyboardInterrupt`: a watcher cannot end the
    program. An exception that a signal raises inside its code, such as a real Ctrl-C, can.
    """
    kind = type(error)  # not `isinstance`: the exception may say that it is of another class, or raise
    if issubclass(kind, asyncio.CancelledError):
        return task is not None and task.cancelling() > 0
    if issubclass(kind, GeneratorExit):  # it came from outside if this task is not the running one
        return running_loop() is None or asyncio.current_task() is not task
    return issubclass(kind, (KeyboardInterrupt, SystemExit)) and by_signal(error)


class _Heartbeat:
    """Measures whether the event loop got a turn since this was made, and whether the code that ran is to blame if not."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self._worked = time.thread_time()
        self.loop_ran = False
        asyncio.get_running_loop().call_soon(self._beat)

    @property
    def blocked(self) -> bool:
        """Whether the code kept the loop for long; a thread that was merely not scheduled did not."""
        worked_s = time.thread_time() - self._worked
        return worked_s > BLOCKING_S or time.perf_counter() - self.began > WAITING_S

    def _beat(self) -> None:
        self.loop_ran = True
