"""The console: prints every token, tool call, observation and reward as readable lines (docs/console.md)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TextIO

import msgspec

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.records.lanes import summed_ends
from rollcast.stream.hub import HUB
from rollcast.stream.observer import StreamObserver
from rollcast.stream.processes import rank_of_process
from rollcast.terminal.gathering import Gathering
from rollcast.terminal.hint_lines import ConsoleHints, hints_wanted
from rollcast.terminal.layout import Row
from rollcast.terminal.output import SharedOutput
from rollcast.terminal.printer import Printer
from rollcast.terminal.shown import Board, VisibleChain, VisibleRun
from rollcast.terminal.status import StatusArea
from rollcast.terminal.telling import Telling

__all__ = ["ConsoleStreamObserver"]

logger = logging.getLogger("rollcast.terminal")

T = StreamEventType
CHUNK = T.LLM_GENERATION_CHUNK
_TICK_S = 0.1  # between two updates of the status
_PIECES = 64  # how many pieces of a text are kept until they are dropped together
_GOES_ON = frozenset(
    {
        T.CHAIN_START, T.CHAIN_SNAPSHOT, T.LLM_GENERATION_START, CHUNK, T.LLM_GENERATION_END, T.TOOL_CALL_START,
        T.TOOL_OBSERVATION,
    }
)  # after these an ended chain is open again; other events, such as a reward, may come after the end  # fmt: skip


class ConsoleStreamObserver(StreamObserver):
    """Prints events as whole lines, each with its chain's id, in its chain's colour.

    Text is gathered until its line ends, is as wide as the terminal, or is `gather_s` old. Without a terminal it is gathered
    until its line or its generation ends, or the line has 4,000 characters. If only one chain is shown, it is printed token
    by token instead, but not to a pipe or a file. However many consoles print to one stream, lines are never mixed; an event
    that two of them want is printed by both. A terminal has a status line at the bottom while a run is open.
    Control characters in the text of a model or a tool are shown as escapes, never obeyed.

    A line says when something is worth a look (docs/hints.md), such as a tool that fails in half of its calls, and when that is over.
    Hints are about the chains that this console shows, and there are none if `chain_filter` names types of events.

    It honours `NO_COLOR`, `FORCE_COLOR` and `TERM=dumb`. After a closed pipe it prints nothing more; another failure to write
    is reported once, and then nothing more is printed.

    Args:
        show_timestamps: whether lines begin with the time of day, if the terminal has at least 60 columns.
        chain_filter: an `EventFilter`, a chain id or several; None shows everything.
        file: the text stream to print to. None: `sys.stdout` at the time of printing.
        color: True or False; None decides by the stream and the environment.
        width: the column at which lines are wrapped. None: the terminal's width; without a terminal nothing is wrapped.
        status: whether to show the status line; it is shown only on a terminal that supports it.
        gather_s: how many seconds text waits for its line to end. None: 0.1 on a terminal, for ever elsewhere.
        max_lines: how many lines of an observation or an error are shown.
        max_chars: how many characters of each of these lines are shown.
        hints: whether to print hints.

    Attributes:
        hints_by_clock: whether, on a terminal with a status, a chain is also called quiet while no event comes at all. False: only
            by the times of events, as always in a pipe or a file, so that a replay prints the same.

    Raises:
        FilterError: `chain_filter` is not one of these.
        InputError: a number is out of its range.
    """

    threaded = True

    def __init__(
        self,
        show_timestamps: bool = True,
        chain_filter: EventFilter | str | Iterable[str] | None = None,
        *,
        file: TextIO | None = None,
        color: bool | None = None,
        width: int | None = None,
        status: bool | None = None,
        gather_s: float | None = None,
        max_lines: int = 8,
        max_chars: int = 600,
        hints: bool = True,
    ) -> None:
        rules = (
            ("width", width, width is None or width >= 20, "at least 20 columns, or None for the terminal's"),
            ("gather_s", gather_s, gather_s is None or gather_s >= 0, "seconds from 0 upward, or None"),
            ("max_lines", max_lines, max_lines >= 1, "a whole number from 1 upward"),
            ("max_chars", max_chars, max_chars >= 1, "a whole number from 1 upward"),
        )
        for name, value, holds, expected in rules:
            if not holds:
                raise InputError(f"{name} of the console is {value!r}; expected {expected}")
        self.filter = EventFilter.coerce(chain_filter)
        if file is None and (rank := rank_of_process()):
            self.filter &= EventFilter(types=())  # nothing is made for it
            _tell_where_to_look(rank)
        self.runs: dict[str, VisibleRun] = {}
        self.status_wanted = False
        self.hints_by_clock = True
        self._show_timestamps = show_timestamps
        self._file = file
        self._color = color
        self._width = width
        self._status = status
        self._gather_s = gather_s
        self._limits = (max_lines, max_chars)
        self._clock: Callable[[], float] = time.monotonic
        self._hints = ConsoleHints(lambda: self._clock()) if hints else None  # noqa: PLW0108  (as below)
        self._stream: TextIO | None = None
        self._attached: _Attached | None = None
        self._latest_output: SharedOutput | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None

    # -- what the manager calls ------------------------------------------------------------------------------------

    async def on_event(self, event: StreamEvent) -> None:
        """Print one event, or gather its text."""
        await self.on_batch([event])

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Print the events, or gather their text."""
        attached = self._attach()
        if attached is None:
            return
        with attached.output as output:
            attached.printer.measure()
            hints = self._hints if hints_wanted(self.filter) else None
            for event in events:
                if hints is not None and event.event_type == T.RUN_END:
                    self._print_all_of_run(event.run_id, attached)
                    hints.take(event, attached.printer)
                self._take(event, attached)
                if hints is not None and event.event_type != T.RUN_END:
                    hints.take(event, attached.printer)
            if hints is not None and events:
                hints.note_arrival(events[-1])
            if self._gather_s == 0:
                attached.gathering.print_everything()
        self._after_writing(output)

    async def on_run_opened(self, run_id: str) -> None:
        """Count the run in the status."""
        attached = self._attach()
        if attached is None:
            return
        with attached.output as output:
            self._run(run_id, attached)
        self._after_writing(output)

    async def on_run_closed(self, run_id: str) -> None:
        """Print what is left of the run, and remove it from the status."""
        attached = self._attached
        if attached is None:
            return
        with attached.output as output:
            attached.printer.measure()
            self._end_hints(run_id, attached)
            self._close_run(run_id, attached)
        self._after_writing(output)

    @property
    def unread(self) -> bool:
        """Whether nothing more is printed, since the output has no reader or cannot be written; also after `aclose`."""
        return self._latest_output is not None and self._latest_output.dead

    @property
    def failure(self) -> OSError | None:
        """Why the output cannot be written, except that it has no reader; also after `aclose`."""
        return None if self._latest_output is None else self._latest_output.lost_to

    async def aclose(self) -> None:
        """Print what was gathered, remove the status, and leave the output."""
        self._detach(closing=True)
        self._cancel_timer()

    # -- the output ------------------------------------------------------------------------------------------------

    def _attach(self) -> _Attached | None:
        """Join the output; None if it has no reader, or if there is no output (as under pythonw)."""
        stream = self._file if self._file is not None else sys.stdout
        if stream is not self._stream:
            self._detach()
            self._stream = stream
            if stream is not None:
                self._join(stream)
        if self._attached is None or self._attached.output.dead:
            return None
        return self._attached

    def _join(self, stream: TextIO) -> None:
        printer = Printer(
            stream,
            color=self._color,
            width=self._width,
            timestamps=self._show_timestamps,
            limits=self._limits,
        )
        self.status_wanted = self._status is not False and printer.capable
        gathering = Gathering(
            printer,
            gather_s=self._gather_s,
            status_wanted=self.status_wanted,
            clock=lambda: self._clock(),  # noqa: PLW0108  (the clock may be replaced later)
        )
        self._attached = attached = _Attached(printer, gathering, status_wanted=self.status_wanted)
        self._latest_output = attached.output
        with printer.output as output:
            output.members.append(self)
            if self.status_wanted and output.status is None:
                output.status = StatusArea(output.counted, printer)
            attached.recount()

    def _detach(self, *, closing: bool = False) -> None:
        self._stream = None
        attached = self._attached
        if attached is None:
            return
        with attached.output as output:
            attached.printer.measure()
            for run_id in list(self.runs):
                if closing:
                    self._end_hints(run_id, attached)
                self._close_run(run_id, attached)
            output.end_line()
            output.members.remove(self)
            if isinstance(output.status, StatusArea):  # another status, set by the program, stays
                heirs = [member for member in output.members if member.status_wanted]
                output.status = StatusArea(output.counted, heirs[0].look) if heirs else None
            attached.recount()
        self._attached = None

    @property
    def look(self) -> Printer:
        """The look of this console's status. The console must be attached to an output."""
        assert self._attached is not None
        return self._attached.printer

    # -- time ------------------------------------------------------------------------------------------------------

    def _after_writing(self, output: SharedOutput) -> None:
        if output.failure is not None:
            failure, output.failure = output.failure, None
            self.report(failure)
        due = None if self._attached is None else self._attached.gathering.next_due
        if output.dead:
            if self._attached is not None:
                self._attached.gathering.clear()
            self._cancel_timer()
            return
        if due is None and not (self.status_wanted and self.runs):
            self._cancel_timer()
            return
        loop = asyncio.get_running_loop()
        delay = _TICK_S
        if due is not None:
            delay = max(due - self._clock(), 0.0)
            if self.status_wanted:
                delay = min(delay, _TICK_S)
        if self._timer is not None:
            if self._timer_loop is loop and self._timer.when() <= loop.time() + delay:
                return
            self._cancel_timer()
        self._timer_loop = loop
        self._timer = loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        attached = self._attached
        if attached is None:
            return
        with attached.output as output:
            attached.printer.measure()
            attached.gathering.print_due()
            if self._hints is not None and self.hints_by_clock and self.status_wanted:
                self._hints.look_now(attached.printer)
        self._after_writing(output)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer_loop is not None and not self._timer_loop.is_closed():
            self._timer.cancel()
        self._timer = self._timer_loop = None

    # -- events ----------------------------------------------------------------------------------------------------

    def _take(self, event: StreamEvent, attached: _Attached) -> None:
        """Print or gather one event, and note what it says about its chain."""
        if not event.chain_id:
            self._run_event(event, attached)
            return
        chain = self._chain(event, attached)
        view = chain.view
        attached.telling.take(event, chain)
        view.apply(event)
        if event.event_type is CHUNK and (text := view.generation) is not None:
            attached.chain_changed(chain)
            if len(text.pieces) <= _PIECES:
                return
        view.forget_text()
        run = self.runs[chain.run_id]
        if run.chains.get(chain.chain_id) is not chain:
            return  # the event came after the chain's end
        if view.state == "ended":
            del run.chains[chain.chain_id]
            run.ended.add(chain.chain_id)
            attached.chain_ended(chain)
        else:
            attached.chain_changed(chain)

    def _run_event(self, event: StreamEvent, attached: _Attached) -> None:
        printer = attached.printer
        rows = printer.rows.of(event)
        if event.event_type == T.RUN_START:
            self._run_started(event, rows, attached)
        elif event.event_type == T.RUN_END:
            self._run_ended(event, rows, attached)
        else:
            if event.event_type == T.GAP:
                self._lose_sight(event, attached)
            printer.print_rows(rows, None, event.timestamp, source=event.source)

    def _run_started(self, event: StreamEvent, rows: list[Row], attached: _Attached) -> None:
        run, printer = self._run(event.run_id, attached), attached.printer
        others = [name for name in run.sources.names if name != event.source]
        self._note_source(run, event, attached)
        chains = event.data.get("chains")
        if isinstance(chains, int) and not run.named:
            run.expected = run.expected + chains if others else max(run.expected, chains)
            attached.run_expects(event.run_id, run.expected)
            printer.widen_labels(f"chain_{max(run.expected - 1, 0)}")
        attached.recount()
        if others:
            printer.print_rows(rows, None, event.timestamp, run_id=event.run_id, source=event.source)
        elif rows:
            printer.print_rule(rows[0], event.run_id)

    def _run_ended(self, event: StreamEvent, rows: list[Row], attached: _Attached) -> None:
        """Print how a source's part of the run ended, and how the run did once every source has ended."""
        run, printer, run_id = self._run(event.run_id, attached), attached.printer, event.run_id
        self._note_source(run, event, attached)
        if not run.sources.is_led(event.source):
            run.ends.append(event.data)
        if not run.sources.over:
            self._lose_sight(event, attached)
            printer.print_rows(rows, None, event.timestamp, run_id=run_id, source=event.source)
            return
        self._print_all_of_run(run_id, attached)
        if len(run.ends) > 1:
            with suppress(KeyError, TypeError):  # made by hand: then the last one is shown as it is
                rows = printer.rows.of(msgspec.structs.replace(event, data=summed_ends(run.ends)))
        if rows:
            printer.print_rule(rows[0], run_id)
        self._close_run(run_id, attached)

    def _note_source(self, run: VisibleRun, event: StreamEvent, attached: _Attached) -> None:
        """Note an event of the run; from the second source on, all lines name theirs."""
        known = len(run.sources.names)
        run.sources.note(event)
        if len(run.sources.names) != known:
            attached.printer.see_source(event.source)

    def _lose_sight(self, event: StreamEvent, attached: _Attached) -> None:
        """Count the chains of this source as ended until more of their events come, since events are missing."""
        self._print_all_of_run(event.run_id, attached)
        run = self.runs.get(event.run_id)
        if run is not None:
            lost = [name for name, chain in run.chains.items() if event.source in ("", chain.source)]
            for name in lost:
                attached.chain_ended(run.chains.pop(name))
            run.ended.update(lost)
            run.unsure.update(lost)
        attached.recount()

    # -- runs and chains -------------------------------------------------------------------------------------------

    def _run(self, run_id: str, attached: _Attached) -> VisibleRun:
        run = self.runs.get(run_id)
        if run is None:
            names: set[str] = set()
            for part in self.filter.alternatives:
                names |= part.chains or set()
            named = all(part.chains is not None for part in self.filter.alternatives)
            run = self.runs[run_id] = VisibleRun(len(names) if named else 0, named=named)
            attached.run_opened(run_id, self._clock(), run.expected)
        return run

    def _chain(self, event: StreamEvent, attached: _Attached) -> VisibleChain:
        run = self._run(event.run_id, attached)
        chain = run.chains.get(event.chain_id)
        if chain is None or chain.source != event.source:
            self._note_source(run, event, attached)
        if chain is None:
            chain_id = event.chain_id
            style = attached.printer.painter.chain_style(chain_id)
            chain = VisibleChain(event.run_id, chain_id, style, event.source)
            again = chain_id in run.ended
            if again and chain_id not in run.unsure and event.event_type not in _GOES_ON:
                return chain
            run.ended.discard(chain_id)
            run.unsure.discard(chain_id)
            run.chains[chain_id] = chain
            attached.printer.widen_labels(chain_id, event.source)
            attached.chain_opened(chain, again=again)
        chain.source = event.source
        return chain

    def _print_all_of_run(self, run_id: str, attached: _Attached) -> None:
        run = self.runs.get(run_id)
        for chain in run.chains.values() if run is not None else ():
            attached.gathering.print_all_of(chain)

    def _end_hints(self, run_id: str, attached: _Attached) -> None:
        """Print the hints that the run ends with, below its last text, if its `run_end` was not shown."""
        if self._hints is not None:
            self._print_all_of_run(run_id, attached)
            self._hints.end_run(run_id, attached.printer)

    def _close_run(self, run_id: str, attached: _Attached) -> None:
        self._print_all_of_run(run_id, attached)
        run = self.runs.pop(run_id, None)
        if run is not None:
            attached.run_closed(run_id, run)


def _tell_where_to_look(rank: int) -> None:
    """Say once that the first process prints alone, since the lines of several would be mixed."""
    hub = os.environ.get(HUB, "").strip()
    where = f"rollcast watch {hub}" if hub else f"set {HUB}, or give it a log: JSONStreamObserver(path)"
    logger.warning("rank %d prints no chains, since rank 0 prints here; to see them: %s", rank, where)


class _Attached:
    """The parts that a console has while it prints to an output; it tells the output which chains the console shows."""

    def __init__(self, printer: Printer, gathering: Gathering, *, status_wanted: bool) -> None:
        self.printer = printer
        self.output = printer.output
        self.gathering = gathering
        self.telling = Telling(printer, gathering)
        output = printer.output
        self._counted: Board | None = output.counted if status_wanted else None
        self._boards = [output.shown] if self._counted is None else [output.shown, self._counted]

    def recount(self) -> None:
        """Update the output after the visible chains have changed."""
        output = self.output
        output.alone = not self.printer.piped and output.shown.alone
        output.several_runs = output.shown.several_runs
        if isinstance(output.status, StatusArea):
            output.status.recount()
        output.redraw()

    def run_opened(self, run_id: str, at: float, expected: int) -> None:
        """Note that the console shows a run."""
        for board in self._boards:
            board.run_opened(run_id, at, expected)
        self.recount()

    def run_expects(self, run_id: str, expected: int) -> None:
        """Note how many chains a run will have."""
        for board in self._boards:
            board.run_expects(run_id, expected)

    def run_closed(self, run_id: str, run: VisibleRun) -> None:
        """Note that the console no longer shows a run."""
        for board in self._boards:
            for chain in run.chains.values():
                board.changed.pop(chain, None)
            board.run_closed(run_id)
        self.recount()

    def chain_opened(self, chain: VisibleChain, *, again: bool) -> None:
        """Note that the console shows a chain; `again`: it has seen the chain end before."""
        for board in self._boards:
            board.chain_opened(chain, again=again)
        self.recount()

    def chain_changed(self, chain: VisibleChain) -> None:
        """Note that a chain may have more tokens."""
        if self._counted is not None:
            self._counted.changed[chain] = None

    def chain_ended(self, chain: VisibleChain) -> None:
        """Note that the console saw a chain end."""
        for board in self._boards:
            board.changed.pop(chain, None)
            board.chain_ended(chain)
