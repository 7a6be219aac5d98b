"""Watches the loop in which a TRL trainer calls its tools: which row calls what, what it returns, and who generates next.

The loop keeps its state in local variables. What can be seen of it is the list of completions, to which it adds each message, and
the dicts of tools, of which there is one a row and batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Self

from rollcast.attaching.trl_batch import Batch, Call
from rollcast.attaching.watch import Watch

__all__ = ["ToolLoop"]

_PLAIN = (str, int, float, bool, type(None))


class ToolLoop:
    """One run of the loop, over all rows of a batch.

    Args:
        watch: where the batch is told.
        batch: the batch.
        completions: the messages of each row, to which the loop adds.
    """

    def __init__(self, watch: Watch, batch: Batch, completions: Sequence[list[dict[str, Any]]]) -> None:
        self.watch = watch
        self._batch = batch
        self._completions = completions
        self._seen = [0] * len(completions)  # how many messages of each row were looked at
        self._before = [len(messages) for messages in completions]  # how many it had at the last turn
        self._calls: dict[int, list[Call]] = {}  # of each row's last message
        self._dicts: tuple[list[Any], list[Any]] | None = None  # the trainer's own

    def look(self) -> None:
        """Tell the batch which messages were added since the last look."""
        for number, messages in enumerate(self._completions):
            seen, count = self._seen[number], len(messages)
            if count == seen:
                continue
            self._seen[number] = count
            if count < seen:
                continue  # the trainer took back what the tools returned
            new = [dict(message) for message in messages[seen:]]
            if new[-1].get("role") == "assistant":
                self._calls[number] = [_call_of(call) for call in new[-1].get("tool_calls") or ()]
                self.watch.tell(self._batch.messages, number, new, list(self._calls[number]))
            else:
                self.watch.tell(self._batch.messages, number, new, [])

    def rows_of_next_turn(self) -> list[int]:
        """The rows that generate now: those whose tools have just returned something that was not taken back."""
        self.look()
        rows = []
        for number, messages in enumerate(self._completions):
            if len(messages) > self._before[number] and messages[-1].get("role") == "tool":
                rows.append(number)
            self._before[number] = len(messages)
        return rows

    def wrap(self, trainer: Any) -> None:
        """Replace the tools of this batch by ones that tell of their calls."""
        sync, others = trainer._sync_tool_dicts, trainer._async_tool_dicts  # noqa: SLF001  (TRL keeps them nowhere else)
        self._dicts = sync, others
        trainer._sync_tool_dicts = [  # noqa: SLF001  (as above)
            {name: self._watched(number, name, tool) for name, tool in tools.items()}
            for number, tools in enumerate(sync)
        ]
        trainer._async_tool_dicts = [  # noqa: SLF001  (as above)
            {name: self._watched_async(number, name, tool) for name, tool in tools.items()}
            for number, tools in enumerate(others)
        ]

    def unwrap(self, trainer: Any) -> None:
        """Put the tools back."""
        if self._dicts is not None:
            trainer._sync_tool_dicts, trainer._async_tool_dicts = self._dicts  # noqa: SLF001  (as above)

    def begins(self, number: int, name: str) -> Call | None:
        """The call of this row that the trainer makes now; None if the model asked for none of this name."""
        self.look()
        for call in self._calls.get(number, ()):
            if call.name == name and not call.claimed:
                call.claimed = True
                self.watch.tell(self._batch.calls, number, call)
                return call
        return None

    def ends(self, number: int, call: Call, result: Any, *, failed: bool) -> None:
        """A call has returned, or raised. Only text and plain numbers are turned into text here; of the rest TRL makes it."""
        call.failed = failed
        text = str(result) if not failed and type(result) in _PLAIN else None
        self.watch.tell(self._batch.called, number, call, text)

    def _watched(self, number: int, name: str, tool: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(tool)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with _Telling(self, number, name) as telling:
                telling.result = tool(*args, **kwargs)
            return telling.result

        return watched

    def _watched_async(self, number: int, name: str, tool: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(tool)
        def watched(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            telling = _Telling(self, number, name).__enter__()
            try:
                made = tool(*args, **kwargs)  # which refuses wrong arguments now, as without us
            except BaseException:
                telling.tell(failed=True)
                raise
            if telling.call is not None:
                telling.call.is_async = True
            return _awaited(telling, made)

        return watched


class _Telling:
    """Tells of one call of a tool: as a block around it, or piece by piece.

    Attributes:
        call: the call, if the model asked for one.
        result: what the tool returned.
    """

    def __init__(self, loop: ToolLoop, number: int, name: str) -> None:
        self._loop, self._number, self._name = loop, number, name
        self.call: Call | None = None
        self.result: Any = None

    def __enter__(self) -> Self:
        with self._loop.watch.guarded():
            self.call = self._loop.begins(self._number, self._name)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.tell(failed=kind is not None)

    def tell(self, *, failed: bool) -> None:
        with self._loop.watch.guarded():
            if self.call is not None:
                self._loop.ends(self._number, self.call, self.result, failed=failed)


async def _awaited(telling: _Telling, made: Coroutine[Any, Any, Any]) -> Any:
    try:
        telling.result = await made
    except BaseException:
        telling.tell(failed=True)
        raise
    telling.tell(failed=False)
    return telling.result


def _call_of(call: Mapping[str, Any]) -> Call:
    function = call.get("function") or {}
    name = function.get("name") or call.get("name") or "unknown"
    return Call(str(name), function.get("arguments"))
