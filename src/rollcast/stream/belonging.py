"""Sets the `manager` of observers. It does so without the manager's lock, since a user's class may run code of its own when it is set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from rollcast.errors import InputError
from rollcast.stream.definition import manager_of, name_of, set_manager
from rollcast.stream.identity import ByIdentity
from rollcast.stream.observer import StreamObserver

__all__ = ["Belonging"]

logger = logging.getLogger("rollcast.stream")


class Belonging:
    """Keeps `StreamObserver.manager` of one manager's observers right, whichever threads add and remove them.

    Args:
        owner: the manager.
        lock: its lock. It is not held while an observer's `manager` is read or set.
        is_wanted_locked: whether an observer was added, or is a leaf of one that was.
    """

    def __init__(
        self,
        owner: Any,
        lock: AbstractContextManager[Any],
        is_wanted_locked: Callable[[StreamObserver], bool],
    ) -> None:
        self._owner = owner
        self._lock = lock
        self._is_wanted_locked = is_wanted_locked
        self._joining: list[StreamObserver] = []  # observers that are being added, and their leaves
        self._owned = ByIdentity[StreamObserver, None]()  # observers whose `manager` is the owner
        self._being_set = ByIdentity[
            StreamObserver, None
        ]()  # observers whose `manager` some thread is setting

    @contextmanager
    def joining(self, observer: StreamObserver, leaves: Iterable[StreamObserver]) -> Iterator[None]:
        """Set the `manager` of an observer and its leaves, of all or of none; the block then adds them.

        Raises:
            InputError: one belongs to a manager already, or its `manager` cannot be read or set.
        """
        concerned = list(ByIdentity((each, None) for each in (observer, *leaves)))
        for each in concerned:
            manager = manager_of(each)
            if manager is not None and (each is observer or manager is not self._owner):
                raise _belongs(each, "this" if manager is self._owner else "another")
        with self._lock:
            if self._is_wanted_locked(observer) or self._is_joining_locked(observer):
                raise _belongs(observer, "this")
            self._joining += concerned
        try:
            for each in concerned:
                if (failure := self._set_manager(each)) is not None:
                    raise failure
            yield
        finally:
            with self._lock:
                for each in concerned:
                    del self._joining[next(i for i, other in enumerate(self._joining) if other is each)]
            for each in concerned:  # unless they were added
                self._set_manager(each)

    def settle(self, leaves: Iterable[StreamObserver]) -> None:
        """Set the `manager` of observers that were removed, and of leaves that a refresh found. If it cannot be set, the observer works without.

        Args:
            leaves: all that there are now; read while the lock is held.
        """
        with self._lock:
            concerned = list(ByIdentity((each, None) for each in (*self._owned, *leaves)))
        for each in concerned:
            if (failure := self._set_manager(each)) is not None:
                logger.warning("%s", failure)

    def after_fork_locked(self) -> None:
        """Forget, in a forked child, what other threads were doing."""
        self._joining.clear()
        self._being_set.clear()

    def _is_joining_locked(self, observer: StreamObserver) -> bool:
        return any(each is observer for each in self._joining)

    def _set_manager(self, observer: StreamObserver) -> InputError | None:
        """Set its `manager` to what it should be now, again if that changed meanwhile. Returns why it cannot be set."""
        while True:
            with self._lock:
                belongs = self._is_wanted_locked(observer) or self._is_joining_locked(observer)
                if belongs == (observer in self._owned) or observer in self._being_set:
                    return None  # in the second case, whoever is setting it looks again afterwards
                self._being_set[observer] = None
            failure = None
            try:
                set_manager(observer, self._owner if belongs else None)
            except InputError as error:
                failure = error
                if belongs:  # it may have been set nevertheless
                    with suppress(InputError):
                        set_manager(observer, None)
            finally:
                with self._lock:
                    del self._being_set[observer]
                    if not belongs:
                        self._owned.pop(observer, None)
                    elif failure is None:
                        self._owned[observer] = None
            if failure is not None:
                return failure


def _belongs(observer: StreamObserver, whose: str) -> InputError:
    return InputError(
        f"{name_of(observer)} is already added to {whose} manager; remove it there first, or make a second one"
    )
