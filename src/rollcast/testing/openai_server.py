"""A real HTTP server on the loopback interface that speaks OpenAI, answers what a test gives it, and fails as told."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self

import msgspec

from rollcast import aio
from rollcast.errors import BackendError, InputError, MissingExtraError, PromptTooLongError
from rollcast.models.backend import Backend, GenerationRequest, Sampling
from rollcast.testing.openai_answers import Dialect, ServedAnswer, ServedCall
from rollcast.testing.openai_bodies import BodyWriter, ServedPiece, served_pieces
from rollcast.testing.openai_generate import TokensWriter

try:
    from aiohttp import web
except ImportError:
    raise MissingExtraError("rollcast.testing.OpenAIServer", "openai") from None

__all__ = ["OpenAIServer", "ReceivedRequest", "ServedAnswer", "ServedCall"]


class ReceivedRequest(msgspec.Struct):
    """A request that the server got.

    Attributes:
        method, path: as in `POST /v1/completions`; the path has the query.
        headers: with the names as they came.
        body: the bytes.
        json: the body as JSON; None if it is not.
        state: `running`, then `answered`, or `disconnected` if the caller left before the end.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    json: Any = None
    state: str = "running"


_VLLM_PATHS = {
    "/collective_rpc", "/is_paused", "/pause", "/reset_prefix_cache", "/resume", "/update_weight_version", "/weight_info",
}  # fmt: skip
_GENERATE = "/inference/v1/generate"  # of vLLM, behind --enable-scale-out
_SGLANG_PATHS = {
    "/continue_generation", "/flush_cache", "/get_model_info", "/pause_generation", "/update_weights_from_disk",
}  # fmt: skip

Scripted = str | ServedAnswer
Writer = BodyWriter | TokensWriter
Script = Scripted | Sequence[Scripted] | Callable[[ReceivedRequest], Scripted | Awaitable[Scripted]] | Backend


class OpenAIServer:
    """Serves `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health` and an engine's control paths; as vLLM, it also serves
    `/inference/v1/generate`.

    `async with` runs it on the running event loop; `with` runs it on a thread of its own, for clients that block.

    Args:
        script: the answer to every generation; or one for each generation in order, the last of which repeats; or a function
            of the request, which may be async; or a backend, whose tokens are served.
        dialect: what it takes and gives. `vllm`: ids in and out and log-probabilities; `sglang`: the same, with the prompt's
            ids in the choice and no ids from the chat route; `text`: neither ids nor log-probabilities, which are refused
            with 400; `hosted`: the same, but they are silently left out.
        model: the name that `/v1/models` gives.
        api_key: the key that callers must send; None takes every caller.
        port: 0 is a free one.
        before_chunk: awaited before each chunk, with the request and the chunk's index: a place for gates and faults.
        context: how many tokens a prompt and its completion may have; known to `/v1/models`.

    Attributes:
        requests: what it got, in order.
        reloads: how often its weights were replaced.
        weight_version: what it says is their version.
        healthy: whether `/health` answers 200; else 503.
        adapters: further names that it takes as a model, and then names in its answer; `/v1/models` does not list them.

    Raises:
        MissingExtraError: aiohttp is not installed.
    """

    def __init__(
        self,
        script: Script = "The answer is 4.",
        *,
        dialect: Dialect = "vllm",
        model: str = "scripted",
        api_key: str | None = None,
        port: int = 0,
        before_chunk: Callable[[ReceivedRequest, int], Awaitable[None]] | None = None,
        context: int = 4096,
    ) -> None:
        self.requests: list[ReceivedRequest] = []
        self.reloads = 0
        self.weight_version = "0"
        self._announced: dict[int | None, str] = {}  # by the version that a served backend gives its tokens
        self.healthy = True
        self.adapters: set[str] = set()
        self.model = model
        self.dialect: Dialect = dialect
        self.context = context
        self._script = script
        self._api_key = api_key
        self._port = port
        self._before_chunk = before_chunk
        self._numbers = itertools.count()
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self._resumed: asyncio.Event | None = None
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._thread: _OwnThread | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Such as `http://127.0.0.1:40123`, without `/v1`; known after `reserve` or `start`."""
        if not self._port:
            raise InputError("the server has no port yet; call reserve() or start() first")
        return f"http://127.0.0.1:{self._port}"

    @property
    def running(self) -> int:
        """How many requests are being answered now."""
        return sum(request.state == "running" for request in self.requests)

    @property
    def generations(self) -> list[ReceivedRequest]:
        """The requests that asked for tokens, in order."""
        return [request for request in self.requests if request.path.endswith(("/completions", _GENERATE))]

    def reserve(self) -> str:
        """Take a port without listening on it, so that callers are refused until `start`; returns the URL."""
        if self._socket is None:
            self._socket = socket.socket()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", self._port))
            self._port = self._socket.getsockname()[1]
        return self.url

    async def start(self) -> Self:
        """Listen. After `stop` it listens on the same port again."""
        self.reserve()
        assert self._socket is not None
        self._resumed = asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket, backlog=2048).start()
        return self

    async def stop(self) -> None:
        """Close every connection and the port."""
        self.resume()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def resume(self) -> None:
        """Let answers that stall go on."""
        if self._thread is not None:
            self._thread.call(self._resume)
        else:
            self._resume()

    def _resume(self) -> None:
        if self._resumed is not None:
            self._resumed.set()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        self._thread = _OwnThread(self)
        return self

    def __exit__(self, *_: object) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.end()

    # -- answers -------------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        received = ReceivedRequest(request.method, request.path_qs, dict(request.headers), body)
        with suppress(msgspec.DecodeError):
            received.json = msgspec.json.decode(body)
        self.requests.append(received)
        try:
            response = await self._routed(request, received)
            received.state = "answered"
            return response
        except ConnectionError:  # the caller left while a chunk was written
            return web.Response()
        finally:
            if received.state == "running":
                received.state = "disconnected"

    async def _routed(self, request: web.Request, received: ReceivedRequest) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response(status=200 if self.healthy else 503)
        if self._api_key is not None and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            return _error(401, "the API key is missing or wrong")
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [self._card()]})
        if request.path in {"/v1/chat/completions", "/v1/completions"} or (
            request.path == _GENERATE and self.dialect == "vllm"
        ):
            if not isinstance(received.json, dict):
                return _error(400, "the body is not a JSON object")
            return await self._generated(request, received)
        return await self._controlled(request, received)

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": 0,
            "root": self.model,
            "max_model_len": self.context,
        }

    async def _controlled(self, request: web.Request, received: ReceivedRequest) -> web.StreamResponse:
        """The control paths of an engine: new weights, their version, its prefix cache."""
        given = received.json if isinstance(received.json, dict) else {}
        own = {"vllm": _VLLM_PATHS, "sglang": _SGLANG_PATHS}.get(self.dialect, ())
        if request.path not in own:
            return _error(404, f"there is no {request.path}")
        match request.path:
            case "/collective_rpc" if given.get("method") == "reload_weights":
                weights = (given.get("kwargs") or {}).get("weights_path")
            case "/update_weights_from_disk":
                weights = given.get("model_path")
            case "/update_weight_version":
                self._announce(given.get("new_version", self.weight_version))
                return web.json_response({"success": True})
            case "/weight_info" | "/get_model_info":
                return web.json_response({"weight_version": self.weight_version})
            case "/is_paused":
                return web.json_response({"is_paused": not self._may_send.is_set()})
            case "/pause" | "/pause_generation":
                self._may_send.clear()
                return web.json_response({"status": "paused"})
            case "/resume" | "/continue_generation":
                self._may_send.set()
                return web.json_response({"status": "resumed"})
            case "/reset_prefix_cache" | "/flush_cache":
                return web.Response(status=200)
            case _:
                return _error(400, f"{request.path} does not do this here")
        if isinstance(self._script, Backend):
            try:
                await self._script.update_weights(weights, self._script.policy_version + 1)
            except InputError as error:
                return _error(400, str(error))
        self.reloads += 1
        self._announce(given.get("weight_version", str(self.reloads)))
        return web.json_response(
            {"results": [None]} if "rpc" in request.path else {"success": True, "message": ""}
        )

    def _announce(self, version: str) -> None:
        """From now on, the weights have this version."""
        self.weight_version = version
        if isinstance(self._script, Backend):
            self._announced[self._script.policy_version] = version

    async def _generated(self, request: web.Request, received: ReceivedRequest) -> web.StreamResponse:
        name = request.headers.get("X-Request-Id")
        writer: Writer
        models = {self.model} | self.adapters
        if request.path == _GENERATE:
            writer = TokensWriter.of(received.json, models, self.model, name)
        else:
            writer = BodyWriter.of(request.path, received.json, self.dialect, models, self.model, name)
        if writer.refused is not None:
            return _error(400, writer.refused)
        if isinstance(self._script, Backend):
            answer = ServedAnswer()
            pieces = _from_backend(self._script, f"served-{next(self._numbers)}", writer, self._announced)
        else:
            answer = await self._scripted(received)
            if answer.status != 200:
                return _error(answer.status, "the server fails, as it was told to", answer)
            pieces = served_pieces(answer, writer)
        try:
            first = await anext(pieces, None)
        except (InputError, PromptTooLongError) as error:
            return _error(400, str(error))
        except BackendError as error:
            return _error(500, str(error))
        everything = _chained(first, pieces)
        if writer.stream:
            return await self._streamed(request, received, writer, answer, everything)
        return await self._whole(request, received, writer, answer, everything)

    async def _scripted(self, received: ReceivedRequest) -> ServedAnswer:
        script: Any = self._script
        if callable(script):
            script = script(received)
            if isinstance(script, Awaitable):
                script = await script
        elif isinstance(script, Sequence) and not isinstance(script, str):
            script = script[min(next(self._numbers), len(script) - 1)]
        return ServedAnswer(script) if isinstance(script, str) else script

    async def _streamed(
        self,
        request: web.Request,
        received: ReceivedRequest,
        writer: Writer,
        answer: ServedAnswer,
        pieces: AsyncIterator[ServedPiece],
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8"} | answer.headers
        )
        await response.prepare(request)
        out = _Out(request, response, answer)
        index = 0
        try:
            async for payload in writer.chunks(answer, pieces):
                await self._may_send.wait()
                if self._before_chunk is not None:
                    await self._before_chunk(received, index)
                if index == answer.stall_at and self._resumed is not None:
                    await self._resumed.wait()
                if index == answer.error_at:
                    payload = msgspec.json.encode({"error": {"message": "the engine died", "code": 500}})  # noqa: PLW2901
                if not await out.write(b"data: " + payload + b"\n\n"):
                    return response
                index += 1
                if index - 1 == answer.error_at:
                    break
        except BackendError as error:
            await out.write(
                b"data: " + msgspec.json.encode({"error": {"message": str(error), "code": 500}}) + b"\n\n"
            )
        if await out.write(b"data: [DONE]\n\n"):
            await response.write_eof()
        return response

    async def _whole(
        self,
        request: web.Request,
        received: ReceivedRequest,
        writer: Writer,
        answer: ServedAnswer,
        pieces: AsyncIterator[ServedPiece],
    ) -> web.StreamResponse:
        try:
            body = await writer.whole(answer, pieces)
        except BackendError as error:
            return _error(500, str(error))
        if self._before_chunk is not None:
            await self._before_chunk(received, 0)
        if answer.stall_at is not None and self._resumed is not None:
            await self._resumed.wait()
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Content-Length": str(len(body))} | answer.headers
        )
        await response.prepare(request)
        if await _Out(request, response, answer).write(body):
            await response.write_eof()
        return response


class _Out:
    """Writes a body, in small parts if the answer says so, and closes the connection where it is to be cut."""

    def __init__(self, request: web.Request, response: web.StreamResponse, answer: ServedAnswer) -> None:
        self._request, self._response, self._answer = request, response, answer
        self._written = 0

    async def write(self, data: bytes) -> bool:
        """Whether all of it was written."""
        room = None if self._answer.cut_at is None else self._answer.cut_at - self._written
        cut = room is not None and room <= len(data)
        if cut:
            data = data[:room]
        self._written += len(data)
        size = self._answer.split or len(data)
        for at in range(0, len(data), max(size, 1)):
            await self._response.write(data[at : at + size])
            if self._answer.split:
                await asyncio.sleep(0)
        if cut and self._request.transport is not None:
            self._request.transport.close()
        return not cut


class _OwnThread:
    """Runs the server on an event loop of a thread of its own."""

    def __init__(self, server: OpenAIServer) -> None:
        self._server = server
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="rollcast-openai-server", daemon=True)
        self._thread.start()
        self._started.result()

    def _run(self) -> None:
        try:
            aio.run(self._serve())
        except OSError as error:  # the port is in use
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        await self._server.start()
        self._started.set_result(None)
        await self._ended.wait()
        await self._server.stop()

    def call(self, act: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(act)

    def end(self) -> None:
        self.call(self._ended.set)
        self._thread.join()


def _error(status: int, message: str, answer: ServedAnswer | None = None) -> web.Response:
    body = None if answer is None else answer.body
    if body is None:
        body = msgspec.json.encode({"error": {"message": message, "type": "error", "code": status}})
    headers = {"Content-Type": "application/json"} | ({} if answer is None else answer.headers)
    return web.Response(status=status, body=body, headers=headers)


async def _chained(first: ServedPiece | None, rest: AsyncIterator[ServedPiece]) -> AsyncIterator[ServedPiece]:
    try:
        if first is not None:
            yield first
            async for piece in rest:
                yield piece
    finally:
        if hasattr(rest, "aclose"):
            await rest.aclose()


async def _from_backend(
    backend: Backend, request_id: str, writer: Writer, announced: dict[int | None, str]
) -> AsyncIterator[ServedPiece]:
    """The tokens of a real backend as pieces of an answer."""
    body, asked = writer.body, writer.sampling
    stop = asked.get("stop") or ()
    sampling = Sampling(
        temperature=asked.get("temperature", 1.0),
        top_p=asked.get("top_p", 1.0),
        top_k=max(asked.get("top_k", 0), 0),
        max_tokens=writer.limit or 16,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=asked.get("seed"),
    )
    prompt = writer.prompt
    request = GenerationRequest(
        request_id,
        body.get("messages", []),
        body.get("tools") or [],
        sampling,
        list(prompt) if isinstance(prompt, list) else None,
    )
    if isinstance(prompt, str):
        raise InputError("prompt is text; this server takes ids, and messages on the chat route")
    deltas = backend.generate(request)
    try:
        async for delta in deltas:
            yield ServedPiece(
                delta.text,
                token_ids=delta.token_ids or [],
                logprobs=delta.logprobs or [],
                finish_reason=delta.finish_reason,
                weight_version=announced.get(delta.policy_version, delta.policy_version),
            )
    finally:
        if hasattr(deltas, "aclose"):
            await deltas.aclose()
