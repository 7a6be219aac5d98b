"""Lines about hints: one when a hint appears, one when it goes, and few of them however many hints there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.hint_watch import HintChange, HintWatch
from rollcast.records.hints import HintKind
from rollcast.records.view_parts import moment
from rollcast.terminal.event_rows import EventRows
from rollcast.terminal.layout import Row
from rollcast.terminal.printer import Printer

__all__ = ["ConsoleHints", "HintRows", "folded_row", "hints_wanted"]

AT_ONCE = 6  # hints that get a line of their own at once
REFILL_S = 10.0  # and one more each ten seconds, on the clock of the events
MAX_PRINTED = 4_096  # ids of hints whose end gets a line


def hints_wanted(filter: EventFilter) -> bool:
    """Whether a console with this filter prints hints: not if it shows only some types of events."""
    return all(part.types is None for part in filter.alternatives)


def folded_row(kinds: Mapping[HintKind, int]) -> Row:
    """A row that counts the hints that have none of their own."""
    total = sum(kinds.values())
    counts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items(), key=lambda each: -each[1]))
    return [
        ("! ", "gap"),
        (f"{total:,} more hint{'' if total == 1 else 's'}", "gap"),
        (f" ({counts})", "dim"),
    ]


class HintRows:
    """Makes rows of changes. The first six hints get one each, and then one in ten seconds; the others are counted.

    The end of a hint gets a row if its appearance had one. The time is that of the events, so a replay gives the same rows.
    """

    def __init__(self) -> None:
        self._left = float(AT_ONCE)
        self._at: float | None = None
        self._printed: dict[str, None] = {}
        self._folded: Counter[HintKind] = Counter()

    def of(
        self, changes: Iterable[HintChange], at: float, rows: EventRows, *, ended: bool = False
    ) -> Iterator[tuple[Row, str, float]]:
        """The rows, each with the run that it is about and its time.

        Args:
            changes: what has changed.
            at: the time, on the clock of the events.
            rows: makes the rows.
            ended: whether a run has ended, so that what was only counted is said now.
        """
        if self._at is None or not 0.0 <= at - self._at < AT_ONCE * REFILL_S:
            self._left, self._at = float(AT_ONCE), at
        self._left, self._at = min(self._left + (at - self._at) / REFILL_S, AT_ONCE), at
        run_id = ""
        for change in changes:
            run_id = change.hint.run_id
            if not change.appeared:
                if change.id in self._printed:
                    del self._printed[change.id]
                    yield rows.hint(change.hint, gone=True), run_id, change.at
            elif self._left >= 1.0:
                self._left -= 1.0
                self._printed[change.id] = None
                if len(self._printed) > MAX_PRINTED:
                    del self._printed[next(iter(self._printed))]
                yield rows.hint(change.hint), run_id, change.at
            else:
                self._folded[change.hint.kind] += 1
        if self._folded and (ended or self._left >= 1.0):
            self._left = max(self._left - 1.0, 0.0)
            yield folded_row(self._folded), run_id, at
            self._folded.clear()


class ConsoleHints:
    """The hints of one console: those of the chains that it shows. The caller holds the output's lock.

    Args:
        clock: a monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._watch = HintWatch()
        self._rows = HintRows()
        self._clock = clock
        self._latest: tuple[float, float] | None = None  # an event's timestamp, and when it came

    def take(self, event: StreamEvent, printer: Printer) -> None:
        """Take the next event, and print what follows from it."""
        changes = self._watch.take(event)
        if event.event_type is StreamEventType.LLM_GENERATION_CHUNK:
            return
        ended = event.event_type == StreamEventType.RUN_END
        if changes or ended:
            at = moment(event.timestamp)  # an event made by hand may have any time
            self._print(changes, 0.0 if at is None else at, printer, ended=ended)

    def note_arrival(self, event: StreamEvent) -> None:
        """Note that this is the latest event, and that it came now."""
        at = moment(event.timestamp)
        if at is not None:
            self._latest = (at, self._clock())

    def look_now(self, printer: Printer) -> None:
        """Print what follows from the time that has passed since the latest event."""
        if self._latest is None:
            return
        timestamp, came = self._latest
        now = timestamp + max(self._clock() - came, 0.0)
        changes = self._watch.look(now)
        if changes:
            self._print(changes, now, printer, ended=False)

    def end_run(self, run_id: str, printer: Printer) -> None:
        """Print what the run ends with, if its `run_end` did not come."""
        changes = self._watch.end_run(run_id)
        if changes:
            self._print(changes, changes[-1].at, printer, ended=True)

    def _print(self, changes: list[HintChange], at: float, printer: Printer, *, ended: bool) -> None:
        for row, run_id, stamp in self._rows.of(changes, at, printer.rows, ended=ended):
            printer.print_rows([row], None, stamp, run_id=run_id)
