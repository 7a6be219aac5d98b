"""The embedded model as a `Backend`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from rollcast.errors import BackendClosedError, BackendError, InputError, PromptTooLongError
from rollcast.models.backend import Delta, GenerationRequest
from rollcast.models.chat import TemplateRenderer
from rollcast.models.tiny.batch import Batch
from rollcast.models.tiny.engine import Engine, Generation
from rollcast.models.tiny.product import measure_block
from rollcast.models.tiny.text import TokenTexts, token_bytes
from rollcast.models.tiny.weights import Parameters, build_parameters, read_config, read_weights

__all__ = ["TinyBackend"]

CHECKPOINT = Path(__file__).parent / "checkpoint"


class TinyBackend:
    """The tiny language model that ships with Rollcast, or another small Qwen3 checkpoint, in NumPy.

    The same seed gives the same ids and log-probabilities to the bit on one machine, whatever else runs in the batch.
    With temperature 0 the log-probability is that of temperature 1. Requests may come from several event loops and
    threads at once. While something runs, the process's BLAS is limited to one thread.

    Args:
        path: a folder with `config.json`, `*.safetensors`, `tokenizer.json` and a chat template; None is the model that
            ships with the package.

    Raises:
        InputError: the folder is not a Qwen3 checkpoint with a byte-level BPE tokenizer.
    """

    name = "tiny"
    token_exact = True
    logprobs = True
    streams = True

    def __init__(self, path: str | Path | None = None) -> None:
        folder = CHECKPOINT if path is None else Path(path)
        self.model_name = "rollcast/tiny" if path is None else str(path)
        self.config = read_config(folder)
        parameters = build_parameters(read_weights(folder), self.config)
        self.renderer: TemplateRenderer = TemplateRenderer.from_folder(folder, self.config.eos_token_ids)
        pieces = token_bytes(json.loads((folder / "tokenizer.json").read_bytes()))
        # A model's vocabulary is often padded beyond its tokenizer's.
        pieces += [b""] * (self.config.vocab_size - len(pieces))
        # More text than this cannot fit, and encoding megabytes of it would hold the event loop for seconds.
        self.renderer.max_characters = self.config.max_position_embeddings * max(map(len, pieces))
        self._texts = TokenTexts(pieces)
        self._engine = Engine(
            make_batch=self._make_batch,
            parameters=parameters,
            end_ids=self.renderer.eos_token_ids,
        )
        self._generations: dict[str, Generation] = {}

    @property
    def policy_version(self) -> int:
        """Of the weights that sample now; 0 are those of the checkpoint."""
        return self._engine.version

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Sample until an end token, a stop string, `max_tokens` or the end of the context; one delta a token.

        Closing the iterator ends the generation, as `cancel` does.

        Raises:
            PromptTooLongError: the prompt fills the model's context.
            InputError: an id is not of this vocabulary, or the request's name is in use.
            BackendClosedError: the backend was closed.
            BackendError: the engine died, or the weights give no finite logits.
        """
        rendered = request.prompt_ids is None
        prompt_ids = self.renderer.render(request.messages, request.tools) if rendered else request.prompt_ids
        assert prompt_ids is not None
        generation = self._generation(request, prompt_ids)
        self._engine.submit(generation)
        self._generations[request.request_id] = generation
        items, loop = generation.items, generation.loop
        running = True
        try:
            while running:
                if not items:
                    generation.waiter = loop.create_future()
                    await generation.waiter
                item = items.popleft()
                if item is None:
                    running = False
                elif isinstance(item, BackendError):
                    running = False
                    raise item
                else:
                    running = item.finish_reason is None
                    if rendered:
                        rendered = False
                        item = msgspec.structs.replace(item, prompt_tokens=len(prompt_ids))
                    yield item
        finally:
            del self._generations[request.request_id]
            if running:
                self._engine.leave(generation)

    def _generation(self, request: GenerationRequest, prompt_ids: list[int]) -> Generation:
        if request.request_id in self._generations:
            raise InputError(f"request {request.request_id!r} is still running; give each request its own id")
        context, vocabulary = self.config.max_position_embeddings, self.config.vocab_size
        if not prompt_ids:
            raise InputError("prompt_ids is empty; expected at least one token")
        if min(prompt_ids) < 0 or max(prompt_ids) >= vocabulary:
            raise InputError(
                f"prompt_ids has an id outside of this model's vocabulary of {vocabulary} tokens"
            )
        if len(prompt_ids) >= context:
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids)} tokens; expected fewer than the {context} of {self.model_name}'s "
                "context: shorten the conversation, or use a larger model"
            )
        limit = min(request.sampling.max_tokens, context - len(prompt_ids))
        return Generation(prompt_ids, request.sampling, limit, self._texts)

    async def cancel(self, request_id: str) -> None:
        """End a generation before its next token; its iterator ends. Unknown ids are ignored."""
        generation = self._generations.get(request_id)
        if generation is not None:
            self._engine.leave(generation)

    async def update_weights(self, weights: Any, version: int) -> None:
        """Sample from these weights from the next token on, and call them `version`.

        When this returns, no token is sampled from the old ones any more. Generations that run keep the keys and values
        that the old weights computed: their log-probabilities are those of the mixture that sampled them, which a
        forward pass of either version alone does not reproduce. New generations start afresh.

        Args:
            weights: a mapping of Hugging Face parameter names to arrays, which are copied; or the path of a safetensors
                file, or of a folder with such files.
            version: carried by every token that they sample.

        Raises:
            InputError: a parameter is missing, unknown, of another shape or not finite.
            BackendClosedError: the backend was closed.
        """
        await asyncio.to_thread(self._update, weights, version)

    def _update(self, weights: Any, version: int) -> None:
        self._engine.set_parameters(build_parameters(read_weights(weights), self.config), version)

    async def close(self) -> None:
        """End the engine. Generations that run raise BackendClosedError, later ones too. May be called twice."""
        failure = BackendClosedError("the tiny backend was closed; make another TinyBackend to generate")
        await asyncio.to_thread(self._engine.close, failure)

    def _make_batch(self, parameters: Parameters) -> Batch:
        layer = parameters.layers[0]
        matrices = [layer.qkv_DE, layer.out_ED, layer.gate_up_DF, layer.down_FD, parameters.unembed_DV]
        return Batch(self.config, parameters, measure_block(matrices))
