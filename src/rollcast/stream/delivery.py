"""One observer's bounded queue, and the pump that empties it.

    emit ──put──▶ queue ──take──▶ pump ──▶ observer

`put` never waits. Where the observer falls behind, `compact` merges neighbouring chunks; where even that exceeds the
limit, the queue is given up: a count by type stands for it until the observer comes back, and then it gets one `gap` a
run and a snapshot of every open chain. The queue and its numbers are guarded by the manager's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

import msgspec

from rollcast.records import StreamEvent, StreamEventType
from rollcast.stream.observer import StreamObserver

if TYPE_CHECKING:
    from rollcast.stream.manager import StreamingManager

__all__ = ["Control", "Delivery", "ObserverStatistics", "chunk_size", "compact", "event_size", "fulfil"]

logger = logging.getLogger("rollcast.stream")

CHUNK = StreamEventType.LLM_GENERATION_CHUNK
GENERATION_END = StreamEventType.LLM_GENERATION_END

FAILURES_TO_DETACH = 5
COMPACT_AT = 1024  # queued events; from here on a slow observer's chunks merge
TURN = 256  # events handed over before other tasks of the loop get a turn
THREAD_TICK_S = 0.01  # a threaded observer wakes at most this often: fewer fights for the interpreter lock
BLOCKING_S = 0.1  # an observer that keeps the event loop for longer is named in a warning
_SEQUENCES = (list, tuple)


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


class Control(msgspec.Struct, frozen=True):
    """Something in the queue that is no event: a hook to call, or a promise to keep when everything before it is done."""

    kind: Literal["run_opened", "run_closed", "chain_closed", "barrier"]
    run_id: str = ""
    chain_id: str = ""
    done: Future[None] | None = None


Item = StreamEvent | Control


def event_size(event: StreamEvent) -> int:
    """Bytes of memory that the event keeps alive, near enough to bound a queue by."""
    data = event.data
    if event.event_type is CHUNK:
        return chunk_size(data.get("content", ""), data.get("token_ids"))
    return 480 + _weight(data, 8)


def chunk_size(content: str, token_ids: list[int] | None) -> int:
    """`event_size` of a chunk."""
    return 480 + sys.getsizeof(content) + (200 + 64 * len(token_ids) if token_ids else 0)


def _weight(value: Any, depth: int) -> int:
    size = sys.getsizeof(value)
    if depth == 0 or isinstance(value, str):
        return size
    if isinstance(value, dict):
        for name, item in value.items():
            size += sys.getsizeof(name) + _weight(item, depth - 1)
    elif isinstance(value, _SEQUENCES):
        for item in value:
            size += _weight(item, depth - 1)
    return size


def merged_chunks(events: list[StreamEvent]) -> StreamEvent:
    """Neighbouring chunks of one generation as one, at the place of the last."""
    first, last = events[0], events[-1]
    data: dict[str, Any] = {
        "content": "".join([e.data["content"] for e in events]),
        "offset": first.data["offset"],
    }
    for name in ("token_ids", "logprobs"):
        if all(name in e.data for e in events):
            data[name] = [value for e in events for value in e.data[name]]
    data["from_seq"] = first.data.get("from_seq", first.seq)
    return msgspec.structs.replace(last, data=data)


def compact(queue: list[Item]) -> tuple[list[Item], int, int]:
    """The queue with neighbouring chunks of each generation merged, and how many events and bytes that saved.

    Chunks are neighbours where no other event of their chain stands between them; the merged one stands at the last
    one's place, so `seq` still rises.
    """
    runs_of_chunks: dict[tuple[str, str], list[int]] = {}
    groups: list[list[int]] = []
    for i, item in enumerate(queue):
        if isinstance(item, Control):
            if item.kind == "chain_closed":
                runs_of_chunks.pop((item.run_id, item.chain_id), None)
            continue
        key = (item.run_id, item.chain_id)
        if item.event_type is not CHUNK:
            runs_of_chunks.pop(key, None)
        elif key in runs_of_chunks:
            runs_of_chunks[key].append(i)
        else:
            runs_of_chunks[key] = [i]
            groups.append(runs_of_chunks[key])
    merged: dict[int, StreamEvent] = {}
    gone: set[int] = set()
    freed = 0
    for group in groups:
        if len(group) > 1:
            chunks: list[StreamEvent] = [queue[i] for i in group]  # type: ignore[misc]  # chunks all
            merged[group[-1]] = whole = merged_chunks(chunks)
            gone.update(group[:-1])
            freed += sum(map(event_size, chunks)) - event_size(whole)
    return [merged.get(i, item) for i, item in enumerate(queue) if i not in gone], len(gone), freed


def without_ended_generations(queue: list[Item]) -> tuple[list[Item], int, int]:
    """The queue without the chunks of generations whose end stands in it too: the end has the whole text.

    Also how many events and bytes that saved.
    """
    ended: set[tuple[str, str]] = set()
    kept: list[Item] = []
    freed = 0
    for item in reversed(queue):
        if isinstance(item, StreamEvent):
            key = (item.run_id, item.chain_id)
            if item.event_type is GENERATION_END:
                ended.add(key)
            elif item.event_type is CHUNK:
                if key in ended:
                    freed += event_size(item)
                    continue
            elif item.event_type is StreamEventType.LLM_GENERATION_START:
                ended.discard(key)
        kept.append(item)
    return kept[::-1], len(queue) - len(kept), freed


class _Lost:
    """What one run's events were that this observer did not get."""

    __slots__ = ("by_type", "from_seq", "to_seq")

    def __init__(self, seq: int) -> None:
        self.from_seq = self.to_seq = seq
        self.by_type: Counter[str] = Counter()

    def add(self, event: StreamEvent) -> None:
        self.from_seq = min(self.from_seq, event.data.get("from_seq", event.seq))
        self.to_seq = max(self.to_seq, event.seq)
        self.by_type[event.event_type.value] += 1


class Delivery:
    """The queue between a manager and one of its observers.

    Methods that say so need the manager's lock held.
    """

    def __init__(
        self, manager: StreamingManager, observer: StreamObserver, after: Future[None] | None
    ) -> None:
        self.manager = manager
        self.observer = observer
        self.filter = observer.filter
        self.lossless = observer.mode == "lossless"
        self.limit = manager.queue_limit
        self.closing = False
        self.abandoned = False  # detached after failures: what waits is not delivered
        self.finished: Future[None] = Future()
        self.full = False  # lossless: the rollout waits for this one
        self.delivered = self.merged = self.dropped = self.failed = 0
        self._after = after  # an earlier delivery to the same observer that still runs
        self._queue: list[Item] = []
        self._mixed = False  # controls may stand among the events
        self._bytes = 0
        self._inflight: tuple[int, int] = (0, 0)  # events, bytes
        self._compact_at = COMPACT_AT
        self._lost: dict[str, _Lost] = {}
        self._awake = False  # the pump runs, or was told to
        self._waiter: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the pump that runs
        self._home = _running_loop()
        self._context = contextvars.copy_context()
        self._failures_in_a_row = 0
        self._suspect = False  # it took long once
        self._reported = False
        self._batched = type(observer).on_batch is not StreamObserver.on_batch
        self._warned: set[str] = set()

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being handed over. The lock is held."""
        return not self._queue and not self._awake

    # -- filling: the lock is held -----------------------------------------------------------------------------------

    def put(self, event: StreamEvent, size: int) -> None:
        """Queue an event."""
        if self._lost:
            self._lose(event)
            return
        queue = self._queue
        queue.append(event)
        self._bytes = total = self._bytes + size
        if total > self.limit or len(queue) >= self._compact_at:
            self._shrink()
        if not self._awake:
            self.wake()

    def put_free(self, items: list[Item]) -> None:
        """Queue what is not counted against the limit: controls, and snapshots (bounded by the open chains)."""
        self._queue += items
        self._mixed = True
        if not self._awake:
            self.wake()

    def _shrink(self) -> None:
        if self.lossless:
            if self._bytes > self.limit and not self.full:
                self.full = True
                self.manager.congested.add(self)
            return
        for shorter in (compact, without_ended_generations):
            self._queue, saved, freed = shorter(self._queue)
            self.merged += saved
            self._bytes -= freed
            if self._bytes <= 0.75 * self.limit:
                break
        else:
            self._give_up()
        self._compact_at = max(COMPACT_AT, 2 * len(self._queue))

    def _count_bytes(self) -> None:
        self._bytes = sum(event_size(item) for item in self._queue if _counts(item))

    def _give_up(self) -> None:
        """Drop the queue; from here on only count, until the observer comes back."""
        items, self._queue = self._queue, []
        for item in items:
            if isinstance(item, Control):
                self._queue.append(item)
            elif _counts(item):
                self._lose(item)
        self._bytes = 0

    def _lose(self, event: StreamEvent) -> None:
        lost = self._lost.get(event.run_id)
        if lost is None:
            lost = self._lost[event.run_id] = _Lost(event.seq)
        lost.add(event)
        self.dropped += 1

    # -- emptying: the lock is held ----------------------------------------------------------------------------------

    def _take(self) -> list[Item]:
        """Everything that waits."""
        queue, self._queue = self._queue, []
        self._mixed = False
        if self._lost:
            queue = [*self._gaps(), *self.manager.snapshots(self.filter), *queue]
            self._lost = {}
        self._inflight = (len(queue), self._bytes)
        self._bytes = 0
        self._compact_at = COMPACT_AT
        return queue

    def _gaps(self) -> list[StreamEvent]:
        reason = f"{self.observer.name} fell behind by more than {self.limit} bytes"
        now = time.time()
        return [
            StreamEvent(
                StreamEventType.GAP,
                "",
                now,
                {
                    "from_seq": lost.from_seq,
                    "to_seq": lost.to_seq,
                    "dropped": dict(lost.by_type),
                    "reason": reason,
                },
                seq=lost.to_seq,
                run_id=run_id,
                source=self.manager.source,
            )
            for run_id, lost in self._lost.items()
        ]

    def _taken(self) -> None:
        """What `_take` gave was handed over."""
        self._inflight = (0, 0)
        if self.full:
            self.full = False
            self.manager.congested.discard(self)
            self.manager.wake_producers()

    def statistics(self) -> ObserverStatistics:
        """The numbers."""
        oldest = next((i.timestamp for i in self._queue if isinstance(i, StreamEvent)), None)
        return ObserverStatistics(
            name=self.observer.name,
            mode=self.observer.mode,
            delivered=self.delivered,
            queued=sum(isinstance(i, StreamEvent) for i in self._queue) + self._inflight[0],
            queued_bytes=self._bytes + self._inflight[1],
            merged=self.merged,
            dropped=self.dropped,
            failed=self.failed,
            lag_s=max(0.0, time.time() - oldest) if oldest is not None else 0.0,
        )

    # -- the pump ----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """See to it that the pump looks at the queue. The lock is held."""
        self._awake = True
        loop = self._loop
        if loop is None:
            self._start()
            return
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        if loop is _running_loop():
            if not waiter.done():
                waiter.set_result(None)
            return
        try:
            loop.call_soon_threadsafe(_resolve, waiter)
        except RuntimeError:  # its loop was closed under it
            self._loop = None
            self._start()

    def _start(self) -> None:
        if self.observer.threaded:
            name = f"rollcast-observer-{self.observer.name}"
            threading.Thread(target=lambda: asyncio.run(self._pump()), name=name, daemon=True).start()
            return
        loop = self._home if self._home is not None and self._home.is_running() else _running_loop()
        if loop is None:
            loop = self.manager.background_loop()
        self._loop = self._home = loop
        if loop is _running_loop():
            self._create_pump(loop)
            return
        try:
            loop.call_soon_threadsafe(self._create_pump, loop)
        except RuntimeError:  # closed between the check and the call
            self._home = None
            self._start()

    def _create_pump(self, loop: asyncio.AbstractEventLoop) -> None:
        task = loop.create_task(
            self._pump(), name=f"rollcast-observer-{self.observer.name}", context=self._context
        )
        self.manager.pumps.add(task)
        task.add_done_callback(self.manager.pumps.discard)

    async def _pump(self) -> None:
        """Hand over what waits, until nothing is left and no run is open."""
        self._loop = asyncio.get_running_loop()
        try:
            if self._after is not None:
                await asyncio.wrap_future(self._after)
            while True:
                with self.manager.lock:
                    self._taken()
                    mixed, items = self._mixed, self._take()
                    if not items and (self.closing or not self.manager.runs):
                        self._awake, self._loop = False, None
                        break
                    if not items:
                        self._awake = False
                        self._waiter = waiter = self._loop.create_future()
                if not items:
                    await waiter
                    continue
                await self._deliver(items, mixed=mixed)
                if self.observer.threaded and not self.closing:
                    await self._rest()
        except BaseException:
            with self.manager.lock:  # cancelled with its loop: what is left goes on in the next one
                self._taken()
                self._awake, self._loop, self._waiter, self._home = False, None, None, None
            raise
        if self.closing and not self.finished.done():
            await self._close_observer()

    async def _rest(self) -> None:
        """Let a moment's events gather, unless somebody waits for this observer."""
        with self.manager.lock:
            self._taken()
            urgent = any(isinstance(i, Control) and i.kind == "barrier" for i in self._queue)
        if not urgent:
            await asyncio.sleep(THREAD_TICK_S)

    async def _deliver(self, items: list[Item], *, mixed: bool) -> None:
        events: list[StreamEvent] = []
        position = 0
        try:
            if not mixed and len(items) < TURN:  # the common case, without looking at each
                await self._hand_over(cast("list[StreamEvent]", items))
                return
            for i, item in enumerate(items):
                if isinstance(item, StreamEvent):
                    events.append(item)
                    if len(events) < TURN:
                        continue
                position = i + 1
                batch, events = events, []
                await self._hand_over(batch)
                if isinstance(item, Control):
                    await self._obey(item)
            position = len(items)
            await self._hand_over(events)
        except BaseException:
            with self.manager.lock:
                self._queue[:0] = items[position:]
                self._mixed = True
                self._count_bytes()
            raise

    async def _hand_over(self, events: list[StreamEvent]) -> None:
        if not events:
            return
        observer = self.observer
        began = time.perf_counter()
        beat = _Heartbeat() if self._suspect else None
        if self._batched and not self.abandoned:
            await self._attempt(observer.on_batch(events), events[0])
        elif not self._batched:
            on_event = observer.on_event
            for event in events:
                if self.abandoned:
                    return
                try:
                    await on_event(event)
                except Exception as error:  # noqa: BLE001  (isolation: a watcher's failure is its own)
                    self._failed(error, event)
                except asyncio.CancelledError as error:
                    if _cancelling():
                        raise
                    self._failed(error, event)
                else:
                    self._failures_in_a_row = 0
        self.delivered += len(events)
        if time.perf_counter() - began > BLOCKING_S and not observer.threaded:
            self._was_slow(beat)
        if len(events) == TURN:
            await asyncio.sleep(0)

    def _was_slow(self, beat: _Heartbeat | None) -> None:
        """It took long: did it await, or hold the event loop? The second time we know."""
        self._suspect = True
        if beat is not None and not beat.loop_ran:
            self.warn_once(
                "blocking",
                f"{self.observer.name} keeps the event loop for {time.perf_counter() - beat.began:.2f} s at a time, "
                "and every chain with it; make it await, or set `threaded = True` on its class",
            )

    async def _attempt(self, call: Coroutine[Any, Any, None], event: StreamEvent | None) -> None:
        """Await a call of the observer; its failure is its own."""
        try:
            await call
        except Exception as error:  # noqa: BLE001  (isolation: a watcher's failure is its own)
            self._failed(error, event)
        except asyncio.CancelledError as error:
            if _cancelling():
                raise
            self._failed(error, event)
        else:
            self._failures_in_a_row = 0

    async def _obey(self, control: Control) -> None:
        match control.kind:
            case "barrier":
                if control.done is not None:
                    fulfil(control.done)
            case "chain_closed":
                await self._attempt(self.observer.on_chain_closed(control.run_id, control.chain_id), None)
            case "run_opened":
                await self._attempt(self.observer.on_run_opened(control.run_id), None)
            case "run_closed":
                await self._attempt(self.observer.on_run_closed(control.run_id), None)

    async def _close_observer(self) -> None:
        try:
            await self._attempt(self.observer.aclose(), None)
        finally:
            fulfil(self.finished)

    def _failed(self, error: BaseException, event: StreamEvent | None) -> None:
        self.failed += 1
        self._failures_in_a_row += 1
        name = self.observer.name
        logger.error("%s failed on %s", name, event.event_type if event else "a hook", exc_info=error)
        if not self._reported:
            self._reported = True
            self.manager.report(self.observer, error, run_id=event.run_id if event else "")
        if self._failures_in_a_row == FAILURES_TO_DETACH:
            logger.error("%s failed %d times in a row and is detached", name, FAILURES_TO_DETACH)
            self.abandoned = True
            self.manager.remove_observer(self.observer)

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


def _counts(item: Item) -> TypeGuard[StreamEvent]:
    """Whether the item counts against the limit."""
    return isinstance(item, StreamEvent) and item.event_type is not StreamEventType.CHAIN_SNAPSHOT


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()  # noqa: SLF001  (documented; None instead of an exception)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def fulfil(promise: Future[None]) -> None:
    """Mark it done, where nobody did so or cancelled it before."""
    with contextlib.suppress(InvalidStateError):
        promise.set_result(None)
