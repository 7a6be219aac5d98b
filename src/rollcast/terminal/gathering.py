"""Gathers text until its line is whole, and results until their call ends, before they are printed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from rollcast.terminal.layout import wrap
from rollcast.terminal.printer import Printer
from rollcast.terminal.shown import VisibleChain
from rollcast.terminal.tags import style_tags
from rollcast.text import grown_line

__all__ = ["Gathering"]

_GATHER_S = 0.1  # how long text waits on a terminal, and a result waits for the end of its call
_LINES_AT_ONCE = 200
_MOST_PIECES = 8  # of a line that grew; one that came at once may have more


class Gathering:
    """The unprinted text and results of a console's chains. The caller holds the output's lock.

    Args:
        printer: prints them.
        gather_s: how long text waits for its line to end. None: 0.1 s on a terminal, for ever elsewhere.
        status_wanted: whether the console has a status, which shows a growing line.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self, printer: Printer, *, gather_s: float | None, status_wanted: bool, clock: Callable[[], float]
    ) -> None:
        self._out = printer
        self._gather_s = gather_s
        self._status_wanted = status_wanted
        self._clock = clock
        # An OrderedDict finds its first entry at once; a dict passes over removed entries each time.
        self._waiting: OrderedDict[VisibleChain, None] = OrderedDict()

    @property
    def next_due(self) -> float | None:
        """The latest time at which something must be printed; None if nothing waits."""
        return next(iter(self._waiting)).due if self._waiting else None

    @property
    def prints_whole_lines(self) -> bool:
        """Whether a line is printed only when it is whole, since the status shows it or a tool such as `grep` may read it."""
        if self._out.output.alone:
            return False
        return (self._status_wanted and self._out.live) or (self._gather_s is None and not self._out.terminal)

    def clear(self) -> None:
        self._waiting.clear()

    # -- text --------------------------------------------------------------------------------------------------------

    def add_text(self, chain: VisibleChain, content: str, stamp: float) -> None:
        """Print whole lines, and gather the rest."""
        if not self.prints_whole_lines:
            self._wait(chain)
        chain.stamp = stamp
        chain.pending.append(content)
        chain.size += len(content)
        chain.line_chars, full = grown_line(chain.line_chars, content)
        if self._out.width is not None:
            full = chain.size > self._out.room
        if self._out.output.alone:
            self._print_pending(chain, all_of_it=True)
        elif "\n" in content or full:
            self._print_pending(chain, all_of_it=False, full=full)

    def end_text(self, chain: VisibleChain) -> None:
        """Print the chain's text, even if its line has not ended; what comes next begins a new line."""
        output = self._out.output
        if chain.pending:
            self._print_pending(chain, all_of_it=True, ends=True)
        chain.partial_line = False
        chain.line_chars = 0
        if output.line_owner is chain:
            output.end_line()
        if not chain.held:
            self._waiting.pop(chain, None)

    # -- results -----------------------------------------------------------------------------------------------------

    def hold_result(
        self, chain: VisibleChain, call_id: str, name: str, text: str, status: str, stamp: float
    ) -> None:
        """Keep a tool's result until its call ends."""
        chain.held[call_id] = (name, text, status, stamp)
        self._wait(chain)

    def print_result(self, chain: VisibleChain, call_id: str, duration_s: Any) -> None:
        """Print a call's result."""
        name, text, status, stamp = chain.held.pop(call_id)
        named = len(chain.view.tool_calls.keys() | {call_id}) > 1
        rows = self._out.rows.tool_result(name, text, status, duration_s, named=named)
        chain.printed.add(call_id)
        self.end_text(chain)
        self._out.print_rows(rows, chain, stamp)

    def settle(self, chain: VisibleChain) -> None:
        """Stop waiting for a chain that has nothing left to print."""
        if not chain.held and not chain.pending:
            self._waiting.pop(chain, None)

    # -- what has waited ---------------------------------------------------------------------------------------------

    def print_all_of(self, chain: VisibleChain) -> None:
        """Print everything of a chain."""
        self.end_text(chain)
        for call_id in list(chain.held):
            self.print_result(chain, call_id, None)
        self._waiting.pop(chain, None)

    def print_due(self) -> None:
        """Print what has waited long enough."""
        now = self._clock()
        for _ in range(len(self._waiting)):  # a chain that waits again comes last
            chain = next(iter(self._waiting), None)
            if chain is None or chain.due > now:
                return
            self._print_waiting(chain, everything=False)

    def print_everything(self) -> None:
        """Print all that waits."""
        for chain in list(self._waiting):
            if chain in self._waiting:
                self._print_waiting(chain, everything=True)

    def _print_waiting(self, chain: VisibleChain, *, everything: bool) -> None:
        del self._waiting[chain]
        for call_id in list(chain.held):
            self.print_result(chain, call_id, None)
        if everything or not self.prints_whole_lines:
            self._print_growing(chain, everything=everything)
        if chain.pending and not self.prints_whole_lines:
            self._wait(chain)

    def _print_growing(self, chain: VisibleChain, *, everything: bool) -> None:
        """Print the pending text up to its last word, which may wait as long again to be completed."""
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

    # -- lines -------------------------------------------------------------------------------------------------------

    def _print_pending(
        self, chain: VisibleChain, *, all_of_it: bool, ends: bool = False, full: bool = False
    ) -> None:
        """Print the whole lines of the pending text; with `all_of_it` the rest too, with `ends` as a whole line, with `full` what
        fits of it.
        """
        text = "".join(chain.pending)
        stamp = chain.stamp
        chain.pending.clear()
        chain.size = 0
        if not text:
            return
        *lines, rest = text.split("\n")
        for line in lines[:_LINES_AT_ONCE]:
            self._print_whole(chain, line, stamp)
        if len(lines) > _LINES_AT_ONCE:
            note = f"{self._out.glyphs.more} {len(lines) - _LINES_AT_ONCE:,} lines not shown"
            self._out.print_rows([[(note, "gap")]], chain, stamp)
        if ends:
            self._print_whole(chain, rest, stamp)
        elif all_of_it:
            self._print_line(chain, rest, stamp, ends=False)
        elif full and len(rest) > self._out.room - 2:
            kept = self._print_but_last(chain, self._pieces(rest), stamp)
            chain.pending.append(kept)
            chain.size = len(kept)
        elif rest:
            chain.pending.append(rest)
            chain.size = len(rest)
        self.settle(chain)

    def _print_whole(self, chain: VisibleChain, line: str, stamp: float) -> None:
        """Print the last of a line, in pieces if no row holds it."""
        fits = (
            self._out.width is not None or len(line) <= self._out.room
        )  # a terminal's lines are wrapped later
        pieces = [line] if fits else self._pieces(line)
        rest = self._print_but_last(chain, pieces, stamp)
        self._print_line(chain, rest, stamp, ends=True)

    def _pieces(self, text: str) -> list[str]:
        """The text in pieces that end between words and fit in one row; of one that came all at once and is very long, which is
        shortened, and on a terminal: all but the last row, and that row, which may still grow.
        """
        most = self._out.room - 2
        if self._out.width is None:
            rows = _broken(text, most)
            if len(rows) <= _MOST_PIECES:
                return rows
        else:
            rows = ["".join(t for t, _ in row) for row in wrap([(text, "")], most, most)]
        return [text[: len(text) - len(rows[-1])].rstrip(" "), rows[-1]]

    def _print_but_last(self, chain: VisibleChain, pieces: list[str], stamp: float) -> str:
        """Print the pieces of a line but for the last one, and give that, after what could not be printed yet."""
        held_back = ""
        for piece in pieces[:-1]:
            self._print_line(chain, held_back + piece, stamp, ends=False)
            held_back = "".join(chain.pending)
            if not held_back.strip():
                held_back = ""  # a piece of blanks is left out, as an empty line is
            chain.pending.clear()
            chain.size = 0
        return held_back + pieces[-1]

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


def _broken(text: str, most: int) -> list[str]:
    """The text in pieces of at most so many characters, broken at the last space that is not far from a piece's end."""
    pieces = []
    while len(text) > most:
        cut = text.rfind(" ", most * 2 // 3, most + 1)
        pieces.append(text[: cut if cut > 0 else most])
        text = text[len(pieces[-1]) :].lstrip(" ")
    return [*pieces, text]
