"""An observer that calls a function, as `streaming_callback` does."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream.observer import StreamObserver

__all__ = ["CallbackStreamObserver"]

_TEXT_FIELD = {
    StreamEventType.LLM_GENERATION_CHUNK: "content",
    StreamEventType.TOOL_OBSERVATION: "observation",
    StreamEventType.ERROR: "error",
}
_Callback = Callable[..., Awaitable[object] | object]


class CallbackStreamObserver(StreamObserver):
    """Calls a function with the text of each event, in the event loop of the run, which it must not block.

    The text is a chunk's `content`, an observation's `observation` or an error's `error`, and `""` for other types.

    Args:
        callback: sync or async. Called as `callback(text)`, or as `callback(text, event)` if it has a second positional
            parameter that has no default or is called `event`.
        chain_filter: an `EventFilter`, a chain id or several; None for all chains.
        types: event types. None: those that `chain_filter` names, or only chunks if it names none.

    Raises:
        FilterError: `chain_filter` or `types` names something that does not exist.
        InputError: `callback` cannot be called in either way.
    """

    def __init__(
        self,
        callback: _Callback,
        *,
        chain_filter: EventFilter | str | Iterable[str] | None = None,
        types: str | Iterable[str] | None = None,
    ) -> None:
        self._callback = callback
        self._takes_event = _takes_event(callback)
        self.filter = EventFilter.coerce(chain_filter)
        if types is not None:
            self.filter &= EventFilter(types=types)
        elif all(part.types is None for part in self.filter.alternatives):
            self.filter &= EventFilter(types=StreamEventType.LLM_GENERATION_CHUNK)

    async def on_event(self, event: StreamEvent) -> None:
        field = _TEXT_FIELD.get(event.event_type)
        text = "" if field is None else event.data[field]
        result = self._callback(text, event) if self._takes_event else self._callback(text)
        if inspect.isawaitable(result):
            await result


def _takes_event(callback: Any) -> bool:
    """Whether to call it with `(text, event)` rather than with `(text)`."""
    if not callable(callback):
        raise InputError(
            f"a streaming callback must be callable, found {type(callback).__name__}; "
            "give a function of (text) or of (text, event)"
        )
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some builtins have none
        return False
    positional = [
        p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    second = positional[1] if len(positional) > 1 else None
    takes_event = second is not None and (second.default is second.empty or second.name == "event")
    try:
        signature.bind(*(("", None) if takes_event else ("",)))
    except TypeError as error:
        name = getattr(callback, "__name__", type(callback).__name__)
        raise InputError(
            f"the streaming callback {name}{signature} cannot be called with (text) or (text, event): {error}; "
            "give its other parameters defaults"
        ) from None
    return takes_event
