"""All rules about the chains of one run, kept up to date chain by chain."""

from __future__ import annotations

from rollcast.records.hint import Hint
from rollcast.records.hint_facts import ChainFacts, facts_of
from rollcast.records.hint_quiet import Quiet
from rollcast.records.hint_rules import Groups, Rule, Tools, Truncated, Unreferenced
from rollcast.records.view import ChainView

__all__ = ["HintIndex"]


class HintIndex:
    """Finds what is worth a look in the chains of one run. Chains are told apart by numbers, which give their order."""

    def __init__(self) -> None:
        self._views: dict[int, ChainView] = {}
        self._facts: dict[int, ChainFacts] = {}
        self._quiet = Quiet(lambda number: self._views[number].last_event_at)
        self._tools = Tools()
        self._of_results: tuple[Rule, ...] = (Groups(), Unreferenced(), Truncated())

    def put(self, number: int, view: ChainView) -> None:
        """Take what a chain is like now."""
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
        """Whether the chain's next event must be told with `put`, also if it says only that the chain goes on."""
        return self._quiet.is_silent(number)

    def hints(self, now: float | None) -> list[Hint]:
        """What is worth a look.

        Args:
            now: seconds since the epoch, on the clock of the events; without it there are no hints about quiet chains.
        """
        found = [] if now is None else self._quiet.hints(self._facts, now)
        found += self._tools.hints(self._facts)
        for rule in self._of_results:
            found += rule.hints(self._facts)
        return found
