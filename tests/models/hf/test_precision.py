"""A forward pass may compute in another precision than that of its parameters: under autocast, or with norms in float32."""

import asyncio
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra")

sys.path.insert(0, str(Path(__file__).parent))

import torch
from families import FAMILIES, make_model
from transformers import AutoConfig, AutoTokenizer, Qwen3ForCausalLM

from rollcast.errors import InputError
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.hf import TransformersBackend, batch
from rollcast.models.hf.cache import ProbeCache
from rollcast.models.hf.forward import Forward
from rollcast.models.hf.mode import SamplingMode
from rollcast.models.hf.settings import Limits
from rollcast.models.hf.slots import Row
from rollcast.models.tiny.backend import CHECKPOINT

pytestmark = pytest.mark.torch

# The same tests where there is a GPU: nothing in them says which device it is.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

PROMPT = [1, *range(30, 60)]
# bfloat16 has 8 bits, and rounds differently in the shapes of a cached step than in those of a whole pass.
CLOSE = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-4}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def embedded():
    return Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).to(DEVICE)


def under_autocast(model, dtype=torch.bfloat16):
    """What a trainer does to a model for mixed precision."""
    inner = model.forward

    def forward(*args, **kwargs):
        with torch.autocast(model.device.type, dtype=dtype):
            return inner(*args, **kwargs)

    model.forward = forward
    return model


def backend_of(model, tokenizer):
    backend = TransformersBackend(model, tokenizer, cache_bytes=1 << 24)
    backend._engine._end_ids = frozenset()  # generations run to their limit
    return backend


async def sampled(backend, prompt=PROMPT, name="r", tokens=40):
    asked = GenerationRequest(name, [], [], Sampling(seed=0, max_tokens=tokens), list(prompt))
    deltas = [delta async for delta in backend.generate(asked)]
    return [i for d in deltas for i in d.token_ids], [p for d in deltas for p in d.logprobs]


def teacher_forced(model, ids, prompt=PROMPT):
    """The log-probabilities that one whole pass of the same model gives, in its eval mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]], device=model.device)).logits[0, len(prompt) - 1 : -1]
    for module in training:
        module.training = True
    return torch.log_softmax(logits.float(), -1)[range(len(ids)), ids].tolist()


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
async def test_a_float32_model_samples_under_autocast(family, dtype, made, tokenizer):
    """Whether autocast came before the backend or after it, log-probabilities are those of the pass that was run."""
    model = make_model(family).to(DEVICE)
    if made == "after":
        under_autocast(model, dtype)
    backend = backend_of(model, tokenizer)
    if made == "before":
        under_autocast(model, dtype)
    ids, logprobs = await sampled(backend)
    assert logprobs == pytest.approx(teacher_forced(model, ids), abs=CLOSE[dtype])
    await backend.close()


@pytest.fixture
def accelerate():
    """The package, whose state is the process's: whatever a test before has set is put aside, and what this one sets as well."""
    package = pytest.importorskip("accelerate", reason="needs the extra train")
    state = package.state.AcceleratorState
    state._reset_state(reset_partial_state=True)
    yield package
    state._reset_state(reset_partial_state=True)


async def test_what_a_trainer_prepared_samples_and_trains_again(tokenizer, accelerate):
    """Accelerate's mixed precision, gradient checkpointing and train mode: all of them are as they were afterwards."""
    model = embedded()
    backend = backend_of(model, tokenizer)
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    prepared = accelerate.Accelerator(mixed_precision="bf16", cpu=DEVICE == "cpu").prepare_model(model)
    assert prepared is model
    ids, logprobs = await sampled(backend)
    assert all(module.training for module in model.modules())
    assert logprobs == pytest.approx(teacher_forced(model, ids), abs=CLOSE[torch.bfloat16])
    tokens = torch.tensor([[*PROMPT, *ids]], device=model.device)
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    await backend.close()


async def test_autocast_may_come_and_go_while_it_samples(tokenizer):
    """Rows are read again: none mixes keys of two precisions, and none is lost."""
    model = embedded()
    backend = backend_of(model, tokenizer)
    plain = model.forward
    running = backend.generate(GenerationRequest("long", [], [], Sampling(max_tokens=300), list(PROMPT)))
    for _ in range(3):
        await anext(running)
    for wrapped in (True, False):
        if wrapped:
            under_autocast(model)
        else:
            model.forward = plain
        ids, logprobs = await sampled(backend, name=str(wrapped))
        close = CLOSE[torch.bfloat16 if wrapped else torch.float32]
        assert logprobs == pytest.approx(teacher_forced(model, ids), abs=close)
    assert sum(len(delta.token_ids) for delta in [delta async for delta in running]) > 100
    await backend.close()


async def test_autocast_may_change_while_the_model_is_looked_at(tokenizer):
    """Whoever prepares a model has no reason to wait for the backend: it looks again, and samples on."""
    model = embedded()
    backend = backend_of(model, tokenizer)
    inner = model.forward
    changes = iter([False, True, False, True, True, False])  # one a pass, and then it stays

    def forward(*args, **kwargs):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=next(changes, True)):
            return inner(*args, **kwargs)

    model.forward = forward
    ids, logprobs = await sampled(backend)
    assert logprobs == pytest.approx(teacher_forced(model, ids), abs=CLOSE[torch.bfloat16])
    await backend.close()


async def test_a_mixture_that_goes_on_is_told(tokenizer):
    """Autocast for prompts alone, say: keys of two precisions would be compared with each other."""
    model = embedded()
    inner = model.forward

    def forward(*args, **kwargs):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=kwargs["input_ids"].shape[1] > 1):
            return inner(*args, **kwargs)

    model.forward = forward
    with pytest.raises(
        InputError, match=r"another precision from one pass to the next.*use one autocast for all"
    ):
        backend_of(model, tokenizer)


def test_parts_that_do_not_fit_together_are_told(tokenizer):
    """The model cannot run at all like this, whoever asks; under autocast it can."""
    model = embedded()
    model.model.layers[1].to(torch.bfloat16)
    with pytest.raises(InputError, match=r"its parts compute in different precisions .*torch\.autocast"):
        backend_of(model, tokenizer)
    backend_of(under_autocast(model), tokenizer)


async def test_a_backend_that_is_made_under_autocast_samples_without(tokenizer):
    """Autocast holds for the thread that asked for it, and the engine has its own."""
    model = embedded()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        backend = await asyncio.to_thread(backend_of, model, tokenizer)
        inside = backend_of(model, tokenizer)
    for made in (backend, inside):
        ids, logprobs = await sampled(made)
        assert logprobs == pytest.approx(teacher_forced(model, ids), abs=CLOSE[torch.float32])
        await made.close()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
async def test_norms_may_be_in_float32(attention, tokenizer):
    """A bfloat16 model whose norms are float32, as trainers keep them: keys are then float32 and values bfloat16."""
    model = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.bfloat16, attn_implementation=attention)
    for name, module in model.to(DEVICE).named_modules():
        if "norm" in name:
            module.float()
    backend = backend_of(under_autocast(model), tokenizer)
    ids, logprobs = await sampled(backend)
    assert logprobs == pytest.approx(teacher_forced(model, ids), abs=CLOSE[torch.bfloat16])
    await backend.close()


async def test_logprobs_of_a_half_precision_model_are_float32(tokenizer):
    """They are the logarithms of probabilities to float32's precision, not to that of the logits' dtype."""
    model = embedded().to(torch.bfloat16)
    backend = backend_of(model, tokenizer)
    seen = []
    hook = model.lm_head.register_forward_hook(
        lambda module, given, logits: seen.append(logits[:, -1].clone())
    )
    ids, logprobs = await sampled(backend, tokens=10)
    hook.remove()
    exact = [torch.log_softmax(logits[0].double(), -1)[i].item() for logits, i in zip(seen, ids, strict=True)]
    assert logprobs == pytest.approx(exact, abs=1e-5)
    await backend.close()


def test_everything_is_computed_where_the_model_is(monkeypatch):
    """On a device that is not the CPU (here `meta`, which has shapes alone), no tensor of the CPU's takes part.

    Only what looks at numbers is replaced: the check of the architecture, and the copy of tokens to the host.
    """

    def shapes(forward):
        cache = ProbeCache()
        ids = torch.zeros(1, 4, dtype=torch.long, device=forward.device)
        forward.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache.shapes

    devices = set()

    def on_host(tokens, logprobs):
        devices.update((tokens.device.type, logprobs.device.type))
        return [5] * len(tokens), [-1.0] * len(tokens)

    monkeypatch.setattr(Forward, "_check", shapes)
    monkeypatch.setattr(batch, "_copied_to_host", on_host)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(AutoConfig.from_pretrained(CHECKPOINT))
    running = batch.Batch(Forward(model), Limits(4, 16, 4096, 512), SamplingMode(model), keep_cache=True)
    samplings = [Sampling(), Sampling(temperature=0), Sampling(temperature=0.5, top_p=0.9, top_k=7)]
    rows = [Row([*range(250), 90 + i], sampling) for i, sampling in enumerate(samplings)]
    for row in rows:
        running.add(row)
    while rows[-1].sampled < 10:  # beyond 256 tokens the slots are made anew
        running.step()
    running.remove(rows[0])
    running.step()
    assert devices == {"meta"}
