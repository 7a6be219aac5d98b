"""A trainer of TRL that is attached trains as if it were not, and what it does is seen."""

import asyncio
import gc
import logging
import os
import threading
import weakref
from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import ClassVar

import pytest

pytest.importorskip("trl", reason="needs the extra")

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from attaching.defects import DEFECTS, also
from attaching.trl_trainings import data, is_equal, new_trainer, one_thread, outcome, shortness
from rollcast import InputError, attach
from rollcast.attaching import trl_hooks, trl_tokens
from rollcast.attaching.trl_batch import Batch
from rollcast.attaching.trl_training import Training
from rollcast.records import StreamEventType
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

T = StreamEventType


async def even(completions, **_):
    """A reward that is a coroutine, and that has no opinion of texts of odd length."""
    await asyncio.sleep(0)
    texts = [completion[0]["content"] for completion in completions]
    return [None if len(text) % 2 else float("tool_call" in text) for text in texts]


class Recorder(GRPOTrainer):
    """Keeps what each generation batch came to, as the trainer has it."""

    batches: ClassVar = []

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        ids = [
            row[mask.bool()].tolist()
            for row, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
        ]
        split = "train" if self.model.training else "eval"
        self.batches.append((split, self.state.global_step, ids, output["advantages"].tolist()))
        return output


# An optimizer step takes two batches, a generation batch serves four of them, and an evaluation comes after the second step.
BUFFERED = {
    "max_steps": 3, "max_completion_length": 16, "steps_per_generation": 2, "gradient_accumulation_steps": 2, "num_iterations": 2, "eval_strategy": "steps",
    "eval_steps": 2, "per_device_eval_batch_size": 4, "reward_weights": [2.0, 0.5],
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_threads():
    with one_thread():
        yield


@one_thread()
def trained(folder, watched, kind=GRPOTrainer, detach_within=None, tokens=True, **options):
    """Train, attached or not; return the outcome, the trainer, and the events."""
    manager = StreamingManager()
    trainer = new_trainer(folder, kind, **options)
    with capture_events(manager) as capture:
        handle = attach.trl(trainer, manager=manager, tokens=tokens) if watched else None
        trainer.train()
        if handle is not None:
            handle.detach(detach_within)
    return SimpleNamespace(outcome=outcome(trainer), trainer=trainer, capture=capture, events=capture.events)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The same training twice: by itself, and attached."""
    parts = {"eval_dataset": data(2)}
    options = {"rewards": (shortness, even), "parts": parts, **BUFFERED}
    alone = trained(tmp_path_factory.mktemp("alone"), False, Recorder, **options)
    by_itself = list(Recorder.batches)
    Recorder.batches.clear()
    both = trained(tmp_path_factory.mktemp("attached"), True, Recorder, **options)
    both.alone, both.batches = alone.outcome, list(Recorder.batches)
    assert both.batches == by_itself
    both.starts = [event for event in both.events if event.event_type is T.RUN_START]
    both.of_run = defaultdict(list)
    for event in both.events:
        both.of_run[event.run_id].append(event)
    return both


def test_weights_and_logs_are_those_of_an_unattached_training(seen):
    """They are equal to the bit."""
    assert is_equal(seen.outcome, seen.alone)


def test_events_obey_the_grammar(seen):
    """Also in a training in which generations, evaluations and steps interleave."""
    seen.capture.check()


def test_each_generation_batch_is_a_run_of_the_training(seen):
    """With its split, the step that it is for, and the version of the weights that sampled it."""
    training, *batches = seen.starts
    assert training.data["agent"] == "Recorder"
    assert training.data["settings"]["num_iterations"] == 2
    assert {start.data["parent_run_id"] for start in batches} == {training.run_id}
    told = [(start.data["split"], start.data["policy_version"]) for start in batches]
    assert told == [(split, step) for split, step, _, _ in seen.batches]
    assert {start.data["train_step"] - start.data["policy_version"] for start in batches if start.data["split"] == "train"} == {1}  # fmt: skip


def test_ids_are_those_that_are_trained_on(seen):
    """Each row's chunks have the ids that the trainer's batch has, one token at a time."""
    for start, (_, _, ids, _) in zip(seen.starts[1:], seen.batches, strict=True):
        shown = defaultdict(list)
        for event in seen.of_run[start.run_id]:
            if event.event_type is T.LLM_GENERATION_CHUNK:
                assert len(event.data["token_ids"]) == 1
                shown[event.chain_id] += event.data["token_ids"]
        assert [shown[f"chain_{i}"] for i in range(len(ids))] == ids


def test_chunks_put_together_are_the_text(seen):
    """And it is what reward functions get."""
    for events in seen.of_run.values():
        pieces = defaultdict(str)
        for event in events:
            if event.event_type is T.LLM_GENERATION_CHUNK:
                pieces[event.chain_id] += event.data["content"]
            elif event.event_type is T.CHAIN_END:
                assert pieces[event.chain_id] == event.data["final_response"]


def test_rows_and_groups_are_those_of_the_data_set(seen):
    """Four generations of each prompt are a group, and its answer is the reference."""
    start = seen.starts[1]
    chains = [event for event in seen.of_run[start.run_id] if event.event_type is T.CHAIN_START]
    assert (start.data["chains"], start.data["groups"]) == (8, 2)
    assert Counter(event.group_id for event in chains) == {"group_0": 4, "group_1": 4}
    assert [event.data["index"] for event in chains] == [0, 1, 2, 3, 0, 1, 2, 3]
    questions = {row["prompt"][-1]["content"]: row["answer"] for row in data()}
    assert all(questions[e.data["messages"][-1]["content"]] == e.data["reference"] for e in chains)


def test_rewards_are_those_that_trl_weighs(seen):
    """Each function's value is a metric, one that gave None is left out, and the reward is their weighted sum."""
    weights = dict(zip(("shortness", "even"), BUFFERED["reward_weights"], strict=True))
    rewards = [event for event in seen.events if event.event_type is T.REWARD]
    assert {tuple(event.data["metrics"]) for event in rewards} == {("shortness",), ("shortness", "even")}
    for event in rewards:
        total = sum(weights[name] * value for name, value in event.data["metrics"].items())
        assert event.data["reward"] == pytest.approx(total)
    logged = seen.trainer.state.log_history[0]["reward"]
    first = [e.data["reward"] for e in seen.of_run[seen.starts[1].run_id] if e.event_type is T.REWARD]
    assert sum(first) / len(first) == pytest.approx(logged)


def test_steps_tell_trls_figures_and_the_advantages_of_their_chains(seen):
    """A generation batch that serves several steps is told with the first of them."""
    steps = [event for event in seen.events if event.event_type is T.TRAIN_STEP]
    logs = [log for log in seen.trainer.state.log_history if "loss" in log or "eval_loss" in log]
    assert len(steps) == len(logs)
    for event, log in zip(steps, logs, strict=True):
        assert event.data["train_step"] == log["step"]
        numbers = {n: v for n, v in log.items() if n not in ("step",) and isinstance(v, int | float)}
        assert event.data["metrics"] == numbers
    told = [event.data["chains"] for event in steps if "chains" in event.data]
    advantages = [values for split, _, _, values in seen.batches if split == "train"]
    assert [
        [chain["advantage"] for chain in chains.values()] for of_step in told for chains in of_step.values()
    ] == [pytest.approx(values) for values in advantages]


def test_every_run_is_completed(seen):
    """And the training is the last to end."""
    ends = [event for event in seen.events if event.event_type is T.RUN_END]
    assert {event.data["status"] for event in ends} == {"completed"}
    assert len(ends) == len(seen.starts)
    assert ends[-1].run_id == seen.starts[0].run_id


def test_detached_the_trainer_has_no_hook_left(seen, tmp_path):
    """Its attributes and its callbacks are those that it had."""
    trainer = new_trainer(tmp_path)
    attributes, callbacks = dict(vars(trainer)), list(trainer.callback_handler.callbacks)
    handle = attach(trainer, record=None)
    assert trainer.callback_handler.callbacks != callbacks
    handle.detach()
    assert trainer.callback_handler.callbacks == callbacks
    assert vars(trainer) == attributes


def test_a_trainer_that_nobody_detached_is_not_kept_alive(tmp_path):
    """Nor its model, which may be large."""
    trainer = new_trainer(tmp_path)
    attach(trainer, record=None)
    gone = weakref.ref(trainer), weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert [what() for what in gone] == [None, None]


def test_tokens_are_seen_while_they_are_sampled(tmp_path):
    """The model waits in the middle of a generation until a watcher has a token of it."""
    trainer = new_trainer(tmp_path, max_steps=1)
    manager = StreamingManager()
    came, waited = threading.Event(), []

    def forward(*_):
        if not trainer.model.training or not torch.is_grad_enabled():
            calls.append(1)
        if len(calls) == 3:
            waited.append(came.wait(60))

    calls = []
    with capture_events(manager) as capture:
        take = capture.on_event

        async def on_event(event):
            await take(event)
            if event.event_type is T.LLM_GENERATION_CHUNK:
                came.set()

        capture.on_event = on_event
        handle = attach(trainer, manager=manager)
        trainer.model.register_forward_pre_hook(forward)
        trainer.train()
        handle.detach()
    assert waited[0]


def test_completions_that_are_cut_say_so(tmp_path):
    """Without an id that ends it, a generation is cut by its length, and so is its chain."""
    seen = trained(tmp_path, True, max_steps=1, max_completion_length=2)
    ends = [event.data["finish_reason"] for event in seen.events if event.event_type is T.LLM_GENERATION_END]
    chains = [event.data["finish_reason"] for event in seen.events if event.event_type is T.CHAIN_END]
    assert ends == ["length"] * 4
    assert chains == ["max_tokens"] * 4


def test_prompts_may_be_plain_text(tmp_path):
    """They are shown as a user's message; completions are text then."""

    def length(completions, **_):
        return [float(len(text)) for text in completions]

    dataset = data().map(lambda row: {"prompt": row["prompt"][0]["content"]})
    parts = {"train_dataset": dataset}
    seen = trained(tmp_path, True, tokens=False, max_steps=1, rewards=(length,), parts=parts)
    assert (
        len([event for event in seen.events if event.event_type is T.LLM_GENERATION_CHUNK]) == 4
    )  # not asked for one by one
    start = next(event for event in seen.events if event.event_type is T.CHAIN_START)
    end = next(e for e in seen.events if e.event_type is T.CHAIN_END and e.chain_id == start.chain_id)
    assert start.data["messages"][0]["role"] == "user"
    assert end.data["reward"] == len(end.data["final_response"])


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_a_rollout_func_is_shown_by_its_mask(tmp_path):
    """Each part that the model sampled is a turn, with the log-probabilities that were returned; what stands between is its prompt."""
    ids, mask = [60, 61, 80, 81, 62], [1, 1, 0, 0, 1]

    def rollout(prompts, trainer):
        end = trainer.processing_class.eos_token_id
        count = len(prompts)
        return {
            "prompt_ids": [[70, 71]] * count,
            "completion_ids": [[*ids, end]] * count,
            "logprobs": [[-0.1, -0.2, 0.0, 0.0, -0.3, -0.4]] * count,
            "env_mask": [[*mask, 1]] * count,
        }

    seen = trained(tmp_path, True, max_steps=1, parts={"rollout_func": rollout})
    seen.capture.check()
    chunks = [e for e in seen.events if e.event_type is T.LLM_GENERATION_CHUNK and e.chain_id == "chain_0"]
    assert [event.data["token_ids"][:2] for event in chunks] == [
        [60, 61],
        [62, seen.trainer.processing_class.eos_token_id],
    ]
    assert [event.data["logprobs"] for event in chunks] == [[-0.1, -0.2], [-0.3, -0.4]]


def test_beams_are_sampled_as_before_and_shown_when_whole(tmp_path):
    """Beam search refuses a streamer, so it gets none."""
    options = {"max_steps": 1, "generation_kwargs": {"num_beams": 2}}
    alone = trained(tmp_path, False, **options)
    seen = trained(tmp_path, True, **options)
    assert is_equal(alone.outcome, seen.outcome)
    chunks = [event for event in seen.events if event.event_type is T.LLM_GENERATION_CHUNK]
    assert len(chunks) == 4
    seen.capture.check()


def test_continuous_batching_is_shown_when_it_is_whole(tmp_path):
    """transformers refuses a streamer there."""
    pool = {"num_blocks": 64, "block_size": 16, "max_batch_tokens": 128}
    options = {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": pool,
        "max_steps": 1,
    }
    seen = trained(tmp_path, True, **options)
    kinds = Counter(event.event_type for event in seen.events)
    assert kinds[T.LLM_GENERATION_CHUNK] == kinds[T.REWARD] == 4
    seen.capture.check()


def test_a_resumed_training_is_the_same_too(tmp_path):
    """It goes on from a checkpoint of the unattached training, and its run says the step at which it begins."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    alone = trained(tmp_path, False, **options)
    trainer = new_trainer(tmp_path, **options)
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = attach(trainer, manager=manager)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        handle.detach()
    weights, _ = outcome(trainer)  # transformers' mean loss is not that of all steps, with us or without
    assert is_equal((alone.outcome[0], []), (weights, []))
    assert capture.of("run_start")[0].data["policy_version"] == 2
    assert [event.data["train_step"] for event in capture.of("train_step")] == [3, 4]
    capture.check()


def test_rloo_is_watched_too(tmp_path):
    """Its tokens, its rewards and its steps, with the same weights."""
    options = {"kind": RLOOTrainer, "config_kind": RLOOConfig}
    alone = trained(tmp_path, False, **options)
    seen = trained(tmp_path, True, **options)
    assert is_equal(alone.outcome, seen.outcome)
    kinds = Counter(event.event_type for event in seen.events)
    assert kinds[T.LLM_GENERATION_CHUNK] > kinds[T.CHAIN_START] == kinds[T.REWARD] == 8
    assert kinds[T.TRAIN_STEP] == 2
    seen.capture.check()


def test_an_evaluation_by_itself_is_a_run(tmp_path):
    """Nobody said that a training begins; the evaluation's figures have a run all the same, which ends with it."""
    trainer = new_trainer(tmp_path, parts={"eval_dataset": data(2)}, per_device_eval_batch_size=4)
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = attach(trainer, manager=manager)
        trainer.evaluate()
        handle.detach()
    capture.check()
    starts, ends = capture.of("run_start"), capture.of("run_end")
    assert [start.data.get("split") for start in starts] == [None, "eval", "eval"]
    assert {end.data["status"] for end in ends} == {"completed"}
    assert len(capture.of("train_step")) == 1


# -- what goes wrong -----------------------------------------------------------------------------------------------------


def test_a_reward_function_that_raises_ends_the_run_as_failed(tmp_path):
    """The exception is the trainer's own, unchanged; the chains tell which part of the step it came from."""

    def broken(**_):
        raise LookupError("no such row")

    trainer = new_trainer(tmp_path, rewards=(broken,))
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = attach(trainer, manager=manager)
        with pytest.raises(LookupError, match="no such row"):
            trainer.train()
        handle.detach()
    capture.check()
    assert {event.data["status"] for event in capture.of("run_end")} == {"failed"}
    assert {event.data["finish_reason"] for event in capture.of("chain_end")} == {"error"}
    (error,) = capture.of("error")
    assert error.data["where"] == "reward"
    assert "no such row" in error.data["error"]


def test_a_reward_that_is_no_finite_number_is_an_error_of_its_chain(tmp_path):
    """TRL trains on it; a reward in an event is a finite number."""

    def endless(completions, **_):
        return [float("inf"), 1.0, 1.0, 1.0]

    seen = trained(tmp_path, True, max_steps=1, rewards=(endless,))
    (error,) = [event for event in seen.events if event.event_type is T.ERROR]
    assert (error.chain_id, error.data["where"]) == ("chain_0", "reward")
    assert len([event for event in seen.events if event.event_type is T.REWARD]) == 3
    seen.capture.check()


class Detacher(TrainerCallback):
    handle = None

    def on_step_end(self, args, state, control, **_):
        self.handle.detach()


def test_detached_in_the_middle_the_training_goes_on(tmp_path):
    """What was open is closed, and the weights are those of a training by itself."""
    alone = trained(tmp_path, False)
    trainer = new_trainer(tmp_path)
    manager, detacher = StreamingManager(), Detacher()
    trainer.add_callback(detacher)
    with capture_events(manager) as capture:
        detacher.handle = attach(trainer, manager=manager)
        trainer.train()
    assert is_equal(alone.outcome, outcome(trainer))
    capture.check()
    assert len(capture.of("run_start")) == len(capture.of("run_end")) == 2


def test_attached_twice_the_handle_is_the_first(tmp_path):
    """So nothing is seen twice."""
    trainer = new_trainer(tmp_path)
    handle = attach(trainer, record=None)
    assert attach(trainer, record=None) is handle
    handle.detach()


def test_rollcasts_own_rollouts_are_shown_already(tmp_path):
    """The sentence says where."""
    from rollcast import BaseAgent
    from rollcast.models.hf import TransformersBackend
    from rollcast.train.trl import make_rollout_func

    trainer = new_trainer(tmp_path)
    agent = BaseAgent(
        backend=TransformersBackend(trainer.model, trainer.processing_class), reward=lambda: 1.0
    )
    trainer.rollout_func = make_rollout_func(agent, [{"messages": [{"role": "user", "content": "Hi"}]}])
    with pytest.raises(InputError, match=r"rollout_func is Rollcast's own, .* leave attach out"):
        attach(trainer, record=None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": 1}, "tokens is int; expected True or False"),
        ({"name": 3}, "name is int; expected text"),
        ({"tags": "night"}, "tags is str; expected a list of texts"),
    ],
)
def test_options_are_checked(options, says, tmp_path):
    """Before anything is attached."""
    trainer = new_trainer(tmp_path)
    before = dict(vars(trainer))
    with pytest.raises(InputError, match=says):
        attach.trl(trainer, record=None, **options)
    assert vars(trainer) == before


class OtherVersion(GRPOTrainer):
    """As a later TRL might be: a turn is generated by a method with other parameters."""

    def _generate_single_turn(self, ids, *rest, **more):
        return super()._generate_single_turn(ids, *rest, **more)


def test_an_unknown_trainer_is_attached_as_far_as_it_goes(tmp_path, caplog):
    """Whole chains, rewards and steps; it says once what is missing."""
    alone = trained(tmp_path, False)
    seen = trained(tmp_path, True, OtherVersion)
    assert is_equal(alone.outcome, seen.outcome)
    kinds = Counter(event.event_type for event in seen.events)
    assert kinds[T.LLM_GENERATION_CHUNK] == kinds[T.CHAIN_END] == kinds[T.REWARD] == 8
    assert kinds[T.TRAIN_STEP] == 2
    seen.capture.check()
    (said,) = [record.getMessage() for record in caplog.records if "as TRL 1.16 has" in record.getMessage()]
    assert said.startswith("this OtherVersion has no _generate_single_turn")


# -- defects of ours -----------------------------------------------------------------------------------------------------

ALL = [
    *DEFECTS,
    *also(Batch, "prompts", "turn_begins", "tokens", "turn_ends", "completed", "rewards", "end"),
    *also(Training, "begin", "log"),
    *also(trl_hooks, "_copied", ways=("raises", "returns a wrong type")),
    *also(trl_hooks.TrainerHooks, "_about_batch", "_advantages", ways=("raises", "returns a wrong type")),
    *also(trl_tokens, "_Streamer", ways=("raises",)),
]
SOME = [
    *also(Batch, "tokens", ways=("raises", "hangs")),
    *also(Training, "log", ways=("raises",)),
    *also(trl_hooks, "_named", ways=("raises", "returns a wrong type")),
    *also(trl_tokens, "_can_stream", ways=("raises",)),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"), False, max_steps=1).outcome


# `make attach-trl` injects all of them, each of which takes a training.
@pytest.mark.parametrize("defect", SOME + (ALL if "ROLLCAST_TRL_DEFECTS" in os.environ else []), ids=str)
def test_a_defect_of_ours_changes_nothing_in_the_training(defect, alone, tmp_path, caplog):
    """Whatever our own code does, in the trainer's threads or in ours, weights and logs are equal to the bit."""
    with caplog.at_level(logging.ERROR, "rollcast.attach"), defect.injected():
        seen = trained(tmp_path, True, max_steps=1, detach_within=0.1 if defect.way == "hangs" else None)
    assert is_equal(alone, seen.outcome)
    said = [record for record in caplog.records if "steps aside" in record.getMessage()]
    assert len(said) <= 1
    if defect in SOME and defect.way == "raises":
        assert len(said) == 1
