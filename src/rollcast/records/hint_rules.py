"""The rules that find hints in the chains of one run.

Every rule adds and removes chains one by one, keeps sums and sorted lists over all of them, and finds its hints from these: the cost
depends on how many chains have changed, not on how many there are. A rule's thresholds, and the reasons for them, are above it. No
rule says anything about only a few chains, since a few differ by chance. `hint_quiet.py` has the rule that depends on the time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rollcast.records.hint import MAX_NAMED, Hint, HintKind, shown_text
from rollcast.records.hint_facts import EQUAL, ChainFacts, Sorted, limited_reward

__all__ = ["Facts", "Groups", "Rule", "Tools", "Truncated", "Unreferenced", "hint_about"]

Facts = Mapping[int, ChainFacts]  # of all chains of the run, by number


class Rule(ABC):
    """Finds hints of one or two kinds, from the results of chains or from their use of tools."""

    def __init__(self) -> None:
        self._changed = False
        self._found: list[Hint] = []

    def change(self, old: ChainFacts | None, new: ChainFacts | None) -> None:
        """Update the facts of a chain from `old` to `new`; None: it did not exist before, or does not any more."""
        self._changed = True
        if old is not None:
            self._remove(old)
        if new is not None:
            self._add(new)

    def hints(self, facts: Facts) -> list[Hint]:
        """The hints that are true now."""
        if self._changed:
            self._changed, self._found = False, list(self._find(facts))
        return self._found

    @abstractmethod
    def _add(self, fact: ChainFacts) -> None: ...

    @abstractmethod
    def _remove(self, fact: ChainFacts) -> None: ...

    @abstractmethod
    def _find(self, facts: Facts) -> Iterator[Hint]: ...


def hint_about(
    kind: HintKind,
    sentence: str,
    numbers: Sequence[int],
    facts: Facts,
    group_id: str | None = None,
    subject: str = "",
) -> Hint:
    """Make a hint about the chains with these numbers; it names the first of them."""
    shown = [facts[number] for number in numbers[:MAX_NAMED]]
    ids = [fact.chain_id for fact in shown]
    return Hint(kind, sentence, shown[0].run_id, ids, len(numbers), group_id, subject)


# -- tools ------------------------------------------------------------------------------------------------------------------------

# A tool fails if half of its calls do: models probe and mistype, so single failures are part of every run. A chain counts for at
# most three calls, so that one chain in a loop does not decide for all.
MIN_CALLS = 8
FAILING = 0.5
CALLS_OF_A_CHAIN = 3


class Tools(Rule):
    """Tools whose calls fail half of the time."""

    def __init__(self) -> None:
        super().__init__()
        self._by_name: dict[str, _Tool] = {}

    def _add(self, fact: ChainFacts) -> None:
        for place, (name, calls, failed, _) in enumerate(fact.tools):
            tool = self._by_name.setdefault(name, _Tool())
            tool.outcomes[calls, failed] += 1
            tool.users.add((fact.number, place))
            if calls and failed:
                tool.failing.add(fact.number)

    def _remove(self, fact: ChainFacts) -> None:
        for place, (name, calls, failed, _) in enumerate(fact.tools):
            tool = self._by_name[name]
            tool.outcomes[calls, failed] -= 1
            if not tool.outcomes[calls, failed]:
                del tool.outcomes[calls, failed]
            tool.users.remove((fact.number, place))
            if calls and failed:
                tool.failing.remove(fact.number)
            if not tool.users.items:
                del self._by_name[name]

    def _find(self, facts: Facts) -> Iterator[Hint]:
        failing = [(tool.users.items[0], name, tool) for name, tool in self._by_name.items() if tool.fails()]
        for _, name, tool in sorted(failing, key=lambda each: each[0]):
            calls = sum(calls * n for (calls, _), n in tool.outcomes.items())
            failed = sum(failed * n for (calls, failed), n in tool.outcomes.items() if calls)
            what = f"The tool {shown_text(name)} failed in" if name else "Tool calls without a name failed in"
            sentence = f"{what} {failed} of {calls} calls"
            yield hint_about("tool_fails", sentence, tool.failing.items, facts, subject=name)


class _Tool:
    """One tool: its use by all chains, and which chains use it.

    Attributes:
        outcomes: by numbers of calls and of failed calls, how many chains had just so many.
        users: the numbers of the chains that called it, each with the tool's index among the tools of that chain.
        failing: the numbers of the chains with failed calls.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[int, int]] = Counter()
        self.users: Sorted[tuple[int, int]] = Sorted()
        self.failing: Sorted[int] = Sorted()

    def fails(self) -> bool:
        """Whether half of its calls fail."""
        weighed = sum(min(calls, CALLS_OF_A_CHAIN) * n for (calls, _), n in self.outcomes.items())
        if weighed < MIN_CALLS:
            return False
        failed = math.fsum(  # unlike `sum`, it does not depend on the order
            min(calls, CALLS_OF_A_CHAIN) * failed / calls * n
            for (calls, failed), n in self.outcomes.items()
            if calls
        )
        return failed >= FAILING * weighed


# -- groups -----------------------------------------------------------------------------------------------------------------------

# A group is flat if all its rewards are equal. A group of 4 whose chains are right half of the time is flat by chance in 1 of 8
# cases, so three quarters of the groups are not flat by chance.
MIN_GROUP = 4
MIN_GROUPS = 8
FLAT = 0.75


class _Group:
    """One group: its chains, and their rewards and answers.

    Attributes:
        members: the numbers of its chains; `scored`: of those with a reward.
        open: how many of its chains have not ended.
        rewards: the rewards of the scored chains; `answers`: how many of these gave each answer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: Sorted[int] = Sorted()
        self.scored: Sorted[int] = Sorted()
        self.open = 0
        self.rewards: Sorted[float] = Sorted()
        self.answers: Counter[str] = Counter()

    def add(self, fact: ChainFacts) -> None:
        """Add a chain."""
        self.members.add(fact.number)
        self.open += not fact.result.ended
        if fact.result.reward is not None:
            self.scored.add(fact.number)
            self.rewards.add(limited_reward(fact.result.reward))
            self.answers[fact.result.answer] += 1

    def remove(self, fact: ChainFacts) -> None:
        """Remove a chain."""
        self.members.remove(fact.number)
        self.open -= not fact.result.ended
        if fact.result.reward is not None:
            self.scored.remove(fact.number)
            self.rewards.remove(limited_reward(fact.result.reward))
            self.answers[fact.result.answer] -= 1
            if not self.answers[fact.result.answer]:
                del self.answers[fact.result.answer]

    @property
    def is_judged(self) -> bool:
        """Whether all of its chains have ended, and at least four have a reward."""
        return not self.open and len(self.scored.items) >= MIN_GROUP

    @property
    def first(self) -> int:
        """The lowest number of its chains, which gives the order of groups."""
        return self.members.items[0]

    @property
    def highest(self) -> float:
        """The highest reward."""
        return self.rewards.items[-1]

    @property
    def flat(self) -> bool:
        """Whether the rewards are equal."""
        return self.rewards.items[-1] - self.rewards.items[0] <= EQUAL

    @property
    def answer(self) -> str | None:
        """What all chains with a reward answered; None if the answers differ, or there is none."""
        return next(iter(self.answers)) or None if len(self.answers) == 1 else None


class Groups(Rule):
    """Groups whose chains all have the same reward, and groups whose chains all give the same answer for a low reward."""

    def __init__(self) -> None:
        super().__init__()
        self._groups: dict[str, _Group] = {}
        self._judged: dict[str, _Group] = {}
        self._flat: dict[str, _Group] = {}  # those among them whose rewards are equal
        self._alike: dict[str, _Group] = {}  # those whose answers are equal
        self._rewards: Sorted[float] = Sorted()
        self._low = -math.inf  # a lower reward is low
        self._wrong: Counter[str] = Counter()  # answers with a low reward
        self._wrongs = 0  # their sum

    def _add(self, fact: ChainFacts) -> None:
        name = fact.result.group_id
        if name is not None:
            group = self._groups.get(name)
            if group is None:
                group = self._groups[name] = _Group(name)
            group.add(fact)
            self._note(group)
        if fact.result.reward is not None:
            self._rewards.add(limited_reward(fact.result.reward))
            self._count_wrong(fact, 1)

    def _remove(self, fact: ChainFacts) -> None:
        name = fact.result.group_id
        if name is not None:
            group = self._groups[name]
            group.remove(fact)
            self._note(group)
        if fact.result.reward is not None:
            self._rewards.remove(limited_reward(fact.result.reward))
            self._count_wrong(fact, -1)

    def _note(self, group: _Group) -> None:
        """Update the sets of groups after a change of this one."""
        judged = group.is_judged
        for kind, belongs in (
            (self._judged, judged),
            (self._flat, judged and group.flat),
            (self._alike, judged and group.answer is not None),
        ):
            if belongs:
                kind[group.name] = group
            else:
                kind.pop(group.name, None)
        if not group.members.items:
            del self._groups[group.name]

    def _count_wrong(self, fact: ChainFacts, n: int) -> None:
        if fact.result.reward is not None and fact.result.reward < self._low:
            self._wrong[fact.result.answer] += n
            self._wrongs += n

    def _find(self, facts: Facts) -> Iterator[Hint]:
        yield from self._find_flat(facts)
        yield from self._find_wrong(facts)

    def _find_flat(self, facts: Facts) -> Iterator[Hint]:
        """A hint if in most groups all chains have the same reward, since a trainer learns nothing from comparing them."""
        groups = len(self._judged)
        if groups < MIN_GROUPS or len(self._flat) < FLAT * groups:
            return
        flat = sorted(self._flat.values(), key=lambda group: group.first)
        firsts = (facts[group.scored.items[0]].result.reward or 0.0 for group in flat)
        counts = Counter(round(limited_reward(reward), 6) for reward in firsts)
        which = ", ".join(f"{reward:g} in {n}" for reward, n in counts.most_common(3))
        yield hint_about(
            "flat_groups",
            f"In {len(flat)} of {groups} groups all chains got the same reward ({which}), so nothing can be learned from "
            "them",
            [number for group in flat for number in group.scored.items],
            facts,
        )

    def _find_wrong(self, facts: Facts) -> Iterator[Hint]:
        """Groups whose chains all give the same answer, and a low reward for it.

        Scales differ from reward to reward, so a reward is low if it is below the middle between the lowest and the highest of
        the run.
        """
        rewards = self._rewards.items
        if not rewards or not self._judged:
            return
        lowest, highest = rewards[0], rewards[-1]
        low = (lowest + highest) / 2 if highest - lowest > EQUAL else min(highest, 0.0) + EQUAL
        if low != self._low:
            self._low, self._wrongs = low, 0
            self._wrong.clear()
            for fact in facts.values():
                self._count_wrong(fact, 1)
        alike = [group for group in self._alike.values() if group.highest < low]
        for group in sorted(alike, key=lambda group: group.first):
            answer, size = group.answer or "", len(group.scored.items)
            elsewhere = self._wrongs - size
            if elsewhere >= MIN_GROUP and self._wrong[answer] - size >= elsewhere / 2:
                continue  # chains that fail give this answer to other questions, too
            first = facts[group.scored.items[0]].result
            reference = (
                "" if first.reference is None else f"; the reference is {shown_text(str(first.reference))}"
            )
            yield hint_about(
                "alike_and_wrong",
                f"All {size} chains of the group {shown_text(group.name)} gave the same answer, {shown_text(first.response or '')}, "
                f"and got a reward of at most {group.highest:g}{reference}",
                group.scored.items,
                facts,
                group.name,
            )


# -- rewards and references -----------------------------------------------------------------------------------------------------

# Answers without the reference that got a reward of 1 or more. If more than half of such answers are without it, the reward evidently
# does not judge by the reference, and there is no hint.
MIN_REWARDED = 8
OTHERWISE_JUDGED = 0.5


class Unreferenced(Rule):
    """Chains with a reward of 1 or more whose answer is not the reference, in a run whose reward judges by the reference."""

    def __init__(self) -> None:
        super().__init__()
        self._known = 0
        self._otherwise: Sorted[int] = Sorted()
        self._groups: Counter[str | None] = Counter()  # of those

    def _add(self, fact: ChainFacts) -> None:
        self._known += fact.result.correct is not None
        if fact.result.correct is False:
            self._otherwise.add(fact.number)
            self._groups[fact.result.group_id] += 1

    def _remove(self, fact: ChainFacts) -> None:
        self._known -= fact.result.correct is not None
        if fact.result.correct is False:
            self._otherwise.remove(fact.number)
            self._groups[fact.result.group_id] -= 1
            if not self._groups[fact.result.group_id]:
                del self._groups[fact.result.group_id]

    def _find(self, facts: Facts) -> Iterator[Hint]:
        numbers = self._otherwise.items
        if not numbers or self._known < MIN_REWARDED or len(numbers) > OTHERWISE_JUDGED * self._known:
            return
        first = facts[numbers[0]].result
        yield hint_about(
            "reward_without_reference",
            f"{len(numbers)} of {self._known} chains with a reward of 1 or more gave an answer without the reference, "
            f"such as {shown_text(first.response or '')} instead of {shown_text(str(first.reference))}",
            numbers,
            facts,
            first.group_id if len(self._groups) == 1 else None,
        )


# -- limits ------------------------------------------------------------------------------------------------------------------------

# Some chains always reach the limit of tokens; if one in four does, the limit is too low, or the model rambles.
MIN_ENDED = 16
TRUNCATED = 0.25


class Truncated(Rule):
    """Many chains ended because they reached the limit of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = 0
        self._cut: Sorted[int] = Sorted()

    def _add(self, fact: ChainFacts) -> None:
        self._ended += fact.result.ended
        if fact.result.cut:
            self._cut.add(fact.number)

    def _remove(self, fact: ChainFacts) -> None:
        self._ended -= fact.result.ended
        if fact.result.cut:
            self._cut.remove(fact.number)

    def _find(self, facts: Facts) -> Iterator[Hint]:
        cut = self._cut.items
        if self._ended >= MIN_ENDED and len(cut) >= TRUNCATED * self._ended:
            sentence = f"{len(cut)} of {self._ended} chains ended because they reached the limit of tokens (max_tokens)"
            yield hint_about("truncated", sentence, cut, facts)
