"""The hub: a server to which producers connect too, whose runs it records and shows as if they ran here (docs/hub.md).

    producer ──publish──▶ Intake ──▶ StreamingManager.relay ──▶ record, server ──▶ viewers
             ◀─interest── what the viewers want       ◀─ack── what is on the disk

What is decided without I/O is in intake.py, cancels.py and interest.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from types import TracebackType
from typing import Any, Self

from rollcast.fleet.acknowledging import Acknowledger
from rollcast.fleet.acks_file import AcksFile
from rollcast.fleet.cancels import Cancels
from rollcast.fleet.intake import Intake, Taken
from rollcast.fleet.interest_sender import InterestSender
from rollcast.fleet.log import ProducerWarnings
from rollcast.fleet.restored import Restored
from rollcast.records import StreamEvent
from rollcast.serve.protocol import CancelRun, Done, ErrorCode, ErrorFrame, Hello, Publish
from rollcast.serve.publishing import ProducerLink, Refused
from rollcast.serve.server import WebSocketStreamingServer
from rollcast.stream import StreamingManager

__all__ = ["Hub"]

logger = logging.getLogger("rollcast.fleet")

TICK_S = 1.0
LOOK_S = 0.02  # how often to look whether a run has ended
PORTION = 512  # events that are taken without a pause: about 4 ms
MOST_RUNS = 65_536  # open at once, of all producers


class Hub:
    """Takes the events of producers through a server, and relays them into a manager, with its observers.

        manager = StreamingManager(publish=False)
        manager.add_observer(ArchiveObserver("the-fleet", lossless=True))
        async with Hub(WebSocketStreamingServer(port=8765, settings=…), manager):
            ...

    If the manager has an `ArchiveObserver`, what is acknowledged is in its record. A producer is read no faster than lossless
    observers take the events. A viewer slows nobody.

    Args:
        server: not started; the hub starts and stops it.
        manager: into which the events are relayed; it must not publish to a hub itself. The hub does not close it.
        viewers: whether the clients of the server see what is relayed; otherwise it is for producers alone.
        restored: what the hub's last life left.
        acks: where to keep how far producers were acknowledged; None: nowhere. The hub closes it.
        lost_after_s: how many seconds after its successor came the open chains of a process are given up.
        return_s: how many seconds after a restart of the hub a process may take to come back; then what it had left open is given up.
        cancel_s: how many seconds a producer may take to answer a cancel.

    Attributes:
        intake: what the hub has of its producers.
        resumed: the runs that were open when the hub before it ended.
    """

    def __init__(
        self,
        server: WebSocketStreamingServer,
        manager: StreamingManager,
        *,
        viewers: bool = True,
        restored: Restored | None = None,
        acks: AcksFile | None = None,
        lost_after_s: float = 60.0,
        return_s: float = 600.0,
        cancel_s: float = 10.0,
    ) -> None:
        self.server = server
        self.manager = manager
        self._viewers = viewers
        self._restored = restored or Restored()
        self.resumed: Collection[str] = {event.run_id for event in self._restored.open}
        heartbeat_s = server.settings.heartbeat_s
        self.intake = Intake(
            clock=time.monotonic,
            epoch=time.time,
            silent_s=1.25 * heartbeat_s,
            lost_after_s=lost_after_s,
            return_s=return_s,
            recorded=self._restored.recorded,
            acked={} if acks is None else acks.acked,
        )
        self._cancels = Cancels(time.monotonic, cancel_s)
        self._acknowledger = Acknowledger(manager, self.intake, acks)
        self._interest = InterestSender(manager, lambda: self.intake.producers.links, heartbeat_s)
        self._warnings = ProducerWarnings(time.monotonic)
        self._tasks: list[asyncio.Task[None]] = []
        server.take_producers(self)

    # -- its life ------------------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Begin to record, and listen.

        Raises:
            InputError: see `WebSocketStreamingServer.start`.
        """
        if self._viewers:
            observer = self.server.get_observer()
            observer.mode = "lossless"  # the producers wait, on their side of the wire
            self.manager.add_observer(observer)
        self.manager.expect_relayed_runs(MOST_RUNS)
        self._relay(self._restored.open)
        self.intake.restore(self._restored.open)
        await self._acknowledger.recorded()  # so that viewers who come back find it in the record
        await self.server.start()
        loop = asyncio.get_running_loop()
        steps = {"acks": self._acknowledger.follow, "tick": self._tick, "interest": self._interest.follow}
        for name, step in steps.items():
            self._tasks.append(loop.create_task(self._again(name, step), name=f"rollcast-hub-{name}"))
        return self

    async def aclose(self) -> None:
        """Acknowledge what is recorded, and close every connection with 4001."""
        await self._acknowledger.acknowledge()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self.server.stop()
        await self._acknowledger.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- producers: see `ProducerDesk` ---------------------------------------------------------------------------------

    def connect(self, hello: Hello, link: ProducerLink) -> Refused | int:
        """See `ProducerDesk.connect`."""
        answer = self.intake.connect(hello, link)
        if isinstance(answer, Refused):
            self._warnings.warn(hello.source, "refused", answer.message)
            return answer
        logger.info("the producer %r on host %r is connected", hello.source, hello.host)
        if (warning := self.intake.producers.clock_warning(hello.source)) is not None:
            self._warnings.warn(hello.source, "clock", warning)
        return answer

    def greeted(self, link: ProducerLink) -> None:
        """See `ProducerDesk.greeted`."""
        link.send(self._interest.latest)

    async def take(self, link: ProducerLink, frame: Publish) -> None:
        """See `ProducerDesk.take`."""
        key = self.intake.key_of(link, frame)
        if key is None:
            return
        await self._acknowledger.remember(key)
        for first in range(0, max(1, len(frame.events)), PORTION):
            if self.intake.key_of(link, frame) is None:
                return  # a newer connection has taken its place, on which it sends again what is not taken here
            portion = frame.events[first : first + PORTION]
            last = frame.last and first + PORTION >= len(frame.events)
            taken = self.intake.take(
                link, Publish(frame.seq + first, portion, frame.source, frame.epoch, last)
            )
            self.manager.relay_read(taken.events)
            for sentence in taken.refused:
                self._refuse(link, taken, sentence)
            if taken.handover_refused:
                return
            self._acknowledger.taken()
            await self.manager.ready()
            if first:
                await asyncio.sleep(0)

    def heard(self, link: ProducerLink) -> None:
        """See `ProducerDesk.heard`."""
        self.intake.producers.heard(link)

    def answered(self, link: ProducerLink, frame: Done | ErrorFrame) -> None:
        """See `ProducerDesk.answered`."""
        self._cancels.answered(link, frame)

    def disconnect(self, link: ProducerLink) -> None:
        """See `ProducerDesk.disconnect`."""
        self.intake.disconnect(link)
        self._cancels.left(link)

    def cancel(self, asked: CancelRun, answer: Callable[[Done | ErrorFrame], object]) -> bool:
        """See `ProducerDesk.cancel`."""
        if not self.intake.runs.is_open(asked.run_id):
            return False
        links = self.intake.runs.links_of(asked.run_id)
        if links:
            logger.info(
                "a client cancels %s of run %s", asked.chain_id or asked.group_id or "all", asked.run_id
            )
            self._cancels.ask(asked, links, answer)
        else:
            answer(ErrorFrame(ErrorCode.UNAVAILABLE, self.intake.why_unreachable(asked.run_id), asked.id))
        return True

    def rows(self) -> list[dict[str, Any]]:
        """See `ProducerDesk.rows`."""
        return self.intake.producers.rows()

    def lost(self, source: str, status: str = "unknown") -> None:
        """End what a producer that is dead for certain left open, with this status for its part; see `Intake.lose`."""
        self._relay(self.intake.lose(source, status))

    async def ended(self, run_id: str, timeout: float) -> bool:
        """Wait until every producer of a run has ended its part of it. False if that takes longer than `timeout` seconds."""
        give_up = time.monotonic() + timeout
        while self.intake.runs.is_open(run_id):
            if time.monotonic() >= give_up:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    def _relay(self, events: Iterable[StreamEvent]) -> None:
        relay = self.manager.relay
        with self.manager.lock:
            for event in events:
                relay(event)

    def _refuse(self, link: ProducerLink, taken: Taken, sentence: str) -> None:
        """Name what was not taken: to the producer, and in the log. The refusal of a record has the `id` of its source."""
        logged = self._warnings.warn(taken.key[0], "not taken", sentence)
        if taken.handover_refused:
            link.send(ErrorFrame(ErrorCode.CONFLICT, sentence, taken.key[0]))
        elif logged:
            link.send(ErrorFrame(ErrorCode.BAD_REQUEST, sentence))

    # -- time ----------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Wait a second, then end the cancels that took too long, and give up the processes that did not come back."""
        await asyncio.sleep(TICK_S)
        self._cancels.tick()
        self._relay(self.intake.due())

    async def _again(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """Run this step again and again, until the task is cancelled."""
        while True:
            try:
                await step()
            except Exception:  # a fault of ours must not leave producers without what they wait for
                logger.exception("a hub's task %s failed, by a fault in Rollcast", name)
                await asyncio.sleep(TICK_S)
