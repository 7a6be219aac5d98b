"""TRL trains on an agent's chains: the same ids, the same log-probabilities, the rows' own rewards."""

import asyncio
import math
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import ClassVar

import pytest

pytest.importorskip("trl", reason="needs the extra")

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import rollcast.train.trl as ours
from rollcast import (
    BaseAgent,
    StreamEventType,
    StreamingManager,
    StreamObserver,
    ToolError,
    numeric_match,
    tool,
)
from rollcast.errors import BackendError, InputError, RewardError, RolloutCancelledError
from rollcast.models import Sampling
from rollcast.models.hf import TransformersBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.tasks import get_task
from rollcast.testing import capture_events
from rollcast.tools import calculator
from rollcast.train.figures import rollout_figures
from rollcast.train.trl import ROW_KEY, make_rollout_func, train

pytestmark = pytest.mark.torch

TASK = get_task("arithmetic")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture
def model():
    return Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


def make_agent(model, tokenizer, agent_class=BaseAgent, **options):
    backend = TransformersBackend(model, tokenizer, cache_bytes=1 << 24)
    return agent_class(backend=backend, **{"tools": [calculator], "reward": numeric_match, **options})


def config(folder, **options):
    given = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 128,
        "learning_rate": 4e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
    }
    return GRPOConfig(str(folder), **given | options)


# -- a real training, looked at from several sides -----------------------------------------------------------------------


class Recorder(GRPOTrainer):
    """Keeps what was trained on, and what the trainer computed of it."""

    seen: ClassVar = []

    def _compute_loss(self, model, inputs):
        self._inputs = inputs
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if result[0].requires_grad:
            result[0].retain_grad()
            training = all(module.training for module in model.modules())
            self.seen.append((self.state.global_step, self._inputs, result[0], training))
        return result


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """Two epochs over four rows, two of which ask the same and have other answers; an evaluation after each."""
    model = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    rows = [row | {"tag": i} for i, row in enumerate(TASK.rows(5, seed=3))]
    rows[1] |= {"messages": rows[0]["messages"], "answer": -1}
    scored, returned = [], []

    def reward(trajectory, tag, answer, final_response):
        right = numeric_match(final_response, answer)
        scored.append((tag, answer, trajectory, right))
        return {"reward": right, "tag": tag}

    manager = StreamingManager()
    agent = make_agent(model, tokenizer, reward=reward, streaming_manager=manager)
    patch = pytest.MonkeyPatch()
    call = ours.Rollouts.__call__
    patch.setattr(ours.Rollouts, "__call__", lambda *args: returned.append(call(*args)) or returned[-1])
    patch.setattr(ours, "GRPOTrainer", Recorder)
    patch.setattr(Recorder, "seen", [])
    args = config(
        tmp_path_factory.mktemp("trl"), num_train_epochs=2, temperature=0.7, eval_strategy="epoch",
        per_device_eval_batch_size=4,
    )  # fmt: skip
    with capture_events(manager) as capture:
        trainer = train(
            agent,
            rows[:4],
            args,
            eval_rows=rows[4:],
            tokenizer=tokenizer,
            max_steps=3,
            max_tokens=64,
            name="night",
            tags=["a"],
        )
    seen = Recorder.seen
    patch.undo()
    return SimpleNamespace(
        trainer=trainer,
        rows=rows,
        scored=scored,
        returned=returned,
        seen=seen,
        events=capture.events,
        capture=capture,
    )


def test_ids_masks_and_temperature_are_those_of_the_rollout(trained):
    """At every step, the log-probabilities that the trainer computes of our ids are those that they were sampled with."""
    rollouts = {}
    for rollout in trained.returned:
        names = ("prompt_ids", "completion_ids", "env_mask", "logprobs")
        for prompt, completion, mask, logprobs in zip(*(rollout[name] for name in names), strict=True):
            rollouts.setdefault((tuple(prompt), tuple(completion)), []).append((mask, logprobs))
    compared = unequal = 0
    for _, inputs, computed, _ in trained.seen:
        for b in range(len(computed)):
            prompt = inputs["prompt_ids"][b][inputs["prompt_mask"][b].bool()].tolist()
            kept = inputs["completion_mask"][b].bool()
            candidates = rollouts[tuple(prompt), tuple(inputs["completion_ids"][b][kept].tolist())]
            assert inputs["tool_mask"][b][kept].tolist() == candidates[0][0]
            sampled = inputs["tool_mask"][b][kept].bool()
            ours_ = torch.tensor([logprobs for _, logprobs in candidates])[:, sampled]
            # The same words may have been sampled at several steps, from other weights each time.
            error = (ours_ - computed[b][kept][sampled].detach()).abs().amax(1).min()
            assert error < 1e-4
            compared += int(sampled.sum())
            unequal += int((~sampled).sum())
    assert len(trained.seen) == 4
    assert compared > 100
    assert unequal > 10  # tokens of tools and the template stood among them


def test_gradient_flows_over_sampled_tokens_alone(trained):
    """What a tool or the template wrote, and padding, has a gradient of exactly 0; what was sampled has not."""
    some = 0
    for _, inputs, computed, _ in trained.seen:
        sampled = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        assert not computed.grad[~sampled].any()
        learned = inputs["advantages"] != 0
        assert computed.grad[learned][sampled[learned]].all()
        some += int(learned.sum())
    assert some


def test_each_chain_is_scored_by_its_own_row(trained):
    """Shuffled, over two epochs, among rows that ask the same, and in evaluations: the fields are the row's."""
    counts = Counter(tag for tag, *_ in trained.scored)
    assert counts == dict.fromkeys(range(5), 8)  # four chains in each of two epochs, or evaluations
    for tag, answer, trajectory, _ in trained.scored:
        assert answer == trained.rows[tag]["answer"]
        assert trajectory.messages[0]["content"] == trained.rows[tag]["messages"][0]["content"]


def test_rewards_are_those_that_trl_logs(trained):
    """Under the reward's name, each step's mean; the agent's metrics stand beside it."""
    logs = [entry for entry in trained.trainer.state.log_history if "loss" in entry]
    train_rewards = [
        rollout["rollcast_reward"] for rollout in trained.returned if len(rollout["rollcast_reward"]) == 8
    ]
    assert [entry["rewards/reward/mean"] for entry in logs] == pytest.approx(
        [sum(r) / 8 for r in train_rewards]
    )
    assert all(entry["rollcast/failed"] == 0 for entry in logs)
    assert all(0 <= entry["rollcast/metrics/tag"] <= 3 for entry in logs)
    assert all(entry["rollcast/turns"] >= 1 for entry in logs)


def test_logs_have_the_figures_that_the_embedded_trainer_has(trained):
    """Under the same names, in TRL's logs and in the events: ends, lengths, tools, and the numbers beside the reward."""
    train_rollouts = [r for r in trained.returned if len(r["rollcast_reward"]) == 8]
    chains = [t for *_, t, _ in trained.scored]
    logs = [entry for entry in trained.trainer.state.log_history if "loss" in entry]
    steps = [e.data["metrics"] for e in trained.events if e.event_type == StreamEventType.TRAIN_STEP]
    of_training = [metrics for metrics in steps if "loss" in metrics]
    assert len(logs) == len(of_training) == len(train_rollouts) == 4
    played = {t.run_id for t in chains if t.chain_id == "chain_7"}
    runs = [run_id for run_id in dict.fromkeys(t.run_id for t in chains) if run_id in played]
    for run_id, entry, metrics in zip(runs, logs, of_training, strict=True):
        expected = rollout_figures([t for t in chains if t.run_id == run_id], ["calculator"])
        assert {name: entry[name] for name in expected} == pytest.approx(expected)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_rollouts_sample_from_the_weights_of_the_step(trained):
    """Their version is the step, and it moves with it."""
    versions = [
        {v for turn in trajectory.turns for v in turn.policy_versions}
        for _, _, trajectory, _ in trained.scored
    ]
    assert all(len(v) == 1 for v in versions)
    assert {step for step, *_ in trained.seen} == {0, 1, 2, 3}
    assert set.union(*versions) == {0, 1, 2, 3, 4}  # the last is the evaluation at the end


def test_the_model_is_in_train_mode_when_it_is_trained(trained):
    """Every module of it, right after it was sampled from."""
    assert all(training for *_, training in trained.seen)


def test_steps_are_events_and_rollouts_name_their_training(trained):
    """`train_step` has the trainer's scalars; each rollout's run is a child, and says what it was for."""
    steps = [e for e in trained.events if e.event_type == StreamEventType.TRAIN_STEP]
    losses = [e for e in steps if "loss" in e.data["metrics"]]
    assert [e.data["train_step"] for e in losses] == [1, 2, 3, 4]
    assert all(e.data["policy_version"] == e.data["train_step"] for e in steps)
    assert all(math.isfinite(value) for e in steps for value in e.data["metrics"].values())
    assert len([e for e in steps if "eval_reward" in e.data["metrics"]]) == 2
    (run_id,) = {e.run_id for e in steps}
    first, *starts = [e for e in trained.events if e.event_type == StreamEventType.RUN_START]
    assert first.run_id == run_id
    assert (first.data["name"], first.data["tags"]) == ("night", ["a"])
    starts = [start.data for start in starts]
    assert {start["parent_run_id"] for start in starts} == {run_id}
    assert Counter(start["split"] for start in starts) == {"train": 4, "eval": 2}
    assert {(s["groups"], s["chains"]) for s in starts if s["split"] == "train"} == {(2, 8)}
    assert [s["train_step"] for s in starts] == [1, 2, 2, 3, 4, 4]
    assert first.data["settings"].items() >= {"num_generations": 4, "temperature": 0.7}.items()
    assert "hub_token" not in first.data["settings"]
    trained.capture.check()


def test_a_steps_event_tells_the_advantage_of_each_chain(trained):
    """It is what the trainer multiplied the chain's log-probabilities with."""
    steps = [
        e
        for e in trained.events
        if e.event_type == StreamEventType.TRAIN_STEP and "loss" in e.data["metrics"]
    ]
    runs = [run_id for step in steps for run_id in step.data["chains"]]
    assert len(runs) == len(set(runs)) == 4
    for number, step in enumerate(steps):
        (told,) = step.data["chains"].values()
        assert len(told) == 8
        learned = torch.cat([inputs["advantages"] for at, inputs, *_ in trained.seen if at == number])
        assert sorted(chain["advantage"] for chain in told.values()) == sorted(learned.tolist())
        assert {chain["staleness"] for chain in told.values()} == {0}


def test_a_watcher_may_cancel_the_training(model, tokenizer, tmp_path):
    """It ends after the step that is under way, with a checkpoint, and its run says how."""
    agent = make_agent(model, tokenizer)

    class Canceller(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            agent.streaming_manager.drain_sync()
            agent.streaming_manager.cancel(capture.events[0].run_id)  # the training's, which began first

    with capture_events(agent.streaming_manager) as capture:
        trainer = train(
            agent, [QUESTION] * 2, config(tmp_path, max_steps=9), tokenizer=tokenizer, max_steps=1, max_tokens=8,
            callbacks=[Canceller()],
        )  # fmt: skip
    assert trainer.state.global_step == 1
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()
    assert (capture.events[-1].event_type, capture.events[-1].data["status"]) == ("run_end", "cancelled")


class Canceller(StreamObserver):
    """Ends an agent's second rollout as soon as it begins; none of its chains generates anything until then."""

    def __init__(self, agent):
        super().__init__()
        self.watched = agent.streaming_manager
        self.rollouts = []
        self.done = False
        generate = agent.generate

        async def held(request):
            if agent.backend.policy_version >= 1 and not self.done:
                await asyncio.Event().wait()
            async for delta in generate(request):
                yield delta

        agent.generate = held

    async def on_event(self, event):
        if event.event_type is StreamEventType.RUN_START and "parent_run_id" in event.data:
            self.rollouts.append(event.run_id)
            if len(self.rollouts) == 2:
                self.watched.cancel(event.run_id)
                self.done = True


def test_a_watcher_who_cancels_a_rollout_ends_the_training(model, tokenizer, tmp_path):
    """What was learned before is saved with all that resuming needs, and the runs say how they ended."""
    agent = make_agent(model, tokenizer)
    agent.streaming_manager.add_observer(Canceller(agent))
    args = config(tmp_path, max_steps=9, save_steps=50, save_strategy="steps")
    with capture_events(agent.streaming_manager) as capture:
        trainer = train(agent, [QUESTION] * 2, args, tokenizer=tokenizer, max_steps=3, max_tokens=64)
    assert trainer.state.global_step == 1
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoint-1"}
    assert (tmp_path / "checkpoint-1" / "optimizer.pt").is_file()
    ends = [e for e in capture.events if e.event_type is StreamEventType.RUN_END]
    assert [end.data["status"] for end in ends] == ["completed", "cancelled", "cancelled"]


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_a_trainer_of_ones_own_may_train_again(model, tokenizer, tmp_path):
    """Where a watcher cancels a rollout, `train` raises; the next training is a run of its own."""
    agent = make_agent(model, tokenizer)
    agent.streaming_manager.add_observer(Canceller(agent))
    rollouts = make_rollout_func(agent, [QUESTION] * 4, max_steps=3, max_tokens=64)
    trainer = GRPOTrainer(
        model=model, args=config(tmp_path, max_steps=2), processing_class=tokenizer, rollout_func=rollouts,
        train_dataset=rollouts.train_dataset, reward_funcs=rollouts.reward, callbacks=[rollouts.callback],
    )  # fmt: skip
    with capture_events(agent.streaming_manager) as capture:
        with pytest.raises(RolloutCancelledError, match="of step 1; the training ends"):
            trainer.train()
        first = rollouts.run_id
        rollouts.learn(trainer)
    statuses = {e.run_id: e.data["status"] for e in capture.events if e.event_type is StreamEventType.RUN_END}
    assert first != rollouts.run_id
    assert (statuses[first], statuses[rollouts.run_id]) == ("failed", "completed")
    assert trainer.state.global_step == 2
    capture.check()


def test_a_rollout_that_fails_loses_no_step_before_it(model, tokenizer, tmp_path):
    """Where a later rollout has no reward at all, the steps until then are saved."""
    calls = []

    def reward(trajectory):
        calls.append(trajectory)
        if len(calls) > 8:
            raise ValueError("no more")
        return float(len(calls) % 2)

    agent = make_agent(model, tokenizer, reward=reward)
    args = config(tmp_path, max_steps=9, save_steps=50, save_strategy="steps")
    with pytest.raises(RewardError, match="no more"):
        train(agent, [QUESTION] * 2, args, tokenizer=tokenizer, max_steps=1, max_tokens=8)
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()


def test_it_learns(model, tokenizer, tmp_path):
    """Rewarded for answering without a call, which it does in a third of the chains, it soon does so in nearly all."""
    agent = make_agent(model, tokenizer, reward=lambda trajectory: float(not trajectory.tool_calls))
    args = config(
        tmp_path, max_steps=8, per_device_train_batch_size=24, num_generations=8, learning_rate=2e-3
    )
    trainer = train(agent, TASK.rows(3, seed=5), args, tokenizer=tokenizer, max_steps=1, max_tokens=32)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 8
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3, rewards


# -- one rollout, and what is refused ------------------------------------------------------------------------------------


def stub(model, tokenizer, **fields):
    """What a rollout reads of a trainer."""
    return SimpleNamespace(
        **{
            "model": model,
            "accelerator": SimpleNamespace(
                unwrap_model=lambda model: model, process_index=0, num_processes=1, is_main_process=True
            ),
            "num_generations": 2,
            "state": SimpleNamespace(global_step=0),
            "args": SimpleNamespace(seed=0),
            "processing_class": tokenizer,
            "is_fsdp_enabled": False,
            "is_deepspeed_enabled": False,
            "tools": [],
            "environment_factories": None,
            "min_p": None,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_completion_length": 64,
        }
        | fields
    )


def prompts(rollouts, *numbers):
    return [rollouts.train_dataset[number]["prompt"] for number in numbers]


QUESTION = {"messages": [{"role": "user", "content": "What is 12 * 34?"}], "answer": 408}


def test_a_dataset_of_ones_own_is_matched_by_its_messages(model, tokenizer):
    """A prompt without the key is found by what it says, whatever None a dataset has put into it."""
    rows = TASK.rows(3)
    rollouts = make_rollout_func(make_agent(model, tokenizer), rows, max_tokens=4)
    own = Dataset.from_list([{"prompt": [*row["messages"]]} for row in rows])
    assert rollouts._number(own[2]["prompt"]) == 2
    assert rollouts._number([row | {"name": None} for row in own[1]["prompt"]]) == 1


def test_prompts_that_tell_no_row_are_refused(model, tokenizer):
    """Unknown ones, texts, and those of several rows that differ elsewhere; equal rows are one as good as the other."""
    agent = make_agent(model, tokenizer)
    rollouts = make_rollout_func(agent, [QUESTION, QUESTION])
    assert rollouts._number(QUESTION["messages"]) == 0
    with pytest.raises(InputError, match="'And now\\?' is not in the 2 rows"):
        rollouts._number([{"role": "user", "content": "And now?"}])
    with pytest.raises(InputError, match="is not in the 2 rows"):
        rollouts._number([QUESTION["messages"][0] | {ROW_KEY: 2}])
    with pytest.raises(InputError, match="a prompt is str; expected messages"):
        rollouts._number("What is 12 * 34?")
    rollouts = make_rollout_func(agent, [QUESTION, QUESTION | {"answer": 0}])
    with pytest.raises(InputError, match=r"rows 0 and 1 both begin with 'What is 12 [*] 34[?]'"):
        rollouts._number(QUESTION["messages"])
    assert rollouts._number(prompts(rollouts, 1)[0]) == 1


@pytest.mark.parametrize("order", [(0, 0, 1, 1), (0, 1, 1), (1,)], ids=str)
def test_rollouts_stand_in_the_order_of_their_prompts(model, tokenizer, order):
    """Also where a group is cut, as between processes."""
    rows = TASK.rows(2, seed=1)
    rollouts = make_rollout_func(make_agent(model, tokenizer), rows, max_tokens=16)
    rollout = rollouts(prompts(rollouts, *order), stub(model, tokenizer))
    shown = [tokenizer.decode(ids) for ids in rollout["prompt_ids"]]
    for text, number in zip(shown, order, strict=True):
        assert rows[number]["messages"][0]["content"] in text
    assert {len(values) for values in rollout.values()} == {len(order)}


def test_completions_are_cut_to_the_trainers_limit(model, tokenizer):
    """Ids, mask and log-probabilities alike, and the share of them is told."""
    rollouts = make_rollout_func(make_agent(model, tokenizer), [QUESTION], max_steps=3, max_tokens=64)
    rollout = rollouts(prompts(rollouts, 0, 0), stub(model, tokenizer, max_completion_length=3))
    for name in ("completion_ids", "env_mask", "logprobs"):
        assert [len(values) for values in rollout[name]] == [3, 3]
    rollout = rollouts(prompts(rollouts, *[0] * 8), stub(model, tokenizer, max_completion_length=20))
    lengths = [list(map(len, rollout[name])) for name in ("completion_ids", "env_mask", "logprobs")]
    assert lengths[0] == lengths[1] == lengths[2]
    assert max(lengths[0]) == 20
    assert 0 < rollout["rollcast_metrics"][0]["rollcast/cut"] <= lengths[0].count(20) / 8


def test_sampling_is_the_trainers(model, tokenizer):
    """Its temperature, top-p and top-k, since it computes the log-probabilities again; no more tokens than it takes."""
    rollouts = make_rollout_func(make_agent(model, tokenizer), [QUESTION], max_tokens=8)
    trainer = stub(model, tokenizer, temperature=0.7, top_p=0.9, top_k=5)
    assert rollouts._sampling(trainer) == Sampling(temperature=0.7, top_p=0.9, top_k=5, max_tokens=8)
    trainer = stub(model, tokenizer, top_p=None, top_k=None, max_completion_length=4)
    assert rollouts._sampling(trainer) == Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4)


def test_the_same_prompts_are_not_sampled_alike_twice(model, tokenizer):
    """Within one step too, where the trainer asks several times."""
    rollouts = make_rollout_func(make_agent(model, tokenizer), [QUESTION], max_tokens=32, max_steps=1)
    trainer = stub(model, tokenizer)
    first, second = (rollouts(prompts(rollouts, *[0] * 8), trainer)["completion_ids"] for _ in range(2))
    assert first != second


def test_chains_without_a_reward_are_not_trained_on(model, tokenizer):
    """TRL gets None for their reward, and a mask without a 1; the others go on."""

    def reward(ctx):
        if ctx.chain_id == "chain_1":
            raise ToolError("no")
        return 1.0

    rollouts = make_rollout_func(make_agent(model, tokenizer, reward=reward), [QUESTION], max_tokens=8)
    rollout = rollouts(prompts(rollouts, 0, 0), stub(model, tokenizer))
    assert rollout["rollcast_reward"] == [1.0, None]
    assert any(rollout["env_mask"][0])
    assert not any(rollout["env_mask"][1])
    assert rollout["completion_ids"][1]  # TRL reads its last id
    assert rollouts.reward(**{k: rollout[k] for k in rollout if k[:8] == "rollcast"}, log_metric=print) == [
        1.0,
        None,
    ]


def test_where_every_chain_fails_the_training_ends(model, tokenizer):
    """A step without anything to learn from has a cause; the error names it."""
    long = {"messages": [{"role": "user", "content": "1" * 2000}], "answer": 1}
    rollouts = make_rollout_func(make_agent(model, tokenizer), [long], max_tokens=8)
    with pytest.raises(BackendError, match="all 2 chains of step 0 failed; the first says: the prompt has"):
        rollouts(prompts(rollouts, 0, 0), stub(model, tokenizer))

    def broken():
        raise ValueError("no")

    rollouts = make_rollout_func(make_agent(model, tokenizer, reward=broken), [QUESTION], max_tokens=8)
    with pytest.raises(
        RewardError, match=r"none of the 2 chains of step 0 has .*: reward 'broken' of .*: no"
    ):
        rollouts(prompts(rollouts, 0, 0), stub(model, tokenizer))


@pytest.mark.filterwarnings("ignore:You are using .rollout_func")
def test_vllm_is_refused_before_trl_starts_an_engine(model, tokenizer, tmp_path):
    """Chains sample from the model that is trained; the sentence says so, whoever makes the trainer."""
    agent = make_agent(model, tokenizer)
    args = config(tmp_path, use_vllm=True, max_steps=1)
    with pytest.raises(InputError, match=r"has use_vllm=True, .* never used; leave use_vllm out"):
        train(agent, [QUESTION], args, tokenizer=tokenizer)
    rollouts = make_rollout_func(agent, [QUESTION])
    with pytest.raises(
        InputError, match="has use_vllm=True"
    ):  # vLLM is not installed here: it was not asked for
        GRPOTrainer(
            model=model, args=args, processing_class=tokenizer, rollout_func=rollouts, reward_funcs=rollouts.reward,
            train_dataset=rollouts.train_dataset, callbacks=[rollouts.callback],
        )  # fmt: skip


class Rewriting(BaseAgent):
    """The model reads other turns than it wrote."""

    def assistant_message(self, text, content, calls):
        return {"role": "assistant", "content": "I called the calculator."}


def test_forked_chains_are_refused_or_trained_on_their_last_segment(model, tokenizer):
    """TRL takes one sequence a rollout; the sentence says what can be done."""

    @tool
    def again(text: str) -> str:
        """Go on."""
        return "go on"

    class Calling(Rewriting):
        def parse(self, text):
            from rollcast.records import ToolCall

            return [ToolCall("", "again", {"text": "x"})]

    agent = make_agent(model, tokenizer, Calling, tools=[again], reward=lambda: 1.0)
    rollouts = make_rollout_func(agent, [QUESTION], max_steps=2, max_tokens=48)
    with pytest.raises(InputError, match=r"is not a single sequence: .* at step 2"):
        rollouts(prompts(rollouts, 0), stub(model, tokenizer))
    rollouts = make_rollout_func(agent, [QUESTION], max_steps=2, max_tokens=48, forked="last")
    rollout = rollouts(prompts(rollouts, 0), stub(model, tokenizer))
    assert all(rollout["env_mask"][0])
    assert "I called the calculator." in tokenizer.decode(rollout["prompt_ids"][0])


async def test_it_may_be_called_where_an_event_loop_runs(model, tokenizer):
    """As in a notebook: the chains get a loop on another thread."""
    rollouts = make_rollout_func(make_agent(model, tokenizer), [QUESTION], max_tokens=8)
    assert asyncio.get_running_loop()
    assert len(rollouts(prompts(rollouts, 0), stub(model, tokenizer))["prompt_ids"]) == 1


def test_the_mode_of_each_module_is_restored(model, tokenizer):
    """What was in train mode is again; what was in eval mode, such as a frozen part, is so still."""
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    rollouts = make_rollout_func(make_agent(model, tokenizer), [QUESTION], max_steps=3)
    rollouts(prompts(rollouts, 0, 0, 0), stub(model, tokenizer))
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"is_fsdp_enabled": True}, "FSDP or DeepSpeed"),
        ({"tools": [print]}, "tools or environments of its own"),
        ({"min_p": 0.1}, "min_p=0.1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
    ],
    ids=["sharded", "tools", "min_p", "penalty"],
)
def test_trainers_that_sample_otherwise_are_refused(model, tokenizer, fields, says):
    """In a sentence, before a chain runs."""
    rollouts = make_rollout_func(make_agent(model, tokenizer), [QUESTION])
    with pytest.raises(InputError, match=says):
        rollouts(prompts(rollouts, 0), stub(model, tokenizer, **fields))


def test_the_model_has_to_be_the_trainers(model, tokenizer):
    """A copy would not learn; an adapter's base model is what is inside of it."""
    rollouts = make_rollout_func(make_agent(model, tokenizer), [QUESTION], max_tokens=4)
    other = Qwen3ForCausalLM(model.config)
    with pytest.raises(InputError, match="samples from a different Qwen3ForCausalLM than the trainer trains"):
        rollouts(prompts(rollouts, 0), stub(other, tokenizer))
    adapter = SimpleNamespace(peft_config={}, get_base_model=lambda: model, training=True)
    assert rollouts(prompts(rollouts, 0), stub(adapter, tokenizer))["prompt_ids"]
    with pytest.raises(InputError, match="the agent's backend is TinyBackend"):
        make_rollout_func(BaseAgent(), [QUESTION])


def test_wrong_rows_are_refused_before_the_training(model, tokenizer):
    """The reward asks for a field that a row lacks; one conversation stands where rows should."""
    with pytest.raises(InputError, match="asks for 'answer', which row 1 lacks"):
        make_rollout_func(make_agent(model, tokenizer), [QUESTION, {"messages": QUESTION["messages"]}])
    with pytest.raises(InputError, match="rows is one conversation; expected a list of rows"):
        make_rollout_func(make_agent(model, tokenizer, reward=None), QUESTION["messages"] * 2)


def test_fewer_rows_than_a_step_takes_are_refused(model, tokenizer, tmp_path):
    """TRL would drop the incomplete batch, and end without a step and without a word."""
    with pytest.raises(InputError, match="there are 1 rows, and a step takes 2"):
        train(make_agent(model, tokenizer), [QUESTION], config(tmp_path), tokenizer=tokenizer)


def test_train_wants_a_reward_and_trls_config(model, tokenizer, tmp_path):
    """Another config of the same name is named."""
    with pytest.raises(InputError, match=r"config is a types.SimpleNamespace; expected a trl.GRPOConfig"):
        train(make_agent(model, tokenizer), [QUESTION], SimpleNamespace())
    with pytest.raises(InputError, match="the agent has no reward"):
        train(make_agent(model, tokenizer, reward=None), [QUESTION], config(tmp_path))


def test_a_training_that_fails_ends_its_run(model, tokenizer, tmp_path):
    """The error goes on, and the events say `failed`."""
    manager = StreamingManager()

    def broken(answer):
        raise ValueError("no")

    agent = make_agent(model, tokenizer, reward=broken, streaming_manager=manager)
    with capture_events(manager) as capture, pytest.raises(RewardError, match="none of the 8 chains"):
        train(agent, [QUESTION] * 2, config(tmp_path, max_steps=1), tokenizer=tokenizer, max_tokens=4)
    capture.check()
    ends = [e.data["status"] for e in capture.events if e.event_type == StreamEventType.RUN_END]
    assert ends == ["completed", "failed"]


def test_a_tokenizer_without_a_chat_template_is_refused(model, tokenizer):
    """By the backend, before there is an agent."""
    bare = AutoTokenizer.from_pretrained(CHECKPOINT)
    bare.chat_template = None
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        TransformersBackend(model, bare)


def test_without_the_extra_the_import_says_what_to_install():
    """Whichever of its packages is missing."""
    code = "import sys; sys.modules['accelerate'] = None; import rollcast.train.trl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "training with TRL needs packages that are not installed" in done.stderr
    assert "pip install 'rollcast[train]'" in done.stderr
