"""What happens to every manager when the process forks, and when it ends."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rollcast.stream.manager import StreamingManager

__all__ = ["managers"]

logger = logging.getLogger("rollcast.stream")

managers: weakref.WeakSet[StreamingManager] = weakref.WeakSet()


def _close_at_exit() -> None:
    """What was emitted is not lost to an unflushed file because the program ended."""
    for manager in list(managers):
        try:
            manager.close()
        except Exception:  # one manager's failure is not another's
            logger.exception("a manager could not be closed at exit")


_forking: list[StreamingManager] = []  # their locks are held


def _before_fork() -> None:
    """No other thread may be in the middle of a change: the child would have that half, and a lock that nobody frees."""
    for manager in sorted(managers, key=id):
        manager.lock.acquire()
        _forking.append(manager)


def _after_fork(*, in_child: bool) -> None:
    while _forking:
        manager = _forking.pop()
        if in_child:
            manager.after_fork()
        manager.lock.release()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, in_child=False),
        after_in_child=partial(_after_fork, in_child=True),
    )
