"""Publishes the events of this process to a hub, on a thread of its own: one connection for all managers of the process.

    observers ──blocks──▶ HubProducer ──publish──▶ hub
                              │   ▲
           the hub is away    ▼   │   it is back
                           local record (spool.py)

The run never waits for the hub. What the hub has not acknowledged is in bounded memory; what does not fit there is in the local record.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rollcast import aio, lifetime
from rollcast.aio import call_in, fulfil
from rollcast.archive.index import record_directory
from rollcast.records import EventFilter
from rollcast.serve.backlog import Backlog
from rollcast.serve.dialing import Dialer
from rollcast.serve.environment import host_name, source_of_process
from rollcast.serve.hub_link import HubLink
from rollcast.serve.producing import Block, Publishing, Wanted
from rollcast.serve.spool import Spool
from rollcast.stream import StreamingManager

__all__ = ["HubProducer", "Watching", "producer_for"]

logger = logging.getLogger("rollcast.serve")

MEMORY_BYTES = 16 << 20  # of events that the hub has not acknowledged; more go to the local record
OVERFULL = 1.25  # times as much may wait while the disk is slow; after that the observers' own queues fill
BEAT_S = 10.0  # how often the local record says that its writer lives
DRAIN_S = 5.0  # how long the end of the process waits for a hub
SAVE_S = 5.0  # and how long it then waits for a disk that takes nothing
SAY_S = 0.5  # after so long the end of the process says that it waits
LOOK_S = 0.01  # how often to look whether the hub has everything


class Watching(Protocol):
    """An observer of one manager, as its producer sees it."""

    manager: StreamingManager | None

    def narrow(self, wanted: EventFilter) -> None:
        """Have this filter from now on."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that finds addresses also while the interpreter exits, when no thread can be started for that."""

    async def getaddrinfo(self, host: Any, port: Any, **settings: Any) -> Any:
        """As `asyncio.loop.getaddrinfo`; if no thread can be had, this one blocks, which nobody else uses."""
        try:
            return await super().getaddrinfo(host, port, **settings)
        except RuntimeError:
            return socket.getaddrinfo(host, port, **settings)


class HubProducer:
    """The producer of one source, for one hub.

    It has more than twenty methods, since it stands between three kinds of threads: the observers', its own, and those that end it.

    Args:
        dialer: of the hub.
        token: with the scope `publish`.
        source: the name of this process in the fleet; None: that of `source_of_process`.
        directory: where the local record goes.
        drain_timeout: how many seconds the end of the process waits until the hub has everything.
        memory_bytes: how many bytes of events that the hub has not acknowledged are in memory; the others go to the local record.

    Attributes:
        source: the name of this process in the fleet.
        lock: guards what comes from the observers' threads.
        link: the connection; None until the thread has begun.
    """

    def __init__(
        self,
        dialer: Dialer,
        token: str | None,
        source: str | None,
        *,
        directory: Path,
        drain_timeout: float,
        memory_bytes: int,
    ) -> None:
        self.lock = threading.RLock()
        self.drain_timeout = drain_timeout
        self._dialer = dialer
        self._token = token
        self._given_source = source
        self._directory = directory
        self._memory_bytes = memory_bytes
        self._observers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._begin()
        lifetime.register(self)

    def _begin(self) -> None:
        """Begin; in a forked child anew, with another source and epoch."""
        self.source = source_of_process() if self._given_source is None else self._given_source
        epoch = secrets.token_hex(8)
        window = self._memory_bytes // 4
        self._session = Publishing(self.source, host_name(), epoch, clock=time.monotonic, window=window)
        self._outbox = self._session.outbox
        self._backlog = Backlog(
            self._session,
            partial(Spool, self._directory, self._dialer.url, self.source, epoch),
            memory_bytes=self._memory_bytes,
            directory=self._directory,
            shut=lambda shut: self.narrow(self._session.shut(shut=shut)),
            say=self.say,
            hub=self._dialer.url,
        )
        self.link: HubLink | None = None
        self._inbox: deque[Block] = deque()
        self._inbox_bytes = 0
        self._signalled = False
        self._promises: list[Future[None]] = []  # of room
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Event | None = None
        self._end_by: float | None = None
        self._waited_s = 0.0  # how long those waited in vain who waited for the hub one after the other
        self._waited_until = -math.inf
        self._said: set[str] = set()

    # -- the observers' threads ----------------------------------------------------------------------------------------

    @property
    def wanted(self) -> EventFilter:
        """The filter of the observers."""
        return self._session.wanted

    @property
    def connected(self) -> bool:
        """Whether the hub has greeted this producer on the connection that is open."""
        return self._session.welcomed

    @property
    def refused(self) -> str | None:
        """Why the hub does not take this producer; None if it does, or is away."""
        return None if self.link is None else self.link.refused

    @property
    def url(self) -> str:
        """The address of the hub."""
        return self._dialer.url

    @property
    def is_started(self) -> bool:
        """Whether it has begun to connect."""
        return self._thread is not None

    @property
    def away(self) -> bool:
        """Whether the last try to reach the hub failed."""
        return self.link is not None and self.link.is_away

    @property
    def has_delivered(self) -> bool:
        """Whether the hub has acknowledged something."""
        return self._outbox.acked > 0

    @property
    def is_up_to_date(self) -> bool:
        """Whether the hub has everything that was put in."""
        return not self._inbox and self._backlog.is_empty

    def join(self, observer: Watching) -> None:
        """Have the observer told which events are wanted, and its manager which runs are to be cancelled."""
        with self.lock:
            self._observers.add(observer)
        observer.narrow(self.wanted)

    def start(self) -> None:
        """Begin to connect, if that has not begun."""
        with self.lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rollcast-hub-producer", daemon=True)
                self._thread.start()

    def put(self, block: Block) -> Future[None] | None:
        """Have events published. If too much waits, it returns a promise that is kept when there is room again: wait for it."""
        with self.lock:
            self._inbox.append(block)
            self._inbox_bytes += len(block.data)
            self.start()
            promise: Future[None] | None = None
            if self._is_overfull:
                promise = Future()
                self._promises.append(promise)
            if self._signalled or self._loop is None:
                return promise
            self._signalled = True
            loop = self._loop
        call_in(loop, self._look)
        return promise

    @property
    def _is_overfull(self) -> bool:
        """Whether so much waits that more should wait elsewhere. What has its number is bounded by the window."""
        return self._inbox_bytes + self._outbox.waiting_bytes > OVERFULL * self._memory_bytes

    def _keep_promises(self, *, at_once: bool = False) -> None:
        """Let those go on that wait for room, if there is some."""
        with self.lock:
            if not self._promises or (self._is_overfull and not at_once):
                return
            promises, self._promises = self._promises, []
        for promise in promises:
            fulfil(promise)

    # -- waiting for the hub -------------------------------------------------------------------------------------------

    @contextmanager
    def waiting(self) -> Iterator[float]:
        """Gives until when to wait for the hub, in seconds of `time.monotonic`.

        Those who wait one after the other, as when a process ends, wait `drain_timeout` seconds together, and not each of them.
        """
        began = time.monotonic()
        if began - self._waited_until > self.drain_timeout:
            self._waited_s = 0.0
        try:
            yield began + max(0.0, self.drain_timeout - self._waited_s)
        finally:
            self._waited_until = time.monotonic()
            self._waited_s = 0.0 if self.is_up_to_date else self._waited_s + self._waited_until - began

    def settle(self, timeout: float = math.inf) -> None:
        """Wait until the hub has everything, or is away, or refuses; for at most `timeout` and `drain_timeout` seconds. This blocks."""
        with self.waiting() as until:
            began = time.monotonic()
            give_up = min(until, began + timeout)
            while self.is_started and not (self.is_up_to_date or self.away or self.refused):
                now = time.monotonic()
                if now >= give_up:
                    return
                if now - began >= SAY_S:
                    self._say_waiting()
                time.sleep(LOOK_S)

    def _say_waiting(self) -> None:
        self.say(f"the hub {self.url} does not have everything yet, and is given {self.drain_timeout:g} s")

    # -- forks, and the end --------------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """In a forked child: what waits is the parent's. The lock is held."""
        self._begin()
        for observer in self._observers:
            if observer.manager is not None:
                observer.manager.fanout.source = self.source

    def close(self) -> None:
        """Do nothing: managers that close at the same time still publish. See `finish`."""

    def end(self) -> threading.Thread | None:
        """Begin to end, for good. The thread that it returns waits until the hub has everything, for as long as `waiting` says.

        What the hub does not have then is left in the local record.
        """
        with self.lock, self.waiting() as give_up:
            thread, loop = self._thread, self._loop
            self._end_by = give_up
        if loop is not None:
            call_in(loop, self._look)
        return thread

    def finish(self) -> None:
        """Do the same as `end`, and wait for it."""
        thread = self.end()
        if thread is None:
            return
        thread.join(SAY_S)
        left_s = (self._end_by or 0.0) - time.monotonic()
        if thread.is_alive() and left_s > 0 and not self.is_up_to_date:
            self._say_waiting()
            thread.join(left_s)
        before = -1
        while thread.is_alive() and (saved := self._backlog.saved) != before:  # the disk takes something
            before = saved
            thread.join(SAVE_S)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            aio.run(self._main(), loop_factory=_Loop)
        except Exception:  # a fault of ours must not be silent, and the run goes on
            logger.exception("publishing to %s has ended, by a fault in Rollcast", self._dialer.url)
        finally:
            self._loop = None
            self._keep_promises(at_once=True)

    async def _main(self) -> None:
        self._work = work = asyncio.Event()
        self.link = link = HubLink(
            self._dialer, self._token, self._session, self._backlog, directory=self._directory, owner=self
        )
        with self.lock:
            self._loop = asyncio.get_running_loop()
        self._look()
        staying = asyncio.create_task(link.stay_connected(), name="rollcast-hub-link")
        try:
            next_beat = time.monotonic() + BEAT_S
            while not self._may_end(link):
                work.clear()
                await self._backlog.keep_within_memory(
                    more_has_come=lambda: bool(self._inbox), progress=self._progress
                )
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + BEAT_S
                    self._backlog.beat()
                self.narrow(self._session.tick())
                await self._until_work(work, next_beat)
        finally:
            staying.cancel()
            await asyncio.wait([staying])
            self._take()
            self._backlog.leave()

    async def _until_work(self, work: asyncio.Event, until: float) -> None:
        """Wait until something has come, or is due."""
        wait_s = min(until - time.monotonic(), self._session.wait_s)
        if self._end_by is not None:
            wait_s = min(wait_s, self._end_by - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                await work.wait()
        await asyncio.sleep(0)  # the link has its turn also if there is always work

    def _may_end(self, link: HubLink) -> bool:
        if self._end_by is None:
            return False
        self._take()
        link.end_soon()
        link.to_send.set()
        is_done = self.is_up_to_date and not link.is_handing_over
        return time.monotonic() >= self._end_by or link.refused is not None or is_done

    def _look(self) -> None:
        """Take what the observers put in, and have it seen to."""
        self._take()
        if self._backlog.needs_work or self._end_by is not None:
            self._wake()
        if self.link is not None:
            self.link.to_send.set()

    def _take(self) -> None:
        with self.lock:
            self._signalled = False
            while self._inbox:
                self._outbox.put(self._inbox.popleft())
            self._inbox_bytes = 0

    def _progress(self) -> None:
        """Something was written to the local record, or read from there."""
        self._keep_promises()
        if self.link is not None:
            self.link.to_send.set()

    def _wake(self) -> None:
        if self._work is not None:
            self._work.set()

    # -- what the link needs -------------------------------------------------------------------------------------------

    def narrow(self, wanted: Wanted | None) -> None:
        """See `Owner.narrow`."""
        if wanted is None:
            return
        with self.lock:
            observers = [*self._observers]
        for observer in observers:
            observer.narrow(wanted.filter)

    def manager_of(self, run_id: str) -> StreamingManager | None:
        """See `Owner.manager_of`."""
        with self.lock:
            managers = [observer.manager for observer in self._observers]
        return next((m for m in managers if m is not None and run_id in m.fanout.runs), None)

    def heard(self) -> None:
        """See `Owner.heard`."""
        self._keep_promises()
        self._wake()

    def say(self, sentence: str) -> None:
        """See `Owner.say`."""
        if sentence not in self._said:
            self._said.add(sentence)
            logger.warning("%s", sentence)


_lock = threading.Lock()
_producers: dict[tuple[str, str], HubProducer] = {}  # by the hub's address and the source


def producer_for(
    url: str,
    *,
    token: str | None = None,
    source: str | None = None,
    tls_ca: str | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> HubProducer:
    """The producer of this process for the hub, which all its managers share.

    Args:
        url: of the hub.
        token: see `HubProducer`; that of whoever asks first counts.
        source: see `HubProducer`.
        tls_ca: see `Dialer`.
        directory: of records; None: as `record_directory` says.

    Raises:
        InputError: `url` cannot be the address of a hub, or has a token in it.
    """
    with _lock:
        key = (url, source or source_of_process())
        if key not in _producers:
            dialer = Dialer(url, tls_ca)
            _producers[key] = HubProducer(
                dialer,
                token,
                source,
                directory=record_directory(directory).absolute(),
                drain_timeout=DRAIN_S,
                memory_bytes=MEMORY_BYTES,
            )
        return _producers[key]


def _finish_all() -> None:
    """At exit: all end at the same time."""
    producers = [*_producers.values()]
    for each in producers:
        each.end()
    for each in producers:
        each.finish()


def _after_fork() -> None:
    """In a forked child the producers have other names by now, and nobody holds the lock."""
    global _lock
    _lock = threading.Lock()
    known = {(url, each.source): each for (url, _), each in _producers.items()}
    _producers.clear()
    _producers.update(known)


lifetime.call_at_last(_finish_all)
lifetime.call_after_fork(_after_fork)
