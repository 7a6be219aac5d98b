"""Which chains are visible on an output, counted over all consoles that print there; and the status made of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from rollcast.terminal.layout import Glyphs, Painter, Row, chain_number, wrap

__all__ = ["Member", "StatusArea", "StatusLook", "VisibleChain", "VisibleRun", "is_alone", "several_runs"]

_RATE_OVER_S = 2.0
_COUNT_EVERY_S = 0.1


@dataclass(slots=True, eq=False)
class VisibleChain:
    """A chain as one console shows it.

    Attributes:
        run_id: of its run.
        chain_id: its id.
        style: its colour.
        pending: text that was not printed yet, and its length in `size`.
        stamp: the timestamp of the last pending text.
        due: when the pending text is printed at the latest, on the console's clock.
        word_waited: the last word of the pending text has waited once for its end.
        partial_line: what was printed last was not a whole line.
        tag: the tag that is open in its text.
        offset: characters of the open generation that were taken.
        tokens: of all generations; `generation_tokens`: of the open one.
        calls: open tool calls by id: their name, and whether their result was printed.
        held: results that wait for the end of their call, by id: text, status, timestamp.
        done: it has ended, as far as is known.
        unsure: that is only supposed, since events of its run are missing.
    """

    run_id: str
    chain_id: str
    style: str
    pending: list[str] = field(default_factory=list)
    size: int = 0
    stamp: float = 0.0
    due: float = 0.0
    word_waited: bool = False
    partial_line: bool = False
    tag: str | None = None
    offset: int = 0
    tokens: int = 0
    generation_tokens: int = 0
    calls: dict[str, tuple[str, bool]] = field(default_factory=dict)
    held: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    done: bool = False
    unsure: bool = False
    failed: bool = False


@dataclass(slots=True, eq=False)
class VisibleRun:
    """A run as one console shows it. `expected`: chains that it will show, 0 where that is not known."""

    opened_at: float
    expected: int = 0
    chains: dict[str, VisibleChain] = field(default_factory=dict)


class Member(Protocol):
    """A console, as the others on its output see it."""

    runs: dict[str, VisibleRun]
    status_wanted: bool


class StatusLook(Protocol):
    """How a console's status looks."""

    painter: Painter
    glyphs: Glyphs

    def status_size(self) -> tuple[int, int]:
        """Width of the terminal in cells, and how many chains may have a row."""
        ...

    def live_row(self, chain: VisibleChain) -> Row:
        """What the chain is doing."""
        ...


def is_alone(members: Iterable[Member]) -> bool:
    """Whether one chain alone is visible, as far as is known."""
    seen: tuple[str, str] | None = None
    for member in members:
        for run_id, run in member.runs.items():
            if run.expected > 1 or len(run.chains) > 1:
                return False
            for chain_id in run.chains:
                if seen not in (None, (run_id, chain_id)):
                    return False
                seen = (run_id, chain_id)
    return True


def several_runs(members: Iterable[Member]) -> bool:
    """Whether chains of two runs or more are visible."""
    return len({run_id for m in members for run_id, run in m.runs.items() if run.chains or run.expected}) > 1


class StatusArea:
    """Called for the rows at the bottom of an output: the chains that run, as they write, and a line that counts.

    Args:
        members: the consoles of the output, as they are at each call.
        look: of the console that paints it.
        clock: in seconds, monotonic.
    """

    def __init__(
        self, members: list[Member], look: StatusLook, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._members = members
        self._look = look
        self._clock = clock
        self._totals: deque[tuple[float, int]] = deque()
        self._counted_at = float("-inf")
        self._line: str | None = None
        self._running: list[VisibleChain] = []

    def __call__(self) -> list[str]:
        """The rows, painted."""
        now = self._clock()
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._counted_at = now
            self._count(now)
        if self._line is None:
            return []
        width, most = self._look.status_size()
        rows = [self._look.live_row(chain) for chain in self._running[:most] if not chain.done]
        paint = self._look.painter.paint
        return [*[paint(wrap(row, width - 1, 2)[0]) for row in rows], self._line]

    def recount(self) -> None:
        """Count anew at the next call, however short ago that was done."""
        self._counted_at = float("-inf")

    def _count(self, now: float) -> None:
        runs = [(run_id, run) for m in self._members if m.status_wanted for run_id, run in m.runs.items()]
        runs = [(run_id, run) for run_id, run in runs if run.chains]
        self._line, self._running = None, []
        if not runs:
            self._totals.clear()
            return
        chains: dict[tuple[str, str], VisibleChain] = {}
        expected: dict[str, int] = {}
        for run_id, run in runs:
            expected[run_id] = max(expected.get(run_id, 0), run.expected, len(run.chains))
            for chain_id, chain in run.chains.items():
                known = chains.get((run_id, chain_id))
                # Two consoles may show one chain: the one that knows more of it counts.
                if known is None or (chain.done, chain.tokens) > (known.done, known.tokens):
                    chains[run_id, chain_id] = chain
        running = [chain for chain in chains.values() if not chain.done]
        failed = sum(chain.failed for chain in chains.values())
        rate = self._rate(now, sum(chain.tokens for chain in chains.values()))
        elapsed = int(now - min(run.opened_at for _, run in runs))
        g = self._look.glyphs
        dot = (f" {g.dot} ", "dim")
        row: Row = [
            (g.spinner[int(now * 8) % len(g.spinner)] + " ", "call"),
            (f"{len(running)} running", "bold"),
        ]
        row += [dot, (f"{len(chains) - len(running)}/{sum(expected.values())} done", "")]
        if failed:
            row += [dot, (f"{failed} failed", "fail")]
        row += [dot, (f"{rate:,.0f} tokens/s", ""), dot, (f"{elapsed // 60}:{elapsed % 60:02d}", "dim")]
        width, _ = self._look.status_size()
        self._line = self._look.painter.paint(wrap(row, width - 1, 2)[0])
        if len(chains) > 1:  # a chain that is alone writes on the open line
            self._running = sorted(running, key=lambda chain: chain_number(chain.chain_id))

    def _rate(self, now: float, total: int) -> float:
        """Tokens a second over the last two seconds or since the run opened."""
        totals = self._totals
        if totals and total < totals[-1][1]:
            totals.clear()  # a run was closed, its tokens are gone from the sum
        totals.append((now, total))
        while now - totals[0][0] > _RATE_OVER_S and len(totals) > 2:
            totals.popleft()
        then, before = totals[0]
        return (total - before) / (now - then) if now > then else 0.0
