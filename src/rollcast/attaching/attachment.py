"""The handle of one attachment: what is attached, where its events go, and how to detach it."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from rollcast.attaching.watch import Watch
from rollcast.failures import class_name_of, text_of
from rollcast.records.event import RunStatus
from rollcast.stream.run import RunAbout, RunWriter

if TYPE_CHECKING:
    from rollcast.attaching.process import Outlets

__all__ = ["Attachment", "all_attachments"]

logger = logging.getLogger("rollcast.attach")

_MISSING: Any = object()


class Attachment:
    """What `rollcast.attach(x)` returns.

        handle = rollcast.attach(client)
        ...
        handle.detach()

    Adapters use `watch`, `run`, `open_run`, `hook` and `on_detach`. Everything that writes to a run happens on the watch's thread.

    Args:
        host: the name of what is attached: `openai`.
        outlets: the manager that its events go to, and what shows them.

    Attributes:
        host: the name of what is attached.
        watch: the thread on which our code runs.
    """

    def __init__(self, host: str, outlets: Outlets) -> None:
        self.host = host
        self.watch = Watch(host)
        self._outlets = outlets
        self._runs = _Runs(host, outlets)
        self._undo: list[Callable[[], object]] = []
        self._detaching = threading.Lock()
        self.watch.on_aside = self._runs.close
        self.watch.is_watched = partial(getattr, outlets.manager.fanout, "deliveries")
        outlets.join(self._runs)
        _all.add(self)
        # If what is attached is gone, and with it this handle, its run ends, and its thread.
        self._gone = weakref.finalize(self, _left_alone, self.watch, self._runs)
        self._gone.atexit = False  # process.py closes all attachments at exit

    @property
    def streaming_manager(self) -> Any:
        """The `StreamingManager` that the events go to. Observers may be added to it at any time."""
        return self._outlets.manager

    @property
    def attached(self) -> bool:
        """Whether it still watches: it was not detached, and no fault of ours switched it off."""
        return self.watch.on and not self.watch.forked

    def detach(self, timeout: float | None = None) -> None:
        """Take the hooks out of what is attached, end what is open, and wait until every observer has what was emitted.

        Chains that are open end with `unknown`. Detaching twice does nothing. What was attached goes on unwatched.

        Args:
            timeout: how many seconds to wait at most; None: the manager's `drain_timeout`.
        """
        if not self._detaching.acquire(blocking=False):
            return
        self.undo()
        self._gone.detach()
        manager = self._outlets.manager
        longest = manager.drain_timeout if timeout is None else timeout
        give_up = time.monotonic() + longest
        if self.watch.forked:
            return
        if not self.watch.close(self._runs.close, longest):
            logger.warning(
                "what was seen of %s is not all written %g s after it was detached", self.host, longest
            )
        manager.drain_sync(max(0.1, give_up - time.monotonic()))
        self._outlets.leave(self._runs)

    def end_with(self, status: RunStatus) -> None:
        """Set how runs end that are open when it is detached: at exit it is known how the program ended."""
        self._runs.status = status

    def forget(self) -> None:
        """What was attached is gone: end what is open, without waiting. This may be called in the middle of anything."""
        self._gone()

    # -- for adapters --------------------------------------------------------------------------------------------------

    def on_detach(self, undo: Callable[[], object]) -> None:
        """Have this called when the attachment is detached, the latest first, to take a hook out again."""
        self._undo.append(undo)

    def on_close(self, act: Callable[[], object]) -> None:
        """Have this called on the watch's thread when the attachment ends, after all that was told and before its runs close."""
        self._runs.before_close.append(act)

    def hook(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of one object, and put back what was there when the attachment is detached.

        The object is not kept alive for that. A hook that somebody else has hooked since is left where it is; it then calls only
        what it replaced, since the watch takes no more acts.

        Args:
            owner: the object that is attached, or a part of it; not a class.
            name: of the attribute.
            value: the hook: a function that calls what it replaces.
        """
        own = vars(owner)
        before = own.get(name, _MISSING)
        owner_of: Callable[[], Any] = weakref.ref(owner)
        value_of: Callable[[], Any] = weakref.ref(value)  # it knows the owner

        def undo() -> None:
            there = owner_of()
            if there is None or vars(there).get(name, _MISSING) is not value_of():
                return
            if before is _MISSING:
                delattr(there, name)
            else:
                setattr(there, name, before)

        setattr(owner, name, value)
        self.on_detach(undo)

    def undo(self) -> None:
        """Take the hooks out. One that fails is logged, and the others are taken out all the same."""
        while self._undo:
            undo = self._undo.pop()
            try:
                undo()
            except Exception as error:
                logger.error(  # noqa: TRY400  (with the class and the text in one line as well)
                    "a hook could not be taken out of %s: %s: %s",
                    self.host,
                    class_name_of(error),
                    text_of(error),
                    exc_info=error,
                )

    @property
    def run(self) -> RunWriter:
        """The run of this attachment, opened when it is first asked for. Use it on the watch's thread only."""
        return self._runs.main()

    def open_run(self, **about: Unpack[RunAbout]) -> RunWriter:
        """Open another run, which the adapter closes; if it does not, it is closed with the attachment.

        Use it on the watch's thread only. The keywords are those of `manager.run`.
        """
        return self._runs.open(**about)

    def about_run(self, **about: Unpack[RunAbout]) -> None:
        """Set what `run` will say of itself when it opens, such as `model`, `backend` and `settings`."""
        self._runs.about.update(about)

    def __repr__(self) -> str:
        return f"<rollcast.attach.{self.host}, {'attached' if self.attached else 'detached'}>"


class _Runs:
    """The runs of one attachment that are open. Only the watch's thread opens and closes them."""

    def __init__(self, host: str, outlets: Outlets) -> None:
        self.host = host
        self.about: dict[str, Any] = {
            "agent": host,
            "chains": 0,
            "groups": 0,
        }  # how many there will be is not known
        self.status: RunStatus = "completed"
        self._outlets = outlets
        self.before_close: list[Callable[[], object]] = []
        self._main: RunWriter | None = None
        self._open: list[RunWriter] = []

    def main(self) -> RunWriter:
        if self._main is None:
            settings = {**(self.about.get("settings") or {}), "attached": self.host}
            self._main = self.open(**{**self.about, "settings": settings})
        return self._main

    def open(self, **about: Any) -> RunWriter:
        self._open = [run for run in self._open if run.status is None]
        run: RunWriter = self._outlets.manager.run(**{"agent": self.host, **about})
        self._open.append(run)
        return run.open()

    def leave(self) -> None:
        """Leave the outlets. The record goes on, since other clients may come."""
        self._outlets.leave(self, finish=False)

    def close(self) -> None:
        """Close what is open: chains with `unknown`, since nobody knows how they would have ended."""
        acts, self.before_close = self.before_close, []
        for act in acts:
            with suppress(Exception):  # what is still open is closed below
                act()
        open_now, self._open = self._open, []
        for run in reversed(open_now):
            for chain in list(run.open_chains.values()):
                if chain.generation_open is not None:
                    chain.generation_open.end("cancelled")
                for call in list(chain.tools_open.values()):
                    call.end("cancelled")
                with suppress(Exception):  # one chain that cannot be closed must not keep the others open
                    chain.end("unknown")
            run.close(self.status)


def _left_alone(watch: Watch, runs: _Runs) -> None:
    """The attachment is gone. This may run anywhere, even in the middle of an allocation, so it does not wait."""
    if watch.on:
        watch.tell(runs.close)
        watch.tell(runs.leave)
    watch.end()


_all: weakref.WeakSet[Attachment] = weakref.WeakSet()


def all_attachments() -> list[Attachment]:
    """Every attachment of this process that somebody still has."""
    return list(_all)
