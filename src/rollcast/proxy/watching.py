"""Looks at what passes, for whoever watches. No fault in here reaches a caller.

Everything is called through `Watching.guarded`: if our own code raises, that is logged once, and from then on the proxy is a plain
copy. An answer that was to be put together again is then asked for anew, untouched.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from rollcast.errors import InputError
from rollcast.proxy.counts import Counts
from rollcast.proxy.rewriting import EngineTraits, Turned, turned
from rollcast.records.openai_chunk import chunk_pieces
from rollcast.records.openai_wire import (
    Answer,
    Piece,
    SseReader,
    WireRequest,
    pieces_of,
    request_of,
    whole_answer_pieces,
)
from rollcast.stream import StreamingManager
from rollcast.stream.conversations import Call, Conversations
from rollcast.stream.run import RunAbout, RunWriter

__all__ = ["Caller", "Watched", "Watching"]

logger = logging.getLogger("rollcast.proxy")

LOOK_S = 0.02
MOST_AT_ONCE_S = 0.002
MOST_KEPT = 64 << 20  # bytes of a whole answer that are kept to be read at its end

R = TypeVar("R")


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        session: the name of its session, or None.
        key: what its API key is known by, or None.
        chain: the chain that its path names, or None.
        group: the group that it names, or None.
        keys: its keys and the engine's, which an engine may repeat in an error; they are never shown.
    """

    session: str | None = None
    key: str | None = None
    chain: str | None = None
    group: str | None = None
    keys: tuple[str, ...] = field(default=(), repr=False)

    def without_keys(self, text: str) -> str:
        """The text with `[API key]` in place of each key."""
        for key in self.keys:
            text = text.replace(key, "[API key]")
        return text


class Showing(Protocol):
    """Decides which chains a console shows."""

    def begins(self, chain_id: str) -> None:
        """A call is about to begin; if it begins a chain, that will have this id."""
        ...

    def began(self, chain_id: str) -> None:
        """A call of this chain began."""
        ...


class Watching:
    """The watching side of a proxy.

    Args:
        manager: whose observers watch.
        counts: of the proxy.
        idle_s: a chain of which nothing was heard for so many seconds is closed.
        traits: what is known of the engine.
        about: fields of the run, such as `name` and `settings`.
        showing: what decides which chains a console shows; None: nobody does.

    Attributes:
        off: whether it has stepped aside after a fault.
    """

    def __init__(
        self,
        manager: StreamingManager,
        counts: Counts,
        *,
        idle_s: float = 600.0,
        traits: EngineTraits | None = None,
        about: RunAbout | None = None,
        showing: Showing | None = None,
    ) -> None:
        self.manager = manager
        self.counts = counts
        self.traits = traits or EngineTraits()
        self.off = False
        self._idle_s = idle_s
        self._about: RunAbout = {} if about is None else about
        self._showing = showing
        self._run: RunWriter | None = None
        self._conversations: Conversations | None = None
        self._to_look_at: dict[Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        # Proxies that publish to one hub name the same session alike.
        key = os.environ.get("ROLLCAST_HUB_TOKEN") or secrets.token_hex(16)
        self._key = hashlib.blake2b(key.encode(), digest_size=32).digest()

    # -- the guard -----------------------------------------------------------------------------------------------------

    def guarded(self, act: Callable[..., R], *args: Any, **options: Any) -> R | None:
        """Call our own code; None if it failed, or has failed before."""
        if self.off:
            return None
        try:
            return act(*args, **options)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is ours, and no caller may notice)
            self.step_aside(error)
            return None

    def step_aside(self, error: Exception) -> None:
        """After a fault: say so once, close what is open, and be a plain copy from now on."""
        if self.off:
            return
        self.off = True
        self.counts.faults += 1
        logger.warning(
            "Rollcast steps aside: its watching failed, and the proxy goes on as a plain copy. Please report this.",
            exc_info=error,
        )
        self._close("failed")

    @property
    def interested(self) -> bool:
        """Whether anybody watches at all."""
        return not self.off and bool(self.manager.fanout.deliveries)

    # -- a request -----------------------------------------------------------------------------------------------------

    def session_of(self, name: str, secret: bool) -> str:
        """The name of a session; one that is a secret, such as an API key, is known by its keyed hash."""
        if not secret:
            return name
        return (
            "key-"
            + hashlib.blake2b(name.encode("utf-8", "replace"), key=self._key, digest_size=8).hexdigest()
        )

    def begin(self, route: str, body: bytes, caller: Caller) -> Watched | None:
        """Take a request; None if it cannot be watched."""
        return self.guarded(self._begin, route, body, caller)

    def _begin(self, route: str, body: bytes, caller: Caller) -> Watched | None:
        try:
            request = request_of(route, body)
        except InputError:
            return None  # the engine says what is wrong with it
        talks, showing = self._talks(request), self._showing
        if showing is not None:
            run = talks.run
            showing.begins(f"{caller.chain or f'chain_{run.chains}'}{run.suffix}")
        call = talks.begin(
            request, session=caller.session, group=caller.group, chain=caller.chain, key=caller.key
        )
        self.counts.watched += 1
        if showing is not None:
            showing.began(call.chain_id)
        watched = Watched(self, call, request, caller)
        if not request.stream and self.traits.may_turn(request) is True and call.wants_tokens():
            made = turned(body, request, self.traits)
            if made.body.__class__ is not bytes:
                raise TypeError(f"a request was made {type(made.body).__name__}; expected bytes")
            watched.turned, watched.answer = made, Answer(request.kind, self.traits.of(request).shape)
        return watched

    def _talks(self, request: WireRequest | None = None) -> Conversations:
        if self._conversations is None:
            about: RunAbout = {
                "agent": "proxy",
                "model": "" if request is None else request.model,
                "chains": 0,
                "groups": 0,
            }
            about.update(self._about)
            about["settings"] = {
                **(about.get("settings") or {}),
                "attached": "proxy",
            }  # so that it is no training
            self._run = self.manager.run(**about).open()
            self._conversations = Conversations(self._run, idle_s=self._idle_s)
        return self._conversations

    # -- what else a caller says ----------------------------------------------------------------------------------------

    def reward(self, name: str, value: float, metrics: dict[str, Any] | None) -> str | None:
        """Give a session its reward; None, or why nobody will see it."""
        return self._tell("reward", name, value, metrics)

    def end(self, name: str) -> str | None:
        """End a session; None, or why nobody will see it."""
        return self._tell("end", name)

    def _tell(self, what: str, name: str, *args: Any) -> str | None:
        if self._conversations is None or self.off:
            return "nobody watches"
        try:
            getattr(self._conversations, what)(name, *args)
        except InputError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  (as in `guarded`)
            self.step_aside(error)
            return "nobody watches"
        return None

    def look_soon(self, watched: Watched) -> None:
        """Read what came of an answer within 20 ms: read together, pieces of many answers cost half, and a caller gets its bytes first."""
        self._to_look_at[watched] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Read what waits, for at most 2 ms at a time, so that no caller waits for it."""
        self._timer = None
        until = time.perf_counter() + MOST_AT_ONCE_S
        while self._to_look_at and not self.off:
            self.guarded(self._to_look_at.popitem()[0].look)
            if time.perf_counter() > until and self._to_look_at:
                self._timer = asyncio.get_running_loop().call_later(MOST_AT_ONCE_S, self._look)
                return
        if self.off:
            self._to_look_at.clear()

    def close_idle(self) -> None:
        """Close chains of which nothing was heard for long."""
        if self._conversations is not None:
            self.guarded(self._conversations.close_idle)

    def close(self) -> None:
        """End the run: what is open is closed."""
        if not self.off:
            self._close("completed")

    def _close(self, status: Any) -> None:
        self._to_look_at.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        conversations, run = self._conversations, self._run
        self._conversations = self._run = None
        for act in (
            conversations.close_all if conversations is not None else None,
            (lambda: run.close(status)) if run is not None else None,
        ):
            if act is not None:
                try:
                    act()
                except Exception:  # what is broken may not close either
                    logger.debug("closing failed", exc_info=True)


@dataclass(eq=False)
class Watched:
    """One request that somebody watches, and its answer.

    Attributes:
        watching: what guards it.
        call: its generation.
        request: what was read of it.
        caller: who asks.
        turned: the request as a stream; None if it goes through as it is.
        answer: what puts the answer together again, if it was made a stream.
        error_in_stream: the status and the body of an error that the engine reported inside the stream.
        why_not_whole: why the answer cannot be put together, if it cannot.
    """

    watching: Watching
    call: Call
    request: WireRequest
    caller: Caller
    turned: Turned | None = None
    answer: Answer | None = None
    _reader: SseReader | None = None
    _waiting: list[bytes] = field(default_factory=list)
    _kept: list[bytes] = field(default_factory=list)
    _size: int = 0
    _encoded: bool = False
    _said: bool = False  # whether there was any text
    _usage: bool = False  # whether the engine counted the tokens
    _status: int = 0
    _headers: list[str] = field(default_factory=list)
    _type: str = ""  # of the answer's body
    _over: bool = False
    _asked_s: int = field(default_factory=lambda: int(time.time()))
    _doubt: str | None = (
        None  # why the engine refused the request as it was changed; perhaps it refuses the caller's own too
    )
    error_in_stream: tuple[int, bytes] | None = None
    why_not_whole: str = "its stream has no end; it is asked again"

    # -- as `passing.Seen` ---------------------------------------------------------------------------------------------

    def answered(self, status: int, headers: Any) -> None:
        """The engine has answered with this status; the body follows."""
        self.watching.guarded(self._answered, status, headers)

    def took(self, data: bytes) -> None:
        """A piece of the body came. It is read a little later, together with those of other answers."""
        watching = self.watching
        if not watching.off:
            self._waiting.append(data)
            watching.look_soon(self)

    def ended(self) -> None:
        """The body was whole."""
        self.watching.guarded(self._ended)

    def failed(self, why: str) -> None:
        """The engine broke off, or gave no answer."""
        self.watching.guarded(self._failed, why)

    def left(self) -> None:
        """The caller has left."""
        self.watching.guarded(self._left)

    def was_refused(self, why: bytes) -> None:
        """The engine refused the request as it was changed."""
        self.watching.guarded(self._was_refused, why)

    def _was_refused(self, why: bytes) -> None:
        self._doubt = why.decode("utf-8", "replace")
        self.as_it_was()

    def _note_refusal(self, why: str) -> None:
        less = self.watching.traits.of(self.request).was_refused(why)
        logger.warning(
            "the engine refuses what the proxy adds to a watched request on the route of %s; it was sent again as it was, and the next "
            "ones ask for %s",
            self.request.kind,
            less,
        )

    # -- the same, unguarded -------------------------------------------------------------------------------------------

    def _answered(self, status: int, headers: Any) -> None:
        self._status = status
        self._headers = [name.lower() for name in headers]
        if self._doubt is not None and status < 400:  # else the caller's own request was refused
            self._note_refusal(self._doubt)
        self._type = headers.get("Content-Type", "")
        kind = self._type.partition(";")[0].strip().lower()
        self._encoded = headers.get("Content-Encoding", "identity").lower() != "identity"
        if status == 200 and kind == "text/event-stream" and not self._encoded:
            self._reader = SseReader()

    def as_it_was(self) -> None:
        """The request is sent as the caller wrote it after all."""
        self.turned = self.answer = self._reader = None

    def look(self) -> None:
        """Read what waits."""
        if self._waiting:
            data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting.clear()
            self._took(data)

    def _took(self, data: bytes) -> None:
        if self._reader is not None:
            read = chunk_pieces if self.answer is None else pieces_of
            for payload in self._reader.feed(data):
                pieces = read(payload)
                self._pieces(pieces)
                if pieces[0].error is not None and self.answer is not None:
                    self.error_in_stream = _error_in(payload)
        elif self._size <= MOST_KEPT:
            self._size += len(data)
            self._kept.append(data)

    def _pieces(self, pieces: Iterable[Piece]) -> None:
        call, answer, traits = self.call, self.answer, self.watching.traits
        for piece in pieces:
            if answer is not None:
                answer.add(piece)
            if piece.text or piece.reasoning:
                self._said = True
            if piece.usage is not None:
                self._usage = True
            if piece.error is not None:
                piece.error = self.caller.without_keys(piece.error)
            traits.saw(self.request.kind, piece)
            call.piece(piece)

    def _ended(self) -> None:
        if self._over:
            return
        self.look()
        self._over = True
        if self._reader is None:
            self._read_whole()
        if self._status == 200:
            self._say_what_lacks()
            self.call.end()

    def _read_whole(self) -> None:
        if self._encoded or self._size > MOST_KEPT:
            self.call.piece(Piece(error="its answer is compressed or too large to be read here"))
            return
        body = b"".join(self._kept)
        self._kept.clear()
        if self._status != 200:
            self.call.failed(self.caller.without_keys(_reason(self._status, body)))
            return
        try:
            whole = msgspec.json.decode(body)
        except msgspec.DecodeError:
            self.call.failed("the engine's answer is not JSON")
            self._status = 0
            return
        if isinstance(whole, dict):
            self.watching.traits.of(self.request).learn(whole, self._headers, self._type)
            self._pieces(whole_answer_pieces(whole))

    def _say_what_lacks(self) -> None:
        if self.turned is None or not self._said:
            return
        for words in self.watching.traits.lacking(self.request.kind, self.turned.added):
            logger.warning(
                "the engine gives no %s on the route of %s: chains from there are shown without them",
                words,
                self.request.kind,
            )

    def _failed(self, why: str) -> None:
        if not self._over:
            self.look()
            self._over = True
            self.call.failed(
                f"the engine gave no answer: {why}" if not self._status else f"the engine broke off: {why}"
            )

    def _left(self) -> None:
        if not self._over:
            self.look()
            self._over = True
            self.call.cancelled()

    # -- an answer that is put together again ---------------------------------------------------------------------------

    def whole_body(self) -> bytes | None:
        """The answer that the engine would have sent whole; None if it cannot be made."""
        body = self.watching.guarded(self._whole_body)
        if body is None or body.__class__ is not bytes:
            return None
        return body

    @property
    def content_type(self) -> str:
        """The type that the engine gives its whole answers."""
        return self.watching.traits.of(self.request).content_type

    def in_order(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The headers of the whole answer in the engine's order."""
        return self.watching.guarded(self._in_order, headers) or headers

    def _in_order(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return self.watching.traits.of(self.request).in_order(headers)

    def _whole_body(self) -> bytes | None:
        self.look()
        if (
            self.answer is None
            or self.turned is None
            or self.answer.error is not None
            or not self.answer.ended
        ):
            return None
        call = self.watching.traits.of(self.request)
        if call.has_usage and not self._usage:
            call.streams = (
                False  # it takes no `stream_options`, so its streams lack what its whole answers have
            )
            self.why_not_whole = "its stream has no usage; it is asked again"
            return None
        if missing := self.answer.missing():
            call.streams = False
            self.why_not_whole = (
                f"its stream has no {', '.join(sorted(missing))} as a whole answer has it; it is asked again"
            )
            return None
        return self.answer.body(without=self.turned.added, created=self._asked_s)


def _error_in(payload: bytes) -> tuple[int, bytes] | None:
    """The status and the body with which an engine would have answered, had it not begun a stream; None if this is no error of its own."""
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    error = found.get("error") if isinstance(found, dict) else None
    if error is None:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return (code if isinstance(code, int) and 400 <= code <= 599 else 500), payload


def _reason(status: int, body: bytes) -> str:
    """Why the engine refused, in its own words if it has some."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    error = found.get("error", found) if isinstance(found, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return f"the engine answered {status}" + (
        f": {message[:500]}" if isinstance(message, str) and message else ""
    )
