"""Observers that stand for others: another observer for one chain only, or several observers by chain.

The manager delivers to the leaves, so each child has its own queue, its own thread if it is threaded, and its own failures.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent
from rollcast.stream.observer import StreamObserver
from rollcast.stream.own_filter import guarded

__all__ = ["ChainSpecificStreamObserver", "MultiChainStreamObserver"]


class _Composite(StreamObserver):
    """Passes on events to its leaves, for callers without a manager; a manager delivers to the leaves directly."""

    async def on_event(self, event: StreamEvent) -> None:
        """Give the event to the leaves that want it."""
        for leaf, wanted in self.leaves().items():
            if wanted.matches(event):
                await leaf.on_event(event)

    async def aclose(self) -> None:
        """Close the leaves."""
        for leaf in self.leaves():
            await leaf.aclose()


class ChainSpecificStreamObserver(_Composite):
    """Another observer, for one chain only.

    Args:
        chain_id: a chain id, several, or an `EventFilter`.
        observer: the observer, which gets what passes both this filter and its own.

    Raises:
        InputError: `observer` is not a StreamObserver.
    """

    def __init__(self, chain_id: EventFilter | str | list[str], observer: StreamObserver) -> None:
        self.observer = _checked(observer)
        self.filter = EventFilter.coerce(chain_id)

    @property
    def name(self) -> str:
        """The names of both observers."""
        return f"{type(self).__name__}({self.observer.name})"

    def leaves(self) -> dict[StreamObserver, EventFilter]:
        """The other observer's, narrowed."""
        return {leaf: guarded(wanted) & self.filter for leaf, wanted in self.observer.leaves().items()}


class MultiChainStreamObserver(_Composite):
    """Observers for single chains, and others for everything. They may be added and removed while chains run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # for writers; a reader sees the state before or after a change
        self._by_chain: dict[str, list[StreamObserver]] = {}
        self._global: list[StreamObserver] = []

    def add_chain_observer(self, chain_id: str, observer: StreamObserver) -> None:
        """Give the observer this chain's events, as far as its own filter wants them.

        Raises:
            InputError: it is not a StreamObserver, or the chain id is not a string.
        """
        if not isinstance(chain_id, str):
            raise InputError(
                f"add_chain_observer got chain id {chain_id!r}; expected a string such as 'chain_0'"
            )
        _checked(observer)
        with self._lock:
            self._by_chain = self._by_chain | {chain_id: [*self._by_chain.get(chain_id, ()), observer]}
        self._changed()

    def add_global_observer(self, observer: StreamObserver) -> None:
        """Give the observer every chain's events and the run's, as far as its own filter wants them.

        Raises:
            InputError: it is not a StreamObserver.
        """
        _checked(observer)
        with self._lock:
            self._global = [*self._global, observer]
        self._changed()

    def remove_chain_observer(self, chain_id: str, observer: StreamObserver | None = None) -> None:
        """Remove the observer from this chain; if None, all observers of the chain. One that is not there is ignored."""
        with self._lock:
            observers = self._by_chain.get(chain_id, [])
            kept = [o for o in observers if observer is not None and o is not observer]
            others = {name: them for name, them in self._by_chain.items() if name != chain_id}
            self._by_chain = others | {chain_id: kept} if kept else others
        self._changed()

    def remove_global_observer(self, observer: StreamObserver) -> None:
        """Remove the observer. One that is not there is ignored."""
        with self._lock:
            self._global = [o for o in self._global if o is not observer]
        self._changed()

    def leaves(self) -> dict[StreamObserver, EventFilter]:
        """The leaves of every child; a child of several chains is one observer that wants them all."""
        leaves: dict[StreamObserver, EventFilter] = {}
        for leaf, wanted in self._parts():
            leaves[leaf] = leaves[leaf] | wanted if leaf in leaves else wanted
        return leaves

    def _parts(self) -> Iterator[tuple[StreamObserver, EventFilter]]:
        for observer in self._global:
            for leaf, wanted in observer.leaves().items():
                yield leaf, guarded(wanted)
        for chain_id, observers in self._by_chain.items():
            for observer in observers:
                for leaf, wanted in observer.leaves().items():
                    yield leaf, guarded(wanted) & EventFilter(chains=chain_id)

    def _changed(self) -> None:
        if self.manager is not None:
            self.manager.refresh(self)


def _checked(observer: StreamObserver) -> StreamObserver:
    if not isinstance(observer, StreamObserver):
        raise InputError(
            f"expected a StreamObserver, found {type(observer).__name__}; derive its class from StreamObserver"
        )
    return observer
