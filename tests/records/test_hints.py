"""What in a run is worth a look."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollcast import EventFilter, ToolAgent
from rollcast.records.bounded import Tail
from rollcast.records.hints import StepSummary, hints, named_chains, summary, trend_hints
from rollcast.records.run_view import RunViews
from rollcast.records.view import ChainView, OpenCall, StateTime, ToolUse
from rollcast.tasks import get_task, task_names
from rollcast.testing import capture_events

TRAININGS = json.loads((Path(__file__).parent / "healthy_trainings.json").read_text("utf-8"))


def chain(i, group=0, reward=1.0, answer=None, **fields):
    """The view of a chain that has ended."""
    known = {
        "run_id": "r", "chain_id": f"chain_{i}", "group_id": f"group_{group}", "state": "ended", "finish_reason": "answered",
        "final_response": f"The answer is {i}." if answer is None else answer, "reward": reward, "last_event_at": 1000.0,
    }  # fmt: skip
    return ChainView(**known | fields)


def kinds(found):
    """Which hints there are."""
    return [hint.kind for hint in found]


def only(found):
    """The one hint."""
    (hint,) = found
    assert "\n" not in hint.sentence
    return hint


# -- healthy runs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", task_names())
async def test_a_healthy_run_gives_no_hint(name):
    """The embedded model at each of its tasks, which it is bad at, gives no hint."""
    task = get_task(name)
    agent, views = ToolAgent("rollcast/tiny", task.tools, reward=task.reward), RunViews()
    types = {
        "run_start",
        "chain_start",
        "llm_generation_end",
        "tool_call_end",
        "reward",
        "chain_end",
        "run_end",
    }
    with capture_events(agent.streaming_manager, EventFilter(types=types)) as capture:
        await agent.run_async(
            task.max_steps, task.rows(8, seed=0), 8, enable_streaming=True, sampling=task.sampling, seed=0
        )
    for event in capture.events:
        views.apply(event)
    (run,) = views.runs.values()
    assert run.by_state == {"ended": 64}
    assert hints(run.chains.values(), run.last_event_at) == []


@pytest.mark.parametrize("name", task_names())
def test_a_healthy_training_gives_no_hint(name):
    """24 recorded steps of training on each task, of which the reward rises on each, give no hint at any step."""
    steps = msgspec.convert(TRAININGS[name], list[StepSummary])
    assert steps[-1].mean_reward > steps[0].mean_reward
    assert [trend_hints(steps[: i + 1]) for i in range(len(steps))] == [[]] * len(steps)


def test_no_chains_give_no_hint():
    """Nothing is said of nothing."""
    assert hints([], 1e9) == []
    assert hints([ChainView(), ChainView()], 1e9) == []
    assert trend_hints([]) == []
    assert summary([ChainView()]) is None


FIELDS = [
    "run_id", "chain_id", "group_id", "state", "since", "times", "last_event_at", "tool_calls", "tool_use", "reward", "reference",
    "finish_reason", "final_response", "completion_tokens", "generating", "tool", "seconds", "stays", "longest", "calls", "failed",
    "call_id", "tool_name", "content",
]  # fmt: skip
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["ended", "tool", "generating", "scoring", "max_tokens", "1e999", "-,1", "group_0", 1e308, -1e308])
)  # fmt: skip
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), v, max_size=5)
)


@settings(max_examples=60)
@given(
    st.lists(st.dictionaries(st.sampled_from(FIELDS), values, max_size=10), min_size=1, max_size=4),
    st.none() | st.floats(),
)
def test_nothing_is_raised_whatever_views_hold(many, now):
    """Views of anything, each 20 times, raise nothing."""
    views = [ChainView.from_dict(value) for value in many] * 20
    for hint in hints(views, now):
        assert hint.sentence.isprintable()
    step = summary(views)
    trend_hints([step] * 6 + [step] * 6 if step is not None else [])


# -- quiet ---------------------------------------------------------------------------------------------------------------------------


def worked(i, seconds=0.5):
    """A chain that called the tool `search` and ended."""
    times = {
        "tool": StateTime(seconds, 1, seconds),
        "generating": StateTime(2.0, 2, 1.5),
        "scoring": StateTime(0.1, 1, 0.1),
    }
    return chain(i, i % 4, times=times, tool_use={"search": ToolUse(1, 0, seconds)}, reward=float(i % 2))


def hung(i=99, state="tool", last=1000.0):
    """A chain that is in a call of `search`, or in another state."""
    calls = {"c": OpenCall("c", "search", Tail(10))} if state == "tool" else {}
    return chain(i, reward=None, state=state, finish_reason=None, tool_calls=calls, last_event_at=last)


def test_a_hung_tool_is_named_with_its_chain():
    """Who is quiet for much longer than a call takes is named, and so is the tool."""
    views = [*(worked(i) for i in range(12)), hung()]
    assert hints(views, 1009.0) == []
    hint = only(hints(views, 1063.0))
    assert (hint.kind, hint.chains, hint.run_id, hint.subject) == ("quiet", ["chain_99"], "r", "search")
    assert hint.sentence == (
        "chain_99 is waiting for the tool “search” and has sent nothing for 63 s; the median call of this run took 500 ms"
    )


def test_a_slow_tool_is_not_quiet():
    """What is usual for a tool is no hint, however long it takes."""
    assert hints([*(worked(i, 30.0) for i in range(12)), hung()], 1059.0) == []


def test_a_few_calls_say_nothing_of_what_is_usual():
    """Without eight calls that ended there is no median to compare with."""
    assert hints([*(worked(i) for i in range(7)), hung()], 9000.0) == []


def test_without_a_clock_nothing_is_quiet():
    """`now` is given in, or nothing is said."""
    assert hints([*(worked(i) for i in range(12)), hung()]) == []


@pytest.mark.parametrize(
    ("state", "words"), [("scoring", "is waiting for its reward"), ("generating", "is generating")]
)
def test_each_state_has_its_median(state, words):
    """A reward that hangs, and a model that says nothing, are found by what is usual for them."""
    hint = only(hints([*(worked(i) for i in range(12)), hung(state=state)], 1100.0))
    assert f"chain_99 {words} and has sent nothing for 100 s; the median " in hint.sentence


def test_the_last_ones_to_generate_are_not_quiet():
    """Without chunks a long generation says nothing: many at once that go on are no hint, while there are as many as ended."""
    assert (
        hints([*(worked(i) for i in range(12)), *(hung(90 + i, "generating") for i in range(6))], 1100.0)
        == []
    )


def test_ids_and_names_stay_on_one_line():
    """What a run calls its chains and tools cannot break the sentence."""
    views = [*(worked(i) for i in range(12)), hung("9\n\x1b[31m")]
    assert only(hints(views, 1100.0)).sentence.isprintable()


def test_several_quiet_chains_are_one_hint():
    """With the least time that all of them have sent nothing."""
    views = [*(worked(i) for i in range(12)), hung(90), hung(91, last=1010.0)]
    hint = only(hints(views, 1063.0))
    assert (hint.count, hint.chains) == (2, ["chain_90", "chain_91"])
    assert hint.sentence == (
        "2 chains are waiting for the tool “search” and have sent nothing for at least 53 s; "
        "the median call of this run took 500 ms"
    )


def test_the_chains_of_a_hint_are_named_after_its_sentence():
    """The first four and how many more; none if the sentence names the only one."""
    views = [chain(i, i // 4, float(i % 2), finish_reason="max_tokens") for i in range(20)]
    assert named_chains(only(hints(views))) == "chain_0, chain_1, chain_2, chain_3 and 16 more"
    assert named_chains(only(hints([*(worked(i) for i in range(12)), hung()], 1063.0))) == ""


def test_an_ended_chain_is_not_quiet():
    """Who has ended has nothing more to say."""
    assert hints([worked(i) for i in range(12)], 9000.0) == []


# -- tools ----------------------------------------------------------------------------------------------------------------------------


def test_a_tool_that_fails_is_named():
    """A tool of which half of the calls fail, with the chains in which it did."""
    views = [
        chain(i, i % 4, float(i % 2), tool_use={"search": ToolUse(2, i % 2 + 1), "add": ToolUse(5)})
        for i in range(8)
    ]
    hint = only(hints(views))
    assert (hint.kind, hint.count) == ("tool_fails", 8)
    assert hint.sentence == "The tool “search” failed in 12 of 16 calls"


@pytest.mark.parametrize(
    "uses",
    [
        [ToolUse(1, 1)] * 7,  # too few
        [ToolUse(3, 1)] * 12,  # a third
        [ToolUse(50, 50), *[ToolUse(2, 0)] * 8],  # one chain in a loop
    ],
)
def test_single_failures_are_no_hint(uses):
    """Few failures, and those of one chain, are part of every run."""
    assert hints([chain(i, i % 4, float(i % 2), tool_use={"t": use}) for i, use in enumerate(uses)]) == []


# -- groups ----------------------------------------------------------------------------------------------------------------------------


def groups(rewards, size=4):
    """Chains in groups, with the reward of each group's chains, which answer differently."""
    return [
        chain(g * size + i, g, r if isinstance(r, float) else r[i])
        for g, r in enumerate(rewards)
        for i in range(size)
    ]


def test_flat_groups_are_counted():
    """Where most groups have one reward for all, which rewards these are."""
    hint = only(hints(groups([1.0] * 7 + [0.0] + [(0.0, 1.0, 1.0, 0.0)])))
    assert (hint.kind, hint.count) == ("flat_groups", 32)
    assert hint.sentence == (
        "In 8 of 9 groups all chains got the same reward (1 in 7, 0 in 1), so nothing can be learned from them"
    )


def test_some_flat_groups_are_no_hint():
    """Half of the groups, or few groups, or small ones."""
    mixed = (0.0, 1.0, 1.0, 0.0)
    assert hints(groups([1.0] * 5 + [mixed] * 5)) == []
    assert hints(groups([1.0] * 7)) == []
    assert hints(groups([1.0] * 20, size=3)) == []


def test_a_group_that_is_alike_and_wrong_is_shown():
    """All chains of a group give one answer, for which they get little; the reference stands beside it."""
    views = [
        *groups([(0.0, 1.0, 1.0, 0.0)] * 3),
        *(chain(50 + i, 9, 0.0, " 606.", reference=613) for i in range(4)),
    ]
    hint = only(hints(views))
    assert (hint.kind, hint.group_id, hint.count) == ("alike_and_wrong", "group_9", 4)
    assert (
        hint.sentence
        == "All 4 chains of the group “group_9” gave the same answer, “606.”, and got a reward of at most 0; the reference is “613”"
    )


def test_a_group_that_is_alike_and_right_is_no_hint():
    """The same answer with a high reward, or answers that differ."""
    assert hints([*groups([(0.0, 1.0, 1.0, 0.0)]), *(chain(50 + i, 9, 1.0, "613") for i in range(4))]) == []
    assert hints(groups([(0.0, 1.0, 1.0, 0.0), 0.0])) == []


def test_what_everybody_says_who_fails_is_no_hint():
    """“I give up.” tells nothing of the question."""
    views = [
        chain(i, i // 4, 0.0 if i < 24 else 1.0, "I give up." if i < 24 else "Found.") for i in range(32)
    ]
    assert kinds(hints(views)) == ["flat_groups"]


def test_a_group_that_still_runs_is_not_judged():
    """Until the last chain has ended, the others' answers are not all."""
    views = [*groups([(0.0, 1.0, 1.0, 0.0)]), *(chain(50 + i, 9, 0.0, "606") for i in range(4))]
    assert hints([*views, hung(60)], 1001.0) != []
    running = chain(61, 9, None, state="generating", finish_reason=None)
    assert hints([*views, running]) == []


# -- references ---------------------------------------------------------------------------------------------------------------------------


def test_full_reward_for_another_answer_is_shown():
    """The chain that hacked its reward: full reward, and an answer that is not the reference."""
    views = [chain(i, i // 4, float(i % 2), f"So it is {i * 11}.", reference=i * 11) for i in range(40)]
    views.append(chain(99, 5, 1.0, "return True", reference=613))
    hint = only(hints(views))
    assert (hint.kind, hint.chains, hint.group_id) == ("reward_without_reference", ["chain_99"], "group_5")
    assert hint.sentence == (
        "1 of 21 chains with a reward of 1 or more gave an answer without the reference, such as “return True” instead of “613”"
    )


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("The answer is 1,234.50.", 1234.5), ("-7", "-7"), ("\\boxed{1/2}", "0.5"), ("0.5", "\\frac{1}{2}"), ("PARIS!", "Paris"),
        ("42", "First 6 * 7 is taken, and then nothing is added to it. #### 42"), ("B", ["A", "B"]), ("x", None), ("x", {"a": 1}),
        ("50%", 0.5), ("anything", "A long text of which nobody would say that the answer has to repeat it word by word at all"),
    ],
)  # fmt: skip
def test_answers_that_may_be_right_are_no_hint(answer, reference):
    """The same number or text in other words, several references, formulas, and references that cannot be compared."""
    views = [chain(i, i // 4, float(i % 2), f"{i}", reference=i) for i in range(40)]
    assert hints([*views, chain(99, 5, 1.0, answer, reference=reference)]) == []


def test_a_reward_that_judges_something_else_is_no_hint():
    """If most rewarded answers are not the reference, it is not what the reward asks for."""
    assert hints([chain(i, i // 4, float(i % 2), "Found it.", reference=i) for i in range(40)]) == []


# -- limits -------------------------------------------------------------------------------------------------------------------------------


def test_truncation_is_counted():
    """A quarter of the chains out of tokens."""
    views = [
        chain(i, i // 4, float(i % 2), finish_reason="max_tokens" if i < 5 else "answered") for i in range(20)
    ]
    hint = only(hints(views))
    assert hint.sentence == "5 of 20 chains ended because they reached the limit of tokens (max_tokens)"
    assert hints(views[4:]) == []
    assert hints(views[:15]) == []


def test_many_chains_are_counted_and_some_are_named():
    """A hint names at most 64 chains, and counts all."""
    hint = only(hints([chain(i, i // 4, float(i % 2), finish_reason="max_tokens") for i in range(200)]))
    assert (len(hint.chains), hint.count) == (64, 200)


def test_runs_are_judged_apart():
    """Chains of several runs may be given at once."""
    views = [chain(i, i // 4, float(i % 2), finish_reason="max_tokens") for i in range(16)]
    views += [chain(i, i // 4, float(i % 2), run_id="q") for i in range(300)]
    assert only(hints(views)).run_id == "r"


def test_text_of_a_model_cannot_speak_for_the_hint():
    """An answer is shown on one line, cut, without control characters."""
    answer = "\x1b[31mred\nline two " + "x" * 500
    views = [*groups([(0.0, 1.0, 1.0, 0.0)] * 3), *(chain(50 + i, 9, 0.0, answer) for i in range(4))]
    sentence = only(hints(views)).sentence
    assert "\x1b" not in sentence
    assert len(sentence) < 200


# -- trends ----------------------------------------------------------------------------------------------------------------------------------


def training(answers, lengths, rewards=(0.1, 0.9), n=15):
    """Summaries of steps: an answer by chain and step, a length by step, and a reward that rises from one to the other."""
    steps = []
    for step in range(n):
        share = rewards[0] + (rewards[1] - rewards[0]) * step / (n - 1)
        views = [
            chain(i, i // 4, float(i % 10 < 10 * share), answers(i, step), completion_tokens=lengths(step))
            for i in range(64)
        ]
        steps.append(summary(views))
    return steps


def test_a_reward_that_rises_while_answers_become_equal_is_shown():
    """All questions get one answer in the end, and did not before."""
    steps = training(lambda i, step: "As you asked." if step > 8 else f"{i}", lambda step: 50)
    hint = only(trend_hints(steps))
    assert hint.kind == "same_answers"
    assert "for 100% of the questions the rewarded answer is now “as you asked”" in hint.sentence
    assert hint.sentence.startswith("The reward rose from 0.2")


def test_a_phrase_that_always_ends_an_answer_is_no_hint():
    """“Done.” from the first step on."""
    assert trend_hints(training(lambda i, step: "Done.", lambda step: 50)) == []


def test_a_reward_that_rises_while_lengths_drift_is_shown():
    """Chains that become three times as long while the reward rises."""
    hint = only(trend_hints(training(lambda i, step: f"{i}", lambda step: 50 + 15 * step)))
    assert (
        hint.kind,
        "while the chains became longer: from 80 to 230 tokens on average" in hint.sentence,
    ) == (
        "length_drift",
        True,
    )


@pytest.mark.parametrize(("rewards", "n"), [((0.5, 0.5), 15), ((0.9, 0.1), 15), ((0.1, 0.9), 11)])
def test_without_a_rise_there_is_no_trend(rewards, n):
    """A reward that stays, one that falls, and too few steps."""
    steps = training(lambda i, step: "Done." if step > 8 else f"{i}", lambda step: 50 + 15 * step, rewards, n)
    assert trend_hints(steps) == []
