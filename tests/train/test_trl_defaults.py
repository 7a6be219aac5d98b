"""TRL's own settings, as they are when nobody changes them, train on an agent's chains; its checkpoints are checked."""

import logging
import shutil
import warnings

import pytest

pytest.importorskip("trl", reason="needs the extra")

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

import rollcast.train.trl as ours
from rollcast import BaseAgent, numeric_match
from rollcast.errors import CheckpointError
from rollcast.models.checksums import CHECKSUMS, find_damage
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


def train_with_defaults(folder=None, **options):
    """With what TRL asks for on a CPU, and no other setting."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and transformers' of each other's names
        config = GRPOConfig(folder, use_cpu=not torch.cuda.is_available(), **options)
        model = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
        agent = BaseAgent(
            backend=TransformersBackend(model, AutoTokenizer.from_pretrained(CHECKPOINT)),
            tools=[calculator],
            reward=numeric_match,
        )

        def run(**more):
            return train(agent, get_task("arithmetic").rows(2, seed=3), config, max_steps=3, **more)

        return config, model, run


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_float32_model_trains_with_trls_defaults(tmp_path, monkeypatch):
    """bfloat16 autocast, gradient checkpointing, a checkpoint at the end, in the folder that TRL chooses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ours, "GRPOTrainer", Comparing)
    config, model, run = train_with_defaults()
    assert config.bf16
    assert config.gradient_checkpointing
    before = model.model.norm.weight.detach().clone()
    trainer = run()
    assert trainer.state.global_step == 6
    assert not torch.equal(model.model.norm.weight.cpu(), before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(trainer.differences) == 6
    assert max(change.max().item() for change in trainer.differences) < 0.1
    saved = tmp_path / "trainer_output" / "checkpoint-6"
    assert (saved / "model.safetensors").is_file()
    assert find_damage(saved, to_resume=True) is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints of a training with TRL."""
    folder = tmp_path_factory.mktemp("saved")
    _, _, run = train_with_defaults(
        str(folder), max_steps=2, save_steps=1, report_to="none", disable_tqdm=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    return folder


@pytest.fixture
def resume(saved, tmp_path):
    """A copy, and a training that goes on from it."""
    out = shutil.copytree(saved, tmp_path / "out")
    _, _, run = train_with_defaults(str(out), max_steps=3, report_to="none", disable_tqdm=True)
    return out, run


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth", "config.json"]
)
def test_trl_does_not_resume_from_damage(resume, name):
    """A bit of any file: the newest checkpoint is refused, by name as well, and the one before is named."""
    out, run = resume
    path = out / "checkpoint-2" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    for which in (True, str(out / "checkpoint-2")):
        with pytest.raises(
            CheckpointError, match=f"{name} has.*delete checkpoint-2 to go on from checkpoint-1"
        ):
            run(resume_from_checkpoint=which)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_trl_resumes_from_a_whole_checkpoint(resume):
    """Also from one that is named."""
    out, run = resume
    (out / "checkpoint-2" / "trainer_state.json").unlink()
    trainer = run(resume_from_checkpoint=str(out / "checkpoint-1"))
    assert trainer.state.global_step == 3
    assert find_damage(out / "checkpoint-3", to_resume=True) is None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_trl_checkpoints_without_sums_have_a_warning(resume, caplog):
    """All were made by an earlier version; if one of them has sums, a later one without was cut off."""
    out, run = resume
    (out / "checkpoint-2" / CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match="checkpoint-1 has, so it was not saved to its end"):
        run(resume_from_checkpoint=True)
    (out / "checkpoint-1" / CHECKSUMS).unlink()
    with caplog.at_level(logging.WARNING, "rollcast.train"):
        assert run(resume_from_checkpoint=True).state.global_step == 3
    assert f"checkpoint-2 has no {CHECKSUMS}" in caplog.text
