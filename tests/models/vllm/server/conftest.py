"""One real vLLM server that the tests here share. Without vLLM there is nothing here to collect."""

import importlib.util
import os

import pytest

from conformance_subjects import untied_model

if importlib.util.find_spec("vllm") is None:
    if os.environ.get("ROLLCAST_TEST_VLLM"):
        raise pytest.UsageError("ROLLCAST_TEST_VLLM is set, but vLLM is not installed")
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    from vllm_server import VLLMServer

    scratch = tmp_path_factory.mktemp("server")
    running = VLLMServer(untied_model(scratch / "model"), scratch / "server.log", "--max-num-seqs", "64")
    yield running.start()
    running.stop()


@pytest.fixture(autouse=True)
def _running(server):
    """Start it again if a test killed it."""
    server.start()
