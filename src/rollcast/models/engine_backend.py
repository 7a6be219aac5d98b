"""The base of backends with an engine: requests in, deltas out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from rollcast.errors import InputError, PromptTooLongError
from rollcast.models.backend import Delta, GenerationRequest, Sampling
from rollcast.models.checks import check_prompt_ids
from rollcast.models.inbox import Inbox
from rollcast.models.text import TokenTexts

if TYPE_CHECKING:
    from rollcast.models.chat import TemplateRenderer

__all__ = ["EngineBackend", "Generates"]

G = TypeVar("G", bound=Inbox)
G_contra = TypeVar("G_contra", bound=Inbox, contravariant=True)


class Generates(Protocol[G_contra]):
    """What a backend asks of its engine, from any thread."""

    @property
    def version(self) -> int:
        """The version of the weights that it samples from now."""
        ...

    def submit(self, generation: G_contra) -> None:
        """Begin a generation: deltas go to its inbox, the last with a finish reason, or an error in its place.

        Raises:
            BackendError: nothing can be generated; BackendClosedError if the engine was closed.
        """
        ...

    def leave(self, generation: G_contra) -> None:
        """End a generation early; its inbox receives None unless it had ended. May be called twice."""
        ...


class EngineBackend(ABC, Generic[G]):
    """A token-exact backend whose engine samples elsewhere, on a thread or in a process of its own.

    Requests may come from several event loops and threads at once. A subclass sets the attributes before it calls
    `__init__`, and makes the generations that its engine takes.

    Args:
        engine: the engine that samples.
        texts: the texts of the model's tokens.

    Attributes:
        name, model_name, token_exact, logprobs, streams, policy_version, renderer: as in `Backend`.
        context: how many tokens a prompt and what is sampled after it may have together.
        vocab_size: how many ids the model knows.
    """

    name: str
    model_name: str
    renderer: TemplateRenderer
    token_exact = True
    logprobs = True
    streams = True
    context: int
    vocab_size: int

    _for_more_context = "use a larger model"
    """What to do if a conversation that cannot be shortened does not fit."""

    def __init__(self, engine: Generates[G], texts: TokenTexts) -> None:
        self._engine = engine
        self._texts = texts
        self._generations: dict[str, G] = {}
        # More text than this cannot fit, and encoding megabytes of it would block the event loop for seconds.
        self.renderer.max_characters = self.context * max(map(len, texts.bytes))

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} holds a loaded model and cannot be copied or pickled; make another from the model's "
            "name where it should run"
        )

    @abstractmethod
    def _generation(self, prompt_ids: list[int], sampling: Sampling, limit: int) -> G:
        """Make a generation of at most `limit` tokens for this backend's engine; the prompt was checked.

        Raises:
            InputError: the engine cannot sample in this way.
        """

    @property
    def policy_version(self) -> int:
        """The version of the weights that it samples from now; 0 for those that it began with."""
        return self._engine.version

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Sample until an end token, a stop string, `max_tokens` or the end of the context; usually one delta per token.

        Closing the iterator ends the generation, as `cancel` does.

        Raises:
            PromptTooLongError: the prompt fills the model's context.
            InputError: an id is not in this vocabulary, the request's id is in use, or the engine cannot sample in this way.
            BackendClosedError: the backend was closed, or its engine's process died.
            BackendError: the engine failed, or its weights give no finite logits or are not what they should be.
        """
        rendered = request.prompt_ids is None
        prompt_ids = self.renderer.render(request.messages, request.tools) if rendered else request.prompt_ids
        assert prompt_ids is not None
        generation = self._generation(prompt_ids, request.sampling, self._limit(request, prompt_ids))
        if self._generations.setdefault(request.request_id, generation) is not generation:
            raise InputError(f"request {request.request_id!r} is still running; give each request its own id")
        try:
            self._engine.submit(generation)
        except BaseException:
            del self._generations[request.request_id]
            raise
        items = generation.items
        running = True
        try:
            while running:
                if not items:
                    await generation.arrival()
                item = items.popleft()
                if isinstance(item, Delta):
                    running = item.finish_reason is None
                    if rendered:
                        rendered = False
                        item = msgspec.structs.replace(item, prompt_tokens=len(prompt_ids))
                    yield item
                else:
                    running = False
                    if item is not None:
                        raise item
        finally:
            del self._generations[request.request_id]
            if running:
                self._engine.leave(generation)

    def _limit(self, request: GenerationRequest, prompt_ids: list[int]) -> int:
        """How many tokens may be sampled; a prompt that no engine can take is refused here."""
        check_prompt_ids(prompt_ids, self.vocab_size)
        if len(prompt_ids) >= self.context:
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids)} tokens; expected fewer than the {self.context} of {self.model_name}'s "
                f"context: shorten the conversation, or {self._for_more_context}"
            )
        return min(request.sampling.max_tokens, self.context - len(prompt_ids))

    async def cancel(self, request_id: str) -> None:
        """End a generation early; its iterator ends. Unknown ids are ignored."""
        generation = self._generations.get(request_id)
        if generation is not None:
            self._engine.leave(generation)
