"""The embedded trainer: its gradients, its loss and its repeatability."""

import numpy as np
import pytest

from rollcast.errors import InputError
from rollcast.models.tiny.weights import ModelConfig, parameter_shapes
from rollcast.train import EmbeddedTrainer, GRPOConfig
from rollcast.train.batch import BatchStatistics, TrainBatch

ROWS, TOKENS = 7, 23


def model_config(**changed):
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "eos_token_ids": (2,),
    }
    return ModelConfig(**(sizes | changed))


def random_weights(config, seed=0):
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        weights[name] = rng.normal(1.0 if len(shape) == 1 else 0.0, 0.15, shape).astype(np.float32)
    return weights


def random_batch(config, seed=0, rows=ROWS, tokens=TOKENS):
    """Rows of several lengths; old log-probabilities far enough from the new ones that some ratios are clipped."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(tokens // 2, tokens + 1, rows)
    lengths[0] = tokens
    attention = np.arange(tokens) < lengths[:, None]
    loss_mask = attention & (rng.random((rows, tokens)) < 0.6)
    loss_mask[:, 0] = False
    typical = -np.log(config.vocab_size)
    logprobs = np.where(loss_mask, typical + rng.normal(0, 0.6, (rows, tokens)), 0).astype(np.float32)
    return TrainBatch(
        np.where(attention, rng.integers(0, config.vocab_size, (rows, tokens)), 0),
        attention,
        loss_mask,
        logprobs,
        np.where(loss_mask, 0, -1),
        rng.normal(0, 1, rows).astype(np.float32),
        np.zeros(rows, np.float32),
        np.zeros(rows, np.int64),
        tuple(f"chain_{i}" for i in range(rows)),
        BatchStatistics(1, 0, rows, 0, 0, 0, int(loss_mask.sum()), 0.0, 0.0, 0.0, 0),
    )


def torch_gradients(config, weights, batch, grpo):
    """Loss and gradients by transformers' Qwen3 and torch's autograd, in float64."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = transformers.Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        attn_implementation="eager",
    )
    model = transformers.Qwen3ForCausalLM(settings).double()
    missing, unexpected = model.load_state_dict(
        {name: torch.tensor(array).double() for name, array in weights.items()}, strict=False
    )
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    ids, mask = torch.tensor(batch.input_ids_BT), torch.tensor(batch.loss_mask_BT[:, 1:])
    logits = model(input_ids=ids, attention_mask=torch.tensor(batch.attention_mask_BT).long()).logits[:, :-1]
    logprobs_all = torch.log_softmax(logits / grpo.temperature, -1)
    logprobs = logprobs_all.gather(2, ids[:, 1:, None])[:, :, 0]
    entropy = -(logprobs_all.exp() * logprobs_all).sum(-1)
    ratio = torch.exp(logprobs - torch.tensor(batch.logprobs_BT[:, 1:]))
    advantages = torch.tensor(batch.advantages_B)[:, None]
    clipped = ratio.clamp(1 - grpo.clip_low, 1 + grpo.clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages) + grpo.entropy_bonus * entropy
    loss = -objective[mask].mean()
    loss.backward()
    outside = ((ratio - 1).abs() > 0.3)[mask].double().mean()
    assert 0.05 < outside < 0.95  # clipping is at work, and so are gradients
    gradients = {
        name: parameter.grad.numpy() for name, parameter in model.named_parameters() if name in weights
    }
    return gradients, loss.item()


@pytest.mark.torch
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 10},
    ],
    ids=["tied", "untied", "one-query-a-kv-head", "four-queries-a-kv-head"],
)
@pytest.mark.parametrize(("temperature", "bonus"), [(1.0, 0.003), (0.7, 0.3), (0.7, 0.0)])
def test_gradients_are_those_of_autograd(changed, temperature, bonus):
    """Loss and every parameter's gradient agree with transformers and torch autograd."""
    config = model_config(**changed)
    grpo = GRPOConfig(steps=1, temperature=temperature, entropy_bonus=bonus)
    weights, batch = random_weights(config), random_batch(config)
    expected, expected_loss = torch_gradients(config, weights, batch, grpo)
    gradients, loss = EmbeddedTrainer(config, weights, grpo).gradients(batch)
    assert set(gradients) == set(expected)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in gradients.items():
        worst = np.abs(gradient - expected[name]).max() / np.abs(expected[name]).max()
        assert worst < 5e-5, name


def test_gradients_do_not_depend_on_the_micro_batches(monkeypatch):
    """A batch cut into micro-batches of one row has the gradient of the whole."""
    config, grpo = model_config(), GRPOConfig(steps=1)
    weights, batch = random_weights(config), random_batch(config)
    whole, whole_loss = EmbeddedTrainer(config, weights, grpo).gradients(batch)
    monkeypatch.setattr("rollcast.train.embedded._MICRO_TOKENS", 1)
    parts, loss = EmbeddedTrainer(config, weights, grpo).gradients(batch)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, gradient in parts.items():
        np.testing.assert_allclose(gradient, whole[name], rtol=1e-3, atol=1e-6 * np.abs(whole[name]).max())


def test_learning_repeats_itself_to_the_byte():
    """Two trainers that get the same batches have the same weights, whichever thread was first."""
    config, grpo = model_config(), GRPOConfig(steps=1, epochs=2)
    trainers = [EmbeddedTrainer(config, random_weights(config), grpo) for _ in range(2)]
    for seed in range(3):
        batch = random_batch(config, seed, rows=64)
        first, second = (trainer.step(batch) for trainer in trainers)
        assert first == second
    a, b = (trainer.weights for trainer in trainers)
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_a_state_goes_on_as_the_trainer_would():
    """Weights and state make another trainer take the same next step, to the byte."""
    config, grpo = model_config(), GRPOConfig(steps=1)
    trainer = EmbeddedTrainer(config, random_weights(config), grpo)
    trainer.step(random_batch(config, 0, rows=40))
    other = EmbeddedTrainer(config, random_weights(config, 1), grpo)
    other.load_state(trainer.weights, trainer.state())
    for one in (trainer, other):
        one.step(random_batch(config, 1, rows=40))
    assert (other.steps, other.updates) == (2, 4)
    assert all(trainer.weights[name].tobytes() == array.tobytes() for name, array in other.weights.items())


def test_a_step_lowers_the_loss():
    """The same batch again has a lower loss after a step."""
    config, grpo = model_config(), GRPOConfig(steps=1, warmup_steps=0, learning_rate=1e-3, minibatches=1)
    trainer, batch = EmbeddedTrainer(config, random_weights(config), grpo), random_batch(config)
    _, before = trainer.gradients(batch)
    metrics = trainer.step(batch)
    _, after = trainer.gradients(batch)
    assert metrics["loss"] == pytest.approx(before, rel=1e-6)  # a step adds the rows up in another order
    assert after < before


def test_warm_up_and_clipping_bound_the_first_step():
    """The rate rises over the warm-up, and the norm that is told is that before clipping."""
    config, grpo = model_config(), GRPOConfig(steps=1, warmup_steps=4, max_grad_norm=1e-3)
    trainer, batch = EmbeddedTrainer(config, random_weights(config), grpo), random_batch(config)
    gradients, _ = trainer.gradients(batch)
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    steps = [trainer.step(batch) for _ in range(5)]
    assert [s["learning_rate"] for s in steps] == pytest.approx([1.5e-4, 3e-4, 4.5e-4, 6e-4, 6e-4])
    assert steps[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_updates_are_those_of_adamw():
    """As torch computes them from the same gradients, over several updates and the clipping of their norm."""
    torch = pytest.importorskip("torch")
    config, grpo = model_config(), GRPOConfig(steps=1, warmup_steps=0, max_grad_norm=0.05)
    trainer = EmbeddedTrainer(config, random_weights(config), grpo)
    names = list(trainer.weights)
    theirs = [torch.tensor(trainer.weights[name].copy(), requires_grad=True) for name in names]
    optimizer = torch.optim.AdamW(theirs, lr=grpo.learning_rate, betas=(0.9, 0.98), eps=1e-8, weight_decay=0)
    for seed in range(4):
        batch = random_batch(config, seed)
        gradients, _ = trainer.gradients(batch)
        for name, parameter in zip(names, theirs, strict=True):
            parameter.grad = torch.tensor(gradients[name].copy())
        torch.nn.utils.clip_grad_norm_(theirs, grpo.max_grad_norm)
        optimizer.step()
        trainer.step(batch)
    for name, parameter in zip(names, theirs, strict=True):
        np.testing.assert_allclose(trainer.weights[name], parameter.detach().numpy(), atol=2e-6)


def test_minibatches_are_drawn_anew_in_each_step():
    """The seed and the number of the step decide, so that the same chains do not always stay together."""
    config, batch = model_config(), random_batch(model_config(), rows=64)
    drawn = []
    trainer = EmbeddedTrainer(config, random_weights(config), GRPOConfig(steps=1))
    whole = trainer._sum
    trainer._sum = lambda batch, rows, pool: drawn.append(rows.tolist()) or whole(batch, rows, pool)
    for _ in range(2):
        trainer.step(batch)
    first, _, second, _ = drawn
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == list(range(64))
    assert first != second


def test_what_a_clipped_ratio_forbids_is_not_learned():
    """A good token that became much more probable already, and a bad one that became less, have no gradient."""
    config, grpo = model_config(), GRPOConfig(steps=1, entropy_bonus=0)
    batch = random_batch(config)
    for sign in (1, -1):
        batch.logprobs_BT[batch.loss_mask_BT] = -np.log(config.vocab_size) - sign * 5
        batch.advantages_B[:] = sign
        gradients, _ = EmbeddedTrainer(config, random_weights(config), grpo).gradients(batch)
        assert not any(gradient.any() for gradient in gradients.values())


def test_the_weights_given_are_left_alone():
    """The trainer learns in copies."""
    config = model_config()
    weights = random_weights(config)
    before = {name: array.copy() for name, array in weights.items()}
    EmbeddedTrainer(config, weights, GRPOConfig(steps=1)).step(random_batch(config))
    assert all((weights[name] == array).all() for name, array in before.items())


def test_batches_that_teach_nothing_are_refused():
    """Nothing sampled, ids of another vocabulary, too long rows, and a state of another model."""
    config = model_config()
    trainer = EmbeddedTrainer(config, random_weights(config), GRPOConfig(steps=1))
    empty = random_batch(config)
    empty.loss_mask_BT[:] = False
    with pytest.raises(InputError, match="no sampled token"):
        trainer.step(empty)
    with pytest.raises(InputError, match="no sampled token"):
        trainer.step(random_batch(config).rows([]))
    foreign = random_batch(config)
    foreign.input_ids_BT[0, 0] = 61
    with pytest.raises(InputError, match="ids up to 61"):
        trainer.step(foreign)
    with pytest.raises(InputError, match="rows of 65 tokens"):
        trainer.step(random_batch(config, tokens=65))
    other = model_config(hidden_size=16)
    with pytest.raises(InputError, match="moments have shape"):
        trainer.load_state(
            random_weights(config), EmbeddedTrainer(other, random_weights(other), GRPOConfig(steps=1)).state()
        )


def test_a_gradient_that_is_not_finite_is_told():
    """Training that diverges ends with a sentence, and the weights are as they were."""
    config = model_config()
    trainer, batch = (
        EmbeddedTrainer(config, random_weights(config), GRPOConfig(steps=1)),
        random_batch(config),
    )
    before = trainer.weights["model.norm.weight"].copy()
    batch.advantages_B[:] = np.nan
    with pytest.raises(InputError, match="not finite after 0 updates"):
        trainer.step(batch)
    assert (trainer.weights["model.norm.weight"] == before).all()


def test_metrics_are_what_they_say():
    """Entropy, KL estimate, clip fraction and norm, worked out from a uniform policy."""
    config = model_config()
    weights = random_weights(config)
    weights["model.norm.weight"][:] = 0  # all logits are 0: every token has probability 1 / V
    batch = random_batch(config)
    uniform = -np.log(config.vocab_size)
    batch.advantages_B[:] = 1
    batch.logprobs_BT[batch.loss_mask_BT] = uniform - 0.1
    grpo = GRPOConfig(steps=1, minibatches=1, entropy_bonus=0)
    metrics = EmbeddedTrainer(config, weights, grpo).step(batch)
    assert metrics["entropy"] == pytest.approx(-uniform, rel=1e-5)
    assert metrics["kl"] == pytest.approx(np.exp(0.1) - 1 - 0.1, rel=1e-3)
    assert metrics["clip_fraction"] == 0
    assert metrics["loss"] == pytest.approx(-np.exp(0.1), rel=1e-5)
    batch.logprobs_BT[batch.loss_mask_BT] = uniform - 1
    metrics = EmbeddedTrainer(config, weights, grpo).step(batch)
    assert (metrics["clip_fraction"], metrics["grad_norm"]) == (1, 0)
    assert metrics["loss"] == pytest.approx(-1.28, rel=1e-5)
    paid = GRPOConfig(steps=1, minibatches=1, entropy_bonus=0.1)
    metrics = EmbeddedTrainer(config, weights, paid).step(batch)
    assert metrics["loss"] == pytest.approx(-1.28 + 0.1 * uniform, rel=1e-5)
