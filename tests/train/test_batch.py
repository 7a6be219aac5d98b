"""Batches: what every trainer is fed."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollcast import BaseAgent, Delta, numeric_match
from rollcast.errors import InputError
from rollcast.models import BaseBackend
from rollcast.records import Trajectory
from rollcast.records.trajectory import Turn
from rollcast.testing import ScriptedBackend
from rollcast.tools import calculator
from rollcast.train import group_advantages, make_batch


def turn(step=1, prompt=(1, 2), sampled=(7, 8, 9), logprob=-0.5, version=0, fresh=False):
    n = len(sampled)
    return Turn(
        step, list(prompt), list(sampled), [logprob] * n, [version] * n, completion_tokens=n, fresh=fresh
    )


def chain(name="chain_0", reward=1.0, turns=None, group="group_0", run="run", error=None):
    made = Trajectory(
        run, name, group, turns=[turn()] if turns is None else turns, reward=reward, error=error
    )
    made.finish_reason = "error" if error else "answered"
    return made


def pair(first=None, second=None, **about):
    """A group with a difference, so that it is kept."""
    return [chain("chain_0", 1.0, first, **about), chain("chain_1", 0.0, second, **about)]


def test_the_import_is_light():
    """`rollcast.train` loads neither NumPy nor torch before one of its names is used."""
    code = "import sys, rollcast.train; print([m for m in ('numpy', 'torch', 'trl') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_rows_are_the_exact_sequences_padded_at_the_end():
    """Ids, masks, log-probabilities and versions stand where the trajectory has them; the rest is padding."""
    longer = [turn(1, (1, 2), (7, 8), version=3), turn(2, (4,), (9,), -0.25, version=4)]
    batch = make_batch(pair(longer, [turn(1, (1, 2), (6,), version=4)]), pad_id=99)
    assert batch.input_ids_BT.tolist() == [[1, 2, 7, 8, 4, 9], [1, 2, 6, 99, 99, 99]]
    assert batch.attention_mask_BT.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert batch.loss_mask_BT.astype(int).tolist() == [[0, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]]
    assert batch.logprobs_BT.tolist() == [[0, 0, -0.5, -0.5, 0, -0.25], [0, 0, -0.5, 0, 0, 0]]
    assert batch.policy_versions_BT.tolist() == [[-1, -1, 3, 3, -1, 4], [-1, -1, 4, -1, -1, -1]]
    assert batch.rewards_B.tolist() == [1, 0]
    assert batch.chain_ids == ("chain_0", "chain_1")
    assert [array.dtype.name for array in (batch.input_ids_BT, batch.loss_mask_BT, batch.logprobs_BT)] == [
        "int64",
        "bool",
        "float32",
    ]
    assert len(batch) == 2
    assert batch.statistics.tokens == 4


async def test_what_a_tool_or_the_template_wrote_is_not_trained_on():
    """Of an agent's chain with a call, the mask is 1 for the model's tokens and nothing else."""
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "2 + 2"}}</tool_call>'
    agent = BaseAgent(
        backend=ScriptedBackend(lambda request: call if len(request.messages) == 1 else "The answer is 4."),
        tools=[calculator],
        reward=lambda ctx: float(ctx.chain_id == "chain_0"),
    )
    row = {"messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    result = await agent.run_async(3, [row], num_chains=2)
    batch = make_batch(result)
    for b, t in enumerate(result):
        length = len(t.token_ids)
        assert batch.input_ids_BT[b, :length].tolist() == t.token_ids
        assert batch.loss_mask_BT[b, :length].tolist() == [bool(m) for m in t.loss_mask]
        assert 0 < sum(t.loss_mask) < length


def test_advantages_are_those_of_grpo():
    """The reward less the group's mean, over the sample's deviation and 1e-4."""
    rewards = [1.0, 0.0, 0.0, 1.0]
    expected = (np.array(rewards) - 0.5) / (np.std(rewards, ddof=1) + 1e-4)
    assert group_advantages(rewards) == pytest.approx(expected)
    assert group_advantages(rewards, scale=False).tolist() == [0.5, -0.5, -0.5, 0.5]


@given(st.lists(st.floats(-1e6, 1e6), max_size=12), st.booleans())
def test_advantages_sum_to_nothing_and_keep_the_order(rewards, scale):
    """Whatever the rewards: no chain gains by another's loss alone, and a better reward has no worse an advantage."""
    advantages = group_advantages(rewards, scale)
    assert advantages.shape == (len(rewards),)
    assert math.isclose(advantages.sum(), 0, abs_tol=1e-6 * (1 + np.abs(advantages).sum()))
    order = np.argsort(rewards, kind="stable")
    assert (np.diff(advantages[order]) >= 0).all()
    if len(set(rewards)) < 2:
        assert not advantages.any()


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5))
def test_flat_groups_are_left_out_and_counted(groups):
    """What remains are the chains of groups with a difference, each with its group's advantage."""
    chains = [
        chain(f"chain_{g}_{i}", float(r), group=f"group_{g}")
        for g, rewards in enumerate(groups)
        for i, r in enumerate(rewards)
    ]
    batch = make_batch(chains)
    kept = {g for g, rewards in enumerate(groups) if len(set(rewards)) > 1}
    assert set(batch.groups_B.tolist()) == kept
    assert len(batch) == sum(len(groups[g]) for g in kept)
    for g in kept:
        assert batch.advantages_B[batch.groups_B == g] == pytest.approx(group_advantages(groups[g]), rel=1e-5)
    assert batch.statistics.groups == len(groups)
    assert batch.statistics.flat_groups == len(groups) - len(kept)
    assert batch.statistics.mean_reward == pytest.approx(np.mean([r for rewards in groups for r in rewards]))


def test_a_batch_may_be_empty():
    """Where every group is flat there are no rows, and the statistics say so."""
    batch = make_batch([chain("a"), chain("b")])
    assert (len(batch), batch.input_ids_BT.shape, batch.statistics.flat_groups) == (0, (0, 0), 1)
    assert batch.rows([]).input_ids_BT.shape == (0, 0)


def test_groups_of_different_runs_do_not_mix():
    """A group is a run's: two runs both have a group_0."""
    batch = make_batch([*pair(run="one"), *pair(run="two")])
    assert batch.groups_B.tolist() == [0, 0, 1, 1]


def test_chains_without_a_reward_are_left_out_and_counted():
    """They neither stand in the batch nor move the mean."""
    batch = make_batch([*pair(), chain("chain_2", None, error="it broke")])
    assert batch.chain_ids == ("chain_0", "chain_1")
    assert batch.advantages_B.tolist() == pytest.approx(group_advantages([1, 0]).tolist())
    assert (batch.statistics.chains, batch.statistics.failed) == (3, 1)


def test_a_group_of_which_one_chain_has_a_reward_is_flat():
    """There is nothing to compare it with."""
    lonely = [chain("a", 1.0, group="group_1"), chain("b", None, group="group_1")]
    batch = make_batch([*pair(), *lonely])
    assert batch.statistics.flat_groups == 1
    assert batch.chain_ids == ("chain_0", "chain_1")


def test_a_group_where_all_failed_is_flat():
    """The others are trained on."""
    batch = make_batch([*pair(), chain("a", None, group="group_1"), chain("b", None, group="group_1")])
    assert (batch.statistics.flat_groups, batch.statistics.failed) == (1, 2)


def test_each_segment_of_a_forked_chain_is_a_row():
    """Over all rows each sampled token is trained on once, with the chain's advantage."""
    forked = [turn(1, (1, 2), (7, 8)), turn(2, (1, 3, 4), (9,), fresh=True)]
    batch = make_batch(pair(forked))
    assert batch.chain_ids == ("chain_0", "chain_0", "chain_1")
    assert batch.input_ids_BT[:2].tolist() == [[1, 2, 7, 8, 0], [1, 3, 4, 9, 0]]
    assert batch.loss_mask_BT[:2].sum() == 3
    assert batch.advantages_B[0] == batch.advantages_B[1] > 0


def test_a_segment_without_samples_is_no_row():
    """Nothing in it is trained on."""
    batch = make_batch(pair([turn(), turn(2, (5,), (), fresh=True)]))
    assert batch.chain_ids == ("chain_0", "chain_1")


def test_long_rows_are_dropped_and_counted():
    """Their rewards count for the group all the same."""
    batch = make_batch(pair([turn(sampled=range(20))]), max_tokens=10)
    assert batch.chain_ids == ("chain_1",)
    assert batch.advantages_B[0] == pytest.approx(group_advantages([1, 0])[1])
    assert (batch.statistics.dropped_long, batch.statistics.truncated) == (1, 0)


def test_long_rows_are_cut_where_asked():
    """At the end; a row of which only its prompt would remain is dropped."""
    batch = make_batch(pair([turn(sampled=range(20))]), max_tokens=10, truncation="cut")
    assert batch.input_ids_BT[0].tolist() == [1, 2, *range(8)]
    assert (batch.statistics.dropped_long, batch.statistics.truncated) == (0, 1)
    batch = make_batch(pair([turn(prompt=range(10))]), max_tokens=10, truncation="cut")
    assert (batch.chain_ids, batch.statistics.dropped_long, batch.statistics.truncated) == (
        ("chain_1",),
        1,
        0,
    )


@pytest.mark.parametrize("truncation", ["drop", "cut", "error"])
def test_a_row_as_long_as_allowed_is_whole(truncation):
    """The limit itself is not over the limit."""
    batch = make_batch(pair([turn(sampled=range(8))]), max_tokens=10, truncation=truncation)
    assert batch.input_ids_BT[0].tolist() == [1, 2, *range(8)]
    assert (batch.statistics.dropped_long, batch.statistics.truncated) == (0, 0)


def test_long_rows_are_an_error_where_asked():
    """The sentence names the chain and both lengths."""
    with pytest.raises(InputError, match="chain_0 has a sequence of 22 tokens, and max_tokens is 10"):
        make_batch(pair([turn(sampled=range(20))]), max_tokens=10, truncation="error")


def test_what_was_learned_from_is_told_by_chain():
    """Its advantage, and the age of its oldest sampled token, in whichever segment that stands."""
    forked = [turn(1, version=2), turn(2, version=4, fresh=True)]
    unknown = [turn(1, version=-1)]
    batch = make_batch(pair(forked, unknown), scale=False, version=5)
    assert len(batch) == 3
    assert batch.learned_from(5) == {
        "chain_0": {"advantage": 0.5, "staleness": 3},
        "chain_1": {"advantage": -0.5},
    }
    flat = make_batch([chain("chain_0", 1.0), chain("chain_1", 1.0)])
    assert flat.learned_from(5) == {}


def test_staleness_counts_versions_behind():
    """Over the tokens trained on; those whose version is not known do not count."""
    old, new = [turn(version=2, sampled=(7,))], [turn(version=4, sampled=(7, 8, 9))]
    statistics = make_batch(pair(old, new), version=5).statistics
    assert (statistics.staleness_mean, statistics.staleness_max) == (1.5, 3)
    assert make_batch(pair(old, new)).statistics.staleness_max == 2
    unknown = [turn()]
    unknown[0].policy_versions = []
    assert make_batch(pair(unknown, unknown), version=5).statistics.staleness_max == 0


def test_a_token_from_the_future_is_refused():
    """The caller gave a version that is older than one that sampled."""
    with pytest.raises(InputError, match=r"chain_1 was sampled by version 7 .* the batch is for version 5"):
        make_batch(pair(second=[turn(version=7)]), version=5)


@given(st.data())
def test_rows_gives_what_it_is_asked_for(data):
    """The chosen rows, in order, no wider than the longest of them."""
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    chains = [chain(f"c{i}", float(i), [turn(sampled=range(n))]) for i, n in enumerate(lengths)]
    batch = make_batch(chains)
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1))
    part = batch.rows(indices)
    assert len(part) == len(indices)
    assert part.input_ids_BT.shape == (len(indices), 2 + max(lengths[i] for i in indices))
    for row, i in enumerate(indices):
        width = 2 + lengths[i]
        assert part.input_ids_BT[row, :width].tolist() == batch.input_ids_BT[i, :width].tolist()
        assert part.loss_mask_BT[row].sum() == lengths[i]
        assert part.attention_mask_BT[row].sum() == width
        assert (part.chain_ids[row], part.advantages_B[row]) == (batch.chain_ids[i], batch.advantages_B[i])


@pytest.mark.parametrize("indices", [[2], [-1], [[0]], [0.5]])
def test_rows_that_are_not_there_are_refused(indices):
    """Negative ones too: they are a mistake more often than a shorthand."""
    with pytest.raises(InputError, match="indices"):
        make_batch(pair()).rows(indices)


@pytest.mark.parametrize("reward", [1e39, -1e308])
def test_rewards_that_a_batch_cannot_hold_are_refused(reward):
    """Instead of becoming infinite in it."""
    with pytest.raises(
        InputError, match=r"the reward of chain_1 is -?1e.*; expected a number that float32 can"
    ):
        make_batch([chain(), chain("chain_1", reward)])


@pytest.mark.parametrize("reward", [math.nan, math.inf, "1.0", [1.0]])
def test_rewards_that_are_no_finite_numbers_are_refused(reward):
    """The sentence names the chain."""
    with pytest.raises(InputError, match=r"the reward of chain_1 is .*; expected a finite number"):
        make_batch([chain(), chain("chain_1", reward)])
    with pytest.raises(InputError, match="reward 1 of the group"):
        group_advantages([1.0, reward])


async def test_trajectories_without_ids_are_refused():
    """A backend of text alone cannot be trained on; the sentence says which can."""

    class Text(BaseBackend):
        async def generate(self, request):
            yield Delta("four", finish_reason="stop")

    agent = BaseAgent(backend=Text(), reward=numeric_match)
    row = {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": 4}
    with pytest.raises(InputError, match=r"turn 1 of chain_0 has no token ids, only text; .*token_exact"):
        make_batch(await agent.run_async(1, [row], 2))


def broken(**fields):
    made = turn()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (broken(logprobs=[]), "3 token ids and 0 log-probabilities"),
        (broken(logprobs=[-1.0, math.nan, 0.0]), "a log-probability that is not finite"),
        (broken(policy_versions=[1]), "3 token ids and 1 policy versions"),
        (broken(prompt_ids=[]), "no prompt ids"),
    ],
    ids=["logprobs", "nan", "versions", "prompt"],
)
def test_turns_that_are_not_whole_are_refused(wrong, says):
    """Filled with zeros they would be trained on all the same."""
    with pytest.raises(InputError, match=f"turn 1 of chain_1 has .*{says}"):
        make_batch(pair(second=[wrong]))


@pytest.mark.parametrize(
    ("trajectories", "says"),
    [
        ([], "there are no trajectories"),
        ([chain(reward=None), chain("b", None, error="the engine died")], "says: the engine died"),
        ([chain(reward=None)], "none of the 1 chains has a reward; give the agent one"),
        ([chain(group=None)], "chain_0 has no group"),
        (["chain"], "a trajectory is str"),
    ],
    ids=["none", "all failed", "no reward", "no group", "no trajectory"],
)
def test_nothing_to_train_on_is_refused(trajectories, says):
    """In a sentence that says what is missing."""
    with pytest.raises(InputError, match=says):
        make_batch(trajectories)


@pytest.mark.parametrize("options", [{"truncation": "shorten"}, {"max_tokens": 0}])
def test_wrong_options_are_refused(options):
    """By name."""
    with pytest.raises(InputError, match=next(iter(options))):
        make_batch(pair(), **options)
