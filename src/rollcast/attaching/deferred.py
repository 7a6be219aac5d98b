"""A chain whose writer works on the watch's thread: the same calls as those of `ChainWriter`, none of which waits or raises.

Inside an attached function `current_chain()` returns one. What is done in a wrong order (docs/producers.md says what is refused) is
left out, and a warning says so once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rollcast.aio import why_left
from rollcast.attaching.attachment import Attachment
from rollcast.errors import InputError
from rollcast.failures import class_name_of, text_and_place
from rollcast.records.jsonable import as_json, detached
from rollcast.stream.chain import ChainWriter, GenerationWriter, ToolCallWriter

__all__ = ["DeferredChain", "DeferredGeneration", "DeferredToolCall"]

logger = logging.getLogger("rollcast.attach")

_UNCHANGING = (str, int, float, bool, type(None))


def copied(value: Any) -> Any:
    """The value as JSON of its own, so that the host may change what it gave. It calls the value's own code only to read it."""
    if type(value) in _UNCHANGING:
        return value
    return detached(as_json(value))


class _Deferred:
    """What has a writer on the watch's thread."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self.writer: Any = None  # set and used on the watch's thread

    def _tell(self, act: Callable[..., object], *args: Any) -> None:
        self.attachment.watch.tell(self._try, act, args)

    def _try(self, act: Callable[..., object], args: tuple[Any, ...]) -> None:
        """On the thread: what the user's own code does in a wrong order is its mistake, and does not end the watching."""
        try:
            act(*args)
        except InputError as error:
            _log_once(str(error))


BEGIN_S = 5.0  # how long one thread waits for another to begin a chain; it takes hundredths of a second
LOOK_S = 0.001
_told: set[str] = set()


def _log_once(sentence: str) -> None:
    if sentence not in _told and len(_told) < 100:
        _told.add(sentence)
        logger.warning("not shown: %s", sentence)


class DeferredChain(_Deferred):
    """A chain. Its writer begins it on the thread.

    Args:
        attachment: whose chain it is.
        around: the chain in whose code it begins.

    Attributes:
        begun: whether the thread has begun it, or could not.
        ended: whether the host has ended it.
        live: True, as of a chain whose run is watched.
    """

    live = True

    def __init__(self, attachment: Attachment, around: Any = None) -> None:
        super().__init__(attachment)
        self.around = around
        self.begun = False
        self.ended = False
        self.generation_open: DeferredGeneration | None = None

    @property
    def trajectory(self) -> Any:
        """The chain's trajectory as far as the thread has written it; None before it began."""
        return None if self.writer is None else self.writer.trajectory

    def begin(self, make: Callable[[], ChainWriter]) -> None:
        """Have the chain begun.

        Args:
            make: makes the writer. It is called on the thread.
        """
        self._tell(self._begin, make)

    def _begin(self, make: Callable[[], ChainWriter]) -> None:
        try:
            self.writer = make().start()
        finally:
            self.begun = True

    def begun_writer(self) -> Any:
        """Its writer, for the thread of another attachment, which waits a moment for this one's; None if it could not begin.

        The threads never wait for each other: a chain is begun before those that begin in its code.
        """
        watch, give_up = self.attachment.watch, time.monotonic() + BEGIN_S
        while not self.begun and watch.on and time.monotonic() < give_up:
            time.sleep(LOOK_S)
        return self.writer

    def generation(self, **about: Any) -> DeferredGeneration:
        """See `ChainWriter.generation`."""
        return DeferredGeneration(self, about)

    def tool_call(
        self, tool_name: str, arguments: Any = None, call_id: str | None = None
    ) -> DeferredToolCall:
        """See `ChainWriter.tool_call`."""
        return DeferredToolCall(self, tool_name, arguments, call_id)

    def message(self, message: Any, *, from_outside: bool = False) -> None:
        """See `ChainWriter.message`."""
        with self.attachment.watch.guarded():
            self._tell(self._message, copied(message), from_outside)

    def _message(self, message: Any, from_outside: bool) -> None:
        if self.writer is not None:
            self.writer.message(message, from_outside=from_outside)

    def reward(self, reward: float, metrics: dict[str, Any] | None = None) -> None:
        """See `ChainWriter.reward`."""
        with self.attachment.watch.guarded():
            self._tell(self._reward, "reward", copied(reward), copied(metrics))

    def step_reward(self, reward: float, metrics: dict[str, Any] | None = None) -> None:
        """See `ChainWriter.step_reward`."""
        with self.attachment.watch.guarded():
            self._tell(self._reward, "step_reward", copied(reward), copied(metrics))

    def _reward(self, which: str, reward: Any, metrics: Any) -> None:
        if self.writer is not None:
            getattr(self.writer, which)(reward, metrics)

    def error(self, error: BaseException | str, where: str, **_: Any) -> None:
        """See `ChainWriter.error`. The exception itself is not kept, since it keeps the host's objects alive."""
        with self.attachment.watch.guarded():
            text, kind = (
                (error, "") if isinstance(error, str) else (text_and_place(error), class_name_of(error))
            )
            self._tell(self._error, text, where, kind)

    def _error(self, text: str, where: str, kind: str) -> None:
        if self.writer is not None:
            self.writer.trajectory.error = text
            self.writer.error(text, where, error_type=kind)

    def end(self, finish_reason: Any, final_response: str | None = None) -> None:
        """See `ChainWriter.end`."""
        self.ended = True
        self._tell(self._end, finish_reason, final_response)

    def _end(self, finish_reason: Any, final_response: str | None) -> None:
        if self.writer is not None:
            self.writer.end(finish_reason, final_response)

    def wants(self, event_type: Any) -> bool:
        """Whether any observer wants events of this type from this chain."""
        writer = self.writer
        return writer is not None and bool(writer.wants(event_type))


class DeferredGeneration(_Deferred):
    """A generation. Use it as a context manager, or call `start` and `end`."""

    def __init__(self, chain: DeferredChain, about: dict[str, Any]) -> None:
        super().__init__(chain.attachment)
        self.chain = chain
        self._about = about

    def start(self) -> Self:
        """See `GenerationWriter.start`."""
        self.chain.generation_open = self
        self._tell(self._start)
        return self

    def _start(self) -> None:
        chain = self.chain.writer
        if chain is not None:
            writer: GenerationWriter = chain.generation(**self._about)
            self.writer = writer.start()

    def chunk(
        self,
        text: str,
        token_ids: list[int] | None = None,
        logprobs: list[float] | None = None,
        policy_version: int | None = None,
        reasoning: str | None = None,
    ) -> None:
        """See `GenerationWriter.chunk`. The lists are kept and must not be changed afterwards."""
        self._tell(self._chunk, text, token_ids, logprobs, policy_version, reasoning)

    def _chunk(self, *piece: Any) -> None:
        if self.writer is not None:
            self.writer.chunk(*piece)

    def end(self, finish_reason: Any = "stop", **counted: Any) -> None:
        """See `GenerationWriter.end`."""
        if self.chain.generation_open is self:
            self.chain.generation_open = None
        self._tell(self._end, finish_reason, counted)

    def _end(self, finish_reason: Any, counted: dict[str, Any]) -> None:
        if self.writer is not None:
            self.writer.end(finish_reason, **counted)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end("stop" if error is None else why_left(error))


class DeferredToolCall(_Deferred):
    """A tool call. Use it as a context manager, or call `start` and `end`."""

    def __init__(self, chain: DeferredChain, tool_name: str, arguments: Any, call_id: str | None) -> None:
        super().__init__(chain.attachment)
        self.chain = chain
        self._call: tuple[Any, ...] = ()
        with chain.attachment.watch.guarded():
            self._call = (tool_name, copied(arguments), call_id)

    def start(self) -> Self:
        """See `ToolCallWriter.start`."""
        self._tell(self._start)
        return self

    def _start(self) -> None:
        chain = self.chain.writer
        if chain is not None and self._call:
            writer: ToolCallWriter = chain.tool_call(*self._call)
            self.writer = writer.start()

    def observation(self, observation: str, status: Any = "success", *, partial: bool = False) -> Self:
        """See `ToolCallWriter.observation`."""
        self._tell(self._observation, observation, status, partial)
        return self

    def _observation(self, observation: str, status: Any, partial: bool) -> None:
        if self.writer is not None:
            self.writer.observation(observation, status, partial=partial)

    def end(self, left: str = "error") -> None:
        """See `ToolCallWriter.end`."""
        self._tell(self._end, left)

    def _end(self, left: str) -> None:
        if self.writer is not None:
            self.writer.end(left)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and why_left(error) == "error":
            with self.attachment.watch.guarded():
                self._tell(self._failed, text_and_place(error))
        self.end(why_left(error))

    def _failed(self, text: str) -> None:
        if self.writer is not None and self.writer.record.status is None:
            self.writer.observation(f"error: {text}", "error")
