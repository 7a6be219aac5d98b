"""Trajectories in the shapes of TRL, verl and ATIF."""

import json

import pytest
from jsonschema import Draft202012Validator

from rollcast import BaseAgent
from rollcast.errors import InputError
from rollcast.records import Trajectory
from rollcast.records.trajectory import Turn
from rollcast.testing import ScriptedBackend
from rollcast.tools import calculator
from rollcast.train import make_batch, to_atif, to_trl, to_verl

CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "2 + 2"}}</tool_call>'
BROKEN = '<tool_call>{"name": "calculator", "arguments": {"expression": </tool_call>'
ROW = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
    ],
    "answer": 4,
}


async def run(script, agent_class=BaseAgent, messages=None):
    agent = agent_class(
        backend=ScriptedBackend(script), tools=[calculator], reward=lambda: {"reward": 1.0, "neat": 0.5}
    )
    row = ROW if messages is None else ROW | {"messages": messages}
    (t,) = await agent.run_async(4, [row], seed=1)
    return t


class Forgetful(BaseAgent):
    """The model does not read again what it wrote before its call: each turn begins a segment."""

    def assistant_message(self, text, content, calls):
        return {**super().assistant_message(text, content, calls), "content": ""}


async def forked():
    t = await run([f"Let me see. {CALL}", "The answer is 4."], Forgetful)
    assert len(t.segments) == 2
    return t


# -- TRL and verl ------------------------------------------------------------------------------------------------------


async def test_a_rollout_of_trl_is_the_sequence_after_the_first_prompt():
    """Prompt and completion join to the ids; the mask is the chain's, and log-probabilities stand beside their tokens."""
    t = await run([CALL, "The answer is 4."])
    rollout = to_trl([t, t])
    assert set(rollout) == {"prompt_ids", "completion_ids", "logprobs", "env_mask"}
    for prompt, completion, mask, logprobs in zip(
        rollout["prompt_ids"],
        rollout["completion_ids"],
        rollout["env_mask"],
        rollout["logprobs"],
        strict=True,
    ):
        assert prompt + completion == t.token_ids
        assert [0] * len(prompt) + mask == t.loss_mask
        assert [0.0] * len(prompt) + logprobs == t.logprobs
        assert mask[0] == 1  # a completion begins with what the model said
        assert 0 in mask  # and holds what the tool said


async def test_a_forked_chain_is_no_rollout_unless_its_last_segment_will_do():
    """The sentence says where it forked and what can be done; the last segment is what a batch has of it."""
    t = await forked()
    with pytest.raises(InputError, match=r"chain_0 is not a single sequence: .* at step 2, .*forked='last'"):
        to_trl([t])
    with pytest.raises(InputError, match="chain_0 is not a single sequence"):
        to_verl(t)
    rollout = to_trl([t], forked="last")
    assert rollout["prompt_ids"][0] + rollout["completion_ids"][0] == t.segments[1].token_ids
    assert all(rollout["env_mask"][0])
    with pytest.raises(InputError, match="forked is 'first'"):
        to_trl([t], forked="first")


async def test_verl_gets_the_fields_of_its_output():
    """Those of `AgentLoopOutput` without a default are there, and the three lists of a response are equally long."""
    t = await run([CALL, "The answer is 4."])
    output = json.loads(json.dumps(to_verl(t)))
    assert output["prompt_ids"] + output["response_ids"] == t.token_ids
    assert [0] * len(output["prompt_ids"]) + output["response_mask"] == t.loss_mask
    assert len(output["response_logprobs"]) == len(output["response_mask"])
    assert len(output["extra_fields"]["policy_versions"]) == len(output["response_mask"])
    assert (output["reward_score"], output["num_turns"]) == (1.0, 4)
    assert set(output["metrics"]) == {"generate_sequences", "tool_calls"}
    known = (
        "prompt_ids response_ids response_mask response_logprobs reward_score num_turns metrics extra_fields"
    )
    assert set(output) == set(known.split())


@pytest.mark.parametrize("export", [to_verl, lambda t: to_trl([t])], ids=["verl", "trl"])
def test_what_a_trainer_cannot_use_is_refused(export):
    """No samples, no ids, no log-probabilities, no prompt: each in a sentence."""
    t = Trajectory("run", "chain_0", "group_0", error="the prompt is too long")
    with pytest.raises(InputError, match="chain_0 has sampled nothing \\(the prompt is too long\\)"):
        export(t)
    t.turns = [Turn(1, pieces=["four"], completion_tokens=1)]
    with pytest.raises(InputError, match="turn 1 of chain_0 has 1 tokens, 0 token ids"):
        export(t)
    t.turns = [Turn(1, [1], [2], completion_tokens=1)]
    with pytest.raises(InputError, match="1 token ids and 0 log-probabilities"):
        export(t)
    t.turns = [Turn(1, [], [2], [-0.5], completion_tokens=1)]
    with pytest.raises(InputError, match="chain_0 has no prompt ids"):
        export(t)


# -- ATIF --------------------------------------------------------------------------------------------------------------


def an_object(required="", **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, COUNT, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
IDS = {"type": "array", "items": {"type": "integer"}}
METRICS = an_object(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    cached_tokens=COUNT,
    cost_usd={"type": "number"},
    prompt_token_ids=IDS,
    completion_token_ids=IDS,
    logprobs={"type": "array", "items": {"type": "number"}},
    extra=ANY,
)
CALLS = an_object(
    "tool_call_id function_name arguments",
    tool_call_id=TEXT,
    function_name=TEXT,
    arguments=ANY,
    extra=ANY,
)
RESULT = an_object(source_call_id=TEXT, content=TEXT, extra=ANY)
STEP = an_object(
    "step_id source message",
    step_id={"type": "integer", "minimum": 1},
    timestamp=TEXT,
    source={"enum": ["system", "user", "agent"]},
    model_name=TEXT,
    reasoning_effort={"type": ["string", "number"]},
    message=TEXT,
    reasoning_content=TEXT,
    tool_calls={"type": "array", "items": CALLS},
    observation=an_object("results", results={"type": "array", "items": RESULT}),
    metrics=METRICS,
    extra=ANY,
    llm_call_count=COUNT,
    is_copied_context={"type": "boolean"},
)
# The tables of the RFC, v1.7, without subagents and images, which chains do not have.
DOCUMENT = an_object(
    "schema_version agent steps",
    schema_version={"const": "ATIF-v1.7"},
    session_id=TEXT,
    trajectory_id=TEXT,
    agent=an_object(
        "name version",
        name=TEXT,
        version=TEXT,
        model_name=TEXT,
        tool_definitions={"type": "array", "items": ANY},
        extra=ANY,
    ),
    steps={"type": "array", "items": STEP},
    notes=TEXT,
    final_metrics=an_object(
        total_prompt_tokens=COUNT,
        total_completion_tokens=COUNT,
        total_cached_tokens=COUNT,
        total_cost_usd={"type": "number"},
        total_steps=COUNT,
        extra=ANY,
    ),
    continued_trajectory_ref=TEXT,
    extra=ANY,
)


def atif(t, **options):
    """The document as a reader gets it, checked: its shape, and what the RFC says beside the tables."""
    document = json.loads(json.dumps(to_atif(t, **options)))
    Draft202012Validator(DOCUMENT).validate(document)
    for number, step in enumerate(document["steps"], 1):
        assert step["step_id"] == number
        if step["source"] != "agent":
            assert not {"model_name", "reasoning_content", "tool_calls", "metrics"} & set(step)
        known = {call["tool_call_id"] for call in step.get("tool_calls", ())}
        for result in step.get("observation", {}).get("results", ()):
            assert result.get("source_call_id") in known | {None}
        metrics = step.get("metrics", {})
        for ids, count in (
            ("prompt_token_ids", "prompt_tokens"),
            ("completion_token_ids", "completion_tokens"),
        ):
            if ids in metrics:
                assert len(metrics[ids]) == metrics[count]
        if "logprobs" in metrics:
            assert len(metrics["logprobs"]) == metrics["completion_tokens"]
    return document


async def test_a_chain_is_an_atif_document():
    """Prompt messages and turns are steps; a turn has its call and what the tool gave."""
    t = await run([CALL, "The answer is 4."])
    tools = [calculator.schema]
    document = atif(t, agent_name="solver", agent_version="2", model_name="example/model", tools=tools)
    assert document["agent"] == {
        "name": "solver",
        "version": "2",
        "model_name": "example/model",
        "tool_definitions": tools,
    }
    assert [(s["source"], s["message"]) for s in document["steps"]] == [
        ("system", "Be brief."),
        ("user", "What is 2 + 2?"),
        ("agent", CALL),
        ("agent", "The answer is 4."),
    ]
    turn = document["steps"][2]
    (call,) = turn["tool_calls"]
    assert (call["function_name"], call["arguments"]) == ("calculator", {"expression": "2 + 2"})
    assert call["extra"]["status"] == "success"
    assert turn["observation"]["results"] == [{"source_call_id": call["tool_call_id"], "content": "4"}]
    assert document["session_id"] == t.run_id
    assert document["extra"]["row"] == {"answer": 4}
    assert document["extra"]["finish_reason"] == "answered"
    assert document["final_metrics"]["extra"] == {"reward": 1.0, "neat": 0.5}
    assert document["final_metrics"]["total_completion_tokens"] == t.completion_tokens


@pytest.mark.parametrize("made", [lambda: run([CALL, "The answer is 4."]), forked], ids=["one", "forked"])
async def test_an_atif_document_can_be_trained_on(made):
    """Prompt and completion of the last turn of each segment are the segment's exact ids; nothing has to be encoded."""
    t = await made()
    metrics = [step["metrics"] for step in atif(t)["steps"] if "metrics" in step]
    assert [m["prompt_token_ids"] + m["completion_token_ids"] for m in metrics][-1] == t.segments[
        -1
    ].token_ids
    assert [m["logprobs"] for m in metrics] == [turn.logprobs for turn in t.turns]
    assert [m["extra"]["policy_versions"] for m in metrics] == [turn.policy_versions for turn in t.turns]
    ids = 0
    for segment in t.segments:
        ids += len(segment.turns)
        last = metrics[ids - 1]
        assert last["prompt_token_ids"] + last["completion_token_ids"] == segment.token_ids


async def test_malformed_calls_keep_their_text():
    """ATIF's arguments are an object; what was no object stands in `extra`, and the observation says what is wrong."""
    document = atif(await run([BROKEN, "I give up."]))
    (call,) = document["steps"][2]["tool_calls"]
    assert call["arguments"] == {}
    assert "expression" in call["extra"]["raw_arguments"]
    assert document["steps"][2]["observation"]["results"][0]["content"].startswith("error")
    assert call["extra"]["status"] == "error"


async def test_demonstrations_and_parts_are_shown():
    """Messages of the prompt are steps whatever their role; parts without text are written as JSON."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is "}, image]},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "4"},
        {"role": "user", "content": "And now?"},
    ]
    steps = atif(await run(["Four."], messages=messages))["steps"]
    assert [s["source"] for s in steps] == ["user", "agent", "agent", "user", "agent"]
    assert steps[0]["message"] == "What is " + json.dumps(image, separators=(",", ":"))
    assert steps[2]["observation"]["results"] == [{"content": "4"}]


async def test_ids_can_be_left_out():
    """The counts stay."""
    t = await run([CALL, "The answer is 4."])
    for step in atif(t, token_ids=False)["steps"][2:]:
        assert set(step["metrics"]) == {"prompt_tokens", "completion_tokens"}


def test_a_chain_that_failed_is_a_document_too():
    """It has an error and no turns, ids or reward."""
    t = Trajectory("run", "chain_0", None, messages=ROW["messages"], prompt_length=2, error="the engine died")
    t.finish_reason = "error"
    document = atif(t)
    assert document["extra"] == {"index": 0, "finish_reason": "error", "error": "the engine died"}
    assert "extra" not in document["final_metrics"]


async def test_a_kept_trajectory_exports_the_same():
    """What `to_dict` wrote and `from_dict` read gives the same documents and the same batch."""
    t = await run([CALL, "The answer is 4."])
    kept = Trajectory.from_dict(json.loads(json.dumps(t.to_dict())))
    assert (to_atif(kept), to_verl(kept), to_trl([kept])) == (to_atif(t), to_verl(t), to_trl([t]))
    other = Trajectory.from_dict(t.to_dict() | {"reward": 0.0, "chain_id": "chain_1"})
    assert make_batch([kept, other]).input_ids_BT.tolist() == make_batch([t, other]).input_ids_BT.tolist()


async def test_messages_from_outside_and_rewards_of_steps_are_in_the_document():
    """A message is a step after the turn that it followed; rewards stand with their turn."""

    class Doubted(BaseAgent):
        async def next_message(self, trajectory, ctx):
            ctx.step_reward(0.25)
            return {"role": "user", "content": "Sure?"} if len(trajectory.turns) == 1 else None

    agent = Doubted(backend=ScriptedBackend(["It is 5.", "It is 4."]))
    (t,) = await agent.run_async(3, [{"role": "user", "content": "What is 2 + 2?"}])
    steps = atif(Trajectory.from_dict(t.to_dict()))["steps"]
    assert [(s["source"], s["message"]) for s in steps] == [
        ("user", "What is 2 + 2?"), ("agent", "It is 5."), ("user", "Sure?"), ("agent", "It is 4."),
    ]  # fmt: skip
    assert [s.get("extra", {}).get("step_rewards") for s in steps] == [None, [0.25], None, [0.25]]
