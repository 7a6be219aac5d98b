"""Finds what in a run is worth a look, from the views of its chains: evidence in a sentence, never a verdict.

It is pure: the same views and the same `now` give the same hints. No rule says anything about only a few chains, since a few
differ by chance; the numbers of a rule and the reasons for them stand above it. A hint is there as long as what it says is true:
`hint_watch.py` decides how long that must be before anyone is told.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from rollcast.records.view import ChainView
from rollcast.text import plain_line

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

HintKind = Literal[
    "quiet", "tool_fails", "flat_groups", "alike_and_wrong", "reward_without_reference", "truncated", "same_answers", "length_drift"
]  # fmt: skip
HINT_KINDS: tuple[HintKind, ...] = get_args(HintKind)

MAX_NAMED = 64  # chain ids in one hint; `count` counts all of them
MAX_SHOWN = 60  # characters of an answer or a name in a sentence

# A chain is quiet if nothing came from it for all of these: ten seconds (a pause that a reader of a terminal notices), eight times
# the median time that chains of the run spend in its state, and twice the longest time that any of them did, since some answers are
# long. If a chain is generating and none of its text was seen, its chunks may not be watched, and the longest generations end last:
# then there must be eight generations that ended for each quiet chain.
QUIET_S = 10.0
QUIET_MEDIANS = 8.0
QUIET_LONGEST = 2.0
MIN_STAYS = 8  # how many stays in a state must have ended before their median means anything

# A tool fails if half of its calls do: models probe and mistype, so single failures are part of every run. A chain counts for at
# most three calls, so that one chain in a loop does not decide for all.
MIN_CALLS = 8
FAILING = 0.5
CALLS_OF_A_CHAIN = 3

# A group is flat if all its rewards are equal. A group of 4 whose chains are right half of the time is flat by chance in 1 of 8
# cases, so three quarters of the groups are not flat by chance.
MIN_GROUP = 4
MIN_GROUPS = 8
FLAT = 0.75

# Rewards that differ by less than EQUAL are equal. Scales differ from reward to reward, so a reward is low if it is below the middle
# between the lowest and the highest of the run.
EQUAL = 1e-9
MAX_REWARD = 1e100

# Answers without the reference that got a reward of 1 or more. If more than half of such answers are without it, the reward evidently
# does not judge by the reference, and there is no hint.
MIN_REWARDED = 8
OTHERWISE_JUDGED = 0.5

# Some chains always reach the limit of tokens; if one in four does, the limit is too low, or the model rambles.
MIN_ENDED = 16
TRUNCATED = 0.25

# Trends compare the first third of the steps with the last third; 12 steps give four in each. The mean reward must have risen by a
# tenth of the range of these steps' rewards, and by twice the standard error of the difference.
MIN_STEPS = 12
RISING = 0.1
SAME_ANSWER = 0.8  # of the answers to different questions
SAME_ANSWER_BEFORE = 0.5
DRIFT = 2.0  # how many times longer or shorter


class Hint(msgspec.Struct, frozen=True):
    """Something that is worth a look.

    Attributes:
        kind: the rule that found it.
        sentence: what it is, in plain English, on one line.
        run_id: the run that shows it; for a trend the last one.
        chains: ids of the chains that show it, at most 64; for a trend those of the last run.
        count: how many chains show it.
        group_id: the group, if it is about one.
        subject: the tool or the state that it is about; empty if it is about neither. `kind`, `run_id`, `group_id` and `subject`
            together identify a hint while its sentence and chains change.
    """

    kind: HintKind
    sentence: str
    run_id: str
    chains: list[str]
    count: int
    group_id: str | None = None
    subject: str = ""


def hints(chains: Iterable[ChainView], now: float | None = None) -> list[Hint]:
    """Find what is worth a look in the chains of one run or several, run by run.

    Args:
        chains: the views; chains of one run are compared with each other.
        now: seconds since the epoch, on the clock of the events; without it there are no hints about quiet chains.
    """
    runs: defaultdict[str, list[ChainView]] = defaultdict(list)
    for chain in chains:
        runs[chain.run_id].append(chain)
    found: list[Hint] = []
    for views in runs.values():
        if now is not None:
            found += _quiet(views, now)
        for rule in _RULES:
            found += rule(views)
    return found


def _hint(
    kind: HintKind, sentence: str, views: Sequence[ChainView], group_id: str | None = None, subject: str = ""
) -> Hint:
    ids = [view.chain_id for view in views[:MAX_NAMED]]
    return Hint(kind, sentence, views[0].run_id, ids, len(views), group_id, subject)


# -- quiet chains ----------------------------------------------------------------------------------------------------------------


def _quiet(views: list[ChainView], now: float) -> Iterator[Hint]:
    """Open chains that have sent nothing for much longer than their state usually lasts in this run."""
    quiet: defaultdict[tuple[str, tuple[str, ...]], list[tuple[float, ChainView]]] = defaultdict(list)
    for view in views:
        silence = 0.0 if view.last_event_at is None else now - view.last_event_at
        if view.state in _DOING and silence >= QUIET_S:
            open_calls = {call.tool_name for call in view.tool_calls.values() if call.status is None}
            quiet[view.state, tuple(sorted(open_calls))].append((silence, view))
    for (state, tools), found in quiet.items():
        usual = max((_usual(views, state, tool) for tool in tools or ("",)), key=lambda each: each.least)
        told = [(silence, view) for silence, view in found if silence >= usual.least]
        unseen = state == "generating" and not any(
            v.generation is not None and v.generation.end for _, v in told
        )
        if not told or usual.stays < (MIN_STAYS * len(told) if unseen else 1):
            continue
        least = _seconds(min(silence for silence, _ in told))
        one, several, usually = _DOING[state]
        if len(told) == 1:
            who, what, nothing = (
                plain_line(told[0][1].chain_id, MAX_SHOWN),
                one,
                f"has sent nothing for {least}",
            )
        else:
            who, what, nothing = f"{len(told)} chains", several, f"have sent nothing for at least {least}"
        if state == "tool":
            what += f" the tool {' and '.join(map(_shown, tools))}" if tools else " a tool"
        yield _hint(
            "quiet",
            f"{who} {what} and {nothing}; the median {usually} of this run took {_seconds(usual.median)}",
            [view for _, view in told],
            subject=" and ".join(tools) or state,
        )


_DOING = {  # for one chain, for several, and what the median is of
    "waiting": ("is between two turns", "are between two turns", "pause between turns"),
    "generating": ("is generating", "are generating", "generation"),
    "tool": ("is waiting for", "are waiting for", "call"),
    "scoring": ("is waiting for its reward", "are waiting for their rewards", "wait for a reward"),
}


class _Usual(msgspec.Struct, frozen=True):
    """How long something usually lasts, in seconds.

    Attributes:
        median: the median over chains.
        stays: how often it was seen to end.
        least: a silence is unusual if it is at least this long.
    """

    median: float = 0.0
    stays: int = 0
    least: float = math.inf


def _usual(views: list[ChainView], state: str, tool: str) -> _Usual:
    """How long a call of the tool usually lasts; how long the state does, if there is no tool or fewer than eight calls ended."""
    uses = [view.tool_use[tool] for view in views if tool in view.tool_use] if tool else []
    calls = sum(use.calls for use in uses)
    if calls >= MIN_STAYS:
        means = [use.seconds / use.calls for use in uses if use.calls]
        longest = max(means)
    else:
        times = [view.times[state] for view in views if state in view.times]
        calls = sum(time.stays for time in times)
        means = [time.seconds / time.stays for time in times if time.stays]
        longest = max((time.longest for time in times), default=0.0)
    if calls < MIN_STAYS or not means:
        return _Usual()
    median = statistics.median(means)
    return _Usual(median, calls, max(QUIET_S, QUIET_MEDIANS * median, QUIET_LONGEST * longest))


# -- tools ------------------------------------------------------------------------------------------------------------------------


def _tool_fails(views: list[ChainView]) -> Iterator[Hint]:
    """Tools whose calls fail half of the time."""
    names = dict.fromkeys(name for view in views for name in view.tool_use)
    for name in names:
        uses = [
            (view, view.tool_use[name])
            for view in views
            if name in view.tool_use and view.tool_use[name].calls
        ]
        calls, failed = sum(use.calls for _, use in uses), sum(use.failed for _, use in uses)
        weighed = sum(min(use.calls, CALLS_OF_A_CHAIN) for _, use in uses)
        weighed_failed = sum(min(use.calls, CALLS_OF_A_CHAIN) * use.failed / use.calls for _, use in uses)
        if weighed >= MIN_CALLS and weighed_failed >= FAILING * weighed:
            showing = [view for view, use in uses if use.failed]
            what = f"The tool {_shown(name)} failed in" if name else "Tool calls without a name failed in"
            yield _hint("tool_fails", f"{what} {failed} of {calls} calls", showing, subject=name)


# -- groups -----------------------------------------------------------------------------------------------------------------------


def _groups(views: Iterable[ChainView]) -> dict[str, list[ChainView]]:
    """Groups of at least four chains that have all ended: by id, the chains with a reward."""
    groups: defaultdict[str, list[ChainView]] = defaultdict(list)
    for view in views:
        if view.group_id is not None:
            groups[view.group_id].append(view)
    whole = {name: found for name, found in groups.items() if all(v.state == "ended" for v in found)}
    scored = {name: [v for v in found if v.reward is not None] for name, found in whole.items()}
    return {name: found for name, found in scored.items() if len(found) >= MIN_GROUP}


def _rewards(views: Iterable[ChainView]) -> list[float]:
    """The rewards, within limits that keep sums and squares finite."""
    return [max(-MAX_REWARD, min(view.reward, MAX_REWARD)) for view in views if view.reward is not None]


def _flat(views: Iterable[ChainView]) -> bool:
    rewards = _rewards(views)
    return max(rewards) - min(rewards) <= EQUAL


def _flat_groups(views: list[ChainView]) -> Iterator[Hint]:
    """In most groups all chains have the same reward, so a trainer learns nothing from comparing them."""
    groups = _groups(views)
    flat = [found for found in groups.values() if _flat(found)]
    if len(groups) < MIN_GROUPS or len(flat) < FLAT * len(groups):
        return
    counts = Counter(round(_rewards(found)[0], 6) for found in flat)
    which = ", ".join(f"{reward:g} in {n}" for reward, n in counts.most_common(3))
    yield _hint(
        "flat_groups",
        f"In {len(flat)} of {len(groups)} groups all chains got the same reward ({which}), so nothing can be learned from them",
        [view for found in flat for view in found],
    )


def _alike_and_wrong(views: list[ChainView]) -> Iterator[Hint]:
    """Groups whose chains all give the same answer, and a low reward for it."""
    rewards = _rewards(views)
    groups = _groups(views)
    if not rewards or not groups:
        return
    lowest, highest = min(rewards), max(rewards)
    low = (lowest + highest) / 2 if highest - lowest > EQUAL else min(highest, 0.0) + EQUAL
    wrong = Counter(_answer(view) for view in views if view.reward is not None and view.reward < low)
    for name, found in groups.items():
        answers = {_answer(view) for view in found}
        if len(answers) > 1 or answers == {""} or max(_rewards(found)) >= low:
            continue
        (answer,) = answers
        elsewhere = sum(wrong.values()) - len(found)
        if elsewhere >= MIN_GROUP and wrong[answer] - len(found) >= elsewhere / 2:
            continue  # failing chains give this answer to other questions too
        reference = found[0].reference
        told = "" if reference is None else f"; the reference is {_shown(str(reference))}"
        yield _hint(
            "alike_and_wrong",
            f"All {len(found)} chains of the group {_shown(name)} gave the same answer, {_shown(found[0].final_response or '')}, "
            f"and got a reward of at most {max(_rewards(found)):g}{told}",
            found,
            name,
        )


# -- rewards and references -----------------------------------------------------------------------------------------------------


def _reward_without_reference(views: list[ChainView]) -> Iterator[Hint]:
    """Chains with a reward of 1 or more whose answer is not the reference, in a run whose reward judges by the reference."""
    judged = [
        (view, _matches(view.final_response or "", view.reference))
        for view in views
        if view.state == "ended" and view.reward is not None and view.reward >= 1 - EQUAL
    ]
    known = [(view, matches) for view, matches in judged if matches is not None]
    otherwise = [view for view, matches in known if not matches]
    if not otherwise or len(known) < MIN_REWARDED or len(otherwise) > OTHERWISE_JUDGED * len(known):
        return
    first = otherwise[0]
    yield _hint(
        "reward_without_reference",
        f"{len(otherwise)} of {len(known)} chains with a reward of 1 or more gave an answer without the reference, "
        f"such as {_shown(first.final_response or '')} instead of {_shown(str(first.reference))}",
        otherwise,
        first.group_id if len({view.group_id for view in otherwise}) == 1 else None,
    )


_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?"
)
_FORMULA = re.compile(r"[\\/^√%{}]")  # an answer that may say the same number in another way


def _matches(answer: str, reference: Any) -> bool | None:
    """Whether the answer contains the reference; None if that cannot be decided, as for a formula or an object.

    It is lenient, since it does not know what a reward accepts: case, spaces and surrounding text make no difference.
    """
    if isinstance(reference, list):
        found = [_matches(answer, each) for each in reference]
        return None if not found or None in found else any(found)
    if isinstance(reference, bool) or not isinstance(reference, int | float | str):
        return None
    wanted, said = _normal(str(reference)), _normal(answer)
    if not wanted or _FORMULA.search(wanted) or _FORMULA.search(said):
        return None
    if wanted in said or (said and said in wanted):
        return True
    numbers = [_number(each) for each in _NUMBER.findall(wanted)]
    if not numbers:
        # A longer reference is an essay, which no answer repeats word by word.
        return False if len(wanted) <= MAX_SHOWN else None
    if len(wanted) > MAX_SHOWN:
        numbers = numbers[-1:]
    return any(
        math.isclose(_number(each), numbers[-1], rel_tol=1e-6, abs_tol=1e-6) for each in _NUMBER.findall(said)
    )


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("\u2212", "-"))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!\"'`*$")


def _answer(view: ChainView) -> str:
    return _normal(view.final_response or "")


# -- limits ------------------------------------------------------------------------------------------------------------------------


def _truncated(views: list[ChainView]) -> Iterator[Hint]:
    """Many chains ended because they reached the limit of tokens."""
    ended = [view for view in views if view.state == "ended"]
    cut = [view for view in ended if view.finish_reason == "max_tokens"]
    if len(ended) >= MIN_ENDED and len(cut) >= TRUNCATED * len(ended):
        yield _hint(
            "truncated",
            f"{len(cut)} of {len(ended)} chains ended because they reached the limit of tokens (max_tokens)",
            cut,
        )


_RULES: tuple[Callable[[list[ChainView]], Iterator[Hint]], ...] = (
    _tool_fails,
    _flat_groups,
    _alike_and_wrong,
    _reward_without_reference,
    _truncated,
)


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
    """What `summary_of` needs of a chain that ended with a reward.

    Attributes:
        question: its group; a chain without one is a question of its own.
        answer: as it gave it.
        tokens: how many were sampled.
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
    rewards = [max(-MAX_REWARD, min(each.reward, MAX_REWARD)) for each in outcomes]
    middle = (min(rewards) + max(rewards)) / 2
    questions: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each, reward in zip(outcomes, rewards, strict=True):
        if reward >= middle:
            questions[each.question][_normal(each.answer)] += 1
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
        share, answer = last[-1].same_answer, _shown(last[-1].answer or "")
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


# -- words ----------------------------------------------------------------------------------------------------------------------------


def named_chains(hint: Hint, most: int = 4) -> str:
    """The first chains that show the hint, for the end of its sentence: `chain_1, chain_5 and 6 more`.

    It is empty if the sentence is about one chain, which it names.
    """
    if hint.kind == "quiet" and hint.count == 1:
        return ""
    names = [plain_line(name, MAX_SHOWN) for name in hint.chains[:most]]
    more = hint.count - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def _shown(text: str) -> str:
    """Text from a model, a tool or a row, in quotation marks."""
    return f"\u201c{plain_line(text, MAX_SHOWN)}\u201d"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
