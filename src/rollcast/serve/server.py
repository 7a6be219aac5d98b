"""The WebSocket server: listens, and gives each client to a conversation or to the plain feed until it has gone."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Self

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from rollcast import aio
from rollcast.aio import call_in
from rollcast.errors import InputError
from rollcast.serve.access import is_loopback
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.connection import Gate, GuardedConnection
from rollcast.serve.conversation import Conversation
from rollcast.serve.entrance import Entrance, header_token
from rollcast.serve.handshake import Handshake
from rollcast.serve.listening import check_address, listen
from rollcast.serve.on_disk import record_at
from rollcast.serve.outlet import DEFLATE, REASON_BYTES, Client, transmit
from rollcast.serve.page_files import read_page_files
from rollcast.serve.plain_feed import feed_plainly
from rollcast.serve.protocol import SUBPROTOCOL, CloseCode
from rollcast.serve.publishing import ProducerDesk
from rollcast.serve.queries import Queries
from rollcast.serve.secrecy import HANDSHAKE_FAILED, WithoutSecrets
from rollcast.serve.settings import ServerSettings
from rollcast.serve.tls import server_context
from rollcast.stream import StreamObserver

__all__ = ["ServerStatistics", "WebSocketStreamingServer"]

logger = logging.getLogger("rollcast.serve")
connection_logger = logging.getLogger("rollcast.serve.connection")


def _unless_handshake(record: logging.LogRecord) -> bool:
    """Log failed handshakes only while debugging, so that strangers cannot fill the log."""
    return record.msg != HANDSHAKE_FAILED or connection_logger.isEnabledFor(logging.DEBUG)


connection_logger.addFilter(_unless_handshake)
connection_logger.addFilter(WithoutSecrets())


class ServerStatistics(msgspec.Struct, frozen=True):
    """How a server is doing.

    Attributes:
        connections, subscriptions: how many are open now.
        sent: how many batches were sent, each counted once however many clients shared it.
        closed_slow: how many clients were closed because they read too slowly.
        history_events, history_bytes: how much is kept now.
        masked: how many secrets were masked, by kind.
    """

    connections: int
    subscriptions: int
    sent: int
    closed_slow: int
    history_events: int
    history_bytes: int
    masked: dict[str, int] = {}


class WebSocketStreamingServer:
    """Sends the events of a manager to WebSocket clients (docs/server.md).

        server = WebSocketStreamingServer(host="localhost", port=8765)
        await server.start()
        agent.streaming_manager.add_observer(server.get_observer())

    It runs in the event loop in which it is started (`start`, or `async with`), or on a thread of its own
    (`start_thread`, or `with`), and may be started again after it was stopped; clients then continue where they were.
    Slow, hostile or absent clients never slow a rollout.

    Args:
        host: the host to listen on. Addresses other than loopback need a token, or `insecure=True`.
        port: the port to listen on; 0: any free one; the attribute `port` has it.
        token: a token that clients must have, with the scopes `read` and `control`. `settings.tokens` can have other scopes.
        settings: all other settings.
        record: the folder of a record to serve in place of a manager's runs: one that is complete, or one that another process
            writes, which is followed; or a directory of records, of which clients choose one by naming a run of it.

    Raises:
        InputError: a setting is wrong, the certificate or its key cannot be used, or the server would be open to the network
            without a token.
        ArchiveError: `record` is no record, or cannot be read.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 8765,
        *,
        token: str | None = None,
        settings: ServerSettings | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        check_address(host, port)
        self.host = host
        self.settings = (settings or ServerSettings()).checked(token)
        if not is_loopback(host) and self.settings.lets_anyone_in and not self.settings.insecure:
            raise InputError(
                f"host {host!r} can be reached from the network, and no token is asked for; give token=…, listen on "
                "localhost, or set ServerSettings(insecure=True)"
            )
        self._wanted_port = port
        self._port = port
        self._tls = (
            None
            if self.settings.tls_cert is None
            else server_context(self.settings.tls_cert, self.settings.tls_key)
        )
        self._entrance = Entrance(self.settings, host, _now)
        self._gate: Gate | None = None
        self._broadcaster = Broadcaster(self.settings, record_at(record))
        self._queries = Queries(self._broadcaster)
        self._server: Server | None = None
        self._starting = asyncio.Lock()
        self._clients: set[Client] = set()
        self._desk: ProducerDesk | None = None
        self._handshake = Handshake(self._entrance, self.settings, self._clients)
        self._closing: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._leave_thread: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    # -- what users call ---------------------------------------------------------------------------------------------

    def get_observer(self) -> StreamObserver:
        """The server's observer, always the same one. Add it to one manager; agents that share the server share the manager.

        Raises:
            InputError: the server serves a record.
        """
        if self._broadcaster.feeds.is_on_disk:
            raise InputError(
                "this server serves a record, or a folder of them, and no runs beside it; serve those by another server"
            )
        return self._broadcaster.observer

    def take_producers(self, desk: ProducerDesk) -> None:
        """Be a hub's server: producers may connect, and the desk takes what they publish. Call this before `start`."""
        self._desk = self._queries.desk = desk

    @property
    def port(self) -> int:
        """The port that the server listens on; if 0 was given, it is known after `start`."""
        return self._port

    @property
    def url(self) -> str:
        """The address for clients."""
        host, scheme = self.host, "ws" if self._tls is None else "wss"
        if host in ("", "0.0.0.0", "::"):  # noqa: S104  (shown, not listened on)
            host = next(iter(self.settings.hosts), "localhost")
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    @property
    def page_url(self) -> str:
        """The address of the live page, for a browser."""
        return f"http{self.url.removeprefix('ws')}/"

    def statistics(self) -> ServerStatistics:
        """How the server is doing now."""
        broadcaster = self._broadcaster
        with broadcaster.lock:
            return ServerStatistics(
                connections=len(self._clients),
                subscriptions=len(broadcaster.subscriptions),
                sent=broadcaster.sender.batches,
                closed_slow=broadcaster.clients.closed_slow,
                history_events=broadcaster.history.head - broadcaster.history.tail,
                history_bytes=broadcaster.history.bytes,
                masked={} if broadcaster.masker is None else dict(broadcaster.masker.counts),
            )

    async def start(self) -> Self:
        """Start to listen in this event loop. Starting twice does nothing.

        Raises:
            InputError: the port is in use, the address does not belong to this machine, or the event loop in which the
                server was started before has ended without `stop`.
        """
        if self._server is not None:
            if self._server.get_loop().is_closed():
                raise InputError(
                    "the server was started in an event loop that has ended; await stop() before that loop ends, "
                    "or use start_thread()"
                )
            return self
        loop = asyncio.get_running_loop()
        async with self._starting:
            if self._server is None:
                self._server = await self._listen()
                self._port = next(iter(self._server.sockets)).getsockname()[1]
                self._broadcaster.attach(loop, transmit)
                self._broadcaster.feeds.warm()
                logger.info("serving on %s", self.url)
        return self

    async def stop(self) -> None:
        """Send what waits, close every client with 4001, and release the port. Stopping twice does nothing.

        Raises:
            InputError: the server runs in another event loop, or on a thread.
        """
        server = self._server
        if server is None:
            return
        if server.get_loop() is not asyncio.get_running_loop():
            raise InputError(
                "the server was started in another event loop, or on a thread; await stop() in that loop, "
                "or use stop_thread()"
            )
        self._server = None
        server.close(close_connections=False)
        await self._drain()
        self._broadcaster.detach()  # before the process that reads records ends, which some clients are given one by
        await self._queries.aclose()
        for client in list(self._clients):
            client.close(CloseCode.SHUTTING_DOWN, "the server is shutting down; reconnect later")
        while self._closing:
            await asyncio.wait(self._closing)
        server.close()
        if self._gate is not None:
            await self._gate.aclose()
        await server.wait_closed()
        logger.info("no longer serving on %s", self.url)

    async def _drain(self) -> None:
        """Send the clients what came before, as far as they take it within `close_s`."""
        loop = asyncio.get_running_loop()
        head, give_up = self._broadcaster.history.head, loop.time() + self.settings.close_s
        self._broadcaster.flush()
        while self._broadcaster.clients.pending(head) and loop.time() < give_up:
            await asyncio.sleep(max(self.settings.batch_s, 0.001))
            self._broadcaster.flush()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start_thread(self) -> Self:
        """Start to listen on a thread with an event loop of the server's own. Returns when the server listens.

        Raises:
            InputError: see `start`.
        """
        if self._thread is not None or self._server is not None:
            return self
        listening: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: aio.run(self._live_on_thread(listening)), name="rollcast-server", daemon=True
        )
        self._thread.start()
        try:
            listening.result()
        except BaseException:
            self._thread.join()
            self._thread = None
            raise
        return self

    async def _live_on_thread(self, listening: Future[None]) -> None:
        try:
            await self.start()
        except BaseException as error:  # noqa: BLE001  (it is raised in `start_thread`)
            listening.set_exception(error)
            return
        leave = asyncio.Event()
        self._leave_thread = (asyncio.get_running_loop(), leave)
        listening.set_result(None)
        try:
            await leave.wait()
        finally:
            await self.stop()

    def stop_thread(self) -> None:
        """Do the same as `stop` for a server on its own thread. Do not call this in an event loop, which it would block."""
        thread, self._thread = self._thread, None
        if thread is None or self._leave_thread is None:
            return
        loop, leave = self._leave_thread
        self._leave_thread = None
        call_in(loop, leave.set)
        thread.join()

    def __enter__(self) -> Self:
        return self.start_thread()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_thread()

    # -- listening ---------------------------------------------------------------------------------------------------

    async def _listen(self) -> Server:
        """Listen at the wanted port; after a restart, at the one that clients know."""
        return await listen(self.host, self._port or self._wanted_port, self._serve)

    async def _serve(self, hosts: list[str], port: int) -> Server:
        settings = self.settings
        self._handshake.page = await asyncio.to_thread(read_page_files)
        self._gate = gate = Gate(
            settings.connections, settings.limits.messages_per_s, self._tls, settings.hello_s
        )
        return await serve(
            self._handle,
            hosts,  # type: ignore[arg-type]  # passed on to create_server, which takes several
            port,
            compression=None,
            extensions=None if settings.compression is False else [DEFLATE],
            select_subprotocol=_subprotocol,
            process_request=self._handshake.process_request,
            server_header=None,
            create_connection=partial(  # type: ignore[arg-type]  # it makes one, but is not a type
                GuardedConnection, gate
            ),
            open_timeout=settings.hello_s,
            ping_interval=None,  # since it would take a slow link for a dead one
            close_timeout=settings.close_s,
            max_size=4 * settings.largest_message,  # the session refuses it first, with a message
            logger=connection_logger,
        )

    # -- one client --------------------------------------------------------------------------------------------------

    async def _handle(self, connection: ServerConnection) -> None:
        """Serve a client from the handshake until it has gone."""
        request = connection.request
        assert request is not None
        headers = request.headers
        assert isinstance(connection, GuardedConnection)
        plain = "Sec-WebSocket-Protocol" not in headers
        client = Client(connection, self.settings, self._keep_until_closed, plain=plain)
        connection.on_room = self._broadcaster.room
        self._clients.add(client)
        try:
            if self._server is None:  # the client came while the server was stopping
                client.close(CloseCode.SHUTTING_DOWN, "the server is shutting down; reconnect later")
            elif (origin := self._entrance.foreign_origin(headers)) is not None:
                client.close(CloseCode.FORBIDDEN_ORIGIN, *_forbidden(origin))
            elif not client.plain and connection.subprotocol is None:
                client.close(CloseCode.VERSION, f"this server speaks {SUBPROTOCOL}, or no subprotocol at all")
            elif client.plain:
                await feed_plainly(
                    client, self._broadcaster, self._entrance, self.settings, token=header_token(headers),
                    query=request.path.partition("?")[2],
                )  # fmt: skip
            else:
                token = header_token(headers)
                await Conversation(
                    client, self._broadcaster, self._queries, self._entrance, self.settings, token, self._desk
                ).run()
            await connection.wait_closed()
        except ConnectionClosed:
            pass  # the client has gone, with or without a close
        finally:
            self._broadcaster.unsubscribe(client)
            self._queries.leave(client)
            self._clients.discard(client)
            if self._desk is not None:
                self._desk.disconnect(client)

    def _keep_until_closed(self, task: asyncio.Task[None]) -> None:
        """Keep a task that closes a connection until it is done, for `stop` to wait for."""
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _now() -> float:
    return time.time()


def _forbidden(origin: str) -> tuple[str, str]:
    """The message for a page from a foreign origin, and a version that is short enough for the reason of a close."""
    said = "pages of this origin may not connect: {}; --origin or ServerSettings(origins=…) allows it"
    room = REASON_BYTES - len(said.format("").encode())
    return said.format(origin), said.format(origin if len(origin) <= room else f"{origin[: room - 3]}…")


def _subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((name for name in offered if name == SUBPROTOCOL), None)
