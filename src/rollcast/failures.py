"""Finds where the user's own code failed, such as `agent.py:12`, for the console, events and messages.

Own code is code that does not belong to Rollcast, to Python or to an installed package.
"""

from __future__ import annotations

import dis
import functools
import gc
import logging
import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from types import AsyncGeneratorType, CodeType, FrameType, TracebackType
from typing import Any

__all__ = [
    "FailureLog",
    "by_signal",
    "class_name_of",
    "place_in_thread",
    "place_of",
    "place_of_wait",
    "text_and_place",
    "text_of",
]

TEXT_LIMIT = 4000
"""How many characters of an exception's text are shown."""

LOGGED_LIMIT = 1000
"""How many failures one run logs."""

_OF_A_GENERATOR = frozenset(
    {"async_generator_asend", "async_generator_athrow"}
)  # they do not say which generator they belong to

_LOOP = frozenset({"_run_once", "run_forever", "run_until_complete"})  # functions that run an event loop

_PACKAGES = frozenset({"site-packages", "dist-packages"})
_ROLLCAST = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")  # noqa: PTH100, PTH118, PTH120  (code objects name files by strings)


# Read past a class that has these names too, whose code may raise.
_NAME = type.__dict__["__name__"]
_TRACEBACK = BaseException.__dict__["__traceback__"]


def class_name_of(value: object) -> str:
    """The name of the value's class, even if its metaclass raises when it is asked for that."""
    return str(_NAME.__get__(type(value)))


def place_of(error: BaseException) -> str | None:
    """The file and line of the user's own code in which the exception was raised, as in `agent.py:12`.

    It is the innermost frame of own code. If Rollcast raised the exception because of another one, or if it is a group of
    others, it is the place of the other one. For a module that cannot be compiled, it is the line with the syntax error.

    Returns:
        None if no own code is in the traceback.
    """
    return _origin(error)[1]


def _origin(error: BaseException) -> tuple[BaseException, str | None]:
    """The exception that own code raised, and its place; the given exception and None if own code raised none, or if the
    exception cannot be looked at.
    """
    try:
        for each in _chain(error, set()):
            place = _syntax_error(each) or _innermost(_frames(each))
            if place is not None:
                return each, place
    except BaseException as raised:  # attributes of an exception's class may raise anything
        if by_signal(raised):
            raise
    return error, None


def place_of_wait(coroutine: Any) -> str | None:
    """Where in the user's own code a suspended coroutine waits, as in `agent.py:12`; None if no own code waits there."""
    return _innermost(_waiting(coroutine))


def _waiting(coroutine: Any) -> Iterator[tuple[str, int]]:
    """The file and line of each frame that waits for the next one, outermost first."""
    while coroutine is not None:
        for kind in ("cr", "ag", "gi"):
            frame = getattr(coroutine, f"{kind}_frame", None)
            if frame is not None:
                yield frame.f_code.co_filename, frame.f_lineno
                break
        awaited = [getattr(coroutine, name, None) for name in ("cr_await", "ag_await", "gi_yieldfrom")]
        if type(coroutine).__name__ in _OF_A_GENERATOR:
            awaited += [each for each in gc.get_referents(coroutine) if isinstance(each, AsyncGeneratorType)]
        coroutine = next((each for each in awaited if each is not None), None)


def place_in_thread(thread_id: int) -> str | None:
    """Where in the user's own code a thread is now, as in `agent.py:12`; None if it runs no own code.

    If the thread runs an event loop, the code that called the loop does not count.
    """
    frame: FrameType | None = sys._current_frames().get(thread_id)  # noqa: SLF001  (documented)
    frames = []
    while frame is not None and frame.f_code.co_name not in _LOOP:
        frames.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return _innermost(reversed(frames))


def text_of(error: BaseException) -> str:
    """The exception's text, even if its `__str__` raises; only the beginning of a very long one. It may be empty."""
    try:
        text = str.__str__(str(error))
    except BaseException:  # noqa: BLE001  (an exception's own `__str__` may raise anything)
        return "(its text cannot be shown)"
    return text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + f"… [{len(text)} characters]"


def text_and_place(error: BaseException) -> str:
    """The exception's text, or its class if it has no text, and its place: `no such city (agent.py:12)`."""
    text, place = text_of(error).strip() or class_name_of(error), place_of(error)
    return text if place is None else f"{text} ({place})"


class FailureLog:
    """Logs failures of the user's own code with their tracebacks, each only once, since a tool may fail in every chain.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logged: set[tuple[str, str]] = set()

    def log(self, logger: logging.Logger, who: str, error: BaseException) -> None:
        """Log the failure as a warning if own code raised it and no failure of its class was logged from this place before.

        Args:
            logger: where to log it.
            who: what failed, such as `chain_3: tool:search`.
            error: the exception.
        """
        origin, place = _origin(error)
        if place is None:
            logger.debug("%s failed: %s", who, text_of(error))
            return
        with self._lock:
            known = (class_name_of(origin), place)
            if known in self._logged or len(self._logged) >= LOGGED_LIMIT:
                return
            self._logged.add(known)
        logger.warning(
            "%s failed at %s: %s: %s", who, place, class_name_of(error), text_of(error), exc_info=origin
        )


def _chain(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """The exceptions that may know the place, likeliest first."""
    if id(error) in seen:
        return
    seen.add(id(error))
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _chain(inner, seen)
    because = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if because is not None and _raised_by_rollcast(error):
        yield from _chain(because, seen)
        because = None
    yield error
    if because is not None:
        yield from _chain(because, seen)


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    """The file and line of each frame in the traceback, outermost first."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


def _raised_by_rollcast(error: BaseException) -> bool:
    files = [file for file, _ in _frames(error)]
    return not files or files[-1].startswith(_ROLLCAST)


def _innermost(frames: Iterable[tuple[str, int]]) -> str | None:
    """The innermost frame in one of the user's files; if there is none, the innermost in code without a file (`python -c`)."""
    own = shell = None
    for file, line in frames:
        if file.startswith("<"):
            shell = f"{file}:{line}" if file in {"<string>", "<stdin>"} else shell
        elif _is_own(file):
            own = _shown(file, line)
    return own or shell


def _syntax_error(error: BaseException) -> str | None:
    """The line that cannot be compiled, if it is in one of the user's files."""
    if not isinstance(error, SyntaxError):
        return None
    file, line = error.filename, error.lineno
    if isinstance(file, str) and isinstance(line, int) and os.path.isfile(file) and _is_own(file):  # noqa: PTH113
        return _shown(file, line)
    return None


def _is_own(file: str) -> bool:
    if file.startswith((_ROLLCAST, *_library_folders())):
        return False
    return _PACKAGES.isdisjoint(file.replace("\\", "/").split("/"))


@cache
def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "scripts")}
    folders.add(os.path.dirname(os.__file__))  # noqa: PTH120
    return tuple(os.path.join(folder, "") for folder in sorted(folders))  # noqa: PTH118


def _shown(file: str, line: int) -> str:
    """The file's name and the line; with its folder if the name alone is ambiguous."""
    parts = file.replace("\\", "/").split("/")
    keep = 2 if parts[-1] in {"__init__.py", "__main__.py"} else 1
    return f"{'/'.join(parts[-keep:])}:{line}"


def by_signal(error: BaseException) -> bool:
    """Whether a signal, such as Ctrl-C, raised the exception, and not the code that it interrupted.

    Such an exception ends the program, whatever code it interrupted. Its traceback shows it: a signal handler written in
    Python is one of its frames; Python's own handler leaves no frame, and the interrupted instruction is not a `raise`.
    """
    if threading.current_thread() is not threading.main_thread():
        return False  # only the main thread handles signals
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace: TracebackType | None = _TRACEBACK.__get__(error)
    last = None
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace, last = trace.tb_next, trace
    if type(error) is not KeyboardInterrupt or last is None:
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] != "RAISE_VARARGS"


def _code(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None
