"""Checkpoints are whole or not there, and load where they should."""

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rollcast.errors import CheckpointError, InputError
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.checksums import write_checksums
from rollcast.models.tiny import TinyBackend
from rollcast.models.tiny.weights import read_config, read_safetensors, read_weights
from rollcast.train import checkpoint
from rollcast.train.checkpoint import Checkpoints, safetensors_bytes, sole_writer

SOURCE = Path(checkpoint.__file__).parents[1] / "models/tiny/checkpoint"
CONFIG = read_config(SOURCE)


def some_weights(seed=0):
    """The embedded model's, each a little changed, so that they are not bfloat16 any more."""
    rng = np.random.default_rng(seed)
    return {
        name: (array + rng.normal(0, 1e-3, array.shape)).astype(np.float32)
        for name, array in read_weights(SOURCE).items()
    }


def some_state(seed=0):
    return {
        "moments": np.random.default_rng(seed).random((2, 5), np.float32),
        "counts": np.array([seed, 2.0]),
    }


def save(checkpoints, step, best=None):
    return checkpoints.save(step, some_weights(step), some_state(step), {"history": [step]}, best)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path):
    """Weights and state to the byte, and what was said about them."""
    checkpoints = Checkpoints(tmp_path / "out", SOURCE)
    folder = save(checkpoints, 40)
    assert folder == tmp_path / "out/step-000040"
    found = checkpoints.load(CONFIG)
    assert (found.folder, found.step, found.about["history"]) == (folder, 40, [40])
    assert all(found.weights[name].tobytes() == array.tobytes() for name, array in some_weights(40).items())
    assert all(np.array_equal(found.state[name], array) for name, array in some_state(40).items())


async def test_the_embedded_backend_plays_it(tmp_path):
    """A checkpoint is a folder that `TinyBackend` loads, and samples as the weights do."""
    folder = await asyncio.to_thread(lambda: save(Checkpoints(tmp_path, SOURCE), 1))
    loaded, updated = TinyBackend(folder), TinyBackend()
    await updated.update_weights(await asyncio.to_thread(some_weights, 1), 1)
    ids = updated.renderer.render([{"role": "user", "content": "What is 12 * 34?"}], [])
    request = GenerationRequest("a", [], [], Sampling(seed=1, max_tokens=8), prompt_ids=ids)
    sampled = [
        [(delta.token_ids, delta.logprobs) async for delta in backend.generate(request)]
        for backend in (loaded, updated)
    ]
    assert sampled[0] == sampled[1]
    for backend in (loaded, updated):
        await backend.close()


@pytest.mark.torch
def test_transformers_loads_it(tmp_path):
    """Every weight arrives in float32 as it was saved, and the tokenizer with its template."""
    transformers = pytest.importorskip("transformers")
    folder = save(Checkpoints(tmp_path, SOURCE), 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in some_weights(1).items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert "What is 2" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2?"}], tokenize=False
    )


@pytest.mark.torch
def test_the_file_is_what_safetensors_reads(tmp_path):
    """The format's own library reads it."""
    library = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([1.5])}
    found = library.load(safetensors_bytes(arrays))
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(arrays))
    assert np.array_equal(read_safetensors(tmp_path / "x.safetensors")["a"], arrays["a"])


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    """Older ones go; nothing else in the folder is touched."""
    checkpoints = Checkpoints(tmp_path, SOURCE)
    (tmp_path / "log.jsonl").write_text("mine")
    for step in (10, 20, 30, 40, 50):
        save(checkpoints, step, best=20)
    assert listing(tmp_path) == ["log.jsonl", "step-000020", "step-000040", "step-000050"]
    assert checkpoints.steps() == [20, 40, 50]


def test_saving_a_step_again_tells_more_about_it(tmp_path):
    """The weights of a step are what they are; what is said about them is written anew."""
    checkpoints = Checkpoints(tmp_path, SOURCE)
    save(checkpoints, 10)
    checkpoints.save(10, some_weights(99), some_state(99), {"history": ["new"]})
    found = checkpoints.load(CONFIG)
    assert found.about["history"] == ["new"]
    assert np.array_equal(found.weights["model.norm.weight"], some_weights(10)["model.norm.weight"])
    assert listing(tmp_path) == ["step-000010"]


@pytest.mark.parametrize("writes", range(8))
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, writes):
    """Whichever file does not fit, one sentence says so, and nothing half written stays."""
    checkpoints = Checkpoints(tmp_path, SOURCE)
    save(checkpoints, 10)
    before = {path.name: path.read_bytes() for path in (tmp_path / "step-000010").iterdir()}
    left = [writes]

    def full(descriptor):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left.*resume") as caught:
        save(checkpoints, 20)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert listing(tmp_path) == ["step-000010"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "step-000010").iterdir()} == before
    save(checkpoints, 20)
    assert checkpoints.load(CONFIG).step == 20


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    """A file stands where the folder is to be. No earlier checkpoint is promised where there is none."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(
        CheckpointError, match=r"cannot be written: [^;]*; make room, or give another folder$"
    ):
        save(Checkpoints(tmp_path / "out", SOURCE), 1)
    assert (tmp_path / "out").read_text() == "a file"


def test_the_source_is_not_needed_any_more(tmp_path):
    """It may be a checkpoint of another training, which goes on and prunes it."""
    source = tmp_path / "source"
    shutil.copytree(SOURCE, source)
    checkpoints = Checkpoints(tmp_path / "out", source)
    shutil.rmtree(source)
    assert (save(checkpoints, 1) / "tokenizer.json").read_bytes() == (SOURCE / "tokenizer.json").read_bytes()


def test_what_a_killed_process_left_is_no_hindrance(tmp_path):
    """Not even where it is of the step that is saved again."""
    (tmp_path / ".step-000010.new").mkdir()
    (tmp_path / ".step-000010.new" / "trainer.json").touch()
    save(Checkpoints(tmp_path, SOURCE), 10)
    assert listing(tmp_path) == ["step-000010"]


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    """The second is told; afterwards the folder is free again."""
    pytest.importorskip("fcntl", reason="where folders can be locked")
    out = tmp_path / "a" / "b"
    with (
        sole_writer(out),
        pytest.raises(InputError, match="another training is writing to"),
        sole_writer(out),
    ):
        pass
    with sole_writer(out):
        assert listing(out) == []
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"nothing can be written to .*file: "),
        sole_writer(tmp_path / "file"),
    ):
        pass


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.state", "trainer.json", "config.json"])
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_damaged_checkpoint_is_told(tmp_path, name, left):
    """A file that was cut short is named, with what to do."""
    checkpoints = Checkpoints(tmp_path, SOURCE)
    save(checkpoints, 10)
    path = save(checkpoints, 20) / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(CheckpointError, match=f"(?s){name}.*delete step-000020 to go on from step-000010"):
        checkpoints.load(CONFIG)
    assert checkpoints.load(CONFIG, step=10).step == 10


def test_a_checkpoint_of_another_model_is_told(tmp_path):
    """The first size that differs is named; so are weights that do not fit their configuration."""
    checkpoints = Checkpoints(tmp_path, SOURCE)
    folder = save(checkpoints, 10)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    write_checksums(folder)  # it is whole
    with pytest.raises(CheckpointError, match="hidden_size 64, and the agent's model 96"):
        checkpoints.load(CONFIG)
    (folder / "config.json").write_text(json.dumps(config))
    weights = some_weights()
    weights["model.norm.weight"] = weights["model.norm.weight"][:5]
    (folder / "model.safetensors").write_bytes(safetensors_bytes(weights))
    write_checksums(folder)
    with pytest.raises(CheckpointError, match=r"model.norm.weight.*train anew"):
        checkpoints.load(CONFIG)


def test_named_chat_templates_are_kept(tmp_path):
    """What the model began with goes into each checkpoint, the templates in a folder of their own too."""
    source = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    checkpoints = Checkpoints(tmp_path / "out", source)
    folder = save(checkpoints, 10)
    assert (folder / "additional_chat_templates" / "rag.jinja").read_text() == "{{ messages }}"
    assert checkpoints.load(CONFIG).step == 10


def test_an_empty_folder_has_none(tmp_path):
    """Nor has one that is not there."""
    assert Checkpoints(tmp_path / "nowhere", SOURCE).steps() == []
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        Checkpoints(tmp_path, SOURCE).load(CONFIG)


KILLED_AT_EVERY_CALL = """
import os, signal, sys
from pathlib import Path
import numpy as np
from rollcast.models.tiny.weights import read_config, read_weights
from rollcast.train.checkpoint import Checkpoints

out, source = Path(sys.argv[1]), Path(sys.argv[2])
config, weights = read_config(source), read_weights(source)
watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
left = [-1]

def die(event, arguments):
    if event in watched and left[0] >= 0:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

sys.addaudithook(die)
os.fsync = lambda descriptor: None  # the order of calls is looked at, not the disk
moment, whole = 0, False
while not whole:
    folder = out / str(moment)
    checkpoints = Checkpoints(folder, source)
    for step in (1, 2, 3):
        checkpoints.save(step, weights, {"counts": np.ones(2)}, {})
    pid = os.fork()
    if pid == 0:
        left[0] = moment
        checkpoints.save(4, weights, {"counts": np.ones(2)}, {}, best=1)  # a new one, and an old one goes
        checkpoints.save(4, weights, {"counts": np.ones(2)}, {"again": True}, best=1)
        os._exit(0)
    whole = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    found = checkpoints.load(config)
    assert found.step in (3, 4), (moment, found.step)
    assert all(np.array_equal(found.weights[name], weights[name]) for name in weights)
    for step in checkpoints.steps():
        checkpoints.load(config, step)
    checkpoints.save(5, weights, {"counts": np.ones(2)}, {})
    assert not list(folder.glob(".*")), list(folder.iterdir())
    moment += 1
print(moment)
"""


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="os.fork does not exist on Windows, and a child is killed here"
)
def test_a_process_killed_at_any_call_leaves_whole_checkpoints(tmp_path):
    """Before each of the calls that saving makes to the file system, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_CALL, tmp_path, SOURCE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15  # so many moments there were


TRAINING = """
import asyncio, sys
from pathlib import Path
from rollcast import BaseAgent
from rollcast.tasks import get_task
from rollcast.train import GRPOConfig, train

task = get_task("arithmetic")
agent = BaseAgent(tools=task.tools, reward=task.reward)
config = GRPOConfig(steps=8, questions=4, group=4, eval_questions=4, eval_every=2, save_every=1)
asyncio.run(train(agent, task, config, out=Path(sys.argv[1]), resume=True, on_progress=lambda p: print(p.step, flush=True)))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL, which this test sends")
def test_a_training_that_is_killed_resumes_to_the_same_weights(tmp_path):
    """Killed at random moments, and resumed: the weights of a training that was left alone."""

    def start(name):
        return subprocess.Popen(
            [sys.executable, "-c", TRAINING, tmp_path / name], stdout=subprocess.PIPE, text=True
        )

    rng = np.random.default_rng()
    with start("alone") as alone:
        for _ in range(2):
            with start("killed") as process:
                for _ in range(rng.integers(1, 4)):
                    process.stdout.readline()
                try:
                    process.wait(timeout=rng.uniform(0, 0.1))  # a moment, of which nothing is expected
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
        with start("killed") as process:
            process.stdout.read()
        alone.stdout.read()
    assert (alone.returncode, process.returncode) == (0, 0)
    for name in ("model.safetensors", "trainer.state"):
        killed, whole = ((tmp_path / run / "step-000008" / name).read_bytes() for run in ("killed", "alone"))
        assert killed == whole
