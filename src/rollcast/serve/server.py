"""The WebSocket server: adds sockets, HTTP and time to `protocol.py` and `broadcast.py`."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.typing import Subprotocol

from rollcast.aio import call_in
from rollcast.errors import InputError
from rollcast.serve.access import Door, Grant, filter_of_query, is_loopback, refusal
from rollcast.serve.answers import MetricsPage, Turns, asker_at
from rollcast.serve.broadcast import Broadcaster
from rollcast.serve.connection import Gate, GuardedConnection
from rollcast.serve.entrance import Entrance, header_token
from rollcast.serve.outlet import DEFLATE, REASON_BYTES, Client, transmit
from rollcast.serve.protocol import (
    FEATURES,
    FRAME_BYTES,
    SUBPROTOCOL,
    VERSION,
    Action,
    CancelRun,
    Close,
    CloseCode,
    CloseSubscription,
    Done,
    ErrorCode,
    ErrorFrame,
    Greet,
    OpenSubscription,
    Rate,
    Send,
    Session,
    Subscribed,
    Welcome,
)
from rollcast.serve.runs import fitting_runs
from rollcast.serve.secrecy import HANDSHAKE_FAILED, WithoutSecrets, shown_url
from rollcast.serve.settings import ServerSettings
from rollcast.serve.tls import server_context
from rollcast.stream import StreamObserver

__all__ = ["ServerStatistics", "WebSocketStreamingServer"]

HELD_S = 1.0  # a client whose snapshots are still on their way waits this long before it may ask for others

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

    Raises:
        InputError: a setting is wrong, the certificate or its key cannot be used, or the server would be open to the network
            without a token.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 8765,
        *,
        token: str | None = None,
        settings: ServerSettings | None = None,
    ) -> None:
        _check_address(host, port)
        self.host = host
        self.settings = (settings or ServerSettings()).checked(token)
        if not is_loopback(host) and not self.settings.tokens and not self.settings.insecure:
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
        self._broadcaster = Broadcaster(self.settings)
        self._turns = Turns()
        self._metrics = MetricsPage()
        self._server: Server | None = None
        self._starting = asyncio.Lock()
        self._clients: set[Client] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._leave_thread: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    # -- what users call ---------------------------------------------------------------------------------------------

    def get_observer(self) -> StreamObserver:
        """The server's observer, always the same one. Add it to one manager; agents that share the server share the manager."""
        return self._broadcaster.observer

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

    def statistics(self) -> ServerStatistics:
        """How the server is doing now."""
        broadcaster = self._broadcaster
        with broadcaster.lock:
            return ServerStatistics(
                connections=len(self._clients),
                subscriptions=len(broadcaster.subscriptions),
                sent=broadcaster.sender.batches,
                closed_slow=broadcaster.closed_slow,
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
                self._server = await self._listen(loop)
                self._port = next(iter(self._server.sockets)).getsockname()[1]
                self._broadcaster.attach(loop, transmit)
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
        self._broadcaster.detach()
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
        while self._broadcaster.pending(head) and loop.time() < give_up:
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
            target=lambda: asyncio.run(self._live_on_thread(listening)), name="rollcast-server", daemon=True
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

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> Server:
        port = self._port or self._wanted_port  # after a restart, the port that clients know
        try:
            found = await loop.getaddrinfo(
                self.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            hosts = list(dict.fromkeys(str(address[0]) for *_, address in found))
            while True:
                try:
                    return await self._serve(hosts, port or _free_port(found[0][0], hosts[0]))
                except OSError as error:
                    if port or error.errno != errno.EADDRINUSE:
                        raise
        except OSError as error:
            place = f"{self.host or 'every address'}, port {port}"
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"{place}, is in use; stop what listens there, or choose another port"
                ) from None
            reason = error.strerror or str(error)
            raise InputError(f"cannot listen on {place}: {reason}; choose another host or port") from None

    async def _serve(self, hosts: list[str], port: int) -> Server:
        settings = self.settings
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
            process_request=self._before_handshake,
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

    async def _before_handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer of `_on_request`, when its turn comes."""
        answer = self._on_request(connection, request)
        if answer is None:
            return None
        refused = isinstance(answer, Response) and answer.status_code != HTTPStatus.OK
        what = "" if refused else request.path.partition("?")[0]
        address = connection.remote_address  # None: the client has gone
        return await self._turns.paced(connection, what, answer, asker_at(str(address[0])) if address else "")

    def _on_request(
        self, connection: ServerConnection, request: Request
    ) -> Response | Coroutine[Any, Any, Response] | None:
        """Check a request before the handshake. Returns the response that ends it, or None if it may continue."""
        headers, (path, _, query) = request.headers, request.path.partition("?")
        entrance = self._entrance
        refused = entrance.refuse_address(connection, request)
        if refused is not None:
            return refused
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "ok\n")
        if path == "/metrics":
            return entrance.refuse_entry(connection, headers, Door.METRICS) or self._metrics.answer(
                connection
            )
        if path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, "There is /, /healthz and /metrics.\n")
        plain = "Sec-WebSocket-Protocol" not in headers
        if plain and "Upgrade" in headers:
            refused = entrance.refuse_entry(connection, headers, Door.FEED)
            refused = refused or entrance.refuse_filter(connection, query)
            if refused is not None:
                return refused
        if len(self._clients) >= self.settings.connections:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{len(self._clients)} clients are connected; try again later.\n",
            )
        local = is_loopback(str(connection.remote_address[0]))
        uncompressed = plain or (self.settings.compression is None and local)
        if uncompressed and "Sec-WebSocket-Extensions" in headers:
            del headers["Sec-WebSocket-Extensions"]
        return None

    # -- one client --------------------------------------------------------------------------------------------------

    async def _handle(self, connection: ServerConnection) -> None:
        """Serve a client from the handshake until it has gone."""
        request = connection.request
        assert request is not None
        headers = request.headers
        assert isinstance(connection, GuardedConnection)
        client = Client(
            connection, self.settings, self.closing, plain="Sec-WebSocket-Protocol" not in headers
        )
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
                await self._talk_plainly(client, headers, request.path.partition("?")[2])
            else:
                await self._talk(client, header_token(headers))
            await connection.wait_closed()
        except ConnectionClosed:
            pass  # the client has gone, with or without a close
        finally:
            self._broadcaster.unsubscribe(client)
            self._clients.discard(client)

    async def _talk(self, client: Client, token: str | None) -> None:
        """Run a session of `rollcast.v1` until it closes."""
        settings = self.settings
        session = Session(
            self._entrance.authorize,
            settings.limits,
            hello_s=settings.hello_s,
            heartbeat_s=settings.heartbeat_s,
            clock=time.monotonic,
            epoch=_now,
            token=token,
            limits_of=settings.limits_of,
        )
        while not session.closed and not client.closed:
            try:
                async with asyncio.timeout(session.wait_s):
                    message = await client.connection.recv()
            except TimeoutError:
                actions = _tick(session, client)
            else:
                actions = session.receive(message)
            for action in actions:
                if isinstance(action, OpenSubscription | CloseSubscription):
                    await self._until_served(session, client)
                self._perform(client, action)

    async def _until_served(self, session: Session, client: Client) -> None:
        """Wait until the client has what it asked for before, or keeps up after a second, since asking is cheap and answering is not."""
        give_up = time.monotonic() + HELD_S
        while client.connection.state is State.OPEN and not client.closed:
            if not self._broadcaster.owes(client) or (client.keeps_up() and time.monotonic() >= give_up):
                return
            await asyncio.sleep(0.005)
            for action in _tick(session, client):
                self._perform(client, action)

    def _perform(self, client: Client, action: Action) -> None:
        broadcaster = self._broadcaster
        match action:
            case Send(frame):
                client.send(frame)
            case Close(code, message):
                client.close(code, message)
            case Greet():
                self._greet(client, action)
            case OpenSubscription(id, wanted, since):
                losses = None
                if since is None:
                    recovered, cursor = broadcaster.update(client, id, wanted)
                else:
                    recovered, cursor = broadcaster.subscribe(
                        client, id, wanted, since, max_message=client.max_message, parts=client.parts
                    )
                    losses = broadcaster.losses(client, id)
                client.send(Subscribed(id, recovered, cursor, *(losses or ())))
            case CloseSubscription(id):
                broadcaster.unsubscribe(client, id)
            case CancelRun(run_id, chain_id, id):
                try:
                    broadcaster.cancel(run_id, chain_id)
                except InputError as error:
                    client.send(ErrorFrame(ErrorCode.NOT_FOUND, str(error), id))
                else:
                    logger.info("a client cancels %s of run %s", chain_id or "all", run_id)
                    client.send(Done(id, run_id, chain_id))

    def _greet(self, client: Client, greeting: Greet) -> None:
        grant, settings = greeting.grant, self.settings
        client.max_message = greeting.max_message or settings.plain_message_bytes
        client.parts = "parts" in greeting.features
        known = [] if refusal(grant, Door.RUNS) else self._broadcaster.known_runs()
        runs = fitting_runs(known, client.max_message - FRAME_BYTES)
        limits = settings.limits_of(greeting.role, grant.scopes)
        client.send(
            Welcome(
                VERSION, runs, settings.heartbeat_s, limits, list(grant.scopes), list(FEATURES), len(known) - len(runs)
            )
        )  # fmt: skip

    async def _talk_plainly(self, client: Client, headers: Headers, query: str) -> None:
        """Send a plain client one event per message; its own messages are ignored but counted."""
        granted = self._entrance.authorize(header_token(headers))
        expires_at = granted.expires_at if isinstance(granted, Grant) else time.time()
        self._broadcaster.subscribe(client, "", filter_of_query(query), max_message=client.max_message)
        rate = Rate(self.settings.limits.messages_per_s, time.monotonic)
        silence = _Silence(self.settings.heartbeat_s)
        while not client.closed:
            left = silence.left_s
            if expires_at is not None:
                left = min(left, max(0.0, expires_at - time.time()))
            try:
                async with asyncio.timeout(left):
                    message = await client.connection.recv()
            except TimeoutError:
                if expires_at is not None and time.time() >= expires_at:
                    client.close(CloseCode.TOKEN_EXPIRED, "the token has expired; reconnect with a new one")
                elif await silence.is_death(client):
                    client.close(CloseCode.NO_PONG, "no byte was read within the heartbeat; reconnect")
                continue
            if len(message) > self.settings.limits.message_bytes or not rate.spend():
                client.close(
                    CloseCode.LIMIT, "this feed is read-only and received too many messages; send fewer"
                )

    def closing(self, task: asyncio.Task[None]) -> None:
        """Keep a closing task until it is done."""
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _Silence:
    """Measures how long nothing has moved between the server and a plain client."""

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._since = time.monotonic()
        self._asked = False

    @property
    def left_s(self) -> float:
        """Seconds until `is_death` must be called."""
        return max(0.0, self._since + self._heartbeat_s - time.monotonic())

    async def is_death(self, client: Client) -> bool:
        """Whether the client has been silent for a heartbeat and does not answer a ping."""
        if self.left_s > 0:
            return False
        moved, asked = client.moved(), self._asked
        self._since, self._asked = time.monotonic(), not moved
        if moved:
            return False
        if asked or client.unsent():
            return True
        await client.ping()
        return False


def _tick(session: Session, client: Client) -> list[Action]:
    """The session's actions now. Before it takes the client for silent, this checks whether bytes are moving."""
    if session.wait_s == 0 and client.moved():
        session.moved()
    return session.tick()


def _now() -> float:
    return time.time()


def _forbidden(origin: str) -> tuple[str, str]:
    """The message for a page from a foreign origin, and a version that is short enough for the reason of a close."""
    said = "pages of this origin may not connect: {}; --origin or ServerSettings(origins=…) allows it"
    room = REASON_BYTES - len(said.format("").encode())
    return said.format(origin), said.format(origin if len(origin) <= room else f"{origin[: room - 3]}…")


def _subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((name for name in offered if name == SUBPROTOCOL), None)


def _check_address(host: Any, port: Any) -> None:
    if not isinstance(host, str) or set("/@?#") & set(host):
        shown = shown_url(host) if isinstance(host, str) else host
        raise InputError(f"host is {shown!r}; expected a name or an address; an empty one is every address")
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise InputError(f"port is {port!r}; expected a number from 0 to 65535")


def _free_port(family: int, host: str) -> int:
    """A port that is free now, so that several addresses can use the same one."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
