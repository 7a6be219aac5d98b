"""A producer's connection to its hub: made again whenever it is lost, unless the hub refuses. Used on the producer's thread."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from rollcast.errors import DecodeError, InputError, RefusedError
from rollcast.serve.backlog import Backlog
from rollcast.serve.cancelled import answer_to_cancel
from rollcast.serve.dialing import UNREACHABLE, Dialer, next_message, pause_s, refusal_in, turned_away, why
from rollcast.serve.handover import HandOver, records_to_hand_over
from rollcast.serve.producing import (
    FLUSH_S,
    FRAME_BYTES,
    WITH_SNAPSHOTS,
    Action,
    Answer,
    Handed,
    NoHubError,
    NotTaken,
    Publishing,
    Wanted,
    Welcomed,
)
from rollcast.serve.protocol import Cancel, Ping, encode_frame
from rollcast.stream import StreamingManager

__all__ = ["HubLink"]

logger = logging.getLogger("rollcast.serve")

FIRST_PAUSE_S = 0.2  # before connecting again; it doubles each time, up to
LONGEST_PAUSE_S = 10.0
STEADY_S = 1.0  # after a connection that lasted so long, the pauses begin anew
LOOK_AGAIN_S = 30.0  # after so long, look whether a producer on this host has died and left something
SILENCE = 3  # after so many heartbeats without a byte the hub counts as gone


class Owner(Protocol):
    """What a link needs of its producer."""

    def narrow(self, wanted: Wanted | None) -> None:
        """Have the observers get only what is wanted from now on; None: there is no change."""

    def manager_of(self, run_id: str) -> StreamingManager | None:
        """The manager that has the run open."""

    def heard(self) -> None:
        """Called when something came from the hub, or the connection ended."""

    def say(self, sentence: str) -> None:
        """Tell the user something, once."""


class HubLink:
    """The connection.

    Args:
        dialer: of the hub.
        token: with the scope `publish`.
        session: the producer's.
        backlog: what the hub does not have.
        directory: of records, some of which others may have left for this hub.
        owner: the producer.

    Attributes:
        refused: why the hub does not take this producer; None if it does, or is away.
        failures: how many connections in a row could not be made, or did not last.
        to_send: set when there may be something to send.
        ending: whether the process ends.
    """

    def __init__(
        self,
        dialer: Dialer,
        token: str | None,
        session: Publishing,
        backlog: Backlog,
        *,
        directory: Path,
        owner: Owner,
    ) -> None:
        self.refused: str | None = None
        self.failures = 0
        self.to_send = asyncio.Event()
        self.ending = False
        self._hurry = asyncio.Event()
        self._dialer = dialer
        self._token = token
        self._session = session
        self._backlog = backlog
        self._directory = directory
        self._owner = owner
        self._handing: HandOver | None = None
        self._looked = False  # whether what others left was looked for since the hub greeted
        self._told_of_loss = False
        self._told_of_absence = False

    @property
    def is_handing_over(self) -> bool:
        """Whether the hub is there, and what others left for it is on its way, or was not looked for yet."""
        return self._session.welcomed and not self._looked

    @property
    def is_away(self) -> bool:
        """Whether the hub could not be reached, and is not back."""
        return self._told_of_absence and not self._session.welcomed

    def end_soon(self) -> None:
        """The process ends: do not wait long for the next try to connect."""
        if not self.ending:
            self.ending = True
            self._hurry.set()

    async def stay_connected(self) -> None:
        """Connect, again and again, until the hub refuses."""
        while self.refused is None:
            if self.failures:
                await self._pause()
            self.failures += 1
            began = time.monotonic()
            try:
                await self._connect_once()
            except (RefusedError, InputError, NoHubError, DecodeError) as error:
                self._refuse(str(error))
            except (*UNREACHABLE, RuntimeError) as error:
                self._look_at(error)
            if self._session.welcomed and time.monotonic() - began >= STEADY_S:
                self.failures = 0
            self._owner.narrow(self._session.lost())
            self._owner.heard()

    async def _pause(self) -> None:
        longest = FIRST_PAUSE_S if self.ending else LONGEST_PAUSE_S
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s(self.failures, FIRST_PAUSE_S, longest)):
                await self._hurry.wait()
        self._hurry.clear()

    def _look_at(self, error: Exception) -> None:
        """Say why the connection could not be made, or has ended."""
        url = self._dialer.url
        refusal = refusal_in(error, new_token=False)
        if refusal is not None:
            self._refuse(f"it refuses: {refusal}")
        elif not self._session.welcomed and self._told_of_absence:
            logger.debug("the hub %s cannot be reached (%s)", url, why(error))
        elif not self._session.welcomed:
            self._told_of_absence = True  # until it is back
            what = "does not take this process now" if turned_away(error) else "cannot be reached"
            self._owner.say(
                f"the hub {url} {what} ({why(error)}); the run goes on, and the hub is tried again"
            )
        else:
            logger.info("the connection to the hub %s has ended (%s)", url, why(error))

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        self._owner.say(f"nothing is published to {self._dialer.url}: {reason}; the run goes on")

    async def _connect_once(self) -> None:
        """Connect, and stay so until the connection ends, which raises."""
        self._looked = False
        connection = await self._dialer.dial(self._session.hello(self._token, time.time()))
        tasks: list[asyncio.Task[None]] = []
        try:
            while True:
                for action in self._session.receive(await self._next_message(connection)):
                    await self._act(action, connection)
                    if isinstance(action, Welcomed):
                        tasks += [
                            asyncio.create_task(self._send(connection), name="rollcast-hub-sender"),
                            asyncio.create_task(self._hand_over(connection), name="rollcast-hub-handover"),
                        ]
                self.to_send.set()
                self._owner.heard()
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            if self._backlog.is_empty or self.refused is not None:
                with suppress(ConnectionClosed, OSError, TimeoutError):
                    await connection.close()
            connection.transport.abort()

    async def _next_message(self, connection: ClientConnection) -> str | bytes:
        """The next message of the hub, which is asked now and then whether it is there.

        Raises:
            TimeoutError: it says nothing.
        """
        for _ in range(SILENCE - 1):
            with suppress(TimeoutError):
                return await next_message(connection, self._session.heartbeat_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._session.heartbeat_s / 2):
                    await connection.send(encode_frame(Ping()), text=True)
        return await next_message(connection, self._session.heartbeat_s)

    async def _send(self, connection: ClientConnection) -> None:
        """Send what there is to send, for as long as the connection lasts."""
        outbox = self._session.outbox
        with suppress(ConnectionClosed):  # whoever reads finds that too
            while True:
                self.to_send.clear()
                in_memory = not self._backlog.spooling
                frames = outbox.frames(number=in_memory)
                for frame in frames:
                    await connection.send(frame, text=True)
                if not frames and not outbox.can_send(number=in_memory):
                    await self.to_send.wait()
                if not frames or outbox.waiting_bytes < FRAME_BYTES:
                    await asyncio.sleep(FLUSH_S)

    async def _act(self, action: Action, connection: ClientConnection) -> None:
        match action:
            case Welcomed():
                self._told_of_absence = False
                self._backlog.hub_records = action.records
                if action.forgot:
                    self._owner.narrow(Wanted(WITH_SNAPSHOTS))
                    self._owner.narrow(Wanted(self._session.wanted))
            case Wanted():
                self._owner.narrow(action)
            case Handed(ack):
                if self._handing is not None:
                    self._handing.ack(ack)
            case Answer(frame):
                await connection.send(encode_frame(frame), text=True)
            case NotTaken(message, str(source)):
                if self._handing is not None:
                    self._handing.refused(source)
                logger.info("the hub %s does not take a record of %s: %s", self._dialer.url, source, message)
            case NotTaken(message):
                if not self._told_of_loss:  # once: a fault in one event is mostly in thousands
                    self._told_of_loss = True
                    self._owner.say(f"the hub {self._dialer.url} does not take something: {message}")
                logger.debug("the hub %s does not take something: %s", self._dialer.url, message)
            case Cancel():
                answer = answer_to_cancel(action, self._owner.manager_of(action.run_id))
                await connection.send(encode_frame(answer), text=True)

    async def _hand_over(self, connection: ClientConnection) -> None:
        """Hand over what producers that have ended left for this hub on this host, one record after the other."""
        with suppress(ConnectionClosed):
            while True:
                for path in records_to_hand_over(self._directory, self._dialer.url):
                    await self._hand_over_one(path, connection)
                self._looked = True
                self._owner.heard()
                await asyncio.sleep(LOOK_AGAIN_S)

    async def _hand_over_one(self, path: Path, connection: ClientConnection) -> None:
        handing = HandOver.of(path, self._session.limits)
        if handing is None:
            return  # another producer hands it over
        self._handing = handing
        try:
            if await handing.run(lambda frame: connection.send(frame, text=True)):
                handing.done(hub_records=self._backlog.hub_records)
                logger.info("the hub %s has what was left in %s", self._dialer.url, path)
        finally:
            self._handing = None
            handing.release()
