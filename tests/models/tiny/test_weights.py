"""Reading checkpoints."""

import json
import shutil
import struct

import numpy as np
import pytest

from rollcast.errors import InputError
from rollcast.models.tiny.backend import CHECKPOINT, TinyBackend
from rollcast.models.tiny.weights import (
    build_parameters,
    parameter_shapes,
    read_config,
    read_safetensors,
    read_weights,
)


def write_safetensors(path, dtype, array):
    header = json.dumps(
        {
            "__metadata__": {"format": "np"},
            "x": {"dtype": dtype, "shape": list(array.shape), "data_offsets": [0, array.nbytes]},
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + array.tobytes())


@pytest.mark.parametrize(("name", "dtype"), [("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2")])
def test_floats_are_read_as_float32(tmp_path, name, dtype):
    """F64, F32 and F16 tensors come out as float32 of the same values and shape."""
    array = np.array([[1.5, -2.0, 0.25]], dtype)
    write_safetensors(tmp_path / "x.safetensors", name, array)
    read = read_safetensors(tmp_path / "x.safetensors")["x"]
    assert read.dtype == np.float32
    assert read.tolist() == array.tolist()


def test_bfloat16_is_read_as_float32(tmp_path):
    """The 16 bits of a BF16 are the upper half of the float32."""
    write_safetensors(tmp_path / "x.safetensors", "BF16", np.array([0x3FC0, 0xC000], "<u2"))
    assert read_safetensors(tmp_path / "x.safetensors")["x"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "content", [b"", b"\x10\0\0\0\0\0\0\0{", b"\xff" * 100, struct.pack("<Q", 2) + b"[]"]
)
def test_a_broken_file_is_refused_in_a_sentence(tmp_path, content):
    """A file that is cut off, or no safetensors at all, is an InputError that names it."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_safetensors(path)


def test_a_file_of_integers_is_refused(tmp_path):
    """Weights are floats."""
    write_safetensors(tmp_path / "x.safetensors", "I64", np.array([1], "<i8"))
    with pytest.raises(InputError, match="I64"):
        read_safetensors(tmp_path / "x.safetensors")


def test_a_missing_file_is_refused(tmp_path):
    """Neither a file that is not there nor a folder without one is a checkpoint."""
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(tmp_path / "no.safetensors")
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        read_weights(tmp_path)
    with pytest.raises(InputError, match="are int; expected a mapping"):
        read_weights(5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "llama"}, "'llama'; the tiny backend runs 'qwen3' only"),
        ({"attention_bias": True}, "asks for attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "asks for rope scaling"),
        ({"hidden_size": "x"}, "not a complete Qwen3 configuration"),
    ],
)
def test_another_architecture_is_refused(tmp_path, change, sentence):
    """What the forward pass does not compute is refused when it is loaded."""
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=sentence):
        TinyBackend(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path):
    """A folder that is no checkpoint is refused."""
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        TinyBackend(tmp_path)


CONFIG = read_config(CHECKPOINT)
WEIGHTS = read_weights(CHECKPOINT)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("model.norm.weight", None, r"lack model\.norm\.weight \(1 missing"),
        ("model.extra", np.zeros(3), r"unknown model\.extra"),
        ("model.norm.weight", np.zeros(3), r"model\.norm\.weight has shape \(3,\); expected \(96,\)"),
        ("model.norm.weight", np.full(96, np.nan), "not finite"),
    ],
    ids=["missing", "unknown", "shape", "nan"],
)
def test_wrong_weights_are_refused(name, value, sentence):
    """One sentence names the parameter."""
    weights = {**WEIGHTS, name: value}
    if value is None:
        del weights[name]
    with pytest.raises(InputError, match=sentence):
        build_parameters(weights, CONFIG)


def test_parameters_are_copies():
    """A trainer that goes on changing its arrays in place does not change what samples."""
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    parameters = build_parameters(weights, CONFIG)
    before = parameters.embed_VD.copy()
    weights["model.embed_tokens.weight"] *= 2
    assert (parameters.embed_VD == before).all()


def test_the_checkpoint_has_the_shapes_of_its_config():
    """The shipped file has every parameter and no other."""
    assert {name: array.shape for name, array in WEIGHTS.items()} == parameter_shapes(CONFIG)
