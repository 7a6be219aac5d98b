"""The record that `run` and `train` leave: from its options to the line that names it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rollcast.cli.itself import quoted, this_command
from rollcast.cli.standard_error import say, warn
from rollcast.cli.wording import counted
from rollcast.errors import InputError, RollcastError
from rollcast.text import visible

if TYPE_CHECKING:
    from rollcast.archive import ArchiveObserver, RecordEntry
    from rollcast.rollout import BaseAgent
    from rollcast.stream import StreamingManager

__all__ = [
    "Recording",
    "RunRecord",
    "name_of_agent",
    "record_directory",
    "record_for",
    "record_to_go_on_from",
]

_TRIAL = b"x" * 4096  # what a disk that is full does not take


def _here() -> Path:
    """The current folder; an empty path if it was deleted."""
    try:
        return Path.cwd()
    except OSError:
        return Path()


@dataclass(frozen=True)
class Recording:
    """The command line's options about the record.

    Attributes:
        level: what is kept: `auto`, `turns`, `tokens` or `summary`; None: `auto`.
        off: nothing is recorded.
        directory: where the record goes; None: what `ROLLCAST_RECORDS` names, or `rollcast-runs` in the current folder.
        lossless: the run waits if the record falls behind.
        name: of the record; None: the task's or the agent's.
        tags: words, or `KEY=VALUE`.
        budget: how large the records of the folder may be together, as `20GB`; None: as large as they become.
        begun_in: the folder in which the command was typed. The user's own code, which is loaded later, may go to another.

    Raises:
        InputError: two of them contradict each other, or one is empty.
    """

    level: str | None = None
    off: bool = False
    directory: str | None = None
    lossless: bool = False
    name: str | None = None
    tags: tuple[str, ...] = ()
    budget: str | None = None
    begun_in: Path = field(default_factory=_here, compare=False)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Those among a command's options, by their names on the command line with `_` for `-`.

        Raises:
            InputError: as of the class.
        """
        return cls(
            level=options["record"],
            off=options["no_record"],
            directory=options["record_dir"],
            lossless=options["record_lossless"],
            name=options["name"],
            tags=tuple(options["tag"] or ()),
            budget=options["record_budget"],
        )

    @property
    def is_asked_for(self) -> bool:
        """Whether an option asks for a record, rather than how it is called."""
        return self.level is not None or self.directory is not None or self.lossless

    def path_or_name(self, given: str) -> str:
        """A model's folder or its name on the hub: as typed, unless the current folder has changed since."""
        there = self.begun_in / given
        return str(there) if _here() != self.begun_in and os.path.isdir(there) else given  # noqa: PTH112  (false for a name that is too long)

    def __post_init__(self) -> None:
        given = {
            "--record": self.level is not None,
            "--record-dir": self.directory is not None,
            "--record-lossless": self.lossless,
            "--record-budget": self.budget is not None,
        }
        for option, is_given in given.items():
            if self.off and is_given:
                raise InputError(f"--no-record and {option} are both given; give one of them")
        for option, value in (("--record-dir", self.directory), ("--name", self.name)):
            if value is not None and not value.strip():
                raise InputError(f"{option} is empty; expected a name")
        if not all(tag.strip() for tag in self.tags):
            raise InputError("--tag is empty; expected a word, or KEY=VALUE")


class RunRecord:
    """The record of one command.

    Args:
        observer: that records; it is added to the manager of the run.
        ours: the command made it. Otherwise the user's own code did.
        begun_in: the folder in which the command was typed: from there the last line names the record.
        budget: how many bytes the records of its folder may have together; None: as many as they come to.
    """

    def __init__(
        self, observer: ArchiveObserver, *, ours: bool, begun_in: Path, budget: int | None = None
    ) -> None:
        self._observer = observer
        self._begun_in = begun_in
        self._ours = ours
        self._budget = budget

    def finish(self) -> None:
        """Make room if there is a budget, and print the last line."""
        if self._budget is not None and self._observer.begun and self._observer.ended:
            _keep_within(self._observer.path.parent, self._budget)
        self.say()

    def say(self) -> None:
        """Print the last line on the standard error: the command that shows the record."""
        line = self._line()
        if line is not None:
            say(line)

    def say_of_failure(self, error: RollcastError | KeyboardInterrupt) -> None:
        """Have the line printed after the sentence about the error. What failed before its first chain leaves no record."""
        observer = self._observer
        if self._ours and observer.ended and not (observer.totals.chains or observer.totals.train_steps):
            if observer.begun:
                shutil.rmtree(observer.path, ignore_errors=True)
            return
        line = self._line()
        if isinstance(error, KeyboardInterrupt):  # nothing is printed about it
            self.say()
        elif line is not None:
            error.add_note(line)

    def _line(self) -> str | None:
        """None if there is no record: then a warning has said why."""
        observer = self._observer
        if not observer.begun:
            return None
        path = observer.path
        with suppress(ValueError):  # the record is elsewhere
            path = path.relative_to(self._begun_in)
        line = f"recorded: {this_command()} show {quoted(path)}"
        lacking = observer.incomplete or (None if observer.ended else "its end is not written yet")
        if lacking is not None:
            line += f" (not complete: {lacking})"
        return "".join(piece for piece, _ in visible(line))


def record_directory(given: str | None) -> Path:
    """Where records are, see `rollcast.archive.index.record_directory`."""
    from rollcast.archive import index  # noqa: PLC0415  (not with --no-record)

    return index.record_directory(given)


def name_of_agent(agent: BaseAgent, target: str) -> str:
    """The agent's own name, or that of the file or the module that it is in.

    Args:
        agent: the agent.
        target: what was typed for it, `module:name` or `path/to/file.py:name`.
    """
    if agent.name != type(agent).__name__:
        return agent.name
    where = target.rpartition(":")[0]
    return Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]


def record_for(
    recording: Recording,
    manager: StreamingManager,
    *,
    name: str,
    settings: Mapping[str, Any],
    seed: int | None,
    out: Path | None = None,
    parent: str | None = None,
) -> RunRecord | None:
    """Have the manager's runs recorded, unless that is switched off. The record begins with the first run.

    A manager that publishes to a hub leaves that to the hub, unless an option asks for a record here too.

    If the user's own code records already, that record is the only one, unless an option asks for another.

    Args:
        recording: the options.
        manager: of the agent.
        name: of the record, if none is given.
        settings: of the run or the training, for `run.json`. Those that are None are left out, and in those that are lists of
            `NAME=VALUE` the values of secrets.
        seed: of the run or the training.
        out: a training's folder.
        parent: the record that a resumed training goes on from.

    Raises:
        InputError: the level does not exist, or `--record-dir` names what cannot be written to.
    """
    if recording.off or (manager.publishes and not recording.is_asked_for):
        return None
    from rollcast.archive import ArchiveObserver  # noqa: PLC0415  (not with --no-record)
    from rollcast.records.secrets import masked_arguments  # noqa: PLC0415

    own = next((each for each in manager.observers if isinstance(each, ArchiveObserver)), None)
    if own is not None and recording == Recording():
        return RunRecord(own, ours=False, begun_in=recording.begun_in)
    budget = None if recording.budget is None else _budget_of(recording.budget)
    directory = recording.begun_in / record_directory(recording.directory)
    if recording.directory is not None:
        _ensure_writable(recording.directory, directory)
    observer = ArchiveObserver.within(
        directory,
        name=recording.name or name,
        tags=recording.tags,
        level=recording.level or "auto",
        lossless=recording.lossless,
        about={
            "command": ["rollcast", *masked_arguments(sys.argv[1:])],
            "settings": {
                key: masked_arguments(value) if isinstance(value, list) else value
                for key, value in settings.items()
                if value is not None
            },
            "seed": seed,
            "out": None if out is None else str(out.absolute()),
            "parent": parent,
        },
    )
    logging.getLogger("rollcast.archive.count").setLevel(logging.ERROR)  # the last line says it
    manager.add_observer(observer)
    return RunRecord(observer, ours=True, begun_in=recording.begun_in, budget=budget)


def record_to_go_on_from(out: Path, recording: Recording) -> str | None:
    """The name of the latest record of the training in this folder; None if the record directory has none.

    If its writer died, the record is recovered, and a sentence says so: a training can only be resumed once no other process writes it.
    """
    if recording.off:
        return None
    from rollcast.archive.index import list_records  # noqa: PLC0415  (not with --no-record)
    from rollcast.errors import ArchiveError  # noqa: PLC0415

    try:
        entries = list_records(recording.begun_in / record_directory(recording.directory))
    except ArchiveError:  # recording there fails too, and says so
        return None
    where = str(out.absolute())
    found = next((entry for entry in entries if entry.facts is not None and entry.facts.out == where), None)
    if found is None:
        return None
    if found.state in ("crashed", "silent"):
        _make_whole(found, recording.begun_in)
    return found.name


def _make_whole(entry: RecordEntry, begun_in: Path) -> None:
    """Recover a record whose writer died, and say so; if that cannot be done, say why, and how to do it later."""
    from rollcast.archive.recovery import recover  # noqa: PLC0415  (not with --no-record)
    from rollcast.errors import ArchiveError  # noqa: PLC0415

    try:
        if recover(entry.path).needed:
            warn(
                f"the training was cut off while it wrote its record {entry.name}; that record is whole again"
            )
    except (ArchiveError, OSError) as error:
        assert entry.facts is not None
        path = entry.path
        with suppress(ValueError):  # the record is elsewhere
            path = path.relative_to(begun_in)
        if entry.state == "silent":
            why = f"it was written on {entry.facts.writer.host}, and whether that still writes cannot be seen from here"
            command = f"{this_command()} recover --force {quoted(path)}"
        else:
            why = str(error.strerror or error) if isinstance(error, OSError) else str(error)
            command = f"{this_command()} recover {quoted(path)}"
        warn(f"the record before this one, {entry.name}, has no end: {why}; `{command}` makes it whole")


def _budget_of(text: str) -> int:
    from rollcast.archive.budget import bytes_of  # noqa: PLC0415  (not with --no-record)

    try:
        size = bytes_of(text)
    except InputError as error:
        raise InputError(f"--record-budget: {error}") from None
    if text.strip()[-1].isdecimal():  # who forgets the GB would lose the events of all records
        raise InputError(
            f"--record-budget is {text.strip()!r:.40}, without a unit; give one: 20GB, 500MB, or 100B for bytes"
        )
    return size


def _keep_within(directory: Path, budget: int) -> None:
    """Take the tokens, and then the events, out of the oldest records of a directory until they fit; say if something was done."""
    from rollcast.archive.budget import trim_records  # noqa: PLC0415  (not with --no-record)

    try:
        done = trim_records(directory, budget)
    except RollcastError as error:
        warn(f"the records cannot be kept within --record-budget: {error}")
        return
    if done.records:
        count = counted(len(done.records), "record")
        warn(
            f"to keep within --record-budget, tokens or events were removed from {count}, the oldest first: the records took "
            f"{_size_text(done.before)} and now take {_size_text(done.after)}"
        )
    if done.over:
        warn(
            f"the records take {_size_text(done.after)}, which is more than --record-budget: lists, chains with notes, and records "
            "that are being written or are from other hosts are kept"
        )


def _size_text(size: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:,.1f} {unit}"
    return f"{size} B"


def _ensure_writable(given: str, directory: Path) -> None:
    """Make the directory that the user named, and try it.

    Args:
        given: as it was typed.
        directory: what that means.

    Raises:
        InputError: it cannot be made, or nothing can be written there.
    """
    from rollcast.archive.writer import prepare_directory  # noqa: PLC0415  (not with --no-record)

    try:
        prepare_directory(directory)
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(_TRIAL)
    except OSError as error:
        raise InputError(
            f"--record-dir {given} cannot be written to: {error.strerror or error}; name another folder, or give "
            "--no-record"
        ) from None
