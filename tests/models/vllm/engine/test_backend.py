"""What the contract does not say: how agents use the backend, and what it refuses."""

import asyncio
import multiprocessing

import pytest

from rollcast import BaseAgent
from rollcast.errors import BackendError, InputError
from rollcast.models.backend import GenerationRequest, Sampling
from rollcast.models.vllm import AsyncVLLMBackend
from rollcast.models.vllm.engine import Generation
from rollcast.tools import calculator

from .conftest import OPTIONS, perturbed, untied_model

MESSAGES = [{"role": "user", "content": "What is 347 * 28 + 9?"}]


def request(name="one", **sampling):
    return GenerationRequest(name, MESSAGES, [], Sampling(**{"max_tokens": 32, "seed": 0, **sampling}))


async def read(backend, *arguments, **sampling):
    return [delta async for delta in backend.generate(request(*arguments, **sampling))]


async def test_chains_of_an_agent_run_at_once(shared):
    """Each chain has ids, log-probabilities, and a text that is what its ids say."""
    agent = BaseAgent("model", backend=shared, tools=[calculator])
    trajectories = await agent.run_async(
        max_steps=2, start_messages=MESSAGES, num_chains=8, sampling=Sampling(max_tokens=48)
    )
    assert len(trajectories) == 8
    assert not [t.error for t in trajectories if t.error is not None]


def test_agents_run_in_one_event_loop_after_another(shared):
    """`run` makes a loop each time, and the engine outlives it."""
    for _ in range(2):
        assert len(asyncio.run(read(shared))) > 0


async def test_a_prompt_that_was_rendered_here_is_counted(shared):
    """The first delta tells the prompt's length, where the caller gave messages."""
    first, *others = await read(shared)
    assert first.prompt_tokens == len(shared.renderer.render(MESSAGES, []))
    assert not any(delta.prompt_tokens for delta in others)


async def test_a_generation_of_a_loop_that_is_gone_leaves(shared, until):
    """Nobody reads it any more, so it does not go on."""
    deltas = shared.generate(request("orphan", max_tokens=900, temperature=2.0, seed=None))

    def elsewhere():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(anext(deltas))
        loop.close()

    await asyncio.to_thread(elsewhere)
    await until(lambda: not shared._engine._running, timeout=30)
    assert not shared._engine._running


async def test_a_second_name_option_is_refused(shared, model):
    """An option that vLLM does not have is named, with the one that was meant."""
    with pytest.raises(InputError, match="'max_modl_len'; did you mean max_model_len"):
        AsyncVLLMBackend(str(model), max_modl_len=5)


def test_other_logprobs_are_refused(model):
    """A trainer needs those of what was sampled from."""
    with pytest.raises(InputError, match="logprobs_mode"):
        AsyncVLLMBackend(str(model), logprobs_mode="raw_logits")


def test_a_folder_without_weights_is_refused(model, tmp_path):
    """Before anything starts."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    with pytest.raises(InputError, match="has no weights"):
        AsyncVLLMBackend(str(tmp_path))


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    """Before anything starts."""
    folder = untied_model(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        AsyncVLLMBackend(str(folder))


def test_a_name_that_is_nowhere_is_refused():
    """Neither a folder nor in the hub's cache."""
    with pytest.raises(InputError, match="neither a folder nor available"):
        AsyncVLLMBackend("nobody/nothing-of-the-kind")


def test_what_vllm_refuses_at_the_start_is_one_sentence(model):
    """A context that the model does not have."""
    with pytest.raises(InputError, match=r"vLLM cannot start with .*max_model_len") as caught:
        AsyncVLLMBackend(str(model), **OPTIONS, max_model_len=5000)
    assert "\n" not in str(caught.value)


def test_a_process_that_cannot_start_says_why(model, monkeypatch):
    """The cache does not hold one sequence; that is found in the engine's process."""
    with pytest.raises(BackendError, match=r"VLLM_CPU_KVCACHE_SPACE") as caught:
        AsyncVLLMBackend(str(model), **OPTIONS, num_gpu_blocks_override=1, block_size=16)
    assert "\n" not in str(caught.value)


def test_a_backend_that_fails_after_its_engine_began_leaves_no_process(model, monkeypatch):
    """Whatever fails: the engine is closed before the error gets out."""

    def unreadable(*_):
        raise InputError("the tokenizer is of an unknown kind")

    monkeypatch.setattr("rollcast.models.vllm.backend.token_texts", unreadable)
    before = set(multiprocessing.active_children())
    with pytest.raises(InputError, match="of an unknown kind"):
        AsyncVLLMBackend(str(model), **OPTIONS)
    for process in set(multiprocessing.active_children()) - before:
        process.join(60)
        assert not process.is_alive()


async def test_versions_are_those_that_vllm_recorded(shared, model, monkeypatch, tmp_path):
    """Under load, each token is stamped with the weights that vLLM's own record names."""
    recorded = {}
    stamped = {}
    delta_of = Generation.delta

    def delta(self, completion, version):
        made = delta_of(self, completion, version)
        stamped.setdefault(self, []).extend([version] * len(made.token_ids))
        if completion.weight_versions is not None:
            recorded[self] = [
                int(span.version) for span in completion.weight_versions for _ in range(span.start, span.end)
            ]
        return made

    monkeypatch.setattr(Generation, "delta", delta)
    start = shared.policy_version
    tasks = [
        asyncio.create_task(read(shared, str(i), max_tokens=300, temperature=1.5, seed=i)) for i in range(24)
    ]
    for step in (1, 2):
        await shared.update_weights(perturbed(model, 0.001 * step), start + step)
    await asyncio.gather(*tasks)
    assert recorded
    assert {version for versions in stamped.values() for version in versions} > {start}
    for generation, versions in recorded.items():
        assert stamped[generation] == versions
    # As it was, for the others.
    await shared.update_weights(str(model), start)


async def test_weights_that_do_not_fit_change_nothing(shared):
    """They are refused before vLLM sees them, and generations go on."""
    with pytest.raises(InputError, match="lack"):
        await shared.update_weights({}, 9)
    assert shared.policy_version != 9
    assert await read(shared)


async def test_an_adapter_for_an_engine_without_any_is_refused(shared, adapter):
    """vLLM has to be started for adapters."""
    with pytest.raises(InputError, match="enable_lora"):
        await shared.update_weights(str(adapter), 9)


async def test_tied_embeddings_on_a_cpu_are_found_out(tied_model):
    """vLLM takes them without an error and samples from something else: what runs fails, and so does what comes."""
    backend = await asyncio.to_thread(AsyncVLLMBackend, str(tied_model), **OPTIONS)
    try:
        running = asyncio.create_task(read(backend, max_tokens=900, temperature=2.0))
        with pytest.raises(BackendError, match="tied embeddings") as caught:
            await backend.update_weights(perturbed(tied_model), 1)
        with pytest.raises(BackendError, match="tied embeddings"):
            await read(backend, "two")
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(outcome, list) or str(outcome) == str(caught.value)
    finally:
        await backend.close()


async def test_adapters_are_sampled_from_and_verified(model, adapter):
    """One from the start, another by update_weights; the log-probabilities are those of the merged weights."""
    from rollcast.models.vllm.verify import reference_logprobs

    backend = await asyncio.to_thread(AsyncVLLMBackend, str(model), lora=adapter, max_lora_rank=8, **OPTIONS)
    try:
        other = write_adapter(adapter.parent / "other", model, seed=2)
        probe = backend._sync._probe
        plain = reference_logprobs(model, backend._engine.dtype, probe.ids)
        for folder, version in ((adapter, 0), (other, 1)):
            if version:
                await backend.update_weights(str(folder), version)
            found = await backend._engine.ask(backend._engine.logprobs(probe.ids))
            expected = reference_logprobs(model, backend._engine.dtype, probe.ids, str(folder))
            assert found == pytest.approx(expected, abs=1e-3)
            assert found != pytest.approx(plain, abs=1e-2)
            assert {delta.policy_version for delta in await read(backend, str(version))} == {version}
        with pytest.raises(InputError, match="adapter is in use"):
            await backend.update_weights(str(model), 2)
    finally:
        await backend.close()


def write_adapter(folder, model, seed):
    """A random LoRA adapter in PEFT's format."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, value in load_file(model / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            stem = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{stem}.lora_A.weight"] = 0.3 * torch.randn((8, value.shape[1]), generator=draw)
            tensors[f"{stem}.lora_B.weight"] = 0.3 * torch.randn((value.shape[0], 8), generator=draw)
    save_file(tensors, folder / "adapter_model.safetensors")
    configuration = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    return folder


@pytest.fixture
def adapter(model, tmp_path):
    return write_adapter(tmp_path / "adapter", model, seed=1)


def test_the_plugin_leaves_its_engine_out(shared):
    """The agent shows what it samples, so the plugin must not show it again."""
    from rollcast.attaching.vllm_engine import SHOWN

    assert vars(shared._engine._llm.output_processor)[SHOWN]
