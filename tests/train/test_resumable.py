"""A checkpoint that is not what was saved is neither gone on from nor played."""

import asyncio
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from rollcast import BaseAgent
from rollcast.errors import CheckpointError, InputError
from rollcast.models.checksums import CHECKSUMS, find_damage, has_checksums, replace_checked, write_checksums
from rollcast.models.tiny import TinyBackend
from rollcast.models.tiny.weights import read_config, read_weights
from rollcast.tasks import get_task
from rollcast.train import GRPOConfig, checkpoint, train
from rollcast.train.checkpoint import Checkpoints
from rollcast.train.resumable import check_resumable, numbered

SOURCE = Path(checkpoint.__file__).parents[1] / "models/tiny/checkpoint"
CONFIG = read_config(SOURCE)
FILES = ["model.safetensors", "trainer.state", "trainer.json", "config.json", "tokenizer.json", CHECKSUMS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints of one training."""
    out = tmp_path_factory.mktemp("saved")
    checkpoints, weights = Checkpoints(out, SOURCE), read_weights(SOURCE)
    for step in (10, 20):
        state = {"moments": np.full((2, 50), step, np.float32), "counts": np.array([step, 2.0])}
        checkpoints.save(step, weights, state, {"history": [step]})
    return out


@pytest.fixture
def out(saved, tmp_path):
    """A copy of them, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "out"))


def load(out):
    return Checkpoints(out, SOURCE).load(CONFIG)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_told(out, name):
    """Whichever bit of whichever file: the file is named, and the checkpoint from which training can go on."""
    path = out / "step-000020" / name
    whole = path.read_bytes()
    places = np.random.default_rng(len(whole)).integers(0, 8 * len(whole), 12).tolist()
    for bit in [0, 8 * len(whole) - 1, *places]:
        flip(path, bit)
        with pytest.raises(CheckpointError) as caught:
            load(out)
        said = str(caught.value)
        assert name in said, (bit, said)
        assert said.endswith("; delete step-000020 to go on from step-000010"), (bit, said)
        assert "\n" not in said
        path.write_bytes(whole)
    assert load(out).step == 20


@pytest.mark.parametrize("name", [name for name in FILES if name != CHECKSUMS])
def test_a_file_of_another_checkpoint_is_told(out, name):
    """It is whole, and not this checkpoint's; what both have alike may be exchanged."""
    ours, theirs = out / "step-000020" / name, out / "step-000010" / name
    if ours.read_bytes() == theirs.read_bytes():
        theirs.write_bytes(theirs.read_bytes() + b" ")
    shutil.copy(theirs, ours)
    with pytest.raises(CheckpointError, match=f"{name} has changed since it was saved"):
        load(out)


def test_folders_that_were_exchanged_are_told(out):
    """The name of a checkpoint says after which step it is."""
    (out / "step-000020").rename(out / "step-000030")
    with pytest.raises(CheckpointError, match=r"saved as step-000020.* is called step-000030"):
        load(out)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_nothing_is_read_of_what_is_damaged(out):
    """What is not the file that was saved is not opened: a named pipe in its place would be waited for."""
    (out / "step-000020" / "config.json").unlink()
    os.mkfifo(out / "step-000020" / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load(out)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_told(out, name):
    """The list of sums too: a checkpoint that was saved with one has it."""
    (out / "step-000020" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*delete step-000020 to go on from step-000010"):
        load(out)


@pytest.mark.parametrize(
    "name", ["more.safetensors", "adapter_config.json", "modeling.py", "additional_chat_templates/rag.jinja"]
)
def test_a_file_that_loaders_would_read_is_told(out, name):
    """Notes, pictures and hidden files beside them are left alone."""
    for mine in ("notes.md", "curves.png", ".DS_Store"):
        (out / "step-000020" / mine).write_text("mine")
    assert load(out).step == 20
    (out / "step-000020" / name).parent.mkdir(exist_ok=True)
    (out / "step-000020" / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{name} was not there when it was saved"):
        load(out)


def test_only_a_checkpoint_that_is_whole_is_recommended(out):
    """Where both are damaged, there is nothing to go on from."""
    for step in ("step-000010", "step-000020"):
        flip(out / step / "trainer.state", 999)
    with pytest.raises(CheckpointError, match=r"; train anew$"):
        load(out)


def as_of_version_0_1(folder):
    """Without what this version adds."""
    (folder / CHECKSUMS).unlink()
    about = json.loads((folder / "trainer.json").read_bytes())
    del about["checksums"]
    (folder / "trainer.json").write_text(json.dumps(about))


def test_a_checkpoint_of_version_0_1_goes_on_with_a_warning(out, caplog):
    """It has no sums. Saving it again makes none of what may be damaged by now."""
    for folder in numbered(out, "step-"):
        as_of_version_0_1(folder)
    with caplog.at_level(logging.WARNING, "rollcast.train"):
        found = load(out)
    assert found.step == 20
    assert f"step-000020 has no {CHECKSUMS}" in caplog.text
    Checkpoints(out, SOURCE).save(20, found.weights, found.state, {"history": [1]})
    assert not has_checksums(out / "step-000020")
    assert load(out).about["history"] == [1]


def test_a_checkpoint_that_was_not_saved_to_its_end_is_told(out):
    """The sums are written last: without them, beside others that have them, it is a part of a checkpoint."""
    (out / "step-000020" / CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match="step-000010 has, so it was not saved to its end"):
        check_resumable(out / "step-000020", numbered(out, "step-"))
    (out / "step-000010" / CHECKSUMS).unlink()
    check_resumable(out / "step-000020", numbered(out, "step-"))
    (out / "step-000020" / "trainer.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no trainer\.json or trainer_state\.json, so it was not saved to its end"
    ):
        check_resumable(out / "step-000020", numbered(out, "step-"))


def test_a_damaged_folder_is_not_loaded_as_a_model(out):
    """What training alone needs is not looked at, nor what the folder is called; who changed it may say so."""
    folder = out / "best"
    (out / "step-000020").rename(folder)
    flip(folder / "trainer.state", 99)
    BaseAgent(str(folder), backend="tiny")
    flip(folder / "model.safetensors", 8 * 500_000)
    with pytest.raises(InputError, match=r"model\.safetensors has changed.*load another one, or, if you"):
        BaseAgent(str(folder), backend="tiny")
    (folder / CHECKSUMS).unlink()
    BaseAgent(str(folder), backend="tiny")


async def test_new_weights_from_a_damaged_folder_are_refused(out):
    """The backend samples on from what it has."""
    backend = TinyBackend()
    flip(out / "step-000020" / "model.safetensors", 8 * 500_000)
    with pytest.raises(InputError, match="is damaged"):
        await backend.update_weights(out / "step-000020", 1)
    assert backend.policy_version == 0
    await backend.close()


def test_a_file_may_be_replaced_at_any_moment(tmp_path):
    """Between the two renames, the old file and the new one both count as whole."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "x.json").write_text("old")
    write_checksums(folder)
    new = tmp_path / "x.json"
    for text in ("new", "newer"):
        before = (folder / "x.json").read_text()
        new.write_text(text)
        replace_checked(folder, new)
        assert find_damage(folder, to_resume=True) is None
        (folder / "x.json").write_text(before)
        assert find_damage(folder, to_resume=True) is None
        (folder / "x.json").write_text(text)
    (folder / "x.json").write_text("old")
    assert "x.json has changed" in find_damage(folder, to_resume=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2, "checkpoint": "a", "sha256": {}}', "\xff", '{"sha256": 1}']
)
def test_sums_that_are_none_are_told(out, text):
    """They are never passed over."""
    (out / "step-000020" / CHECKSUMS).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=f"{CHECKSUMS} (cannot be read|has format 2)"):
        load(out)


async def test_a_training_does_not_go_on_from_damage(tmp_path):
    """`train` refuses it, changes nothing, and goes on once the folder is deleted, as it said."""
    task = get_task("arithmetic")

    def agent():
        return BaseAgent(tools=task.tools, reward=task.reward)

    config = GRPOConfig(steps=2, questions=2, group=2, eval_questions=2, eval_every=0, save_every=1)
    await train(agent(), task, config, out=tmp_path)
    flip(tmp_path / "step-000002" / "trainer.state", 8 * 3000)
    with pytest.raises(
        CheckpointError, match=r"trainer\.state has changed.*delete step-000002 to go on from step-000001"
    ):
        await train(agent(), task, config, out=tmp_path, resume=True)
    shutil.rmtree(tmp_path / "step-000002")
    result = await train(agent(), task, config, out=tmp_path, resume=True)
    assert len(result.history) == 3
    whole = await asyncio.to_thread(find_damage, tmp_path / "step-000002", to_resume=True)
    assert whole is None
