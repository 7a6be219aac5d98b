"""The rule about chains that send nothing, which depends on the time.

A chain is in one place at a time: in a heap, by the time of its latest event, until ten seconds have passed; then among the silent
chains with the same state and tools. Later events do not move it in the heap: they are looked up when its turn comes.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from rollcast.records.hint import MAX_NAMED, MAX_SHOWN, Hint, seconds_text, shown_text
from rollcast.records.hint_facts import DOING, ChainFacts, Doing, Sorted
from rollcast.records.hint_rules import Facts
from rollcast.text import plain_line

__all__ = ["Quiet"]

Times = tuple[tuple[str, int, float, float], ...]
Calls = tuple[tuple[str, int, int, float], ...]

# A chain is quiet if nothing came from it for all of these: ten seconds (a pause that a reader of a terminal notices), eight times
# the median time that chains of the run spend in its state, and twice the longest time that any of them did, since some answers are
# long. If a chain is generating and none of its text was seen, its chunks may not be watched, and the longest generations end last:
# then there must be eight generations that ended for each quiet chain.
QUIET_S = 10.0
QUIET_MEDIANS = 8.0
QUIET_LONGEST = 2.0
MIN_STAYS = 8  # how many stays in a state must have ended before their median means anything


class _Usual(NamedTuple):
    """How long something usually lasts, in seconds.

    Attributes:
        median: the median over chains.
        stays: how many of them have ended.
        least: a silence is unusual if it is at least this long.
    """

    median: float = 0.0
    stays: int = 0
    least: float = math.inf


class _Durations:
    """How long a state, or the calls of a tool, lasted in the chains of a run."""

    def __init__(self) -> None:
        self.stays = 0
        self.means: Sorted[float] = Sorted()
        self.longest: Sorted[float] = Sorted()

    def add(self, stays: int, mean: float, longest: float) -> None:
        """Add the stays of a chain."""
        self.stays += stays
        self.means.add(mean)
        self.longest.add(longest)

    def remove(self, stays: int, mean: float, longest: float) -> None:
        """Remove the stays of a chain."""
        self.stays -= stays
        self.means.remove(mean)
        self.longest.remove(longest)

    def usual(self) -> _Usual:
        """What is usual; the default if too few stays have ended."""
        if self.stays < MIN_STAYS:
            return _Usual()
        middle = _middle(self.means.items)
        least = max(QUIET_S, QUIET_MEDIANS * middle, QUIET_LONGEST * self.longest.items[-1])
        return _Usual(middle, self.stays, least)


def _middle(ordered: list[float]) -> float:
    n = len(ordered)
    return median(ordered[(n - 1) // 2 : n // 2 + 1])  # of the one or two in the middle


class Quiet:
    """Open chains that have sent nothing for much longer than their state usually lasts in this run.

    Args:
        last_of: the timestamp of the latest event of a chain, by its number.
    """

    def __init__(self, last_of: Callable[[int], float | None]) -> None:
        self._last_of = last_of
        self._states: defaultdict[str, _Durations] = defaultdict(_Durations)
        self._tools: defaultdict[str, _Durations] = defaultdict(_Durations)
        self._heap: list[tuple[float, int]] = []
        self._in_heap: dict[int, float] = {}  # by number: its valid entry in the heap; others are outdated
        self._silent: dict[Doing, Sorted[tuple[float, int]]] = {}
        self._places: dict[
            int, tuple[Doing, float]
        ] = {}  # by number, of silent chains: their key and time in `_silent`

    def is_silent(self, number: int) -> bool:
        """Whether the chain had sent nothing for ten seconds at the latest look."""
        return number in self._places

    def change(self, number: int, old: ChainFacts | None, new: ChainFacts | None) -> None:
        """Update the facts of a chain from `old` to `new`; None: it did not exist before, or does not any more."""
        self._count(() if old is None else old.times, () if new is None else new.times)
        self._count_calls(() if old is None else old.tools, () if new is None else new.tools)
        self._take_out(number)
        if new is None or new.doing is None or new.last is None:
            self._in_heap.pop(number, None)
        elif number not in self._in_heap or new.last < self._in_heap[number]:
            self._put(new.last, number)

    def _count(self, old: Times, new: Times) -> None:
        if old == new:
            return
        for entry in old:
            state, stays, seconds, longest = entry
            if stays and entry not in new:
                self._states[state].remove(stays, seconds / stays, longest)
        for entry in new:
            state, stays, seconds, longest = entry
            if stays and entry not in old:
                self._states[state].add(stays, seconds / stays, longest)

    def _count_calls(self, old: Calls, new: Calls) -> None:
        if old == new:
            return
        for entry in old:
            name, calls, _, seconds = entry
            if calls and entry not in new:
                self._tools[name].remove(calls, seconds / calls, seconds / calls)
        for entry in new:
            name, calls, _, seconds = entry
            if calls and entry not in old:
                self._tools[name].add(calls, seconds / calls, seconds / calls)

    def _put(self, last: float, number: int) -> None:
        self._in_heap[number] = last
        heapq.heappush(self._heap, (last, number))

    def _take_out(self, number: int) -> None:
        place = self._places.pop(number, None)
        if place is not None:
            doing, last = place
            silent = self._silent[doing]
            silent.remove((last, number))
            if not silent.items:
                del self._silent[doing]

    def hints(self, facts: Facts, now: float) -> list[Hint]:
        """Hints about the chains that are quiet at this time, on the clock of the events."""
        self._move_the_silent(facts, now)
        found: list[tuple[int, Hint]] = []
        for doing, silent in self._silent.items():
            hint = self._hint(doing, silent.items, facts, now)
            if hint is not None:
                candidates = silent.items[: _silent_for(silent.items, QUIET_S, now)]
                found.append((min(number for _, number in candidates), hint))
        return [hint for _, hint in sorted(found, key=lambda each: each[0])]

    def _move_the_silent(self, facts: Facts, now: float) -> None:
        while self._heap and now - self._heap[0][0] >= QUIET_S:
            entry, number = heapq.heappop(self._heap)
            if self._in_heap.get(number) != entry:
                continue
            del self._in_heap[number]
            last, doing = self._last_of(number), facts[number].doing
            if last is None or doing is None:
                continue
            if now - last >= QUIET_S:
                self._places[number] = (doing, last)
                self._silent.setdefault(doing, Sorted()).add((last, number))
            else:
                self._put(last, number)

    def _hint(self, doing: Doing, silent: list[tuple[float, int]], facts: Facts, now: float) -> Hint | None:
        state, tools = doing
        usual = max((self._usual(state, tool) for tool in tools or ("",)), key=lambda each: each.least)
        quiet = silent[: _silent_for(silent, max(usual.least, QUIET_S), now)]
        if not quiet:
            return None
        unseen = state == "generating" and not any(facts[number].heard for _, number in quiet)
        if usual.stays < (MIN_STAYS * len(quiet) if unseen else 1):
            return None
        least = seconds_text(now - quiet[-1][0])
        one, several, usually = DOING[state]
        numbers = heapq.nsmallest(MAX_NAMED, (number for _, number in quiet))
        ids = [facts[number].chain_id for number in numbers]
        if len(quiet) == 1:
            who, what, nothing = plain_line(ids[0], MAX_SHOWN), one, f"has sent nothing for {least}"
        else:
            who, what, nothing = f"{len(quiet)} chains", several, f"have sent nothing for at least {least}"
        if state == "tool":
            what += f" the tool {' and '.join(map(shown_text, tools))}" if tools else " a tool"
        sentence = (
            f"{who} {what} and {nothing}; the median {usually} of this run took {seconds_text(usual.median)}"
        )
        subject = " and ".join(tools) or state
        return Hint("quiet", sentence, facts[numbers[0]].run_id, ids, len(quiet), None, subject)

    def _usual(self, state: str, tool: str) -> _Usual:
        """How long a call of the tool usually lasts; if there is no tool, or fewer than eight of its calls ended, how long the state does."""
        calls = self._tools.get(tool) if tool else None
        if calls is not None and calls.stays >= MIN_STAYS:
            return calls.usual()
        return self._states[state].usual() if state in self._states else _Usual()


def _silent_for(silent: list[tuple[float, int]], least: float, now: float) -> int:
    """How many chains at the beginning of the list have sent nothing for so many seconds."""
    return bisect_right(silent, -least, key=lambda each: each[0] - now)
