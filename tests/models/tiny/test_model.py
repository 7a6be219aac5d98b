"""The forward pass against transformers."""

import numpy as np
import pytest

from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.models.tiny.memory import new_memory
from rollcast.models.tiny.model import Model, Segment, forward, key_mask, key_width
from rollcast.models.tiny.weights import build_parameters, read_config, read_weights

CONFIG = read_config(CHECKPOINT)
WEIGHTS = read_weights(CHECKPOINT)


def logits_of(weights, ids):
    """Logits (T, V) of a sequence, read at once. Any rows will do here, so the product is NumPy's."""
    ids, width = np.array(ids), key_width(len(ids))
    positions = np.arange(len(ids))
    segment = Segment(0, len(ids), new_memory(CONFIG, 1, width), 0, positions, key_mask(positions, width))
    model = Model(CONFIG, build_parameters(weights, CONFIG), np.matmul)
    with np.errstate(over="ignore"):
        return forward(model, ids, positions, [segment])


@pytest.mark.parametrize(
    ("length", "width"), [(1, 64), (64, 64), (65, 128), (128, 128), (129, 256), (1000, 1024)]
)
def test_the_key_width_is_a_function_of_the_length(length, width):
    """Powers of two from 64."""
    assert key_width(length) == width


def test_the_mask_hides_what_comes_later():
    """A row at position p sees p + 1 keys."""
    mask = key_mask(np.array([0, 5, 63]), 64)
    assert mask.shape == (3, 1, 1, 64)
    assert (mask == 0).sum(-1).ravel().tolist() == [1, 6, 64]
    assert np.isneginf(mask[1, 0, 0, 6:]).all()


@pytest.mark.torch
@pytest.mark.parametrize("scale", [1.0, 2.5], ids=["bounded scores", "shifted scores"])
def test_logits_agree_with_transformers(tmp_path, scale):
    """On the shipped checkpoint, and with norms so large that the softmax has to shift its scores."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    weights = dict(WEIGHTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter *= scale
                weights[name] = weights[name] * scale
    assert all(layer.bounded == (scale == 1) for layer in build_parameters(weights, CONFIG).layers)
    ids = np.random.default_rng(0).integers(0, 512, 150).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits_of(weights, ids), expected, atol=1e-4 if scale == 1 else 1e-3)
