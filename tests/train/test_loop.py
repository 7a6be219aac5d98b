"""`train()`: it learns, it repeats itself to the byte, and it ends well."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import re

import msgspec
import numpy as np
import pytest

from rollcast.errors import BackendError, CheckpointError, InputError, RewardDefinitionError, RewardError
from rollcast.models.checksums import write_checksums
from rollcast.models.tiny import TinyBackend
from rollcast.observers import JSONStreamObserver
from rollcast.records import StreamEventType
from rollcast.rollout import BaseAgent, reward
from rollcast.stream import StreamObserver
from rollcast.tasks import get_task
from rollcast.testing import ScriptedBackend, capture_events
from rollcast.train import Evaluation, GRPOConfig, loop, train
from rollcast.train.batch import group_advantages
from rollcast.train.checkpoint import safetensors_bytes
from rollcast.train.questions import Questions

TASK = get_task("arithmetic")


def settings(**changed):
    small = {"steps": 2, "questions": 4, "group": 4, "eval_questions": 4, "eval_every": 0, "save_every": 0}
    return GRPOConfig(**(small | changed))


def tiny_agent(scored=TASK.reward):
    return BaseAgent(backend=TinyBackend(), tools=TASK.tools, reward=scored)


class Holding(TinyBackend):
    """Generates nothing with weights of this version or a later one: chains stay open until they are cancelled."""

    def __init__(self, version):
        super().__init__()
        self.held_from = version

    async def generate(self, request):
        if self.policy_version >= self.held_from:
            await asyncio.Event().wait()
        async for delta in super().generate(request):
            yield delta


def holding_agent(version):
    return BaseAgent(backend=Holding(version), tools=TASK.tools, reward=TASK.reward)


def saved_weights(out, step):
    return (out / f"step-{step:06d}" / "model.safetensors").read_bytes()


@reward(inline=True)
def always_the_same():
    """A reward from which nothing can be learned."""
    return 0.5


async def test_it_learns():
    """A few steps make most of the embedded model's greedy answers right."""
    result = await train(tiny_agent(), TASK, GRPOConfig(steps=8, eval_every=0, eval_questions=64))
    assert result.start.greedy < 0.7
    assert result.end.greedy > 0.8
    assert result.stopped == "steps"
    assert [progress.step for progress in result.history] == list(range(9))
    assert [progress.policy_version for progress in result.history] == list(range(9))


async def test_watching_changes_no_byte(tmp_path):
    """The same seed gives the same weights, whether nobody watches or every token goes to a file and a callback."""
    await train(tiny_agent(), TASK, settings(), out=tmp_path / "alone")
    watched = tiny_agent()
    watched.streaming_manager.add_observer(JSONStreamObserver(tmp_path / "log.jsonl"))
    with capture_events(watched.streaming_manager):
        await train(watched, TASK, settings(), out=tmp_path / "watched")
    await watched.streaming_manager.aclose()
    assert saved_weights(tmp_path / "alone", 2) == saved_weights(tmp_path / "watched", 2)
    assert (tmp_path / "log.jsonl").read_text().count("train_step") >= 2


async def test_another_seed_gives_other_weights(tmp_path):
    """The seed chooses questions, samples and minibatches."""
    await train(tiny_agent(), TASK, settings(steps=1), out=tmp_path / "a")
    await train(tiny_agent(), TASK, settings(steps=1, seed=1), out=tmp_path / "b")
    assert saved_weights(tmp_path / "a", 1) != saved_weights(tmp_path / "b", 1)


async def test_resuming_continues_as_if_never_stopped(tmp_path):
    """Two steps and two more after a resumption are four steps, to the byte, and the history is whole."""
    whole = await train(tiny_agent(), TASK, settings(steps=4), out=tmp_path / "whole")
    await train(tiny_agent(), TASK, settings(steps=2), out=tmp_path / "parts")
    rest = await train(tiny_agent(), TASK, settings(steps=4), out=tmp_path / "parts", resume=True)
    assert saved_weights(tmp_path / "whole", 4) == saved_weights(tmp_path / "parts", 4)
    assert [p.policy_version for p in rest.history] == [0, 1, 2, 3, 4]
    assert [p.metrics.get("loss") for p in rest.history] == [p.metrics.get("loss") for p in whole.history]
    assert (rest.start, rest.end) == (whole.start, whole.end)


async def test_cancelling_saves_the_last_whole_step(tmp_path):
    """Whoever cancels gets his CancelledError, and what was learned can be resumed to the same weights."""
    loop = asyncio.get_running_loop()

    def cancel_soon(progress):
        if progress.step == 2:
            loop.call_later(0.03, training.cancel)  # in the middle of the next step, or of one after it

    training = asyncio.create_task(
        train(tiny_agent(), TASK, settings(steps=50), out=tmp_path / "a", on_progress=cancel_soon)
    )
    with pytest.raises(asyncio.CancelledError):
        await training
    (step,) = (
        int(path.name[5:]) for path in (tmp_path / "a").glob("step-*") if not path.name.endswith("000000")
    )
    assert step >= 2
    await train(tiny_agent(), TASK, settings(steps=step), out=tmp_path / "b")
    assert saved_weights(tmp_path / "a", step) == saved_weights(tmp_path / "b", step)


async def test_stop_ends_training_with_a_checkpoint(tmp_path):
    """Where `stop` says so, training ends after the step, and the last evaluation is told."""
    told = []
    result = await train(
        tiny_agent(),
        TASK,
        settings(steps=50),
        out=tmp_path,
        on_progress=told.append,
        stop=lambda: len(told) == 2,
    )
    assert result.stopped == "interrupted"
    assert result.end == result.start
    assert (tmp_path / f"step-{result.history[-1].step:06d}").is_dir()


async def test_a_watcher_may_cancel(tmp_path):
    """Cancelling a rollout ends training properly, with the last whole step."""
    agent = holding_agent(1)

    def cancel_rollouts(progress):
        if progress.step == 1:
            asyncio.get_running_loop().call_later(0.01, cancel_all, agent.streaming_manager)

    def cancel_all(manager):
        for run_id in list(manager.fanout.runs):
            manager.cancel(run_id)

    with capture_events(agent.streaming_manager):
        result = await train(
            agent, TASK, settings(steps=50, questions=16), out=tmp_path, on_progress=cancel_rollouts
        )
    assert result.stopped == "interrupted"
    assert result.history[-1].step >= 1
    assert re.fullmatch(
        r"a watcher cancelled the (training, which ends after the step it was in|rollout of .*, and the training ends with it)",
        result.why,
    )


async def test_a_step_whose_chains_are_all_cancelled_ends_the_training(tmp_path):
    """Group by group: there is nothing to learn from, which is no failure of the reward, and the last whole step is saved."""
    agent = holding_agent(1)
    manager = agent.streaming_manager
    loop = asyncio.get_running_loop()
    groups = set()

    def cancel_group(run_id, group_id):
        with contextlib.suppress(InputError):  # an earlier chain of it has had it cancelled
            manager.cancel(run_id, group_id=group_id)

    class Canceller(StreamObserver):
        async def on_event(self, event):
            if event.event_type is StreamEventType.RUN_START and event.data.get("train_step") == 2:
                self.run_id = event.run_id
            elif event.event_type is StreamEventType.CHAIN_START and event.run_id == self.run_id:
                groups.add(event.group_id)
                loop.call_soon(cancel_group, event.run_id, event.group_id)

        run_id = None

    manager.add_observer(Canceller())
    with capture_events(manager) as capture:
        result = await train(agent, TASK, settings(steps=50), out=tmp_path)
    assert (result.stopped, result.history[-1].step) == ("interrupted", 1)
    assert result.why == "a watcher cancelled all 16 chains of step 2, and the training ends with them"
    ends = {event.run_id: event.data["status"] for event in capture.of("run_end")}
    assert ends[result.run_id] == "cancelled"
    assert len(groups) == 4
    assert (tmp_path / "step-000001").is_dir()


async def test_a_watcher_may_cancel_the_training_itself(tmp_path):
    """It ends after the step, as when it is told to stop."""
    agent = tiny_agent()

    def cancel(progress):
        (training,) = agent.streaming_manager.fanout.runs
        agent.streaming_manager.cancel(training)

    with capture_events(agent.streaming_manager) as capture:
        result = await train(agent, TASK, settings(steps=50), out=tmp_path, on_progress=cancel)
    assert result.stopped == "interrupted"
    assert result.why == "a watcher cancelled the training, which ends after the step it was in"
    assert len(result.history) <= 2
    end = capture.events[-1]
    assert (end.event_type, end.run_id, end.data["status"]) == ("run_end", result.run_id, "cancelled")


async def test_interrupted_before_anything_was_played(tmp_path):
    """Cancelling the first evaluation ends training before its first step, and it can be resumed with an evaluation."""
    agent = holding_agent(0)
    loop = asyncio.get_running_loop()

    class Canceller(StreamObserver):
        async def on_event(self, event):
            if event.event_type is StreamEventType.CHAIN_START:
                loop.call_soon(agent.streaming_manager.cancel, event.run_id)

    agent.streaming_manager.add_observer(Canceller())
    result = await train(agent, TASK, settings(), out=tmp_path)
    assert (result.stopped, len(result.history), result.end.questions) == ("interrupted", 1, 0)
    resumed = await train(tiny_agent(), TASK, settings(steps=1), out=tmp_path, resume=True)
    assert resumed.start.questions == 4
    assert [p.step for p in resumed.history if p.evaluation] == [0, 1]


async def test_an_interrupted_last_evaluation_is_made_up_for(tmp_path):
    """Who resumes a training that has all of its steps gets the evaluation of its last weights."""
    agent = holding_agent(1)
    evaluations = []

    class Canceller(StreamObserver):
        async def on_event(self, event):
            if event.event_type is StreamEventType.RUN_START and event.data.get("split") == "eval":
                evaluations.append(event.run_id)
                if len(evaluations) == 3:  # two before the first step
                    agent.streaming_manager.cancel(event.run_id)

    agent.streaming_manager.add_observer(Canceller())
    cut = await train(agent, TASK, settings(steps=1), out=tmp_path)
    assert (cut.stopped, len(cut.history), cut.history[-1].evaluation) == ("interrupted", 2, None)
    result = await train(tiny_agent(), TASK, settings(steps=1), out=tmp_path, resume=True)
    assert (result.stopped, len(result.history)) == ("steps", 2)
    assert result.end == result.history[-1].evaluation
    again = await train(tiny_agent(), TASK, settings(steps=1), out=tmp_path, resume=True)
    assert again.end == result.end


async def test_minutes_end_training():
    """Training ends with the step after which its time is over."""
    result = await train(tiny_agent(), TASK, settings(steps=None, minutes=1e-4))
    assert result.stopped == "minutes"
    assert len(result.history) == 2


async def test_flat_groups_teach_nothing_and_are_told(caplog):
    """Steps whose groups all are flat change no weights; after 20 in a row a warning says so."""
    agent = tiny_agent(always_the_same)
    config = settings(steps=20, questions=1, group=2, eval_questions=1)
    with caplog.at_level(logging.WARNING, "rollcast.train"):
        result = await train(agent, TASK, config)
    assert result.history[-1].policy_version == agent.backend.policy_version == 0
    assert all(p.metrics["flat_groups"] == 1 for p in result.history[1:])
    assert [record.args[1] for record in caplog.records] == [20]


async def test_a_step_that_teaches_ends_the_count_of_flat_ones(caplog, monkeypatch):
    """The warning is of steps in a row."""
    monkeypatch.setattr(loop, "_FLAT_STEPS_TO_TELL", 2)
    calls = itertools.count()

    def scored():
        call = next(calls) - 2  # the evaluations come first: one question, twice
        return float(call // 2 == 1 and call % 2)  # in the second step alone the two chains differ

    config = settings(steps=3, questions=1, group=2, eval_questions=1)
    with caplog.at_level(logging.WARNING, "rollcast.train"):
        result = await train(tiny_agent(scored), TASK, config)
    assert [p.metrics["flat_groups"] for p in result.history[1:]] == [1, 0, 1]
    assert not caplog.records


async def test_events_name_the_training_run():
    """Each step is an event under the training's run_id, and every rollout names it as its parent, with its split."""
    agent = tiny_agent()
    with capture_events(agent.streaming_manager) as capture:
        result = await train(agent, TASK, settings(), name="night", tags=["a"])
    steps = [e for e in capture.events if e.event_type is StreamEventType.TRAIN_STEP]
    assert [(e.run_id, e.data["train_step"], e.data["policy_version"]) for e in steps] == [
        (result.run_id, 1, 1),
        (result.run_id, 2, 2),
    ]
    assert steps[0].data["metrics"] == result.history[1].metrics
    capture.check()
    training, *runs = [e for e in capture.events if e.event_type is StreamEventType.RUN_START]
    assert (training.run_id, training.data["chains"]) == (result.run_id, 0)
    starts = [e.data for e in runs]
    assert {start["parent_run_id"] for start in starts} == {result.run_id}
    splits = [(start["split"], start["policy_version"]) for start in starts]
    assert splits == [("eval", 0), ("eval", 0), ("train", 0), ("train", 1), ("eval", 2), ("eval", 2)]
    assert [start["train_step"] for start in starts] == [0, 0, 1, 2, 2, 2]
    assert training.data["seed"] == settings().seed
    assert (training.data["name"], training.data["tags"]) == ("night", ["a"])
    assert training.data["settings"].items() >= {"task": TASK.name, "group": 4, "steps": 2}.items()
    names = ["finish/answered", "length/tokens_max", "tool/calculator/failed", "reward_std"]
    assert all(name in step.data["metrics"] for step in steps for name in names)


async def test_a_step_whose_groups_are_all_flat_names_its_chains():
    """So that a watcher knows to which step a rollout belongs: nothing was learned from them."""
    agent = tiny_agent(always_the_same)
    with capture_events(agent.streaming_manager) as capture:
        await train(agent, TASK, settings(steps=1, questions=1, group=2, eval_questions=1))
    (step,) = capture.of("train_step")
    (rollout,) = [e for e in capture.of("run_start") if e.data.get("split") == "train"]
    assert rollout.data["train_step"] == step.data["train_step"] == 1
    flat = {"advantage": 0.0, "staleness": 0}
    assert step.data["chains"] == {rollout.run_id: {"chain_0": flat, "chain_1": flat}}


async def test_a_steps_event_tells_the_advantage_of_each_chain():
    """Under the run that played them; 0 for those of a group whose rewards are equal."""
    agent = tiny_agent()
    with capture_events(agent.streaming_manager) as capture:
        await train(agent, TASK, settings(steps=1))
    (step,) = [e for e in capture.events if e.event_type is StreamEventType.TRAIN_STEP]
    ((run_id, told),) = step.data["chains"].items()
    rewards = {}
    for event in capture.events:
        if event.event_type is StreamEventType.REWARD and event.run_id == run_id:
            rewards.setdefault(event.group_id, {})[event.chain_id] = event.data["reward"]
    expected = {}
    for group in rewards.values():
        expected |= dict(zip(group, group_advantages(list(group.values())), strict=True))
    assert expected
    assert told.keys() == expected.keys()
    assert all(chain["staleness"] == 0 for chain in told.values())
    assert [told[name]["advantage"] for name in told] == pytest.approx([expected[name] for name in told])


async def test_evaluations_come_when_asked_for():
    """Every `eval_every` steps, and at both ends."""
    result = await train(tiny_agent(), TASK, settings(steps=5, eval_every=2))
    assert [p.step for p in result.history if p.evaluation is not None] == [0, 2, 4, 5]


async def test_learning_needs_the_embedded_model_and_a_reward():
    """What cannot be trained here is refused with the remedy."""
    scripted = BaseAgent(backend=ScriptedBackend("4"), reward=TASK.reward)
    with pytest.raises(InputError, match=r"backend is scripted.*rollcast\.train\.trl"):
        await train(scripted, TASK, settings())
    with pytest.raises(InputError, match="no reward to learn from"):
        await train(BaseAgent(backend=TinyBackend(), tools=TASK.tools), TASK, settings())
    with pytest.raises(InputError, match=r"expected a rollcast\.train\.GRPOConfig \(TRL's is for"):
        await train(tiny_agent(), TASK, object())


async def test_settings_reach_the_rollouts_and_the_batch(monkeypatch):
    """The whole distribution is sampled from, since its probabilities are those that are trained; seeds differ by step."""
    runs, batches = [], []
    prepare, make = BaseAgent.prepare, loop.make_batch
    monkeypatch.setattr(
        BaseAgent,
        "prepare",
        lambda self, *args, **options: runs.append(options) or prepare(self, *args, **options),
    )
    monkeypatch.setattr(
        loop, "make_batch", lambda *args, **options: batches.append(options) or make(*args, **options)
    )
    narrow = dataclasses.replace(TASK, sampling=msgspec.structs.replace(TASK.sampling, top_p=0.5, top_k=3))
    for seed in (0, 1):
        chosen = settings(temperature=0.9, scale_advantages=False, max_tokens=400, seed=seed)
        await train(tiny_agent(), narrow, chosen)
    played = [options for options in runs if options.get("about", {}).get("split") == "train"]
    assert len({options["seed"] for options in played}) == 4
    assert {(s.temperature, s.top_p, s.top_k) for s in (options["sampling"] for options in played)} == {
        (0.9, 1.0, 0)
    }
    assert batches == [{"version": v, "max_tokens": 400, "scale": False} for v in (0, 1, 0, 1)]


async def test_the_best_evaluation_keeps_its_checkpoint(tmp_path, monkeypatch):
    """By the sampled successes; of equal ones the later."""
    told = iter([(0.5, 0.9), (0.7, 0.1), (0.7, 0.2), (0.6, 0.9), (0.1, 0.9), (0.1, 0.9)])

    async def evaluate(self):
        sampled, greedy = next(told)
        self.history[-1] = dataclasses.replace(self.history[-1], evaluation=Evaluation(sampled, greedy, 4))
        self._note_best(self.history[-1])

    monkeypatch.setattr(loop._Training, "_evaluate", evaluate)
    await train(tiny_agent(), TASK, settings(steps=5, eval_every=1, save_every=1), out=tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-000002", "step-000004", "step-000005"]


async def test_seconds_add_up():
    """They are of the whole training, which `minutes` ends."""
    result = await train(tiny_agent(), TASK, settings(steps=3))
    spent = [p.metrics["rollout_s"] + p.metrics["update_s"] for p in result.history[1:]]
    assert [p.seconds for p in result.history] == pytest.approx([0, *itertools.accumulate(spent)])


async def test_success_is_a_reward_of_one():
    """A part of it is none."""

    def scored(ctx):
        return [0.5, 1.0, 2.0, 0.9][int(ctx.chain_id.removeprefix("chain_")) % 4]

    result = await train(tiny_agent(scored), TASK, settings(steps=1))
    metrics = result.history[1].metrics
    assert (metrics["success"], metrics["mean_reward"]) == (0.5, pytest.approx(1.1))


async def test_sequences_that_are_all_too_long_end_training():
    """The sentence says so: nothing would ever be learned, whatever the rewards are."""
    with pytest.raises(
        InputError, match=r"all 16 sequences of step 1 are too long: .* max_tokens is 3; allow"
    ):
        await train(tiny_agent(), TASK, settings(max_tokens=3))


async def test_weights_from_elsewhere_are_not_overwritten():
    """A backend whose weights were replaced is refused, since training would begin with others."""
    agent = tiny_agent()
    await agent.backend.update_weights(agent.backend.folder, 3)
    with pytest.raises(InputError, match="version 3"):
        await train(agent, TASK, settings())


async def test_a_folder_is_not_overwritten(tmp_path):
    """Checkpoints of another training are resumed or left alone, and resumed only with the same settings."""
    await train(tiny_agent(), TASK, settings(steps=1), out=tmp_path)
    with pytest.raises(InputError, match="resume it"):
        await train(tiny_agent(), TASK, settings(steps=1), out=tmp_path)
    with pytest.raises(InputError, match=r"learning_rate=0\.0006, but 0\.1"):
        await train(tiny_agent(), TASK, settings(steps=1, learning_rate=0.1), out=tmp_path, resume=True)
    other = dataclasses.replace(TASK, name="other")
    with pytest.raises(InputError, match="task 'arithmetic'"):
        await train(tiny_agent(), other, settings(steps=1), out=tmp_path, resume=True)
    (tmp_path / "step-000001" / "trainer.json").write_text('{"format": 1, "step": 1}')
    with pytest.raises(CheckpointError, match=r"trainer\.json has changed since it was saved"):
        await train(tiny_agent(), TASK, settings(steps=2), out=tmp_path, resume=True)
    await asyncio.to_thread(write_checksums, tmp_path / "step-000001")
    with pytest.raises(CheckpointError, match="lacks what training needs"):
        await train(tiny_agent(), TASK, settings(steps=2), out=tmp_path, resume=True)


async def test_two_trainings_in_one_folder_are_refused(tmp_path):
    """The second one, while the first is under way, which is not disturbed."""
    pytest.importorskip("fcntl", reason="where folders can be locked")
    begun, refused = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(
        train(
            tiny_agent(), TASK, settings(steps=9999), out=tmp_path,
            on_progress=lambda progress: progress.step and begun.set(), stop=refused.is_set,
        )
    )  # fmt: skip
    await begun.wait()
    try:
        with pytest.raises(InputError, match="another training is writing to"):
            await train(tiny_agent(), TASK, settings(), out=tmp_path, resume=True)
    finally:
        refused.set()
        result = await first
    assert result.stopped == "interrupted"
    assert (tmp_path / f"step-{result.history[-1].step:06d}").is_dir()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("trainer.json", {"history": []}, "its history is empty"),
        ("trainer.json", {"config": {"steps": 0}}, "steps is 0"),
        ("trainer.state", {"moments": np.zeros((2, 5)), "counts": np.zeros(2)}, r"shape \(2, 5\); expected"),
    ],
)
async def test_a_checkpoint_that_does_not_fit_is_told(tmp_path, name, content, says):
    """It is whole, by its checksums too, and somebody has changed it: the sentence names it."""
    await train(tiny_agent(), TASK, settings(steps=1), out=tmp_path)
    path = tmp_path / "step-000001" / name
    if name == "trainer.json":
        path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | content))
    else:
        path.write_bytes(safetensors_bytes(content))
    await asyncio.to_thread(write_checksums, path.parent)
    with pytest.raises(CheckpointError, match=rf"step-000001 lacks what training needs \(.*{says}"):
        await train(tiny_agent(), TASK, settings(steps=2), out=tmp_path, resume=True)


async def test_resume_needs_a_folder():
    """There is nothing to resume from without one."""
    with pytest.raises(InputError, match="give out"):
        await train(tiny_agent(), TASK, settings(), resume=True)


async def test_a_step_whose_chains_all_fail_ends_training():
    """The first failure is told, instead of learning from nothing."""
    agent = tiny_agent()

    def breaks(_):
        agent.generate = broken

    with pytest.raises(BackendError, match=r"all 16 chains of step 1 failed; the first says: .*no power"):
        await train(agent, TASK, settings(), on_progress=breaks)
    agent.generate = broken
    with pytest.raises(BackendError, match=r"all 4 chains of the evaluation after step 0 failed; .*no power"):
        await train(agent, TASK, settings())


@pytest.mark.parametrize(
    ("given", "says"), [("good", "returned str; expected a finite"), (float("nan"), "returned nan")]
)
async def test_a_reward_that_never_gives_a_number_ends_training(given, says):
    """Before the first step, and with what is wrong with it: there is a reward, and it does not work."""

    def wrong():
        return given

    with pytest.raises(RewardError, match=f"none of the 4 chains of the evaluation .* 'wrong' .*{says}"):
        await train(tiny_agent(wrong), TASK, settings())


async def test_a_reward_that_asks_for_what_no_row_has_leaves_nothing_behind(tmp_path):
    """It is refused before the folder is made, so that the next attempt may have it."""

    def of_colour(colour):
        return 1.0

    with pytest.raises(RewardDefinitionError, match="'colour', which no row has"):
        await train(tiny_agent(of_colour), TASK, settings(), out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


async def broken(request):
    raise BackendError("no power")
    yield


def test_held_out_questions_are_never_trained_on():
    """A small task of 300 different questions keeps those that it evaluates on."""

    def question(rng):
        return {"messages": [{"role": "user", "content": str(rng.randrange(300))}], "answer": 0}

    questions = Questions(dataclasses.replace(TASK, question=question), seed=0, held_out=64)
    kept = {row["messages"][0]["content"] for row in questions.evaluated}
    assert questions.held_out
    for step in range(50):
        drawn = [row["messages"][0]["content"] for row in questions.of_step(step, 16)]
        assert len(drawn) == 16
        assert not kept & set(drawn)
    assert questions.of_step(3, 16) == questions.of_step(3, 16) != questions.of_step(4, 16)


def test_a_task_of_few_questions_holds_none_out():
    """Where all of them are evaluated on, training sees them too, and the evaluation says so."""

    def question(rng):
        return {"messages": [{"role": "user", "content": "Guess."}], "answer": rng.randint(1, 15)}

    questions = Questions(dataclasses.replace(TASK, question=question), seed=0, held_out=128)
    assert not questions.held_out
    assert len(questions.of_step(0, 16)) == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither of steps and minutes"),
        ({"steps": 1, "minutes": 1}, "both of steps and minutes"),
        ({"steps": 0}, "steps is 0; expected a whole number from 1"),
        ({"minutes": float("inf")}, "minutes is inf"),
        ({"steps": 1, "group": 1}, "group is 1; expected a whole number from 2"),
        ({"steps": 1, "questions": True}, "questions is True"),
        ({"steps": 1, "learning_rate": 0}, "learning_rate is 0"),
        ({"steps": 1, "clip_low": 1.5}, "clip_low is 1.5"),
        ({"steps": 1, "entropy_bonus": -0.1}, "entropy_bonus is -0.1; expected a number from 0"),
        ({"steps": 1, "entropy_bonus": True}, "entropy_bonus is True"),
        ({"steps": 1, "scale_advantages": "no"}, "scale_advantages is 'no'"),
        ({"steps": 1, "seed": -1}, "seed is -1"),
    ],
)
def test_settings_are_checked(given, message):
    """A value out of its range is refused where it is given."""
    with pytest.raises(InputError, match=message):
        GRPOConfig(**given)


def test_settings_survive_json():
    """They come back equal, as a checkpoint keeps them."""
    config = settings(temperature=0.9)
    assert msgspec.json.decode(msgspec.json.encode(config), type=GRPOConfig) == config


def test_an_evaluation_is_of_held_out_questions_unless_it_says_otherwise():
    """The field that tells has its usual value."""
    assert Evaluation(0.5, 0.25, 4).held_out
    assert np.isclose(Evaluation(0.5, 0.25, 4).sampled, 0.5)
