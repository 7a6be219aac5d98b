"""Watchers that do what no watcher may, drawn by a random stream of their own, so that what a seed draws else stays the same.

They are added beside the schedule's observers, and nothing of what those get, and of what the chains do, may change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from fault_schedules.injectors import ticks
from rollcast.errors import InputError
from rollcast.observers import JSONStreamObserver
from rollcast.records import EventFilter, StreamEvent
from rollcast.stream import StreamingManager, StreamObserver

__all__ = ["FOR_EVER", "HostilePlan", "HostileWatcher", "draw_hostile"]

Manner = Literal[
    "raises",
    "lies",
    "closes_slowly",
    "swallows_once",
    "hangs",
    "swallows",
    "blocks",
    "log_to_pipe",
    "log_to_full",
]
FOR_EVER = ("hangs", "swallows", "blocks", "log_to_pipe")
HOOKS = ("on_event", "on_batch", "on_run_opened", "on_chain_closed", "on_run_closed", "aclose")
ABOUT = (
    "filter",
    "mode",
    "threaded",
    "loop",
    "name",
    "leaves",
    "hash",
    "wants",
    "alternatives",
    "wants_snapshot",
)


class Mute(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("it has no text")

    __repr__ = __str__


class Last(BaseException):
    """Neither an Exception nor known to Python."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("as it was told to"),
    "GeneratorExit": GeneratorExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "CancelledError": asyncio.CancelledError,
    "StopAsyncIteration": StopAsyncIteration,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "Mute": Mute,
    "Last": Last,
    "group": lambda: BaseExceptionGroup("several", [GeneratorExit(), Mute(), KeyboardInterrupt()]),
}


@dataclass
class HostilePlan:
    """One hostile watcher.

    Attributes:
        manner: what it does.
        hook: where; for one that lies, about what.
        error: what it raises.
        since: from which call of the hook, or question, on.
        segment, joins, leaves: the event loop and the turns at which it comes and goes; None: it stays.
        from_thread: it is added by another thread.
    """

    name: str
    manner: Manner
    hook: str
    error: str
    since: int
    threaded: bool
    segment: int
    joins: int
    leaves: int | None
    from_thread: bool


def draw_hostile(rng: Random, segments: int) -> list[HostilePlan]:
    """Those of one seed; none in half of them."""
    if rng.random() < 0.5:
        return []
    return [_draw(rng, n, segments) for n in range(rng.randint(1, 4))]


def _draw(rng: Random, n: int, segments: int) -> HostilePlan:
    (manner,) = rng.choices(get_args(Manner), (6, 6, 2, 2, 1, 1, 1, 1, 1))
    joins = rng.choice((0, rng.randint(0, 40), rng.randint(0, 200)))
    hook = rng.choice(ABOUT if manner == "lies" else HOOKS)
    since = rng.choice((0, 0, rng.randint(0, 20)))
    return HostilePlan(
        f"hostile_{n}",
        manner,
        hook=hook,
        error=rng.choice(list(ERRORS)),
        since=0 if hook == "hash" else since,  # nothing can be removed that has no hash any more
        threaded=manner == "blocks" or rng.random() < 0.3,
        segment=rng.randrange(segments),
        joins=joins,
        leaves=rng.choice((None, joins + rng.randint(0, 60))),
        from_thread=rng.random() < 0.3,
    )


class Hostile(StreamObserver):
    """Does what its plan says; see `HostilePlan`.

    Attributes:
        overlaps: calls that came while another was going on, in an event loop that has not ended.
        closed: how often `aclose` was called.
    """

    def __init__(self, plan: HostilePlan, released: threading.Event) -> None:
        self.plan = plan
        self.overlaps = 0
        self.closed = 0
        self._released = released
        self._asked = 0
        self._calls = 0
        self._going_on: list[asyncio.AbstractEventLoop] = []

    async def _called(self, hook: str) -> None:
        loop = asyncio.get_running_loop()
        self.overlaps += any(not other.is_closed() for other in self._going_on)
        self._going_on.append(loop)
        try:
            if hook == self.plan.hook and self.plan.manner != "lies":
                call, self._calls = self._calls, self._calls + 1
                if call >= self.plan.since:
                    await self._misbehave()
        finally:
            self._going_on.remove(loop)

    async def _misbehave(self) -> None:
        match self.plan.manner:
            case "raises":
                error = ERRORS[self.plan.error]()
                raise error
            case "closes_slowly":
                await ticks(200)
            case "hangs":
                await asyncio.Event().wait()
            case "blocks":
                self._released.wait()
            case "swallows_once":
                with contextlib.suppress(asyncio.CancelledError):
                    await ticks(60)
            case "swallows":
                while not self._released.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.001)

    async def on_event(self, event: StreamEvent) -> None:
        await self._called("on_event")

    async def on_run_opened(self, run_id: str) -> None:
        await self._called("on_run_opened")

    async def on_chain_closed(self, run_id: str, chain_id: str) -> None:
        await self._called("on_chain_closed")

    async def on_run_closed(self, run_id: str) -> None:
        await self._called("on_run_closed")

    async def aclose(self) -> None:
        self.closed += 1
        await self._called("aclose")

    # -- what it says about itself -------------------------------------------------------------------------------------

    def _says(self, about: str, truth: Any) -> Any:
        if self.plan.manner != "lies" or self.plan.hook != about:
            return truth
        self._asked += 1
        if self._asked <= self.plan.since:
            return truth
        if self.plan.since % 2:
            return Rubbish()
        error = ERRORS[self.plan.error]()
        raise error

    @property
    def name(self) -> Any:
        return self._says("name", self.plan.name)

    @property
    def filter(self) -> Any:  # type: ignore[override]  # read-only, as a user's may be
        if self.plan.manner == "lies" and self.plan.hook in ("wants", "alternatives", "wants_snapshot"):
            return LyingFilter(self)
        return self._says("filter", EventFilter())

    @property
    def mode(self) -> Any:  # type: ignore[override]  # as above
        return self._says("mode", "coalesce")

    @property
    def threaded(self) -> Any:  # type: ignore[override]  # as above
        return self._says("threaded", self.plan.threaded)

    @property
    def loop(self) -> Any:  # type: ignore[override]  # as above
        return self._says("loop", None)

    def leaves(self) -> Any:
        return self._says("leaves", {self: self.filter})

    def __hash__(self) -> int:
        number: int = self._says("hash", id(self))
        return number

    def __eq__(self, other: object) -> bool:
        return self is other


class HostileBatched(Hostile):
    """The same, taking events as they wait."""

    async def on_batch(self, events: list[StreamEvent]) -> None:
        await self._called("on_batch")


class Rubbish:
    """Nothing that anybody would expect."""

    def __repr__(self) -> str:
        raise Last

    def __eq__(self, other: object) -> bool:
        raise Last

    __hash__ = None  # type: ignore[assignment]  # neither can it be hashed


class LyingFilter(EventFilter):
    """Raises when it is asked."""

    def __init__(self, liar: Hostile) -> None:
        super().__init__()
        object.__setattr__(self, "liar", liar)

    def wants(self, *arguments: Any) -> Any:
        return self.liar._says("wants", super().wants(*arguments))  # type: ignore[attr-defined]  # set above

    def wants_snapshot(self, *arguments: Any) -> Any:
        return self.liar._says("wants_snapshot", super().wants_snapshot(*arguments))  # type: ignore[attr-defined]  # as above

    @property
    def alternatives(self) -> Any:
        return self.liar._says("alternatives", super().alternatives)  # type: ignore[attr-defined]  # as above


def place(error: BaseException) -> str:
    """Through which lines of Rollcast it came."""
    return " ".join(
        f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)
    )


def _close(log: JSONStreamObserver) -> None:
    asyncio.run(log.aclose())


class HostileWatcher:
    """A hostile observer in its schedule: it comes and goes.

    Attributes:
        problems: what should not have happened.
    """

    def __init__(self, plan: HostilePlan, manager: StreamingManager, released: threading.Event) -> None:
        self.plan = plan
        self.problems: list[str] = []
        self.stays = 0
        self._manager = manager
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._reader: int | None = None
        self.observer = self._make(released)

    def _make(self, released: threading.Event) -> StreamObserver:
        if self.plan.manner in ("log_to_full", "log_to_pipe"):
            self._folder = tempfile.TemporaryDirectory(prefix="rollcast-schedule-")
        if self.plan.manner == "log_to_full":
            self._path.symlink_to("/dev/full")
            return JSONStreamObserver(self._path, flush_interval=0.0)
        if self.plan.manner == "log_to_pipe":
            os.mkfifo(self._path)
            return JSONStreamObserver(self._path, flush_interval=0.0, mode="coalesce")
        kind = HostileBatched if self.plan.hook == "on_batch" else Hostile
        return kind(self.plan, released)

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "log"

    def join(self) -> None:
        """From any thread."""
        try:
            self._manager.add_observer(self.observer)
            self.stays += 1
        except InputError as error:  # what it says is wrong, and it is told so
            if self.plan.manner != "lies":
                self.problems.append(f"{self.plan.name} was refused: {error}")
        except BaseException as error:
            self.problems.append(f"adding {self.plan.name} raised {type(error).__name__} at {place(error)}")

    def leave(self) -> None:
        """From any thread."""
        if self.stays == 0:  # it was refused
            return
        try:
            self._manager.remove_observer(self.observer)
        except BaseException as error:
            self.problems.append(f"removing {self.plan.name} raised {type(error).__name__} at {place(error)}")

    def let_go(self) -> None:
        """What blocks goes on: somebody reads the pipe at last. May be called again and again."""
        if self.plan.manner != "log_to_pipe":
            return
        if self._reader is None:
            self._reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 1 << 20):
                pass

    def _close_log(self, log: JSONStreamObserver) -> None:
        """It was left behind, and has something to write still: with nobody there to read it, it would wait at its end."""
        assert self._folder is not None
        if self.plan.manner == "log_to_full":
            _close(log)
            self._path.unlink()  # the disk has room again
            _close(log)
            self._folder.cleanup()
            return
        self.let_go()
        closing = threading.Thread(target=_close, args=(log,), name="schedule-thread", daemon=True)
        closing.start()
        while closing.is_alive():
            self.let_go()
            closing.join(0.001)
        if self._reader is not None:
            os.close(self._reader)
        self._folder.cleanup()

    def judge(self) -> list[str]:
        """What should not have happened, when everything is over."""
        observer = self.observer
        if isinstance(observer, JSONStreamObserver):
            self._close_log(observer)
        if isinstance(observer, Hostile):
            if observer.overlaps:
                self.problems.append(
                    f"{self.plan.name} was called {observer.overlaps} times while a call was going on"
                )
            if observer.closed > self.stays:
                self.problems.append(
                    f"{self.plan.name} was closed {observer.closed} times in {self.stays} stays"
                )
        if observer.manager is not None:
            self.problems.append(f"{self.plan.name} still has its manager")
        return self.problems
