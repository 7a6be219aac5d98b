"""The chains and runs that are shown on an output, counted over all consoles that print there.

Every count is updated with each change, so a change costs the same however many chains and runs are open.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

from rollcast.records.lanes import RunSources
from rollcast.records.view import ChainView

__all__ = ["Board", "VisibleChain", "VisibleRun", "chain_number"]


def chain_number(chain_id: str) -> int:
    """The number at the end of a chain's id; for an id without one, a hash of the id."""
    found = re.search(r"[0-9]{1,9}$", chain_id)
    return int(found.group()) if found else zlib.crc32(chain_id.encode("utf-8", "surrogatepass"))


@dataclass(slots=True, eq=False)
class VisibleChain:
    """A chain as one console shows it: what is known about it, and what was printed.

    Attributes:
        run_id: its run's id.
        chain_id: its id.
        style: its colour.
        source: the process that emits it.
        view: what is known about the chain, without its text.
        pending: text that was not printed yet; `size` has its length.
        line_chars: how many characters the line of the pending text has, printed or not.
        stamp: the timestamp of the last pending text.
        due: the latest time at which the pending text is printed, on the console's clock.
        word_waited: whether the last word of the pending text has waited once to be completed.
        partial_line: whether the last thing printed was not a whole line.
        tag: the tag that is open in its text.
        reasoning: whether reasoning of the open generation was printed that came apart from its text.
        offset: how many characters of the open generation were taken.
        without_ids: how many chunks of the open generation have no ids; each counts as a token.
        printed: the ids of open tool calls whose result was printed.
        held: results that wait for the end of their call, by id: the tool, text, status, timestamp.
    """

    run_id: str
    chain_id: str
    style: str
    source: str = ""
    view: ChainView = field(default_factory=ChainView.without_conversation)
    pending: list[str] = field(default_factory=list)
    size: int = 0
    line_chars: int = 0
    stamp: float = 0.0
    due: float = 0.0
    word_waited: bool = False
    partial_line: bool = False
    tag: str | None = None
    reasoning: bool = False
    offset: int = 0
    without_ids: int = 0
    printed: set[str] = field(default_factory=set)
    held: dict[str, tuple[str, str, str, float]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.view.state == "ended"

    @property
    def failed(self) -> bool:
        return self.view.finish_reason == "error"

    @property
    def tokens(self) -> int:
        """How many tokens were sampled, as far as is known."""
        return self.view.tokens + self.without_ids

    @property
    def awaited_tools(self) -> list[str]:
        """The tools whose results have not come yet."""
        return [
            call.tool_name for call_id, call in self.view.tool_calls.items() if call_id not in self.printed
        ]


@dataclass(slots=True, eq=False)
class VisibleRun:
    """A run as one console shows it: its open chains, and the ids of the ended ones."""

    expected: int = 0  # how many chains it will show, 0 if unknown
    named: bool = False  # whether the filter says how many
    sources: RunSources = field(default_factory=RunSources)
    ends: list[dict[str, Any]] = field(default_factory=list)  # what the `run_end`s of its sources tell
    chains: dict[str, VisibleChain] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    unsure: set[str] = field(
        default_factory=set
    )  # those of the ended chains that are only assumed to have ended, since events are missing


@dataclass(slots=True, eq=False)
class _Chain:
    """An open chain, for all consoles that show it. If two know different parts, the one that knows more counts."""

    place: tuple[int, int, int]  # the sort key of rows in the status
    shown: list[VisibleChain] = field(default_factory=list)
    tokens: int = 0

    @property
    def best(self) -> VisibleChain:
        return max(self.shown, key=lambda chain: (chain.done, chain.tokens))


@dataclass(slots=True, eq=False)
class _Run:
    order: int
    opened_at: float
    consoles: int = 0
    expected: int = 0
    open: dict[str, _Chain] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # with the tokens that were counted
    failed: int = 0
    tokens: int = 0

    @property
    def chains(self) -> int:
        return len(self.open) + len(self.ended)


class Board:
    """Counts of what some consoles show together. The caller holds the output's lock.

    Attributes:
        chains, ended, failed, tokens: totals of the open runs.
        expected: how many chains these runs will have, as far as is known; runs that have shown none yet do not count.
        changed: chains that may have more tokens since they were counted. A console adds a chain, and removes it at its end.
    """

    def __init__(self) -> None:
        self.chains = self.ended = self.failed = self.tokens = self.expected = 0
        self.changed: dict[VisibleChain, None] = {}
        self._runs: dict[str, _Run] = {}
        self._active = 0  # how many runs have or expect chains
        self._larger = 0  # how many runs expect more than one chain
        self._running: list[tuple[tuple[int, int, int], _Chain]] = []  # sorted
        # A heap of the runs that have chains; some of them have closed.
        self._openings: list[tuple[float, int, str]] = []
        self._order = itertools.count()

    @property
    def alone(self) -> bool:
        """Whether at most one chain is visible, as far as is known."""
        return self.chains <= 1 and not self._larger

    @property
    def several_runs(self) -> bool:
        """Whether chains of two runs or more are visible."""
        return self._active > 1

    @property
    def opened_at(self) -> float | None:
        """When the earliest open run with chains was opened."""
        while self._openings and not self._is_open(self._openings[0]):
            heapq.heappop(self._openings)
        return self._openings[0][0] if self._openings else None

    def _is_open(self, opening: tuple[float, int, str]) -> bool:
        _, order, run_id = opening
        run = self._runs.get(run_id)
        return run is not None and run.order == order

    def running(self, most: int) -> list[VisibleChain]:
        """The first running chains, by number."""
        return [entry.best for _, entry in self._running[:most]]

    def running_count(self) -> int:
        """How many chains are running."""
        return len(self._running)

    def open_chain(self, chain_id: str) -> VisibleChain | None:
        """The running chain with this id, in the latest run that has one."""
        for run in reversed(self._runs.values()):
            entry = run.open.get(chain_id)
            if entry is not None:
                return entry.best
        return None

    # -- what changes ------------------------------------------------------------------------------------------------

    def run_opened(self, run_id: str, at: float, expected: int) -> None:
        """Note that a console shows the run."""
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = _Run(next(self._order), at)
        run.consoles += 1
        self.run_expects(run_id, expected)

    def run_expects(self, run_id: str, expected: int) -> None:
        """Note that the run will have at least this many chains."""
        run = self._runs[run_id]
        self._count(run, -1)
        run.expected = max(run.expected, expected)
        self._count(run, 1)

    def run_closed(self, run_id: str) -> None:
        """Note that a console no longer shows the run."""
        run = self._runs[run_id]
        run.consoles -= 1
        if run.consoles:
            return
        for entry in run.open.values():
            self._stop(entry)
        self._count(run, -1)
        del self._runs[run_id]
        if len(self._openings) > 2 * len(self._runs) + 16:  # many have closed behind one that stays open
            self._openings = [*filter(self._is_open, self._openings)]
            heapq.heapify(self._openings)

    def chain_opened(self, chain: VisibleChain, *, again: bool) -> None:
        """Note that a console shows the chain; `again`: this console has seen it end before."""
        run = self._runs[chain.run_id]
        entry = run.open.get(chain.chain_id)
        if entry is None and chain.chain_id in run.ended and not again:
            return  # this console is behind another one
        self._count(run, -1)
        if entry is None:
            entry = _Chain((chain_number(chain.chain_id), run.order, next(self._order)))
            entry.tokens = run.ended.pop(chain.chain_id, 0)
            if run.chains == 0:
                heapq.heappush(self._openings, (run.opened_at, run.order, chain.run_id))
            run.open[chain.chain_id] = entry
            bisect.insort(self._running, (entry.place, entry))
        entry.shown.append(chain)
        self._count(run, 1)

    def chain_ended(self, chain: VisibleChain) -> None:
        """Note that a console saw the chain end; one console is enough."""
        run = self._runs[chain.run_id]
        entry = run.open.get(chain.chain_id)
        if entry is None:
            return
        self._count(run, -1)
        self._count_tokens(entry, run)
        self._stop(entry)
        del run.open[chain.chain_id]
        run.ended[chain.chain_id] = entry.tokens
        run.failed += chain.failed
        self._count(run, 1)

    def count_tokens(self) -> int:
        """Bring the token counts up to date, and return the sum over all open runs."""
        for chain in self.changed:
            run = self._runs.get(chain.run_id)
            entry = None if run is None else run.open.get(chain.chain_id)
            if run is not None and entry is not None:
                before = run.tokens
                self._count_tokens(entry, run)
                self.tokens += run.tokens - before
        self.changed.clear()
        return self.tokens

    def _count_tokens(self, entry: _Chain, run: _Run) -> None:
        tokens = max(entry.tokens, entry.best.tokens)
        run.tokens += tokens - entry.tokens
        entry.tokens = tokens

    def _stop(self, entry: _Chain) -> None:
        i = bisect.bisect_left(self._running, entry.place, key=lambda found: found[0])
        del self._running[i]

    def _count(self, run: _Run, sign: int) -> None:
        """Add the run's numbers to the totals, or subtract them."""
        chains = run.chains
        self.chains += sign * chains
        self.ended += sign * len(run.ended)
        self.failed += sign * run.failed
        self.tokens += sign * run.tokens
        self.expected += sign * (max(run.expected, chains) if chains else 0)
        self._active += sign * bool(chains or run.expected)
        self._larger += sign * (run.expected > 1)
