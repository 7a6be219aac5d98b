"""The thread that talks to a server, and the requests on their way through it. An aiohttp session belongs to one event loop: see `LoopEngine`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec

from rollcast.errors import BackendError, InputError, MissingExtraError, RollcastError
from rollcast.models.loop_engine import LoopEngine
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


class Client(LoopEngine[Generation]):
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
        self.follows = False
        self._api_key = api_key
        self._retries = retries
        self._stall_s = stall_s
        self._process = os.getpid()
        # Used by the client's thread only.
        self._session: aiohttp.ClientSession
        self._asked_at = 0.0
        self._may_ask = asyncio.Event()
        super().__init__("rollcast-openai")
        self.wait_for(self._open())

    # -- called from any thread ----------------------------------------------------------------------------------------

    def submit(self, generation: Generation) -> None:
        """See `LoopEngine.submit`.

        Raises:
            BackendError: also if this process was forked.
        """
        self._check_process()
        super().submit(generation)

    def leave(self, generation: Generation) -> None:
        """See `LoopEngine.leave`; its connection is closed."""
        if self._process == os.getpid():
            super().leave(generation)

    async def ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        """See `LoopEngine.ask`.

        Raises:
            BackendError: also if this process was forked.
        """
        self._check_process()
        return await super().ask(question)

    def close(self, failure: BackendError) -> None:
        """See `LoopEngine.close`. In a process that was forked it does nothing: the thread is the parent process's."""
        if self._process == os.getpid():
            super().close(failure)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise BackendError(
                "the openai backend was made in the process that this one was forked from; make one in this process, or "
                "start processes with the method 'spawn'"
            )

    # -- questions, in the client's loop -------------------------------------------------------------------------------

    async def get(self, url: str) -> Any:
        """The JSON of a GET; None if the server does not have the path.

        Raises:
            TroubleError: the server is not there, or failed.
            RollcastError: it refuses the request.
        """
        return await self._json("GET", url, None)

    async def post(self, url: str, body: Any) -> Any:
        """The JSON of a POST, or {} if the answer has no body; None if the server does not have the path. Raises what `get` does."""
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
        """Raise the trouble as an error if another attempt cannot help."""
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

    async def _let_go(self) -> None:
        await self._session.close()


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
