"""A real `transformers serve` on the loopback interface, for tests. It needs the environment of `make test-transformers-serve`."""

from __future__ import annotations

import sys
from typing import ClassVar

from model_server import ModelServer

__all__ = ["TransformersServer"]


class TransformersServer(ModelServer):
    """`transformers serve` on the CPU, in float32."""

    # One thread: on a busy machine two that wait for each other make a token of a small model a hundred times as slow.
    environment: ClassVar = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def command(self, port: int) -> list[str]:
        return [
            sys.executable, "-m", "transformers.cli.transformers", "serve", str(self.model), "--host", "127.0.0.1",
            "--port", str(port), "--device", "cpu", "--dtype", "float32", *self.options,
        ]  # fmt: skip
