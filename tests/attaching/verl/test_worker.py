"""verl 0.9.1's `AgentLoopWorker` with its own agent loops, watched and not."""

import asyncio
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from verl.experimental.agent_loop import AgentLoopOutput, AgentLoopWorker

import rollcast
from rollcast import StreamingManager
from rollcast.attaching import verl_chains
from rollcast.testing import capture_events
from rollcast.train import to_verl

from .parts import Answering, make_batch, make_config

pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore"),
]  # verl and what it imports warn of much


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("verl"), **{"trainer.use_v1": False})


def make_worker(config):
    worker = AgentLoopWorker(config, Answering(config, None))
    worker.llm_client.reads = worker.tokenizer
    return worker


def plain(batch):
    """Everything that the trainer gets but times."""
    tensors = {name: value.clone() for name, value in batch.batch.items()}
    others = {name: list(value) for name, value in batch.non_tensor_batch.items()}
    return tensors, others


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    assert one[1] == other[1]


async def watched(worker, batch):
    manager, kept = StreamingManager(), []
    manager.fanout.chain_closings.append(kept.append)
    with capture_events(manager) as capture:
        handle = rollcast.attach(worker, manager=manager)
        result = await worker.generate_sequences(batch)
        await asyncio.to_thread(handle.detach)
    capture.check()
    return result, capture, kept


@pytest.mark.parametrize("loop", ["single_turn_agent", "tool_agent"])
async def test_the_trainer_gets_the_same(config, loop):
    """Every tensor and field of the batch, and the server is asked for the same."""
    without, with_it = make_worker(config), make_worker(config)
    expected = await without.generate_sequences(make_batch(loop))
    result, capture, _ = await watched(with_it, make_batch(loop))
    assert_same(plain(expected), plain(result))
    assert sorted(with_it.llm_client.asked) == sorted(without.llm_client.asked)
    assert len(capture.of("chain_end")) == 3


async def test_what_is_seen_is_what_is_trained_on(config):
    """Ids, mask and log-probabilities of a chain are those of its row in the batch."""
    worker = make_worker(config)
    result, _, kept = await watched(worker, make_batch("tool_agent"))
    rows = []
    for row in range(3):
        seen = result.batch["attention_mask"][row].bool()
        ids = result.batch["input_ids"][row][seen].tolist()
        prompts = int(result.batch["attention_mask"][row][: result.batch["prompts"].shape[1]].sum())
        mask = [0] * prompts + result.batch["response_mask"][row].tolist()[: len(ids) - prompts]
        logprobs = [0.0] * prompts + result.batch["rollout_log_probs"][row].tolist()[: len(ids) - prompts]
        rows.append((ids, mask, logprobs))
    chains = []
    for trajectory in kept:
        (segment,) = trajectory.segments
        chains.append((segment.token_ids, segment.loss_mask, segment.logprobs))
    assert sorted(chains) == sorted(rows)


async def test_turns_tools_rows_and_groups_are_seen(config):
    """With the tool's arguments and observation, and the row's answer."""
    worker = make_worker(config)
    _, capture, _ = await watched(worker, make_batch("tool_agent", sums=((1, 2), (1, 2), (13, 4))))
    (run,) = capture.of("run_start")
    assert (run.data["train_step"], run.data["split"], run.data["name"]) == (5, "train", "an-experiment")
    starts = capture.of("chain_start")
    assert [start.group_id for start in starts] == ["uid-1-2", "uid-1-2", "uid-13-4"]
    assert [start.data["index"] for start in starts] == [0, 1, 0]
    assert [start.data["reference"] for start in starts] == ["3", "3", "17"]
    calls = capture.of("tool_call_start")
    assert [call.data["arguments"] for call in calls] == [
        {"a": 1, "b": 2},
        {"a": 1, "b": 2},
        {"a": 13, "b": 4},
    ]
    seen = [(event.data["observation"], event.data["status"]) for event in capture.of("tool_observation")]
    assert sorted(seen) == [
        ("3", "success"),
        ("3", "success"),
        ("Error executing tool 'add': unlucky", "error"),
    ]
    assert {end.data["finish_reason"] for end in capture.of("chain_end")} == {"answered"}
    assert {end.data["steps"] for end in capture.of("chain_end")} == {2}


async def test_the_reward_of_verls_reward_workers_is_the_chains(config):
    """With what they say beside it as metrics."""

    async def score(data):
        length = float(data.non_tensor_batch["response_len"][0])
        return {"reward_score": length, "reward_extra_info": {"acc": length > 5}}

    worker = make_worker(config)
    worker.reward_loop_worker_handles = [SimpleNamespace(compute_score=SimpleNamespace(remote=score))]
    result, capture, _ = await watched(worker, make_batch("single_turn_agent"))
    seen = [(event.data["reward"], event.data["metrics"]) for event in capture.of("reward")]
    lengths = result.batch["response_mask"].sum(dim=1).tolist()
    assert sorted(reward for reward, _ in seen) == sorted(map(float, lengths))
    assert all(metrics == {"acc": reward > 5} for reward, metrics in seen)


class BrokenError(Exception):
    pass


def breaks(*args, **kwargs):
    raise BrokenError


@pytest.mark.parametrize(
    "name", ["begin", "turn_begins", "turn_ends", "tool_begins", "tool_ends", "reward", "end"]
)
async def test_a_fault_of_ours_does_not_reach_verl(config, monkeypatch, name):
    """The trainer's batch is the same."""
    expected = plain(await make_worker(config).generate_sequences(make_batch("tool_agent")))
    monkeypatch.setattr(verl_chains.Chains, name, breaks)
    worker = make_worker(config)
    handle = rollcast.attach(worker, manager=StreamingManager())
    result = await worker.generate_sequences(make_batch("tool_agent"))
    await asyncio.to_thread(handle.detach)
    assert_same(expected, plain(result))


async def test_an_exported_trajectory_is_an_output_of_verls(config):
    """`to_verl` has the fields of `AgentLoopOutput`, and its `as_dict` takes them."""
    worker = make_worker(config)
    _, _, kept = await watched(worker, make_batch("tool_agent"))
    for trajectory in kept:
        output = AgentLoopOutput(**to_verl(trajectory))
        assert set(to_verl(trajectory)) <= set(AgentLoopOutput.model_fields)
        fields = output.as_dict()
        (segment,) = trajectory.segments
        assert torch.cat([fields["prompts"], fields["responses"]]).tolist() == segment.token_ids
        assert np.allclose(fields["rollout_log_probs"].tolist(), segment.logprobs[len(fields["prompts"]) :])
        again = copy.deepcopy(output)
        processed = await worker._agent_loop_postprocess(
            again, False, raw_prompt=[{"role": "user", "content": "What?"}]
        )
        assert processed.response_mask.sum() == sum(segment.loss_mask)
