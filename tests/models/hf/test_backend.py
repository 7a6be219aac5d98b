"""Hugging Face models as a backend, through its public face."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra")

sys.path.insert(0, str(Path(__file__).parent))

import torch
from families import make_folder, make_model
from transformers import AutoTokenizer, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

import rollcast
from rollcast import BaseAgent
from rollcast.errors import (
    BackendClosedError,
    BackendError,
    InputError,
    MissingExtraError,
    PromptTooLongError,
)
from rollcast.models import resolve_backend
from rollcast.models.backend import Backend, GenerationRequest, Sampling
from rollcast.models.hf import TransformersBackend
from rollcast.models.tiny import TinyBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.tools import calculator

pytestmark = pytest.mark.torch


def request(name="r", prompt=(1, 30, 40, 50), **sampling):
    return GenerationRequest(name, [], [], Sampling(**{"seed": 0, **sampling}), list(prompt))


async def collect(backend, asked):
    return [delta async for delta in backend.generate(asked)]


def ids(deltas):
    return [token for delta in deltas for token in delta.token_ids]


def logprobs(deltas):
    return [logprob for delta in deltas for logprob in delta.logprobs]


def endless(backend):
    """Let generations run to their limit: no token ends them."""
    backend._engine._end_ids = frozenset()
    return backend


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture
async def make(model, tokenizer):
    """Backends that are closed afterwards; by default of the embedded checkpoint as a model object."""
    made = []

    def make(given=None, **options):
        backend = TransformersBackend(given or model, tokenizer, **{"cache_bytes": 1 << 24, **options})
        made.append(backend)
        return endless(backend)

    yield make
    for backend in made:
        await backend.close()


def teacher_forced(model, prompt, sampled):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[range(len(sampled)), sampled].tolist()


async def test_it_is_a_backend_for_an_agent():
    """By its name, with a folder; the embedded checkpoint calls the calculator and answers right."""
    agent = BaseAgent(
        str(CHECKPOINT),
        [calculator],
        "transformers",
        backend_options={"device": "cpu", "cache_bytes": 1 << 24},
    )
    async with agent:
        assert isinstance(agent.backend, Backend)
        assert (agent.backend.name, agent.backend.model_name) == ("transformers", str(CHECKPOINT))
        result = await agent.run_async(
            3, [{"role": "user", "content": "What is 347 * 28 + 9?"}], 4, sampling={"temperature": 0}
        )
    assert {t.final_response for t in result} == {"The answer is 9725."}


async def test_it_samples_what_the_embedded_engine_samples(make):
    """Two implementations of one model, one kind of sampler: the same seeds give the same ids."""
    hf, tiny = make(), endless(TinyBackend())
    for i, sampling in enumerate(({}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 5}, {"temperature": 0})):
        asked = request(f"r{i}", seed=i, max_tokens=30, **sampling)
        ours, theirs = await collect(hf, asked), await collect(tiny, asked)
        assert ids(ours) == ids(theirs)
        assert logprobs(ours) == pytest.approx(logprobs(theirs), abs=1e-4)
    await tiny.close()


async def test_a_long_prompt_does_not_hold_up_those_that_decode(make):
    """It is read in parts, and in each step the others sample a token."""
    backend = make(prompt_tokens=8)
    running = backend.generate(request("running", max_tokens=200))
    await anext(running)
    batch = backend._engine._batch
    before = batch._slots.decoding[0].sampled
    long = await collect(backend, request("long", [5 + i % 300 for i in range(400)], max_tokens=1))
    assert len(long) == 1
    # While others decode as many as wait, a step reads at most 16 tokens.
    assert batch._slots.decoding[0].sampled - before >= 400 // 16 - 1
    await running.aclose()


async def test_prompts_of_all_lengths_come_together(make, model):
    """Read side by side, padded and in parts, their log-probabilities are those of a pass for each alone."""
    backend = make(prompt_tokens=24, max_batch=6)
    prompts = [
        [1, *((7 * i + j) % 300 + 20 for j in range(length))]
        for i, length in enumerate((1, 2, 9, 30, 70, 150, 3))
    ]
    asked = [request(f"r{i}", prompt, seed=i, max_tokens=12) for i, prompt in enumerate(prompts)]
    for prompt, deltas in zip(
        prompts, await asyncio.gather(*(collect(backend, one) for one in asked)), strict=True
    ):
        assert logprobs(deltas) == pytest.approx(teacher_forced(model, prompt, ids(deltas)), abs=1e-4)


@pytest.fixture
def fed(monkeypatch):
    """How many tokens each forward pass was fed, padding included."""
    from rollcast.models.hf.forward import Forward

    counts, call = [], Forward.__call__

    def counted(self, cache, rows, index, ids, positions, seen):
        counts.append(ids.numel())
        return call(self, cache, rows, index, ids, positions, seen)

    monkeypatch.setattr(Forward, "__call__", counted)
    return counts


async def test_a_later_turn_reads_only_what_is_new(make, model, fed):
    """The keys and values of the turn before are used, and the log-probabilities are those of a pass over all."""
    backend = make(keep_cache=True)
    prompt = [1, *range(20, 80)]
    first = ids(await collect(backend, request("a", prompt, max_tokens=20)))
    fed.clear()
    later = [*prompt, *first, 300, 301, 302]
    deltas = await collect(backend, request("b", later, max_tokens=5))
    assert sum(fed) <= 3 + 1 + 5
    assert logprobs(deltas) == pytest.approx(teacher_forced(model, later, ids(deltas)), abs=1e-4)


async def test_a_group_reads_its_prompt_once(make, fed, model):
    """Chains with the same prompt share what was read of it."""
    backend, prompt = make(), [1, *range(20, 220)]
    fed.clear()
    got = await asyncio.gather(
        *(collect(backend, request(f"r{i}", prompt, seed=i, max_tokens=3)) for i in range(8))
    )
    assert sum(fed) <= 200 + 8 * 5
    for deltas in got:
        assert logprobs(deltas) == pytest.approx(teacher_forced(model, prompt, ids(deltas)), abs=1e-4)


async def test_more_rows_than_memory_wait_and_finish(make, model):
    """Where the slots end, rows that came last wait, are read again, and sample the same in the end."""
    small = make(cache_bytes=700 * 4 * 2 * 2 * 24 * 4)  # 700 tokens: two slots of 256, one of 512
    assert small.limits.cache_tokens == 700
    prompts = [[1, *range(20 + i, 220 + i)] for i in range(4)]
    asked = [request(f"r{i}", prompt, seed=i, max_tokens=100) for i, prompt in enumerate(prompts)]
    for prompt, deltas in zip(
        prompts, await asyncio.gather(*(collect(small, one) for one in asked)), strict=True
    ):
        assert len(ids(deltas)) == 100
        assert logprobs(deltas) == pytest.approx(teacher_forced(model, prompt, ids(deltas)), abs=1e-4)
    with pytest.raises(PromptTooLongError, match="700"):
        await collect(small, request(prompt=[5] * 700))


async def test_a_trainer_has_its_model_back(make, tokenizer, model):
    """Modes of all modules are as they were by the last token, and dropout was off while it sampled."""
    gpt = make_model("gpt2").train()
    gpt.transformer.h[0].eval()
    before = [module.training for module in gpt.modules()]
    backend = make(gpt)
    for name in "ab":
        prompt = [1, *range(30, 60)]
        deltas = await collect(backend, request(name, prompt, max_tokens=20))
        assert [module.training for module in gpt.modules()] == before
        gpt.eval()
        assert logprobs(deltas) == pytest.approx(teacher_forced(gpt, prompt, ids(deltas)), abs=1e-4)
        for module, training in zip(gpt.modules(), before, strict=True):
            module.training = training
    loss = gpt(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()


async def test_weights_changed_in_place_are_told_with_none(make, tokenizer):
    """The trainer's own step, then a version: what was kept of the old weights is not used."""
    own = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    backend, prompt = make(own, keep_cache=True), [1, *range(30, 60)]
    await collect(backend, request("a", prompt, max_tokens=5))
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(0.9)
    await backend.update_weights(None, 3)
    deltas = await collect(backend, request("b", prompt, max_tokens=20))
    assert {delta.policy_version for delta in deltas} == {3}
    assert logprobs(deltas) == pytest.approx(teacher_forced(own, prompt, ids(deltas)), abs=1e-4)


async def test_new_weights_come_as_tensors_arrays_or_a_folder(make, model):
    """Tied parameters may be given once or twice, and wrong ones are refused in a sentence that names them."""
    own = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    backend = make(own)
    weights = {name: tensor * 0.9 for name, tensor in own.state_dict().items()}
    await backend.update_weights(weights, 1)
    head = weights.pop("lm_head.weight")
    await backend.update_weights({name: tensor.numpy() for name, tensor in weights.items()}, 2)
    with pytest.raises(InputError, match="one parameter in this model, and the weights differ"):
        await backend.update_weights({**weights, "lm_head.weight": head + 1}, 3)
    with pytest.raises(InputError, match=r"'model\.nonsense', which the model does not have"):
        await backend.update_weights({**weights, "model.nonsense": head}, 3)
    with pytest.raises(InputError, match=r"shape \(1,\); expected \(96,\)"):
        await backend.update_weights({**weights, "model.norm.weight": torch.ones(1)}, 3)
    with pytest.raises(InputError, match="not finite"):
        await backend.update_weights({**weights, "model.norm.weight": torch.full((96,), torch.nan)}, 3)
    with pytest.raises(InputError, match="lack"):
        await backend.update_weights({}, 3)
    assert backend.policy_version == 2
    await backend.update_weights(CHECKPOINT, 4)
    deltas = await collect(backend, request(max_tokens=10))
    assert logprobs(deltas) == pytest.approx(teacher_forced(model, [1, 30, 40, 50], ids(deltas)), abs=1e-4)


async def test_logits_that_are_not_finite_fail_their_requests_only(make):
    """And what they left in the slots harms nobody."""
    own = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    backend = make(own, keep_cache=True)
    norm = own.state_dict()["model.layers.0.input_layernorm.weight"]
    sound = norm.clone()
    norm.fill_(torch.inf)
    await backend.update_weights(None, 1)
    with pytest.raises(BackendError, match="not finite with the weights of version 1"):
        await collect(backend, request())
    norm.copy_(sound)
    await backend.update_weights(None, 2)
    assert len(await collect(backend, request(max_tokens=5))) == 5


async def test_out_of_memory_halves_the_batch(make, model, monkeypatch):
    """Where too many rows do not fit into the device's memory, all finish in smaller company."""
    backend, forward = make(), Qwen3ForCausalLM.forward

    def scarce(self, input_ids, **rest):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", scarce)
    prompts = [[1, *range(20 + 30 * i, 40 + 30 * i)] for i in range(8)]
    asked = [request(f"r{i}", prompt, seed=i, max_tokens=10) for i, prompt in enumerate(prompts)]
    got = await asyncio.gather(*(collect(backend, one) for one in asked))
    monkeypatch.undo()
    for prompt, deltas in zip(prompts, got, strict=True):
        assert len(deltas) == 10
        assert logprobs(deltas) == pytest.approx(teacher_forced(model, prompt, ids(deltas)), abs=1e-4)


async def test_a_row_too_large_for_the_device_fails_alone(make, monkeypatch):
    """The one that does not fit on its own is told so; the others go on."""
    backend, forward = make(prompt_tokens=64), Qwen3ForCausalLM.forward

    def scarce(self, input_ids, **rest):
        if input_ids.shape[1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", scarce)
    large, small = await asyncio.gather(
        collect(backend, request("large", range(20, 300))), collect(backend, request("small", max_tokens=10)),
        return_exceptions=True,
    )  # fmt: skip
    assert isinstance(large, BackendError)
    assert "ran out of memory over one generation of 280 tokens" in str(large)
    assert len(small) == 10


async def test_closing_fails_what_runs(make):
    """Running and later generations raise BackendClosedError."""
    backend = make()
    running = backend.generate(request(max_tokens=900))
    await anext(running)
    await backend.close()
    with pytest.raises(BackendClosedError, match="make another TransformersBackend"):
        async for _ in running:
            pass


def tokenizer_without(template=None, **changed):
    made = AutoTokenizer.from_pretrained(CHECKPOINT)
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda m, t: TransformersBackend("/nowhere/at/all"), "'/nowhere/at/all' is not a folder"),
        (lambda m, t: TransformersBackend(m), "without its tokenizer"),
        (lambda m, t: TransformersBackend(object(), t), "model is object; expected a path"),
        (lambda m, t: TransformersBackend(m, t, device="cpu"), "device was given with a model object"),
        (lambda m, t: TransformersBackend(m, tokenizer_without()), "has no chat template"),
        (lambda m, t: TransformersBackend(m, object()), "object is a slow tokenizer"),
        (lambda m, t: TransformersBackend(m, t, max_batch=0), "max_batch is 0; expected a whole number"),
        (lambda m, t: TransformersBackend(m, t, cache_bytes=10), "cache_bytes is 10; expected room"),
        (lambda m, t: TransformersBackend(m, t, context=5000), "context is 5000; expected 2 to 1024"),
        (
            lambda m, t: TransformersBackend(str(CHECKPOINT), device="nonsense"),
            "device 'nonsense' cannot be used",
        ),
        (
            lambda m, t: TransformersBackend(str(CHECKPOINT), dtype="nonsense"),
            "dtype is 'nonsense'; expected",
        ),
    ],
)
def test_what_cannot_be_made_says_why(given, sentence, model, tokenizer, monkeypatch):
    """One sentence with what to do."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=sentence):
        given(model, tokenizer)


def test_models_that_cannot_be_served_are_refused(tokenizer, tmp_path):
    """Encoders, recurrent states, other attention kernels, and a tokenizer of another model."""
    from transformers import MambaConfig, MambaForCausalLM

    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=512, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(InputError, match="has an encoder"):
        TransformersBackend(t5, tokenizer)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=512, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match="expected a plain transformer"):
        TransformersBackend(mamba, tokenizer)
    small = make_model("llama")
    small.resize_token_embeddings(100)
    with pytest.raises(InputError, match="512 tokens and the model's embeddings 100"):
        TransformersBackend(small, tokenizer)
    flash = make_model("llama")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="attn_implementation='sdpa'"):
        TransformersBackend(flash, tokenizer)


def test_an_architecture_that_computes_otherwise_is_found_out(tokenizer, monkeypatch):
    """A model that ignores the positions that it is given is refused before it samples anything wrong."""
    model = make_model("llama")
    forward = type(model).forward

    def deaf(self, input_ids, position_ids=None, **rest):
        return forward(
            self, input_ids, position_ids=None if position_ids is None else position_ids * 0, **rest
        )

    monkeypatch.setattr(type(model), "forward", deaf)
    with pytest.raises(InputError, match="gives other logits"):
        TransformersBackend(model, tokenizer)


def test_a_missing_extra_names_itself(monkeypatch):
    """The sentence says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("rollcast.models.hf")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"pip install 'rollcast\[transformers\]'"):
        resolve_backend("transformers", "some/model")


def test_a_process_ends_while_its_backend_samples():
    """Nothing waits for the engine's thread, and nothing is printed."""
    code = f"""
import asyncio
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.hf import TransformersBackend

async def main():
    backend = TransformersBackend({str(CHECKPOINT)!r}, device="cpu", cache_bytes=1 << 24)
    backend._engine._end_ids = frozenset()
    deltas = backend.generate(GenerationRequest("r", [], [], Sampling(max_tokens=900), [1, 2, 3]))
    await anext(deltas)
    print("sampled")

asyncio.run(main())
"""
    source = str(Path(rollcast.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=500
    )
    assert (done.returncode, done.stdout) == (0, "sampled\n"), done.stderr


async def test_pieces_with_byte_fallback_stream_whole_characters(tmp_path):
    """A character of several byte pieces comes with its last; the first piece's space is not part of the text."""
    from families import decode_pieces

    folder = make_folder("mistral", tmp_path)
    backend = endless(TransformersBackend(folder, device="cpu", cache_bytes=1 << 24))
    for seed in range(5):
        deltas = await collect(backend, request(f"r{seed}", seed=seed, temperature=50.0, max_tokens=100))
        assert "".join(delta.text for delta in deltas) == decode_pieces(ids(deltas))
    await backend.close()


async def test_odd_requests_end_alone(make):
    """A number larger than the device's integers, or ids that are none, end nobody else's generation."""
    backend = make()
    other = asyncio.create_task(collect(backend, request("other", max_tokens=20)))
    assert len(await collect(backend, request("large", max_tokens=3, top_k=2**70))) == 3
    for odd in ([1.0], [True], [torch.tensor(3)], "abc"):
        with pytest.raises(InputError, match="expected a list of int"):
            await collect(backend, GenerationRequest("odd", [], [], Sampling(), odd))
    assert len(await other) == 20


@pytest.mark.parametrize("end", ["close", "death"])
async def test_a_trainers_model_trains_again_after_the_end(tokenizer, end):
    """Where the backend is closed or its engine dies, the model is left in the mode that it was in."""
    trained = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).train()
    backend = endless(TransformersBackend(trained, tokenizer, cache_bytes=1 << 24))
    running = backend.generate(request(max_tokens=900))
    await anext(running)
    assert not trained.training
    if end == "close":
        await backend.close()
    else:
        backend._engine._batch._step = lambda: 1 / 0
    with pytest.raises(BackendError):
        [_ async for _ in running]
    assert all(module.training for module in trained.modules())
    await backend.close()


async def test_a_model_may_change_its_dtype(tokenizer):
    """What was kept in the old one is let go of; rows are read again."""
    moved = Qwen3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    backend = endless(TransformersBackend(moved, tokenizer, cache_bytes=1 << 24))
    await collect(backend, request(max_tokens=10))
    moved.double()
    deltas = await collect(backend, request(max_tokens=10))
    assert logprobs(deltas) == pytest.approx(teacher_forced(moved, (1, 30, 40, 50), ids(deltas)), abs=1e-4)
    await backend.close()


@pytest.mark.parametrize("wrong", [torch.int8, torch.complex64, "meta"])
async def test_weights_that_are_no_numbers_to_compute_with_are_refused(make, model, wrong):
    """Integers would be zeros, and complex numbers halved, without a word."""
    backend = make()
    with pytest.raises(InputError, match="expected floating-point numbers"):
        await backend.update_weights({name: value.to(wrong) for name, value in model.state_dict().items()}, 1)
    assert backend.policy_version == 0


@pytest.mark.parametrize("version", [-1, "1", None, True, 1.0])
async def test_a_version_is_a_whole_number(make, version):
    """It goes into every token's record, where -1 says that nothing was sampled."""
    with pytest.raises(InputError, match="version is"):
        await make().update_weights(None, version)


def test_a_long_rope_ends_where_its_frequencies_change(tokenizer):
    """Beyond, one long row would change what the others are computed with."""
    from families import COMMON
    from transformers import Phi3Config, Phi3ForCausalLM

    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    }  # fmt: skip
    phi = Phi3ForCausalLM(
        Phi3Config(**{**COMMON, "original_max_position_embeddings": 64, "rope_parameters": rope})
    )
    assert TransformersBackend(phi, tokenizer, cache_bytes=1 << 24).context == 64
    with pytest.raises(InputError, match="longrope"):
        TransformersBackend(phi, tokenizer, cache_bytes=1 << 24, context=65)


def test_local_layers_that_count_from_the_last_key_are_refused(tokenizer):
    """GPT-Neo's would look at other keys as soon as a longer row is there."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=512, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    )
    with pytest.raises(InputError, match=r"global, local"):
        TransformersBackend(GPTNeoForCausalLM(config), tokenizer)


@pytest.fixture
def broken(tmp_path):
    """The embedded checkpoint, with something done to it."""

    def broken(name, change):
        folder = tmp_path / "broken"
        shutil.copytree(CHECKPOINT, folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return folder

    return broken


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.safetensors", lambda data: data[:5000], "cannot be loaded"),
        ("config.json", lambda data: b"{", "cannot be loaded"),
        ("tokenizer.json", lambda data: b'{"a": 1}', "cannot be loaded"),
        (
            "config.json",
            lambda data: re.sub(rb'("num_hidden_layers": )\d+', rb"\g<1>9", data),
            "which would be random numbers",
        ),
    ],
)
def test_a_broken_folder_is_one_sentence(broken, name, change, said):
    """Cut off, no JSON, of another kind, or without some of its weights, which are never made up."""
    with pytest.raises(InputError, match=said):
        TransformersBackend(broken(name, change), device="cpu")


def test_a_folder_without_a_vocabulary_is_refused(broken):
    """The library makes a tokenizer without a word in it."""
    folder = broken("tokenizer.json", bytes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="no vocabulary"):
        TransformersBackend(folder, device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {"load_options": 5},
        {"load_options": {"bogus_thing": 3}},
        {"template_kwargs": 5},
        {"chat_template": 5},
        {"dtype": 5},
        {"dtype": "int32"},
        {"device": "meta"},
        {"tokenizer": "./nowhere"},
    ],
)
def test_options_of_a_wrong_type_are_input_errors(options):
    """As the command line gives them, which turns an InputError into its one sentence."""
    with pytest.raises(InputError, match=r"bogus_thing|nowhere|(?:expected .*)"):
        TransformersBackend(CHECKPOINT, **{"device": "cpu", **options})


def test_a_path_that_is_no_folder_is_not_looked_for_on_the_hub():
    """Its complaint would be about the spelling of names."""
    with pytest.raises(InputError, match="is not a folder"):
        TransformersBackend("/nowhere/at all")


async def test_the_tokenizer_may_be_named(model):
    """With a model object, the folder or name to load it from is enough."""
    backend = TransformersBackend(model, str(CHECKPOINT), cache_bytes=1 << 24)
    assert await collect(backend, request(max_tokens=2))
    await backend.close()


def test_loading_is_silent_in_a_pipe(capfd):
    """No bar is drawn where no terminal is."""
    TransformersBackend(CHECKPOINT, device="cpu", cache_bytes=1 << 24)
    assert "Loading" not in capfd.readouterr().err
