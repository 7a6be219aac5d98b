"""The observer that records: `ArchiveObserver(path)`. It hands events to a thread that writes, and never makes a run wait.

manager ──▶ the observer's queue (64 MiB) ──▶ Worker (at most 8 MiB) ──▶ Recorder ──▶ the record's folder
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import msgspec

from rollcast import lifetime
from rollcast.aio import follower
from rollcast.archive.format import RUN_FILE, Level, RunFile, Totals, record_name, types_of
from rollcast.archive.index import record_directory
from rollcast.archive.worker import Worker
from rollcast.archive.writer import OnRows, Recorder, Written
from rollcast.errors import InputError
from rollcast.records import EventFilter, Trajectory
from rollcast.records.jsonable import as_json
from rollcast.records.secrets import Masker, masker_of
from rollcast.stream.fanout import OpenPart
from rollcast.stream.observer import ChunkInterest, EncodingObserver
from rollcast.stream.waiting import Encodable, Relayed

__all__ = ["ArchiveObserver"]

QUEUE_LIMIT = 64 << 20
EXIT_S = 2.0  # how long the exit of the interpreter waits for a disk that hangs

logger = logging.getLogger("rollcast.archive")

_TOKENS: dict[str, ChunkInterest] = {
    "auto": "shared",
    "turns": "never",
    "tokens": "wanted",
    "summary": "never",
}


class ArchiveObserver(EncodingObserver):
    """Records what happens, as a folder that can be read while it grows and for ever after (docs/archive.md).

    One record may hold many runs: those of a training. It ends when the observer is removed or its manager closes, and goes on
    if the observer is added again. Whatever becomes of the disk, the run goes on: a failure is told once, what could not be
    written is counted, and a `gap` stands for it when it can be written again.

    Args:
        path: of the record's folder, which must not hold a record yet. The folder around it is made if it is not there.
        level: `auto`, `turns`, `tokens` or `summary`: what is kept.
        name, tags: what its owner calls it.
        about: more of what `run.json` says: `command`, `settings`, `seed`, `parent`, `out`; `versions` of more than Rollcast and
            the libraries that it knows; `git_commit`, if not that of the current folder.
        trajectories: keep the trajectories, with ids and log-probabilities. None: at every level but `summary`.
        lossless: the run waits if the record falls behind, so that it lacks nothing. Otherwise it never waits.
        masker: of secrets; None masks known shapes and the values of environment variables that look secret. Give
            `False` to mask nothing.

    Raises:
        InputError: the level does not exist, `about` has a field or a value that `run.json` cannot have, `masker` is not a masker, or the
            folder holds a record.
    """

    threaded = True
    queue_limit_bytes = QUEUE_LIMIT

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        level: Level = "auto",
        name: str = "",
        tags: Iterable[str] = (),
        about: dict[str, Any] | None = None,
        trajectories: bool | None = None,
        lossless: bool = False,
        masker: Masker | bool | None = None,
    ) -> None:
        folder = _absolute(path)
        types = types_of(level)
        self.level = level
        self.chunk_interest = _TOKENS[level]
        self.filter = EventFilter(types=types, ids=level != "summary")
        if lossless:
            self.mode = "lossless"
        if os.path.exists(folder / RUN_FILE):  # noqa: PTH110  (unlike Path.exists it never raises)
            raise InputError(
                f"{str(folder)!r} holds a record already; each recording has a folder of its own: give another path"
            )
        self._pid = os.getpid()
        self._told_of_fork = False
        self._manager: Any = None
        self._keeps_trajectories = level != "summary" if trajectories is None else trajectories
        masker = masker_of(masker)
        me = weakref.ref(self)  # the thread must not keep alive what ends it
        self._recorder = Recorder(
            folder,
            _run_file({"name": name, "tags": list(tags), "level": level}, about or {}, masker),
            trajectories=self._keeps_trajectories,
            masker=masker,
            open_parts=lambda: _open_parts(me()),
            on_failure=lambda error: _report(me(), error),
            run_in=_absolute(""),
        )
        self._worker = Worker(self._recorder, f"rollcast-archive-{folder.name}")
        # What waits is written even if nobody removed the observer; at exit by `_close_all`, after all that may still give it something.
        weakref.finalize(self, _close, self._worker, self._pid).atexit = False
        _workers[self._worker] = self._pid

    @classmethod
    def within(
        cls, directory: str | os.PathLike[str] | None = None, *, name: str = "", **options: Any
    ) -> Self:
        """A record in a record directory, named by time and name: `rollcast-runs/20261128-1532-guess-3f2a`.

        Args:
            directory: None: what `ROLLCAST_RECORDS` names, or `rollcast-runs` in the current folder.
            name: of the task.
            options: as of the class.
        """
        folder = _absolute(record_directory(directory))
        began = time.time()
        masker = masker_of(options.get("masker"))
        shown = (
            name if masker is None else masker.text(name)
        )  # `run.json` does not tell what is masked in it either

        def draw() -> Path:
            path = folder / record_name(shown, began, secrets.token_hex(2))
            return draw() if os.path.lexists(path) else path

        observer = cls(draw(), name=name, **options)
        observer._recorder.redraw = draw  # another process may draw the same before either makes its folder
        return observer

    @property
    def path(self) -> Path:
        """The record's folder. If its name was made up, it may still change until the record begins."""
        return self._recorder.path

    @property
    def begun(self) -> bool:
        """Whether there is a record: it begins with the first run. A forked child has none: the record is its parent's."""
        return self._recorder.begun and os.getpid() == self._pid

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be written: it has not begun, or is whole."""
        return not self._worker.running

    @property
    def totals(self) -> Totals:
        """What was recorded so far, counted on the thread that writes: settled when the record has ended."""
        return self._recorder.about.totals

    @property
    def incomplete(self) -> str | None:
        """What the record lacks, and why; None if it lacks nothing."""
        return self._recorder.incomplete

    @property
    def id(self) -> str:
        """The record's id, with which cursors into it begin. It changes if the folder is taken away and begun anew."""
        return self._recorder.about.id

    @property
    def parent(self) -> str | None:
        """The record that this one goes on from, as `about` named it."""
        return self._recorder.about.parent

    @property
    def on_written(self) -> list[Callable[[Written], object]]:
        """What is called whenever events were written, on the thread that writes; it must not wait."""
        return self._recorder.on_written

    def follow_rows(self, on_rows: OnRows) -> None:
        """Have something called with the start rows of the chains that are open, at once, and then with all rows that are written.

        It is called as long as it returns true, on the thread that writes, and must not wait. This waits for a moment if rows are
        being made.
        """
        self._recorder.follow_rows(on_rows)

    @property
    def recording(self) -> bool:
        """Whether something may still be written."""
        return self._manager is not None or self._worker.running

    @property
    def failing(self) -> str | None:
        """Why the record cannot be written at present; None if it can."""
        return self._recorder.failing

    @property
    def began_at(self) -> float:
        """When the record began, in seconds since the epoch; 0 before that."""
        return self._recorder.about.started_at

    @property
    def manager(self) -> Any:
        """The manager to which it is added, or None. From it come the trajectories of chains that end."""
        return self._manager

    @manager.setter
    def manager(self, manager: Any) -> None:
        before, self._manager = self._manager, manager
        if before is manager or not self._keeps_trajectories:
            return
        if before is not None:
            with before.lock:
                before.fanout.chain_closings.remove(self._chain_closed)
        if manager is not None:
            with manager.lock:
                manager.fanout.chain_closings.append(self._chain_closed)

    def _chain_closed(self, trajectory: Trajectory) -> None:
        place = trajectory.chain_id, trajectory.group_id, trajectory.run_id
        if os.getpid() == self._pid and self.filter.matches_chain(*place):
            self._worker.put_trajectory(trajectory)

    async def on_encodable(self, events: Sequence[Encodable]) -> None:
        """Have the events written. It waits while too much waits to be written, and the observer's queue grows meanwhile."""
        await self._have_written(events, None)

    async def on_passage(self, events: Sequence[Relayed], lines: Sequence[bytes | None]) -> None:
        """As `on_encodable`; how much memory they take is told by their lines."""
        await self._have_written(events, sum([len(line) for line in lines if line is not None]))

    async def _have_written(self, events: Sequence[Relayed], text_bytes: int | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked child: the record is its parent's
        self._worker.start()
        room = self._worker.put(events, text_bytes)
        if room is not None:
            await _kept(room)

    async def on_run_opened(self, run_id: str) -> None:
        """Begin the record, if it has not begun."""
        if os.getpid() == self._pid:
            self._worker.start()
        elif not self._told_of_fork:
            self._told_of_fork = True
            logger.warning(
                "%s is the record of process %d, from which this one was forked; what runs here is not recorded: make an "
                "ArchiveObserver in each process",
                self.path,
                self._pid,
            )

    async def on_run_closed(self, run_id: str) -> None:
        """Wait until the run is recorded."""
        await self.recorded()

    async def recorded(self) -> None:
        """Wait until everything that this observer was given is on the disk, or cannot be written."""
        if os.getpid() == self._pid:
            await _kept(self._worker.flush())

    async def aclose(self) -> None:
        """Write what waits, and finish the record."""
        if os.getpid() == self._pid:
            await _kept(self._worker.stop())


async def _kept(promise: Future[None]) -> None:
    await asyncio.wrap_future(follower(promise))


def _absolute(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).absolute()
    except OSError:  # the current folder was deleted
        return Path(path)


def _run_file(told: dict[str, Any], about: dict[str, Any], masker: Masker | None) -> RunFile:
    known = {"command", "settings", "seed", "versions", "git_commit", "parent", "out", "id"}
    unknown = sorted(set(about) - known)
    if unknown:
        raise InputError(f"about has a field {unknown[0]!r}; its fields are {', '.join(sorted(known))}")
    told = as_json(told | about)
    try:
        return msgspec.convert(told if masker is None else masker.value(told), RunFile)
    except msgspec.ValidationError as error:
        raise InputError(f"what run.json is to say is wrong: {error}") from None


def _open_parts(observer: ArchiveObserver | None) -> Iterable[OpenPart]:
    manager = None if observer is None else observer.manager
    return () if manager is None or manager.fanout is None else manager.fanout.open_parts()


def _report(observer: ArchiveObserver | None, error: BaseException) -> None:
    if observer is not None:
        observer.report(error)


_workers: weakref.WeakKeyDictionary[Worker, int] = weakref.WeakKeyDictionary()


def _close_all() -> None:
    for worker, pid in list(_workers.items()):
        _close(worker, pid)


lifetime.call_at_last(_close_all)


def _close(worker: Worker, pid: int) -> None:
    """The observer is gone, or the interpreter exits."""
    if os.getpid() != pid or not worker.running:
        return
    stopped = worker.stop()
    try:
        stopped.result(EXIT_S)
    except TimeoutError:
        return  # the disk hangs
