"""The output of a turn while it is read: its text up to a stop string, and the parser that finds the calls in it."""

from __future__ import annotations

import re

from rollcast.models.parse.base import IncrementalParser
from rollcast.models.text import StopStrings
from rollcast.records.message import ToolCall

__all__ = ["Lines", "Output", "is_fenced"]

_LABEL = 32  # the most characters in a label that ends a turn
_FENCE = re.compile(r" {0,3}```")


class Output:
    """What a turn says besides its reasoning.

    Args:
        turn: finds the calls; None: nothing is parsed.
        stops: strings after which the output is over, if the backend was not given them.

    Attributes:
        pieces: the text, up to a stop string.
        behind_stop: the text after it.
        is_cut: whether a stop string was found.
    """

    def __init__(self, turn: IncrementalParser | None, stops: tuple[str, ...]) -> None:
        self.turn = turn
        self.pieces: list[str] = []
        self.behind_stop: list[str] = []
        self.is_cut = False
        self._stop = StopStrings(stops) if stops else None
        self._lines, self._lines_taken = Lines(), 0

    def add(self, text: str) -> list[ToolCall]:
        """Add text; return the calls that it finished."""
        if self.is_cut:
            self.behind_stop.append(text)
            return []
        if self._stop is not None:
            cut = self._stop.cut(text)
            if cut is not None:
                self.is_cut = True
                self.behind_stop.append(text[len(cut) :])
                text = cut
        self.pieces.append(text)
        return [] if self.turn is None else self.turn.feed(text)

    def lines(self) -> Lines:
        """The lines of the text so far."""
        self._lines.take("".join(self.pieces[self._lines_taken :]))
        self._lines_taken = len(self.pieces)
        return self._lines

    @property
    def looks_for_stops(self) -> bool:
        """Whether each text must be searched for stop strings."""
        return self._stop is not None

    @property
    def is_over(self) -> bool:
        """Whether a stop string was found, or the format says so."""
        return self.is_cut or (self.turn is not None and self.turn.finished)

    # -- what the parser tells, if it does ------------------------------------------------------------------------------

    @property
    def in_call(self) -> bool:
        """Whether the text ends inside a call."""
        return bool(getattr(self.turn, "in_call", False))

    @property
    def held(self) -> str:
        """The end of the text that may be the beginning of something."""
        return str(getattr(self.turn, "held", ""))

    @property
    def ended_calls(self) -> int:
        """How many calls have ended."""
        return int(getattr(self.turn, "ended_calls", 0))

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far."""
        return list(getattr(self.turn, "calls", ()))

    @property
    def ended_at(self) -> int | None:
        """The place in the text at which the format ends the turn; None if it does not."""
        place: int | None = getattr(self.turn, "ended_at", None)
        return place

    def content(self, pending: str) -> str:
        """The text without the calls; `pending` follows it if the text ends here."""
        if self.turn is None:
            return "".join(self.pieces) + pending
        return self.turn.content + ("" if self.in_call else pending)

    def overran(self, pending: str) -> bool:
        """Whether more than a label follows the end of the turn, or anything a stop string."""
        place = self.ended_at
        made_up = "" if place is None else ("".join(self.pieces) + pending)[place:].strip()
        return len(made_up) > _LABEL or bool("".join(self.behind_stop).strip())


class Lines:
    """Tracks the current line of an output, and whether it is in a fenced block; it looks at each character once."""

    def __init__(self) -> None:
        self.fenced = False
        self.blank = True  # there is only whitespace on this line
        self._head = ""  # its first characters

    def take(self, text: str) -> None:
        """Go on with this text."""
        first, *others = text.split("\n")
        self._go_on(first)
        for line in others:
            self.fenced ^= _FENCE.match(self._head) is not None
            self._head, self.blank = "", True
            self._go_on(line)

    def _go_on(self, text: str) -> None:
        self._head = (self._head + text[:8])[:8]
        self.blank = self.blank and not text.strip()


def is_fenced(text: str) -> bool:
    """Whether a text ends inside a fenced block."""
    lines = Lines()
    lines.take(text)
    return lines.fenced
