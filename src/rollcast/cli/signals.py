"""Lets Ctrl-C, SIGTERM and a closed terminal end a run properly; a second Ctrl-C or SIGTERM ends the program."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rollcast.aio import call_in

__all__ = ["ending_on_signals"]

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


@contextmanager
def ending_on_signals(end: Callable[[], None]) -> Iterator[list[int]]:
    """Call `end` in the event loop when Ctrl-C, the SIGTERM of a scheduler, or the SIGHUP of a terminal that is closed comes.

    A second Ctrl-C or SIGTERM ends the program. If something blocks the event loop, the second Ctrl-C is raised right there.
    After any first signal SIGHUP is ignored until the program ends: a closed terminal sends several, one from the kernel and
    one or more from the shell, and the run would be killed while it ends.

    A signal that was ignored when the program started stays ignored: shells start background jobs that way, so that
    Ctrl-C does not reach them, and `nohup` does so with SIGHUP. It yields the list to which the signal's number is added.
    """
    came: list[int] = []
    reached = False  # the event loop heard of it, so nothing blocks the loop
    loop = asyncio.get_running_loop()

    def take(number: int, _: object) -> None:
        came.append(number)
        restore()
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, take_again)
        call_in(loop, reach)

    def reach() -> None:
        nonlocal reached
        reached = True
        end()

    def take_again(number: int, frame: FrameType | None) -> None:
        handler = before[signal.SIGINT]
        if not (reached and callable(handler)):
            raise KeyboardInterrupt
        handler(number, frame)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if came and number == _HANGUP else handler)

    before = {
        number: signal.signal(number, take)
        for number in (signal.SIGINT, signal.SIGTERM, _HANGUP)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield came
    finally:
        restore()
