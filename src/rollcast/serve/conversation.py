"""The conversation with one client in `rollcast.v1`: the session decides, and this carries it out, with a socket and a clock."""

from __future__ import annotations

import asyncio
import logging
import time

from websockets.protocol import State

from rollcast.archive.pace import Pace
from rollcast.errors import InputError
from rollcast.serve.access import Door, refusal
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.cancelled import done_of
from rollcast.serve.entrance import Entrance
from rollcast.serve.outlet import Client
from rollcast.serve.protocol import (
    FEATURES,
    FRAME_BYTES,
    VERSION,
    Action,
    CancelRun,
    ChangeSpeed,
    Close,
    CloseSubscription,
    Done,
    ErrorCode,
    ErrorFrame,
    Greet,
    OpenSubscription,
    RunQuery,
    SeekReplay,
    Send,
    Session,
    StopQuery,
    Subscribed,
    TakeAnswer,
    TakeEvents,
    Welcome,
)
from rollcast.serve.publishing import ProducerDesk, Refused
from rollcast.serve.queries import Queries
from rollcast.serve.runs import fitting_runs
from rollcast.serve.settings import ServerSettings
from rollcast.serve.subscription import Replay

__all__ = ["Conversation"]

HELD_S = 1.0  # a client whose snapshots are still on their way waits this long before it may ask for others

logger = logging.getLogger("rollcast.serve")


class Conversation:
    """Reads a client's messages, and carries out what its session decides.

    Args:
        client: the client.
        broadcaster: what it is asked for.
        queries: answers what it asks for besides.
        entrance: says what a token grants.
        settings: the server's settings.
        token: the token in the headers of the client's request; None: there is none, so it may come in `hello`.
        desk: takes producers; None: the server is no hub.
    """

    def __init__(
        self,
        client: Client,
        broadcaster: Broadcaster,
        queries: Queries,
        entrance: Entrance,
        settings: ServerSettings,
        token: str | None,
        desk: ProducerDesk | None = None,
    ) -> None:
        self._client = client
        self._desk = desk
        self._broadcaster = broadcaster
        self._queries = queries
        self._settings = settings
        self._session = Session(
            entrance.authorize,
            settings.limits,
            hello_s=settings.hello_s,
            heartbeat_s=settings.heartbeat_s,
            clock=time.monotonic,
            epoch=entrance.epoch,
            token=token,
            limits_of=settings.limits_of,
            hub=desk is not None,
        )

    async def run(self) -> None:
        """Talk until the session or the client is closed.

        Raises:
            ConnectionClosed: the client has gone.
        """
        session, client = self._session, self._client
        client.moved()  # what came before does not count
        while not session.closed and not client.closed:
            try:
                async with asyncio.timeout(session.wait_s):
                    message = await client.connection.recv()
            except TimeoutError:
                actions = self._tick()
            else:
                actions = session.receive(message)
                if session.producer is not None:
                    self._heard()
            for action in actions:
                if isinstance(action, TakeEvents):
                    await self._take(action)
                    continue
                asks = isinstance(action, OpenSubscription | CloseSubscription | SeekReplay)
                if asks and not await self._until_served():
                    return
                self._perform(action)

    def _heard(self) -> None:
        assert self._desk is not None
        self._desk.heard(self._client)

    async def _take(self, action: TakeEvents) -> None:
        """Take a producer's events. Nothing more is read from it until the hub has room, so a flood waits on its side."""
        assert self._desk is not None
        await self._desk.take(self._client, action.frame)

    async def _until_served(self) -> bool:
        """Wait until the client has what it asked for before, or keeps up after a second, since asking is cheap and answering is not.

        Returns:
            False if it was closed meanwhile, so that it has no subscriptions any more.
        """
        client, give_up = self._client, time.monotonic() + HELD_S
        while client.connection.state is State.OPEN and not client.closed:
            if not self._broadcaster.clients.owes(client) or (
                client.keeps_up() and time.monotonic() >= give_up
            ):
                return True
            await asyncio.sleep(0.005)
            for action in self._tick():
                self._perform(action)
        return not client.closed

    def _tick(self) -> list[Action]:
        """The session's actions now. Before it takes the client for silent, this checks whether bytes are moving."""
        if self._session.wait_s == 0 and self._client.moved():
            self._session.moved()
        return self._session.tick()

    def _perform(self, action: Action) -> None:
        client, broadcaster = self._client, self._broadcaster
        match action:
            case Send(frame):
                client.send(frame)
            case Close(code, message):
                client.close(code, message)
            case Greet():
                self._greet(action)
            case OpenSubscription():
                self._open(action)
            case SeekReplay(id, cursor, at, snapshots):
                subscription = broadcaster.clients.subscription(client, id)
                self._answer(id, broadcaster.feeds.seek(subscription, cursor, at, snapshots=snapshots))
            case ChangeSpeed(id, speed):
                refused = broadcaster.feeds.change_speed(broadcaster.clients.subscription(client, id), speed)
                self._answer(id, refused, Done(id))
            case CloseSubscription(id):
                broadcaster.unsubscribe(client, id)
            case CancelRun():
                self._cancel(action)
            case RunQuery():
                self._queries.run(client, self._session, action)
            case StopQuery(id):
                self._queries.stop(client, id)
            case TakeAnswer(frame):
                assert self._desk is not None
                self._desk.answered(client, frame)

    def _open(self, action: OpenSubscription) -> None:
        client, broadcaster = self._client, self._broadcaster
        losses = None
        answer: tuple[bool, str | None] | None
        if action.since is None:
            answer = broadcaster.update(client, action.id, action.filter, action.of_run)
        elif action.speed is not None and not broadcaster.feeds.find():
            self._session.refused(action.id)
            self._answer(action.id, "there is no record to replay here; subscribe without a speed")
            return
        else:
            replay = None
            if action.speed is not None:
                replay = Replay(Pace(action.speed), action.time)
            answer = broadcaster.subscribe(
                client, action.id, action.filter, action.since, max_message=client.max_message, parts=client.parts, replay=replay,
                snapshots=action.snapshots, of_run=action.of_run,
            )  # fmt: skip
            losses = broadcaster.losses(client, action.id)
        if answer is not None:  # otherwise it comes when the record has been found
            client.send(Subscribed(action.id, *answer, *(losses or ())))

    def _answer(self, id: str, refused: str | None, done: Done | None = None) -> None:
        """Answer `error` if it was refused; otherwise `done`, if that is not answered in another way."""
        if refused is not None:
            self._client.send(ErrorFrame(ErrorCode.NOT_FOUND, refused, id))
        elif done is not None:
            self._client.send(done)

    def _greet(self, greeting: Greet) -> None:
        client, grant, settings = self._client, greeting.grant, self._settings
        client.max_message = greeting.max_message or settings.plain_message_bytes
        client.parts = "parts" in greeting.features
        acked = None
        if greeting.producer is not None and self._desk is not None:
            answer = self._desk.connect(greeting.producer, client)
            if isinstance(answer, Refused):
                client.close(*answer)
                return
            acked = answer
        known = [] if refusal(grant, Door.RUNS) else self._broadcaster.upstream.known_runs()
        runs = fitting_runs(known, client.max_message - FRAME_BYTES)
        limits = settings.limits_of(greeting.role, grant.scopes)
        features = [*FEATURES, *self._broadcaster.feeds.features, *([] if self._desk is None else ["hub"])]
        client.send(
            Welcome(
                VERSION, runs, settings.heartbeat_s, limits, list(grant.scopes), features, len(known) - len(runs),
                acked,
            )
        )  # fmt: skip
        if acked is not None and self._desk is not None:
            self._desk.greeted(client)

    def _cancel(self, asked: CancelRun) -> None:
        if self._desk is not None and self._desk.cancel(asked, self._client.send):
            return
        try:
            cancelled = self._broadcaster.upstream.cancel(asked.run_id, asked.chain_id, asked.group_id)
        except InputError as error:
            self._client.send(ErrorFrame(ErrorCode.NOT_FOUND, str(error), asked.id))
            return
        what = asked.chain_id or asked.group_id or "all"
        ending = cancelled.ending
        logger.info("a client cancels %s of run %s: %d open chains", what, asked.run_id, len(ending))
        self._client.send(done_of(asked, cancelled))
