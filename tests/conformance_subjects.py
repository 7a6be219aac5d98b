"""Rollcast's own backends as subjects of the suite, for its tests and for the table in docs/backends.md.

Each function gets an empty folder to write to.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from rollcast.models.tiny.backend import CHECKPOINT, TinyBackend
from rollcast.testing.conformance.folder import perturbed_checkpoint, subject_from_folder
from rollcast.testing.conformance.subject import BackendUnderTest
from rollcast.testing.scripted import ScriptedBackend

__all__ = [
    "async_vllm",
    "openai",
    "openai_transformers",
    "openai_vllm",
    "sampling_model",
    "scripted",
    "tiny",
    "transformers",
    "untied_model",
]

VLLM_OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_seqs": 64,
    "distributed_executor_backend": "uni",
}
ONE_AT_A_TIME = "it answers one request after the other, so that what is checked never runs at once"
ROUNDING = "what else is in the batch decides in which order it sums"


def tiny(scratch: Path) -> BackendUnderTest:
    """The embedded backend, against transformers."""
    return subject_from_folder(
        "tiny",
        TinyBackend,
        CHECKPOINT,
        new_folder=perturbed_checkpoint(CHECKPOINT, scratch / "new"),
        wrong_weights={},
        kill=_kill_step,
        running=_running_here,
    )


def transformers(scratch: Path) -> BackendUnderTest:
    """The embedded model's checkpoint in transformers, on the CPU."""
    from rollcast.models.hf import TransformersBackend

    return subject_from_folder(
        "transformers",
        lambda: TransformersBackend(CHECKPOINT, device="cpu", cache_bytes=1 << 25),
        CHECKPOINT,
        new_folder=perturbed_checkpoint(CHECKPOINT, scratch / "new"),
        wrong_weights={},
        kill=_kill_step,
        cannot={"deterministic": ROUNDING},
        running=_running_here,
    )


def async_vllm(scratch: Path) -> BackendUnderTest:
    """A small random model in vLLM; on a CPU that build has to be installed, as `make test-vllm` does."""
    from rollcast.models.vllm import AsyncVLLMBackend

    model = untied_model(scratch / "model")
    return subject_from_folder(
        "async_vllm",
        lambda: asyncio.to_thread(AsyncVLLMBackend, str(model), **VLLM_OPTIONS),
        model,
        new_folder=perturbed_checkpoint(model, scratch / "new"),
        wrong_weights={},
        kill=_kill_process,
        running=lambda backend: backend._engine._llm.get_num_unfinished_requests(),
        cannot={"deterministic": ROUNDING},
        hot=2.0,  # vLLM takes no more
        timeout_s=180.0,
    )


def openai(scratch: Path) -> BackendUnderTest:
    """The embedded backend behind a server that speaks OpenAI as vLLM does."""
    return subject_from_folder(
        "openai",
        lambda: asyncio.to_thread(_served_tiny),
        CHECKPOINT,
        new_folder=perturbed_checkpoint(CHECKPOINT, scratch / "new"),
        wrong_weights={},
        kill=lambda backend: _kill_step(backend.served),
        running=lambda backend: _running_here(backend.served),
    )


def _served_tiny() -> Any:
    """An openai backend that takes its server along when it is closed."""
    from rollcast.models.openai import OpenAIBackend
    from rollcast.testing import OpenAIServer

    class WithServer(OpenAIBackend):
        served = TinyBackend()

        async def close(self) -> None:
            await super().close()
            await asyncio.to_thread(server.__exit__, None, None, None)
            await self.served.close()

    server = OpenAIServer(WithServer.served, model="tiny", context=WithServer.served.context)
    server.__enter__()
    return WithServer("tiny", base_url=server.url, tokenizer=CHECKPOINT, retries=1)


def openai_vllm(scratch: Path, server: Any = None) -> BackendUnderTest:
    """A small random model in vLLM's own server, on the CPU. Who calls this stops the server."""
    from vllm_server import VLLMServer

    model = untied_model(scratch / "model") if server is None else server.model
    running = VLLMServer(model, scratch / "server.log", "--max-num-seqs", "64") if server is None else server

    def make() -> Any:
        from rollcast.models.openai import OpenAIBackend

        if running.is_running():
            running.restore()
        running.start()
        return OpenAIBackend("default", base_url=running.url, retries=1)

    return subject_from_folder(
        "openai (vLLM)",
        lambda: asyncio.to_thread(make),
        model,
        new_folder=perturbed_checkpoint(model, scratch / "new"),
        wrong_weights={},
        kill=lambda backend: asyncio.to_thread(running.kill),
        cannot={"deterministic": ROUNDING},
        hot=2.0,  # vLLM takes no more
        timeout_s=180.0,
    )


def openai_transformers(scratch: Path, server: Any = None) -> BackendUnderTest:
    """A small random model in `transformers serve`, on the CPU. Who calls this stops the server."""
    from transformers_server import TransformersServer

    running = (
        TransformersServer(sampling_model(scratch / "model"), scratch / "server.log")
        if server is None
        else server
    )

    def make() -> Any:
        from rollcast.models.openai import OpenAIBackend

        running.start()
        return OpenAIBackend(str(running.model), base_url=running.url, retries=1)

    return BackendUnderTest(
        name="openai (transformers serve)",
        make=lambda: asyncio.to_thread(make),
        kill=lambda backend: asyncio.to_thread(running.kill),
        cannot={
            "deterministic": "all its requests share one random generator, which the latest seed sets",
            "sampling": "it refuses `top_k`",
            "stop_strings": "it gives the whole token in which a stop string ends",
            "kill": ONE_AT_A_TIME,
            "close": ONE_AT_A_TIME,
        },
        long_tokens=120,
        timeout_s=180.0,
    )


def sampling_model(folder: Path) -> Path:
    """Write the model of `untied_model`, whose generation config samples: without that, `transformers serve` takes the most probable token."""
    model = untied_model(folder)
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(config | {"do_sample": True}))
    return model


def untied_model(folder: Path, *, tied: bool = False, context: int = 1024, seed: int = 0) -> Path:
    """Write a random Qwen3 with the embedded model's tokenizer, in float32.

    Args:
        folder: that is made, or is empty.
        tied: whether embeddings and head are one matrix, which vLLM's CPU build does not sync (docs/vllm.md).
        context: tokens.
        seed: of the weights.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    given = json.loads((CHECKPOINT / "config.json").read_text())
    config = Qwen3Config(
        vocab_size=given["vocab_size"],
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        eos_token_id=given["eos_token_id"],
        bos_token_id=None,
        pad_token_id=None,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen3ForCausalLM(config)
    model.float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINT / name, folder / name)
    return folder


def _kill_step(backend: Any) -> None:
    """The next step of an engine in this process fails; there is no public way to break one."""

    def step() -> None:
        raise RuntimeError("the engine was killed")

    backend._engine._batch.step = step


def _kill_process(backend: Any) -> None:
    """The engine's process is gone, as when memory runs out."""
    manager = backend._engine._llm.engine_core.resources.engine_manager
    for process in manager.processes:
        process.kill()


def _running_here(backend: Any) -> int:
    return len(backend._engine._running)


def scripted(scratch: Path) -> BackendUnderTest:
    """The backend that says what a test wrote down."""
    script = " ".join(f"word{i}" for i in range(600))
    no_model = "it has no model, only a script"
    return BackendUnderTest(
        name="scripted",
        make=lambda: ScriptedBackend(script),
        running=lambda backend: len(backend.running),
        cannot={
            **dict.fromkeys(
                ("reference", "sampling", "stop_strings", "stop_ids", "decode", "vocabulary"), no_model
            ),
            **dict.fromkeys(("new_weights", "wrong_weights", "kill", "context"), no_model),
            "special_tokens": "its ids are hashes of words",
            **dict.fromkeys(("input_checks", "messages"), "it does not read its prompt"),
            "unique_ids": "it accepts every request",
        },
    )
