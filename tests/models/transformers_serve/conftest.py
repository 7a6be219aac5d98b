"""One real `transformers serve` that the tests here share. Without its extra there is nothing here to collect."""

import importlib.util
import os

import pytest

from conformance_subjects import sampling_model

if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
    if os.environ.get("ROLLCAST_TEST_TRANSFORMERS_SERVE"):
        raise pytest.UsageError(
            "ROLLCAST_TEST_TRANSFORMERS_SERVE is set, but fastapi and uvicorn are not installed"
        )
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    from transformers_server import TransformersServer

    scratch = tmp_path_factory.mktemp("server")
    running = TransformersServer(sampling_model(scratch / "model"), scratch / "server.log")
    yield running.start()
    running.stop()
