"""What hints need to know of one chain, as plain values that can be compared with earlier ones."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any, Generic, NamedTuple, TypeVar

from rollcast.records.answers import contains_reference, normal_answer
from rollcast.records.view import ChainView

__all__ = [
    "DOING",
    "EQUAL",
    "MAX_REWARD",
    "ChainFacts",
    "ChainResult",
    "Doing",
    "Sorted",
    "facts_of",
    "limited_reward",
]

N = TypeVar("N", int, float, tuple[int, int], tuple[float, int])
Doing = tuple[str, tuple[str, ...]]  # a chain's state, and the tools whose calls are open

# Rewards that differ by less than EQUAL are equal, and limits keep sums and squares of them finite.
EQUAL = 1e-9
MAX_REWARD = 1e100

DOING = {  # of a chain that may be quiet: for one chain, for several, and what the median is of
    "waiting": ("is between two turns", "are between two turns", "pause between turns"),
    "generating": ("is generating", "are generating", "generation"),
    "tool": ("is waiting for", "are waiting for", "call"),
    "scoring": ("is waiting for its reward", "are waiting for their rewards", "wait for a reward"),
}


class ChainResult(NamedTuple):
    """A chain's outcome, or what is known of it while the chain is open.

    Attributes:
        cut: whether the chain ended because it reached the limit of tokens.
        response: its final response; `answer`: that without case and surrounding punctuation.
        correct: whether an answer with a reward of 1 or more contains the reference; None if that cannot be decided, or the chain
            has no such reward.
    """

    group_id: str | None
    ended: bool
    reward: float | None
    cut: bool
    response: str | None
    reference: Any
    answer: str
    correct: bool | None


class ChainFacts(NamedTuple):
    """What hints need to know of one chain.

    Attributes:
        number: its index among the chains of its run.
        tools: for each tool: its name, how many calls ended, how many of them failed, and their total seconds.
        times: for each state: its name, how many stays have ended, their total seconds, and the longest.
        doing: its state and open tools, if it could become quiet in it.
        last: the timestamp of its latest event.
        heard: whether text of its open generation was seen.
    """

    number: int
    chain_id: str
    run_id: str
    result: ChainResult
    tools: tuple[tuple[str, int, int, float], ...]
    times: tuple[tuple[str, int, float, float], ...]
    doing: Doing | None
    last: float | None
    heard: bool


def facts_of(number: int, view: ChainView, before: ChainFacts | None = None) -> ChainFacts:
    """The facts of a chain. With `before`, an answer that has not changed is not compared again."""
    state = view.state
    doing: Doing | None = None
    tools: tuple[str, ...] = ()
    if state in DOING:
        if view.tool_calls:
            tools = tuple(
                sorted({call.tool_name for call in view.tool_calls.values() if call.status is None})
            )
        doing = state, tools
    return ChainFacts(
        number,
        view.chain_id,
        view.run_id,
        _result_of(view, None if before is None else before.result),
        tuple([(name, use.calls, use.failed, use.seconds) for name, use in view.tool_use.items()]),
        tuple([(name, time.stays, time.seconds, time.longest) for name, time in view.times.items()]),
        doing,
        view.last_event_at,
        view.generation is not None and view.generation.end > 0,
    )


def _result_of(view: ChainView, before: ChainResult | None) -> ChainResult:
    """The chain's outcome; the object `before` itself if nothing has changed."""
    ended, reward, response, reference = (
        view.state == "ended", view.reward, view.final_response, view.reference,
    )  # fmt: skip
    cut = ended and view.finish_reason == "max_tokens"
    if (
        before is not None
        and before.response is response
        and before.reference is reference
        and (before.group_id, before.ended, before.reward, before.cut) == (view.group_id, ended, reward, cut)
    ):
        return before
    rewarded = ended and reward is not None and reward >= 1 - EQUAL
    correct = contains_reference(response or "", reference) if rewarded else None
    return ChainResult(
        view.group_id, ended, reward, cut, response, reference, normal_answer(response or ""), correct
    )


def limited_reward(reward: float) -> float:
    """The reward, clipped so that sums and squares stay finite."""
    return max(-MAX_REWARD, min(reward, MAX_REWARD))


class Sorted(Generic[N]):
    """A sorted list to which single items are added, and from which they are removed."""

    def __init__(self) -> None:
        self.items: list[N] = []

    def add(self, item: N) -> None:
        """Insert an item at its place."""
        insort(self.items, item)

    def remove(self, item: N) -> None:
        """Remove an item, which must be in the list."""
        del self.items[bisect_left(self.items, item)]
