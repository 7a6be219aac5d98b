"""What is seen of verl's agent loops, with a stand-in that has the methods of verl 0.9.1's `AgentLoopWorker`.

The worker itself is in tests/verl, which needs an environment of its own (`make attach-verl`).
"""

import asyncio
import pickle
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer

from attaching.defects import DEFECTS, also
from rollcast import InputError, StreamingManager, attach
from rollcast.attaching import verl, verl_chains
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.testing import capture_events

TOKENIZER = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def ids_of(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


class LLMServerClient:
    """Answers with what a script says, or raises it."""

    def __init__(self, script):
        self.script = script
        self.asked = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        self.asked.append(list(prompt_ids))
        answer = self.script.pop(0)
        await asyncio.sleep(0)
        if isinstance(answer, BaseException):
            raise answer
        ids = ids_of(answer)
        return SimpleNamespace(
            token_ids=ids,
            log_probs=[-0.5] * len(ids),
            stop_reason="completed",
            extra_fields={"global_steps": 7},
        )


class AgentLoopWorker:
    """Has the methods and attributes that are hooked and read."""

    def __init__(self, loop, *script, score=1.0):
        self.loop = loop
        self.score = score
        self.llm_client = LLMServerClient(list(script))
        self.tokenizer = TOKENIZER
        self.config = SimpleNamespace(
            actor_rollout_ref=SimpleNamespace(model=SimpleNamespace(path="a-model")),
            trainer=SimpleNamespace(experiment_name="an-experiment"),
        )

    async def generate_sequences(self, step, count=1, *, validate=False, **row):
        row = {"raw_prompt": [{"role": "user", "content": "What?"}], **row}
        places = [
            {"step": step, "sample_index": 3, "rollout_n": n, "validate": validate} for n in range(count)
        ]
        tasks = [
            asyncio.create_task(
                self._run_agent_loop({"temperature": 1.0}, place, agent_name="a", trace=True, **row)
            )
            for place in places
        ]
        return await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_agent_loop(self, sampling_params, trajectory, *, agent_name, trace=True, **kwargs):
        output = await self.loop(self.llm_client, sampling_params)
        return await self._agent_loop_postprocess(output, trajectory["validate"], **kwargs)

    async def _agent_loop_postprocess(self, output, validate, **kwargs):
        output.reward_score = self.score
        output.extra_fields["reward_extra_info"] = {"acc": 1}
        return output


def output(*values):
    return SimpleNamespace(extra_fields={}, reward_score=None, values=values)


async def single_turn(client, sampling):
    answer = await client.generate("r", prompt_ids=ids_of("What?"), sampling_params=sampling)
    return output(answer.token_ids)


async def two_turns(client, sampling):
    ids = ids_of("What?")
    for between in (" And?", ""):
        answer = await client.generate("r", prompt_ids=ids, sampling_params=sampling)
        ids = [*ids, *answer.token_ids, *ids_of(between)]
    return output(ids)


async def seen(worker, *steps, **row):
    """The events of these steps, and what verl got."""
    manager, results = StreamingManager(), []
    async with asyncio.timeout(60):
        with capture_events(manager) as capture:
            handle = attach.verl(worker, manager=manager)
            for step in steps:
                results.append(await worker.generate_sequences(*step, **row))
            await asyncio.to_thread(handle.detach)
    capture.check()
    return capture, results


async def test_a_loop_is_a_chain():
    """With its prompt, its row and answer, whole turns with ids and log-probabilities, and its reward."""
    worker = AgentLoopWorker(single_turn, "Four.")
    capture, _ = await seen(worker, (7,), uid="u1", reward_model={"ground_truth": "4"}, data_source="sums")
    (run,) = capture.of("run_start")
    kept = {name: run.data[name] for name in ("model", "backend", "name", "split", "train_step")}
    assert kept == {
        "model": "a-model", "backend": "verl", "name": "an-experiment", "split": "train", "train_step": 7
    }  # fmt: skip
    (start,) = capture.of("chain_start")
    assert start.group_id == "u1"
    assert start.data["messages"] == [{"role": "user", "content": "What?"}]
    assert (start.data["reference"], start.data["row"]["data_source"]) == ("4", "sums")
    (chunk,) = capture.of("llm_generation_chunk")
    assert chunk.data["content"] == "Four."
    assert chunk.data["token_ids"] == ids_of("Four.")
    assert chunk.data["logprobs"] == [-0.5] * len(ids_of("Four."))
    (reward,) = capture.of("reward")
    assert (reward.data["reward"], reward.data["metrics"]) == (1.0, {"acc": 1})
    (end,) = capture.of("chain_end")
    assert (end.data["finish_reason"], end.data["final_response"]) == ("answered", "Four.")


async def test_what_stands_between_two_turns_is_a_message():
    """verl's prompts are whole; what is new in one is shown once."""
    kept = []
    worker = AgentLoopWorker(two_turns, "Four.", "Yes.")
    manager = StreamingManager()
    manager.fanout.chain_closings.append(kept.append)
    with capture_events(manager) as capture:
        handle = attach.verl(worker, manager=manager)
        await worker.generate_sequences(1)
        await asyncio.to_thread(handle.detach)
    capture.check()
    assert [event.data["content"] for event in capture.of("message")] == [" And?"]
    (trajectory,) = kept
    (segment,) = trajectory.segments
    assert segment.token_ids == ids_of("What?") + ids_of("Four.") + ids_of(" And?") + ids_of("Yes.")
    assert trajectory.turns[0].policy_versions == [7] * len(ids_of("Four."))


async def test_a_prompt_that_does_not_go_on_begins_a_segment():
    """As when a loop drops old turns."""
    kept = []

    async def forgetful(client, sampling):
        await client.generate("r", prompt_ids=ids_of("What?"), sampling_params=sampling)
        await client.generate("r", prompt_ids=ids_of("Again?"), sampling_params=sampling)
        return output()

    worker = AgentLoopWorker(forgetful, "Four.", "Yes.")
    manager = StreamingManager()
    manager.fanout.chain_closings.append(kept.append)
    handle = attach.verl(worker, manager=manager)
    with capture_events(manager):
        await worker.generate_sequences(1)
        await asyncio.to_thread(handle.detach)
    assert [segment.token_ids for segment in kept[0].segments] == [
        ids_of("What?") + ids_of("Four."), ids_of("Again?") + ids_of("Yes.")
    ]  # fmt: skip


async def test_requests_of_one_loop_at_once_are_chains_of_their_own():
    """The loop's chain is their parent."""

    async def fan_out(client, sampling):
        await asyncio.gather(
            *(client.generate("r", prompt_ids=ids_of("What?"), sampling_params=sampling) for _ in range(3))
        )
        return output()

    capture, _ = await seen(AgentLoopWorker(fan_out, "a", "b", "c"), (1,))
    parents = [start.data.get("parent_chain_id") for start in capture.of("chain_start")]
    assert parents == [None, "chain_0", "chain_0"]
    assert {end.data["finish_reason"] for end in capture.of("chain_end")} == {"answered"}


async def test_each_step_is_a_run_and_repeats_are_a_group():
    """Evaluations apart."""
    worker = AgentLoopWorker(single_turn, *"abcd")
    capture, _ = await seen(worker, (1, 2), (2,))
    assert [run.data["train_step"] for run in capture.of("run_start")] == [1, 2]
    assert [(start.group_id, start.data["index"]) for start in capture.of("chain_start")] == [
        ("sample_3", 0), ("sample_3", 1), ("sample_3", 0)
    ]  # fmt: skip
    kinds = [event.event_type for event in capture.events if event.event_type in ("run_start", "run_end")]
    assert kinds == ["run_start", "run_end", "run_start", "run_end"]
    capture, _ = await seen(AgentLoopWorker(single_turn, "a"), (-1,), validate=True)
    assert [(run.data["split"], run.data["train_step"]) for run in capture.of("run_start")] == [("eval", 0)]


async def test_workers_name_the_run_of_a_step_alike():
    """If a manager of ours told them which training it is; their chains have names of their own."""
    runs, chains = [], []
    for source in ("one", "two"):
        worker = AgentLoopWorker(single_turn, "a")
        worker.llm_client.rollcast_training = "training"
        manager = StreamingManager(source=source)
        with capture_events(manager) as capture:
            handle = attach.verl(worker, manager=manager)
            await worker.generate_sequences(5)
            await asyncio.to_thread(handle.detach)
        runs += [event.run_id for event in capture.of("run_start")]
        chains += [event.chain_id for event in capture.of("chain_start")]
    assert runs == ["training-train-000005"] * 2
    assert chains == ["chain_0@one", "chain_0@two"]


async def test_a_failure_of_verl_goes_on_and_ends_its_chain():
    """The exception is the very one, and siblings are not affected."""
    failure = ConnectionError("the server went away")
    capture, ((first, second),) = await seen(AgentLoopWorker(single_turn, failure, "b"), (1, 2))
    assert first is failure
    assert second.reward_score == 1.0
    assert sorted(end.data["finish_reason"] for end in capture.of("chain_end")) == ["answered", "error"]
    assert {error.data["where"] for error in capture.of("error")} == {"backend", "agent"}


async def test_a_cancelled_loop_is_cancelled():
    """And so is what it had open."""
    started = asyncio.Event()

    async def waits(client, sampling):
        started.set()
        await asyncio.Event().wait()

    worker = AgentLoopWorker(waits)
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = attach.verl(worker, manager=manager)
        task = asyncio.create_task(worker.generate_sequences(1))
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(handle.detach)
    capture.check()
    assert [end.data["finish_reason"] for end in capture.of("chain_end")] == ["cancelled"]


async def test_a_reward_that_comes_later_is_none():
    """verl may compute rewards in the trainer, after the batch."""
    capture, _ = await seen(AgentLoopWorker(single_turn, "a", score=None), (1,))
    assert capture.of("reward") == []
    assert capture.of("chain_end")[0].data["reward"] is None


async def test_detaching_leaves_the_worker_as_it_was():
    """Also while a loop runs, whose chain ends with `unknown`."""
    go_on = asyncio.Event()

    async def waits(client, sampling):
        await go_on.wait()
        return await single_turn(client, sampling)

    worker = AgentLoopWorker(waits, "a")
    before = dict(vars(worker))
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = attach.verl(worker, manager=manager)
        assert isinstance(worker.llm_client, LLMServerClient)
        task = asyncio.create_task(worker.generate_sequences(1))
        while not capture.of("chain_start"):
            await asyncio.sleep(0)
        await asyncio.to_thread(handle.detach)
        assert vars(worker) == before
        go_on.set()
        ((result,),) = [await task]
    capture.check()
    assert result.reward_score == 1.0
    assert [end.data["finish_reason"] for end in capture.of("chain_end")] == ["unknown"]


def test_a_client_that_is_sent_on_is_verls_own():
    """Another process gets what it would have got, with no hook and none of our threads."""
    worker = AgentLoopWorker(single_turn, "a")
    handle = attach.verl(worker, manager=StreamingManager())
    sent = pickle.loads(pickle.dumps(worker.llm_client))
    assert type(sent) is LLMServerClient
    assert sent.script == ["a"]
    worker.llm_client.later = 5
    handle.detach()
    assert worker.llm_client.later == 5


OURS = [
    *DEFECTS,
    *also(verl_chains.Chains, "begin", "turn_begins", "turn_ends", "reward", "end", "hold", "release"),
    *also(verl, "_begun", "_turn", ways=("raises", "returns a wrong type")),
]


@pytest.mark.parametrize("defect", OURS, ids=str)
async def test_a_fault_of_ours_does_not_reach_verl(defect):
    """It gets the same outputs, and asks the server for the same."""
    plain = AgentLoopWorker(two_turns, "a", "b", "c", "d")
    expected = [each.values for each in await plain.generate_sequences(1, 2)]
    worker = AgentLoopWorker(two_turns, "a", "b", "c", "d")
    before = dict(vars(worker))
    with defect.injected():
        handle = attach.verl(worker, manager=StreamingManager(), record=None)
        results = await worker.generate_sequences(1, 2)
        await asyncio.to_thread(handle.detach, 0.1)
    assert [each.values for each in results] == expected
    assert worker.llm_client.asked == plain.llm_client.asked
    assert vars(worker) == before


def test_what_is_no_worker_is_refused():
    """In one sentence."""
    with pytest.raises(InputError, match=r"no method _run_agent_loop\(sampling_params, …\)"):
        attach.verl(object())
