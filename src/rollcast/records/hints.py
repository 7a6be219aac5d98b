"""Finds what in a run is worth a look, from the views of its chains: evidence in a sentence, never a verdict.

It is pure: the same views and the same `now` give the same hints. A hint is there as long as what it says is true:
`hint_watch.py` decides how long that must be before anyone is told. The rules for one run are in `hint_rules.py` and
`hint_quiet.py`; the trends over the steps of a training are here.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from rollcast.records.answers import normal_answer
from rollcast.records.hint import HINT_KINDS, MAX_NAMED, Hint, HintKind, named_chains, shown_text
from rollcast.records.hint_facts import EQUAL, limited_reward
from rollcast.records.hint_index import HintIndex
from rollcast.records.hint_rules import MIN_GROUP
from rollcast.records.view import ChainView

__all__ = [
    "HINT_KINDS",
    "Hint",
    "HintKind",
    "Outcome",
    "StepSummary",
    "hints",
    "named_chains",
    "summary",
    "summary_of",
    "trend_hints",
]

# Trends compare the first third of the steps with the last third; 12 steps give four in each. The mean reward must have risen by a
# tenth of the range of these steps' rewards, and by twice the standard error of the difference.
MIN_STEPS = 12
RISING = 0.1
SAME_ANSWER = 0.8  # of the answers to different questions
SAME_ANSWER_BEFORE = 0.5
DRIFT = 2.0  # how many times longer or shorter


def hints(chains: Iterable[ChainView], now: float | None = None) -> list[Hint]:
    """Find what is worth a look in the chains of one run or several, run by run.

    Args:
        chains: the views; chains of one run are compared with each other.
        now: seconds since the epoch, on the clock of the events; without it there are no hints about quiet chains.
    """
    runs: defaultdict[str, HintIndex] = defaultdict(HintIndex)
    for number, chain in enumerate(chains):
        runs[chain.run_id].put(number, chain)
    return [hint for index in runs.values() for hint in index.hints(now)]


# -- over several steps ---------------------------------------------------------------------------------------------------------------


class StepSummary(msgspec.Struct, frozen=True):
    """What `trend_hints` needs of the rollouts of one step, so that the views need not be kept.

    Attributes:
        run_id: the rollouts' run.
        chains: how many chains ended with a reward.
        ids: their ids, at most 64.
        mean_reward: their mean reward; `variance` is that of their rewards.
        lowest, highest: their lowest and highest reward.
        mean_tokens: sampled tokens per chain.
        questions: how many groups have a chain in the upper half of the rewards' range; a chain without a group counts as one.
        same_answer: the share of these groups whose most frequent answer, among those chains, is `answer`. A model that always
            ends with one phrase (“Done.”) has a high share from the start.
        answer: the most frequent answer of all; None if no chain gave one.
    """

    run_id: str
    chains: int
    ids: list[str]
    mean_reward: float
    variance: float
    lowest: float
    highest: float
    mean_tokens: float
    questions: int
    same_answer: float
    answer: str | None


class Outcome(NamedTuple):
    """What `summary_of` needs to know of a chain that ended with a reward.

    Attributes:
        question: its group; a chain without a group counts as a question of its own.
        answer: its final answer, unchanged.
        tokens: how many tokens were sampled.
    """

    chain_id: str
    question: str
    reward: float
    answer: str
    tokens: int


def summary(chains: Iterable[ChainView]) -> StepSummary | None:
    """Summarize one step's chains; None if no chain has ended with a reward."""
    views = [view for view in chains if view.state == "ended" and view.reward is not None]
    outcomes = [
        Outcome(
            view.chain_id, view.group_id or view.chain_id, view.reward, view.final_response or "", view.tokens
        )
        for view in views
        if view.reward is not None
    ]
    return summary_of(views[0].run_id, outcomes) if views else None


def summary_of(run_id: str, outcomes: Sequence[Outcome]) -> StepSummary:
    """Summarize the outcomes of one step's chains, at least one."""
    rewards = [limited_reward(each.reward) for each in outcomes]
    middle = (min(rewards) + max(rewards)) / 2
    questions: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each, reward in zip(outcomes, rewards, strict=True):
        if reward >= middle:
            questions[each.question][normal_answer(each.answer)] += 1
    typical = Counter(answers.most_common(1)[0][0] for answers in questions.values())
    typical.pop("", None)
    answer, count = typical.most_common(1)[0] if typical else (None, 0)
    return StepSummary(
        run_id, len(outcomes), [each.chain_id for each in outcomes[:MAX_NAMED]], statistics.fmean(rewards),
        statistics.pvariance(rewards), min(rewards), max(rewards), statistics.fmean(each.tokens for each in outcomes),
        len(questions), count / len(questions), answer,
    )  # fmt: skip


def trend_hints(steps: Sequence[StepSummary]) -> list[Hint]:
    """Find what is worth a look in the steps of a training, given in order: a reward that may rise for the wrong reason."""
    third = len(steps) // 3
    if len(steps) < MIN_STEPS or not _rises(steps[:third], steps[-third:]):
        return []
    first, last, found = steps[:third], steps[-third:], []
    rise = f"The reward rose from {_mean(first, 'mean_reward'):.2f} to {_mean(last, 'mean_reward'):.2f}"
    same = [step.same_answer for step in last if step.questions >= MIN_GROUP]
    before = [step.same_answer for step in first if step.questions >= MIN_GROUP]
    if same and before and min(same) >= SAME_ANSWER and statistics.fmean(before) <= SAME_ANSWER_BEFORE:
        share, answer = last[-1].same_answer, shown_text(last[-1].answer or "")
        sentence = f"{rise} while the answers became the same: for {share:.0%} of the questions the rewarded answer is now {answer}"
        found.append(_trend("same_answers", sentence, last[-1]))
    short, long = _mean(first, "mean_tokens"), _mean(last, "mean_tokens")
    if min(short, long) > 0 and max(short / long, long / short) >= DRIFT:
        way = "longer" if long > short else "shorter"
        sentence = f"{rise} while the chains became {way}: from {short:.0f} to {long:.0f} tokens on average"
        found.append(_trend("length_drift", sentence, last[-1]))
    return found


def _trend(kind: HintKind, sentence: str, step: StepSummary) -> Hint:
    return Hint(kind, sentence, step.run_id, step.ids, step.chains)


def _mean(steps: Sequence[StepSummary], name: str) -> float:
    return statistics.fmean(getattr(step, name) for step in steps)


def _rises(first: Sequence[StepSummary], last: Sequence[StepSummary]) -> bool:
    """Whether the reward rose by more than chance: by a tenth of its range, and twice the standard error."""
    lowest = min(step.lowest for step in (*first, *last))
    highest = max(step.highest for step in (*first, *last))
    gain = _mean(last, "mean_reward") - _mean(first, "mean_reward")
    error = math.sqrt(
        sum(_mean(part, "variance") / sum(step.chains for step in part) for part in (first, last))
    )
    return gain > EQUAL and gain >= RISING * (highest - lowest) and gain >= 2 * error
