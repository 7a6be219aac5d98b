"""vLLM as a `Backend`."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollcast.errors import BackendClosedError, BackendError, InputError
from rollcast.models.backend import Sampling
from rollcast.models.chat import TemplateRenderer
from rollcast.models.checks import check_version
from rollcast.models.checksums import check_folder
from rollcast.models.engine_backend import EngineBackend
from rollcast.models.text import TokenTexts, token_texts
from rollcast.models.vllm.start import EngineLog, engine_arguments, explained, need_vllm
from rollcast.models.vllm.tokens import end_ids, model_folder, read_tokenizer

if TYPE_CHECKING:
    from rollcast.models.vllm.engine import Engine, Generation

__all__ = ["AsyncVLLMBackend"]

# vLLM refuses what is above, and silently raises what is below to the least.
_COLDEST, _HOTTEST = 0.01, 2.0

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")


class AsyncVLLMBackend(EngineBackend["Generation"]):
    """A model in vLLM's `AsyncLLM`, whose engine runs in a process of its own.

    It takes and gives token ids. The log-probabilities are of the distribution that was sampled from; at temperature 0
    they are those of temperature 1. Requests may come from several event loops and threads at once. The same seed gives
    the same ids if the batch is the same: vLLM's arithmetic depends on what else runs.

    The engine's process is spawned, which imports the script again: it needs an `if __name__ == "__main__":`.

    Args:
        model: a folder in the Hugging Face format, or a name on its hub.
        lora: the folder of a LoRA adapter to sample with.
        verify_weights: compare, after each `update_weights`, with a forward pass of transformers on the CPU, which takes
            four bytes of memory per parameter for a moment.
        **options: options of vLLM's `AsyncEngineArgs`: `dtype`, `max_model_len`, `gpu_memory_utilization`,
            `tensor_parallel_size`, `enable_lora`, `max_lora_rank` …

    Raises:
        MissingExtraError: vLLM is not installed.
        InputError: an option or the model's folder is wrong.
        BackendError: vLLM cannot start with them.
    """

    name = "async_vllm"

    _engine: Engine
    _for_more_context = "raise max_model_len as far as the model goes"

    def __init__(
        self, model: str, *, lora: str | Path | None = None, verify_weights: bool = True, **options: Any
    ) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise BackendError(
                "vLLM started a process, which imported your script and began to make another agent; put the code that your "
                'script runs under: if __name__ == "__main__":'
            )
        need_vllm()
        from rollcast.models.vllm.weights import adapter_folder  # noqa: PLC0415  (needs packages that come with vLLM)

        self.model_name = str(model)
        adapter = None if lora is None else adapter_folder(lora)
        if adapter is not None:
            options = {**options, "enable_lora": True}
        self._log = EngineLog()
        try:
            with self._log.environment():
                engine, texts = self._open(options, adapter, verify=verify_weights)
        except BaseException:
            self._log.close()
            raise
        self.context, self.vocab_size = engine.context, engine.vocabulary
        super().__init__(engine, texts)
        # A forgotten backend, and one that is open when the interpreter exits, leaves no process behind.
        self._finalizer = weakref.finalize(self, _close, engine, self._log)

    def _open(
        self, options: dict[str, Any], adapter: str | None, *, verify: bool
    ) -> tuple[Engine, TokenTexts]:
        # Before vLLM looks for it, since vLLM's arguments ask the hub even if it is offline.
        model = model_folder(self.model_name, options.get("revision"), options.get("download_dir"))
        arguments = engine_arguments(self.model_name, options)
        _need_weights(Path(self.model_name), arguments.load_format)
        named = arguments.tokenizer
        folder = (
            model
            if named is None
            else model_folder(named, arguments.tokenizer_revision, arguments.download_dir)
        )
        tokenizer = read_tokenizer(folder)
        ends = end_ids(folder, tokenizer)
        self.renderer = TemplateRenderer.from_folder(folder, ends)
        from rollcast.models.vllm.engine import Engine  # noqa: PLC0415  (imports vLLM, which takes seconds)
        from rollcast.models.vllm.sync import Sync  # noqa: PLC0415

        try:
            engine = Engine(arguments, ends, self._log.cause)
        except Exception as error:  # vLLM's own, pydantic's, torch's …: translated here, once
            raise explained(self.model_name, error, self._log.cause()) from error
        try:
            self._sync = Sync(engine, model, adapter, verify=verify)
            if adapter is not None:
                engine.open_adapter(adapter)
            return engine, token_texts(json.loads(tokenizer.to_str()), engine.vocabulary)
        except BaseException:
            engine.close(BackendClosedError("the engine did not start"))
            raise

    def _generation(self, prompt_ids: list[int], sampling: Sampling, limit: int) -> Generation:
        from rollcast.models.vllm.engine import Generation  # noqa: PLC0415  (imports vLLM; loaded by now)

        temperature = sampling.temperature
        if temperature and not _COLDEST <= temperature <= _HOTTEST:
            raise InputError(
                f"temperature is {temperature}; vLLM takes 0, which is greedy, and {_COLDEST} to {_HOTTEST}"
            )
        return Generation(prompt_ids, sampling, limit, self._texts)

    async def update_weights(self, weights: Any, version: int) -> None:
        """From the next token on, sample from these weights, whose version is `version`.

        When this returns, no token is sampled from the old ones any more, and vLLM's log-probabilities were compared with
        a reference. Running generations go on from where they are, with keys and values that the new weights compute.

        Args:
            weights: a mapping of Hugging Face parameter names to torch tensors or NumPy arrays; the path of a safetensors
                file, or of a folder with such files; or the folder of a LoRA adapter (PEFT's format), for which the
                backend was made with `enable_lora=True` or with `lora`.
            version: their number, which every token that they sample carries.

        Raises:
            InputError: a parameter is missing, unknown, of another shape or not finite, or the adapter does not fit.
            BackendClosedError: the backend was closed, or the engine's process died.
            BackendError: vLLM could not load them, or samples from something else since. Then running and later
                generations fail, until new weights are verified.
        """
        check_version(version)
        await self._engine.ask(self._sync.update(weights, version))

    async def close(self) -> None:
        """End the engine's process. Running and later generations raise BackendClosedError. May be called twice."""
        await asyncio.to_thread(self._finalizer)


def _close(engine: Engine, log: EngineLog) -> None:
    engine.close(BackendClosedError("the vLLM backend was closed; make another AsyncVLLMBackend to generate"))
    log.close()


def _need_weights(folder: Path, load_format: Any) -> None:
    if not folder.is_dir() or str(load_format) == "dummy":
        return
    check_folder(folder)
    if not any(True for pattern in _WEIGHT_FILES for _ in folder.glob(pattern)):
        raise InputError(f"{folder} has no weights; expected *.safetensors beside its config.json")
