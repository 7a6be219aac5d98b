"""The thread that talks to a server, and the requests on their way through it.

An aiohttp session belongs to one event loop. Here that loop runs on a daemon thread of its own, so that requests may come from
several loops and threads, and a reader that stalls does not stall the others. What arrives together goes to each consumer's
loop in one wake-up.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec

from rollcast.errors import BackendClosedError, BackendError, InputError, MissingExtraError, RollcastError
from rollcast.models.failures import fresh_copy
from rollcast.models.inbox import Item, deliver
from rollcast.models.openai.bodies import adapted
from rollcast.models.openai.facts import Address, ServerFacts
from rollcast.models.openai.generation import Generation
from rollcast.models.openai.trouble import AbortedError, NoSuchPathError, TroubleError, error_of, message_in
from rollcast.records.openai_piece import Piece, pieces_of, whole_answer_pieces
from rollcast.records.sse import SseReader
from rollcast.text import one_line

try:
    import aiohttp
except ImportError:
    raise MissingExtraError("the openai backend", "openai") from None

__all__ = ["Client", "version_in"]

_T = TypeVar("_T")

CONNECT_S = 60.0  # a server that takes a thousand connections at once is slow to accept the last
KEEP_ALIVE_S = (
    4.0  # uvicorn closes idle connections after 5 s; one that closes while it is used costs an attempt
)
ADAPTATIONS = 8  # fields that a server may refuse one after the other
VERSION_EVERY_S = 1.0  # how often the server's version of the weights is asked for
DRAIN_S = 5.0  # how long the rest of an answer may take, so that its connection can be used again


class Client:
    """Talks to one server.

    Args:
        address: where it is.
        api_key: sent as a bearer token; it is taken out of every message.
        retries: how often in a row an attempt may fail.
        stall_s: seconds without a byte after which an attempt has failed.

    Attributes:
        facts: what is known about the server; set by the probe.
        version: the version of the weights that it samples from now.
        follows: whether that version is read from the server, since somebody else changes its weights.
    """

    def __init__(self, address: Address, api_key: str | None, retries: int, stall_s: float) -> None:
        self.address = address
        self.facts = ServerFacts("")
        self.version = 0
        self.follows = False
        self._api_key = api_key
        self._retries = retries
        self._stall_s = stall_s
        self._process = os.getpid()
        # Used by the client's thread only.
        self._session: aiohttp.ClientSession
        self._running: set[Generation] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._outbox: list[tuple[Generation, Item]] = []
        self._asked_at = 0.0
        self._may_ask = asyncio.Event()
        # Shared, under the lock: why nothing can be generated any more, or until new weights come.
        self._lock = threading.Lock()
        self._closed: BackendError | None = None
        self._unusable: BackendError | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rollcast-openai", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    # -- called from any thread ----------------------------------------------------------------------------------------

    def submit(self, generation: Generation) -> None:
        """Begin a generation.

        Raises:
            BackendClosedError: the backend was closed.
            BackendError: the server's weights are not what they should be, or this process was forked.
        """
        self._check_process()
        with self._lock:
            if (failure := self._closed or self._unusable) is not None:
                raise fresh_copy(failure)
            self._loop.call_soon_threadsafe(self._begin, generation)

    def leave(self, generation: Generation) -> None:
        """End a generation and close its connection; it receives None unless it had ended. May be called twice."""
        with self._lock:
            if self._closed is None and self._process == os.getpid():
                self._loop.call_soon_threadsafe(self._end, generation, None)

    def wait_for(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the client's loop, and block until it has ended."""
        return asyncio.run_coroutine_threadsafe(question, self._loop).result()

    async def ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the client's loop. It runs to its end even if the caller is cancelled.

        Raises:
            BackendClosedError: the backend was closed.
        """
        self._check_process()
        with self._lock:
            if self._closed is not None:
                question.close()
                raise fresh_copy(self._closed)
            future = asyncio.run_coroutine_threadsafe(self._tracked(question), self._loop)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if future.cancelled() and self._closed is not None:
                raise fresh_copy(self._closed) from None
            raise

    def close(self, failure: BackendError) -> None:
        """Fail every present and future generation with this error, close the connections and end the thread."""
        if self._process != os.getpid():
            return  # the thread is the parent process's
        with self._lock:
            if self._closed is None:
                self._closed = failure
                asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop)
        # The garbage collector may close a forgotten backend on the client's own thread.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise BackendError(
                "the openai backend was made in the process that this one was forked from; make one in this process, or "
                "start processes with the method 'spawn'"
            )

    # -- questions, in the client's loop -------------------------------------------------------------------------------

    async def get(self, url: str) -> Any:
        """The JSON of a GET; None if there is no such path.

        Raises:
            TroubleError: the server is not there, or failed.
            RollcastError: it refuses the request.
        """
        return await self._json("GET", url, None)

    async def post(self, url: str, body: Any) -> Any:
        """The JSON of a POST, or {} if the answer has no body; None if there is no such path. Raises what `get` does."""
        return await self._json("POST", url, body)

    async def _json(self, method: str, url: str, body: Any) -> Any:
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, url, data=data) as response:
                answer = await response.read()
                if response.status in {404, 405}:
                    return None
                if response.status != 200:
                    raise self._clean(error_of(response.status, answer, response.headers, url))
                return msgspec.json.decode(answer) if answer.strip() else {}
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise TroubleError(self._unreachable(error)) from error
        except msgspec.DecodeError as error:
            raise BackendError(
                f"{url} answered {message_in(answer)[:80]!r}, which is not JSON; expected a server that speaks OpenAI: "
                "check base_url"
            ) from error

    async def pieces(self, route: str, body: dict[str, Any]) -> AsyncIterator[Piece]:
        """The pieces of one streamed answer, as they come.

        Raises:
            TroubleError: the server is not there, failed, or the answer was cut.
            RollcastError: it refuses the request.
        """
        url = self.address.api + route
        try:
            async with self._session.post(url, data=msgspec.json.encode(body)) as response:
                if response.status != 200:
                    answer = await response.read()
                    raise self._clean(error_of(response.status, answer, response.headers, url))
                if response.content_type == "application/json":  # it does not stream
                    answer = await response.read()
                    found = whole_answer_pieces(answer)
                    if not any(piece.error or piece.finish_reason or piece.text for piece in found):
                        raise NoSuchPathError(
                            f"{url} answered {message_in(answer)[:80]!r}, which has no choices; expected a server that speaks OpenAI: "
                            "check base_url"
                        )
                    for piece in found:
                        yield piece
                    yield Piece(done=True)
                    return
                reader, beginning, events = SseReader(), b"", 0
                async for data in response.content.iter_any():
                    beginning = beginning or data[:200]
                    for payload in reader.feed(data):
                        events += 1
                        for piece in pieces_of(payload):
                            yield piece
                if not events and response.content_type == "text/html":
                    raise NoSuchPathError(
                        f"{url} answered a page ({message_in(beginning)[:80]!r}); expected a server that speaks OpenAI: check base_url"
                    )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise TroubleError(self._unreachable(error)) from error

    def _unreachable(self, error: BaseException) -> str:
        where = self.address.api
        if isinstance(error, TimeoutError):
            return f"the server at {where} has sent nothing for {self._stall_s:g} s"
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"no server can be reached at {where} ({one_line(str(error.os_error))}); start it, or check base_url"
        if isinstance(error, aiohttp.TooManyRedirects):
            return f"{where} redirects in a circle; check base_url"
        if isinstance(error, aiohttp.ClientResponseError) and not isinstance(
            error, aiohttp.ClientPayloadError
        ):
            said = one_line(error.message.partition("\n")[0]).rstrip(":")
            return f"what came from {where} is not HTTP ({said}); check base_url"
        said = one_line(str(error)) or type(error).__name__
        return f"the connection to {where} broke ({said})"

    def _clean(self, error: Exception) -> Exception:
        """The error without the API key, which a server may repeat."""
        if self._api_key:
            error.args = tuple(str(each).replace(self._api_key, "[API key]") for each in error.args)
        return error

    # -- generations, in the client's loop -----------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _open(self) -> None:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        # As many connections as there are generations: the server decides how many it runs at once.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._stall_s),
            headers=headers,
            trust_env=False,  # a proxy of the environment would catch loopback too
            auto_decompress=True,
        )
        self._may_ask.set()

    def hold(self) -> None:
        """Let no attempt begin until `go_on`. Called in the client's loop."""
        self._may_ask.clear()

    def go_on(self) -> None:
        """Let attempts begin again."""
        self._may_ask.set()

    async def settled(self) -> None:
        """Wait until what has arrived was taken, so that it has the version that sampled it."""
        for _ in range(8 + len(self._running)):
            await asyncio.sleep(0)

    def fail_all(self, failure: BackendError | None) -> None:
        """Fail every present and future generation with this error; None allows new ones again."""
        with self._lock:
            self._unusable = failure
        if failure is not None:
            for generation in list(self._running):
                self._end(generation, fresh_copy(failure))

    async def _tracked(self, question: Coroutine[Any, Any, _T]) -> _T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await question

    def _begin(self, generation: Generation) -> None:
        self._running.add(generation)
        task = generation.task = self._loop.create_task(self._pump(generation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(self, generation: Generation) -> None:
        """Move an answer to the inbox, attempt by attempt, until the generation ends."""
        failures, adaptations = 0, 0
        try:
            while True:
                taken = generation.taken
                await self._may_ask.wait()
                if self.follows:
                    await self._follow()
                body = generation.body(self.facts)
                try:
                    await self._attempt(generation, body)
                    return
                except InputError as error:
                    if adaptations == ADAPTATIONS or adapted(self.facts, body, str(error)) is None:
                        raise
                    adaptations += 1
                except TroubleError as trouble:
                    failures = 1 if generation.taken > taken else failures + 1
                    self._give_up(generation, trouble, failures)
                    generation.attempt += 1
                    if not isinstance(trouble, AbortedError):
                        generation.tell(trouble)
                    await asyncio.sleep(trouble.wait_s(failures))
        except RollcastError as error:
            self._end(generation, error)
        except Exception as error:  # noqa: BLE001  (whatever happens here, the consumer must not wait for it forever)
            failure = BackendError(f"reading the server's answer failed ({type(error).__name__}: {error})")
            failure.__cause__ = error
            self._end(generation, failure)

    def _give_up(self, generation: Generation, trouble: TroubleError, failures: int) -> None:
        """Raise the trouble as an error if there is no sense in another attempt."""
        if not generation.can_continue:
            raise BackendError(
                f"{trouble}; the answer cannot be continued, since the server gives no token ids"
            ) from trouble
        if failures > self._retries:
            tried = "" if failures == 1 else f" ({failures} attempts failed)"
            raise BackendError(f"{trouble}{tried}") from trouble

    async def _attempt(self, generation: Generation, body: dict[str, Any]) -> None:
        """Read one answer, until the generation ends.

        Raises:
            TroubleError: it ended before the generation.
            RollcastError: the server refuses the request, or its answer cannot be used.
        """
        pieces = self.pieces(generation.route, body)
        try:
            async for piece in pieces:
                delta = generation.take(piece, self.version)
                if delta is not None:
                    self._put(generation, delta)
                    if delta.finish_reason is not None:
                        self._running.discard(generation)
                        if piece.finish_reason is not None:
                            await self._drained(pieces)
                        return
                if piece.finish_reason == "abort":
                    raise AbortedError("the server ended the generation early")
            if (delta := generation.close(self.version)) is None:
                raise TroubleError("the server's answer ended before the generation")
            self._put(generation, delta)
            self._running.discard(generation)
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # closes the connection if the answer goes on

    async def _drained(self, pieces: AsyncIterator[Piece]) -> None:
        """Read what comes after the generation, so that the connection can be used again."""
        try:
            async with asyncio.timeout(DRAIN_S):
                async for _ in pieces:
                    pass
        except (RollcastError, TimeoutError):
            pass  # the generation has ended, and the connection is closed

    async def _follow(self) -> None:
        """Read the version of the weights that somebody else changes, at most once a second."""
        now = self._loop.time()
        if now - self._asked_at < VERSION_EVERY_S:
            return
        self._asked_at = now
        try:
            found = version_in(await self.get(self.address.root + "/weight_info"))
        except RollcastError:
            return  # the generation itself shows what is wrong
        if found is not None:
            self.version = found

    def _put(self, generation: Generation, item: Item) -> None:
        if generation not in self._running:
            return
        if not self._outbox:
            # What else has arrived is already scheduled to be read before this call.
            self._loop.call_soon(self._flush)
        self._outbox.append((generation, item))

    def _end(self, generation: Generation, item: Item) -> None:
        self._put(generation, item)
        self._running.discard(generation)
        task = generation.task
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        closed = deliver(outbox)
        # What comes for a closed loop would never be read.
        for generation in [other for other in self._running if other.loop in closed]:
            self._end(generation, None)

    async def _shutdown(self) -> None:
        failure = self._closed or BackendClosedError("the backend was closed")
        for generation in list(self._running):
            self._end(generation, fresh_copy(failure))
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._flush()
        try:
            await self._session.close()
        finally:
            self._loop.stop()


def version_in(found: Any) -> int | None:
    """The number of the weights' version in an answer of `/weight_info`; None if it tells none."""
    if isinstance(found, dict):
        for name in ("weight_version", "version"):
            value = found.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, str) and value.isdecimal():
                return int(value)
    return None
