"""The hub: a server to which producers connect too, whose runs it records and shows as if they ran here (docs/hub.md).

producer ──publish──▶ Intake ──▶ StreamingManager.relay ──▶ record, server ──▶ viewers
         ◀─interest── what the viewers want       ◀─ack── what is on the disk
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from types import TracebackType
from typing import Any, Self

from rollcast.fleet.acks_file import AcksFile
from rollcast.fleet.cancels import Cancels
from rollcast.fleet.intake import Intake, Taken
from rollcast.fleet.interest import interest_of
from rollcast.fleet.log import Repeated
from rollcast.fleet.restored import Restored
from rollcast.fleet.sources import Key
from rollcast.records import StreamEvent
from rollcast.serve.broadcast import ServerObserver
from rollcast.serve.outlet import Client, transmit
from rollcast.serve.protocol import (
    Ack,
    CancelRun,
    Done,
    ErrorCode,
    ErrorFrame,
    FilterFrame,
    Hello,
    Interest,
    Publish,
    encode_frame,
)
from rollcast.serve.publishing import ProducerLink, Refused
from rollcast.serve.record import caught_up, record_of
from rollcast.serve.server import WebSocketStreamingServer
from rollcast.stream import StreamingManager

__all__ = ["Hub"]

logger = logging.getLogger("rollcast.fleet")

ACK_S = 0.25  # how long events gather before the record is asked whether it has them
SETTLE_S = 0.05  # how often to look whether what viewers want has changed
TICK_S = 1.0
LOOK_S = 0.02  # how often to look whether a run has ended, or observers have changed
PORTION = 256  # events that are taken without a pause: about 3 ms
MOST_RUNS = 65_536  # open at once, of all producers
EXPIRY = 3  # heartbeats without a renewal after which a producer takes it that nobody watches


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
        manager: into which the events are relayed; it is not to publish to a hub itself. The hub does not close it.
        viewers: whether the clients of the server see what is relayed; otherwise it is for producers alone.
        restored: what the hub's last life left.
        acks: where to keep how far producers were acknowledged; None: nowhere. The hub closes it.
        lost_after_s: how long after its successor came the open chains of a process are given up.
        cancel_s: how long a producer may take to answer a cancel.

    Attributes:
        intake: what is known of the producers.
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
        cancel_s: float = 10.0,
    ) -> None:
        self.server = server
        self.manager = manager
        self._viewers = viewers
        self._acks = acks
        self._restored = restored or Restored()
        self.resumed: Collection[str] = {event.run_id for event in self._restored.open}
        self._heartbeat_s = server.settings.heartbeat_s
        self.intake = Intake(
            clock=time.monotonic,
            epoch=time.time,
            silent_s=1.25 * self._heartbeat_s,
            lost_after_s=lost_after_s,
            recorded=self._restored.recorded,
            acked={} if acks is None else acks.acked,
        )
        self._cancels = Cancels(time.monotonic, cancel_s)
        server.take_producers(self)
        self._interest = Interest(0, [], EXPIRY * self._heartbeat_s)
        self._interest_of: object = None  # the state of the readers that it is the interest of
        self._renew_at = time.monotonic() + self._heartbeat_s
        self._unsafe = asyncio.Event()
        self._noting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._repeated = Repeated(time.monotonic)

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
        await self._recorded()  # so that viewers who come back find it in the record
        await self.server.start()
        loop = asyncio.get_running_loop()
        for step in (self._acknowledge, self._tick, self._follow_interest):
            self._tasks.append(loop.create_task(self._again(step), name=f"rollcast-hub{step.__name__}"))
        return self

    async def aclose(self) -> None:
        """Acknowledge what is recorded, and close every connection with 4001."""
        await self._acknowledge_now()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self.server.stop()
        if self._acks is not None:
            await asyncio.to_thread(self._acks.close)

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
            self._say(hello.source, "refused", answer.message)
            return answer
        logger.info("the producer %r on host %r is connected", hello.source, hello.host)
        if (warning := self.intake.producers.clock_warning(hello.source)) is not None:
            self._say(hello.source, "clock", warning)
        return answer

    def greeted(self, link: ProducerLink) -> None:
        """See `ProducerDesk.greeted`."""
        link.send(self._interest)

    async def take(self, link: ProducerLink, frame: Publish) -> None:
        """See `ProducerDesk.take`."""
        if not await self._remember(link, frame):
            return
        for first in range(0, max(1, len(frame.events)), PORTION):
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
            self._unsafe.set()
            await self.manager.ready()
            if first:
                await asyncio.sleep(0)

    async def _remember(self, link: ProducerLink, frame: Publish) -> bool:
        """Note a process before its first events are recorded, so that it is known after a restart. False if the producer has gone."""
        key = self.intake.key_of(link, frame)
        if key is not None and self._acks is not None and key not in self._acks.acked:
            await self._note_acks([(key, self.intake.producers.acked(key))])
            key = self.intake.key_of(link, frame)
        return key is not None

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
        """A producer is dead for certain: end what it left open, with this status of its part; see `Intake.lose`."""
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
        said = self._say(taken.key[0], "not taken", sentence)
        if taken.handover_refused:
            link.send(ErrorFrame(ErrorCode.CONFLICT, sentence, taken.key[0]))
        elif said:
            link.send(ErrorFrame(ErrorCode.BAD_REQUEST, sentence))

    def _say(self, source: str, cause: str, sentence: str) -> bool:
        """Log a warning about a source, unless one with this cause was logged lately; whether it was."""
        held = self._repeated.held((source, cause))
        if held is None:
            return False
        more = f" ({held:,} more like this since the last one)" if held else ""
        logger.warning("%s: %s%s", source, sentence, more)
        return True

    # -- what is safe --------------------------------------------------------------------------------------------------

    async def _acknowledge(self) -> None:
        """Once: wait until events were taken, and some more gather, and acknowledge them when they are safe."""
        await self._unsafe.wait()
        await asyncio.sleep(ACK_S)
        self._unsafe.clear()
        await self._acknowledge_now()

    async def _acknowledge_now(self) -> None:
        """Tell producers which of their events are on the disk; while it cannot be written to, they keep them."""
        marks = self.intake.marks()
        if not marks:
            return
        if not await self._recorded():
            self._unsafe.set()
            return
        await self._note_acks([((mark.source, mark.epoch), mark.number) for mark in marks])
        for mark in marks:
            if self.intake.safe(mark):
                whose = ("", "") if mark.own else (mark.source, mark.epoch)
                mark.link.send(Ack(mark.number, *whose))

    async def _recorded(self) -> bool:
        """Wait until what was relayed is recorded. False if it cannot be."""
        record = record_of(self.manager)
        if record is None:
            return True
        while not await caught_up(self.manager, record):
            logger.debug("the record is behind; producers wait for their acks")
        await record.recorded()
        return record.failing is None

    async def _note_acks(self, marks: list[tuple[Key, int]]) -> None:
        if self._acks is not None:
            async with self._noting:
                await asyncio.to_thread(self._acks.note, marks)

    # -- time ----------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Once: see to what is late, after a second."""
        await asyncio.sleep(TICK_S)
        self._cancels.tick()
        self._relay(self.intake.due())

    async def _again(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do this again and again. A fault of ours in it is logged, and must not leave producers without what they wait for."""
        while True:
            try:
                await step()
            except Exception:
                logger.exception("a hub's task %s failed, by a fault in Rollcast", step.__name__)
                await asyncio.sleep(TICK_S)

    # -- interest ------------------------------------------------------------------------------------------------------

    async def _follow_interest(self) -> None:
        """Once: look whether what is wanted has changed, and tell the producers then, and at each heartbeat.

        Viewers of a server come and go without a change of the manager's observers, since a server with a history wants everything.
        """
        await asyncio.sleep(SETTLE_S)
        servers = self._servers()
        now = (self.manager.fanout.version, [each.upstream.changes for each in servers])
        if now != self._interest_of:
            self._interest_of = now
            self._tell_interest(servers)
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + self._heartbeat_s
            self._send_interest()

    def _servers(self) -> list[ServerObserver]:
        leaves = [leaf for observer in self.manager.observers for leaf in observer.leaves()]
        return [leaf for leaf in leaves if isinstance(leaf, ServerObserver)]

    def _tell_interest(self, servers: list[ServerObserver]) -> None:
        wanted = self._wanted(servers)
        if wanted != self._interest.filters:
            self._interest = Interest(self._interest.version + 1, wanted, EXPIRY * self._heartbeat_s)
            self._send_interest()

    def _send_interest(self) -> None:
        links = [link for link in self.intake.producers.links if isinstance(link, Client)]
        transmit(links, encode_frame(self._interest))

    def _wanted(self, servers: list[ServerObserver]) -> list[FilterFrame]:
        """What the readers of the manager want; of servers, what their clients do."""
        manager = self.manager
        filters = {each for server in servers for each in server.upstream.client_filters()}
        with manager.lock:
            of_servers = [manager.delivery_of(server) for server in servers]
            readers = [each for each in manager.fanout.deliveries if each.tokens == "wanted"]
            filters |= {each.filter for each in readers if each not in of_servers}
        return interest_of(filters)
