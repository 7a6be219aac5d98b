"""`rollcast replay`: shows a recorded run as it was seen live, through the same observers."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rollcast.archive.index import find_record
from rollcast.archive.pace import Pace
from rollcast.archive.reader import Archive, EventReader
from rollcast.archive.selection import check_names, runs_of_step
from rollcast.cli.exit_codes import INTERRUPTED
from rollcast.cli.log import is_standard_output, log_at
from rollcast.cli.records import warn_of_damage
from rollcast.cli.speed import speed_of
from rollcast.cli.standard_error import warn
from rollcast.errors import InputError
from rollcast.observers import JSONStreamObserver
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream import StreamingManager, StreamObserver
from rollcast.stream.playback import Playback
from rollcast.terminal import ConsoleStreamObserver

__all__ = ["ReplayOptions", "replay_command"]

_READING_S = 86_400.0  # a pager may show the last page for long


@dataclass(frozen=True)
class ReplayOptions:
    """The options on the command line; see `rollcast replay --help`."""

    record: str
    speed: str
    step: int | None
    chains: list[str] | None
    groups: list[str] | None
    types: list[str] | None
    follow: bool
    json: str | None
    color: bool | None
    timestamps: bool


def replay_command(directory: Path, options: ReplayOptions) -> int:
    """Show what the record has; the exit code.

    Raises:
        ArchiveError: no record is meant or more than one, it cannot be read, or it has no such step, chain or group.
        InputError: an option is wrong, or the output cannot be written.
        BrokenPipeError: the output's reader has gone.
    """
    speed = speed_of(options.speed)
    archive = Archive.open(find_record(directory, options.record))
    wanted = _filter(archive, options)
    logging.basicConfig(format="rollcast: %(message)s", level=logging.WARNING)
    log = log_at(options.json)
    read = wanted | _closings(wanted)
    events = archive.follow(filter=read) if options.follow else archive.events(filter=read)
    try:
        _replay(events, wanted, Pace(speed), log, options)
    except KeyboardInterrupt:
        return INTERRUPTED
    warn_of_damage(archive, events.damage)
    if not options.follow and archive.refresh().state == "running":
        warn(f"{archive.path.name} goes on; --follow waits for what comes")
    return 0


def _filter(archive: Archive, options: ReplayOptions) -> EventFilter:
    wanted = EventFilter(chains=options.chains, groups=options.groups, types=options.types)
    if options.step is None and not (options.chains or options.groups):
        return wanted
    rows = archive.chains().rows
    if options.step is not None:
        wanted &= EventFilter(runs=runs_of_step(archive, rows, options.step))
    if not (options.follow and archive.state == "running"):  # else they may come
        check_names(archive, rows, "chain_id", options.chains or [])
        check_names(archive, rows, "group_id", options.groups or [])
    return wanted


def _closings(wanted: EventFilter) -> EventFilter:
    """What opens and closes runs and chains: observers are told of it, also if their filter leaves these events out."""
    of_runs = EventFilter(runs=wanted.runs, types=("run_start", "run_end"))
    return of_runs | EventFilter(wanted.runs, wanted.chains, wanted.groups, ("chain_end",))


def _replay(
    events: EventReader,
    wanted: EventFilter,
    pace: Pace,
    log: JSONStreamObserver | None,
    options: ReplayOptions,
) -> None:
    console: ConsoleStreamObserver | None = None
    if log is not None:
        log.filter, log.mode = wanted, "lossless"
    if not is_standard_output(options.json):
        console = ConsoleStreamObserver(
            show_timestamps=options.timestamps, chain_filter=wanted, color=options.color
        )
        console.hints_by_clock = False  # its events' times say how long a chain was quiet
        console.mode = "lossless"  # the replay waits for a slow terminal, so that nothing is merged
    observers = [each for each in (log, console) if each is not None]
    if log is not None:
        log.open()
    if pace.speed == math.inf and not options.follow:
        asyncio.run(Playback(observers).play(events, lambda: _stop_if_unread(console, log)))
    else:
        _replay_in_time(events, observers, pace, lambda: _stop_if_unread(console, log))
    if log is not None and log.incomplete is not None:
        where = log.path or "the standard output"
        raise InputError(f"{where} lacks events: {log.incomplete}; make room, or write elsewhere")


def _replay_in_time(
    events: EventReader, observers: Sequence[StreamObserver], pace: Pace, check: Callable[[], object]
) -> None:
    """Deliver each event to the observers when it is due."""
    manager = StreamingManager(publish=False)
    for observer in observers:
        manager.add_observer(observer)
    for delivery in manager.fanout.deliveries:
        delivery.first_time("waiting")  # a replay waits for those who read it, which is no news
    try:
        for event in events:
            _wait_until_due(event, pace)
            manager.relay(event)
            manager.ready_sync()
            check()
        manager.drain_sync(_READING_S)
        check()
    finally:
        manager.close()
    check()


def _stop_if_unread(console: ConsoleStreamObserver | None, log: JSONStreamObserver | None) -> None:
    if console is not None and console.failure is not None:
        why = console.failure.strerror or console.failure
        raise InputError(f"the output cannot be written: {why}; make room, or print elsewhere")
    if (console is not None and console.unread) or (log is not None and log.unread):
        raise BrokenPipeError


def _wait_until_due(event: StreamEvent, pace: Pace) -> None:
    """Return when the event is due."""
    if event.event_type is StreamEventType.GAP:
        return
    pace.take(event.timestamp, time.monotonic())
    left_s = pace.left_s(time.monotonic())
    if left_s > 0:
        sys.stdout.flush()
        time.sleep(left_s)
