"""The thread that owns vLLM's `AsyncLLM`, and the requests on their way through it.

An `AsyncLLM` belongs to one event loop. Here that loop runs on a daemon thread of its own, so that requests may come
from several loops and threads, and one that stalls does not stall the others. The tokens of a step go to each consumer's
loop in one wake-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import multiprocessing
import threading
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
from rollcast.models.failures import fresh_copy, not_finite
from rollcast.models.inbox import Inbox, Item, deliver
from rollcast.models.text import StopStrings, TextStream, TokenTexts
from rollcast.models.vllm.watch import Watch
from rollcast.text import one_line

__all__ = ["Engine", "Generation"]

_T = TypeVar("_T")

# Processes that are not gone by then are killed, with their children.
_SHUTDOWN_S = 1.5


_ADAPTER_ID = 1


class Generation(Inbox):
    """One request on its way through the engine.

    Args:
        prompt_ids: shape (T,).
        sampling: how to sample.
        limit: the most tokens that it may sample.
        texts: the texts of the model's tokens.
    """

    __slots__ = ("limit", "prompt_ids", "sampling", "stops", "task", "text")

    def __init__(self, prompt_ids: list[int], sampling: Sampling, limit: int, texts: TokenTexts) -> None:
        super().__init__()
        self.prompt_ids = prompt_ids
        self.sampling = sampling
        self.limit = limit
        self.text = TextStream(texts)
        self.stops = StopStrings(sampling.stop) if sampling.stop else None
        self.task: asyncio.Task[None] | None = None

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


class Engine:
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
        self.version = 0
        self._end_ids = sorted(end_ids)
        self._cause = cause
        self._llm: AsyncLLM
        self._adapter: LoRARequest | None = None
        # Used by the engine's thread only.
        self._running: set[Generation] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._outbox: list[tuple[Generation, Item]] = []
        self._names = map(str, itertools.count())
        self._updating = asyncio.Lock()
        # Shared, under the lock: why nothing can be generated any more, or until new weights come.
        self._lock = threading.Lock()
        self._closed: BackendError | None = None
        self._unusable: BackendError | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rollcast-vllm", daemon=True)
        self._watch: Watch | None = None
        others = multiprocessing.active_children()
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(arguments), self._loop).result()
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

    def submit(self, generation: Generation) -> None:
        """Add a generation to the batch.

        Raises:
            BackendClosedError: the engine was closed.
            BackendError: its weights are not what they should be.
        """
        with self._lock:
            if (failure := self._closed or self._unusable) is not None:
                raise fresh_copy(failure)
            self._loop.call_soon_threadsafe(self._begin, generation)

    def leave(self, generation: Generation) -> None:
        """End a generation; it receives None unless it had ended. May be called twice."""
        with self._lock:
            if self._closed is None:
                self._loop.call_soon_threadsafe(self._end, generation, None)

    async def ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Run one of this engine's coroutines in its loop. It runs to its end even if the caller is cancelled.

        Raises:
            BackendClosedError: the engine was closed, or died.
        """
        with self._lock:
            if self._closed is not None:
                question.close()
                raise fresh_copy(self._closed)
            future = asyncio.run_coroutine_threadsafe(self._tracked(question), self._loop)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if future.cancelled() and self._closed is not None:
                raise fresh_copy(self._closed) from None
            raise

    def open_adapter(self, folder: str) -> None:
        """Sample with a LoRA adapter from the start.

        Raises:
            InputError: vLLM does not take it.
        """
        asyncio.run_coroutine_threadsafe(self.load_adapter(folder, self.version), self._loop).result()

    def close(self, failure: BackendError) -> None:
        """Fail every present and future generation with this error, and wait for the engine's process to end."""
        with self._lock:
            if self._closed is None:
                self._closed = failure
                asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop)
        # The garbage collector may close a forgotten backend on the engine's own thread.
        if threading.current_thread() is not self._thread:
            self._thread.join()
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

    def fail_all(self, failure: BackendError | None) -> None:
        """Fail every present and future generation with this error; None allows new ones again."""
        with self._lock:
            self._unusable = failure
        if failure is not None:
            for generation in list(self._running):
                self._end(generation, fresh_copy(failure))

    # -- in the engine's loop ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _open(self, arguments: AsyncEngineArgs) -> None:
        self._llm = AsyncLLM.from_engine_args(arguments)
        # The agent shows what it samples here, so the plugin must not: see SHOWN in rollcast/attaching/vllm_engine.py.
        self._llm.output_processor._rollcast_shown = True  # noqa: SLF001  (a mark of ours)
        await self._llm.update_weight_version(str(self.version))

    async def _tracked(self, question: Coroutine[Any, Any, _T]) -> _T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await question
        except EngineDeadError as error:
            raise self._death_error() from error

    def _begin(self, generation: Generation) -> None:
        self._running.add(generation)
        task = generation.task = self._loop.create_task(self._pump(generation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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

    def _put(self, generation: Generation, item: Item) -> None:
        if generation not in self._running:
            return
        if not self._outbox:
            # The other generations of this step are already scheduled to run before this call.
            self._loop.call_soon(self._flush)
        self._outbox.append((generation, item))

    def _end(self, generation: Generation, item: Item) -> None:
        self._put(generation, item)
        self._running.discard(generation)
        task = generation.task
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        closed = deliver(outbox)
        # Outputs for a closed loop would never be read.
        for generation in [other for other in self._running if other.loop in closed]:
            self._end(generation, None)

    async def _adopt(self, version: int) -> None:
        # Everything that the old weights sampled left the engine's process before the pause was answered; let it arrive
        # here, where it gets its version.
        for _ in range(8 + len(self._running)):
            await asyncio.sleep(0)
        await self._llm.update_weight_version(str(version))
        self.version = version

    def _death_error(self, error: BaseException | None = None) -> BackendClosedError:
        cause = self._cause()
        said = f" ({cause})" if cause else ""
        failure = BackendClosedError(f"vLLM's engine process died{said}; make another backend to generate")
        failure.__cause__ = error
        return failure

    async def _shutdown(self) -> None:
        failure = self._closed
        assert failure is not None
        for generation in list(self._running):
            self._end(generation, fresh_copy(failure))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._flush()
        try:
            if hasattr(self, "_llm"):
                self._llm.shutdown(timeout=_SHUTDOWN_S)
                del self._llm
        finally:
            self._loop.stop()


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
