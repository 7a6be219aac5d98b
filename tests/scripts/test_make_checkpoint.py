"""The script that makes the embedded model."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rollcast import BaseAgent, Delta
from rollcast.models.tiny import TinyBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.rollout.context import ChainContext
from rollcast.tasks import get_task, task_names

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def root_on_the_path(monkeypatch):
    """The script is run from the repository's root, which is not installed."""
    monkeypatch.syspath_prepend(ROOT)


class Repeating(TinyBackend):
    """Says what a demonstration said, in the tokens of the embedded model."""

    def __init__(self, turns):
        super().__init__()
        self.tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
        self.turns = iter(turns)

    async def generate(self, request):
        ids = self.tokenizer.encode(f"{next(self.turns)}<|im_end|>").ids
        for i, token in enumerate(ids):
            last = i == len(ids) - 1
            text = "" if last else self.tokenizer.decode([token], skip_special_tokens=False)
            yield Delta(text, [token], [-1.0], finish_reason="stop" if last else None)


@pytest.fixture
def shipped():
    """Demonstrations in the shipped tokenizer."""
    from scripts.make_checkpoint.demonstrations import Demonstrations

    from rollcast.models.chat import TemplateRenderer

    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    return Demonstrations(tokenizer, TemplateRenderer.from_folder(CHECKPOINT, [2]), seed=0)


@pytest.mark.parametrize("name", task_names())
async def test_a_demonstration_is_what_a_rollout_records(shipped, name):
    """Turn by turn through an agent, with the same turns, the ids and the mask are the same."""
    from scripts.make_checkpoint.demonstrations import play

    task, rng = get_task(name), random.Random(3)
    for _ in range(25):
        row = task.question(rng)
        messages = play(task, row, rng)
        turns = [message["content"] for message in messages if message["role"] == "assistant"]
        observations = [message["content"] for message in messages if message["role"] == "tool"]
        backend = Repeating(turns)
        agent = BaseAgent(tools=task.tools, backend=backend, reward=task.reward)
        (chain,) = await agent.run_async(task.max_steps, [row])
        await backend.close()
        example = shipped.encode(name, messages)
        assert chain.token_ids == example.ids
        assert [bool(m) for m in chain.loss_mask] == example.learned
        assert [m["content"] for m in chain.messages if m["role"] == "tool"] == observations
        assert (chain.finish_reason, chain.final_response) == ("answered", turns[-1])


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("arithmetic", 0.35, 0.6), ("guess", 0.4, 0.65), ("lookup", 0.35, 0.6), ("grid", 0.12, 0.4)],
)
async def test_demonstrations_are_half_good(name, low, high):
    """They succeed often enough to learn from, and fail often enough to leave something to learn."""
    from scripts.make_checkpoint import demonstrations

    task, rng = get_task(name), random.Random(5)
    rewards = []
    for _ in range(300):
        row = task.question(rng)
        context = ChainContext(row=row)
        messages = demonstrations.play(task, row, rng, context)
        fields = {key: row[key] for key in task.reward.required if key in row}
        if "ctx" in task.reward.required:
            fields["ctx"] = context
        value = task.reward(final_response=messages[-1]["content"], **fields)
        rewards.append(value["reward"] if isinstance(value, dict) else value)
    assert low < sum(reward == 1 for reward in rewards) / len(rewards) < high


def test_demonstrations_meet_the_errors_of_the_product():
    """Wrong names, wrong arguments and broken JSON are answered in the words of a rollout."""
    from scripts.make_checkpoint.demonstrations import play

    task, rng = get_task("arithmetic"), random.Random(1)
    seen = Counter(
        message["content"]
        for _ in range(600)
        for message in play(task, task.question(rng), rng)
        if message["role"] == "tool" and message["content"].startswith("error")
    )
    assert set(seen) == {
        "error: there is no tool 'calc'; tools: calculator",
        "error: there is no tool 'math'; tools: calculator",
        "error: calculator has no argument 'expr'; its arguments: expression (string)",
        "error: bad json",
    }


def test_the_template_is_the_shipped_one():
    """The script writes the chat template that ships."""
    from scripts.make_checkpoint.vocabulary import TEMPLATE

    assert TEMPLATE.read_text("utf-8") == (CHECKPOINT / "chat_template.jinja").read_text("utf-8")


def make(folder, *options):
    small = ("--steps", "2", "--questions", "2", "--tokenizer-examples", "60", *options)
    subprocess.run(
        [sys.executable, "-m", "scripts.make_checkpoint", str(folder), *small],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=True,
    )  # fmt: skip
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.torch
def test_the_same_seed_makes_the_same_files(tmp_path):
    """Two runs of a few steps agree in every byte but the minutes, and hold what a checkpoint needs."""
    first, again = make(tmp_path / "a"), make(tmp_path / "b")
    figures, figures_again = (json.loads(files.pop("figures.json")) for files in (first, again))
    assert first == again
    assert set(first) == {path.name for path in CHECKPOINT.iterdir()} - {"figures.json"}
    assert len(first["model.safetensors"]) == (CHECKPOINT / "model.safetensors").stat().st_size
    assert {**figures, "minutes": 0} == {**figures_again, "minutes": 0}
    assert (figures["seed"], figures["steps"], figures["repeatable"]) == (0, 2, True)
    assert set(figures["success"]) == set(task_names())


@pytest.mark.torch
def test_the_network_is_a_qwen3(tmp_path):
    """transformers loads what the script writes, and computes the same."""
    import torch
    from scripts.make_checkpoint.network import Network, write_network
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = Network()
    with torch.no_grad():
        for parameter in network.parameters():  # so that the file's bfloat16 loses nothing
            parameter.copy_(parameter.to(torch.bfloat16))
    write_network(network, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 512, (2, 40))
    with torch.no_grad():
        expected = model(ids).logits.flatten(0, 1)
        found = network(ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.torch
def test_training_ends_at_the_minutes():
    """Where the minutes are over before the steps, training ends, and says that the time decided."""
    from scripts.make_checkpoint.network import Network
    from scripts.make_checkpoint.training import train

    assert train(Network(), None, 10, 1e-9, lambda *_: None) == (0, True)
