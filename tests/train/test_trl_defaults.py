"""TRL's own settings, as they are when nobody changes them, train on an agent's chains."""

import warnings

import pytest

pytest.importorskip("trl", reason="needs the extra")

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

import rollcast.train.trl as ours
from rollcast import BaseAgent, numeric_match
from rollcast.models.hf import TransformersBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.tasks import get_task
from rollcast.tools import calculator
from rollcast.train.trl import train

pytestmark = pytest.mark.torch


class Comparing(GRPOTrainer):
    """Keeps how far the log-probabilities that it computes are from those of the rollout."""

    def _compute_loss(self, model, inputs):
        self._inputs = inputs
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if result[0].requires_grad:
            inputs = self._inputs
            sampled = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            change = (result[0].detach() - inputs["sampling_per_token_logps"])[sampled]
            self.differences = [*getattr(self, "differences", []), change.abs()]
        return result


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL and transformers, of each other's names
def test_a_float32_model_trains_with_trls_defaults(tmp_path, monkeypatch):
    """bfloat16 autocast, gradient checkpointing, a checkpoint at the end: `use_cpu` alone is said, as TRL asks on a CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ours, "GRPOTrainer", Comparing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        config = GRPOConfig(use_cpu=not torch.cuda.is_available())
    assert config.bf16
    assert config.gradient_checkpointing
    model = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    before = model.model.norm.weight.detach().clone()
    agent = BaseAgent(
        backend=TransformersBackend(model, AutoTokenizer.from_pretrained(CHECKPOINT)),
        tools=[calculator],
        reward=numeric_match,
    )
    trainer = train(agent, get_task("arithmetic").rows(2, seed=3), config, max_steps=3)
    assert trainer.state.global_step == 6
    assert not torch.equal(model.model.norm.weight.cpu(), before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(trainer.differences) == 6
    assert max(change.max().item() for change in trainer.differences) < 0.1
    assert (tmp_path / "trainer_output" / "checkpoint-6" / "model.safetensors").is_file()
