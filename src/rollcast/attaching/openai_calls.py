"""The calls of a watched client: in the host's thread their bytes are handed over, and elsewhere they become generations.

A call outside of any chain belongs to a conversation of the client's own run, which the watch's thread writes. A call inside a chain
of the user's, `with run.chain(…)`, is a generation of that chain. It is written at once, in the user's thread, since the order of it
and of what the user's own code reports matters; inside an attached function it is told to that function's thread, in order as well.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Literal

import msgspec

from rollcast.aio import why_left
from rollcast.attaching.attachment import Attachment
from rollcast.attaching.deferred import DeferredChain
from rollcast.errors import InputError
from rollcast.failures import class_name_of, text_of
from rollcast.records.openai_responses import (
    id_of_response,
    is_of_responses,
    pieces_of_event,
    pieces_of_response,
    request_of_responses,
)
from rollcast.records.openai_wire import (
    Piece,
    RequestKind,
    SseReader,
    WireRequest,
    pieces_of,
    request_of,
    whole_answer_pieces,
)
from rollcast.stream.chain import ChainWriter, chain_here, innermost
from rollcast.stream.conversations import Call, Conversations
from rollcast.stream.inside_chain import InsideChain

__all__ = ["SdkCall", "SdkCalls"]

logger = logging.getLogger("rollcast.attach")

Kind = RequestKind | Literal["responses"]
MAX_HISTORIES = 4096  # conversations that a later request may name by the id of their last response


class SdkCalls:
    """Where the calls of one client go.

    Args:
        attachment: of the client.
        idle_s: after how many seconds without a request a conversation is closed.
    """

    def __init__(self, attachment: Attachment, idle_s: float | None) -> None:
        self.watch = attachment.watch
        self._attachment = attachment
        self._idle_s = idle_s
        self._conversations: Conversations | None = None  # of the watch's thread
        self._lock = threading.Lock()
        self._inside: dict[int, InsideChain] = {}
        self._room = 64  # how many of them there may be before those of ended chains are forgotten
        self._told: set[str] = set()
        self._histories: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()  # by the id of a response
        attachment.on_close(self._close)

    def call(self, kind: Kind) -> SdkCall:
        """A call begins, in this thread and context."""
        around: Any = innermost(chain_here.get())
        if isinstance(around, DeferredChain):
            watch = around.attachment.watch
            if watch.on:
                return SdkCall(self, kind, watch.tell, watch.tell, lambda: around.writer)
            around = None
        later = self.watch.tell
        if around is None:
            return SdkCall(self, kind, later, later, None)
        return SdkCall(self, kind, self._directly, later, lambda: around)

    def _directly(self, act: Callable[..., object], *args: Any) -> None:
        with self.watch.guarded():
            if self.watch.on:
                act(*args)

    def begin(
        self, request: WireRequest, chain: ChainWriter | None, who: tuple[int, int], *, inside: bool
    ) -> Call | None:
        """Begin the generation of a call; None if it is not shown."""
        if not inside:
            if self._conversations is None:
                self._conversations = Conversations(self._attachment.run, self._idle_s)
            return self._conversations.begin(request)
        if chain is None:
            return None
        here = self._inside_of(chain)
        try:
            return here.begin(request, who)
        except InputError as error:  # such as a call after the chain's reward
            if str(error) not in self._told and len(self._told) < 100:
                self._told.add(str(error))
                logger.warning("a call of an openai client is not shown: %s", error)
            return None

    def history(self, response_id: Any) -> list[dict[str, Any]]:
        """The conversation that ended with this response; empty if it is not known. Any thread may ask."""
        with self._lock:
            return self._histories.get(response_id, []) if isinstance(response_id, str) else []

    def remember(self, response_id: str, messages: list[dict[str, Any]]) -> None:
        """Note a conversation that a later request may go on with by the id of its last response."""
        with self._lock:
            self._histories[response_id] = messages
            if len(self._histories) > MAX_HISTORIES:
                self._histories.popitem(last=False)

    def _inside_of(self, chain: ChainWriter) -> InsideChain:
        """What is known of the requests inside a chain. Any thread may ask."""
        with self._lock:
            if len(self._inside) >= self._room:
                self._inside = {key: here for key, here in self._inside.items() if not here.chain.ended}
                self._room = 2 * len(self._inside) + 64
            here = self._inside.get(id(chain))
            if here is None or here.chain is not chain:
                here = self._inside[id(chain)] = InsideChain(chain)
            return here

    def _close(self) -> None:
        if self._conversations is not None:
            self._conversations.close_all()


class SdkCall:
    """One call of the client, with all its attempts.

    The methods without an underscore are called in the host's thread and return at once.
    """

    __slots__ = (
        "__weakref__",
        "_answer_done",
        "_call",
        "_calls",
        "_chain",
        "_is_stream",
        "_kind",
        "_later",
        "_left",
        "_over",
        "_reader",
        "_response_id",
        "_rest",
        "_tell", "_who",
        "reading",
    )  # fmt: skip

    def __init__(
        self,
        calls: SdkCalls,
        kind: Kind,
        tell: Callable[..., None],
        later: Callable[..., None],
        chain: Callable[[], ChainWriter | None] | None,
    ) -> None:
        self._calls = calls
        self._kind: Kind = kind
        self._response_id: str | None = None  # of the responses route
        self._tell = tell
        self._later = later
        self._chain = chain
        self._who = _thread_and_task()
        self._call: Call | None = None
        self._reader = SseReader()
        self._rest: list[bytes] = []  # of an answer that does not stream, though its bytes come in parts
        self._is_stream = False
        self._answer_done = False
        self.reading = False  # whether the bytes are being asked for right now
        self._over = False
        self._left = False

    # -- in the host's thread ------------------------------------------------------------------------------------------

    def sent(self, body: bytes) -> None:
        """An attempt is about to be sent."""
        self._tell(self._begin, body)

    def raised(self, error: BaseException) -> None:
        """The call raised this, or its stream did."""
        with self._calls.watch.guarded():
            if self._over:
                return
            self._over = True
            if why_left(error) == "cancelled":
                self._tell(self._cancelled)
            else:
                self._tell(self._failed, text_of(error) or class_name_of(error), class_name_of(error))

    def got(self, response: Any, *, is_async: bool) -> None:
        """The response has come: with its body, or with a body that will be read."""
        self._is_stream = str(response.headers.get("content-type", "")).startswith("text/event-stream")
        if response.is_closed:
            self._over = True
            if self._is_stream:  # it was read already, as one is that a transport made or had stored
                self._tell(self._bytes, response.content)
                self._tell(self._end)
            else:
                self._tell(self._whole, response.content)
            return
        hooked = _AsyncBody(self, response) if is_async else _Body(self, response)
        hooked.put_on()
        weakref.finalize(response, self.leave).atexit = False

    def came(self, data: bytes) -> None:
        """These bytes have come."""
        self._tell(self._bytes, data)

    def ended(self) -> None:
        """All bytes have come."""
        self._over = True
        self._tell(self._end)

    def leave(self) -> None:
        """Nobody reads on. This may be called in the middle of anything, so it writes nothing here."""
        if self._over or self.reading:
            return
        self._over = self._left = True
        if self._call is not None:
            self._call.abandoned = True
        self._later(self._leave)

    # -- where it is written -------------------------------------------------------------------------------------------

    def _begin(self, body: bytes) -> None:
        if self._call is not None:
            self._call.failed("no answer came; the client tries again")
        try:
            request = self._request(body)
        except (InputError, msgspec.DecodeError):
            return  # the engine refuses it as well, or answers later
        chain = None if self._chain is None else self._chain()
        self._call = self._calls.begin(request, chain, self._who, inside=self._chain is not None)

    def _request(self, body: bytes) -> WireRequest:
        if self._kind != "responses":
            return request_of(self._kind, body)
        fields = msgspec.json.decode(body, type=dict[str, Any])
        if fields.get("background"):
            raise InputError("a response that runs in the background is not answered here")
        return request_of_responses(fields, self._calls.history(fields.get("previous_response_id")))

    def _whole(self, body: bytes) -> None:
        call = self._call
        if call is None:
            return
        for piece in self._pieces(body, whole=True):
            call.piece(piece)
        self._end_call(call)

    def _pieces(self, data: bytes, *, whole: bool) -> list[Piece]:
        """What an event, or a whole answer, says."""
        if self._kind == "responses":
            with suppress(msgspec.DecodeError):
                fields = msgspec.json.decode(data)
                if isinstance(fields, dict) and is_of_responses(fields):
                    self._response_id = id_of_response(fields) or self._response_id
                    return pieces_of_response(fields) if whole else pieces_of_event(fields)
        return whole_answer_pieces(data) if whole else pieces_of(data)

    def _end_call(self, call: Call) -> None:
        call.end()
        if self._response_id is not None and call.answer is not None:
            self._calls.remember(self._response_id, [*call.request.messages, call.answer])

    def _bytes(self, data: bytes) -> None:
        if self._call is None:
            return
        if not self._is_stream:
            self._rest.append(data)
            return
        for payload in self._reader.feed(data):
            for piece in self._pieces(payload, whole=False):
                self._piece(piece)

    def _piece(self, piece: Piece) -> None:
        if piece.done:
            self._answer_done = True
            if self._call is not None:
                self._end_call(self._call)
        elif self._call is not None:
            self._call.piece(piece)

    def _end(self) -> None:
        call = self._call
        if call is None:
            return
        if not self._is_stream:
            self._whole(b"".join(self._rest))
        elif self._answer_done or call.told_its_end:
            self._end_call(call)
        else:
            call.failed("the stream ended before the answer did")

    def _leave(self) -> None:
        call = self._call
        if call is None:
            return
        if self._answer_done or call.told_its_end:
            self._end_call(call)  # there was nothing more to read
        else:
            call.cancelled()

    def _failed(self, text: str, kind: str) -> None:
        if self._call is not None:
            self._call.failed(text, kind)

    def _cancelled(self) -> None:
        if self._call is not None:
            self._call.cancelled()


def _thread_and_task() -> tuple[int, int]:
    """Which thread and task this is: code of one and the same does one thing at a time."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        task = None
    return threading.get_ident(), 0 if task is None else id(task)


class _Body:
    """The body of a response on its way: its bytes are looked at, and whether somebody closes it before its end."""

    names = ("iter_bytes", "close")

    def __init__(self, call: SdkCall, response: Any) -> None:
        self.call = call
        self.first = True
        self.response = response
        self.read, self.close = (getattr(response, name) for name in self.names)

    def put_on(self) -> None:
        """Hook the one response."""
        for name, hook in zip(self.names, (self.bytes_hook, self.close_hook), strict=True):
            setattr(self.response, name, hook)

    def take_off(self) -> None:
        """Take the hooks out, so that the response is as it was, and can be pickled."""
        for name in self.names:
            vars(self.response).pop(name, None)

    def bytes_hook(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        source = self.read(*args, **kwargs)
        if not self.first:
            return source  # type: ignore[no-any-return]  # what the response gives
        self.first = False
        return self._watched(source)

    def _watched(self, source: Any) -> Iterator[bytes]:
        call = self.call
        call.reading = True
        try:
            for data in source:
                call.reading = False
                call.came(data)
                yield data
                call.reading = True
        except GeneratorExit:
            call.leave()
            raise
        except BaseException as error:
            call.raised(error)
            raise
        call.reading = False
        self.take_off()
        call.ended()

    def close_hook(self) -> Any:
        self.call.leave()
        return self.close()


class _AsyncBody(_Body):
    """The same for a client that is async."""

    names = ("aiter_bytes", "aclose")

    async def _watched_async(self, source: Any) -> AsyncIterator[bytes]:
        call = self.call
        call.reading = True
        try:
            async for data in source:
                call.reading = False
                call.came(data)
                yield data
                call.reading = True
        except GeneratorExit:
            call.leave()
            raise
        except BaseException as error:
            call.raised(error)
            raise
        call.reading = False
        self.take_off()
        call.ended()

    def bytes_hook(self, *args: Any, **kwargs: Any) -> Any:
        source = self.read(*args, **kwargs)
        if not self.first:
            return source
        self.first = False
        return self._watched_async(source)

    async def close_hook(self) -> Any:
        self.call.leave()
        return await self.close()
