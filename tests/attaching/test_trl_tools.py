"""A trainer of TRL that calls tools: its turns, its calls and what they return are seen as they happen."""

import asyncio
from collections import Counter

import pytest

pytest.importorskip("trl", reason="needs the extra")

import torch

from attaching.trl_trainings import is_equal, new_trainer, one_thread, outcome, tokenizer_for_tools, turns
from rollcast import attach
from rollcast.records import StreamEventType
from rollcast.stream import StreamingManager
from rollcast.testing import capture_events

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

T = StreamEventType


def calculator(expression: str) -> float:
    """Compute an arithmetic expression.

    Args:
        expression: what to compute.
    """
    left, _, right = expression.partition("+")
    return float(left) + float(right)


async def lookup(word: str) -> dict:
    """Look a word up.

    Args:
        word: the word.
    """
    await asyncio.sleep(0)
    return {"word": word, "found": len(word)}


def call(name, **arguments):
    """What the model writes to call a tool."""
    pairs = ", ".join(f'"{key}": "{value}"' for key, value in arguments.items())
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{{pairs}}}}}\n</tool_call>'


def scripted(trainer, *answers):
    """Have the trainer's model answer these texts: a list for each call of `generate`, with one for each row."""
    tokenizer, left = trainer.processing_class, list(answers)

    def generate(input_ids, **_):
        texts = left.pop(0)
        assert len(texts) == len(input_ids)
        ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
        longest = max(map(len, ids))
        padded = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    trainer.model.generate = generate


@one_thread()
def trained(folder, answers, watched=True, **options):
    """One step on these answers; the trainer, its completions, and what was seen."""
    completions = []

    def keep(completions, **_):
        kept.extend([dict(message) for message in completion] for completion in completions)
        return turns(completions)

    kept = completions
    parts = {
        "processing_class": tokenizer_for_tools(),
        "tools": [calculator, lookup],
        **options.pop("parts", {}),
    }
    trainer = new_trainer(
        folder, rewards=(keep,), parts=parts, **{"max_steps": 1, "max_completion_length": 96, **options}
    )
    if answers is not None:
        scripted(trainer, *answers)
    manager = StreamingManager()
    with capture_events(manager) as capture:
        handle = attach(trainer, manager=manager) if watched else None
        trainer.train()
        if handle is not None:
            handle.detach()
    if answers is not None:
        assert "generate" in vars(trainer.model)  # the script is still in its place
    return trainer, completions, capture


def of_chain(capture, number, *kinds):
    return [
        e for e in capture.events if e.chain_id == f"chain_{number}" and (not kinds or e.event_type in kinds)
    ]


SUM = call("calculator", expression="2 + 3")


def test_a_training_with_tools_is_the_same(tmp_path):
    """With the embedded model, which calls the calculator by itself: weights and logs are equal to the bit."""
    options = {"answers": None, "per_device_train_batch_size": 8, "max_steps": 2}
    alone, _, _ = trained(tmp_path / "alone", watched=False, **options)
    attached, completions, capture = trained(tmp_path / "attached", **options)
    assert is_equal(outcome(alone), outcome(attached))
    capture.check()
    results = [message["content"] for row in completions for message in row if message["role"] == "tool"]
    seen = [event.data["observation"] for event in capture.of("tool_observation")]
    assert Counter(results) == Counter(seen)
    assert results


def test_turns_and_calls_are_seen_in_their_order(tmp_path):
    """A generation that calls a tool, what the tool returns, and the generation that reads it."""
    answers = [[SUM, "5", SUM, "5"], ["It is 5", "Five"]]
    _, completions, capture = trained(tmp_path, answers)
    capture.check()
    kinds = [e.event_type for e in of_chain(capture, 0) if e.event_type is not T.LLM_GENERATION_CHUNK]
    assert kinds == [
        T.CHAIN_START, T.LLM_GENERATION_START, T.LLM_GENERATION_END, T.TOOL_CALL_START, T.TOOL_OBSERVATION, T.TOOL_CALL_END,
        T.LLM_GENERATION_START, T.LLM_GENERATION_END, T.REWARD, T.CHAIN_END,
    ]  # fmt: skip
    (start,) = of_chain(capture, 0, T.TOOL_CALL_START)
    assert (start.data["tool_name"], start.data["arguments"]) == ("calculator", {"expression": "2 + 3"})
    (observation,) = of_chain(capture, 0, T.TOOL_OBSERVATION)
    assert observation.data["observation"] == "5.0" == completions[0][1]["content"]
    ends = [event.data["finish_reason"] for event in of_chain(capture, 2, T.LLM_GENERATION_END)]
    assert ends == ["tool_call", "stop"]
    (end,) = of_chain(capture, 2, T.CHAIN_END)
    assert (end.data["final_response"], end.data["finish_reason"]) == ("Five", "answered")
    assert of_chain(capture, 0, T.CHAIN_START)[0].data["tools"] == ["calculator", "lookup"]


def test_calls_that_fail_have_their_events_too(tmp_path):
    """A tool that raises, a name that there is not, arguments that do not fit, and a coroutine among them."""
    several = call("nothing", x="1") + call("lookup", word="cat") + call("calculator", expression="x") + SUM
    answers = [[several, "5", "5", call("calculator", wrong="1")], ["5", "5"]]
    _, completions, capture = trained(tmp_path, answers, max_completion_length=250)
    capture.check()
    told = {}
    for event in of_chain(capture, 0, T.TOOL_OBSERVATION):
        told.setdefault(event.data["tool_name"], []).append((event.data["status"], event.data["observation"]))
    results = [
        (message["name"], message["content"]) for message in completions[0] if message["role"] == "tool"
    ]
    assert Counter(results) == Counter((name, text) for name, seen in told.items() for _, text in seen)
    assert [status for status, _ in told["nothing"]] == ["error"]
    assert sorted(status for status, _ in told["calculator"]) == ["error", "success"]
    assert told["lookup"] == [("success", "{'word': 'cat', 'found': 3}")]
    (wrong,) = of_chain(capture, 3, T.TOOL_OBSERVATION)
    assert wrong.data["status"] == "error"
    assert "unexpected keyword argument" in wrong.data["observation"]


def test_results_that_trl_takes_back_end_the_chain_by_length(tmp_path):
    """They would have made the completion too long, so no generation reads them."""
    answers = [[SUM, "5", "5", "5"]]
    _, completions, capture = trained(tmp_path, answers, max_completion_length=14)
    capture.check()
    assert [message["role"] for message in completions[0]] == ["assistant"]
    assert [event.data["tool_name"] for event in of_chain(capture, 0, T.TOOL_CALL_END)] == ["calculator"]
    assert of_chain(capture, 0, T.CHAIN_END)[0].data["finish_reason"] == "max_tokens"
    assert of_chain(capture, 1, T.CHAIN_END)[0].data["finish_reason"] == "answered"


def test_tokens_that_trl_cuts_are_counted(tmp_path):
    """A turn after a tool may be sampled beyond the limit; the tokens were shown, and are not trained on."""
    answers = [[SUM, "5", "5", "5"], ["5 " * 40]]
    _, _, capture = trained(tmp_path, answers, max_completion_length=40)
    capture.check()
    (reward,) = of_chain(capture, 0, T.REWARD)
    assert reward.data["metrics"]["cut_tokens"] > 0
    assert of_chain(capture, 0, T.CHAIN_END)[0].data["finish_reason"] == "max_tokens"
    assert "cut_tokens" not in of_chain(capture, 1, T.REWARD)[0].data["metrics"]


def test_calls_beyond_the_last_iteration_are_max_steps(tmp_path):
    """TRL has no more iterations for them, so the tool is never called."""
    answers = [[SUM, "5", "5", "5"], [SUM]]
    _, _, capture = trained(tmp_path, answers, max_tool_calling_iterations=1)
    capture.check()
    assert len(of_chain(capture, 0, T.TOOL_CALL_END)) == 1
    assert of_chain(capture, 0, T.CHAIN_END)[0].data["finish_reason"] == "max_steps"


class Counting:
    """An environment that counts."""

    def reset(self, **_):
        self.count = 0
        return " Count to two."

    def add(self, by: str) -> str:
        """Add to the count.

        Args:
            by: how much.
        """
        self.count += int(by)
        return f"at {self.count}"

    def get_reward(self):
        return float(self.count)


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")
def test_environments_are_seen_like_tools(tmp_path):
    """What the environment said first is in the prompt, and its own reward is a metric."""
    add = call("add", by="1")
    answers = [[add, "2", "2", "2"], [add], ["done"]]
    parts = {"environment_factory": Counting, "tools": None}
    _, _, capture = trained(tmp_path, answers, parts=parts)
    capture.check()
    start = of_chain(capture, 0, T.CHAIN_START)[0]
    assert start.data["messages"][-1]["content"].endswith(" Count to two.")
    assert "add" in start.data["tools"]
    seen = [event.data["observation"] for event in of_chain(capture, 0, T.TOOL_OBSERVATION)]
    assert seen == ["at 1", "at 2"]
    assert of_chain(capture, 0, T.REWARD)[0].data["metrics"]["Counting"] == 2.0


def test_a_defect_of_ours_changes_no_tool_call(tmp_path, monkeypatch):
    """The tools are called as often, and return the same."""
    answers = [[SUM, "5", SUM, "5"], ["It is 5", "Five"]]
    alone, expected, _ = trained(tmp_path / "alone", answers, watched=False)

    def defect(*_):
        raise ZeroDivisionError("a defect")

    for place in ("look", "begins"):
        with monkeypatch.context() as patch:
            patch.setattr(f"rollcast.attaching.trl_tools.ToolLoop.{place}", defect)
            attached, completions, _ = trained(tmp_path / place, answers)
        assert completions == expected
        assert is_equal(outcome(alone), outcome(attached))
