"""The status at the bottom of a terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from rollcast.terminal.layout import Glyphs, Painter, Row, wrap
from rollcast.terminal.shown import Board, VisibleChain

__all__ = ["StatusArea", "StatusLook"]

_RATE_OVER_S = 2.0
_COUNT_EVERY_S = 0.1


class StatusLook(Protocol):
    """The look of a console's status."""

    painter: Painter
    glyphs: Glyphs

    def status_size(self) -> tuple[int, int]:
        """The width of the terminal in cells, and how many chains may have a row."""
        ...

    def live_row(self, chain: VisibleChain) -> Row:
        """A row that shows what the chain is doing."""
        ...


class StatusArea:
    """Makes the rows at the bottom of an output: a row for each running chain, and a line with counts.

    Args:
        board: the chains and runs of the consoles with a status.
        look: the look of the console that paints it.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, board: Board, look: StatusLook, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._look = look
        self._clock = clock
        self._totals: deque[tuple[float, int]] = deque()
        self._counted_at = float("-inf")
        self._line: str | None = None

    def __call__(self) -> list[str]:
        """The painted rows."""
        now = self._clock()
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._counted_at = now
            self._count(now)
        if self._line is None:
            return []
        width, most = self._look.status_size()
        # A single visible chain writes on the open line instead.
        running = self._board.running(most) if self._board.chains > 1 else []
        paint = self._look.painter.paint
        return [*[paint(wrap(self._look.live_row(chain), width - 1, 2)[0]) for chain in running], self._line]

    def recount(self) -> None:
        """Count anew at the next call, even if that was done a moment ago."""
        self._counted_at = float("-inf")

    def _count(self, now: float) -> None:
        board = self._board
        opened_at = board.opened_at
        if opened_at is None:
            self._line = None
            self._totals.clear()
            return
        rate = self._rate(now, board.count_tokens())
        elapsed = int(now - opened_at)
        g = self._look.glyphs
        dot = (f" {g.dot} ", "dim")
        row: Row = [
            (g.spinner[int(now * 8) % len(g.spinner)] + " ", "call"),
            (f"{board.running_count()} running", "bold"),
        ]
        row += [dot, (f"{board.ended}/{board.expected} done", "")]
        if board.failed:
            row += [dot, (f"{board.failed} failed", "fail")]
        row += [dot, (f"{rate:,.0f} tokens/s", ""), dot, (f"{elapsed // 60}:{elapsed % 60:02d}", "dim")]
        width, _ = self._look.status_size()
        self._line = self._look.painter.paint(wrap(row, width - 1, 2)[0])

    def _rate(self, now: float, total: int) -> float:
        """Tokens per second over the last two seconds or since the run opened."""
        totals = self._totals
        if totals and total < totals[-1][1]:
            totals.clear()  # a run was closed, so its tokens left the sum
        totals.append((now, total))
        while now - totals[0][0] > _RATE_OVER_S and len(totals) > 2:
            totals.popleft()
        then, before = totals[0]
        return (total - before) / (now - then) if now > then else 0.0
