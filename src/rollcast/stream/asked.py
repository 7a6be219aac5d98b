"""What chains add up to, for a reader that asks for it now and then, and is given only their starts and ends as events.

    a writer ──notes that it did something──▶ AskedChains ◀──asks what it adds up to, when that is of use── a reader

To such a reader a chain's event costs an entry in a dict, however many of them there are between two questions. Only chains that a run
of this manager writes can be asked; of all others it gets every event that its filter wants.
"""

from __future__ import annotations

import threading
from itertools import islice
from typing import Any, Protocol

import msgspec

from rollcast.records import StreamEventType
from rollcast.records.view_fields import ChainFields
from rollcast.records.view_parts import OpenCall, StateTime, ToolUse

__all__ = ["TOLD_ANYWAY", "AskedChain", "AskedChains", "ChainSoFar"]

TOLD_ANYWAY = frozenset({StreamEventType.CHAIN_START, StreamEventType.CHAIN_END})
"""The events of a chain that a reader is given although it asks."""


class ChainSoFar(msgspec.Struct, eq=False):
    """What a chain adds up to, without its texts. The fields are those of `ChainFields` with the same names."""

    as_of: int
    state: str
    since: float | None
    times: dict[str, StateTime]
    last_event_at: float | None
    step: int | None
    depth: int | None
    policy_version: int | None
    truncated: int
    completion_tokens: int
    tool_calls: dict[str, OpenCall]
    tool_use: dict[str, ToolUse]
    reward: float | None
    metrics: dict[str, Any]
    errors: int
    error: dict[str, Any] | None

    def give(self, view: ChainFields) -> None:
        """Bring the view up to date, except for its texts. The two must not be used further as if they were independent."""
        for name in self.__struct_fields__:
            setattr(view, name, getattr(self, name))
        view.generation, view.reasoning, view.generation_tokens = None, None, 0


class AskedChain(Protocol):
    """A chain that can be asked. Everything here is used with the manager's lock held."""

    @property
    def key(self) -> tuple[str, str]:
        """Its run's id and its own."""
        ...

    @property
    def ended(self) -> bool:
        """Whether it has."""
        ...

    def so_far(self, *, rewarded: bool = True) -> ChainSoFar:
        """What it adds up to; nothing in it changes later. If not `rewarded`, without its own reward, which its end repeats."""
        ...


class AskedChains:
    """What one reader has not asked yet.

    Args:
        lock: the manager's; it guards what this has.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._changed: dict[AskedChain, None] = {}
        self._ended: dict[tuple[str, str], ChainSoFar] = {}

    # -- the writer's side: the lock is held -----------------------------------------------------------------------------

    def changed_locked(self, chain: AskedChain) -> None:
        """The chain has done something."""
        self._changed[chain] = None

    def ends_locked(self, chain: AskedChain) -> None:
        """The chain's end is about to be published: what it adds up to stays until the reader takes that event."""
        self._changed.pop(chain, None)
        self._ended[chain.key] = chain.so_far(rewarded=False)

    def told_locked(self, chain: AskedChain) -> None:
        """The reader is given the chain's events from now on."""
        self._changed.pop(chain, None)

    # -- the reader's side -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._changed)

    def take(self, most: int | None = None) -> list[AskedChain]:
        """Chains that have done something since they were taken last: all, or at most so many. Ask each of them with `ask`."""
        with self._lock:
            taken = list(islice(self._changed, most))
            for chain in taken:
                del self._changed[chain]
        return taken

    def ask(self, chain: AskedChain) -> ChainSoFar | None:
        """What an open chain adds up to; None if it has ended. The lock is taken for one chain at a time: nobody waits for all."""
        with self._lock:
            return None if chain.ended else chain.so_far()

    def ask_again(self, chain: AskedChain) -> None:
        """Put a chain back whose start has not reached the reader."""
        with self._lock:
            if not chain.ended:
                self._changed[chain] = None

    def at_the_end(self, run_id: str, chain_id: str) -> ChainSoFar | None:
        """What a chain added up to whose end the reader takes now; None if it was given all events."""
        with self._lock:
            return self._ended.pop((run_id, chain_id), None)

    def forget_ends(self, run_id: str, until: int | None = None) -> None:
        """The ends of the run's chains up to this `seq` do not come; None: none comes any more."""
        with self._lock:
            for key, so_far in list(self._ended.items()):
                if key[0] == run_id and (until is None or so_far.as_of < until):
                    del self._ended[key]
