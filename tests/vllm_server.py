"""A real vLLM server on the loopback interface, for tests and benchmarks. It needs the environment of `make test-vllm`."""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any, ClassVar

from model_server import ModelServer

__all__ = ["VLLMServer"]


class VLLMServer(ModelServer):
    """`python -m vllm.entrypoints.openai.api_server`, with the paths for new weights."""

    # A small cache, no network, no compiler.
    environment: ClassVar = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_SERVER_DEV_MODE": "1",
    }

    def command(self, port: int) -> list[str]:
        return [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model),
            "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
            "--logprobs-mode", "processed_logprobs", "--distributed-executor-backend", "uni", *self.options,
        ]  # fmt: skip

    def post(self, path: str, body: Any = None) -> Any:
        """Ask for a control path; returns the JSON of its answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(self.url + path, data=data or b"", headers=headers)
        with urllib.request.urlopen(asked, timeout=120) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def cpu_s(self) -> float:
        """The CPU seconds that the server and its engine have used."""
        import psutil

        assert self.process is not None
        server = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (server, *server.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def restore(self) -> None:
        """Load the weights that it was started with."""
        self.post("/pause?mode=abort")
        self.post(
            "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(self.model)}}
        )
        self.post("/reset_prefix_cache")
        self.post("/update_weight_version", {"new_version": "0"})
        self.post("/resume")
