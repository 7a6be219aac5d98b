"""A real vLLM server on the loopback interface, for tests and benchmarks. It needs the environment of `make test-vllm`."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

__all__ = ["VLLMServer"]

# A small cache, no network, no compiler, and the paths for new weights.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
}
START_S = 240.0


class VLLMServer:
    """`python -m vllm.entrypoints.openai.api_server` on a free port, in a process group of its own.

    Args:
        model: a folder.
        log: the file that gets what the server writes.
        options: of the command line, `("--max-num-seqs", "64")` …
    """

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        self.model = model
        self.log = log
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> Self:
        """Start it unless it runs, and wait until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time; the end of its log is in the message.
        """
        if self.is_running():
            return self
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model),
            "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
            "--logprobs-mode", "processed_logprobs", "--distributed-executor-backend", "uni", *self._options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}, start_new_session=True
            )
        atexit.register(self.kill)
        until = time.monotonic() + START_S
        while not self._answers():
            if not self.is_running() or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"the vLLM server did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        return self

    def is_running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

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

        assert self._process is not None
        server = psutil.Process(self._process.pid)
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

    def kill(self) -> None:
        """End the server and its engine at once, as when memory runs out."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End the server."""
        if self.is_running() and self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        self.kill()
