"""Applies all rules to the chains of one run, and updates them chain by chain."""

from __future__ import annotations

from rollcast.records.hint import Hint
from rollcast.records.hint_facts import ChainFacts, facts_of
from rollcast.records.hint_quiet import Quiet
from rollcast.records.hint_rules import Groups, Rule, Tools, Truncated, Unreferenced
from rollcast.records.view import ChainView

__all__ = ["HintIndex"]


class HintIndex:
    """Finds hints in the chains of one run. A chain is identified by its number, which also gives the order."""

    def __init__(self) -> None:
        self._views: dict[int, ChainView] = {}
        self._facts: dict[int, ChainFacts] = {}
        self._quiet = Quiet(lambda number: self._views[number].last_event_at)
        self._tools = Tools()
        self._of_results: tuple[Rule, ...] = (Groups(), Unreferenced(), Truncated())

    def put(self, number: int, view: ChainView) -> None:
        """Add a chain, or update it to this view."""
        before = self._facts.get(number)
        self._views[number] = view
        self._facts[number] = now = facts_of(number, view, before)
        self._change(number, before, now)

    def drop(self, number: int) -> None:
        """Forget a chain."""
        before = self._facts.pop(number, None)
        self._views.pop(number, None)
        if before is not None:
            self._change(number, before, None)

    def _change(self, number: int, before: ChainFacts | None, now: ChainFacts | None) -> None:
        self._quiet.change(number, before, now)
        if before is None or now is None or before.tools != now.tools:
            self._tools.change(before, now)
        if before is None or now is None or before.result is not now.result:
            for rule in self._of_results:
                rule.change(before, now)

    def is_silent(self, number: int) -> bool:
        """Whether the next event of the chain needs a `put`, even if it shows only that the chain is alive."""
        return self._quiet.is_silent(number)

    def hints(self, now: float | None) -> list[Hint]:
        """The hints that are true now.

        Args:
            now: seconds since the epoch, on the clock of the events; without it there are no hints about quiet chains.
        """
        found = [] if now is None else self._quiet.hints(self._facts, now)
        found += self._tools.hints(self._facts)
        for rule in self._of_results:
            found += rule.hints(self._facts)
        return found
