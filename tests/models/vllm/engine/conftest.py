"""A small model, and one engine that most tests share. Without vLLM there is nothing here to collect.

With ROLLCAST_TEST_VLLM set, as `make test-vllm` does, a missing vLLM is an error, and so is a skipped test.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from conformance_subjects import VLLM_OPTIONS as OPTIONS
from conformance_subjects import untied_model

WANTED = bool(os.environ.get("ROLLCAST_TEST_VLLM"))

if importlib.util.find_spec("vllm") is None:
    if WANTED:
        raise pytest.UsageError("ROLLCAST_TEST_VLLM is set, but vLLM is not installed")
    collect_ignore_glob = ["test_*.py"]

# A small cache, no network, no compiler, and one process less than vLLM starts on a CPU by itself.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if WANTED and reporter is not None:
        passed, skipped = (len(reporter.stats.get(kind, [])) for kind in ("passed", "skipped"))
        if skipped or not passed:
            reporter.write_line(f"{passed} passed and {skipped} were skipped; with vLLM wanted none may be")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def blocking_calls_fail():
    """vLLM blocks the engine's own loop while it starts and ends; that nobody else is blocked, a test here says."""


@pytest.fixture(autouse=True, scope="session")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


def perturbed(folder: Path, scale: float = 0.02) -> dict:
    """The model's weights with a little noise, by name."""
    import torch
    from safetensors.torch import load_file

    draw = torch.Generator().manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    return {name: value + scale * torch.randn(value.shape, generator=draw) for name, value in weights.items()}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return untied_model(tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory):
    return untied_model(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="session")
def shared(model, environment):
    """One backend for every test that leaves it as it was."""
    import asyncio

    from rollcast.models.vllm import AsyncVLLMBackend

    backend = AsyncVLLMBackend(str(model), **OPTIONS)
    yield backend
    asyncio.run(backend.close())
