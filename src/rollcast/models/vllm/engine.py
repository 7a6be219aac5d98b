"""The thread that owns vLLM's `AsyncLLM`, and the requests on their way through it.

An `AsyncLLM` belongs to one event loop: see `LoopEngine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import multiprocessing
from collections.abc import Callable, Coroutine
from math import isfinite
from typing import Any, TypeVar

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from rollcast.errors import BackendClosedError, BackendError, InputError
from rollcast.models.backend import Delta, Sampling
from rollcast.models.failures import not_finite
from rollcast.models.loop_engine import LoopEngine, TaskInbox
from rollcast.models.text import StopStrings, TextStream, TokenTexts
from rollcast.models.vllm.watch import Watch
from rollcast.text import one_line

__all__ = ["Engine", "Generation"]

_T = TypeVar("_T")

# Processes that are not gone by then are killed, with their children.
_SHUTDOWN_S = 1.5


_ADAPTER_ID = 1


class Generation(TaskInbox):
    """One request on its way through the engine.

    Args:
        prompt_ids: shape (T,).
        sampling: how to sample.
        limit: the most tokens that it may sample.
        texts: the texts of the model's tokens.
    """

    __slots__ = ("limit", "prompt_ids", "sampling", "stops", "text")

    def __init__(self, prompt_ids: list[int], sampling: Sampling, limit: int, texts: TokenTexts) -> None:
        super().__init__()
        self.prompt_ids = prompt_ids
        self.sampling = sampling
        self.limit = limit
        self.text = TextStream(texts)
        self.stops = StopStrings(sampling.stop) if sampling.stop else None

    def delta(self, completion: Any, version: int) -> Delta:
        """Make a delta of one of vLLM's outputs, cut after the token that completes a stop string.

        Raises:
            BackendError: a log-probability is not finite, or vLLM ended the generation for a reason of its own.
        """
        reason: str | None = completion.finish_reason
        if reason not in (None, "stop", "length"):
            raise BackendError(
                f"vLLM ended a generation with {reason!r}; expected 'stop' or 'length': see its log"
            )
        ids: list[int] = list(completion.token_ids)
        logprobs: list[float] = list(completion.logprobs.logprobs) if ids else []
        if not all(map(isfinite, logprobs)):
            raise not_finite(version)
        pieces: list[str] = []
        # A stop token, which is the last, has no text.
        for count, token in enumerate(ids[:-1] if reason == "stop" else ids, 1):
            piece = self.text.feed(token)
            if self.stops is not None and (cut := self.stops.cut(piece)) is not None:
                text = "".join(pieces) + cut
                return Delta(text, ids[:count], logprobs[:count], version, None, "stop")
            pieces.append(piece)
        if reason is not None:
            pieces.append(self.text.end())
        return Delta("".join(pieces), ids, logprobs, version, None, reason)


class Engine(LoopEngine[Generation]):
    """An `AsyncLLM` on its own event loop and thread.

    Args:
        arguments: the engine's arguments.
        end_ids: ids of the tokens that end a generation.
        cause: called when the engine's process died; returns why, as the process wrote it, or an empty string.

    Attributes:
        version: the version of the weights that it samples from now.
        context: how many tokens a prompt and its completion may have together.
        vocabulary: number of token ids.
        dtype: torch's dtype of the weights.
        takes_adapters: whether it was started with `enable_lora`.

    Raises:
        Exception: whatever vLLM raises if it cannot start.
    """

    def __init__(self, arguments: AsyncEngineArgs, end_ids: frozenset[int], cause: Callable[[], str]) -> None:
        self._end_ids = sorted(end_ids)
        self._cause = cause
        self._llm: AsyncLLM
        self._adapter: LoRARequest | None = None
        # Used by the engine's thread only.
        self._names = map(str, itertools.count())
        self._updating = asyncio.Lock()
        self._watch: Watch | None = None
        others = multiprocessing.active_children()
        super().__init__("rollcast-vllm")
        try:
            self.wait_for(self._open(arguments))
        except BaseException:
            # vLLM blocks its loop while it waits for its process, so an interrupted start is ended from outside.
            for child in _started_since(others):
                child.terminate()
            self.close(BackendClosedError("the engine did not start"))
            raise
        self._watch = Watch([child.pid for child in _started_since(others) if child.pid is not None])
        self.context: int = self._llm.model_config.max_model_len
        self.vocabulary: int = self._llm.model_config.get_vocab_size()
        self.dtype: Any = self._llm.model_config.dtype
        self.takes_adapters = self._llm.vllm_config.lora_config is not None

    # -- called from any thread ----------------------------------------------------------------------------------------

    def open_adapter(self, folder: str) -> None:
        """Sample with a LoRA adapter from the start.

        Raises:
            InputError: vLLM does not take it.
        """
        self.wait_for(self.load_adapter(folder, self.version))

    def close(self, failure: BackendError) -> None:
        """See `LoopEngine.close`; waits for the engine's process to end."""
        super().close(failure)
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    # -- in the engine's loop, called through `ask` --------------------------------------------------------------------

    async def logprobs(self, ids: list[int]) -> list[float]:
        """The log-probability of each id but the first, given those before it, with the current weights; shape (T - 1,)."""
        params = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        found: list[float] = []
        prompt = {"prompt_token_ids": ids}
        async for output in self._llm.generate(
            prompt, params, f"probe-{next(self._names)}", lora_request=self._adapter
        ):
            if output.prompt_logprobs:
                rows = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
                found = [row[token].logprob for row, token in rows]
        return found

    async def load(self, folder: str, version: int) -> None:
        """Take the weights in a folder. Running generations go on with them from the next token, their prompts read anew.

        Raises:
            BackendError: vLLM cannot load them; nothing is generated until other weights come.
        """
        async with self._updating:
            try:
                # "keep" freezes what runs; after the cache is cleared, its keys and values are computed anew.
                await self._llm.pause_generation(mode="keep", clear_cache=True)
                await self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
                await self._adopt(version)
                await self._llm.resume_generation()
            except EngineDeadError as error:
                raise self._death_error() from error
            except Exception as error:  # vLLM passes on whatever its workers raised, by name
                failure = BackendError(
                    f"vLLM could not load the weights of version {version} ({_kind_and_text(error)}); the model is now partly "
                    "the old one: give it a whole checkpoint of this model, or make another backend"
                )
                self.fail_all(failure)
                await self._llm.resume_generation()
                raise failure from error

    async def load_adapter(self, folder: str, version: int) -> None:
        """Sample with the LoRA adapter in a folder, in place of the one before.

        Generations that run without an adapter end without one, and this waits for them.

        Raises:
            InputError: vLLM does not take it.
        """
        async with self._updating:
            adapter = LoRARequest("rollcast", _ADAPTER_ID, folder, load_inplace=True)
            mode = "wait" if self._adapter is None else "keep"
            try:
                await self._llm.pause_generation(mode=mode, clear_cache=True)
                try:
                    await self._llm.add_lora(adapter)
                    # Requests name the adapter that is loaded; loading it again with each would be slow.
                    self._adapter = LoRARequest("rollcast", _ADAPTER_ID, folder)
                    await self._adopt(version)
                finally:
                    await self._llm.resume_generation()
            except EngineDeadError as error:
                raise self._death_error() from error
            except Exception as error:  # as above
                raise InputError(
                    f"vLLM does not take the LoRA adapter {folder} ({_kind_and_text(error)}); expected a PEFT folder for this "
                    "model, of a rank up to max_lora_rank"
                ) from error

    # -- in the engine's loop ------------------------------------------------------------------------------------------

    async def _open(self, arguments: AsyncEngineArgs) -> None:
        self._llm = AsyncLLM.from_engine_args(arguments)
        # The agent shows what it samples here, so the plugin must not: see SHOWN in rollcast/attaching/vllm_engine.py.
        self._llm.output_processor._rollcast_shown = True  # noqa: SLF001  (a mark of ours)
        await self._llm.update_weight_version(str(self.version))

    async def _tracked(self, question: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await super()._tracked(question)
        except EngineDeadError as error:
            raise self._death_error() from error

    async def _pump(self, generation: Generation) -> None:
        """Move vLLM's outputs to the inbox, until the generation ends."""
        sampling = generation.sampling
        try:
            params = _parameters(sampling, generation.limit, self._end_ids)
            outputs = self._llm.generate(
                {"prompt_token_ids": generation.prompt_ids},
                params,
                next(self._names),
                lora_request=self._adapter,
            )
            # Closing the outputs aborts the request, if a stop string ended it.
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    delta = generation.delta(output.outputs[0], self.version)
                    if delta.token_ids or delta.finish_reason is not None:
                        self._put(generation, delta)
                    if delta.finish_reason is not None:
                        self._running.discard(generation)
                        return
        except EngineDeadError as error:
            self._end(generation, self._death_error(error))
        except BackendError as error:
            self._end(generation, error)
        except VLLMClientError as error:
            self._end(generation, InputError(f"vLLM refuses the request: {_kind_and_text(error)}"))
        except Exception as error:  # noqa: BLE001  (whatever vLLM raises, the consumer must not wait for it forever)
            failure = BackendError(
                f"vLLM failed while generating ({_kind_and_text(error.__cause__ or error)}); see its log"
            )
            failure.__cause__ = error
            self._end(generation, failure)

    async def _adopt(self, version: int) -> None:
        # Everything that the old weights sampled left the engine's process before the pause was answered; let it arrive
        # here, where it gets its version.
        await self.settled()
        await self._llm.update_weight_version(str(version))
        self.version = version

    def _death_error(self, error: BaseException | None = None) -> BackendClosedError:
        cause = self._cause()
        said = f" ({cause})" if cause else ""
        failure = BackendClosedError(f"vLLM's engine process died{said}; make another backend to generate")
        failure.__cause__ = error
        return failure

    async def _let_go(self) -> None:
        if hasattr(self, "_llm"):
            self._llm.shutdown(timeout=_SHUTDOWN_S)
            del self._llm


def _started_since(others: list[Any]) -> list[Any]:
    return [
        child
        for child in multiprocessing.active_children()
        if child not in others and child.name.startswith("EngineCore")
    ]


def _parameters(sampling: Sampling, limit: int, end_ids: list[int]) -> SamplingParams:
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=min(sampling.top_k, 2**31 - 1),  # what its messages hold; more keeps all as well
        seed=None if sampling.seed is None else _mixed_seed(sampling.seed),
        max_tokens=limit,
        stop_token_ids=end_ids,
        logprobs=0,
        flat_logprobs=True,
        # vLLM strips special tokens by default and holds back or drops text; see text.py.
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _mixed_seed(seed: int) -> int:
    """Mix the seed's 63 bits: torch's generator on a CPU reads only the low 32, and vLLM takes -1 for no seed."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _kind_and_text(error: BaseException) -> str:
    text = one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
