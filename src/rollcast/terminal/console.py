"""The console: every token, tool call, observation and reward as lines for people (docs/console.md)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from rollcast.errors import InputError
from rollcast.records import EventFilter, StreamEvent, StreamEventType
from rollcast.stream.observer import StreamObserver
from rollcast.terminal.layout import wrap
from rollcast.terminal.output import SharedOutput
from rollcast.terminal.printer import Printer
from rollcast.terminal.status import StatusArea, VisibleChain, VisibleRun, is_alone, several_runs
from rollcast.terminal.tags import style_tags

__all__ = ["ConsoleStreamObserver"]

T = StreamEventType
_TICK_S = 0.1  # between two looks at the status
_GATHER_S = 0.1  # that text waits on a terminal, and a result for the end of its call
_LINES_AT_ONCE = 200


class ConsoleStreamObserver(StreamObserver):
    """Prints events as whole lines, each with its chain's id, in its chain's colour.

    Text is gathered until its line ends, is as wide as the terminal, or is `gather_s` old. Without a terminal it is gathered
    until its line is whole: it ended, its generation did, or it has 4,000 characters. A chain that is alone on the output
    is printed token by token instead, but not to a pipe or a file. However many consoles print to one stream, lines are
    never mixed; an event that two of them want is printed by both. On a terminal a status line stands at the bottom while a run is open.
    Control characters in the text of a model or a tool are shown as escapes, never obeyed.

    Honours `NO_COLOR`, `FORCE_COLOR` and `TERM=dumb`. A closed pipe makes it silent; other failures to write are
    reported once, and nothing is printed from then on.

    Args:
        show_timestamps: begin lines with the time of day, where the terminal has at least 60 columns.
        chain_filter: an `EventFilter`, a chain id or several; None shows everything.
        file: text stream to print to. None: what `sys.stdout` is at the time of printing.
        color: True or False; None decides by the stream and the environment.
        width: columns at which lines are wrapped. None: the terminal's; without a terminal nothing is wrapped.
        status: whether to show the status line; only ever on a terminal that can.
        gather_s: how long text waits for its line to end, in seconds. None: 0.1 on a terminal, for ever elsewhere.
        max_lines: of an observation or an error that are shown.
        max_chars: of each of these lines.

    Raises:
        FilterError: `chain_filter` is none of these.
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
        self.runs: dict[str, VisibleRun] = {}
        self.status_wanted = False
        self._show_timestamps = show_timestamps
        self._file = file
        self._color = color
        self._width = width
        self._status = status
        self._gather_s = gather_s
        self._limits = (max_lines, max_chars)
        self._clock: Callable[[], float] = time.monotonic
        self._stream: TextIO | None = None
        self._printer: Printer | None = None
        self._waiting: dict[VisibleChain, None] = {}  # chains with something unprinted, the oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        self._handlers: dict[str, Callable[[StreamEvent, VisibleChain], None]] = {
            T.LLM_GENERATION_CHUNK: self._chunk,
            T.LLM_GENERATION_START: self._generation_start,
            T.LLM_GENERATION_END: self._generation_end,
            T.TOOL_CALL_START: self._tool_call_start,
            T.TOOL_OBSERVATION: self._tool_observation,
            T.TOOL_CALL_END: self._tool_call_end,
            T.CHAIN_END: self._chain_end,
            T.CHAIN_SNAPSHOT: self._snapshot,
        }

    # -- what the manager calls ------------------------------------------------------------------------------------

    async def on_event(self, event: StreamEvent) -> None:
        """Print one event, or gather its text."""
        await self.on_batch([event])

    async def on_batch(self, events: list[StreamEvent]) -> None:
        """Print the events, or gather their text."""
        output = self._attach()
        if output is None:
            return
        with output:
            self._out.measure()
            for event in events:
                self._take(event)
            if self._gather_s == 0:
                self._print_waiting(everything=True)
        self._after_writing(output)

    async def on_run_opened(self, run_id: str) -> None:
        """Count the run in the status."""
        output = self._attach()
        if output is None:
            return
        with output:
            self._run(run_id)
        self._after_writing(output)

    async def on_run_closed(self, run_id: str) -> None:
        """Print what is left of the run; its status goes."""
        if self._printer is None:
            return
        with self._printer.output as output:
            self._printer.measure()
            self._close_run(run_id)
        self._after_writing(output)

    @property
    def unread(self) -> bool:
        """Whether nothing is printed any more, because nobody reads the output or it cannot be written."""
        return self._printer is not None and self._printer.output.dead

    @property
    def failure(self) -> OSError | None:
        """Why the output cannot be written, other than that nobody reads it."""
        return None if self._printer is None else self._printer.output.lost_to

    async def aclose(self) -> None:
        """Print what was gathered and leave the output, with nothing of the status left on it."""
        self._detach()
        self._cancel_timer()

    # -- the output ------------------------------------------------------------------------------------------------

    @property
    def _out(self) -> Printer:
        """The printer, where there is an output."""
        assert self._printer is not None
        return self._printer

    def _attach(self) -> SharedOutput | None:
        """The output, joined; None where nobody reads, or where there is none (as under pythonw)."""
        stream = self._file if self._file is not None else sys.stdout
        if stream is not self._stream:
            self._detach()
            self._stream = stream
            if stream is not None:
                self._join(stream)
        if self._printer is None or self._printer.output.dead:
            return None
        return self._printer.output

    def _join(self, stream: TextIO) -> None:
        self._printer = printer = Printer(
            stream,
            color=self._color,
            width=self._width,
            timestamps=self._show_timestamps,
            limits=self._limits,
        )
        self.status_wanted = self._status is not False and printer.capable
        with printer.output as output:
            output.members.append(self)
            if self.status_wanted and output.status is None:
                output.status = StatusArea(output.members, printer)
            self._recount()

    def _detach(self) -> None:
        self._stream = None
        if self._printer is None:
            return
        with self._printer.output as output:
            self._printer.measure()
            for run_id in list(self.runs):
                self._close_run(run_id)
            output.end_line()
            output.members.remove(self)
            if isinstance(output.status, StatusArea):  # a status of the program's own stays
                heirs = [member for member in output.members if member.status_wanted]
                output.status = StatusArea(output.members, heirs[0]._out) if heirs else None  # noqa: SLF001
            self._recount()
        self._printer = None
        self._waiting.clear()

    def _recount(self) -> None:
        """Which chains are visible has changed."""
        output = self._out.output
        output.alone = not self._out.piped and is_alone(output.members)
        output.several_runs = several_runs(output.members)
        if isinstance(output.status, StatusArea):
            output.status.recount()
        output.redraw()

    # -- time ------------------------------------------------------------------------------------------------------

    def _after_writing(self, output: SharedOutput) -> None:
        if output.failure is not None:
            failure, output.failure = output.failure, None
            self.report(failure)
        if output.dead:
            self._waiting.clear()
            self._cancel_timer()
            return
        if not self._waiting and not (self.status_wanted and self.runs):
            self._cancel_timer()
            return
        loop = asyncio.get_running_loop()
        delay = _TICK_S
        if self._waiting:
            delay = max(next(iter(self._waiting)).due - self._clock(), 0.0)
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
        if self._printer is None:
            return
        with self._printer.output as output:
            self._printer.measure()
            self._print_waiting(everything=False)
        self._after_writing(output)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer_loop is not None and not self._timer_loop.is_closed():
            self._timer.cancel()
        self._timer = self._timer_loop = None

    def _print_waiting(self, *, everything: bool) -> None:
        """Print what has waited long enough."""
        now = self._clock()
        for chain in list(self._waiting):
            if not everything and chain.due > now:
                return
            del self._waiting[chain]
            for call_id in list(chain.held):
                self._print_result(chain, call_id, None)
            if everything or not self._prints_whole_lines():
                self._print_due(chain, everything=everything)
            if chain.pending and not self._prints_whole_lines():
                self._wait(chain)

    def _prints_whole_lines(self) -> bool:
        """Whether a growing line is not printed before it ends: it is seen in the status, or goes where `grep` may read."""
        if self._out.output.alone:
            return False
        return (self.status_wanted and self._out.live) or (self._gather_s is None and not self._out.terminal)

    def _print_due(self, chain: VisibleChain, *, everything: bool) -> None:
        """Print the pending text up to its last word, which may wait as long again for its end."""
        text = "".join(chain.pending)
        whole, _, word = text.rpartition(" ")
        if everything or self._out.output.alone or (chain.word_waited and not whole.strip()):
            chain.word_waited = False
            self._print_pending(chain, all_of_it=True)
            return
        chain.word_waited = bool(word)
        if whole.strip():
            chain.pending = [whole]
            self._print_pending(chain, all_of_it=True)
            chain.pending.append(word)
            chain.size += len(word)

    def _wait(self, chain: VisibleChain) -> None:
        if chain not in self._waiting:
            chain.due = self._clock() + (_GATHER_S if self._gather_s is None else self._gather_s)
            self._waiting[chain] = None

    # -- events ----------------------------------------------------------------------------------------------------

    def _take(self, event: StreamEvent) -> None:
        """Print or gather one event, whatever it holds."""
        if not event.chain_id:
            self._run_event(event)
            return
        chain = self._chain(event.run_id, event.chain_id)
        if chain.unsure:
            chain.unsure = chain.done = False
            self._recount()
        handler = self._handlers.get(event.event_type)
        try:
            if handler is not None:
                handler(event, chain)
            else:
                self._print_event(event, chain)
        except (TypeError, ValueError, KeyError, AttributeError):
            # A payload of another shape, user-made or of a later version: shown raw.
            self._out.print_rows(self._out.rows.raw(event), chain, event.timestamp)

    def _run_event(self, event: StreamEvent) -> None:
        rows = self._out.rows.of(event)
        if event.event_type == T.RUN_START:
            run = self._run(event.run_id)
            chains = event.data.get("chains")
            if isinstance(chains, int) and run.expected == 0:
                run.expected = chains
                self._out.widen_labels(f"chain_{max(chains - 1, 0)}")
            self._recount()
            self._out.print_rule(rows[0], event.run_id)
        elif event.event_type == T.RUN_END:
            self._print_all_of_run(event.run_id)
            self._out.print_rule(rows[0], event.run_id)
            self._close_run(event.run_id)
        else:
            if event.event_type == T.GAP:
                self._lose_sight(event.run_id)
            self._out.print_rows(rows, None, event.timestamp)

    def _lose_sight(self, run_id: str) -> None:
        """Events of the run are missing: a chain counts as done unless it is heard of again."""
        run = self.runs.get(run_id)
        for chain in run.chains.values() if run is not None else ():
            self._print_all_of(chain)
            if not chain.done:
                chain.calls.clear()
                chain.done = chain.unsure = True
        self._recount()

    def _print_event(self, event: StreamEvent, chain: VisibleChain) -> None:
        self._end_text(chain)
        self._out.print_rows(self._out.rows.of(event), chain, event.timestamp)

    def _chunk(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        content = _text(data, "content")
        offset = data.get("offset", chain.offset)
        if not isinstance(offset, int):
            raise TypeError("an offset is a number of characters")
        if offset != chain.offset:
            self._jump(chain, offset, event.timestamp)
        chain.offset += len(content)
        tokens = len(
            data.get("token_ids") or content[:1]
        )  # without ids a chunk with text counts as one token
        chain.tokens += tokens
        chain.generation_tokens += tokens
        if content:
            self._gather(chain, content, event.timestamp)

    def _gather(self, chain: VisibleChain, content: str, stamp: float) -> None:
        if not self._prints_whole_lines():
            self._wait(chain)
        chain.stamp = stamp
        chain.pending.append(content)
        chain.size += len(content)
        output = self._out.output
        if output.alone:
            self._print_pending(chain, all_of_it=True)
        elif "\n" in content or chain.size > self._out.room:
            self._print_pending(chain, all_of_it=False)

    def _jump(self, chain: VisibleChain, offset: int, stamp: float) -> None:
        """The text goes on elsewhere: chunks in between were left out, or another generation began."""
        if offset > chain.offset:
            missing = offset - chain.offset
            self._end_text(chain)
            note = f"{self._out.glyphs.more} {missing:,} characters not shown"
            self._out.print_rows([[(note, "gap")]], chain, stamp)
        chain.offset = offset

    def _generation_start(self, event: StreamEvent, chain: VisibleChain) -> None:
        del event  # its figures are in the log; on the console they would be noise
        self._end_text(chain)
        chain.offset = chain.generation_tokens = 0
        chain.tag = None

    def _generation_end(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        rest = _text(data, "content")[chain.offset :]
        if rest:  # the backend does not stream, or the chunks were left out
            self._gather(chain, rest, event.timestamp)
        self._end_text(chain)
        chain.tokens += max(int(data.get("completion_tokens", 0)) - chain.generation_tokens, 0)
        chain.offset = chain.generation_tokens = 0
        chain.tag = None
        why = {
            "length": f"cut off after {data.get('completion_tokens')} tokens",
            "cancelled": "cancelled",
            "error": "broken off by an error",
        }.get(str(data.get("finish_reason")))
        if why:
            self._out.print_rows([[(f"{self._out.glyphs.more} {why}", "gap")]], chain, event.timestamp)

    def _tool_call_start(self, event: StreamEvent, chain: VisibleChain) -> None:
        call_id, name = _text(event.data, "call_id"), _text(event.data, "tool_name")
        self._print_event(event, chain)
        chain.calls[call_id] = (name, False)

    def _tool_observation(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        call_id, name, text = _text(data, "call_id"), _text(data, "tool_name"), _text(data, "observation")
        status = _text(data, "status") if "status" in data else "success"
        self._end_text(chain)
        if data.get("partial"):
            self._out.print_rows(self._out.rows.partial(text), chain, event.timestamp)
            return
        chain.calls.setdefault(call_id, (name, False))
        chain.held[call_id] = (text, status, event.timestamp)
        self._wait(chain)

    def _tool_call_end(self, event: StreamEvent, chain: VisibleChain) -> None:
        data = event.data
        call_id, name, status = _text(data, "call_id"), _text(data, "tool_name"), _text(data, "status")
        _, printed = chain.calls.setdefault(call_id, (name, False))
        if not printed:
            # Without an observation (filtered out) the end speaks for itself.
            chain.held.setdefault(call_id, ("done", status, event.timestamp))
            self._print_result(chain, call_id, data.get("duration_s"))
        chain.calls.pop(call_id, None)
        if not chain.held and not chain.pending:
            self._waiting.pop(chain, None)

    def _print_result(self, chain: VisibleChain, call_id: str, duration_s: Any) -> None:
        text, status, stamp = chain.held.pop(call_id)
        name, _ = chain.calls[call_id]
        rows = self._out.rows.tool_result(name, text, status, duration_s, named=len(chain.calls) > 1)
        chain.calls[call_id] = (name, True)
        self._end_text(chain)
        self._out.print_rows(rows, chain, stamp)

    def _chain_end(self, event: StreamEvent, chain: VisibleChain) -> None:
        self._print_all_of(chain)
        chain.calls.clear()
        chain.done = True
        chain.failed = event.data.get("finish_reason") == "error"
        self._print_event(event, chain)

    def _snapshot(self, event: StreamEvent, chain: VisibleChain) -> None:
        calls = {_text(call, "call_id"): _text(call, "tool_name") for call in event.data["tool_calls"]}
        content = "" if event.data["content"] is None else _text(event.data, "content")
        self._print_all_of(chain)
        self._print_event(event, chain)
        chain.calls = {call_id: (name, False) for call_id, name in calls.items()}
        chain.offset, chain.tag = len(content), None
        if content:
            chain.partial_line = True
            self._gather(chain, content, event.timestamp)

    # -- runs and chains -------------------------------------------------------------------------------------------

    def _run(self, run_id: str) -> VisibleRun:
        run = self.runs.get(run_id)
        if run is None:
            names: set[str] = set()
            for part in self.filter.alternatives:
                names |= part.chains or set()
            named = all(part.chains is not None for part in self.filter.alternatives)
            run = self.runs[run_id] = VisibleRun(self._clock(), len(names) if named else 0)
            self._recount()
        return run

    def _chain(self, run_id: str, chain_id: str) -> VisibleChain:
        run = self.runs.get(run_id) or self._run(run_id)
        chain = run.chains.get(chain_id)
        if chain is None:
            style = self._out.painter.chain_style(chain_id)
            chain = run.chains[chain_id] = VisibleChain(run_id, chain_id, style)
            self._out.widen_labels(chain_id)
            self._recount()
        return chain

    def _print_all_of_run(self, run_id: str) -> None:
        run = self.runs.get(run_id)
        for chain in run.chains.values() if run is not None else ():
            self._print_all_of(chain)

    def _print_all_of(self, chain: VisibleChain) -> None:
        self._end_text(chain)
        for call_id in list(chain.held):
            self._print_result(chain, call_id, None)
        self._waiting.pop(chain, None)

    def _close_run(self, run_id: str) -> None:
        self._print_all_of_run(run_id)
        if self.runs.pop(run_id, None) is not None:
            self._recount()

    # -- printing --------------------------------------------------------------------------------------------------

    def _end_text(self, chain: VisibleChain) -> None:
        """Print the chain's text, be its line ended or not; what comes next begins a line."""
        output = self._out.output
        if chain.pending:
            self._print_pending(chain, all_of_it=True, ends=True)
        chain.partial_line = False
        if output.line_owner is chain:
            output.end_line()
        if not chain.held:
            self._waiting.pop(chain, None)

    def _print_pending(self, chain: VisibleChain, *, all_of_it: bool, ends: bool = False) -> None:
        """Print the whole lines of the pending text; with `all_of_it` the rest too, with `ends` as a whole line."""
        text = "".join(chain.pending)
        stamp = chain.stamp
        chain.pending.clear()
        chain.size = 0
        if not text:
            return
        *lines, rest = text.split("\n")
        for line in lines[:_LINES_AT_ONCE]:
            self._print_line(chain, line, stamp, ends=True)
        if len(lines) > _LINES_AT_ONCE:
            note = f"{self._out.glyphs.more} {len(lines) - _LINES_AT_ONCE:,} lines not shown"
            self._out.print_rows([[(note, "gap")]], chain, stamp)
        if ends or all_of_it:
            self._print_line(chain, rest, stamp, ends=ends)
        elif len(rest) > self._out.room:
            fitting, kept = _break(rest, self._out.room - 2)
            self._print_line(chain, fitting, stamp, ends=False)
            chain.pending.append(kept)
            chain.size += len(kept)
        elif rest:
            chain.pending.append(rest)
            chain.size = len(rest)
        if not chain.pending and not chain.held:
            self._waiting.pop(chain, None)

    def _print_line(self, chain: VisibleChain, text: str, stamp: float, *, ends: bool) -> None:
        """Print a piece of a line, or with `ends` the last of it. Empty lines are left out."""
        output = self._out.output
        if ends:
            text = text.removesuffix("\r")
        pieces, chain.tag, held_back = style_tags(text, chain.tag, final=ends)
        if held_back:
            chain.pending.append(held_back)
            chain.size += len(held_back)
        row = self._out.safe(pieces)
        blank = not any(t.strip() for t, _ in row)
        if output.alone:
            if row and not (blank and output.line_owner is not chain):
                self._out.print_inline(chain, row, stamp)
            if ends and output.line_owner is chain:
                output.end_line()
        elif blank and not ends:
            chain.pending.insert(0, text.removesuffix(held_back))
            chain.size += len(text) - len(held_back)
            return
        elif not blank:
            self._out.print_rows([row], chain, stamp, goes_on=chain.partial_line)
        chain.partial_line = not ends and (chain.partial_line or not blank)


def _text(data: dict[str, Any], field: str) -> str:
    """A field that must be text: payloads may come from anywhere."""
    value = data[field]
    if not isinstance(value, str):
        raise TypeError(f"{field} must be text, found {type(value).__name__}")
    return value


def _break(text: str, cells: int) -> tuple[str, str]:
    """The text up to the last row of `cells`, and that row, which may still grow."""
    rows = wrap([(text, "")], cells, cells)
    if len(rows) == 1:
        return "", text
    kept = "".join(t for t, _ in rows[-1])
    return text[: len(text) - len(kept)].rstrip(" "), kept
