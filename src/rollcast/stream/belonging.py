"""Tells observers to which manager they belong, without its lock: setting `manager` may run code of the user's."""

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
    """Keeps `StreamObserver.manager` of one manager's observers as it should be, whichever threads add and remove them.

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
        self._joining: list[StreamObserver] = []  # that are being added, and their leaves
        self._told = ByIdentity[StreamObserver, None]()  # whose `manager` is the owner
        self._telling = ByIdentity[StreamObserver, None]()  # whose `manager` some thread is setting

    @contextmanager
    def joining(self, observer: StreamObserver, leaves: Iterable[StreamObserver]) -> Iterator[None]:
        """Tell an observer and its leaves, all or none, before the block has them added.

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
                if (failure := self._tell(each)) is not None:
                    raise failure
            yield
        finally:
            with self._lock:
                for each in concerned:
                    del self._joining[next(i for i, other in enumerate(self._joining) if other is each)]
            for each in concerned:  # unless they were added
                self._tell(each)

    def settle(self, leaves: Iterable[StreamObserver]) -> None:
        """Tell those that were removed, and leaves that came with a refresh. One that cannot be told works without a manager.

        Args:
            leaves: all that there are now; the lock guards them.
        """
        with self._lock:
            concerned = list(ByIdentity((each, None) for each in (*self._told, *leaves)))
        for each in concerned:
            if (failure := self._tell(each)) is not None:
                logger.warning("%s", failure)

    def after_fork_locked(self) -> None:
        """Forget, in a forked child, what other threads were doing."""
        self._joining.clear()
        self._telling.clear()

    def _is_joining_locked(self, observer: StreamObserver) -> bool:
        return any(each is observer for each in self._joining)

    def _tell(self, observer: StreamObserver) -> InputError | None:
        """Set its `manager` as it should be, until nothing changed meanwhile. Returns why it cannot be set."""
        while True:
            with self._lock:
                belongs = self._is_wanted_locked(observer) or self._is_joining_locked(observer)
                if belongs == (observer in self._told) or observer in self._telling:
                    return None  # in the second case, whoever is setting it looks again afterwards
                self._telling[observer] = None
            failure = None
            try:
                set_manager(observer, self._owner if belongs else None)
            except InputError as error:
                failure = error
                if belongs:  # it may be set all the same
                    with suppress(InputError):
                        set_manager(observer, None)
            finally:
                with self._lock:
                    del self._telling[observer]
                    if not belongs:
                        self._told.pop(observer, None)
                    elif failure is None:
                        self._told[observer] = None
            if failure is not None:
                return failure


def _belongs(observer: StreamObserver, whose: str) -> InputError:
    return InputError(
        f"{name_of(observer)} is already added to {whose} manager; remove it there first, or make a second one"
    )
