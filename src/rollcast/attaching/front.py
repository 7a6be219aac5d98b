"""`rollcast.attach(x)`, and the same by name: `rollcast.attach.openai(client)`."""

from __future__ import annotations

import atexit
import importlib
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

from rollcast import lifetime
from rollcast.attaching.attachment import Attachment, all_attachments
from rollcast.attaching.hosts import HOSTS, Host, host_of, what_can_be_attached
from rollcast.attaching.process import EXIT_S, all_outlets, is_interactive, outlets_of
from rollcast.errors import InputError, RollcastError
from rollcast.records.event import RunStatus
from rollcast.stream.observer import inherits

__all__ = ["Attach", "attach", "detach_all"]

logger = logging.getLogger("rollcast.attach")

_BY_NAME = {host.name: host for host in HOSTS}


class _Entry(NamedTuple):
    """Something that is attached. Each function gives the object, or None if it is gone.

    Attributes:
        x: what was attached.
        attachment: its attachment.
        handle: what `attach` returned.
    """

    x: Callable[[], Any]
    attachment: Callable[[], Attachment | None]
    handle: Callable[[], Any]


class Attach:
    """Watches what is there already: a trainer, a client, a graph, a function.

        handle = rollcast.attach(trainer)

    The named forms do the same, and say what is expected: `rollcast.attach.openai(client)`. What is attached keeps its behaviour,
    its results, its exceptions and its types. If our own code fails, it says so once, and steps aside.

    All of them take these keywords; the named forms also have the options of their host (docs/attach/index.md).

    Args:
        x: what to watch.
        manager: a `StreamingManager` of your own, to which nothing is added unless you ask; None: the one of this process, which all
            attachments share.
        record: a level of the record, `auto`, `turns`, `tokens` or `summary`; None: no record. With `auto` a manager of your own is
            not recorded, nor is what a hub records.
        show: how many chains to show on the terminal.
        serve: a port on localhost where the live page is served; None: it is not served.

    Returns:
        The handle, with `streaming_manager` and `detach()`. For a function it is the function to call in its place.

    Raises:
        InputError: this cannot be attached, or an argument is wrong. Nothing is attached then.
    """

    def __call__(
        self, x: Any, *, manager: Any = None, record: Any = "auto", show: int = 0, serve: int | None = None
    ) -> Any:
        """See the class."""
        if inherits(x, Attachment):
            return x
        host = host_of(x)
        if host is None:
            raise InputError(what_can_be_attached(x))
        return _attached(host, x, manager, record, show, serve, {})

    def trl(self, trainer: Any, *, manager: Any = None, record: Any = "auto", show: int = 0, serve: int | None = None,
            **options: Any) -> Any:  # fmt: skip
        """Watch a trainer of TRL: docs/attach/trl.md."""
        return _attached(_BY_NAME["trl"], trainer, manager, record, show, serve, options)

    def openai(self, client: Any, *, manager: Any = None, record: Any = "auto", show: int = 0, serve: int | None = None,
               **options: Any) -> Any:  # fmt: skip
        """Watch a client of the openai package: docs/attach/openai.md."""
        return _attached(_BY_NAME["openai"], client, manager, record, show, serve, options)

    def langchain(self, x: Any = None, *, manager: Any = None, record: Any = "auto", show: int = 0, serve: int | None = None,
                  **options: Any) -> Any:  # fmt: skip
        """Watch LangChain and LangGraph: docs/attach/langchain.md."""
        return _attached(_BY_NAME["langchain"], x, manager, record, show, serve, options)

    def vllm(self, engine: Any, *, manager: Any = None, record: Any = "auto", show: int = 0, serve: int | None = None,
             **options: Any) -> Any:  # fmt: skip
        """Watch a vLLM engine in this process: docs/attach/vllm.md."""
        return _attached(_BY_NAME["vllm"], engine, manager, record, show, serve, options)

    def verl(self, x: Any, *, manager: Any = None, record: Any = "auto", show: int = 0, serve: int | None = None,
             **options: Any) -> Any:  # fmt: skip
        """Watch an agent loop worker of verl: docs/attach/verl.md. Its configuration has a line for that too."""
        return _attached(_BY_NAME["verl"], x, manager, record, show, serve, options)

    def function(self, function: Any = None, *, manager: Any = None, record: Any = "auto", show: int = 0, serve: int | None = None,
                 **options: Any) -> Any:  # fmt: skip
        """Watch a function: each call is a chain (docs/attach/functions.md). Without a function it returns a decorator."""
        if function is None:
            return lambda given: self.function(
                given, manager=manager, record=record, show=show, serve=serve, **options
            )
        return _attached(_BY_NAME["function"], function, manager, record, show, serve, options)

    def __repr__(self) -> str:
        return "rollcast.attach"


attach = Attach()
"""See `Attach`."""


# -- what is attached --------------------------------------------------------------------------------------------------

_lock = threading.RLock()
_entries: dict[int | str, _Entry] = {}
_told_twice: set[str] = set()


def _attached(
    host: Host, x: Any, manager: Any, record: Any, show: Any, serve: Any, options: dict[str, Any]
) -> Any:
    adapter = _adapter(host)
    check = getattr(adapter, "check", None)
    if check is not None:
        check(x, **options)
    with _lock:
        already = _handle_of(x, host)
        if already is not None:
            return already
        outlets = outlets_of(manager)
        outlets.ask(host.name, record, show, serve)
        attachment = Attachment(host.name, outlets)
        handle: Any = None
        try:
            handle = adapter.attach(x, attachment, **options)
        except RollcastError:
            attachment.detach()
            raise
        except Exception as error:  # noqa: BLE001  (our own fault must not reach the host)
            attachment.watch.step_aside(error)
            attachment.undo()
        _enter(host, x, attachment, handle)
        return attachment if handle is None else handle


def _adapter(host: Host) -> Any:
    return importlib.import_module(host.adapter)


def _key_of(x: Any, host: Host) -> int | str:
    return host.name if x is None else id(x)


def _handle_of(x: Any, host: Host) -> Any:
    """The handle of what is attached already; None if it is not."""
    if (
        isinstance(x, FunctionType)
        and isinstance(own := vars(x).get("attachment"), Attachment)
        and own.attached
    ):
        _say_twice(host)
        return x
    entry = _entries.get(_key_of(x, host))
    if entry is None or entry.x() is not x:
        return None
    attachment, handle = entry.attachment(), entry.handle()
    if attachment is None or handle is None:
        return None
    if not attachment.attached:
        attachment.undo()  # it was detached, or a fault of ours switched it off, or it is the parent's of this forked process
        return None
    _say_twice(host)
    return handle


def _say_twice(host: Host) -> None:
    if host.name not in _told_twice:
        _told_twice.add(host.name)
        logger.warning("%s was attached already; attach returned the handle of the first time", host.what)


def _enter(host: Host, x: Any, attachment: Attachment, handle: Any) -> None:
    """Remember what is attached: as long as it exists, or if the handle takes its place, as long as that does."""
    key = _key_of(x, host)

    def gone(_: Any) -> None:
        entry = _entries.get(key)
        if entry is not None and entry.attachment() is attachment_of():
            _entries.pop(key, None)
        there = attachment_of()
        if handle is None and there is not None:
            there.forget()

    attachment_of: Callable[[], Attachment | None] = weakref.ref(attachment)
    x_of: Callable[[], Any]
    try:
        x_of = weakref.ref(x, gone)
    except TypeError:  # None, or an object that cannot be referred to weakly
        x_of = partial(_same, x)
    if handle is None:
        keeps = partial(_same, attachment)
        _entries[key] = _Entry(x_of, keeps, keeps)
    else:
        handle = weakref.ref(handle)
        _entries[key] = _Entry(x_of, attachment_of, handle)


def _same(value: Any) -> Any:
    return value


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


def detach_all(status: RunStatus = "completed", timeout: float = EXIT_S) -> None:
    """Detach everything that is attached, so that records are whole and their lines are printed. At exit this is done anyway.

    Args:
        status: how the runs end that are open.
        timeout: how many seconds to wait at most, all in all.
    """
    give_up = time.monotonic() + timeout
    for attachment in all_attachments():
        attachment.end_with(status)
        try:
            attachment.detach(max(0.1, give_up - time.monotonic()))
        except Exception:  # one attachment's failure is not another's
            logger.exception("%s could not be detached", attachment.host)
    for outlets in all_outlets():
        outlets.finish_at_exit(max(0.1, give_up - time.monotonic()))


def _at_exit() -> None:
    detach_all(_status_of_program())


def _status_of_program() -> RunStatus:
    """How the program ends: the interpreter keeps the exception that ended it."""
    error = None if is_interactive() else getattr(sys, "last_value", None)
    if error is None:
        return "completed"
    return "cancelled" if isinstance(error, KeyboardInterrupt) else "failed"


lifetime.call_after_fork(_after_fork)
atexit.register(_at_exit)
