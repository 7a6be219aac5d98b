"""Finds the chain of the current context, so that code deep inside an agent need not be passed the chain.

    from rollcast import current_chain

    def search(query):
        with current_chain().tool_call("search", {"query": query}) as call:
            ...

Outside a chain these calls do nothing and cost next to nothing.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rollcast.records import Message, StreamEventType
from rollcast.stream.chain import ChainWriter, chain_here, innermost

__all__ = ["NoChain", "current_chain"]


class _Nothing:
    """A generation or a tool call outside a chain."""

    __slots__ = ()

    def start(self) -> Self:
        return self

    def chunk(
        self,
        text: str,
        token_ids: list[int] | None = None,
        logprobs: list[float] | None = None,
        policy_version: int | None = None,
        reasoning: str | None = None,
    ) -> None:
        pass

    def observation(self, observation: str, status: str = "success", *, partial: bool = False) -> Self:
        return self

    def end(
        self, why: str = "", *, completion_tokens: int | None = None, prompt_tokens: int | None = None
    ) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


_NOTHING = _Nothing()


class NoChain:
    """What `current_chain` returns outside a chain: it takes the same calls and does nothing."""

    __slots__ = ()

    trajectory = None
    live = False
    generation_open = None

    def generation(self, **about: Any) -> _Nothing:
        """Return a context manager that does nothing."""
        return _NOTHING

    def tool_call(self, tool_name: str, arguments: Any = None, call_id: str | None = None) -> _Nothing:
        """Return a context manager that does nothing."""
        return _NOTHING

    def message(self, message: Message, *, from_outside: bool = False) -> None:
        pass

    def error(
        self, error: BaseException | str, where: str, *, goes_on: bool = False, error_type: str = ""
    ) -> None:
        pass

    def reward(self, reward: float, metrics: dict[str, Any] | None = None) -> None:
        pass

    def step_reward(self, reward: float, metrics: dict[str, Any] | None = None) -> None:
        pass

    def wants(self, event_type: StreamEventType | str) -> bool:
        """Return False: there is nothing to watch."""
        return False


_NO_CHAIN = NoChain()


def current_chain() -> ChainWriter | NoChain:
    """The innermost chain that was begun in this context (task or thread) and has not ended; otherwise a `NoChain`.

    A task inherits the chain of the task that made it. A thread does so only if it runs in a copied context, as
    `asyncio.to_thread` does.
    """
    return innermost(chain_here.get()) or _NO_CHAIN
