"""Prepares objects for a fork and closes them at exit.

Objects that own locks, threads or files register here. Before a fork their locks are taken, so that the child never has
half of a change, or a lock that nobody will release. At exit each is closed, and then what was given to
`call_at_last` is called. What a module keeps for the whole process is
reset in the child by a function that it gives to `call_after_fork`.
"""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

__all__ = ["Registered", "call_after_fork", "register"]

logger = logging.getLogger("rollcast")


class Registered(Protocol):
    @property
    def lock(self) -> Any:
        """A lock with `acquire` and `release`; it is held while the process forks."""
        ...

    def after_fork(self) -> None:
        """Called in the forked child, which has none of the parent's threads and loops. The lock is held."""
        ...

    def close(self) -> None:
        """Called when the interpreter exits."""
        ...


_registered: weakref.WeakSet[Registered] = weakref.WeakSet()
_last: list[Callable[[], object]] = []
_forking: list[tuple[Registered, Any]] = []  # their locks are held


def register(thing: Registered) -> None:
    """Look after this object as long as it exists; only a weak reference is kept."""
    _registered.add(thing)


def call_at_last(function: Callable[[], object]) -> None:
    """Have the function called at exit, after every registered object was closed: for what those still use while they close."""
    _last.append(function)


def _close_at_exit() -> None:
    try:
        for thing in list(_registered):
            try:
                thing.close()
            except Exception:  # one object's failure is not another's
                logger.exception("%s could not be closed at exit", type(thing).__name__)
    finally:
        for function in _last:
            function()


def _before_fork() -> None:
    for thing in sorted(_registered, key=id):
        lock = thing.lock
        lock.acquire()
        _forking.append((thing, lock))


def _after_fork(*, in_child: bool) -> None:
    while _forking:
        thing, lock = _forking.pop()
        if in_child:
            thing.after_fork()
        lock.release()


def call_after_fork(function: Callable[[], object]) -> None:
    """Have the function called in every forked child, which has none of the parent's threads that may hold locks.

    Use this for a module's process-wide state, and `register` for objects. On systems without fork it is never called.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, in_child=False),
        after_in_child=partial(_after_fork, in_child=True),
    )
